//! The file `temproots/<pid>`, as every program on the store reads it: printed paths, each with a zero
//! byte after it, in a file whose lock says that its process is alive.
//!
//! A collector holds `gc.lock` alone from before it reads these files to its end. So a root is
//! written while that lock is held shared; while a collector works, it is told through its socket
//! besides, and answers once it knows. Roots are only ever taken out while the lock is held, so no
//! collector sees the file while it is rewritten.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use store_model::StorePath;

use crate::Error;
use crate::layout::Layout;

/// How many registries of one process may share a store.
const MAX_FILES: usize = 1_000;

/// An open roots file.
#[derive(Debug)]
pub(super) struct RootsFile {
    pub(super) path: PathBuf,
    file: OwnedFd,
    /// How much of the file has been written for good.
    n_bytes: u64,
    gc_lock: OwnedFd,
    /// Whether rewriting has failed half-way. The lock stays taken until it has succeeded, so that no
    /// collector misses what was overwritten.
    is_torn: bool,
    collector: Option<UnixStream>,
}

/// What became of a wish to take roots out of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rewriting {
    /// The file has the roots that were given, and no others.
    Done,
    /// A collector may be reading it, so it was left as it is.
    CollectorAtWork,
}

impl RootsFile {
    /// Makes the file of this process and locks it.
    ///
    /// # Errors
    /// It cannot be made or locked, or the collector's lock cannot be opened.
    pub(super) fn create(layout: &Layout) -> Result<Self, Error> {
        let pid = std::process::id();
        let mut n_taken = 0;
        while n_taken < MAX_FILES {
            // Nix reads the number that the name begins with. Another registry of this process, or
            // a process of another pid namespace, may have the plain name.
            let name = if n_taken == 0 {
                pid.to_string()
            } else {
                format!("{pid}-{n_taken}")
            };
            let path = layout.state("temproots").join(name);
            let failed = |errno| Error::file("making temporary roots file", &path, errno);
            let file = open_private(&path).map_err(failed)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => {
                    n_taken += 1;
                    continue;
                }
                Err(errno) => return Err(failed(errno)),
            }
            // The collector may have removed the file before we locked it.
            if rustix::fs::fstat(&file).map_err(failed)?.st_nlink == 0 {
                continue;
            }
            rustix::fs::ftruncate(&file, 0).map_err(failed)?;
            return Ok(Self {
                path,
                file,
                n_bytes: 0,
                gc_lock: open_gc_lock(layout)?,
                is_torn: false,
                collector: None,
            });
        }
        Err(Error::file(
            "making temporary roots file",
            layout.state("temproots").join(pid.to_string()),
            Errno::EXIST,
        ))
    }

    /// Adds roots at the end, which a collector knows when this returns.
    ///
    /// # Errors
    /// They cannot be written; the file is as it was.
    pub(super) fn append(&mut self, layout: &Layout, paths: &[StorePath]) -> Result<(), Error> {
        let is_shared = self.share_gc_lock(layout, paths)?;
        let text = print(layout, paths);
        let written = write_all_at(&self.file, &text, self.n_bytes);
        match written {
            Ok(()) => self.n_bytes += len(&text),
            Err(_) => {
                // Half a path would spoil the next one. If this fails too, the next one overwrites it.
                let _overwritten = rustix::fs::ftruncate(&self.file, self.n_bytes);
            }
        }
        if is_shared {
            self.unlock(layout)?;
        }
        written.map_err(|errno| Error::file("writing to", &self.path, errno))
    }

    /// Leaves only these roots in the file, unless a collector is at work.
    ///
    /// # Errors
    /// They cannot be written. Collectors wait then until a later try succeeds.
    pub(super) fn rewrite<'a>(
        &mut self,
        layout: &Layout,
        paths: impl IntoIterator<Item = &'a StorePath>,
    ) -> Result<Rewriting, Error> {
        match rustix::fs::flock(&self.gc_lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Ok(Rewriting::CollectorAtWork),
            Err(errno) => return Err(Error::file("locking", layout.state("gc.lock"), errno)),
        }
        let text = print(layout, paths);
        // In place: a new file under the old name would have to be locked before anybody sees it,
        // and whoever had opened the old one would find it unlocked and unlink the name.
        let written = write_all_at(&self.file, &text, 0)
            .and_then(|()| rustix::fs::ftruncate(&self.file, len(&text)));
        self.is_torn = written.is_err();
        written.map_err(|errno| Error::file("rewriting", &self.path, errno))?;
        self.n_bytes = len(&text);
        self.unlock(layout)?;
        Ok(Rewriting::Done)
    }

    /// Returns whether the file must be rewritten before anything is added to it.
    pub(super) fn is_torn(&self) -> bool {
        self.is_torn
    }

    fn unlock(&self, layout: &Layout) -> Result<(), Error> {
        rustix::fs::flock(&self.gc_lock, FlockOperation::Unlock)
            .map_err(|errno| Error::file("unlocking", layout.state("gc.lock"), errno))
    }

    /// Takes the collector's lock, which returns true; or tells the collector, which returns false.
    fn share_gc_lock(&mut self, layout: &Layout, paths: &[StorePath]) -> Result<bool, Error> {
        let failed = |errno| Error::file("locking", layout.state("gc.lock"), errno);
        match rustix::fs::flock(&self.gc_lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => return Ok(true),
            Err(Errno::WOULDBLOCK) => {}
            Err(errno) => return Err(failed(errno)),
        }
        match self.tell_collector(layout, paths) {
            Ok(()) => Ok(false),
            Err(error) => {
                // It has just begun and does not listen yet, or it has just ended.
                tracing::debug!("the garbage collector does not listen: {error}");
                self.collector = None;
                rustix::fs::flock(&self.gc_lock, FlockOperation::LockShared).map_err(failed)?;
                Ok(true)
            }
        }
    }

    fn tell_collector(&mut self, layout: &Layout, paths: &[StorePath]) -> io::Result<()> {
        let collector = match &mut self.collector {
            Some(collector) => collector,
            none => none.insert(UnixStream::connect(layout.state("gc-socket/socket"))?),
        };
        for path in paths {
            collector.write_all(format!("{}\n", layout.print(path)).as_bytes())?;
            let mut reply = [0];
            collector.read_exact(&mut reply)?;
            if reply != *b"1" {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        Ok(())
    }
}

/// Opens the lock that a collector holds alone.
///
/// # Errors
/// It cannot be opened or made.
pub(super) fn open_gc_lock(layout: &Layout) -> Result<OwnedFd, Error> {
    let path = layout.state("gc.lock");
    open_private(&path).map_err(|errno| Error::file("opening", &path, errno))
}

/// Removes the files of processes that are no more: those that nobody has locked.
///
/// # Errors
/// The directory cannot be read.
pub(super) fn remove_stale(dir: &Path) -> Result<(), Error> {
    let failed = |error| Error::file("reading", dir, error);
    for listed in fs::read_dir(dir).map_err(failed)? {
        let path = listed.map_err(failed)?.path();
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        // What we may not open is somebody else's.
        let Ok(file) = rustix::fs::openat(CWD, &path, flags, Mode::empty()) else {
            continue;
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        // Marked after it is unlinked, for a process that opens it right now.
        if rustix::fs::unlinkat(CWD, &path, AtFlags::empty()).is_ok() {
            let _nobody_waits = rustix::io::write(&file, b"d");
        }
    }
    Ok(())
}

fn open_private(path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        CWD,
        path,
        OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::RUSR | Mode::WUSR,
    )
}

fn print<'a>(layout: &Layout, paths: impl IntoIterator<Item = &'a StorePath>) -> Vec<u8> {
    let mut text = Vec::new();
    for path in paths {
        text.extend_from_slice(layout.print(path).as_bytes());
        text.push(0);
    }
    text
}

fn len(text: &[u8]) -> u64 {
    text.len() as u64
}

fn write_all_at(file: &OwnedFd, mut text: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !text.is_empty() {
        let n_written = rustix::io::retry_on_intr(|| rustix::io::pwrite(file, text, offset))?;
        text = &text[n_written..];
        offset += n_written as u64;
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
