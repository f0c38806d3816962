//! The name of one object in a store, without the store's directory.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::{Error, base32};

/// How many digits the hash part has: 160 bits in base-32.
pub const HASH_PART_LEN: usize = 32;

/// The longest name after the hash part, so that `<hash>-<name>.lock` and Nix's own temporary
/// suffixes still fit the 255 bytes of a file name.
pub const MAX_NAME_LEN: usize = 211;

/// What ends the name of every derivation.
pub const DERIVATION_SUFFIX: &str = ".drv";

/// A store path's base name, `<hash part>-<name>`.
///
/// Cheap to clone. Ordered as Nix orders paths: by the bytes of the base name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Arc<str>);

impl StorePath {
    /// Puts a path together from its 160-bit digest and its name.
    ///
    /// # Errors
    /// The name is not allowed.
    pub fn from_digest(digest: &[u8; 20], name: &str) -> Result<Self, Error> {
        check_name(name)?;
        Ok(Self(format!("{}-{name}", base32::encode(digest)).into()))
    }

    /// Returns the whole base name.
    #[must_use]
    pub fn base_name(&self) -> &str {
        &self.0
    }

    /// Returns the 32 digits before the dash.
    #[must_use]
    pub fn hash_part(&self) -> &str {
        &self.0[..HASH_PART_LEN]
    }

    /// Returns the name after the dash.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0[HASH_PART_LEN + 1..]
    }

    /// Returns whether the name ends in `.drv`.
    #[must_use]
    pub fn is_derivation(&self) -> bool {
        self.0.ends_with(DERIVATION_SUFFIX)
    }
}

/// Reads a base name such as `l6bcrn7136a8mxanqvnyvrzv3m9xkq6i-diamond-top`.
impl FromStr for StorePath {
    type Err = Error;

    fn from_str(base_name: &str) -> Result<Self, Error> {
        let refuse = |reason| Error::StorePath {
            path: base_name.chars().take(300).collect(),
            reason,
        };
        let bytes = base_name.as_bytes();
        if bytes.len() < HASH_PART_LEN + 2 {
            return Err(refuse("too short for a hash part, a dash and a name"));
        }
        if !bytes[..HASH_PART_LEN]
            .iter()
            .all(|byte| base32::is_digit(*byte))
        {
            return Err(refuse("the hash part is not base-32"));
        }
        if bytes[HASH_PART_LEN] != b'-' {
            return Err(refuse("no dash after the hash part"));
        }
        check_name(&base_name[HASH_PART_LEN + 1..])?;
        Ok(Self(base_name.into()))
    }
}

