//! The archive of a tree on the disk, made while it is read.
//!
//! Every step goes from an open directory to a single name in it. Only the directory in hand is open:
//! the way back up is `..`, which must be the directory we came from, so that nobody who moves
//! directories meanwhile leads us elsewhere, and depth costs memory but no descriptors.
//! A tree that changes meanwhile gives an archive that is nobody's, which its hash tells.

use std::ffi::{CStr, CString, OsStr};
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, Stat};
use rustix::io::Errno;
use store_model::{StorePath, nar};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

/// Bytes of directory listing that are asked for at once.
const LISTING_BYTES: usize = 16 << 10;

/// Files up to this size are read with what is around them, so that a thousand of them are not a
/// thousand reads for whoever reads the archive.
const SMALL_BYTES: u64 = 32 << 10;

/// An archive that comes into being as it is read.
#[derive(Debug)]
pub(super) struct Archive {
    /// Where the tree lies.
    parent: OwnedFd,
    /// Its path, for messages.
    root: PathBuf,
    ended: oneshot::Receiver<()>,
    /// What was made and not yet read.
    made: Vec<u8>,
    n_taken: usize,
    /// The file that is being read.
    file: Option<Contents>,
    /// Directories on the way from the root to the one in hand, which is open.
    trail: Vec<Directory>,
    dir: Option<OwnedFd>,
    /// What comes next, in the directory in hand or in the store.
    next: Option<CString>,
}

/// The contents of a file, as far as they are to be read.
#[derive(Debug)]
struct Contents {
    file: OwnedFd,
    size: u64,
    n_left: u64,
}

/// A directory that has been entered.
#[derive(Debug)]
struct Directory {
    name: CString,
    stat: Stat,
    /// Names still to be visited, last first.
    remaining: Vec<CString>,
}

impl Archive {
    /// Begins the archive of a path that lies in `objects`; nothing of it is read yet but that it is
    /// there. `root` is its path for messages.
    ///
    /// # Errors
    /// It is not there.
    pub(super) fn begin(
        objects: OwnedFd,
        path: &StorePath,
        root: PathBuf,
        ended: oneshot::Receiver<()>,
    ) -> io::Result<Self> {
        let name = CString::new(path.base_name())?;
        rustix::fs::statat(&objects, &*name, AtFlags::SYMLINK_NOFOLLOW)?;
        let mut archive = Self {
            parent: objects,
            root,
            ended,
            made: Vec::new(),
            n_taken: 0,
            file: None,
            trail: Vec::new(),
            dir: None,
            next: Some(name),
        };
        archive.token(b"nix-archive-1");
        Ok(archive)
    }

    /// Makes the next part, or nothing at the end.
    fn make_more(&mut self) -> io::Result<()> {
        if let Some(name) = self.next.take() {
            self.begin_node(name)
        } else if let Some(directory) = self.trail.last_mut() {
            self.next = directory.remaining.pop();
            if self.next.is_none() {
                self.leave_directory()
            } else {
                Ok(())
            }
        } else {
            Ok(())
        }
    }

