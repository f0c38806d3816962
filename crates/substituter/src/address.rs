//! The address of a cache, as `substituters` has it: `https://name:password@host/path?priority=10`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use store_model::{StoreDir, percent};

/// Where a cache is, and what its user says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CacheAddress {
    /// Where it is.
    pub(crate) place: Place,
    /// The address for messages and as a key: without name, password and parameters.
    pub(crate) name: Arc<str>,
    /// Its place among caches, the smaller the earlier, over what the cache says itself.
    pub(crate) priority: Option<u32>,
    /// Whether its word needs no signature.
    pub(crate) is_trusted: bool,
    /// Parameters that mean nothing to us, to be told.
    pub(crate) unknown: Vec<String>,
}

/// Where a cache is.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Place {
    /// In a directory of this machine.
    Directory(PathBuf),
    /// On a server: the address, with name and password if there are any, without parameters and
    /// without a slash at its end.
    Server(String),
    /// Another store of this machine.
    Store(StorePlace),
}

/// Where another store of this machine is. What its user does not say follows from the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StorePlace {
    /// The directory below which it has its own `/nix`; `None` for that of the machine itself.
    pub(crate) root: Option<PathBuf>,
    /// Where its objects lie, if not in `nix/store` below the root.
    pub(crate) real: Option<PathBuf>,
    /// Where its database lies, if not in `nix/var/nix` below the root.
    pub(crate) state: Option<PathBuf>,
    /// Where its logs lie, if not in `nix/var/log/nix` below the root.
    pub(crate) log: Option<PathBuf>,
    /// The directory that its paths are named by, if not ours.
    pub(crate) store_dir: Option<StoreDir>,
}

impl StorePlace {
    /// Returns the address, as messages name the store.
    fn name(&self) -> String {
        let places = [
            ("root", &self.root),
            ("real", &self.real),
            ("state", &self.state),
        ];
        let said = places.into_iter().filter_map(|(key, place)| {
            let place = place.as_ref()?;
            Some(format!("{key}={}", place.display()))
        });
        let said: Vec<String> = said.collect();
        if said.is_empty() {
            LOCAL.to_owned()
        } else {
            format!("{LOCAL}?{}", said.join("&"))
        }
    }
}

/// Prints no password.
impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "Directory({path:?})"),
            Self::Server(url) => write!(f, "Server({:?})", without_userinfo(url)),
            Self::Store(place) => write!(f, "{place:?}"),
        }
    }
}

/// What Nix calls a store that it works on without a daemon.
const LOCAL: &str = "local";

/// Parameters that concern writing to a cache, or that have no meaning here.
const IDLE_PARAMETERS: [&str; 11] = [
    "compression",
    "compression-level",
    "index-debug-info",
    "local-nar-cache",
    "parallel-compression",
    "path-info-cache-size",
    "require-sigs",
    "secret-key",
    "system-features",
    "want-mass-query",
    "write-nar-listing",
];

impl CacheAddress {
    /// Reads one word of `substituters`.
    ///
    /// # Errors
    /// It is not the address of a cache that can be asked; the text says why.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (base, parameters) = text.split_once('?').unwrap_or((text, ""));
        let mut address = Self {
            place: parse_place(base)?,
            name: "".into(),
            priority: None,
            is_trusted: false,
            unknown: Vec::new(),
        };
        for parameter in parameters.split('&').filter(|text| !text.is_empty()) {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            address.set(key, value)?;
        }
        let name = match &address.place {
            Place::Directory(path) => format!("file://{}", path.display()),
            Place::Server(url) => without_userinfo(url),
            Place::Store(place) => place.name(),
        };
        address.name = name.into();
        Ok(address)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "priority" => {
                let priority = value
                    .bytes()
                    .all(|byte| byte.is_ascii_digit())
                    .then(|| value.parse().ok());
                self.priority = priority.flatten();
                if self.priority.is_none() {
                    return Err(format!("'{value}' is not a priority"));
                }
            }
            "trusted" => {
                self.is_trusted = match value {
                    "true" | "yes" | "1" => true,
                    "false" | "no" | "0" => false,
                    _ => return Err(format!("'trusted' is either 1 or 0, not '{value}'")),
                }
            }
            "root" | "real" | "state" | "log" | "store"
                if matches!(self.place, Place::Store(_)) =>
            {
                self.set_place(key, value)?;
            }
            idle if IDLE_PARAMETERS.contains(&idle) => {}
            unknown => self.unknown.push(unknown.to_owned()),
        }
        Ok(())
    }

    /// Sets where another store is. As with Nix, saying nothing after the sign is not saying it.
    fn set_place(&mut self, key: &str, value: &str) -> Result<(), String> {
        let Place::Store(place) = &mut self.place else {
            return Ok(());
        };
        if value.is_empty() {
            return Ok(());
        }
        let path = PathBuf::from(OsString::from_vec(percent::decode(value)));
        if !path.is_absolute() {
            return Err(format!("'{key}' is an absolute path, not '{value}'"));
        }
        match key {
            "root" => place.root = Some(path),
            "real" => place.real = Some(path),
            "state" => place.state = Some(path),
            "log" => place.log = Some(path),
            _ => place.store_dir = Some(read_store_dir(&path)?),
        }
        Ok(())
    }
}

fn read_store_dir(path: &std::path::Path) -> Result<StoreDir, String> {
    let text = path.to_str().ok_or("'store' is no text")?;
    StoreDir::new(text).map_err(|error| error.to_string())
}

