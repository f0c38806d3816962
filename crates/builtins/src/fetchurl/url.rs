//! Addresses: taken apart, and joined with where a redirect leads.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use store_model::percent;
use ureq::http::Uri;

use super::TransferError;

/// How what an address names is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
    File,
}

/// An address without its fragment. Printed without its password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    pub(super) scheme: Scheme,
    /// Name and password, as far as they stand in the address.
    pub(super) user: Option<(String, Option<String>)>,
    /// Empty for files; IPv6 addresses with their brackets.
    pub(super) host: String,
    pub(super) port: Option<u16>,
    /// From the first slash on, with the query.
    path: String,
}

impl Url {
    /// Returns the file that a `file:` address names.
    pub(super) fn file_path(&self) -> PathBuf {
        use std::os::unix::ffi::OsStringExt as _;
        let path = self.path.split('?').next().unwrap_or_default();
        PathBuf::from(std::ffi::OsString::from_vec(percent::decode(path)))
    }

    /// Returns what `location`, of a redirect from here, names.
    ///
    /// # Errors
    /// It is no address of a server.
    pub(super) fn join(&self, location: &str) -> Result<Self, TransferError> {
        let has_scheme = location
            .split_once(':')
            .is_some_and(|(scheme, _)| !scheme.contains(['/', '?', '#']));
        let base = self.base();
        let joined = if has_scheme {
            location.to_owned()
        } else if location.starts_with("//") {
            format!("{}:{location}", self.scheme)
        } else if location.starts_with('/') {
            format!("{base}{location}")
        } else {
            let path = self.path.split('?').next().unwrap_or_default();
            if location.is_empty() || location.starts_with(['?', '#']) {
                format!("{base}{path}{location}")
            } else {
                let (directory, _) = path.rsplit_once('/').unwrap_or_default();
                format!("{base}{directory}/{location}")
            }
        };
        let url: Self = joined.parse()?;
        if url.scheme == Scheme::File {
            return Err(TransferError::Misbehaved {
                what: "redirects to a file",
            });
        }
        Ok(Self {
            path: without_dots(&url.path),
            ..url
        })
    }

    fn base(&self) -> String {
        let port = self
            .port
            .map_or_else(String::new, |port| format!(":{port}"));
        format!("{}://{}{port}", self.scheme, self.host)
    }
}

/// Without name and password, which are for no log.
impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.base(), self.path)
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::File => "file",
        })
    }
}

impl FromStr for Url {
    type Err = TransferError;

    fn from_str(text: &str) -> Result<Self, TransferError> {
        let refuse = |why| TransferError::Url { why };
        let text = text.split('#').next().unwrap_or_default();
        let (scheme, rest) = text.split_once(':').ok_or(refuse("has no scheme"))?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "file" => Scheme::File,
            _ => return Err(refuse("has a scheme that is not supported")),
        };
        if scheme == Scheme::File {
            let path = rest
                .strip_prefix("//")
                .map_or(rest, |rest| rest.strip_prefix("localhost").unwrap_or(rest));
            if !path.starts_with('/') || path.starts_with("//") {
                return Err(refuse("names no file of this machine"));
            }
            return Ok(Self {
                scheme,
                user: None,
                host: String::new(),
                port: None,
                path: path.to_owned(),
            });
        }
        let uri: Uri = encode(text).parse().map_err(|_| refuse("is malformed"))?;
        let authority = uri.authority().ok_or(refuse("names no server"))?;
        if authority.host().is_empty() {
            return Err(refuse("names no server"));
        }
        let user = authority.as_str().rsplit_once('@').map(|(user, _)| {
            let text = |part: &str| String::from_utf8_lossy(&percent::decode(part)).into_owned();
            match user.split_once(':') {
                Some((name, password)) => (text(name), Some(text(password))),
                None => (text(user), None),
            }
        });
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        Ok(Self {
            scheme,
            user,
            host: authority.host().to_ascii_lowercase(),
            port: authority.port_u16(),
            path: if path.starts_with('/') {
                path.to_owned()
            } else {
                format!("/{path}")
            },
        })
    }
}

/// Writes what no address may hold, such as a space, as it must be written.
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_graphic() && !b"\"<>\\^`{|}".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let digit = |number: u8| char::from(b"0123456789ABCDEF"[usize::from(number)]);
            encoded.extend(['%', digit(byte >> 4), digit(byte & 0xf)]);
        }
        encoded
    })
}

/// Takes `.` and `..` out of a path.
fn without_dots(path: &str) -> String {
    let (path, query) = path
        .split_once('?')
        .map_or((path, None), |(path, query)| (path, Some(query)));
    let mut parts: Vec<&str> = Vec::new();
    let mut segments = path.split('/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let is_last = segments.peek().is_none();
        match segment {
            "." if is_last => parts.push(""),
            "." => {}
            ".." => {
                parts.pop();
                if is_last {
                    parts.push("");
                }
            }
            segment => parts.push(segment),
        }
    }
    let path = format!("/{}", parts.join("/"));
    query.map_or(path.clone(), |query| format!("{path}?{query}"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        text.parse().unwrap()
    }

    #[test]
    fn an_address_is_taken_apart_and_printed_without_its_password() {
        let secret = url("HTTPS://me:a%40b@Example.org:8443/a%20b?c=d#e");
        assert_eq!(secret.to_string(), "https://example.org:8443/a%20b?c=d");
        assert_eq!(format!("{secret:?}"), secret.to_string());
        let user = ("me".to_owned(), Some("a@b".to_owned()));
        assert_eq!(secret.user, Some(user));
        assert_eq!(url("http://h").to_string(), "http://h/");
        assert_eq!(url("http://h?q").to_string(), "http://h/?q");
        assert_eq!(url("http://[::1]:80/x").to_string(), "http://[::1]:80/x");
        assert_eq!(url("http://h/ä b").to_string(), "http://h/%C3%A4%20b");
    }

    #[test]
    fn a_file_is_one_of_this_machine() {
        for text in ["file:///a%20b", "file:/a%20b", "file://localhost/a%20b"] {
            assert_eq!(url(text).file_path(), PathBuf::from("/a b"), "{text}");
        }
        assert_eq!(url("file:///100%").file_path(), PathBuf::from("/100%"));
        for text in [
            "file://host/x",
            "file:x",
            "file:",
            "ftp://h/x",
            "x",
            "",
            "http://",
            "http:///x",
        ] {
            assert!(text.parse::<Url>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_redirect_may_be_relative_to_where_it_comes_from() {
        let from = url("https://me:secret@h:1/a/b?c");
        for (location, target) in [
            ("http://other/x", "http://other/x"),
            ("//other/x", "https://other/x"),
            ("/x", "https://h:1/x"),
            ("x", "https://h:1/a/x"),
            ("./x?y=../z", "https://h:1/a/x?y=../z"),
            ("../x", "https://h:1/x"),
            ("../../../x", "https://h:1/x"),
            (".", "https://h:1/a/"),
            ("..", "https://h:1/"),
            ("?d", "https://h:1/a/b?d"),
            ("x:y/z", "refused"),
            ("/x:y", "https://h:1/x:y"),
            ("file:///etc/passwd", "refused"),
            ("ftp://h/x", "refused"),
        ] {
            let joined = from.join(location);
            let joined = joined.map_or("refused".to_owned(), |url| url.to_string());
            assert_eq!(joined, target, "{location}");
        }
        // Whoever is asked next is not told the password of the one before.
        assert_eq!(from.join("/x").unwrap().user, None);
    }
}
