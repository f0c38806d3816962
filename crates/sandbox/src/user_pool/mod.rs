//! A user of its own for each running builder.
//!
//! Where goalctl is root a builder never has its uid, nor that of another builder. Users come from
//! the group of build users, or else from a range of ids that belongs to no account. Each is locked
//! by the file that Nix locks for it, so both programs may build at once.
//!
//! A build that finds all users taken waits: for another build of this process on a condition
//! variable, for another process on a thread that is blocked in flock(2). Nobody polls.

mod accounts;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use store_model::Settings;

use self::accounts::Account;
use crate::Error;

/// Where lock files of the whole machine are. Only root can make it, and it goes with the next
/// boot.
const MACHINE_DIRECTORY: &str = "/run/goalctl-users";

/// Where Nix has its lock files, whichever store it works on.
const NIX_STATE_DIRECTORY: &str = "/nix/var/nix";

/// Knows all users that builders may have, and who has them.
#[derive(Debug)]
pub(crate) struct UserPool {
    accounts: Vec<Account>,
    /// Whether other programs know these users, and may have left processes of them running.
    pub(crate) origin: Origin,
    locks: Arc<Locks>,
    seats: Arc<Seats>,
}

/// Where users come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// They are members of `build-users-group`, which is the group of all of them.
    Group,
    /// They are numbers of a range, each the only member of its group.
    Range,
}

/// A user that nobody else runs builders as while this lives.
#[derive(Debug)]
pub(crate) struct BuildUser {
    /// The user.
    pub(crate) uid: u32,
    /// Its group.
    pub(crate) gid: u32,
    /// Groups that it is in besides; never given to a sandboxed builder.
    pub(crate) supplementary_gids: Vec<u32>,
    // Dropped in this order: whoever is woken finds the locks free.
    _file_locks: FileLocks,
    _seat: Seat,
}

/// What a waiting build is woken by when nobody wants it any more.
#[derive(Debug, Default)]
pub(crate) struct Withdrawal(AtomicBool);

/// The open lock files of one user.
type FileLocks = Vec<OwnedFd>;

/// Where the lock files are: the store's, and those of the whole machine, for two stores know
/// nothing of each other's.
#[derive(Debug)]
struct Locks(Vec<LockDirectory>);

/// A directory of lock files.
#[derive(Debug)]
struct LockDirectory {
    directory: OwnedFd,
    path: PathBuf,
    names: LockNames,
}

/// What lock files are called.
#[derive(Debug, Clone, Copy)]
enum LockNames {
    /// As Nix calls them.
    AsNix,
    /// By their users' numbers.
    Numbers,
}

/// Who has which user, by index.
#[derive(Debug, Default)]
struct Seats {
    taken: Mutex<Taken>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Taken {
    /// By builds of this process.
    here: BTreeSet<usize>,
    /// By other processes; a thread waits for each.
    elsewhere: BTreeSet<usize>,
}

/// A claim on one user within this process.
#[derive(Debug)]
struct Seat {
    idx: usize,
    seats: Arc<Seats>,
}

impl UserPool {
    /// Opens the pool that the settings describe.
    ///
    /// # Errors
    /// The group has a member that no builder may be; the directory of lock files cannot be made.
    pub(crate) fn open(state_dir: &Path, settings: &Settings) -> Result<Self, Error> {
        let members = if settings.auto_allocate_uids {
            Vec::new()
        } else {
            accounts::of_group(&settings.build_users_group)?
        };
        let (origin, accounts, directory) = if members.is_empty() {
            (Origin::Range, accounts::of_range(settings), "userpool2")
        } else {
            (Origin::Group, members, "userpool")
        };
        Ok(Self {
            accounts,
            origin,
            locks: Arc::new(Locks::open(state_dir, directory)?),
            seats: Arc::default(),
        })
    }

