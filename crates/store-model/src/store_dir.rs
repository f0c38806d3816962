//! The logical directory of a store, an argument of printing and parsing and never a constant.

use std::fmt;
use std::sync::Arc;

use crate::{Error, StorePath};

/// Where a store's paths say they live, `/nix/store` by default.
///
/// This is the *logical* directory, which is part of every hash; where the files really are is the
/// registry's `layout`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreDir(Arc<str>);

impl StoreDir {
    /// Wraps an absolute directory.
    ///
    /// # Errors
    /// The path is not absolute and canonical (no `.`/`..`/empty component, no trailing slash).
    pub fn new(path: &str) -> Result<Self, Error> {
        let canonical = path.starts_with('/')
            && path[1..]
                .split('/')
                .all(|part| !matches!(part, "" | "." | ".."));
        if !canonical || path.contains('\0') {
            return Err(Error::StorePath {
                path: path.to_owned(),
                reason: "a store directory is an absolute path in canonical form",
            });
        }
        Ok(Self(path.into()))
    }

    /// Returns the directory without a trailing slash.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns the full path of an object, such as `/nix/store/<hash>-<name>`.
    #[must_use]
    pub fn print(&self, path: &StorePath) -> String {
        format!("{}/{}", self.0, path)
    }

    /// Reads a full path; there must be nothing below the object's own name.
    ///
    /// # Errors
    /// The text is not directly inside this directory, or its base name is not valid.
    pub fn parse(&self, text: &str) -> Result<StorePath, Error> {
        text.strip_prefix(&*self.0)
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(|| Error::StorePath {
                path: text.chars().take(300).collect(),
                reason: "not inside the store directory",
            })?
            .parse()
    }

    /// Reads a full path that stands among bytes of unknown encoding.
    ///
    /// # Errors
    /// As [`StoreDir::parse`]; a store path is always ASCII.
    pub fn parse_bytes(&self, bytes: &[u8]) -> Result<StorePath, Error> {
        match std::str::from_utf8(bytes) {
            Ok(text) => self.parse(text),
            Err(_) => Err(Error::StorePath {
                path: String::from_utf8_lossy(bytes).chars().take(300).collect(),
                reason: "a store path is ASCII",
            }),
        }
    }

    /// Reads a full path that leads to an object or to something inside it; returns the object's.
    ///
    /// # Errors
    /// As [`StoreDir::parse_bytes`].
    pub fn parse_inside(&self, bytes: &[u8]) -> Result<StorePath, Error> {
        let name_start = self.0.len() + 1;
        let below = bytes.get(name_start..).unwrap_or_default();
        let name_len = below.iter().position(|byte| *byte == b'/');
        let end = name_start + name_len.unwrap_or(below.len());
        self.parse_bytes(&bytes[..bytes.len().min(end)])
    }
}

impl Default for StoreDir {
    fn default() -> Self {
        Self("/nix/store".into())
    }
}

impl fmt::Display for StoreDir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
