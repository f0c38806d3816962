//! What a store knows about a valid path.

use std::collections::BTreeSet;

use crate::{NarHash, StorePath};

/// The metadata of one valid path: a row of `ValidPaths` with its references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The path that this is about.
    pub path: StorePath,
    /// SHA-256 of the path's NAR serialisation.
    pub nar_hash: NarHash,
    /// Length of that serialisation.
    pub nar_size_bytes: u64,
    /// Paths that the contents mention, itself included where they do.
    pub references: BTreeSet<StorePath>,
    /// The derivation that made it, if known.
    pub deriver: Option<StorePath>,
    /// When it was registered, in seconds since 1970.
    pub registration_time: i64,
    /// Whether it was built here, and so needs no signature to be trusted.
    pub ultimate: bool,
    /// Signatures, `key-name:base64`.
    pub signatures: BTreeSet<String>,
    /// Content address as the database spells it, such as `text:sha256:…` or `fixed:r:sha256:…`.
    pub content_address: Option<String>,
}
