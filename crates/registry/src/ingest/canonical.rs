//! Metadata as every object of a store has it: modes 0444 and 0555, modified at second 1, the
//! store's owner, nothing else.
//!
//! All of it is done on open files and on names in open directories. A builder can plant links, but
//! there is no path here that could be led astray by them.

use std::collections::HashMap;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, UTIME_OMIT, Uid};
use rustix::io::Errno;

use crate::Error;
use crate::layout::Layout;
use crate::tree::Here;

/// The modification time of everything in a store, in seconds since 1970.
pub(super) const MODIFIED: Timestamps = Timestamps {
    last_access: Timespec {
        tv_sec: 0,
        tv_nsec: UTIME_OMIT,
    },
    last_modification: Timespec {
        tv_sec: 1,
        tv_nsec: 0,
    },
};

/// Attributes that the system itself puts on files, and often lets nobody remove.
const SYSTEM_ATTRIBUTES: [&[u8]; 3] = [b"security.selinux", b"security.csm", b"system.nfs4_acl"];

/// Checks and sets the metadata of one build's outputs.
#[derive(Debug)]
pub(crate) struct Canonical {
    /// Who must own every file; `None` for anybody.
    builder_uid: Option<u32>,
    owner_uid: u32,
    owner_gid: u32,
    /// Files with several names.
    linked: HashMap<(u64, u64), Linked>,
}

/// A file with several names, some of which we have seen.
#[derive(Debug)]
struct Linked {
    n_links: u64,
    n_seen: u64,
    first: PathBuf,
}

/// Whether a file's metadata has been set under another of its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meeting {
    First,
    Again,
}

impl Canonical {
    /// Starts with the outputs of one build, whose files must all belong to `builder_uid`.
    pub(crate) fn new(layout: &Layout, builder_uid: u32) -> Self {
        Self {
            builder_uid: Some(builder_uid),
            ..Self::of_anybody(layout)
        }
    }

    /// Starts with an object that may belong to anybody: whoever runs us says that it is good.
    pub(crate) fn of_anybody(layout: &Layout) -> Self {
        Self {
            builder_uid: None,
            owner_uid: layout.owner_uid,
            owner_gid: layout.owner_gid,
            linked: HashMap::new(),
        }
    }

    /// Checks a directory and takes it over.
    ///
    /// # Errors
    /// It is not the builder's, or the kernel refuses.
    pub(crate) fn enter(&self, dir: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Error> {
        self.check_owner(here)?;
        strip_attributes(dir, |errno| stripping(here, errno))?;
        self.take_over(dir, here)?;
        // What its owner may not search, neither may we when we are not root.
        if here.stat.st_mode & 0o700 == 0o700 {
            return Ok(());
        }
        rustix::fs::fchmod(dir, Mode::RWXU)
            .map_err(|errno| here.failed("opening to its owner", errno))
    }

    /// Closes a directory after everything in it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn leave(dir: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Error> {
        rustix::fs::fchmod(dir, Mode::from_raw_mode(0o555))
            .map_err(|errno| here.failed("setting permissions of", errno))?;
        rustix::fs::futimens(dir, &MODIFIED)
            .map_err(|errno| here.failed("setting the time of", errno))
    }

    /// Checks a file or a link before anybody opens it.
    ///
    /// # Errors
    /// It is not the builder's.
    pub(crate) fn check(&mut self, here: &Here<'_>) -> Result<IsNew, Error> {
        let meeting = self.meet(here);
        if meeting == Meeting::First {
            self.check_owner(here)?;
        }
        Ok(IsNew(meeting))
    }

