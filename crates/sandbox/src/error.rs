//! What can go wrong around a builder, as opposed to inside it.

use std::io;
use std::path::PathBuf;

/// A failure of the sandbox: what was being done, and to what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Going on would run a builder without a place of its own.
    #[error("{operation} '{}'", path.display())]
    File {
        /// What was being done, such as "creating the build directory".
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}
