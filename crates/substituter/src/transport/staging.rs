//! A directory of ours inside a cache: files are made in it before they have a name there.
//!
//! It is locked as long as its program lives, so that the next copy can tell what a dead one has left
//! and delete that; nothing else in a cache is ever deleted. No reader of a cache looks for such a name.

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags};
use rustix::io::Errno;

/// What the names of such directories begin with.
const PREFIX: &str = ".goalctl-upload-";

/// How many names may be taken, or directories vanish, before we think that somebody does it on purpose.
const MAX_TRIES: usize = 100;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The directory, deleted with everything in it when the value is dropped, if not before.
#[derive(Debug)]
pub(super) struct Staging {
    root: OwnedFd,
    root_path: PathBuf,
    name: String,
    dir: File,
    n_names: AtomicU64,
    is_removed: AtomicBool,
}

impl Staging {
    /// Deletes what dead programs have left in the cache at `root`, and makes a directory.
    ///
    /// # Errors
    /// It cannot be made.
    pub(super) fn open(root_path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, root_path, flags, Mode::empty())?;
        delete_leftovers(root.as_fd())?;
        for _ in 0..MAX_TRIES {
            let random = RandomState::new().hash_one(());
            let name = format!("{PREFIX}{}-{random:016x}", std::process::id());
            match rustix::fs::mkdirat(&root, &name, Mode::RWXU) {
                Err(Errno::EXIST) => continue,
                made => made?,
            }
            if let Some(dir) = lock(root.as_fd(), &name, MissingLocks::Accepted)? {
                return Ok(Self {
                    root,
                    root_path: root_path.to_owned(),
                    name,
                    dir: dir.into(),
                    n_names: AtomicU64::new(0),
                    is_removed: AtomicBool::new(false),
                });
            }
        }
        Err(Errno::EXIST)
    }

    /// Returns the directory.
    pub(super) fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Returns a name in it that nobody else has been given.
    pub(super) fn fresh_name(&self) -> String {
        self.n_names.fetch_add(1, Ordering::Relaxed).to_string()
    }

    /// Returns the address of a file in it, for messages.
    pub(super) fn address(&self, name: &str) -> String {
        let path = self.root_path.join(&self.name).join(name);
        format!("file://{}", path.display())
    }

    /// Deletes a file in it, which may be gone with the directory.
    pub(super) fn delete(&self, name: &str) {
        match rustix::fs::unlinkat(&self.dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => tracing::warn!("cannot delete '{}': {errno}", self.address(name)),
        }
    }

    /// Deletes the directory; nothing can be made in it any more.
    pub(super) fn remove(&self) {
        if self.is_removed.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Err(errno) = delete(self.root.as_fd(), &self.name, self.dir.as_fd()) {
            tracing::warn!("cannot delete '{}': {errno}", self.address(""));
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        self.remove();
    }
}

/// What a file system without locks means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MissingLocks {
    /// Nobody can tell whether the directory is ours, so nobody will delete it.
    Accepted,
    /// Nobody can tell whose it is.
    Refused,
}

/// Opens and locks a directory; `None` if somebody else has it, or it is gone by now.
fn lock(
    root: BorrowedFd<'_>,
    name: &str,
    missing_locks: MissingLocks,
) -> Result<Option<OwnedFd>, Errno> {
    let dir = match rustix::fs::openat(root, name, DIRECTORY, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    match rustix::fs::flock(&dir, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(errno) if missing_locks == MissingLocks::Refused => return Err(errno),
        Err(_) => return Ok(Some(dir)),
    }
    // Whoever had the lock may have deleted it.
    let locked = rustix::fs::fstat(&dir)?;
    match rustix::fs::statat(root, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(named) if (named.st_dev, named.st_ino) == (locked.st_dev, locked.st_ino) => {
            Ok(Some(dir))
        }
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// Deletes the directories of programs that are no more.
fn delete_leftovers(root: BorrowedFd<'_>) -> Result<(), Errno> {
    for entry in Dir::read_from(root)? {
        let entry = entry?;
        let Some(name) = entry.file_name().to_str().ok() else {
            continue;
        };
        if !name.starts_with(PREFIX) {
            continue;
        }
        let deleted = match lock(root, name, MissingLocks::Refused) {
            Ok(None) => continue,
            Ok(Some(dir)) => delete(root, name, dir.as_fd()),
            Err(errno) => Err(errno),
        };
        if let Err(errno) = deleted {
            tracing::warn!("cannot delete what a copy has left, '{name}': {errno}");
        }
    }
    Ok(())
}

/// Deletes a directory with its files; there are no others below.
fn delete(root: BorrowedFd<'_>, name: &str, dir: BorrowedFd<'_>) -> Result<(), Errno> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            rustix::fs::unlinkat(dir, entry.file_name(), AtFlags::empty())?;
        }
    }
    rustix::fs::unlinkat(root, name, AtFlags::REMOVEDIR)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::fs;

    use super::*;

    fn names(root: &Path) -> Vec<String> {
        let names = fs::read_dir(root).unwrap();
        let mut names: Vec<String> = names
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_a_dead_copy_has_left_is_deleted_and_what_a_living_one_needs_is_not() {
        let cache = tempfile::tempdir().unwrap();
        let root = cache.path();
        let dead = format!("{PREFIX}1-dead");
        fs::create_dir(root.join(&dead)).unwrap();
        fs::write(root.join(&dead).join("0"), "half").unwrap();
        fs::write(root.join("x.narinfo"), "x").unwrap();
        let living = Staging::open(root).unwrap();
        fs::write(root.join(&living.name).join("0"), "half").unwrap();
        let other = Staging::open(root).unwrap();
        let mut expected = [living.name.clone(), other.name.clone(), "x.narinfo".into()];
        expected.sort();
        assert_eq!(names(root), expected);
        drop((living, other));
        assert_eq!(names(root), ["x.narinfo"]);
    }

    #[test]
    fn what_only_looks_like_ours_is_left_alone() {
        let cache = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        fs::write(elsewhere.path().join("precious"), "x").unwrap();
        let link = format!("{PREFIX}2-link");
        std::os::unix::fs::symlink(elsewhere.path(), cache.path().join(&link)).unwrap();
        drop(Staging::open(cache.path()).unwrap());
        assert_eq!(names(cache.path()), [link]);
        assert!(elsewhere.path().join("precious").exists());
    }
}