    /// Begins what has this name in the directory in hand, and ends it too unless it has contents.
    fn begin_node(&mut self, name: CString) -> io::Result<()> {
        let failed = |errno: Errno| self.failed(&name, &errno.into());
        let stat = rustix::fs::statat(self.dir(), &*name, AtFlags::SYMLINK_NOFOLLOW);
        let stat = stat.map_err(failed)?;
        if !self.trail.is_empty() {
            nar::check_entry_name(name.to_bytes())
                .map_err(|reason| self.failed(&name, &io::Error::other(reason)))?;
            for token in [b"entry", b"(".as_slice(), b"name", name.to_bytes(), b"node"] {
                self.token(token);
            }
        }
        self.token(b"(");
        self.token(b"type");
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.begin_file(&name, &stat),
            FileType::Directory => self.enter_directory(name, stat),
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(self.dir(), &*name, Vec::new());
                let target = target.map_err(|errno| self.failed(&name, &errno.into()))?;
                self.token(b"symlink");
                self.token(b"target");
                self.token(target.to_bytes());
                self.end_node();
                Ok(())
            }
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {
                let reason = "it is neither a file nor a directory nor a link";
                Err(self.failed(&name, &io::Error::other(reason)))
            }
        }
    }

    fn begin_file(&mut self, name: &CStr, stat: &Stat) -> io::Result<()> {
        // Without waiting, as a pipe may have taken the file's place.
        let file = self.open(name, stat, OFlags::NONBLOCK)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.token(b"regular");
        if stat.st_mode & 0o100 != 0 {
            self.token(b"executable");
            self.token(b"");
        }
        self.token(b"contents");
        self.made.extend_from_slice(&size.to_le_bytes());
        if size > SMALL_BYTES {
            let n_left = size;
            self.file = Some(Contents { file, size, n_left });
            return Ok(());
        }
        // Cannot fail: it is small.
        let mut n_left = usize::try_from(size).unwrap_or_default();
        while n_left > 0 {
            let n_made = self.made.len();
            self.made.resize(n_made + n_left, 0);
            let n_read = read_some(&file, &mut self.made[n_made..]);
            let n_read = n_read.map_err(|error| self.failed(name, &error))?;
            self.made.truncate(n_made + n_read);
            n_left -= n_read;
        }
        self.end_file(size);
        Ok(())
    }

    fn end_file(&mut self, size: u64) {
        self.file = None;
        self.pad(size);
        self.end_node();
    }

    fn enter_directory(&mut self, name: CString, stat: Stat) -> io::Result<()> {
        if self.trail.len() == nar::MAX_DEPTH {
            let reason = "directories are nested too deeply";
            return Err(self.failed(&name, &io::Error::other(reason)));
        }
        let dir = self.open(&name, &stat, OFlags::DIRECTORY)?;
        let remaining = list(&dir).map_err(|errno| self.failed(&name, &errno.into()))?;
        self.token(b"directory");
        self.trail.push(Directory {
            name,
            stat,
            remaining,
        });
        self.dir = Some(dir);
        Ok(())
    }

    fn leave_directory(&mut self) -> io::Result<()> {
        let (Some(left), Some(dir)) = (self.trail.pop(), self.dir.take()) else {
            return Ok(());
        };
        if let Some(above) = self.trail.last() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let up = rustix::fs::openat(&dir, c"..", flags, Mode::empty());
            let up = up.map_err(|errno| self.failed(&left.name, &errno.into()))?;
            let stat = rustix::fs::fstat(&up);
            let stat = stat.map_err(|errno| self.failed(&left.name, &errno.into()))?;
            if !is_same(&stat, &above.stat) {
                return Err(self.replaced(&left.name));
            }
            self.dir = Some(up);
        }
        self.end_node();
        Ok(())
    }

    /// Opens what has been looked at, and nothing that has taken its place.
    fn open(&self, name: &CStr, stat: &Stat, flags: OFlags) -> io::Result<OwnedFd> {
        let flags = flags | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(self.dir(), name, flags, Mode::empty());
        let opened = opened.map_err(|errno| self.failed(name, &errno.into()))?;
        let now = rustix::fs::fstat(&opened);
        let now = now.map_err(|errno| self.failed(name, &errno.into()))?;
        if is_same(&now, stat) {
            Ok(opened)
        } else {
            Err(self.replaced(name))
        }
    }

    /// Reads contents into the reader's own buffer.
    fn read_contents(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(contents) = &mut self.file else {
            return Ok(0);
        };
        let n_most = usize::try_from(contents.n_left).unwrap_or(usize::MAX);
        let n_most = n_most.min(buffer.len());
        let n_read = read_some(&contents.file, &mut buffer[..n_most])?;
        // A usize is never wider than 64 bits.
        contents.n_left -= n_read as u64;
        if contents.n_left == 0 {
            let size = contents.size;
            self.end_file(size);
        }
        Ok(n_read)
    }

    /// Ends a node, and the entry around it if there is one.
    fn end_node(&mut self) {
        self.token(b")");
        if !self.trail.is_empty() {
            self.token(b")");
        }
    }

    fn token(&mut self, token: &[u8]) {
        // A usize is never wider than 64 bits.
        let length = token.len() as u64;
        self.made.extend_from_slice(&length.to_le_bytes());
        self.made.extend_from_slice(token);
        self.pad(length);
    }

    /// Fills up what has this length to a multiple of eight.
    fn pad(&mut self, length: u64) {
        for _ in length..length.next_multiple_of(8) {
            self.made.push(0);
        }
    }

    fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_ref().unwrap_or(&self.parent).as_fd()
    }

    fn replaced(&self, name: &CStr) -> io::Error {
        self.failed(name, &io::Error::other("it was replaced while it was read"))
    }

    /// Says what could not be read.
    fn failed(&self, name: &CStr, error: &io::Error) -> io::Error {
        let mut path = self.root.clone();
        if !self.trail.is_empty() {
            let names = self.trail.iter().skip(1).map(|above| above.name.as_c_str());
            path.extend(
                names
                    .chain([name])
                    .map(|name| OsStr::from_bytes(name.to_bytes())),
            );
        }
        io::Error::new(error.kind(), format!("'{}': {error}", path.display()))
    }
}

impl Read for Archive {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.ended.try_recv() {
            Err(TryRecvError::Empty) => {}
            Ok(()) | Err(TryRecvError::Closed) => return Err(super::super::given_up()),
        }
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.n_taken == self.made.len() {
            self.made.clear();
            self.n_taken = 0;
            if self.file.is_some() {
                return self.read_contents(buffer);
            }
            if self.next.is_none() && self.trail.is_empty() {
                return Ok(0);
            }
            self.make_more()?;
        }
        // Small files are many, and each read of ours costs whoever reads some calls.
        while self.made.len() - self.n_taken < buffer.len()
            && self.file.is_none()
            && (self.next.is_some() || !self.trail.is_empty())
        {
            self.make_more()?;
        }
        let made = &self.made[self.n_taken..];
        let n_copied = made.len().min(buffer.len());
        buffer[..n_copied].copy_from_slice(&made[..n_copied]);
        self.n_taken += n_copied;
        Ok(n_copied)
    }
}

/// Reads at least one byte.
fn read_some(file: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    match rustix::io::retry_on_intr(|| rustix::io::read(file, &mut *buffer))? {
        0 => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "a file became shorter while it was read",
        )),
        n_read => Ok(n_read),
    }
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
fn is_same(left: &Stat, right: &Stat) -> bool {
    left.st_dev == right.st_dev
        && left.st_ino == right.st_ino
        && FileType::from_raw_mode(left.st_mode) == FileType::from_raw_mode(right.st_mode)
}
