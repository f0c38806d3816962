//! Why a scheduler could not be started, or could not answer.

/// A failure of the scheduler itself. A failed build is an [`Outcome`](crate::Outcome), never one
/// of these.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Going on would ask no cache.
    #[error("starting the substituter")]
    StartSubstituter(#[source] substituter::Error),
    /// Going on would schedule for a store that cannot be used.
    #[error("opening the store")]
    OpenStore(#[source] registry::Error),
    /// Going on would leave builds without a sandbox.
    #[error("starting the sandbox supervisor")]
    StartSandbox(#[source] sandbox::Error),
    /// Going on would leave nobody to run the actors.
    #[error("starting the scheduler's thread")]
    StartThread(#[source] std::io::Error),
    /// Going on would wait for an answer that nobody can give.
    #[error("the scheduler has stopped")]
    Stopped,
}

/// Prints an error with all its causes, outermost first, as one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
