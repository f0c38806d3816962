//! Making a fresh copy of a tree, so that whoever has the old one open holds nothing of the new one
//! (SECURITY V19).
//!
//! The copy is made in a directory that nobody else can enter (SECURITY V20).

use std::borrow::Cow;
use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::io::{self, Write};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use store_model::hash_rewrite::HashRewriter;
use store_model::{StorePath, nar};

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

/// How much of a file is rewritten at once.
const REWRITTEN_BYTES: usize = 256 << 10;

/// What becomes of the paths that a tree mentions when it is copied.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Mentions<'a> {
    /// The copy mentions the same.
    Same,
    /// Of each pair the copy mentions the second where the tree mentions the first: in contents, in
    /// targets of links, and in names.
    Redirected(&'a [(StorePath, StorePath)]),
}

impl Mentions<'_> {
    /// Passes `from` on to `to`, as far as it goes.
    fn rewriter<W: Write>(&self, to: W) -> HashRewriter<W> {
        let pairs = match self {
            Self::Same => &[][..],
            Self::Redirected(pairs) => pairs,
        };
        HashRewriter::new(to, pairs.iter().map(|(from, to)| (from, to)))
    }

    /// Rewrites something short.
    fn rewritten(&self, bytes: &CStr) -> io::Result<CString> {
        let mut rewriter = self.rewriter(Vec::new());
        rewriter.write_all(bytes.to_bytes())?;
        // A digit is never replaced by a NUL.
        Ok(CString::new(rewriter.finish()?.0)?)
    }
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
    mentions: Mentions<'_>,
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
        mentions,
        only_shared: None,
        cancel,
    };
    tree::walk(from.dir, from.name, from.path, &mut copier)
}

/// The least that a name with what it stands for takes in an archive.
const NODE_BYTES: u64 = 100;

/// Copies a tree that is somebody else's without copying a byte of contents: the file system has both
/// share them until one is written to. No more is made than what fits into an archive of `max_bytes`.
///
/// # Errors
/// The file system cannot, the tree is larger, or as [`copy_tree`]; part of the copy may be there.
pub(crate) fn share_tree(
    from: Place<'_>,
    to: Place<'_>,
    max_bytes: u64,
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
        owner: RequiredOwner::Anybody,
        mentions: Mentions::Same,
        only_shared: Some(Cell::new(max_bytes.saturating_add(NODE_BYTES))),
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
    mentions: Mentions<'a>,
    /// Where contents are shared or else nothing is copied: how much more may be made.
    only_shared: Option<Cell<u64>>,
    cancel: &'a CancelFlag,
}

impl Visitor for Copier<'_> {
    type Error = Error;

    const MAX_DEPTH: usize = nar::MAX_DEPTH;

    const UNLOCK: bool = false;

    fn enter(&mut self, _dir: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Error> {
        self.check(here)?;
        let name = self.name(here)?;
        rustix::fs::mkdirat(&self.dir, &*name, Mode::RWXU).map_err(|errno| self.failed(errno))?;
        self.dir = self.open_dir(&name)?;
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
        let target = self.mentioned(&target)?;
        rustix::fs::symlinkat(&*target, &self.dir, &*self.name(here)?)
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
            &*self.name(here)?,
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            mode,
        )
        .map_err(|errno| self.failed(errno))?;
        if let Mentions::Redirected(_) = self.mentions {
            return self.rewrite_contents(&from, &to);
        }
        // A clone shares blocks, not the file: writing to either leaves the other alone.
        let shared = rustix::fs::ioctl_ficlone(&to, &from);
        if self.only_shared.is_some() {
            shared.map_err(|errno| self.failed(errno))?;
            let stat = rustix::fs::fstat(&to).map_err(|errno| self.failed(errno))?;
            return self.spend(u64::try_from(stat.st_size).unwrap_or(u64::MAX));
        }
        if shared.is_ok() {
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

    fn rewrite_contents(&self, from: &OwnedFd, to: &OwnedFd) -> Result<(), Error> {
        let failed = |error| Error::file("copying to", self.path, error);
        let mut rewriter = self.mentions.rewriter(NewFile(to));
        let mut buffer = vec![0; REWRITTEN_BYTES];
        loop {
            self.cancel.check()?;
            let n_read = rustix::io::retry_on_intr(|| rustix::io::read(from, &mut buffer[..]))
                .map_err(|errno| self.failed(errno))?;
            if n_read == 0 {
                break;
            }
            rewriter.write_all(&buffer[..n_read]).map_err(failed)?;
        }
        rewriter.finish().map(drop).map_err(failed)
    }

    /// Returns a name of the tree as the copy has it.
    fn name<'a>(&'a self, here: &'a Here<'_>) -> Result<Cow<'a, CStr>, Error> {
        if here.depth == 0 {
            Ok(Cow::Borrowed(&self.root))
        } else {
            self.mentioned(here.name)
        }
    }

    fn mentioned<'a>(&self, name: &'a CStr) -> Result<Cow<'a, CStr>, Error> {
        match self.mentions {
            Mentions::Same => Ok(Cow::Borrowed(name)),
            Mentions::Redirected(_) => self
                .mentions
                .rewritten(name)
                .map(Cow::Owned)
                .map_err(|error| Error::file("copying to", self.path, error)),
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
        self.spend(NODE_BYTES)?;
        match self.owner {
            RequiredOwner::User(uid) if here.stat.st_uid != uid => {
                Err(Error::ForeignOwner { path: here.path() })
            }
            RequiredOwner::User(_) | RequiredOwner::Anybody => Ok(()),
        }
    }

    /// Takes note of how much was made, where that is limited.
    fn spend(&self, n_bytes: u64) -> Result<(), Error> {
        let Some(left) = &self.only_shared else {
            return Ok(());
        };
        let less = left.get().checked_sub(n_bytes);
        left.set(less.ok_or_else(|| self.failed(Errno::FBIG))?);
        Ok(())
    }

    fn failed(&self, errno: Errno) -> Error {
        Error::file("copying to", self.path, errno)
    }
}

/// A file that is being written from its start.
struct NewFile<'a>(&'a OwnedFd);

impl Write for NewFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_all(self.0, bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
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

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
