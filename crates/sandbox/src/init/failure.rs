//! Why a build's surroundings could not be made, told across a process boundary as one line.

use std::fmt;
use std::io;

/// What was being done when the kernel refused.
#[derive(Debug)]
pub(crate) struct Failure {
    operation: String,
    source: io::Error,
}

impl Failure {
    /// Puts a refusal that is ours rather than the kernel's.
    pub(crate) fn refused(operation: impl Into<String>, reason: &'static str) -> Self {
        Self {
            operation: operation.into(),
            source: io::Error::other(reason),
        }
    }
}

/// The whole chain, for no source crosses the process boundary.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.operation, Reason(&self.source))
    }
}

/// An error in the C library's words, without Rust's "(os error N)".
pub(crate) struct Reason<'a>(pub(crate) &'a io::Error);

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.raw_os_error() {
            Some(number) => f.write_str(nix::errno::Errno::from_raw(number).desc()),
            None => self.0.fmt(f),
        }
    }
}

/// Says what was being done when a call failed.
pub(crate) trait Context<T> {
    /// Names the operation, such as `mounting '/proc'`.
    fn context<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context<S: Into<String>>(self, operation: impl FnOnce() -> S) -> Result<T, Failure> {
        self.map_err(|source| Failure {
            operation: operation().into(),
            source: source.into(),
        })
    }
}
