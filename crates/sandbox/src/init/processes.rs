//! Killing what a builder without a pid namespace leaves behind.

use std::fs;
use std::io;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use nix::unistd::Pid;

use super::{identity, sys};

/// Tells the first process of a build without a pid namespace to end the build. In its own pid
/// namespace it is simply killed.
pub(crate) const STOP_SIGNAL: Signal = Signal::SIGTERM;

/// Keeps the stop signal for whoever waits for it.
pub(crate) fn block_stop_signal() -> io::Result<()> {
    let mut mask = SigSet::empty();
    mask.add(STOP_SIGNAL);
    Ok(mask.thread_block()?)
}

/// Kills every process of a user and waits for the killing, not for the dying.
pub(crate) fn kill_user(uid: u32) -> io::Result<()> {
    // The process with number -1 means everybody that one may kill: only a process that has become
    // that user may say it.
    match sys::clone_process(0)? {
        sys::Cloned::Child => {
            let failed = uid == 0
                || identity::become_user(uid, uid).is_err()
                || !matches!(
                    nix::sys::signal::kill(Pid::from_raw(-1), Signal::SIGKILL),
                    Ok(()) | Err(Errno::ESRCH | Errno::EPERM)
                );
            sys::exit_now(i32::from(failed))
        }
        sys::Cloned::Parent(pid) => {
            let status = loop {
                match nix::sys::wait::waitpid(Pid::from_raw(pid), None) {
                    Err(Errno::EINTR) => {}
                    status => break status?,
                }
            };
            // Linux counts the caller out of "everybody"; other systems kill it too.
            let done = matches!(status, WaitStatus::Exited(_, 0) | WaitStatus::Signaled(..));
            done.then_some(())
                .ok_or_else(|| io::Error::other("some of them could not be killed"))
        }
    }
}

/// Kills and reaps children until there are none, those included that only become children when
/// their parents die.
pub(crate) fn kill_adopted() -> io::Result<()> {
    loop {
        let children = fs::read_to_string("/proc/thread-self/children")?;
        for pid in children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
        {
            // It may have become another user's: then the launcher kills by user.
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        match nix::sys::wait::waitpid(None, None) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
        // Those that have died already need no second look at the list.
        while matches!(
            nix::sys::wait::waitpid(None, Some(WaitPidFlag::WNOHANG)),
            Ok(status) if status.pid().is_some()
        ) {}
    }
}
