//! A directory of ours inside the store directory, on the same disk and out of everybody's reach:
//! copies are made in it before they have a name, and trash waits in it to be deleted.
//!
//! It has the name of a store path and is a temporary root, as what is in use is to every garbage
//! collector; Nix 2.8 deletes anything with another kind of name, `tmp-*` too. It is locked besides:
//! what a dead process has left is deleted at the next start, or by a collector.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use store_model::{Hash, HashAlgorithm, StorePath};

use crate::Error;
use crate::deletion::remove_tree;
use crate::ingest::place;
use crate::layout::Layout;
use crate::roots::TempRoots;

/// Names of the directories of Nix, and of older programs.
const PREFIXES: [&[u8]; 2] = [b"tmp-", b".tmp-"];

/// What the names of ours end with, after a hash part.
pub(crate) const NAME: &str = "goalctl-tmp";

/// How many names may be taken before we think that somebody takes them on purpose.
const MAX_TAKEN: u64 = 10_000;

/// The directory, removed with everything in it when the value is dropped.
#[derive(Debug)]
pub(crate) struct Staging {
    layout: Arc<Layout>,
    name: CString,
    dir: OwnedFd,
    n_names: AtomicU64,
}

impl Staging {
    /// Makes the directory.
    ///
    /// # Errors
    /// It cannot be made or locked, or the collector cannot be told of it.
    pub(crate) fn open(layout: Arc<Layout>, roots: &mut TempRoots) -> Result<Self, Error> {
        for n_taken in 0..MAX_TAKEN {
            let path = choose_path(n_taken)?;
            let name = c_name(path.base_name());
            if is_there(&layout, &name) {
                continue;
            }
            // Before it is there: a collector would find it at once.
            roots.keep(&path)?;
            if let Some(dir) = make_locked(&layout, &name)? {
                return Ok(Self {
                    layout,
                    name,
                    dir,
                    n_names: AtomicU64::new(0),
                });
            }
        }
        Err(Error::file(
            "making a directory in",
            &layout.paths.real_store_dir,
            Errno::EXIST,
        ))
    }

    /// Returns the directory.
    pub(crate) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Returns a name in it that nobody else has been given.
    pub(crate) fn fresh_name(&self) -> CString {
        let n_names = self.n_names.fetch_add(1, Ordering::Relaxed);
        c_name(&n_names.to_string())
    }

    /// Returns the path of a name in it, for messages.
    pub(crate) fn path_of(&self, name: &CStr) -> PathBuf {
        let dir = self.layout.paths.real_store_dir.join(&*lossy(&self.name));
        dir.join(&*lossy(name))
    }

    /// Returns where an object is, for messages.
    pub(crate) fn real_path(&self, path: &StorePath) -> PathBuf {
        self.layout.real_path(path)
    }

    /// Takes an object out of the store directory, at once whatever its size. Returns its name here,
    /// or `None` if there was no such object. `path` is for messages.
    ///
    /// # Errors
    /// It cannot be moved.
    pub(crate) fn take_out(&self, name: &CStr, path: &Path) -> Result<Option<CString>, Error> {
        let trash = self.fresh_name();
        let moved = place::rename((self.layout.store.as_fd(), name), (self.dir(), &trash));
        match moved {
            Ok(()) => Ok(Some(trash)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::file("removing", path, errno)),
        }
    }

    /// Deletes something here. A failure is only reported: the next start tries again.
    pub(crate) fn delete(&self, name: &CStr) {
        if let Err(error) = remove_tree(self.dir(), name, &self.path_of(name)) {
            tracing::warn!("{error}");
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        let path = self.layout.paths.real_store_dir.join(&*lossy(&self.name));
        if let Err(error) = remove_tree(self.layout.store.as_fd(), &self.name, &path) {
            tracing::warn!("{error}");
        }
    }
}

/// Returns one of the paths that this process may give to its directories.
fn choose_path(n_taken: u64) -> Result<StorePath, Error> {
    let text = format!("{NAME}:{}:{n_taken}", std::process::id());
    let digest = Hash::digest(HashAlgorithm::Sha1, text.as_bytes());
    let mut digits = [0; 20];
    digits.copy_from_slice(digest.as_bytes());
    StorePath::from_digest(&digits, NAME).map_err(|source| Error::Name {
        name: NAME.to_owned(),
        source: Box::new(source),
    })
}

fn is_there(layout: &Layout, name: &CStr) -> bool {
    rustix::fs::statat(&layout.store, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Makes and locks a directory; `None` if the name is taken, or was taken from us.
fn make_locked(layout: &Layout, name: &CStr) -> Result<Option<OwnedFd>, Error> {
    let failed = |errno| Error::file("making a directory in", &layout.paths.real_store_dir, errno);
    match rustix::fs::mkdirat(&layout.store, name, Mode::RWXU) {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(None),
        Err(errno) => return Err(failed(errno)),
    }
    // A garbage collector may find it before it is locked, and delete it.
    let Ok(dir) = open_dir(layout, name) else {
        return Ok(None);
    };
    if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
        return Ok(None);
    }
    let stat = rustix::fs::fstat(&dir).map_err(failed)?;
    let is_ours = stat.st_uid == layout.owner_uid && stat.st_mode & 0o777 == 0o700;
    match rustix::fs::statat(&layout.store, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) if is_ours && crate::tree::is_same(&named, &stat) => Ok(Some(dir)),
        _ => Ok(None),
    }
}

fn open_dir(layout: &Layout, name: &CStr) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(
        &layout.store,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Deletes the directories of processes that are no more: those that nobody has locked.
///
/// # Errors
/// The store directory cannot be read.
pub(crate) fn remove_debris(layout: &Layout) -> Result<(), Error> {
    let failed = |errno| {
        Error::file(
            "reading store directory",
            &layout.paths.real_store_dir,
            errno,
        )
    };
    for listed in rustix::fs::Dir::read_from(&layout.store).map_err(failed)? {
        let listed = listed.map_err(failed)?;
        let name = listed.file_name();
        let is_nixs = PREFIXES
            .iter()
            .any(|prefix| name.to_bytes().starts_with(prefix));
        if !is_nixs && !name.to_bytes().ends_with(NAME.as_bytes()) {
            continue;
        }
        let Ok(dir) = open_dir(layout, name) else {
            continue;
        };
        // An object may have such a name, but never such a mode.
        let is_private = rustix::fs::fstat(&dir).is_ok_and(|stat| stat.st_mode & 0o777 == 0o700);
        if !is_nixs && !is_private {
            continue;
        }
        if rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let path = layout.paths.real_store_dir.join(&*lossy(name));
        tracing::debug!(
            "deleting '{}', which a dead process has left",
            path.display()
        );
        if let Err(error) = remove_tree(layout.store.as_fd(), name, &path) {
            tracing::warn!("{error}");
        }
    }
    Ok(())
}

/// Makes a name for a system call; ours have no NUL.
pub(crate) fn c_name(name: &str) -> CString {
    CString::new(name).unwrap_or_default()
}

fn lossy(name: &CStr) -> impl std::ops::Deref<Target = Path> + use<> {
    Box::<Path>::from(PathBuf::from(name.to_string_lossy().into_owned()))
}
