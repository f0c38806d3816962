//! A user of its own for each running builder.
//!
//! Where goalctl is root a builder never has its uid, nor that of another builder: uids are taken
//! from a range that belongs to no account, 65,536 apart, and locked by files that Nix's
//! `auto-allocate-uids` locks too, so both programs may build at once.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, Mode, OFlags};
use store_model::Settings;

use crate::Error;

/// The distance of two users, so that each could have a range of sub-users.
const IDS_PER_USER: u32 = 1 << 16;

/// Knows the range.
#[derive(Debug)]
pub(crate) struct UserPool {
    directory: OwnedFd,
    path: PathBuf,
    /// Lock files of the whole machine: two stores know nothing of each other's.
    machine: Option<OwnedFd>,
    start_id: u32,
    n_users: u32,
}

/// Where the machine's lock files are. Only root can make it, and it goes with the next boot.
const MACHINE_DIRECTORY: &str = "/run/goalctl-users";

/// A user that nobody else runs builders as while this lives.
#[derive(Debug)]
pub(crate) struct BuildUser {
    /// The uid, which is also the gid of the group that has no other member.
    pub(crate) uid: u32,
    /// Held for their locks.
    _locks: (OwnedFd, Option<OwnedFd>),
}

impl UserPool {
    /// Opens the directory of lock files below the state directory.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub(crate) fn open(state_dir: &std::path::Path, settings: &Settings) -> Result<Self, Error> {
        let path = state_dir.join("userpool2");
        std::fs::create_dir_all(&path)
            .map_err(Error::file("making the directory of build users", &path))?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty())
            .map_err(Error::file("opening the directory of build users", &path))?;
        Ok(Self {
            directory,
            path,
            machine: open_machine_directory(),
            start_id: settings.start_id,
            n_users: settings.id_count / IDS_PER_USER,
        })
    }

    /// Takes the first user that nobody has.
    ///
    /// # Errors
    /// All are taken, or a lock file is not one.
    pub(crate) fn acquire(&self) -> Result<BuildUser, Error> {
        for slot_idx in 0..self.n_users {
            let name = format!("slot-{slot_idx}");
            let Some(lock) = try_lock(&self.directory, &name)
                .map_err(Error::file("opening the lock file", self.path.join(&name)))?
            else {
                continue;
            };
            let offset = slot_idx * IDS_PER_USER;
            let Some(uid) = self.start_id.checked_add(offset).filter(|uid| *uid != 0) else {
                continue;
            };
            let machine_lock = match &self.machine {
                None => None,
                Some(machine) => {
                    let path = std::path::Path::new(MACHINE_DIRECTORY).join(uid.to_string());
                    match try_lock(machine, &uid.to_string())
                        .map_err(Error::file("opening the lock file", path))?
                    {
                        None => continue,
                        taken => taken,
                    }
                }
            };
            return Ok(BuildUser {
                uid,
                _locks: (lock, machine_lock),
            });
        }
        Err(Error::NoFreeUser {
            start_id: self.start_id,
            n_users: self.n_users,
        })
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

/// Opens a lock file and takes its lock; `None` if somebody has it.
fn try_lock(directory: &OwnedFd, name: &str) -> Result<Option<OwnedFd>, rustix::io::Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let lock = rustix::fs::openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?;
    let operation = FlockOperation::NonBlockingLockExclusive;
    Ok(rustix::fs::flock(&lock, operation).is_ok().then_some(lock))
}
