//! Where what the program says about itself goes: to standard error, above the live view while
//! there is one, since nobody else may write where the view is drawn.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use indicatif::MultiProgress;
use tracing_subscriber::fmt::MakeWriter;

/// Takes lines from every thread. Its clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Diagnostics {
    view: Arc<Mutex<Option<MultiProgress>>>,
}

impl Diagnostics {
    /// Sends lines above a view from now on.
    pub(super) fn attach(&self, view: &MultiProgress) {
        self.set(Some(view.clone()));
    }

    /// Sends lines to standard error again.
    pub(super) fn detach(&self) {
        self.set(None);
    }

    fn set(&self, view: Option<MultiProgress>) {
        // Replacing a value leaves nothing half done, so a panic elsewhere does not matter.
        *self.view.lock().unwrap_or_else(PoisonError::into_inner) = view;
    }
}

impl<'a> MakeWriter<'a> for Diagnostics {
    type Writer = Self;

    fn make_writer(&'a self) -> Self::Writer {
        self.clone()
    }
}

impl Write for Diagnostics {
    /// Takes whole lines, which is how the subscriber hands them over: one call for each event.
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        match view.as_ref() {
            Some(view) => view.println(String::from_utf8_lossy(lines).trim_end_matches('\n'))?,
            None => io::stderr().write_all(lines)?,
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
