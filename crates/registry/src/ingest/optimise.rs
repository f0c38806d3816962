//! Making equal files of the store one file with many names (`auto-optimise-store`).
//!
//! Every file and link has one more name in `.links`: the base-32 SHA-256 of its archive, which
//! covers its contents and whether it may be executed. What is added becomes another name of the
//! file that is there, or is the first to have that name. Names, and what is left alone, are those
//! of Nix, so that either program shares files with what the other added.
//!
//! Unlike Nix we compare before we share: after a power cut a file in `.links` may have lost its
//! contents, and a good file must not become another name of it.

use std::collections::{BTreeSet, HashSet};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use store_model::nar;

use super::canonical::Canonical;
use super::hash_scan::{Metadata, Question, ReadBuffer, read_tree};
use super::{FileSharing, Ingest, Staged};
use crate::staging::{Staging, c_name};
use crate::tree::{self, Here, Visitor};
use crate::{CancelFlag, Error};

/// The directory of the names by hash, in the store directory.
const LINKS: &str = ".links";

/// How often a name is looked at again because somebody else has changed it meanwhile. Each time
/// somebody has got on with theirs; who has lost so often keeps a file of their own.
const MAX_LOOKS: u32 = 16;

impl Ingest {
    /// Shares the files of the canonical tree `place`, if that is wanted. `path` is for messages.
    ///
    /// # Errors
    /// The kernel refuses, or it was cancelled: then some directories of the tree are writable.
    pub(super) fn optimise(
        &mut self,
        place: (BorrowedFd<'_>, &CStr),
        path: &Path,
        cancel: &CancelFlag,
    ) -> Result<(), Error> {
        if self.sharing == FileSharing::None {
            return Ok(());
        }
        let links_path = self.layout.paths.real_store_dir.join(LINKS);
        let failed = |errno| Error::file("opening", &links_path, errno);
        let links = rustix::fs::openat(
            &self.layout.store,
            LINKS,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed)?;
        // A name cannot lead to another file system: what comes from there is copied first.
        let device = rustix::fs::fstat(&links).map_err(failed)?.st_dev;
        if rustix::fs::fstat(place.0).map_err(failed)?.st_dev != device {
            return Ok(());
        }
        let staging = Arc::clone(&self.trash.staging);
        let mut sharer = Sharer {
            links,
            links_path,
            staging: &staging,
            buffer: &mut self.buffer,
            cancel,
            shared: HashSet::new(),
            opened: Vec::new(),
            n_linked: 0,
            freed_bytes: 0,
        };
        tree::walk(place.0, place.1, path, &mut sharer)?;
        tracing::debug!(
            "'{}': {} files shared, {} bytes freed",
            path.display(),
            sharer.n_linked,
            sharer.freed_bytes
        );
        Ok(())
    }

    /// Shares the files of something in our own directory, if that is wanted.
    ///
    /// # Errors
    /// As [`optimise`](Self::optimise).
    pub(super) fn optimise_staged(
        &mut self,
        staged: &Staged,
        path: &Path,
        cancel: &CancelFlag,
    ) -> Result<(), Error> {
        let staging = Arc::clone(&self.trash.staging);
        self.optimise((staging.dir(), &staged.name), path, cancel)
    }
}

/// Whether there is nothing left to do for a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Settled {
    Yes,
    /// Somebody else has changed its name in `.links`, which has to be looked at again.
    No,
}

struct Sharer<'a> {
    links: OwnedFd,
    links_path: PathBuf,
    staging: &'a Staging,
    buffer: &'a mut ReadBuffer,
    cancel: &'a CancelFlag,
    /// Inodes of files that are known to be shared already.
    shared: HashSet<u64>,
    /// For each directory above, whether it was opened for changes.
    opened: Vec<bool>,
    n_linked: u64,
    freed_bytes: u64,
}

