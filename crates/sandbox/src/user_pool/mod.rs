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
type FileLocks = (OwnedFd, Option<OwnedFd>);

/// Where the lock files are.
#[derive(Debug)]
struct Locks {
    directory: OwnedFd,
    path: PathBuf,
    /// Lock files of the whole machine: two stores know nothing of each other's.
    machine: Option<OwnedFd>,
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
        let path = state_dir.join(directory);
        std::fs::create_dir_all(&path)
            .map_err(Error::file("making the directory of build users", &path))?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(Error::file("opening the directory of build users", &path))?;
        Ok(Self {
            accounts,
            origin,
            locks: Arc::new(Locks {
                directory,
                path,
                machine: open_machine_directory(),
            }),
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
    /// Takes the locks of a user; `None` if somebody has one.
    fn try_take(&self, account: &Account) -> Result<Option<FileLocks>, Error> {
        let own = self.open(account)?;
        if !is_locked_now(&own) {
            return Ok(None);
        }
        match self.open_machine(account)? {
            None => Ok(Some((own, None))),
            Some(machine) => Ok(is_locked_now(&machine).then_some((own, Some(machine)))),
        }
    }

    /// Returns when both locks were free for a moment.
    fn await_release(&self, account: &Account) -> Result<(), Error> {
        let operation = FlockOperation::LockExclusive;
        for file in [Some(self.open(account)?), self.open_machine(account)?]
            .iter()
            .flatten()
        {
            rustix::io::retry_on_intr(|| rustix::fs::flock(file, operation))
                .map_err(Error::file("locking", self.path.join(&account.lock_name)))?;
        }
        Ok(())
    }

    fn open(&self, account: &Account) -> Result<OwnedFd, Error> {
        let name = &account.lock_name;
        open_lock(&self.directory, name)
            .map_err(Error::file("opening the lock file", self.path.join(name)))
    }

    fn open_machine(&self, account: &Account) -> Result<Option<OwnedFd>, Error> {
        let name = account.uid.to_string();
        let path = Path::new(MACHINE_DIRECTORY).join(&name);
        self.machine
            .as_ref()
            .map(|machine| open_lock(machine, &name))
            .transpose()
            .map_err(Error::file("opening the lock file", path))
    }
}

/// Opens the machine's lock directory, making it if need be. Best effort: without a `/run` the
/// store's own locks remain.
fn open_machine_directory() -> Option<OwnedFd> {
    // Somebody else may have made it; only an owner's own directory is trusted below.
    let _made = rustix::fs::mkdir(MACHINE_DIRECTORY, Mode::RWXU);
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::open(MACHINE_DIRECTORY, flags, Mode::empty()).ok()?;
    let owner = rustix::fs::fstat(&directory).ok()?.st_uid;
    (owner == rustix::process::geteuid().as_raw()).then_some(directory)
}

fn open_lock(directory: &OwnedFd, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)
}

fn is_locked_now(file: &OwnedFd) -> bool {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
