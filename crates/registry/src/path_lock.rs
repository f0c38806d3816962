//! Locks on store paths, by the protocol that every program on the store follows.
//!
//! A lock is a `flock(2)` on `<store>/<base name>.lock`. Whoever releases it unlinks the file and
//! then writes a byte into it: a waiter that gets the lock of a file with contents has got a stale
//! one, and opens the name again. The kernel wakes the waiters, so nobody polls.
//!
//! In unsandboxed builds the store directory is writable by builders, so the name may lead
//! anywhere: it is opened without following links, must be a regular file of ours, and is only ever
//! written to when nothing else leads to it (SECURITY X02).

use std::collections::{BTreeSet, HashMap};
use std::ffi::CString;
use std::fs;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use store_model::StorePath;
use tokio::sync::oneshot;

use crate::layout::Layout;
use crate::messages::{LockAttempt, LockHolder, OutputLocks};
use crate::workers::WeakWorkQueue;
use crate::{Error, tree, workers};

/// How often a lock may turn out to be stale before we suspect that somebody plays with us.
const MAX_STALE: usize = 1_000;

/// The locks of one store, as this process sees them.
#[derive(Debug, Clone)]
pub(crate) struct PathLocker {
    layout: Arc<Layout>,
    table: Arc<Mutex<Table>>,
    /// The thread that lets go of locks.
    releasing: WeakWorkQueue<()>,
}

/// Who holds and who waits, in this process.
#[derive(Debug, Default)]
struct Table {
    /// Paths whose locks we hold, and who wants to know when we no longer do.
    held: HashMap<StorePath, Vec<Waiter>>,
    /// Paths whose locks others hold; each has one thread that waits for it.
    awaited: HashMap<StorePath, Vec<Waiter>>,
}

type Waiter = oneshot::Sender<Result<(), Error>>;

/// One lock that we hold. Dropping it frees it, which may wait for a disk.
#[derive(Debug)]
struct PathLock {
    layout: Arc<Layout>,
    table: Arc<Mutex<Table>>,
    path: StorePath,
    file: OwnedFd,
}

/// What [`OutputLocks`] owns. Dropping it has the locks freed on the thread that takes them, as its
/// owner may be an actor; in place if that thread is gone or has too much to do.
#[derive(Debug)]
pub(crate) struct HeldLocks {
    locks: Vec<PathLock>,
    releasing: WeakWorkQueue<()>,
}

impl PathLocker {
    pub(crate) fn new(layout: Arc<Layout>, releasing: WeakWorkQueue<()>) -> Self {
        Self {
            layout,
            table: Arc::default(),
            releasing,
        }
    }

    /// Takes all locks in sorted order, or none. Does not wait for anybody.
    ///
    /// # Errors
    /// A lock file cannot be opened, or is something else.
    pub(crate) fn try_lock(&self, paths: BTreeSet<StorePath>) -> Result<LockAttempt, Error> {
        let mut held = HeldLocks {
            locks: Vec::with_capacity(paths.len()),
            releasing: self.releasing.clone(),
        };
        for path in paths {
            match self.try_lock_one(&path)? {
                Ok(file) => {
                    self.table().held.entry(path.clone()).or_default();
                    held.locks.push(PathLock {
                        layout: Arc::clone(&self.layout),
                        table: Arc::clone(&self.table),
                        path,
                        file,
                    });
                }
                Err(holder) => return Ok(LockAttempt::Busy { path, holder }),
            }
        }
        Ok(LockAttempt::Acquired(OutputLocks { _held: held }))
    }

    /// Removes the lock files that dead processes have left: those that nobody has locked.
    ///
    /// # Errors
    /// The store directory cannot be read.
    pub(crate) fn remove_stale(&self) -> Result<(), Error> {
        let store = &self.layout.paths.real_store_dir;
        let failed = |errno| Error::file("reading store directory", store, errno);
        for listed in rustix::fs::Dir::read_from(&self.layout.store).map_err(failed)? {
            let listed = listed.map_err(failed)?;
            let name = listed.file_name().to_str().unwrap_or_default();
            let Some(path) = name
                .strip_suffix(".lock")
                .and_then(|path| path.parse().ok())
            else {
                continue;
            };
            // Letting go of a lock removes its file. What cannot be locked is somebody else's
            // affair: its holder's, or that of whoever wants the path.
            drop(self.try_lock(BTreeSet::from([path])));
        }
        Ok(())
    }

