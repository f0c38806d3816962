//! Runs the user's program that may show further host paths to a builder (`pre-build-hook`).
//!
//! The program gets the path of the derivation and, where there is a sandbox, the directory that
//! is made for it. It writes commands, each a line; there is one: `extra-sandbox-paths`, followed
//! by a line for each path and an empty one. What it says on standard error are warnings.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use bstr::{BString, ByteSlice as _};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags, Signal};
use store_model::settings::SandboxPath;

use crate::Error;
use crate::environment::HostEnvironment;

/// Most that a hook may write before it counts as run wild: a thousand paths take a tenth of it.
const MAX_OUTPUT_BYTES: usize = 1 << 20;

/// How long a hook that is not wanted any more may take to end. An interrupt of the whole program
/// is given two seconds for everything.
const GRACE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// Runs a hook to its end and returns the paths that it names. Blocks: not for actors.
///
/// `given_up` becomes readable when nobody wants the build any more; the hook is ended then, with
/// everything that it started.
///
/// # Errors
/// The hook cannot be started, fails, says something that nobody understands, or was given up.
pub(crate) fn run(
    program: &Path,
    args: &[PathBuf],
    environment: &HostEnvironment,
    given_up: BorrowedFd<'_>,
) -> Result<Vec<SandboxPath>, Error> {
    let broken = |source| Error::RunPreBuildHook {
        program: program.to_owned(),
        source,
    };
    let misbehaved = |why| Error::PreBuildHook {
        program: program.to_owned(),
        why,
    };
    let mut hook = Hook::start(program, args, environment).map_err(broken)?;
    match hook.attend(given_up).map_err(broken)? {
        Attended::Ended => {}
        Attended::GivenUp => return Err(Error::GivenUp),
        Attended::TooTalkative => {
            let why = format!("wrote more than {MAX_OUTPUT_BYTES} bytes");
            return Err(misbehaved(why));
        }
    }
    let (status, output) = hook.finish().map_err(broken)?;
    if !status.success() {
        return Err(misbehaved(describe(status)));
    }
    parse(&output).map_err(misbehaved)
}

/// Why nobody attends to a hook any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attended {
    Ended,
    GivenUp,
    TooTalkative,
}

/// A hook that runs. Dropping it ends it.
struct Hook {
    child: Child,
    pid: Pid,
    /// Becomes readable when the hook has ended.
    life: OwnedFd,
    output: Stream,
    complaints: Stream,
    has_ended: bool,
}

/// One of a hook's outputs, and what has been read from it.
struct Stream {
    /// `None` at its end.
    pipe: Option<std::fs::File>,
    bytes: BString,
}

