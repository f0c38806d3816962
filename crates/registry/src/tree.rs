//! Walking a tree that somebody else made, without ever following a name out of it.
//!
//! Every step goes from an open directory to a single name in it, and what is opened is compared
//! with what was looked at. Only the directory in hand is open: the way back up is `..`, which must
//! be the directory we came from, so depth costs memory but neither stack nor descriptors.

use std::ffi::{CStr, CString, OsStr};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;

use crate::Error;

/// Bytes of directory listing that are asked for at once.
const LISTING_BYTES: usize = 16 << 10;

/// What a walk does with what it finds. Entries come in the order of their names' bytes.
pub(crate) trait Visitor {
    /// Why a walk ends early.
    type Error: From<Error>;

    /// Most directories below each other.
    const MAX_DEPTH: usize;

    /// Whether what its owner, us, may not read is opened to us first.
    const UNLOCK: bool;

    /// Called with a directory that has just been opened, before it is listed.
    fn enter(&mut self, dir: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Self::Error>;

    /// Called with the same directory after everything in it.
    fn leave(&mut self, dir: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Self::Error>;

    /// Called with the same directory once more, from its parent.
    fn left(&mut self, _here: &Here<'_>) -> Result<(), Self::Error> {
        Ok(())
    }

    /// Called with a regular file.
    fn file(&mut self, here: &Here<'_>) -> Result<(), Self::Error>;

    /// Called with a symbolic link.
    fn link(&mut self, here: &Here<'_>) -> Result<(), Self::Error>;

    /// Called with a pipe, a socket or a device.
    fn special(&mut self, here: &Here<'_>) -> Result<(), Self::Error> {
        Err(here.unsupported().into())
    }
}

/// One name in an open directory, and what it was when it was looked at.
pub(crate) struct Here<'a> {
    /// The directory that has the name.
    pub(crate) parent: BorrowedFd<'a>,
    /// The name, without slashes.
    pub(crate) name: &'a CStr,
    /// What `lstat` says of it.
    pub(crate) stat: Stat,
    /// How many directories of the tree are above it; 0 for the root.
    pub(crate) depth: usize,
    root: &'a Path,
    trail: &'a [Frame],
}

impl Here<'_> {
    /// Returns its type.
    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Returns the path inside the tree, empty for the root.
    pub(crate) fn inner_path(&self) -> PathBuf {
        let mut path: PathBuf = self
            .trail
            .iter()
            .skip(1)
            .map(|frame| OsStr::from_bytes(frame.name.to_bytes()))
            .collect();
        if self.depth > 0 {
            path.push(OsStr::from_bytes(self.name.to_bytes()));
        }
        path
    }

    /// Returns the path for messages.
    pub(crate) fn path(&self) -> PathBuf {
        if self.depth == 0 {
            self.root.to_owned()
        } else {
            self.root.join(self.inner_path())
        }
    }

    /// Says which operation failed here.
    pub(crate) fn failed(&self, operation: &'static str, errno: Errno) -> Error {
        Error::file(operation, self.path(), errno)
    }

    /// Says that no store can hold it.
    fn unsupported(&self) -> Error {
        Error::UnsupportedFile {
            path: self.path(),
            kind: describe(self.file_type()),
        }
    }

    /// Opens this regular file for reading, and nothing that has taken its place.
    ///
    /// # Errors
    /// It cannot be opened, or it has been replaced.
    pub(crate) fn open_file(&self, unlock: bool) -> Result<OwnedFd, Error> {
        // Without O_NONBLOCK a FIFO that takes the file's place would stop us for ever.
        self.open(OFlags::NONBLOCK, unlock)
    }

    fn open(&self, flags: OFlags, unlock: bool) -> Result<OwnedFd, Error> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(self.parent, self.name, flags, Mode::empty());
        let opened = match open() {
            Err(Errno::ACCESS) if unlock => {
                self.unlock()?;
                open()
            }
            opened => opened,
        };
        let file = opened.map_err(|errno| self.failed("opening", errno))?;
        let stat = rustix::fs::fstat(&file).map_err(|errno| self.failed("looking at", errno))?;
        if is_same(&stat, &self.stat) {
            Ok(file)
        } else {
            Err(Error::Replaced { path: self.path() })
        }
    }

    /// Gives its owner, us, the right to read it and enter it.
    fn unlock(&self) -> Result<(), Error> {
        let failed = |errno| self.failed("opening to its owner", errno);
        let place = rustix::fs::openat(
            self.parent,
            self.name,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(failed)?;
        let stat = rustix::fs::fstat(&place).map_err(failed)?;
        if !is_same(&stat, &self.stat) {
            return Err(Error::Replaced { path: self.path() });
        }
        // fchmod refuses a descriptor that is only a place; its link in /proc leads to the same
        // file and nowhere else.
        let link = format!("/proc/self/fd/{}", place.as_raw_fd());
        let mode = Mode::from_raw_mode(stat.st_mode & 0o777 | 0o700);
        rustix::fs::chmodat(CWD, link, mode, AtFlags::empty()).map_err(failed)
    }
}

/// A directory on the way from the root to the one in hand.
struct Frame {
    name: CString,
    stat: Stat,
    /// Names still to be visited, last first.
    remaining: Vec<CString>,
}

/// Walks the tree whose root is `name` in `parent`. `root` is its path, for messages only.
///
/// # Errors
/// The visitor's own; or something cannot be read, is too deep, or moves under our feet.
pub(crate) fn walk<V: Visitor>(
    parent: BorrowedFd<'_>,
    name: &CStr,
    root: &Path,
    visitor: &mut V,
) -> Result<(), V::Error> {
    let mut trail: Vec<Frame> = Vec::new();
    let mut current: Option<OwnedFd> = None;
    let mut next = Some(name.to_owned());
    loop {
        if let Some(name) = next.take() {
            let dir = current.as_ref().map_or(parent, OwnedFd::as_fd);
            let here = look(dir, &name, root, &trail)?;
            if here.file_type() != FileType::Directory {
                tell(visitor, &here)?;
            } else if trail.len() >= V::MAX_DEPTH {
                return Err(V::Error::from(Error::TooDeep {
                    path: here.path(),
                    limit: V::MAX_DEPTH,
                }));
            } else {
                let dir = here.open(OFlags::DIRECTORY, V::UNLOCK)?;
                visitor.enter(dir.as_fd(), &here)?;
                let remaining = list(&dir).map_err(|errno| here.failed("listing", errno))?;
                let stat = here.stat;
                trail.push(Frame {
                    name,
                    stat,
                    remaining,
                });
                current = Some(dir);
            }
        }
        let Some(frame) = trail.last_mut() else {
            return Ok(());
        };
        next = frame.remaining.pop();
        if next.is_none() {
            current = climb(parent, root, &mut trail, current, visitor)?;
        }
    }
}

fn tell<V: Visitor>(visitor: &mut V, here: &Here<'_>) -> Result<(), V::Error> {
    if here.file_type() == FileType::RegularFile {
        visitor.file(here)
    } else if here.file_type() == FileType::Symlink {
        visitor.link(here)
    } else {
        visitor.special(here)
    }
}

/// Ends a directory and goes back to its parent; `None` when that is the caller's.
fn climb<V: Visitor>(
    parent: BorrowedFd<'_>,
    root: &Path,
    trail: &mut Vec<Frame>,
    current: Option<OwnedFd>,
    visitor: &mut V,
) -> Result<Option<OwnedFd>, V::Error> {
    let (Some(dir), Some(frame)) = (current, trail.pop()) else {
        return Ok(None);
    };
    let mut here = Here {
        parent,
        name: &frame.name,
        stat: frame.stat,
        depth: trail.len(),
        root,
        trail,
    };
    visitor.leave(dir.as_fd(), &here)?;
    let Some(above) = trail.last() else {
        visitor.left(&here)?;
        return Ok(None);
    };
    let up = rustix::fs::openat(
        &dir,
        c"..",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|errno| here.failed("leaving", errno))?;
    let stat = rustix::fs::fstat(&up).map_err(|errno| here.failed("leaving", errno))?;
    if !is_same(&stat, &above.stat) {
        return Err(Error::Replaced { path: here.path() }.into());
    }
    here.parent = up.as_fd();
    visitor.left(&here)?;
    Ok(Some(up))
}

fn look<'a>(
    parent: BorrowedFd<'a>,
    name: &'a CStr,
    root: &'a Path,
    trail: &'a [Frame],
) -> Result<Here<'a>, Error> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW);
    let depth = trail.len();
    stat.map(|stat| Here {
        parent,
        name,
        stat,
        depth,
        root,
        trail,
    })
    .map_err(|errno| {
        let names = trail.iter().skip(1).map(|frame| frame.name.as_c_str());
        let mut path = root.to_owned();
        for name in names.chain((depth > 0).then_some(name)) {
            path.push(OsStr::from_bytes(name.to_bytes()));
        }
        Error::file("looking at", path, errno)
    })
}

/// Returns the names in a directory, last first.
fn list(dir: &OwnedFd) -> Result<Vec<CString>, Errno> {
    let mut names = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); LISTING_BYTES];
    let mut listing = RawDir::new(dir, &mut buffer);
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable_by(|left, right| right.cmp(left));
    Ok(names)
}

/// Returns whether two looks saw the same file.
pub(crate) fn is_same(left: &Stat, right: &Stat) -> bool {
    left.st_dev == right.st_dev
        && left.st_ino == right.st_ino
        && FileType::from_raw_mode(left.st_mode) == FileType::from_raw_mode(right.st_mode)
}

/// Returns a word for a type that no store can hold.
pub(crate) fn describe(file_type: FileType) -> &'static str {
    match file_type {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Unknown => "of an unknown type",
    }
}
