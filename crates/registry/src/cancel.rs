//! Telling a thread that is busy with something large that nobody wants it any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Error;

/// A flag that its owner raises and a worker thread looks at between two pieces of work. Copies are
/// the same flag; once raised it stays so.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag {
    is_raised: Arc<AtomicBool>,
}

impl CancelFlag {
    /// Tells whoever looks at the flag to stop.
    pub fn raise(&self) {
        // Nothing else is handed over with it, so no order is needed.
        self.is_raised.store(true, Ordering::Relaxed);
    }

    /// Returns whether anybody has raised the flag.
    #[must_use]
    pub fn is_raised(&self) -> bool {
        self.is_raised.load(Ordering::Relaxed)
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