fn parse_place(base: &str) -> Result<Place, String> {
    let Some((scheme, rest)) = base.split_once("://") else {
        return parse_store(base).map(Place::Store);
    };
    match scheme {
        "file" if rest.starts_with('/') => Ok(Place::Directory(PathBuf::from(rest))),
        "file" => Err("a file's address has an absolute path".to_owned()),
        "http" | "https" => {
            let host = rest.split('/').next().unwrap_or_default();
            if host.rsplit('@').next().unwrap_or_default().is_empty() || rest.contains('#') {
                return Err("it names no server".to_owned());
            }
            Ok(Place::Server(base.trim_end_matches('/').to_owned()))
        }
        other => Err(format!(
            "caches of the kind '{other}' are not supported, only https, http, file and local"
        )),
    }
}

/// Reads what names a store of this machine. As with Nix, a path is the root of one.
fn parse_store(base: &str) -> Result<StorePlace, String> {
    match base {
        LOCAL => Ok(StorePlace::default()),
        "auto" | "daemon" => Err(format!(
            "no daemon is asked; '{LOCAL}' is the store of this machine, and '{LOCAL}?root=DIR' \
             another one"
        )),
        root if root.starts_with('/') => Ok(StorePlace {
            root: Some(PathBuf::from(root)),
            ..StorePlace::default()
        }),
        relative if relative.contains('/') => {
            Err("the path of a store is an absolute one".to_owned())
        }
        _ => Err("it is neither an address nor an absolute path".to_owned()),
    }
}

/// Returns whatever stands for a cache without parameters, name and password, fit to be printed.
#[must_use]
pub fn without_secrets(text: &str) -> String {
    let base = text.split('?').next().unwrap_or_default();
    if base.contains("://") {
        without_userinfo(base)
    } else {
        base.to_owned()
    }
}

/// Returns an address without name and password.
fn without_userinfo(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let (host, path) = rest
        .find('/')
        .map_or((rest, ""), |slash| rest.split_at(slash));
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn a_cache_is_a_directory_or_on_a_server() {
        let address = CacheAddress::parse("https://cache.nixos.org/").unwrap();
        assert_eq!(
            address.place,
            Place::Server("https://cache.nixos.org".to_owned())
        );
        assert_eq!(&*address.name, "https://cache.nixos.org");
        let address = CacheAddress::parse("file:///var/cache/nix").unwrap();
        assert_eq!(address.place, Place::Directory("/var/cache/nix".into()));
        assert_eq!(&*address.name, "file:///var/cache/nix");
        assert_eq!((address.priority, address.is_trusted), (None, false));
    }

    #[test]
    fn a_store_of_this_machine_is_named_by_its_root_or_by_where_its_parts_are() {
        let at = |root: &str| StorePlace {
            root: Some(root.into()),
            ..StorePlace::default()
        };
        for text in ["/mnt", "local?root=/mnt", "local?root=%2fmnt&real=&log="] {
            let address = CacheAddress::parse(text).unwrap();
            assert_eq!(address.place, Place::Store(at("/mnt")), "{text}");
            assert_eq!(&*address.name, "local?root=/mnt");
        }
        let address = CacheAddress::parse("local?trusted=1&require-sigs=0&priority=3").unwrap();
        assert_eq!(address.place, Place::Store(StorePlace::default()));
        assert_eq!((address.priority, address.is_trusted), (Some(3), true));
        assert!(address.unknown.is_empty());
        assert_eq!(&*address.name, "local");
        let address =
            CacheAddress::parse("local?real=/a/store&state=/b&log=/c&store=/gnu/store&x=/y")
                .unwrap();
        assert_eq!(&*address.name, "local?real=/a/store&state=/b");
        assert_eq!(address.unknown, ["x"]);
        let Place::Store(place) = address.place else {
            panic!("not a store");
        };
        assert_eq!(place.log, Some("/c".into()));
        assert_eq!(place.store_dir, Some(StoreDir::new("/gnu/store").unwrap()));
        // Where a cache has no such thing, it is a mistake to be told.
        let address = CacheAddress::parse("file:///c?root=/x").unwrap();
        assert_eq!(address.unknown, ["root"]);
    }

    #[test]
    fn parameters_are_read_and_wrong_ones_told() {
        let address =
            CacheAddress::parse("http://h:8080/p?priority=7&trusted=1&compression=xz").unwrap();
        assert_eq!(address.place, Place::Server("http://h:8080/p".to_owned()));
        assert_eq!((address.priority, address.is_trusted), (Some(7), true));
        assert!(address.unknown.is_empty());
        let address = CacheAddress::parse("http://h?trust=1&&priority=2").unwrap();
        assert_eq!(address.unknown, ["trust"]);
        assert_eq!((address.priority, address.is_trusted), (Some(2), false));
        for text in [
            "http://h?priority=-1",
            "http://h?priority=",
            "http://h?priority=99999999999",
            "http://h?trusted=maybe",
        ] {
            assert!(CacheAddress::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_asked_says_why() {
        let reason = CacheAddress::parse("s3://bucket").unwrap_err();
        assert!(reason.contains("'s3' are not supported"), "{reason}");
        for text in [
            "",
            "cache",
            "daemon",
            "file://cache",
            "https://",
            "https://u:p@",
            "https:///x",
            "ssh://host",
            "auto",
            "auto?root=/x",
            "unix:///socket",
            "./store",
            "local?root=x",
            "local?store=/nix/../store",
            "local://x",
            "http://h/#x",
        ] {
            assert!(CacheAddress::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_password_is_not_in_the_name_and_not_in_what_debuggers_print() {
        for text in [
            "https://user:secret@host/path",
            "https://user:sec@secret@host/path",
            "https://secret@host/path?trusted=1",
        ] {
            let address = CacheAddress::parse(text).unwrap();
            assert_eq!(&*address.name, "https://host/path");
            assert!(!format!("{address:?}").contains("secret"));
            let Place::Server(url) = address.place else {
                panic!("not a server");
            };
            assert!(url.contains("secret"));
        }
    }
}