    /// Returns when the lock has been free for a moment.
    ///
    /// # Errors
    /// The lock file cannot be opened, or is something else; or no thread can be started.
    pub(crate) async fn wait(&self, path: &StorePath) -> Result<(), Error> {
        let (waiter, woken) = oneshot::channel();
        self.enlist(path, waiter)?;
        woken
            .await
            .unwrap_or(Err(Error::WorkerLost { name: "lock" }))
    }

    /// Puts a waiter where whoever ends the wait will find it.
    fn enlist(&self, path: &StorePath, waiter: Waiter) -> Result<(), Error> {
        let mut table = self.table();
        if let Some(waiters) = table.held.get_mut(path) {
            waiters.push(waiter);
            return Ok(());
        }
        if let Some(waiters) = table.awaited.get_mut(path) {
            waiters.push(waiter);
            return Ok(());
        }
        table.awaited.insert(path.clone(), vec![waiter]);
        drop(table);
        let locker = self.clone();
        let awaited = path.clone();
        // The thread is left to itself: nothing but the other program can end its wait.
        workers::spawn("lock", move || locker.wait_in_thread(&awaited))
            .map(drop)
            .inspect_err(|_| {
                self.table().awaited.remove(path);
            })
    }

    fn wait_in_thread(&self, path: &StorePath) {
        let freed = self.wait_until_free(path);
        let waiters = self.table().awaited.remove(path).unwrap_or_default();
        let freed = freed.map_err(Arc::new);
        for waiter in waiters {
            // A goal that was cancelled no longer listens.
            let _listener_gone = waiter.send(freed.clone().map_err(Error::Shared));
        }
    }

    /// Sleeps in the kernel until nobody holds the lock.
    fn wait_until_free(&self, path: &StorePath) -> Result<(), Error> {
        let failed = |errno| Error::file("waiting for lock", self.lock_path(path), errno);
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let name = lock_name(path);
        let file = match rustix::fs::openat(&self.layout.store, &*name, flags, Mode::empty()) {
            Ok(file) => file,
            // Its holder has removed it.
            Err(Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(self.refuse(path, errno)),
        };
        self.check(path, &rustix::fs::fstat(&file).map_err(failed)?)?;
        loop {
            // Shared, so that all who wait wake at once instead of one after the other.
            match rustix::fs::flock(&file, FlockOperation::LockShared) {
                Ok(()) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
    }

    /// Takes one lock; or says who has it.
    fn try_lock_one(&self, path: &StorePath) -> Result<Result<OwnedFd, LockHolder>, Error> {
        if self.table().held.contains_key(path) {
            return Ok(Err(LockHolder::ThisProcess));
        }
        let failed = |errno| Error::file("locking", self.lock_path(path), errno);
        let name = lock_name(path);
        for _ in 0..MAX_STALE {
            let file = self.open(path)?;
            let stat = rustix::fs::fstat(&file).map_err(failed)?;
            self.check(path, &stat)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(Err(holder_of(&stat))),
                Err(errno) => return Err(failed(errno)),
            }
            let stat = rustix::fs::fstat(&file).map_err(failed)?;
            if stat.st_nlink == 0 {
                continue;
            }
            if stat.st_size == 0 && stat.st_nlink == 1 {
                return Ok(Ok(file));
            }
            // Either it lost its name and another took it, or somebody planted a file that looks
            // stale for ever. We hold its lock, so nobody else relies on the name.
            match rustix::fs::statat(&self.layout.store, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(named) if tree::is_same(&named, &stat) => {
                    rustix::fs::unlinkat(&self.layout.store, &*name, AtFlags::empty())
                        .map_err(failed)?;
                }
                Ok(_) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(failed(errno)),
            }
        }
        Err(self.bad(path, "is replaced again and again"))
    }

    fn open(&self, path: &StorePath) -> Result<OwnedFd, Error> {
        rustix::fs::openat(
            &self.layout.store,
            &*lock_name(path),
            OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK,
            Mode::RUSR | Mode::WUSR,
        )
        .map_err(|errno| self.refuse(path, errno))
    }

    /// Refuses to lock what was put there to be written to.
    fn check(&self, path: &StorePath, stat: &Stat) -> Result<(), Error> {
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.bad(path, "is not a regular file"));
        }
        let store = rustix::fs::fstat(&self.layout.store)
            .map_err(|errno| Error::file("looking at", self.lock_path(path), errno))?;
        if stat.st_uid != self.layout.owner_uid && stat.st_uid != store.st_uid {
            return Err(self.bad(path, "belongs to somebody else"));
        }
        Ok(())
    }

