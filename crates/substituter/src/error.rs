//! What can go wrong with binary caches as such. One that does not answer, or lies, is no error:
//! another one may have the path, or it is built.

use std::io;
use std::sync::Arc;

/// A failure: what was being done, and with which cache.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Going on would wait for an answer that nobody gives.
    #[error("the substituter has stopped")]
    Stopped,
    /// Going on would leave questions to caches without anybody to ask them.
    #[error("cannot start the threads that ask caches")]
    StartThreads {
        /// The kernel's reason.
        source: io::Error,
    },
    /// Going on would refuse what the user wants to be trusted.
    #[error("reading 'trusted-public-keys'")]
    PublicKey {
        /// What is wrong with which key.
        source: Box<store_model::Error>,
    },
    /// Going on would wait for a cache that does not answer.
    #[error("'{cache}' gave no answer lately and is left alone for a while")]
    LeftAlone {
        /// The cache.
        cache: Arc<str>,
    },
    /// Going on would unpack what there is not. Another cache may have it.
    #[error("cannot download '{path}' from '{cache}'")]
    Download {
        /// Full path.
        path: String,
        /// The cache.
        cache: Arc<str>,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Returns an error with its causes, for a line of its own.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
