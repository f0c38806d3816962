//! Processes of this machine: waiting for their end, and finding those that work on a store.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::measure;

/// A process whose end can be waited for, whosever child it is.
#[derive(Debug)]
pub struct Watched {
    pidfd: OwnedFd,
}

impl Watched {
    /// Watches a process; `None` if it is gone already.
    #[must_use]
    pub fn new(pid: u32) -> Option<Self> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
        pidfd_open(pid, PidfdFlags::empty())
            .ok()
            .map(|pidfd| Self { pidfd })
    }

    /// Waits for the process's end, at most this long; returns whether it has ended.
    #[must_use]
    pub fn await_end(&self, at_most: Duration) -> bool {
        let deadline = measure::now() + at_most;
        loop {
            let remaining = deadline.saturating_duration_since(measure::now());
            let timeout = Timespec::try_from(remaining).expect("a deadline of a test is short");
            let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return false,
                Ok(_) => return true,
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => panic!("waiting for a process: {error}"),
            }
        }
    }
}

/// What is known about a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its id.
    pub pid: u32,
    /// Its parent's id.
    pub parent: u32,
    /// Its command's name, at most 15 bytes.
    pub name: String,
    /// Its arguments, with blanks between them.
    pub arguments: String,
}

/// Returns every process that runs now and is visible; those that are dead and not yet reaped do
/// not count.
#[must_use]
pub fn all() -> Vec<Process> {
    std::fs::read_dir("/proc")
        .expect("/proc is there")
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(read)
        .collect()
}

/// Returns the processes that descend from `ancestor`, itself not included.
#[must_use]
pub fn descendants(ancestor: u32) -> Vec<Process> {
    let mut remaining = all();
    let mut family = vec![ancestor];
    let mut found = Vec::new();
    loop {
        let (children, others): (Vec<_>, Vec<_>) = remaining
            .into_iter()
            .partition(|process| family.contains(&process.parent));
        if children.is_empty() {
            return found;
        }
        family.extend(children.iter().map(|child| child.pid));
        found.extend(children);
        remaining = others;
    }
}

/// Returns the processes that have to do with a folder: named in their arguments, or mounted in
/// their view of the file system, or where they are. The test itself does not count.
#[must_use]
pub fn touching(folder: &Path) -> Vec<Process> {
    let name = folder.to_str().expect("a test's folder has a plain name");
    all()
        .into_iter()
        .filter(|process| process.pid != std::process::id())
        .filter(|process| process.arguments.contains(name) || is_inside(process.pid, folder, name))
        .collect()
}

/// Waits until no process has to do with a folder.
///
/// # Panics
///
/// If one still has after `at_most`.
pub fn await_none_touching(folder: &Path, at_most: Duration) {
    let deadline = measure::now() + at_most;
    loop {
        let processes = touching(folder);
        let Some(process) = processes.first() else {
            return;
        };
        let remaining = deadline.saturating_duration_since(measure::now());
        let has_ended =
            Watched::new(process.pid).is_none_or(|watched| watched.await_end(remaining));
        assert!(
            has_ended && !remaining.is_zero(),
            "processes are left that have to do with {}: {processes:#?}",
            folder.display()
        );
    }
}

/// Waits until a process is at least `n_bytes` into a file below a folder, reading or writing it.
///
/// # Panics
///
/// If it is not after `at_most`.
pub fn await_progress(pid: u32, folder: &Path, n_bytes: u64, at_most: Duration) {
    let deadline = measure::now() + at_most;
    while !is_well_into(pid, folder, n_bytes) {
        assert!(
            measure::now() < deadline,
            "process {pid} does nothing with a file below {}",
            folder.display()
        );
        // Nothing tells how far another process has read.
        std::thread::yield_now();
    }
}

fn is_well_into(pid: u32, folder: &Path, n_bytes: u64) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    let descriptors = std::fs::read_dir(proc.join("fd")).into_iter().flatten();
    // Descriptors come and go while they are listed.
    descriptors.flatten().any(|listed| {
        let is_below = std::fs::read_link(listed.path()).is_ok_and(|file| file.starts_with(folder));
        let facts = std::fs::read_to_string(proc.join("fdinfo").join(listed.file_name()));
        let position = facts
            .unwrap_or_default()
            .lines()
            .find_map(|line| line.strip_prefix("pos:")?.trim().parse::<u64>().ok());
        is_below && position.is_some_and(|position| position >= n_bytes)
    })
}

/// Returns the mounts below a folder in the test's own view.
#[must_use]
pub fn mounts_below(folder: &Path) -> Vec<String> {
    let name = folder.to_str().expect("a test's folder has a plain name");
    std::fs::read_to_string("/proc/self/mountinfo")
        .expect("/proc/self/mountinfo can be read")
        .lines()
        .filter(|line| {
            line.split(' ')
                .nth(4)
                .is_some_and(|point| point.starts_with(name))
        })
        .map(str::to_owned)
        .collect()
}

fn read(pid: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name is in parentheses and may hold any byte.
    let (before, after) = stat.rsplit_once(')')?;
    let name = before.split_once('(')?.1.to_owned();
    let mut fields = after.split_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    if state == "Z" {
        return None;
    }
    let arguments = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(Process {
        pid,
        parent,
        name,
        arguments: String::from_utf8_lossy(&arguments).replace('\0', " "),
    })
}

fn is_inside(pid: u32, folder: &Path, name: &str) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    ["cwd", "root", "exe"].iter().any(|link| {
        std::fs::read_link(proc.join(link)).is_ok_and(|target| target.starts_with(folder))
    }) || std::fs::read_to_string(proc.join("mountinfo")).is_ok_and(|mounts| mounts.contains(name))
}
