//! Where a file of a cache is, as an address that cannot lead out of the cache.
//!
//! `URL:` is not signed, so it is written by an attacker until proven otherwise (SECURITY N07). What
//! passes here means the same to us, to an HTTP library that normalises addresses, to the server
//! behind it and to a file system.

use std::fmt;
use std::str::FromStr;

use crate::Error;

/// Longest address that is followed. Real ones have some 60 to 200 bytes.
const MAX_LEN: usize = 1024;

/// A path below a cache's own address, with a query after it where the cache wants one.
///
/// Neither absolute nor empty; no part of it is empty, `.` or `..`, however it is spelt.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelativeUrl(Box<str>);

impl RelativeUrl {
    /// Returns the text, to be put after the cache's address and a slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RelativeUrl {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::RelativeUrl {
            text: text.chars().take(100).collect(),
            reason,
        };
        if text.len() > MAX_LEN {
            return Err(refuse("it has more than 1024 bytes"));
        }
        if !text
            .bytes()
            .all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'\\' | b'#'))
        {
            return Err(refuse("it has a character that no path of a cache needs"));
        }
        let (path, _query) = text.split_once('?').unwrap_or((text, ""));
        if path
            .split('/')
            .next()
            .is_some_and(|first| first.contains(':'))
        {
            return Err(refuse("it names a server or a scheme of its own"));
        }
        // A library may decode `%2e%2e` and then climb; a server may decode `%2f` and then split.
        let lower = path.to_ascii_lowercase();
        if ["%2e", "%2f", "%5c", "%00", "%25"]
            .iter()
            .any(|code| lower.contains(code))
        {
            return Err(refuse("it hides a dot, a slash, a zero or a per cent"));
        }
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(refuse("it is not a path below the cache"));
        }
        Ok(Self(text.into()))
    }
}

impl fmt::Display for RelativeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RelativeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_caches_write_is_followed() {
        for text in [
            "nar/0l7ld9klw9k5l3zcfd8a4dsm9lmjvrym9nksqj3fpky72k7ndfnn.nar.xz",
            "nar/0l7ld9klw9k5l3zcfd8a4dsm9lmjvrym9nksqj3fpky72k7ndfnn.nar?hash=hwc82vi2zdq3kvazxc8hl80s1j5d4j2p",
            "nix-cache-info",
            "nar/a..b.nar",
            "nar/a%2Bb.nar",
            "nar/a:b.nar",
            "nar/x?part=../y",
        ] {
            assert_eq!(
                text.parse::<RelativeUrl>().map(|url| url.to_string()),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn what_leads_elsewhere_is_refused() {
        let long = format!("nar/{}", "x".repeat(8192));
        for text in [
            "",
            "/etc/passwd",
            "//evil/x",
            "nar//x",
            "nar/",
            "nar/../../secret",
            "..",
            "./nar",
            "nar/.",
            "nar/%2e%2e/x",
            "nar/%2E./x",
            "nar/..%2fx",
            "nar/%252e%252e/x",
            "nar\\..\\x",
            "nar/x%00",
            "http://169.254.169.254/latest",
            "https://other/",
            "file:///etc/passwd",
            "http:x",
            "nar/x#y",
            "nar/x y",
            "nar/x\n",
            "nar/\u{e9}",
            "?x",
            &long,
        ] {
            assert!(text.parse::<RelativeUrl>().is_err(), "{text}");
        }
    }
}
