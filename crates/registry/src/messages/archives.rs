//! Archives that become valid paths.

use std::fmt;
use std::io::Read;
use std::os::fd::OwnedFd;

use actix::Message;
use store_model::PathInfo;

use super::{Added, Occupied};
use crate::ingest::Staged;
use crate::{CancelFlag, Error};

/// Sent by whoever holds the lock on a path, such as a path goal or an import: unpacks an archive in
/// our own directory and checks it against what was promised: its form, its hash, its size, of which
/// not one byte more is read, and where the path follows from the contents, that.
///
/// Nothing becomes valid, and nothing is at the path before [`RegisterRestored`]; its references may
/// still be on their way.
#[derive(Message)]
#[rtype(result = "Result<RestoredPath, RestoreError>")]
pub struct RestoreNar {
    /// What is promised. Its registration time and `ultimate` do not count.
    pub promised: PathInfo,
    /// The archive. Reading may block; it is read by a thread that does nothing else meanwhile.
    pub contents: Box<dyn Read + Send>,
    /// A directory of this machine in which the tree itself lies under the path's name, if there is
    /// one. Where the file system can, its files are shared, and what was made is then read and checked
    /// in the archive's stead. It is believed no more than that.
    pub objects: Option<OwnedFd>,
    /// Raised when nobody wants it any more. Whoever raises it also ends a read that blocks.
    pub cancel: CancelFlag,
}

impl fmt::Debug for RestoreNar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestoreNar")
            .field("promised", &self.promised)
            .finish_non_exhaustive()
    }
}

/// Answer to [`RestoreNar`]: what will be valid. Dropping it deletes it.
#[derive(Debug)]
pub struct RestoredPath {
    /// What is known of it.
    pub(crate) info: PathInfo,
    /// Where it is.
    pub(crate) staged: Staged,
}

/// Why an archive was not restored. Nothing is left of it.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// It is not what was promised: another source may have that.
    #[error("{0}")]
    Broken(String),
    /// It could not be read to its end.
    #[error("reading the archive of '{path}'")]
    Source {
        /// Full path.
        path: String,
        /// The reader's own words.
        source: std::io::Error,
    },
    /// Whoever asked raised the flag.
    #[error("restoring was cancelled")]
    Cancelled,
    /// The store failed, not the archive.
    #[error(transparent)]
    Store(Error),
}

impl From<Error> for RestoreError {
    fn from(error: Error) -> Self {
        if matches!(error, Error::Cancelled) {
            Self::Cancelled
        } else {
            Self::Store(error)
        }
    }
}

/// Sent by whoever holds the lock on a path whose references are valid: moves what was restored to its
/// place, syncs, and registers it. Many of these share one sync and one transaction.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct RegisterRestored {
    /// What was restored.
    pub restored: RestoredPath,
    /// What becomes of a valid object that lies where it belongs.
    pub occupied: Occupied,
}

/// Sent by imports: puts what an archive holds at a path, unless that is valid already. Takes the
/// lock on the path, does what [`RestoreNar`] does, and then what [`RegisterRestored`] does.
///
/// The archive is not read if the path is valid.
#[derive(Debug, Message)]
#[rtype(result = "Result<Added, RestoreError>")]
pub struct AddNar {
    /// The archive, and what is promised of it.
    pub nar: RestoreNar,
}
