//! What a cache says of itself.
//!
//! People write this file by hand, nothing in it is worth forging, and a wrong priority costs some
//! time: so it is read as leniently as Nix reads it, but for what cannot be meant (SECURITY N11).

use std::fmt;

use super::{MAX_FILE_BYTES, shorten};
use crate::{Error, StoreDir};

/// The contents of `nix-cache-info`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheInfo {
    /// The store directory of every path in the cache, if it says so.
    pub store_dir: Option<StoreDir>,
    /// Whether the cache is quick enough to be asked about everything.
    pub want_mass_query: bool,
    /// Its place among caches, the smaller the earlier, if it says so.
    pub priority: Option<u32>,
}

impl CacheInfo {
    /// The priority of a cache that names none.
    pub const DEFAULT_PRIORITY: u32 = 50;

    /// Reads the text of a `nix-cache-info`.
    ///
    /// # Errors
    /// It is no text of lines `Name: value`, or a value cannot be meant.
    pub fn parse(text: &[u8]) -> Result<Self, Error> {
        let malformed = |reason: String| Error::NarInfo {
            file: "nix-cache-info",
            reason,
        };
        if text.len() > MAX_FILE_BYTES {
            return Err(malformed("it has more than a megabyte".to_owned()));
        }
        let text =
            std::str::from_utf8(text).map_err(|_| malformed("it is not UTF-8".to_owned()))?;
        let mut info = Self::default();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            let (name, value) = line
                .split_once(':')
                .ok_or_else(|| malformed(format!("'{}' has no colon", shorten(line))))?;
            let value = value.trim();
            match name {
                "StoreDir" => info.store_dir = Some(StoreDir::new(value)?),
                "WantMassQuery" => info.want_mass_query = value == "1",
                "Priority" => {
                    let refuse = || malformed(format!("'{}' is not a priority", shorten(value)));
                    if !value.bytes().all(|byte| byte.is_ascii_digit()) {
                        return Err(refuse());
                    }
                    info.priority = Some(value.parse().map_err(|_| refuse())?);
                }
                _ => {}
            }
        }
        Ok(info)
    }
}

/// Prints what Nix writes: only what differs from saying nothing.
impl fmt::Display for CacheInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(store_dir) = &self.store_dir {
            writeln!(f, "StoreDir: {store_dir}")?;
        }
        if self.want_mass_query {
            writeln!(f, "WantMassQuery: 1")?;
        }
        if let Some(priority) = self.priority {
            writeln!(f, "Priority: {priority}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn what_a_cache_says_of_itself_reads_back() {
        for text in [
            "StoreDir: /nix/store\n",
            "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n",
            "",
        ] {
            assert_eq!(CacheInfo::parse(text.as_bytes()).unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_file_that_was_written_by_hand_is_understood() {
        let info =
            CacheInfo::parse(b"StoreDir:/nix/store\r\nWantMassQuery: 0\n\nPriority:  30 \nNew: x")
                .unwrap();
        assert_eq!(info.store_dir, Some(StoreDir::default()));
        assert_eq!(info.priority, Some(30));
        assert!(!info.want_mass_query);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        let huge = vec![b'\n'; MAX_FILE_BYTES + 1];
        for text in [
            b"<html>".as_slice(),
            b"StoreDir: nix/store\n",
            b"Priority: -1\n",
            b"Priority: +1\n",
            b"Priority:\n",
            b"Priority: 4294967296\n",
            b"Priority: many\n",
            b"\xff: 1\n",
            &huge,
        ] {
            assert!(CacheInfo::parse(text).is_err());
        }
    }
}