impl Visitor for Sharer<'_> {
    type Error = Error;

    const MAX_DEPTH: usize = nar::MAX_DEPTH;

    const UNLOCK: bool = false;

    fn enter(&mut self, _dir: BorrowedFd<'_>, _here: &Here<'_>) -> Result<(), Error> {
        self.opened.push(false);
        self.cancel.check()
    }

    fn leave(&mut self, dir: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Error> {
        // Back to the mode and the time that the renames in it have changed.
        match self.opened.pop() {
            Some(true) => Canonical::leave(dir, here),
            _ => Ok(()),
        }
    }

    fn file(&mut self, here: &Here<'_>) -> Result<(), Error> {
        if here.stat.st_mode & 0o200 != 0 {
            let path = here.path();
            tracing::warn!("skipping suspicious writable file '{}'", path.display());
            return Ok(());
        }
        self.share(here)
    }

    fn link(&mut self, here: &Here<'_>) -> Result<(), Error> {
        self.share(here)
    }
}

impl Sharer<'_> {
    /// Makes a file another name of an equal one, or the first of its kind.
    fn share(&mut self, here: &Here<'_>) -> Result<(), Error> {
        self.cancel.check()?;
        if here.stat.st_nlink > 1 && self.shared.contains(&here.stat.st_ino) {
            return Ok(());
        }
        let name = self.name_by_hash(here)?;
        for _ in 0..MAX_LOOKS {
            let settled = match self.look(&name)? {
                Some(known) if known.st_ino == here.stat.st_ino => Settled::Yes,
                Some(known) if self.is_equal(here, &name, &known)? => self.replace(here, &name)?,
                Some(known) => {
                    self.remove_corrupt(&name, &known)?;
                    Settled::No
                }
                None => self.introduce(here, &name)?,
            };
            if settled == Settled::Yes {
                break;
            }
        }
        Ok(())
    }

    /// Returns the name that the file has in `.links`.
    fn name_by_hash(&mut self, here: &Here<'_>) -> Result<CString, Error> {
        self.hash((here.parent, here.name), &here.path())
    }

    fn hash(&mut self, place: (BorrowedFd<'_>, &CStr), path: &Path) -> Result<CString, Error> {
        let question = Question {
            metadata: Metadata::Keep,
            candidates: &BTreeSet::new(),
            content_hash: None,
            cancel: self.cancel,
        };
        let contents = read_tree(place.0, place.1, path, question, self.buffer)?;
        Ok(c_name(&contents.nar.nar_hash.to_hash().to_base32()))
    }

    fn look(&self, name: &CStr) -> Result<Option<Stat>, Error> {
        match rustix::fs::statat(&self.links, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("looking at", name, errno)),
        }
    }

    /// Returns whether the file in `.links` is what its name says, with a file's metadata.
    fn is_equal(&mut self, here: &Here<'_>, name: &CStr, known: &Stat) -> Result<bool, Error> {
        let looks = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_size, stat.st_mtime);
        if looks(known) != looks(&here.stat) {
            return Ok(false);
        }
        let path = self.path_of(name);
        let links = self
            .links
            .try_clone()
            .map_err(|error| Error::file("opening", &self.links_path, error))?;
        match self.hash((links.as_fd(), name), &path) {
            Ok(hash) => Ok(hash.as_c_str() == name),
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(error) => {
                tracing::warn!("{error}");
                Ok(false)
            }
        }
    }

    /// Removes a name in `.links` that was found to be another file than it should be, unless
    /// somebody else has put a better one there meanwhile.
    fn remove_corrupt(&self, name: &CStr, corrupt: &Stat) -> Result<(), Error> {
        let path = self.path_of(name);
        // Held for two calls: without it the second could remove what was put there after the
        // first, and two that are made good at once would each keep a file of their own.
        let _turn = self.take_turn()?;
        let is_same = |found: Stat| {
            // An inode is used again, and the file in it may have been changed.
            let identity = |stat: &Stat| (stat.st_ino, stat.st_ctime, stat.st_ctime_nsec);
            identity(&found) == identity(corrupt)
        };
        if !self.look(name)?.is_some_and(is_same) {
            return Ok(());
        }
        tracing::warn!(
            "removing corrupted link '{}'; there may be more corrupted paths, which \
             'nix-store --verify --check-contents --repair' finds",
            path.display()
        );
        match rustix::fs::unlinkat(&self.links, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(self.failed("removing", name, errno)),
        }
    }

    /// Waits until nobody else removes corrupt names, which takes them no time, until what this
    /// returns is dropped.
    fn take_turn(&self) -> Result<OwnedFd, Error> {
        let failed = |errno| Error::file("locking", &self.links_path, errno);
        // A lock belongs to an opened directory, and `links` may be open in a copy.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&self.links, c".", flags, Mode::empty()).map_err(failed)?;
        rustix::fs::flock(&opened, FlockOperation::LockExclusive).map_err(failed)?;
        Ok(opened)
    }

    /// Gives the first file of its kind its name in `.links`.
    fn introduce(&mut self, here: &Here<'_>, name: &CStr) -> Result<Settled, Error> {
        let flags = AtFlags::empty();
        match rustix::fs::linkat(here.parent, here.name, &self.links, name, flags) {
            Ok(()) => {
                self.shared.insert(here.stat.st_ino);
                Ok(Settled::Yes)
            }
            // Somebody else was first.
            Err(Errno::EXIST) => Ok(Settled::No),
            // On ext4 a directory can be full; on others a file can have all the names it may. Then
            // this file is not shared.
            Err(errno @ (Errno::NOSPC | Errno::MLINK)) => {
                let path = self.path_of(name);
                tracing::info!(
                    "cannot link '{}' to '{}': {errno}",
                    path.display(),
                    here.path().display()
                );
                Ok(Settled::Yes)
            }
            Err(errno) => Err(self.failed("making link", name, errno)),
        }
    }

    /// Makes a file another name of the one in `.links`, in one step.
    fn replace(&mut self, here: &Here<'_>, name: &CStr) -> Result<Settled, Error> {
        let fresh = self.staging.fresh_name();
        let dir = self.staging.dir();
        match rustix::fs::linkat(&self.links, name, dir, &*fresh, AtFlags::empty()) {
            Ok(()) => {}
            // It was the only name left, and a collector has removed it.
            Err(Errno::NOENT) => return Ok(Settled::No),
            // Tens of thousands of names, which the empty file has soon.
            Err(Errno::MLINK) => {
                if here.stat.st_size > 0 {
                    let path = self.path_of(name);
                    tracing::info!("'{}' has maximum number of links", path.display());
                }
                return Ok(Settled::Yes);
            }
            Err(errno) => return Err(self.failed("linking to", name, errno)),
        }
        let renamed = self
            .open_parent(here)
            .and_then(|()| rustix::fs::renameat(dir, &*fresh, here.parent, here.name));
        match renamed {
            Ok(()) => {
                self.n_linked += 1;
                self.freed_bytes += u64::try_from(here.stat.st_size).unwrap_or(0);
                Ok(Settled::Yes)
            }
            Err(errno) => {
                self.staging.delete(&fresh);
                // Some file systems count one more name while they rename.
                if errno == Errno::MLINK {
                    return Ok(Settled::Yes);
                }
                Err(here.failed("replacing", errno))
            }
        }
    }

    /// Makes the directory that has the file writable; above the tree's root it is ours anyway.
    fn open_parent(&mut self, here: &Here<'_>) -> Result<(), Errno> {
        match self.opened.last_mut() {
            Some(is_open) if !*is_open => {
                *is_open = true;
                rustix::fs::fchmod(here.parent, Mode::from_raw_mode(0o755))
            }
            _ => Ok(()),
        }
    }

    fn path_of(&self, name: &CStr) -> PathBuf {
        self.links_path.join(&*name.to_string_lossy())
    }

    fn failed(&self, operation: &'static str, name: &CStr, errno: Errno) -> Error {
        Error::file(operation, self.path_of(name), errno)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
