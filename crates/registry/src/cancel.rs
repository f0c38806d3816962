//! Telling a thread that is busy with something large that nobody wants it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use crate::Error;

/// A flag that its owner raises and a worker thread looks at between two pieces of work. Copies are
/// the same flag; once raised it stays so.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag {
    flag: Arc<Flag>,
}

#[derive(Debug, Default)]
struct Flag {
    is_raised: AtomicBool,
    /// Wakes those who have nothing to do but wait.
    raised: Notify,
}

impl CancelFlag {
    /// Tells whoever looks at the flag to stop.
    pub fn raise(&self) {
        self.flag.is_raised.store(true, Ordering::Release);
        self.flag.raised.notify_waiters();
    }

    /// Returns whether anybody has raised the flag.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.flag.is_raised.load(Ordering::Acquire)
    }

    /// Returns when the flag is raised.
    pub(crate) async fn raised(&self) {
        // Whoever raises it from here on wakes this future, so the flag is looked at afterwards.
        let raised = self.flag.raised.notified();
        if !self.is_raised() {
            raised.await;
        }
    }

    /// Ends work that nobody wants.
    ///
    /// # Errors
    /// [`Error::Cancelled`] if the flag is raised.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.is_raised() {
            Err(Error::Cancelled)
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
