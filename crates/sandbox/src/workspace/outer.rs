//! A directory that only the store's owner passes, locked while it is in use.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;

use crate::Error;
use crate::remove_tree::remove_tree;

/// Who owns what the builder may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// A directory in which others are made.
#[derive(Debug, Clone)]
pub(super) struct Parent {
    pub(super) directory: Arc<OwnedFd>,
    pub(super) path: PathBuf,
}

/// A locked directory. It is deleted when this is dropped.
#[derive(Debug)]
pub(super) struct Outer {
    pub(super) directory: OwnedFd,
    parent: Parent,
    name: CString,
    pub(super) path: PathBuf,
    stays: bool,
}

impl Parent {
    /// Opens it.
    pub(super) fn open(path: PathBuf, operation: &'static str) -> Result<Self, Error> {
        let directory =
            open_directory(rustix::fs::CWD, &path).map_err(Error::file(operation, &path))?;
        Ok(Self {
            directory: Arc::new(directory),
            path,
        })
    }
}

impl Outer {
    /// Makes a directory under the first free name and locks it.
    pub(super) fn create(parent: &Parent, name: impl Fn(u64) -> String) -> Result<Self, Error> {
        let mut n_taken = 0;
        loop {
            let name = name(n_taken);
            let path = parent.path.join(&name);
            let failed = Error::file::<Errno>("making the directory", &path);
            let c_name = c_name(&name)?;
            match rustix::fs::mkdirat(&parent.directory, &c_name, Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    n_taken += 1;
                    continue;
                }
                Err(errno) => return Err(failed(errno)),
            }
            let lock = || {
                let directory = open_directory(&parent.directory, &c_name)?;
                rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
                Ok(directory)
            };
            return Ok(Self {
                directory: lock().map_err(failed)?,
                parent: parent.clone(),
                name: c_name,
                path,
                stays: false,
            });
        }
    }

    /// Moves it to the first free name of `parent`. It stays locked, and open.
    pub(super) fn move_to(
        &mut self,
        parent: &Parent,
        name: impl Fn(u64) -> String,
    ) -> Result<(), Error> {
        let mut n_taken = 0;
        loop {
            let name = name(n_taken);
            let path = parent.path.join(&name);
            let c_name = c_name(&name)?;
            let moved = rustix::fs::renameat_with(
                &self.parent.directory,
                &self.name,
                &parent.directory,
                &c_name,
                RenameFlags::NOREPLACE,
            );
            match moved {
                Ok(()) => {
                    self.parent = parent.clone();
                    self.name = c_name;
                    self.path = path;
                    return Ok(());
                }
                Err(Errno::EXIST) => n_taken += 1,
                Err(errno) => return Err(Error::file("moving a directory to", path)(errno)),
            }
        }
    }

    /// Lets it be, under the name that it has.
    pub(super) fn leave(mut self) -> PathBuf {
        self.stays = true;
        std::mem::take(&mut self.path)
    }

    /// Makes a directory in this one with exactly these permissions.
    pub(super) fn make(
        &self,
        name: &str,
        mode: u32,
        owner: Option<Owner>,
    ) -> Result<OwnedFd, Error> {
        let attempt = || {
            rustix::fs::mkdirat(&self.directory, name, Mode::RWXU)?;
            let directory = open_directory(&self.directory, name)?;
            if let Some(owner) = owner {
                give_to(&directory, owner)?;
            }
            // The umask does not count here, and the owner's change would clear bits.
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))?;
            Ok(directory)
        };
        attempt().map_err(Error::file::<Errno>(
            "making the directory",
            self.path.join(name),
        ))
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        if self.stays {
            return;
        }
        if let Err(error) = remove_tree(&self.parent.directory, &self.name) {
            tracing::warn!("deleting '{}': {error}", self.path.display());
        }
    }
}

/// What a builder could have changed of a directory beyond what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Traits {
    mode: u32,
    uid: u32,
    gid: u32,
    flags: u32,
    has_attributes: bool,
}

impl Traits {
    /// Looks at a directory.
    pub(super) fn of(directory: &OwnedFd) -> Result<Self, Errno> {
        // Set by the kernel when a directory has grown, which is no concern here.
        const INDEXED: u32 = 0x1000;
        let stat = rustix::fs::fstat(directory)?;
        let mut names = [0; 1024];
        let names = match rustix::fs::flistxattr(directory, &mut names) {
            Ok(length) => &names[..length],
            Err(Errno::OPNOTSUPP) => &[],
            // More than a security module's label is more than we made.
            Err(Errno::RANGE) => b"too many".as_slice(),
            Err(errno) => return Err(errno),
        };
        let flags = match rustix::fs::ioctl_getflags(directory) {
            Ok(flags) => flags.bits() & !INDEXED,
            // A file system that has no such flags.
            Err(_) => 0,
        };
        Ok(Self {
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
            flags,
            has_attributes: names
                .split(|byte| *byte == 0)
                .any(|name| !name.is_empty() && !name.starts_with(b"security.")),
        })
    }
}

pub(super) fn give_to(file: impl AsFd, owner: Owner) -> Result<(), Errno> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::fchown(file, Some(uid), Some(gid))
}

pub(super) fn open_directory(
    parent: impl AsFd,
    path: impl rustix::path::Arg,
) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, path, flags, Mode::empty())
}

pub(super) fn make_all(path: &Path, operation: &'static str) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(Error::file(operation, path))
}

fn c_name(name: &str) -> Result<CString, Error> {
    CString::new(name).map_err(|_| Error::NulByte {
        what: "the name of a directory".to_owned(),
    })
}
