//! What can go wrong with a binary cache.

/// A failure: what was being done, and with which cache.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Going on would wait for an answer that nobody gives.
    #[error("the substituter has stopped")]
    Stopped,
}
