//! Standard output, and the few lines that go to standard error outside of a build.

use std::io::{self, BufWriter, StdoutLock, Write};

use serde_json::Value;

use crate::failure::{Failure, Result};
use crate::render::Style;
use crate::render::sanitise::sanitise;

/// Standard output, buffered; nothing is lost silently and a reader that goes away ends the
/// command.
#[derive(Debug)]
pub(crate) struct Output {
    stdout: BufWriter<StdoutLock<'static>>,
}

impl Output {
    /// Takes standard output.
    #[must_use]
    pub(crate) fn new() -> Self {
        Self {
            stdout: BufWriter::with_capacity(64 * 1024, io::stdout().lock()),
        }
    }

    /// Prints one line.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn line(&mut self, line: impl std::fmt::Display) -> Result<()> {
        writeln!(self.stdout, "{line}").map_err(|error| Failure::stdout(&error))
    }

    /// Prints JSON, indented by two blanks.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn json(&mut self, value: &Value) -> Result<()> {
        self.line(format_args!("{value:#}"))
    }

    /// Writes what has been printed.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.stdout.flush().map_err(|error| Failure::stdout(&error))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stdout.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }
}

/// Writes lines for people to standard error.
pub(crate) fn say(text: &str) {
    // If nobody can be told, there is nobody to tell that to.
    let _unheard = io::stderr().write_all(text.as_bytes());
}

/// Warns on standard error.
pub(crate) fn warn(style: Style, message: &str) {
    let message = sanitise(message.as_bytes(), Style::Plain);
    say(&format!("{} {message}\n", style.warning("warning:")));
}
