//! The launcher's loop: takes requests, starts builds, reaps them and reports.

use std::collections::BTreeMap;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sched::CloneFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use rustix::fs::{MemfdFlags, SealFlags};
use rustix::process::DumpableBehavior;

use super::failure::{Context, Failure};
use super::seccomp::Filters;
use super::views::Views;
use super::{identity, mounts, outer, processes, sys};
use crate::SetupFault;
use crate::plan::{Descendants, Namespace};
use crate::wire::{self, Ending, Launch, News, Report, Request, Told};

/// What a launcher is able to do, decided once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Profile {
    /// It is root.
    Privileged,
    /// It is root in a user namespace of its own, in which nobody else exists.
    Unprivileged,
    /// It is nobody special; only for builds without a sandbox.
    Bare,
}

impl Profile {
    const ALL: [Self; 3] = [Self::Privileged, Self::Unprivileged, Self::Bare];

    /// Returns the word for the command line.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Privileged => "privileged",
            Self::Unprivileged => "unprivileged",
            Self::Bare => "bare",
        }
    }
}

/// A build between its launch and its reaping.
struct Running {
    build_id: u64,
    /// What process 1 tells, until it has nothing more to tell.
    news: Option<OwnedFd>,
    descendants: Descendants,
    ending: Option<Ending>,
}

/// Everything that the loop looks at.
struct Launcher {
    supervisor: UnixStream,
    signals: SignalFd,
    shared: outer::Shared,
    /// Why no build can be set up at all.
    unusable: Option<String>,
    running: BTreeMap<i32, Running>,
}

/// Runs until the supervisor closes its end of the socket.
pub(super) fn run(args: impl Iterator<Item = OsString>) -> io::Result<()> {
    let args: Vec<OsString> = args.collect();
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let (profile, supervisor_pid) = parse(&args)?;
    if nix::unistd::getppid().as_raw() != supervisor_pid {
        // It died before the line above could take effect.
        return Ok(());
    }
    become_unwritable(&args)?;
    // What is made for builders has the modes that it is given, whatever the user's mask.
    rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
    // A terminal's signals are for goalctl, which has builds killed one by one and cleans up. Only
    // now, for what executes itself anew would come here twice, and a session can be left once.
    nix::unistd::setsid()?;
    let supervisor = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.thread_block()?;
    let mut launcher = Launcher {
        supervisor,
        signals: SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?,
        shared: outer::Shared {
            launcher_life: rustix::process::pidfd_open(
                rustix::process::getpid(),
                rustix::process::PidfdFlags::empty(),
            )?,
            filters: Filters::compile(),
            views: Views::default(),
        },
        unusable: prepare(profile).err().map(|failure| failure.to_string()),
        running: BTreeMap::new(),
    };
    // After the id maps, for the kernel lets nobody write those of a hidden process.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    while launcher.turn()? {}
    Ok(())
}

fn parse(args: &[OsString]) -> io::Result<(Profile, i32)> {
    let usage = || io::Error::other("usage: sandbox-init PROFILE SUPERVISOR-PID");
    let [_, profile, pid] = args else {
        return Err(usage());
    };
    let profile = Profile::ALL
        .into_iter()
        .find(|known| profile == known.name())
        .ok_or_else(usage)?;
    let pid = pid
        .to_str()
        .and_then(|pid| pid.parse().ok())
        .ok_or_else(usage)?;
    Ok((profile, pid))
}

/// Executes a sealed copy of this program, unless this is it.
///
/// A script whose interpreter is `/proc/self/exe` runs the program that executed it: this one. From
/// there it could be opened for writing, and in the unprivileged profile its owner is the builder's
/// own user (CVE-2019-5736).
fn become_unwritable(args: &[OsString]) -> io::Result<()> {
    let program = File::open("/proc/self/exe")?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    if rustix::fs::fcntl_get_seals(&program).is_ok_and(|present| present.contains(seals)) {
        return Ok(());
    }
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let copy = match rustix::fs::memfd_create("sandbox-init", flags | MemfdFlags::EXEC) {
        // Kernels before 6.3 do not know the last flag and need none.
        Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("sandbox-init", flags)?,
        copy => copy?,
    };
    let mut copy = File::from(copy);
    let n_bytes = loaded_len(&program).unwrap_or(u64::MAX);
    io::copy(&mut program.take(n_bytes), &mut copy)?;
    rustix::fs::fcntl_add_seals(&copy, seals)?;
    let args = args
        .iter()
        .map(|arg| CString::new(arg.clone().into_vec()))
        .collect::<Result<Vec<_>, _>>()?;
    let empty_env: [CString; 0] = [];
    let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
    match nix::unistd::execveat(copy.as_fd(), c"", &args, &empty_env, flags) {
        Ok(never) => match never {},
        Err(errno) => Err(errno.into()),
    }
}

