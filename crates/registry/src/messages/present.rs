//! What is said of paths whose contents are in the store.

use std::collections::{BTreeMap, BTreeSet};

use actix::Message;
use store_model::{NarHash, StorePath};

use crate::Error;

/// Sent by the command line: makes paths valid whose contents lie in the store already, all of them
/// or none. They may refer to each other.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct RegisterPresent {
    /// What is said of each, no path twice.
    pub paths: Vec<PresentPath>,
    /// Whether their metadata is to be made canonical, as it must be unless somebody knows that it
    /// is.
    pub metadata: PresentMetadata,
    /// What becomes of those that are valid already.
    pub valid: ValidAlready,
}

/// What is said of a path whose contents lie in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PresentPath {
    /// The path.
    pub path: StorePath,
    /// Hash and size in bytes of its archive. `None` to read the contents and see; what is said is
    /// compared with the contents only where those are read anyway.
    pub nar: Option<(NarHash, u64)>,
    /// The derivation that made it.
    pub deriver: Option<StorePath>,
    /// What it refers to.
    pub references: BTreeSet<StorePath>,
}

/// Whether the metadata of what lies in the store is believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PresentMetadata {
    /// Owner, modes and times are set; the contents are read.
    MakeCanonical,
    /// They are as they must be.
    Trust,
}

/// What becomes of a path that is valid already, and is said to be valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValidAlready {
    /// It is left alone.
    Keep,
    /// What is said replaces what was known, but for the deriver and the time.
    Replace,
}

/// Sent by the command line: adds signatures to those that valid paths have.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct AddSignatures {
    /// The signatures, `key-name:base64`, by path. All of them are added, or none.
    pub signatures: BTreeMap<StorePath, BTreeSet<String>>,
}