impl Hook {
    fn start(program: &Path, args: &[PathBuf], environment: &HostEnvironment) -> io::Result<Self> {
        let variables = environment
            .iter()
            .filter_map(|(name, value)| Some((name.to_os_str().ok()?, value.to_os_str().ok()?)));
        let mut child = Command::new(program)
            .args(args)
            .env_clear()
            .envs(variables)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own, so that what it starts can be ended with it.
            .process_group(0)
            .spawn()?;
        let output = child.stdout.take().map(OwnedFd::from);
        let complaints = child.stderr.take().map(OwnedFd::from);
        let pid = Pid::from_child(&child);
        let attended = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .map_err(io::Error::from)
            .and_then(|life| Ok((life, Stream::new(output)?, Stream::new(complaints)?)));
        match attended {
            Ok((life, output, complaints)) => Ok(Self {
                child,
                pid,
                life,
                output,
                complaints,
                has_ended: false,
            }),
            Err(error) => {
                // Nobody could tell when it ends.
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// Reads what the hook says until it ends, or until that does not matter any more.
    fn attend(&mut self, given_up: BorrowedFd<'_>) -> io::Result<Attended> {
        loop {
            let streams = [self.output.pipe.as_ref(), self.complaints.pipe.as_ref()];
            let mut sources: Vec<PollFd<'_>> = [self.life.as_fd(), given_up]
                .into_iter()
                .chain(streams.into_iter().flatten().map(AsFd::as_fd))
                .map(|source| PollFd::from_borrowed_fd(source, PollFlags::IN))
                .collect();
            rustix::io::retry_on_intr(|| rustix::event::poll(&mut sources, None))?;
            let is_ready = |idx: usize| !sources[idx].revents().is_empty();
            let (has_ended, is_given_up) = (is_ready(0), is_ready(1));
            if is_given_up {
                return Ok(Attended::GivenUp);
            }
            // After its end the last of it: what it left running may keep the pipes open.
            self.output.read()?;
            self.complaints.read()?;
            self.pass_on_complaints();
            if self.output.bytes.len() > MAX_OUTPUT_BYTES {
                return Ok(Attended::TooTalkative);
            }
            if has_ended {
                return Ok(Attended::Ended);
            }
        }
    }

    fn pass_on_complaints(&mut self) {
        let complaints = &mut self.complaints;
        // One without an end is passed on as it is before it fills memory.
        let is_long = complaints.bytes.len() > MAX_OUTPUT_BYTES;
        let n_whole = match complaints.bytes.rfind_byte(b'\n') {
            Some(last) => last + 1,
            None if is_long || complaints.pipe.is_none() => complaints.bytes.len(),
            None => return,
        };
        for line in complaints.bytes[..n_whole].lines() {
            tracing::warn!("pre-build hook: {}", line.to_str_lossy());
        }
        complaints.bytes.drain(..n_whole);
    }

    /// Returns how an ended hook ended, and what it said.
    fn finish(mut self) -> io::Result<(ExitStatus, BString)> {
        self.has_ended = true;
        let status = self.child.wait()?;
        Ok((status, std::mem::take(&mut self.output.bytes)))
    }

    fn end(&mut self) -> io::Result<()> {
        rustix::process::kill_process_group(self.pid, Signal::TERM)?;
        let mut source = [PollFd::new(&self.life, PollFlags::IN)];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut source, Some(&GRACE)))?;
        // Not reaped yet, so the group is still its own; the rest of it may have lived on.
        rustix::process::kill_process_group(self.pid, Signal::KILL)?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        if self.has_ended {
            return;
        }
        if let Err(error) = self.end() {
            tracing::warn!("ending the pre-build hook: {error}");
        }
    }
}

impl Stream {
    fn new(pipe: Option<OwnedFd>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            rustix::io::ioctl_fionbio(pipe, true)?;
        }
        Ok(Self {
            pipe: pipe.map(std::fs::File::from),
            bytes: BString::default(),
        })
    }

    /// Reads what is there, up to a little more than is allowed.
    fn read(&mut self) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        let mut buffer = [0; 4096];
        while self.bytes.len() <= MAX_OUTPUT_BYTES {
            match pipe.read(&mut buffer) {
                Ok(0) => {
                    self.pipe = None;
                    break;
                }
                Ok(n_read) => self.bytes.extend_from_slice(&buffer[..n_read]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("failed with exit code {code}"),
        (None, Some(signal)) => format!("failed due to signal {signal}"),
        (None, None) => "failed".to_owned(),
    }
}

/// Reads what a hook said; as in Nix, a last line without an end does not count.
fn parse(output: &BString) -> Result<Vec<SandboxPath>, String> {
    let mut paths = Vec::new();
    let mut is_naming_paths = false;
    let lines = output
        .split_inclusive(|byte| *byte == b'\n')
        .filter_map(|line| line.strip_suffix(b"\n"));
    for line in lines {
        match (is_naming_paths, line) {
            (false, b"extra-sandbox-paths" | b"extra-chroot-dirs") => is_naming_paths = true,
            (false, line) => return Err(format!("gave the unknown command '{}'", line.as_bstr())),
            (true, b"") => is_naming_paths = false,
            (true, line) => {
                let refused = |reason: String| format!("named a path to show: {reason}");
                let word = line
                    .to_str()
                    .map_err(|_| refused(format!("'{}' is not UTF-8", line.as_bstr())))?;
                let path = word.parse::<SandboxPath>();
                paths.push(path.map_err(|error| refused(error.to_string()))?);
            }
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests;