/// Returns how much of a program's file the kernel loads: what follows is for debuggers, and several
/// times as large. `None` if the file is not of the usual kind.
fn loaded_len(program: &File) -> Option<u64> {
    const LOADED: u32 = 1;
    let mut header = [0; 64];
    program.read_exact_at(&mut header, 0).ok()?;
    // 64 bits, little-endian.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let number = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes))
    };
    let table = number(&header, 32)?;
    let [segment_len, n_segments] = [54, 56].map(|at| {
        let bytes = [header[at], header[at + 1]];
        usize::from(u16::from_le_bytes(bytes))
    });
    let mut segments = vec![0; segment_len * n_segments];
    program.read_exact_at(&mut segments, table).ok()?;
    let mut end = table + segments.len() as u64;
    for segment in segments.chunks(segment_len.max(1)) {
        if segment.starts_with(&LOADED.to_le_bytes()) {
            end = end.max(number(segment, 8)?.checked_add(number(segment, 32)?)?);
        }
    }
    Some(end)
}

/// Makes the launcher what its profile says, once for all builds.
fn prepare(profile: Profile) -> Result<(), Failure> {
    match profile {
        Profile::Privileged => {
            nix::unistd::setgroups(&[]).context(|| "dropping the supplementary groups")?;
            nix::sched::unshare(CloneFlags::CLONE_NEWNS)
                .context(|| "making a mount namespace (does this root lack CAP_SYS_ADMIN?)")?;
            mounts::receive_from_host()
        }
        Profile::Unprivileged => {
            let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
            nix::sched::unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS).context(
                || {
                    "making a user namespace (this kernel or container forbids it: see the \
                     sysctls user.max_user_namespaces, kernel.unprivileged_userns_clone and \
                     kernel.apparmor_restrict_unprivileged_userns; or run as root)"
                },
            )?;
            identity::write_maps(
                Path::new("/proc/self"),
                (0, uid.as_raw()),
                (0, gid.as_raw()),
            )?;
            // The new credentials made the kernel forget it.
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
                .context(|| "asking to die with the supervisor")?;
            mounts::receive_from_host()
        }
        Profile::Bare => Ok(()),
    }
}

