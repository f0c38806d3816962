//! Why a command ended without doing what it was asked, as it is told to the user.
//!
//! One line says what went wrong and on which path, then come the causes behind colons, then what
//! to do about it.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::io;
use std::path::{Path, PathBuf};

use nix::sys::signal::Signal;

use crate::exit_status::ExitStatus;
use crate::render::Style;
use crate::render::sanitise::sanitise;

/// A failure on its way to standard error.
#[derive(Debug)]
pub(crate) struct Failure {
    status: ExitStatus,
    /// `None` if everything has been said already.
    error: Option<Box<dyn StdError + Send + Sync>>,
    advice: Option<String>,
}

/// What a command returns.
pub(crate) type Result<T> = std::result::Result<T, Failure>;

/// Something that failed while a file was read or written.
#[derive(Debug, thiserror::Error)]
#[error("{doing} '{}'", path.display())]
pub(crate) struct FileError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// A message without a cause.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Message(String);

impl Failure {
    /// Wraps an error that ends the command with status 1.
    pub(crate) fn new(error: impl StdError + Send + Sync + 'static) -> Self {
        Self {
            status: ExitStatus::Failure,
            error: Some(Box::new(error)),
            advice: None,
        }
    }

    /// Says one thing that went wrong.
    pub(crate) fn message(message: impl Into<String>) -> Self {
        Self::new(Message(message.into()))
    }

    /// Says that `doing` (such as "reading") failed on a file.
    pub(crate) fn file(doing: &'static str, path: &Path, source: io::Error) -> Self {
        Self::new(FileError {
            doing,
            path: path.to_owned(),
            source,
        })
    }

    /// Says that standard output could not be written.
    pub(crate) fn stdout(source: &io::Error) -> Self {
        if source.kind() == io::ErrorKind::BrokenPipe {
            return Self::silent(ExitStatus::OutputClosed);
        }
        Self::message(format!("writing to standard output: {source}"))
    }

    /// Ends the command with this status; everything has been said already.
    pub(crate) fn silent(status: ExitStatus) -> Self {
        Self {
            status,
            error: None,
            advice: None,
        }
    }

    /// Says that a signal ended the work.
    pub(crate) fn interrupted(signal: Signal) -> Self {
        let word = if signal == Signal::SIGINT {
            "interrupted by the user"
        } else {
            "terminated"
        };
        Self {
            status: ExitStatus::Interrupted(signal),
            ..Self::message(word)
        }
    }

    /// Adds what the user can do.
    #[must_use]
    pub(crate) fn advise(self, advice: impl Into<String>) -> Self {
        Self {
            advice: Some(advice.into()),
            ..self
        }
    }

    /// Returns the status that the process ends with.
    #[must_use]
    pub(crate) fn status(&self) -> ExitStatus {
        self.status
    }

    /// Returns the signal that ended the work, if one did.
    #[must_use]
    pub(crate) fn signal(&self) -> Option<Signal> {
        match self.status {
            ExitStatus::Interrupted(signal) => Some(signal),
            ExitStatus::Success
            | ExitStatus::Failure
            | ExitStatus::BuildFailure(_)
            | ExitStatus::OutputClosed => None,
        }
    }

    /// Returns the lines for standard error; nothing if everything has been said already.
    #[must_use]
    pub(crate) fn render(&self, style: Style) -> String {
        let Some(error) = &self.error else {
            return String::new();
        };
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let message = error.to_string();
            // A transparent wrapper says what its source says.
            if !text.ends_with(&message) {
                // Writing to a string cannot fail.
                let _infallible = write!(text, ": {message}");
            }
            cause = error.source();
        }
        // Paths in messages are chosen by whoever names files.
        let text = text
            .lines()
            .map(|line| sanitise(line.as_bytes(), Style::Plain))
            .collect::<Vec<_>>()
            .join("\n");
        let mut rendered = format!("{} {text}\n", style.error("error:"));
        if let Some(advice) = &self.advice {
            let _infallible = writeln!(rendered, "  {advice}");
        }
        rendered
    }
}

/// Lets `?` carry a service's error to the user.
macro_rules! failure_from {
    ($($error:ty),+) => {$(
        impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::new(error)
            }
        }
    )+};
}

failure_from!(
    store_model::Error,
    store_model::settings::Error,
    registry::Error,
    scheduler::Error
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_behind_colons_and_advice_on_a_line_of_its_own() {
        let failure = Failure::file(
            "reading",
            Path::new("/no/such"),
            io::Error::from(io::ErrorKind::NotFound),
        )
        .advise("try another one");
        assert_eq!(
            failure.render(Style::Plain),
            "error: reading '/no/such': entity not found\n  try another one\n"
        );
        assert_eq!(failure.status().number(), 1);
    }

    #[test]
    fn a_file_name_cannot_speak_to_the_terminal() {
        let failure = Failure::message("no such file '\u{1b}]0;title\u{7}\u{1b}[2J'");
        let rendered = failure.render(Style::Plain);
        assert!(!rendered.contains('\u{1b}'), "{rendered:?}");
    }

    #[test]
    fn a_reader_that_has_gone_away_is_no_message() {
        let failure = Failure::stdout(&io::Error::from(io::ErrorKind::BrokenPipe));
        assert_eq!(failure.render(Style::Plain), "");
        assert_eq!(failure.status(), ExitStatus::OutputClosed);
    }
}
