//! Paths that are put into a cache.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::sync::Arc;

use actix::Message;
use store_model::nar::{NarVisitor, WriteError};
use store_model::{PathInfo, StorePath};

/// Sent first by whoever copies: makes the cache if there is none, and looks whether it is one for this
/// store. What a copy has left that was killed is deleted.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), UploadError>")]
pub struct PrepareCache;

/// Asked by whoever copies: which of these paths does the cache have? A description that nobody can
/// read is as good as none, and told.
#[derive(Debug, Message)]
#[rtype(result = "Result<BTreeSet<StorePath>, UploadError>")]
pub struct QueryPresent {
    /// The paths.
    pub paths: BTreeSet<StorePath>,
}

/// Sent by whoever copies: puts a path into the cache. It is read, compressed and sent while others
/// are, as many as the settings allow connections and the machine has cores; its description comes
/// last, and after those of all that it refers to.
///
/// What it refers to was sent before, or is known to be present by [`QueryPresent`].
#[derive(Message)]
#[rtype(result = "Result<Uploaded, UploadError>")]
pub struct UploadPath {
    /// What is known of the path.
    pub info: PathInfo,
    /// Its contents, to be compared with what is known.
    pub contents: TellContents,
}

impl fmt::Debug for UploadPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UploadPath")
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// Tells a visitor what a path holds, on a thread that may block.
pub type TellContents =
    Box<dyn FnOnce(&mut dyn NarVisitor<Error = WriteError>) -> Result<(), ContentsError> + Send>;

/// Why a path's contents were not told to their end.
#[derive(Debug, thiserror::Error)]
pub enum ContentsError {
    /// The visitor's own words.
    #[error(transparent)]
    Archive(#[from] WriteError),
    /// The path cannot be read.
    #[error(transparent)]
    Unreadable(Box<dyn std::error::Error + Send + Sync>),
}

/// Answer to [`UploadPath`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uploaded {
    /// Length of the archive.
    pub nar_size_bytes: u64,
    /// Length of it as the cache has it.
    pub file_size_bytes: u64,
}

/// Sent once at the end: gives up what is under way, makes sure that what was uploaded would survive a
/// power cut, and answers when the threads are gone.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), UploadError>")]
pub struct StopWriter;

/// Why a cache has not got what it should. Nothing is left of a path that was not uploaded, but for
/// an archive on a server.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    /// Going on would write nobody knows where, or something that was not asked for.
    #[error("cannot copy to '{address}': {reason}")]
    Address {
        /// The cache's address without name, password and parameters.
        address: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Going on would copy without the signature that the user wants.
    #[error("reading secret key file '{}'", path.display())]
    SecretKey {
        /// The file.
        path: std::path::PathBuf,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Going on would wait for work that nobody does.
    #[error("cannot start the threads that write to caches")]
    StartThreads {
        /// The kernel's reason.
        source: io::Error,
    },
    /// Going on would put paths where nobody looks for them.
    #[error("'{cache}' cannot be copied to: {reason}")]
    Unusable {
        /// The cache.
        cache: Arc<str>,
        /// Why it is no cache for this store.
        reason: String,
    },
    /// Going on would copy what may be there, or say that what is missing is not.
    #[error("cannot ask '{cache}' what it has")]
    Ask {
        /// The cache.
        cache: Arc<str>,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Going on would announce what is not there.
    #[error("cannot copy to '{cache}'")]
    Write {
        /// The cache.
        cache: Arc<str>,
        /// What happened. Paths that are written together fail together.
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    /// Going on would leave out a part of the path.
    #[error("cannot read path '{path}'")]
    Read {
        /// Full path.
        path: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Going on would spread what was damaged.
    #[error("path '{path}' is corrupt: its hash is {got} and should be {wanted}")]
    Corrupt {
        /// Full path.
        path: String,
        /// The hash of its contents.
        got: String,
        /// The hash that is known.
        wanted: String,
    },
    /// Going on would make a closure that has a hole.
    #[error("path '{path}' refers to '{reference}', which '{cache}' does not have")]
    ReferenceMissing {
        /// Full path.
        path: String,
        /// Full path.
        reference: String,
        /// The cache.
        cache: Arc<str>,
    },
    /// Going on would upload it twice.
    #[error("path '{path}' is being copied already")]
    Repeated {
        /// Full path.
        path: String,
    },
    /// Going on would wait for an answer that nobody gives.
    #[error("copying was given up")]
    Stopped,
}

impl UploadError {
    /// Returns whether it is the cache that failed, so that other paths will not do better.
    #[must_use]
    pub fn is_the_caches(&self) -> bool {
        match self {
            Self::Address { .. }
            | Self::SecretKey { .. }
            | Self::StartThreads { .. }
            | Self::Unusable { .. }
            | Self::Ask { .. }
            | Self::Write { .. }
            | Self::Stopped => true,
            Self::Read { .. }
            | Self::Corrupt { .. }
            | Self::ReferenceMissing { .. }
            | Self::Repeated { .. } => false,
        }
    }
}