impl Launcher {
    /// Waits for something to happen and deals with it; false when there is nothing left to do.
    fn turn(&mut self) -> io::Result<bool> {
        let mut sources = vec![
            PollFd::new(self.supervisor.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
        ];
        let talking = self.running.iter().filter_map(|(pid, running)| {
            let news = running.news.as_ref()?;
            Some((*pid, PollFd::new(news.as_fd(), PollFlags::POLLIN)))
        });
        let (pids, news): (Vec<i32>, Vec<PollFd<'_>>) = talking.unzip();
        sources.extend(news);
        match nix::poll::poll(&mut sources, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
        let ready: Vec<bool> = sources
            .iter()
            .map(|source| source.any() == Some(true))
            .collect();
        let with_news: Vec<i32> = pids
            .into_iter()
            .zip(&ready[2..])
            .filter_map(|(pid, ready)| ready.then_some(pid))
            .collect();
        for pid in with_news {
            self.take_news(pid)?;
        }
        if ready[1] {
            while self.signals.read_signal()?.is_some() {}
            self.reap()?;
        }
        if ready[0] {
            return self.take_request();
        }
        Ok(true)
    }

    fn take_request(&mut self) -> io::Result<bool> {
        match wire::receive_request(&self.supervisor)? {
            None => return Ok(false),
            Some((Request::Launch(launch), descriptors)) => self.launch(&launch, descriptors)?,
            Some((Request::Kill { build_id }, _)) => self.kill(build_id),
        }
        Ok(true)
    }

    fn launch(&mut self, launch: &Launch, descriptors: Vec<OwnedFd>) -> io::Result<()> {
        let build_id = launch.build_id;
        let started = match &self.unusable {
            Some(reason) => Err(Ending::SetupFailed {
                message: reason.clone(),
                fault: SetupFault::Lasting,
            }),
            None => self
                .start(launch, descriptors)
                .map_err(Failure::into_ending),
        };
        match started {
            Ok((pid, running)) => {
                self.running.insert(pid, running);
                Ok(())
            }
            Err(ending) => self.report(build_id, News::Ended(ending)),
        }
    }

    fn start(
        &mut self,
        launch: &Launch,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(i32, Running), Failure> {
        let mut descriptors = descriptors.into_iter();
        let Some(log) = descriptors.next() else {
            return Err(Failure::refused(
                "starting the builder",
                "its log is missing",
            ));
        };
        let given = outer::Given {
            log,
            builtin: descriptors.next(),
        };
        let (ours, theirs) = rustix::net::socketpair(
            rustix::net::AddressFamily::UNIX,
            rustix::net::SocketType::SEQPACKET,
            rustix::net::SocketFlags::CLOEXEC,
            None,
        )
        .context(|| "making a socket")?;
        if let Some(uid) = launch.plan.cleared_uid {
            // From here, for in a new pid namespace nobody sees them.
            processes::kill_user(uid)
                .context(|| format!("killing the processes of the build user {uid}"))?;
        }
        if let Some(view) = launch.plan.view() {
            self.shared.views.touch(view.id);
        }
        let flags = clone_flags(&launch.plan.namespaces);
        match sys::clone_process(flags).context(|| namespaces_refused(flags))? {
            sys::Cloned::Child => {
                drop(ours);
                outer::run(launch, given, &theirs, &self.shared)
            }
            sys::Cloned::Parent(pid) => {
                let running = Running {
                    build_id: launch.build_id,
                    news: Some(ours),
                    descendants: launch.plan.descendants,
                    ending: None,
                };
                Ok((pid, running))
            }
        }
    }

    /// Reads what process 1 has told so far.
    fn take_news(&mut self, pid: i32) -> io::Result<()> {
        let Some(running) = self.running.get_mut(&pid) else {
            return Ok(());
        };
        let mut started = false;
        while let Some(news) = &running.news {
            match hear(news)? {
                Heard::Told(Told::News(News::Started { .. }), _) => started = true,
                Heard::Told(Told::ViewMade { id }, view) => {
                    if let Some(view) = view {
                        self.shared.views.keep(id, view);
                    }
                }
                // The first one counts: a builder whose set-up failed also exits.
                Heard::Told(Told::News(News::Ended(ending)), _) => {
                    running.ending.get_or_insert(ending);
                }
                Heard::Silence => break,
                // A closed socket stays readable: it must not be looked at again.
                Heard::End => running.news = None,
            }
        }
        let build_id = running.build_id;
        if started {
            let pid = pid.unsigned_abs();
            self.report(build_id, News::Started { pid })?;
        }
        Ok(())
    }

    fn reap(&mut self) -> io::Result<()> {
        loop {
            let status = match nix::sys::wait::waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(status) => status,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if let Some(pid) = status.pid() {
                self.bury(pid.as_raw(), status)?;
            }
        }
    }

    fn bury(&mut self, pid: i32, status: WaitStatus) -> io::Result<()> {
        self.take_news(pid)?;
        let Some(running) = self.running.remove(&pid) else {
            return Ok(());
        };
        if let Descendants::OfUser(uid) = running.descendants {
            // Best effort: the builder is gone, and what it left had a whole reaper to itself.
            drop(processes::kill_user(uid));
        }
        let ending = match (running.ending, status) {
            (Some(ending), _) => ending,
            (None, WaitStatus::Signaled(_, signal, _)) => Ending::Signalled {
                signal: signal as i32,
            },
            (None, _) => Ending::SetupFailed {
                message: "the build's first process ended without a word".to_owned(),
                fault: SetupFault::Passing,
            },
        };
        self.report(running.build_id, News::Ended(ending))
    }

    fn kill(&self, build_id: u64) {
        let found = self
            .running
            .iter()
            .find(|(_, running)| running.build_id == build_id);
        if let Some((pid, running)) = found {
            let signal = match running.descendants {
                Descendants::InPidNamespace => Signal::SIGKILL,
                // It must live on to kill what it has adopted.
                Descendants::Adopted | Descendants::OfUser(_) => processes::STOP_SIGNAL,
            };
            // The only way to fail is that it is gone, which its reaping will tell.
            let _ = nix::sys::signal::kill(Pid::from_raw(*pid), signal);
        }
    }

    fn report(&self, build_id: u64, news: News) -> io::Result<()> {
        wire::send_report(&self.supervisor, &Report { build_id, news })
    }
}

/// What one look at a process 1's socket brought.
enum Heard {
    Told(Told, Option<OwnedFd>),
    Silence,
    End,
}

fn hear(news: &OwnedFd) -> io::Result<Heard> {
    let mut packet = [0; outer::MAX_NEWS_LEN];
    match wire::hear(news.as_fd(), &mut packet) {
        Ok(Some((told, descriptor))) => Ok(Heard::Told(told, descriptor)),
        Ok(None) => Ok(Heard::End),
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(Heard::End),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Heard::Silence),
        Err(error) => Err(error),
    }
}

fn clone_flags(namespaces: &[Namespace]) -> i32 {
    namespaces
        .iter()
        .map(|namespace| match namespace {
            Namespace::Pid => libc::CLONE_NEWPID,
            Namespace::Mount => libc::CLONE_NEWNS,
            Namespace::Network => libc::CLONE_NEWNET,
            Namespace::Ipc => libc::CLONE_NEWIPC,
            Namespace::Uts => libc::CLONE_NEWUTS,
            Namespace::Cgroup => libc::CLONE_NEWCGROUP,
        })
        .fold(0, |flags, flag| flags | flag)
}

fn namespaces_refused(flags: i32) -> &'static str {
    if flags == 0 {
        "starting a process"
    } else {
        "making the namespaces of the sandbox"
    }
}
