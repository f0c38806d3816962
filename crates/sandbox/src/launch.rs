//! The supervisor's side of the launcher: its process, its thread and its socket.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;

use store_model::Settings;

use crate::Error;
use crate::init::Profile;
use crate::wire::{self, Launch, Report, Request};

/// What the launcher's thread tells.
#[derive(Debug)]
pub(crate) enum LauncherEvent {
    /// The launcher said something.
    Reported(Report),
    /// It is gone, and with it, very soon, every build that it had started.
    Lost {
        /// Why, as far as it is known.
        reason: String,
    },
}

/// A running launcher, or one that is just being started: requests wait in its socket.
pub(crate) struct Launcher {
    /// Shared by the worker threads that write requests, never by actors.
    socket: Mutex<UnixStream>,
}

impl fmt::Debug for Launcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Launcher")
    }
}

impl Launcher {
    /// Starts a launcher and the thread that owns it, without waiting for either.
    ///
    /// The thread lives as long as the launcher: the kernel kills the launcher when the *thread*
    /// that started it ends.
    ///
    /// # Errors
    /// There is no socket or no thread to be had.
    pub(crate) fn start(
        program: PathBuf,
        profile: Profile,
        mut listener: impl FnMut(LauncherEvent) + Send + 'static,
    ) -> Result<Self, Error> {
        let launcher = |source| Error::Launcher { source };
        let (ours, theirs) = UnixStream::pair().map_err(launcher)?;
        let reports = ours.try_clone().map_err(launcher)?;
        thread::Builder::new()
            .name("sandbox-launcher".to_owned())
            .spawn(move || {
                let reason = attend(&program, profile, &reports, theirs, &mut listener);
                listener(LauncherEvent::Lost { reason });
            })
            .map_err(launcher)?;
        Ok(Self {
            socket: Mutex::new(ours),
        })
    }

    /// Asks for a build; `log` becomes the builder's output, `builtin` is what a built-in one is
    /// told.
    ///
    /// # Errors
    /// The launcher is gone.
    pub(crate) fn launch(
        &self,
        launch: Launch,
        log: BorrowedFd<'_>,
        builtin: Option<BorrowedFd<'_>>,
    ) -> Result<(), Error> {
        let descriptors: Vec<_> = std::iter::once(log).chain(builtin).collect();
        self.send(&Request::Launch(Box::new(launch)), &descriptors)
    }

    /// Asks for a build's end. It is reported as every end is.
    ///
    /// # Errors
    /// The launcher is gone.
    pub(crate) fn kill(&self, build_id: u64) -> Result<(), Error> {
        self.send(&Request::Kill { build_id }, &[])
    }

    /// Lets the launcher end.
    pub(crate) fn close(&self) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        // Its thread then reads the end of the stream, as after the launcher's own death.
        drop(socket.shutdown(std::net::Shutdown::Both));
    }

    fn send(&self, request: &Request, descriptors: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send_request(&socket, request, descriptors)
            .map_err(|source| Error::Launcher { source })
    }
}

/// Runs the launcher and passes on what it says; returns why it ended.
fn attend(
    program: &Path,
    profile: Profile,
    reports: &UnixStream,
    theirs: UnixStream,
    listener: &mut impl FnMut(LauncherEvent),
) -> String {
    let spawned = Command::new(program)
        .arg(profile.name())
        .arg(std::process::id().to_string())
        // Nothing of ours may reach a builder through it.
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stdout(Stdio::null())
        .spawn();
    let mut child = match spawned {
        Ok(child) => child,
        Err(error) => return format!("starting the launcher '{}': {error}", program.display()),
    };
    let read = loop {
        match wire::receive_report(reports) {
            Ok(Some(report)) => listener(LauncherEvent::Reported(report)),
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    // It reads the end of the stream, if it lives at all.
    drop(reports.shutdown(std::net::Shutdown::Both));
    let status = child.wait();
    match (read, status) {
        (Err(error), _) if error.kind() == io::ErrorKind::InvalidData => {
            format!(
                "the launcher '{}' is not of this version: {error}",
                program.display()
            )
        }
        (_, Ok(status)) => format!("the launcher '{}' died: {status}", program.display()),
        (_, Err(error)) => format!("the launcher '{}' died: {error}", program.display()),
    }
}

/// Finds the launcher: where the settings say, else beside the running program; a test's or an
/// example's program lies one directory below.
///
/// # Errors
/// There is none.
pub(crate) fn find_launcher(settings: &Settings) -> Result<PathBuf, Error> {
    if let Some(program) = &settings.sandbox_init {
        return Ok(program.clone());
    }
    let program =
        std::env::current_exe().map_err(Error::file("finding", PathBuf::from("/proc/self/exe")))?;
    program
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("sandbox-init"))
        .find(|path| path.is_file())
        .ok_or(Error::NoLauncher { program })
}