    /// Takes a user that nobody has; waits for one if need be, after saying so through `wait`.
    ///
    /// # Errors
    /// A lock file cannot be opened; the build was given up.
    pub(crate) fn acquire(
        &self,
        withdrawal: &Withdrawal,
        wait: impl FnOnce(),
    ) -> Result<BuildUser, Error> {
        let mut wait = Some(wait);
        let mut taken = self.seats.lock();
        loop {
            if withdrawal.0.load(Ordering::Acquire) {
                return Err(Error::GivenUp);
            }
            for (idx, account) in self.accounts.iter().enumerate() {
                if taken.here.contains(&idx) || taken.elsewhere.contains(&idx) {
                    continue;
                }
                let Some(file_locks) = self.locks.try_take(account)? else {
                    taken.elsewhere.insert(idx);
                    self.watch(idx, account);
                    continue;
                };
                taken.here.insert(idx);
                return Ok(BuildUser {
                    uid: account.uid,
                    gid: account.gid,
                    supplementary_gids: account.supplementary_gids.clone(),
                    _file_locks: file_locks,
                    _seat: Seat {
                        idx,
                        seats: Arc::clone(&self.seats),
                    },
                });
            }
            if let Some(wait) = wait.take() {
                wait();
            }
            let changed = self.seats.changed.wait(taken);
            taken = changed.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Wakes a build that waits and is no longer wanted.
    pub(crate) fn withdraw(&self, withdrawal: &Withdrawal) {
        // With the lock, or it could be looked at before and slept on after.
        let _taken = self.seats.lock();
        withdrawal.0.store(true, Ordering::Release);
        self.seats.changed.notify_all();
    }

    /// Has a thread wait until another process lets go of a user.
    fn watch(&self, idx: usize, account: &Account) {
        let (locks, seats) = (Arc::clone(&self.locks), Arc::clone(&self.seats));
        let account = account.clone();
        let waiter = move || {
            if let Err(error) = locks.await_release(&account) {
                tracing::warn!("waiting for the build user {}: {error}", account.uid);
            }
            seats.lock().elsewhere.remove(&idx);
            seats.changed.notify_one();
        };
        if let Err(error) = thread::Builder::new()
            .name("user-lock".to_owned())
            .spawn(waiter)
        {
            // The others, and those of this process, still come free.
            tracing::warn!("starting a thread that waits for a build user: {error}");
        }
    }
}

impl Seats {
    /// Nothing is half-done between any two changes, so a panic elsewhere leaves it good.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.lock().here.remove(&self.idx);
        self.seats.changed.notify_one();
    }
}

impl Locks {
    /// Opens the directory of that name in the store's state, and the machine's.
    fn open(state_dir: &Path, name: &str) -> Result<Self, Error> {
        let path = state_dir.join(name);
        std::fs::create_dir_all(&path)
            .map_err(Error::file("making the directory of build users", &path))?;
        let own = LockDirectory::open(&path, LockNames::AsNix)
            .map_err(Error::file("opening the directory of build users", &path))?;
        // Best effort: without these the store's own locks remain.
        let of_nix = Path::new(NIX_STATE_DIRECTORY).join(name);
        let is_nix_here = Path::new(NIX_STATE_DIRECTORY).is_dir();
        let of_machine = [
            (of_nix.as_path(), LockNames::AsNix, is_nix_here),
            (Path::new(MACHINE_DIRECTORY), LockNames::Numbers, true),
        ];
        let mut found = vec![own];
        for (path, names, _) in of_machine.into_iter().filter(|(.., is_used)| *is_used) {
            let _made = rustix::fs::mkdir(path, Mode::RWXU);
            // Somebody else may have made it; only an owner's own directory is trusted.
            if let Ok(directory) = LockDirectory::open(path, names)
                && directory.is_own()
                // A file cannot be locked twice.
                && found.iter().all(|known| !known.is_same(&directory))
            {
                found.push(directory);
            }
        }
        Ok(Self(found))
    }

    /// Takes the locks of a user; `None` if somebody has one.
    fn try_take(&self, account: &Account) -> Result<Option<FileLocks>, Error> {
        let mut taken = Vec::with_capacity(self.0.len());
        for directory in &self.0 {
            let file = directory.open_lock(account)?;
            if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Ok(None);
            }
            taken.push(file);
        }
        Ok(Some(taken))
    }

    /// Returns when each lock was free for a moment.
    fn await_release(&self, account: &Account) -> Result<(), Error> {
        for directory in &self.0 {
            let file = directory.open_lock(account)?;
            let operation = FlockOperation::LockExclusive;
            rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation)).map_err(
                Error::file("locking", directory.path.join(directory.name_of(account))),
            )?;
        }
        Ok(())
    }
}

impl LockDirectory {
    fn open(path: &Path, names: LockNames) -> Result<Self, Errno> {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Self {
            directory: rustix::fs::open(path, flags, Mode::empty())?,
            path: path.to_owned(),
            names,
        })
    }

    fn is_own(&self) -> bool {
        let own = rustix::process::geteuid().as_raw();
        rustix::fs::fstat(&self.directory).is_ok_and(|stat| stat.st_uid == own)
    }

    fn is_same(&self, other: &Self) -> bool {
        let identity = |directory: &Self| {
            let stat = rustix::fs::fstat(&directory.directory).ok()?;
            Some((stat.st_dev, stat.st_ino))
        };
        identity(self) == identity(other)
    }

    fn name_of(&self, account: &Account) -> String {
        match self.names {
            LockNames::AsNix => account.lock_name.clone(),
            LockNames::Numbers => account.uid.to_string(),
        }
    }

    fn open_lock(&self, account: &Account) -> Result<OwnedFd, Error> {
        let name = self.name_of(account);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.directory, &name, flags, Mode::RUSR | Mode::WUSR)
            .map_err(Error::file("opening the lock file", self.path.join(name)))
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
