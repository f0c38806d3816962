//! What a binary cache says of one path, and of itself: `HASH.narinfo` and `nix-cache-info`.
//!
//! All of it comes from whoever answers for the cache. A signature covers the path, the hash, the size
//! and the references; everything else here is a hint, believed for no more than where to look.
//!
//! Reading order: this file, `parse`, `print`, `relative_url`, `cache_info`.

use std::fmt;
use std::str::FromStr;

use crate::{Error, Hash, PathInfo};

mod cache_info;
mod parse;
mod print;
mod relative_url;

pub use cache_info::CacheInfo;
pub use relative_url::RelativeUrl;

/// Largest `narinfo` or `nix-cache-info` that is read, in bytes. A path with 10,000 references has
/// a narinfo of half that size.
pub const MAX_FILE_BYTES: usize = 1 << 20;

/// What a cache says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// What becomes valid if the archive is what it should be. The registration time is 0, and it is
    /// not `ultimate`.
    pub info: PathInfo,
    /// Where the archive is, as the cache spells it: not signed. See
    /// [`NarInfo::archive_url`].
    pub url: String,
    /// How the archive is compressed: not signed.
    pub compression: Compression,
    /// Hash of the compressed archive: not signed.
    pub file_hash: Option<Hash>,
    /// Size of the compressed archive: not signed.
    pub file_size_bytes: Option<u64>,
}

impl NarInfo {
    /// Returns where the archive is.
    ///
    /// # Errors
    /// The address leads out of the cache.
    pub fn archive_url(&self) -> Result<RelativeUrl, Error> {
        self.url.parse()
    }
}

/// How an archive is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Compression {
    /// `none`.
    None,
    /// `xz`.
    Xz,
    /// `bzip2`.
    Bzip2,
    /// `gzip`.
    Gzip,
    /// `zstd`.
    Zstd,
    /// `br`.
    Brotli,
}

impl Compression {
    /// Every kind.
    pub const ALL: [Self; 6] = [
        Self::None,
        Self::Xz,
        Self::Bzip2,
        Self::Gzip,
        Self::Zstd,
        Self::Brotli,
    ];

    /// Returns the name in a narinfo.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Xz => "xz",
            Self::Bzip2 => "bzip2",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Brotli => "br",
        }
    }

    /// Returns what Nix 2.8 appends to `.nar` in an archive's name; nothing for gzip.
    #[must_use]
    pub const fn file_suffix(self) -> &'static str {
        match self {
            Self::None | Self::Gzip => "",
            Self::Xz => ".xz",
            Self::Bzip2 => ".bz2",
            Self::Zstd => ".zst",
            Self::Brotli => ".br",
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Self::ALL
            .into_iter()
            .find(|compression| compression.name() == text)
            .ok_or_else(|| malformed(format!("the compression '{}' is unknown", shorten(text))))
    }
}

fn malformed(reason: String) -> Error {
    Error::NarInfo {
        file: "narinfo",
        reason,
    }
}

/// Returns the beginning of a text that is somebody else's, fit to be printed.
fn shorten(text: &str) -> String {
    text.chars()
        .take(100)
        .flat_map(char::escape_debug)
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
