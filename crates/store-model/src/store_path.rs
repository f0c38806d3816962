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
