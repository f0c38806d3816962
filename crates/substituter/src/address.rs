//! The address of a cache, as `substituters` has it: `https://name:password@host/path?priority=10`.

use std::path::PathBuf;
use std::sync::Arc;

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
}

/// Prints no password.
impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "Directory({path:?})"),
            Self::Server(url) => write!(f, "Server({:?})", without_userinfo(url)),
        }
    }
}

/// Parameters that concern writing to a cache, or that have no meaning here.
const IDLE_PARAMETERS: [&str; 9] = [
    "compression",
    "compression-level",
    "index-debug-info",
    "local-nar-cache",
    "parallel-compression",
    "path-info-cache-size",
    "secret-key",
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
        let place = parse_place(base)?;
        let name = match &place {
            Place::Directory(path) => format!("file://{}", path.display()),
            Place::Server(url) => without_userinfo(url),
        };
        let mut address = Self {
            place,
            name: name.into(),
            priority: None,
            is_trusted: false,
            unknown: Vec::new(),
        };
        for parameter in parameters.split('&').filter(|text| !text.is_empty()) {
            let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            address.set(key, value)?;
        }
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
            idle if IDLE_PARAMETERS.contains(&idle) => {}
            unknown => self.unknown.push(unknown.to_owned()),
        }
        Ok(())
    }
}

fn parse_place(base: &str) -> Result<Place, String> {
    if base.starts_with('/') {
        return Ok(Place::Directory(PathBuf::from(base)));
    }
    let (scheme, rest) = base
        .split_once("://")
        .ok_or("it is neither an address nor an absolute path")?;
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
            "caches of the kind '{other}' are not supported, only https, http and file"
        )),
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
        for text in ["/var/cache/nix", "file:///var/cache/nix"] {
            let address = CacheAddress::parse(text).unwrap();
            assert_eq!(address.place, Place::Directory("/var/cache/nix".into()));
            assert_eq!(&*address.name, "file:///var/cache/nix");
            assert_eq!((address.priority, address.is_trusted), (None, false));
        }
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
            "local?root=/x",
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
