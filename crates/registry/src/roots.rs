//! What the garbage collector must leave alone: paths that this process is about to use, and links
//! that a user keeps.
//!
//! The collector takes `gc.lock` alone while it works, and reads the temporary roots of every
//! process before. So a root is written while that lock is held shared; while the collector works,
//! it is told through its socket instead, and answers once it knows.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use store_model::{Hash, HashAlgorithm, StorePath, base32};

use crate::Error;
use crate::layout::Layout;

/// How many registries of one process may share a store.
const MAX_FILES: usize = 1_000;

/// The temporary roots of this registry, in a file named after its process.
#[derive(Debug)]
pub(crate) struct TempRoots {
    layout: Arc<Layout>,
    file: Option<RootsFile>,
    known: HashSet<StorePath>,
}

/// An open roots file. Its lock says that its process is alive.
#[derive(Debug)]
struct RootsFile {
    path: PathBuf,
    file: OwnedFd,
    gc_lock: OwnedFd,
    collector: Option<UnixStream>,
}

impl TempRoots {
    /// Removes what dead processes have left; the file itself is made with the first root.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub(crate) fn open(layout: Arc<Layout>) -> Result<Self, Error> {
        remove_stale(&layout.state("temproots"))?;
        Ok(Self {
            layout,
            file: None,
            known: HashSet::new(),
        })
    }

    /// Keeps `paths` from the garbage collector until this value is dropped.
    ///
    /// # Errors
    /// The roots cannot be written; the paths may go at any time.
    pub(crate) fn add(&mut self, paths: Vec<StorePath>) -> Result<(), Error> {
        let new: Vec<StorePath> = paths
            .into_iter()
            .filter(|path| !self.known.contains(path))
            .collect();
        if new.is_empty() {
            return Ok(());
        }
        let mut file = match self.file.take() {
            Some(file) => file,
            None => RootsFile::create(&self.layout)?,
        };
        let added = file.add(&self.layout, &new);
        self.file = Some(file);
        added?;
        self.known.extend(new);
        Ok(())
    }
}

impl Drop for TempRoots {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            // While it is locked nobody else removes it. If this fails the next start does.
            let _left_for_the_next_start = fs::remove_file(&file.path);
        }
    }
}

impl RootsFile {
    fn create(layout: &Layout) -> Result<Self, Error> {
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
            let gc_lock_path = layout.state("gc.lock");
            let gc_lock = open_private(&gc_lock_path)
                .map_err(|errno| Error::file("opening", &gc_lock_path, errno))?;
            return Ok(Self {
                path,
                file,
                gc_lock,
                collector: None,
            });
        }
        Err(Error::file(
            "making temporary roots file",
            layout.state("temproots").join(pid.to_string()),
            Errno::EXIST,
        ))
    }

    fn add(&mut self, layout: &Layout, paths: &[StorePath]) -> Result<(), Error> {
        let is_shared = self.share_gc_lock(layout, paths)?;
        let mut text = Vec::new();
        for path in paths {
            text.extend_from_slice(layout.print(path).as_bytes());
            text.push(0);
        }
        let written = write_all(&self.file, &text);
        if is_shared {
            rustix::fs::flock(&self.gc_lock, FlockOperation::Unlock)
                .map_err(|errno| Error::file("unlocking", layout.state("gc.lock"), errno))?;
        }
        written.map_err(|errno| Error::file("writing to", &self.path, errno))
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

/// Makes `link` point at `target`, and the collector follow it.
///
/// # Errors
/// The link is not absolute, something else is there, or it cannot be made.
pub(crate) fn add_indirect_root(
    layout: &Layout,
    link: &Path,
    target: &StorePath,
) -> Result<(), Error> {
    if !link.is_absolute() {
        return Err(Error::RelativeRoot {
            path: link.to_owned(),
        });
    }
    let occupied = || Error::LinkOccupied {
        path: link.to_owned(),
    };
    match fs::symlink_metadata(link) {
        Ok(metadata) if metadata.is_symlink() => {
            let store_dir = layout.paths.store_dir.as_str();
            let old =
                fs::read_link(link).map_err(|error| Error::file("reading link", link, error))?;
            if !old.starts_with(store_dir) {
                return Err(occupied());
            }
        }
        Ok(_) => return Err(occupied()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(Error::file("looking at", link, error)),
    }
    replace_link(layout.print(target).as_ref(), link)?;
    let digest = Hash::digest(HashAlgorithm::Sha1, link.as_os_str().as_encoded_bytes());
    let name = base32::encode(digest.as_bytes());
    replace_link(link, &layout.state("gcroots/auto").join(name))
}

/// Makes a link in place of another so that there is always one.
fn replace_link(target: &Path, link: &Path) -> Result<(), Error> {
    let mut new = link.as_os_str().to_owned();
    new.push(format!(".tmp-{}", std::process::id()));
    let new = PathBuf::from(new);
    let failed = |errno| Error::file("making link", link, errno);
    match rustix::fs::unlink(&new) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(failed(errno)),
    }
    rustix::fs::symlink(target, &new).map_err(failed)?;
    rustix::fs::rename(&new, link).map_err(failed)
}

/// Removes the files of processes that are no more: those that nobody has locked.
fn remove_stale(dir: &Path) -> Result<(), Error> {
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

fn write_all(file: &OwnedFd, mut text: &[u8]) -> Result<(), Errno> {
    while !text.is_empty() {
        let n_written = rustix::io::retry_on_intr(|| rustix::io::write(file, text))?;
        text = &text[n_written..];
    }
    Ok(())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
