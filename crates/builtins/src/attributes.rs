//! The variables of a derivation, as built-in builders read them.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use bstr::{BStr, ByteSlice as _};

use crate::Error;

/// A derivation's variables by name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attributes<'a>(pub(crate) &'a BTreeMap<Vec<u8>, Vec<u8>>);

impl<'a> Attributes<'a> {
    /// Returns a variable's value.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn get(self, name: &str) -> Result<&'a BStr, Error> {
        self.optional(name).ok_or_else(|| Error::MissingAttribute {
            name: name.to_owned(),
        })
    }

    /// Returns a variable's value, if there is one.
    pub(crate) fn optional(self, name: &str) -> Option<&'a BStr> {
        let value = self.0.get(name.as_bytes());
        value.map(|value| value.as_bstr())
    }

    /// Returns whether a variable is "1".
    pub(crate) fn is_set(self, name: &str) -> bool {
        self.optional(name).is_some_and(|value| value == "1")
    }

    /// Returns a variable that is a path.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn path(self, name: &str) -> Result<PathBuf, Error> {
        Ok(PathBuf::from(OsStr::from_bytes(self.get(name)?)))
    }

    /// Returns a variable that is text.
    ///
    /// # Errors
    /// There is none, or it is not UTF-8.
    pub(crate) fn text(self, name: &str) -> Result<&'a str, Error> {
        let value = self.get(name)?;
        value.to_str().map_err(|_| Error::Attribute {
            name: name.to_owned(),
            why: "is not UTF-8",
        })
    }
}
