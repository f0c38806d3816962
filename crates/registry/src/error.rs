//! What can go wrong with a store on disk.

use std::io;
use std::path::PathBuf;

/// A failure of the store: what was being done, and to what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Going on would work on something that is not there.
    #[error("{operation} '{}'", path.display())]
    File {
        /// What was being done, such as "opening" or "renaming".
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}