    /// Sets the metadata of an open file.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn set_file(
        &self,
        file: impl AsFd,
        here: &Here<'_>,
        is_new: IsNew,
    ) -> Result<(), Error> {
        if is_new.0 == Meeting::Again {
            return Ok(());
        }
        let file = file.as_fd();
        strip_attributes(file, |errno| stripping(here, errno))?;
        // First the owner, which also clears the bits that would lend it to others.
        self.take_over(file, here)?;
        let mode = if here.stat.st_mode & 0o100 == 0 {
            0o444
        } else {
            0o555
        };
        rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
            .map_err(|errno| here.failed("setting permissions of", errno))?;
        rustix::fs::futimens(file, &MODIFIED)
            .map_err(|errno| here.failed("setting the time of", errno))
    }

    /// Sets the metadata of a symbolic link. Links have no modes, and only root could give them
    /// attributes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn set_link(&self, here: &Here<'_>, is_new: IsNew) -> Result<(), Error> {
        if is_new.0 == Meeting::Again {
            return Ok(());
        }
        if self.is_foreign(&here.stat) {
            rustix::fs::chownat(
                here.parent,
                here.name,
                Some(Uid::from_raw(self.owner_uid)),
                Some(Gid::from_raw(self.owner_gid)),
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|errno| here.failed("taking over", errno))?;
        }
        rustix::fs::utimensat(here.parent, here.name, &MODIFIED, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| here.failed("setting the time of", errno))
    }

    /// Checks, after all outputs, that no file has a name outside them.
    ///
    /// # Errors
    /// One has: somebody could change it after it has been registered.
    pub(crate) fn check_links(&self) -> Result<(), Error> {
        let foreign = self
            .linked
            .values()
            .filter(|linked| linked.n_seen < linked.n_links)
            .map(|linked| &linked.first)
            .min();
        match foreign {
            None => Ok(()),
            Some(path) => Err(Error::ForeignLink { path: path.clone() }),
        }
    }

    /// Counts a name of a file that has several. Once taken over it no longer is the builder's, so
    /// its other names are told by the file, not by the owner.
    fn meet(&mut self, here: &Here<'_>) -> Meeting {
        if here.stat.st_nlink <= 1 {
            return Meeting::First;
        }
        let inode = (here.stat.st_dev, here.stat.st_ino);
        let linked = self.linked.entry(inode).or_insert_with(|| Linked {
            n_links: here.stat.st_nlink,
            n_seen: 0,
            first: here.path(),
        });
        linked.n_seen += 1;
        if linked.n_seen == 1 {
            Meeting::First
        } else {
            Meeting::Again
        }
    }

    fn check_owner(&self, here: &Here<'_>) -> Result<(), Error> {
        if self.builder_uid.is_none_or(|uid| uid == here.stat.st_uid) {
            return Ok(());
        }
        Err(Error::ForeignOwner { path: here.path() })
    }

    fn is_foreign(&self, stat: &Stat) -> bool {
        stat.st_uid != self.owner_uid || stat.st_gid != self.owner_gid
    }

    fn take_over(&self, file: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Error> {
        if !self.is_foreign(&here.stat) {
            return Ok(());
        }
        rustix::fs::fchown(
            file,
            Some(Uid::from_raw(self.owner_uid)),
            Some(Gid::from_raw(self.owner_gid)),
        )
        .map_err(|errno| here.failed("taking over", errno))
    }
}

/// That a file's ownership has been checked, and whether its metadata is still to be set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct IsNew(Meeting);

fn stripping(here: &Here<'_>, errno: Errno) -> Error {
    here.failed("removing the attributes of", errno)
}

/// Removes access control lists and every other extended attribute.
///
/// # Errors
/// The kernel refuses.
pub(super) fn strip_attributes(
    file: BorrowedFd<'_>,
    failed: impl Fn(Errno) -> Error,
) -> Result<(), Error> {
    let n_bytes = match rustix::fs::flistxattr_query(file) {
        Ok(0) | Err(Errno::NOTSUP) => return Ok(()),
        Ok(n_bytes) => n_bytes,
        Err(errno) => return Err(failed(errno)),
    };
    let mut names = vec![0u8; n_bytes];
    let n_bytes = rustix::fs::flistxattr(file, &mut names[..]).map_err(&failed)?;
    for name in names[..n_bytes].split(|byte| *byte == 0) {
        if name.is_empty() || SYSTEM_ATTRIBUTES.contains(&name) {
            continue;
        }
        let name = CString::new(name).unwrap_or_default();
        match rustix::fs::fremovexattr(file, &*name) {
            Ok(()) | Err(Errno::NODATA) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}
