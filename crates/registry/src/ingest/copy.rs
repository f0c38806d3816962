//! Making a fresh copy of a tree, so that whoever has the old one open holds nothing of the new one
//! (SECURITY V19).
//!
//! The copy is made in a directory that nobody else can enter (SECURITY V20).

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use store_model::nar;

use crate::tree::{self, Here, Visitor};
use crate::{CancelFlag, Error};

/// How much the kernel is asked to copy at once: a slow disk does it in a fraction of a second, and
/// only then is the flag looked at again; calls this large cost nothing beside what they do.
const COPY_BYTES: usize = 16 << 20;

/// Who must own what is copied.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RequiredOwner {
    /// This user, or the copy would hand on what was only linked to.
    User(u32),
    /// Anybody: we copy for whoever runs us.
    Anybody,
}

/// A name in an open directory, and its path for messages.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) dir: BorrowedFd<'a>,
    pub(crate) name: &'a CStr,
    pub(crate) path: &'a Path,
}

/// Copies contents, links and executable bits of the tree at `from` to the new name `to`.
///
/// # Errors
/// Something is neither file, directory nor link, is not the owner's, or cannot be copied, or it was
/// cancelled; part of the copy may be there.
pub(crate) fn copy_tree(
    from: Place<'_>,
    to: Place<'_>,
    owner: RequiredOwner,
    cancel: &CancelFlag,
) -> Result<(), Error> {
    let dir = to
        .dir
        .try_clone_to_owned()
        .map_err(|error| Error::file("copying to", to.path, error))?;
    let mut copier = Copier {
        dir,
        root: to.name.to_owned(),
        path: to.path,
        owner,
        cancel,
    };
    tree::walk(from.dir, from.name, from.path, &mut copier)
}

struct Copier<'a> {
    /// The directory of the copy that is being filled.
    dir: OwnedFd,
    root: CString,
    path: &'a Path,
    owner: RequiredOwner,
    cancel: &'a CancelFlag,
}

impl Visitor for Copier<'_> {
    type Error = Error;

    const MAX_DEPTH: usize = nar::MAX_DEPTH;

    const UNLOCK: bool = false;

    fn enter(&mut self, _dir: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Error> {
        self.check(here)?;
        let name = self.name(here);
        rustix::fs::mkdirat(&self.dir, name, Mode::RWXU).map_err(|errno| self.failed(errno))?;
        self.dir = self.open_dir(name)?;
        Ok(())
    }

    fn leave(&mut self, _dir: BorrowedFd<'_>, _here: &Here<'_>) -> Result<(), Error> {
        self.dir = self.open_dir(c"..")?;
        Ok(())
    }

    fn file(&mut self, here: &Here<'_>) -> Result<(), Error> {
        self.check(here)?;
        self.copy_file(here)
    }

    fn link(&mut self, here: &Here<'_>) -> Result<(), Error> {
        self.check(here)?;
        let target = rustix::fs::readlinkat(here.parent, here.name, Vec::new())
            .map_err(|errno| here.failed("reading link", errno))?;
        rustix::fs::symlinkat(&*target, &self.dir, self.name(here))
            .map_err(|errno| self.failed(errno))
    }
}

impl Copier<'_> {
    fn copy_file(&self, here: &Here<'_>) -> Result<(), Error> {
        let from = here.open_file(Self::UNLOCK)?;
        let mode = if here.stat.st_mode & 0o100 == 0 {
            Mode::RUSR | Mode::WUSR
        } else {
            Mode::RWXU
        };
        let to = rustix::fs::openat(
            &self.dir,
            self.name(here),
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            mode,
        )
        .map_err(|errno| self.failed(errno))?;
        // A clone shares blocks, not the file: writing to either leaves the other alone.
        if rustix::fs::ioctl_ficlone(&to, &from).is_ok() {
            return Ok(());
        }
        self.copy_contents(&from, &to, here.stat.st_size)
    }

    fn copy_contents(&self, from: &OwnedFd, to: &OwnedFd, size: i64) -> Result<(), Error> {
        // Files of /proc say that they are empty, and the kernel then copies nothing.
        let mut by_kernel = size > 0;
        let mut buffer = Vec::new();
        loop {
            self.cancel.check()?;
            if by_kernel {
                match rustix::fs::copy_file_range(from, None, to, None, COPY_BYTES) {
                    Ok(0) => return Ok(()),
                    Ok(_) | Err(Errno::INTR) => {}
                    // Other file systems, or an old kernel. Both offsets stand where it stopped.
                    Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                        by_kernel = false;
                    }
                    Err(errno) => return Err(self.failed(errno)),
                }
                continue;
            }
            buffer.resize(256 << 10, 0);
            let n_read =
                rustix::io::retry_on_intr(|| rustix::io::read(from.as_fd(), &mut buffer[..]))
                    .map_err(|errno| self.failed(errno))?;
            if n_read == 0 {
                return Ok(());
            }
            write_all(to, &buffer[..n_read]).map_err(|errno| self.failed(errno))?;
        }
    }

    fn name<'a>(&'a self, here: &'a Here<'_>) -> &'a CStr {
        if here.depth == 0 {
            &self.root
        } else {
            here.name
        }
    }

    fn open_dir(&self, name: &CStr) -> Result<OwnedFd, Error> {
        rustix::fs::openat(
            &self.dir,
            name,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| self.failed(errno))
    }

    /// Looks at the flag and at the owner of what is about to be copied.
    fn check(&self, here: &Here<'_>) -> Result<(), Error> {
        self.cancel.check()?;
        match self.owner {
            RequiredOwner::User(uid) if here.stat.st_uid != uid => {
                Err(Error::ForeignOwner { path: here.path() })
            }
            RequiredOwner::User(_) | RequiredOwner::Anybody => Ok(()),
        }
    }

    fn failed(&self, errno: Errno) -> Error {
        Error::file("copying to", self.path, errno)
    }
}

/// Writes all of `bytes`.
///
/// # Errors
/// The kernel's own.
pub(crate) fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let n_written = rustix::io::retry_on_intr(|| rustix::io::write(file, bytes))?;
        bytes = &bytes[n_written..];
    }
    Ok(())
}
