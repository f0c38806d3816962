//! Where a cache on the web is, and who may be told its password.

use std::fmt;

use reqwest::Url;
use store_model::narinfo::RelativeUrl;
use store_model::netrc::{self, Login};
use store_model::percent;

use super::HttpError;

/// A cache's own address, taken apart. Printed without name, password and parameters.
#[derive(Clone)]
pub(super) struct Origin {
    /// Ends with a slash; has neither user, query nor fragment.
    base: Url,
    login: Option<Login>,
}

impl Origin {
    /// Takes an address apart. The password is its own, or the one that `netrc` has for the host.
    ///
    /// # Errors
    /// It is no address of a server on the web.
    pub(super) fn new(address: &str, netrc: &[u8]) -> Result<Self, HttpError> {
        let refuse = |why| HttpError::Address { why };
        let mut base = Url::parse(address).map_err(|_| refuse("is malformed"))?;
        if !matches!(base.scheme(), "http" | "https") {
            return Err(refuse("is not one of the web"));
        }
        let host = base.host_str().ok_or(refuse("names no server"))?;
        let text = |part: &str| String::from_utf8_lossy(&percent::decode(part)).into_owned();
        let name = Some(text(base.username())).filter(|name| !name.is_empty());
        let login = if let Some(password) = base.password() {
            Some(Login {
                name: name.unwrap_or_default(),
                password: text(password),
            })
        } else {
            let known = netrc::find(netrc.into(), host, name.as_deref());
            let without_password = |name| Login {
                name,
                password: String::new(),
            };
            known.or_else(|| name.map(without_password))
        };
        strip_user(&mut base);
        base.set_query(None);
        base.set_fragment(None);
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        Ok(Self { base, login })
    }

    /// Returns the address of a file of the cache.
    ///
    /// # Errors
    /// The library reads it as one that is not below the cache's own.
    pub(super) fn file(&self, file: &RelativeUrl) -> Result<Url, HttpError> {
        let joined = self.base.join(file.as_str()).ok();
        let below = joined.filter(|url| url.as_str().starts_with(self.base.as_str()));
        below.ok_or(HttpError::Address {
            why: "leads out of the cache",
        })
    }

    /// Returns the address of a file as messages name it.
    pub(super) fn shown(&self, file: &RelativeUrl) -> String {
        let path = file.as_str().split('?').next().unwrap_or_default();
        format!("{}{path}", self.base)
    }

    /// Returns who we are for the server of an address: nobody, unless it is the cache's own.
    pub(super) fn login(&self, url: &Url) -> Option<&Login> {
        self.login
            .as_ref()
            .filter(|_| url.origin() == self.base.origin())
    }
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.base.as_str(), f)
    }
}

/// Takes name and password out of an address: whoever may have them is told by a header.
pub(super) fn strip_user(url: &mut Url) {
    // An address without a host refuses, and has no user either.
    let _is_stripped = url.set_username("").and_then(|()| url.set_password(None));
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    const NETRC: &[u8] = b"machine h login me password secret";

    fn origin(address: &str) -> Origin {
        Origin::new(address, NETRC).unwrap()
    }

    fn file(text: &str) -> RelativeUrl {
        text.parse().unwrap()
    }

    #[test]
    fn files_lie_below_a_cache_and_are_shown_without_secrets() {
        let cache = origin("https://me:own%40@H:8443/a/cache?priority=1#x");
        let narinfo = file("x.narinfo");
        let url = "https://h:8443/a/cache/x.narinfo";
        assert_eq!(cache.file(&narinfo).unwrap().as_str(), url);
        assert_eq!(cache.shown(&narinfo), url);
        let nar = file("nar/y.nar?token=secret");
        assert!(
            cache
                .file(&nar)
                .unwrap()
                .as_str()
                .ends_with("?token=secret")
        );
        assert!(!cache.shown(&nar).contains("secret"));
        assert!(!format!("{cache:?}").contains("own"));
        assert!(!format!("{:?}", cache.login).contains("own"));
        assert_eq!(origin("http://h").shown(&narinfo), "http://h/x.narinfo");
    }

    #[test]
    fn a_password_is_for_the_caches_own_server_only() {
        let login = |address: &str, url: &str| {
            let cache = origin(address);
            let login = cache.login(&url.parse().unwrap());
            login.map(|login| format!("{}:{}", login.name, login.password))
        };
        let own = "https://you:own%40@h/cache";
        assert_eq!(login(own, "https://h/cache/x").as_deref(), Some("you:own@"));
        assert_eq!(login(own, "https://h:443/y").as_deref(), Some("you:own@"));
        for url in [
            "http://h/cache/x",
            "https://h:8443/cache/x",
            "https://other/cache/x",
            "https://h.other/",
        ] {
            assert_eq!(login(own, url), None, "{url}");
        }
        assert_eq!(
            login("https://h/", "https://h/x").as_deref(),
            Some("me:secret")
        );
        assert_eq!(
            login("https://me@h/", "https://h/x").as_deref(),
            Some("me:secret")
        );
        assert_eq!(
            login("https://you@h/", "https://h/x").as_deref(),
            Some("you:")
        );
        assert_eq!(login("https://other/", "https://other/x"), None);
    }

    #[test]
    fn what_is_no_cache_on_the_web_is_refused() {
        for address in ["", "h", "file:///x", "ftp://h/", "http://", "s3://bucket"] {
            assert!(Origin::new(address, NETRC).is_err(), "{address}");
        }
    }
}
