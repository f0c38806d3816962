//! What a binary cache says of one path, and of itself: `HASH.narinfo` and `nix-cache-info`.
//!
//! All of it comes from whoever answers for the cache. A signature covers the path, the hash, the size
//! and the references; everything else here is a hint, believed for no more than where to look.

use crate::{Hash, PathInfo};

mod relative_url;

pub use relative_url::RelativeUrl;

/// What a cache says of a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarInfo {
    /// What becomes valid if the archive is what it should be. The registration time is 0.
    pub info: PathInfo,
    /// Where the archive is, below the cache's own address: not signed.
    pub url: String,
    /// How the archive is compressed: not signed.
    pub compression: Compression,
    /// Hash of the compressed archive: not signed.
    pub file_hash: Option<Hash>,
    /// Size of the compressed archive: not signed.
    pub file_size_bytes: Option<u64>,
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