/// Checks the name part of a store path.
///
/// # Errors
/// The name is empty, too long, `.` or `..` or begins like them (`.-`, `..-`), or has a character
/// outside `[0-9a-zA-Z+-._?=]`.
pub fn check_name(name: &str) -> Result<(), Error> {
    let refuse = |reason| {
        Err(Error::StorePath {
            path: name.chars().take(300).collect(),
            reason,
        })
    };
    if name.is_empty() {
        return refuse("the name is empty");
    }
    if name.len() > MAX_NAME_LEN {
        return refuse("the name is longer than 211 characters");
    }
    let first_part = name.split('-').next().unwrap_or(name);
    if matches!(first_part, "." | "..") {
        return refuse("the name is, or begins like, '.' or '..'");
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._?=".contains(&byte);
    if !name.bytes().all(allowed) {
        return refuse("the name has a character outside [0-9a-zA-Z+-._?=]");
    }
    Ok(())
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;
    use crate::StoreDir;

    const HASH_PART: &str = "l6bcrn7136a8mxanqvnyvrzv3m9xkq6i";

    #[test]
    fn a_path_falls_into_its_parts() {
        let path: StorePath = format!("{HASH_PART}-a-b+.drv").parse().unwrap();
        assert_eq!((path.hash_part(), path.name()), (HASH_PART, "a-b+.drv"));
        assert!(path.is_derivation());
        assert_eq!(
            StoreDir::default().parse(&StoreDir::default().print(&path)),
            Ok(path)
        );
    }

    #[test]
    fn names_that_could_escape_or_collide_are_refused() {
        for name in [
            "", ".", "..", ".-x", "..-x", "a/b", "/a", "a/", "a\0", "a\n", "a b", " ", "a\u{e9}",
            "~", "a*", "a!b", "a^b", "a'b", "a\\b",
        ] {
            assert!(check_name(name).is_err(), "{name:?}");
            assert!(
                format!("{HASH_PART}-{name}").parse::<StorePath>().is_err(),
                "{name:?}"
            );
        }
        for name in [".a", "..a", ".a-", "...", "...-x", "-", "a-.", "A+-._?=9"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        assert_eq!(check_name(&"n".repeat(211)), Ok(()));
        assert!(check_name(&"n".repeat(212)).is_err());
    }

    #[test]
    fn hash_parts_that_are_not_32_digits_and_a_dash_are_refused() {
        let short = &HASH_PART[1..];
        for base_name in [
            String::new(),
            HASH_PART.to_owned(),
            format!("{HASH_PART}-"),
            format!("{HASH_PART}name"),
            format!("{HASH_PART}Xname"),
            format!("{HASH_PART}\0name"),
            format!("{short}-name"),
            format!("0{HASH_PART}-name"),
            format!("e{short}-name"),
            format!("o{short}-name"),
            format!("t{short}-name"),
            format!("u{short}-name"),
            format!("L{short}-name"),
            format!("{short}\u{e9}-name"),
            "-".to_owned(),
        ] {
            assert!(base_name.parse::<StorePath>().is_err(), "{base_name:?}");
        }
    }

    #[test]
    fn a_path_inside_an_object_leads_to_the_object() {
        let store_dir = StoreDir::default();
        let object = format!("{HASH_PART}-x");
        for below in ["", "/", "/bin", "/bin/../sh"] {
            let path = format!("/nix/store/{object}{below}");
            let found = store_dir.parse_inside(path.as_bytes()).unwrap();
            assert_eq!(found.base_name(), object);
        }
        for path in [
            "",
            "/nix/store",
            "/nix/store/",
            "/nix/store/bin/x",
            "/etc/x",
        ] {
            assert!(store_dir.parse_inside(path.as_bytes()).is_err(), "{path}");
        }
        let longer = format!("/nix/storex/{object}");
        assert!(store_dir.parse_inside(longer.as_bytes()).is_err());
        assert!(store_dir.parse_inside(b"/nix/store/\xff/x").is_err());
    }

    #[test]
    fn a_full_path_lies_directly_in_the_store_directory() {
        let store_dir = StoreDir::default();
        for path in [
            String::new(),
            "/nix/store".to_owned(),
            "/nix/store/".to_owned(),
            format!("{HASH_PART}-x"),
            format!("/nix/store{HASH_PART}-x"),
            format!("/nix/store//{HASH_PART}-x"),
            format!("/nix/store/{HASH_PART}-x/"),
            format!("/nix/store/{HASH_PART}-x/bin"),
            format!("/nix/store/../store/{HASH_PART}-x"),
            format!("/nix/storex/{HASH_PART}-x"),
            format!(" /nix/store/{HASH_PART}-x"),
        ] {
            assert!(store_dir.parse(&path).is_err(), "{path}");
            assert!(store_dir.parse_bytes(path.as_bytes()).is_err(), "{path}");
        }
        assert!(store_dir.parse_bytes(b"/nix/store/\xff").is_err());
    }

    #[test]
    fn a_store_directory_is_absolute_and_canonical() {
        for path in [
            "",
            "/",
            "nix/store",
            "/nix/",
            "/nix//store",
            "/nix/./s",
            "/nix/../s",
            "/\0",
        ] {
            assert!(StoreDir::new(path).is_err(), "{path:?}");
        }
        assert!(StoreDir::new("/gnu/store").is_ok());
    }
}