    fn refuse(&self, path: &StorePath, errno: Errno) -> Error {
        match errno {
            Errno::LOOP => self.bad(path, "is a symbolic link"),
            Errno::ISDIR => self.bad(path, "is a directory"),
            Errno::NXIO => self.bad(path, "is not a regular file"),
            _ => Error::file("opening", self.lock_path(path), errno),
        }
    }

    fn bad(&self, path: &StorePath, problem: &'static str) -> Error {
        Error::BadLockFile {
            path: self.lock_path(path),
            problem,
        }
    }

    fn lock_path(&self, path: &StorePath) -> PathBuf {
        let mut name = self.layout.real_path(path).into_os_string();
        name.push(".lock");
        name.into()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        open_table(&self.table)
    }
}

fn open_table(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for HeldLocks {
    fn drop(&mut self) {
        let locks = std::mem::take(&mut self.locks);
        if let Some(queue) = self.releasing.upgrade() {
            // A job that is not taken is dropped here and now, and the locks with it.
            queue.try_submit(move |()| drop(locks));
        }
    }
}

impl Drop for PathLock {
    fn drop(&mut self) {
        let (path, name) = (&self.path, lock_name(&self.path));
        // Unlinked first: then nothing but those who wait can see the byte. If either step fails the
        // lock is free all the same, and its file is used again.
        let unlinked = rustix::fs::unlinkat(&self.layout.store, &*name, AtFlags::empty());
        if let Err(errno) = unlinked.and_then(|()| rustix::io::write(&self.file, b"d")) {
            tracing::debug!("removing the lock file of '{path}': {errno}");
        }
        // Not when the file is closed: those who are told now are to find it free.
        if let Err(errno) = rustix::fs::flock(&self.file, FlockOperation::Unlock) {
            tracing::debug!("unlocking '{path}': {errno}");
        }
        let waiters = open_table(&self.table).held.remove(path);
        for waiter in waiters.unwrap_or_default() {
            let _listener_gone = waiter.send(Ok(()));
        }
    }
}

fn lock_name(path: &StorePath) -> CString {
    // A store path has no NUL, so the fallback is never used.
    CString::new(format!("{path}.lock")).unwrap_or_default()
}

/// Looks up who holds the lock on a file.
fn holder_of(stat: &Stat) -> LockHolder {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    match find_holder(&locks, stat) {
        Some(pid) if pid == std::process::id() => LockHolder::ThisProcess,
        Some(pid) => LockHolder::Process(pid),
        None => LockHolder::Unknown,
    }
}

/// Finds the process with an exclusive `flock` on a file in the text of `/proc/locks`.
///
/// A process outside our pid namespace shows as 0 or not at all.
fn find_holder(locks: &str, stat: &Stat) -> Option<u32> {
    let file = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
        stat.st_ino
    );
    locks.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        // A waiter's line has an arrow where the holder's has the kind of lock.
        let is_lock = words.next() == Some("FLOCK");
        let mut words = words.skip(2);
        let pid = words.next()?.parse().ok()?;
        (is_lock && words.next() == Some(&file) && pid != 0).then_some(pid)
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
