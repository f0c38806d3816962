//! Signals that ask the process to end.

use std::future::Future;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::signal::unix::{SignalKind, signal};

use crate::exit_status::ExitStatus;
use crate::failure::{Failure, Result};

/// How long everything may take to be cleaned up after a signal (SPEC A11).
pub(crate) const CLEAN_UP_TIME: Duration = Duration::from_secs(2);

/// The signals, from now on.
#[derive(Debug)]
pub(crate) struct Interrupts {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hang_up: tokio::signal::unix::Signal,
}

impl Interrupts {
    /// Takes the signals over. Runs within a tokio runtime.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).map_err(|error: io::Error| cannot_listen(&error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    /// Waits for the next signal.
    pub(crate) async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hang_up.recv() => Signal::SIGHUP,
        }
    }

    /// Waits for `work`, unless a signal comes first.
    ///
    /// # Errors
    /// The work's own, or [`Failure::interrupted`].
    pub(crate) async fn unless<T>(&mut self, work: impl Future<Output = Result<T>>) -> Result<T> {
        tokio::select! {
            // Work that is done counts, even if a signal came at the same moment.
            biased;
            done = work => done,
            signal = self.next() => Err(Failure::interrupted(signal)),
        }
    }

    /// Waits for everything to be cleaned up after `first`; a second signal, or the end of
    /// [`CLEAN_UP_TIME`], ends the process at once.
    pub(crate) async fn clean_up(&mut self, first: Signal, work: impl Future<Output = ()>) {
        tokio::select! {
            biased;
            () = work => {}
            second = self.next() => leave(second),
            () = tokio::time::sleep(CLEAN_UP_TIME) => leave(first),
        }
    }
}

fn cannot_listen(error: &io::Error) -> Failure {
    Failure::message(format!("listening for signals: {error}"))
}

/// Ends the process without cleaning up. Sandboxed builders die with it.
#[expect(clippy::exit, reason = "the user asked twice, or the first wish hangs")]
fn leave(signal: Signal) -> ! {
    std::process::exit(i32::from(ExitStatus::Interrupted(signal).number()))
}
