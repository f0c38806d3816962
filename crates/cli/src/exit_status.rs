//! What the process's exit status says (SPEC A9, A11).

use std::process::ExitCode;

use nix::sys::signal::Signal;

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExitStatus {
    /// Everything was brought about.
    Success,
    /// Anything that has no number of its own: bad arguments, a store that cannot be used, an
    /// output that was refused.
    Failure,
    /// Builds failed; the number is the mask of SPEC A9, from 100 to 111.
    BuildFailure(u8),
    /// A signal ended the work, and everything was cleaned up.
    Interrupted(Signal),
    /// Nobody reads our output any more.
    OutputClosed,
}

/// The part of the help text that lists the statuses.
pub(crate) const HELP: &str = "\
Exit status:
  0         everything was brought about
  1         anything not listed here: bad arguments, a store that cannot be used, an output
            that is missing or was refused, a path that cannot be repaired, a log that is too
            long, a wrong system or feature
  100..111  builds failed: 96 plus the sum of
              1  a builder ran, or was silent, for too long
              2  a fixed output has other contents than promised
              4  a builder failed, or either of the two above
              8  another round gave other outputs
  130, 143  interrupted or terminated; builders are killed and all is cleaned up
  141       nobody reads standard output any more";

impl ExitStatus {
    /// Wraps the status of a build report: 0, 1, or a mask from 100 on.
    #[must_use]
    pub(crate) fn from_report(status: u8) -> Self {
        match status {
            0 => Self::Success,
            1 => Self::Failure,
            mask => Self::BuildFailure(mask),
        }
    }

    /// Returns the number that the parent process sees.
    #[must_use]
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Failure => 1,
            Self::BuildFailure(mask) => mask,
            // What a shell reports for a process that the signal killed.
            Self::Interrupted(signal) => 128 + u8::try_from(signal as i32).unwrap_or(0),
            Self::OutputClosed => 128 + 13,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> Self {
        Self::from(status.number())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_end_in_the_numbers_that_shells_report() {
        assert_eq!(ExitStatus::Interrupted(Signal::SIGINT).number(), 130);
        assert_eq!(ExitStatus::Interrupted(Signal::SIGTERM).number(), 143);
        assert_eq!(ExitStatus::OutputClosed.number(), 141);
    }

    #[test]
    fn a_report_keeps_its_mask() {
        for status in [0, 1, 100, 101, 102, 103, 104, 108] {
            assert_eq!(ExitStatus::from_report(status).number(), status);
        }
    }
}
