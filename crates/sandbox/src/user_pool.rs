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
    start_id: u32,
    n_users: u32,
}

/// A user that nobody else runs builders as while this lives.
#[derive(Debug)]
pub(crate) struct BuildUser {
    /// The uid, which is also the gid of the group that has no other member.
    pub(crate) uid: u32,
    /// Held for its lock.
    _lock: OwnedFd,
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
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::RUSR | Mode::WUSR;
            let lock = rustix::fs::openat(&self.directory, name.as_str(), flags, mode)
                .map_err(Error::file("opening the lock file", self.path.join(&name)))?;
            if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
                continue;
            }
            let offset = slot_idx * IDS_PER_USER;
            if let Some(uid) = self.start_id.checked_add(offset).filter(|uid| *uid != 0) {
                return Ok(BuildUser { uid, _lock: lock });
            }
        }
        Err(Error::NoFreeUser {
            start_id: self.start_id,
            n_users: self.n_users,
        })
    }
}
