//! Why a build's surroundings could not be made, told across a process boundary as one line.

use std::fmt;
use std::io;

use nix::errno::Errno;

use crate::SetupFault;
use crate::wire::Ending;

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

impl Failure {
    /// Returns whether another try may succeed.
    pub(crate) fn fault(&self) -> SetupFault {
        // Not for want of disk: that is also what a limit on namespaces or mounts is called.
        let errno = self.source.raw_os_error().map(Errno::from_raw);
        if errno.is_some_and(is_shortage) {
            SetupFault::Passing
        } else {
            SetupFault::Lasting
        }
    }

    /// Puts it into what process 1 and the launcher tell.
    pub(crate) fn into_ending(self) -> Ending {
        Ending::SetupFailed {
            message: self.to_string(),
            fault: self.fault(),
        }
    }
}

/// Returns whether an error says that the machine has too little of something just now.
pub(crate) fn is_shortage(errno: Errno) -> bool {
    matches!(
        errno,
        Errno::EMFILE | Errno::ENFILE | Errno::EAGAIN | Errno::ENOMEM | Errno::ENOBUFS
    )
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
            Some(number) => f.write_str(Errno::from_raw(number).desc()),
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
