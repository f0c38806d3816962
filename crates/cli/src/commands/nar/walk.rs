//! Tells a visitor what a file or a directory holds.
//!
//! Everything is opened by descriptor and name, never through a link, so that a tree that changes
//! underneath gives an error and not somebody else's files.

use std::collections::VecDeque;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bstr::{BStr, BString};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat,
};
use store_model::nar::{FileHeader, NarVisitor};

/// How much is read at once.
const CHUNK_LEN: usize = 256 * 1024;

/// Why a tree was not told to its end.
#[derive(Debug)]
pub(super) enum Error<E> {
    /// A file cannot be read.
    File(FileError),
    /// The visitor cannot go on.
    Visitor(E),
}

/// A file of the tree that cannot be archived.
#[derive(Debug, thiserror::Error)]
#[error("{doing} '{}'", path.display())]
pub(super) struct FileError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// A directory that is being told.
struct Level {
    fd: OwnedFd,
    path: PathBuf,
    /// Names that have not been told yet, in order.
    names: VecDeque<CString>,
}

/// Tells `visitor` what lies at `path`; a link there is told as a link.
///
/// # Errors
/// A file cannot be read, has changed while it was read, or is neither regular, nor a directory,
/// nor a link; or the visitor's own.
pub(super) fn walk<V: NarVisitor>(path: &Path, visitor: &mut V) -> Result<(), Error<V::Error>> {
    let name = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| Error::File(changed("opening", path, "the path has a NUL")))?;
    let mut walker = Walker {
        visitor,
        levels: Vec::new(),
        buffer: vec![0; CHUNK_LEN],
    };
    walker.node(CWD, &name, path.to_owned(), None)?;
    while let Some(level) = walker.levels.last_mut() {
        let Some(name) = level.names.pop_front() else {
            walker.visitor.leave_directory().map_err(Error::Visitor)?;
            walker.levels.pop();
            continue;
        };
        let path = level.path.join(OsStr::from_bytes(name.as_bytes()));
        // The parent must outlive the borrow of the stack; its descriptor is cloned for one node.
        let parent = level
            .fd
            .try_clone()
            .map_err(|error| Error::File(failed("opening", &level.path, error)))?;
        let entry = BString::from(name.as_bytes());
        walker.node(parent.as_fd(), &name, path, Some(entry.as_ref()))?;
    }
    Ok(())
}

struct Walker<'a, V> {
    visitor: &'a mut V,
    levels: Vec<Level>,
    buffer: Vec<u8>,
}

impl<V: NarVisitor> Walker<'_, V> {
    fn node(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: PathBuf,
        entry: Option<&BStr>,
    ) -> Result<(), Error<V::Error>> {
        let stat = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| Error::File(failed("looking at", &path, error)))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(parent, name, &path, entry),
            FileType::Directory => self.directory(parent, name, path, entry),
            FileType::Symlink => {
                let target = readlinkat(parent, name, Vec::new())
                    .map_err(|error| Error::File(failed("reading the link", &path, error)))?;
                self.visitor
                    .symlink(entry, BStr::new(target.as_bytes()))
                    .map_err(Error::Visitor)
            }
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Err(Error::File(changed(
                "archiving",
                &path,
                "it is neither a regular file, nor a directory, nor a link",
            ))),
        }
    }

    fn directory(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: PathBuf,
        entry: Option<&BStr>,
    ) -> Result<(), Error<V::Error>> {
        let failed = |error| Error::File(failed("reading the directory", &path, error));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty()).map_err(failed)?;
        let mut names = Vec::new();
        for child in Dir::read_from(&fd).map_err(failed)? {
            let child = child.map_err(failed)?;
            if !matches!(child.file_name().to_bytes(), b"." | b"..") {
                names.push(child.file_name().to_owned());
            }
        }
        // By bytes, as the format wants it.
        names.sort_unstable();
        self.visitor
            .enter_directory(entry)
            .map_err(Error::Visitor)?;
        self.levels.push(Level {
            fd,
            path,
            names: names.into(),
        });
        Ok(())
    }

    fn file(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &CString,
        path: &Path,
        entry: Option<&BStr>,
    ) -> Result<(), Error<V::Error>> {
        // Should it have become a pipe since, opening it must not wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = openat(parent, name, flags, Mode::empty())
            .map_err(|error| Error::File(failed("opening", path, error)))?;
        let stat: Stat =
            fstat(&fd).map_err(|error| Error::File(failed("looking at", path, error)))?;
        let size_bytes = u64::try_from(stat.st_size).unwrap_or(0);
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::File(changed(
                "reading",
                path,
                "it changed meanwhile",
            )));
        }
        let header = FileHeader {
            is_executable: stat.st_mode & 0o100 != 0,
            size_bytes,
        };
        self.visitor
            .begin_file(entry, header)
            .map_err(Error::Visitor)?;
        let mut file = File::from(fd);
        let mut n_left = size_bytes;
        while n_left > 0 {
            let room = usize::try_from(n_left).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
            let n_read = match file.read(&mut self.buffer[..room]) {
                Ok(0) => return Err(Error::File(changed("reading", path, "it became shorter"))),
                Ok(n_read) => n_read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::File(failed("reading", path, error))),
            };
            self.visitor
                .file_contents(&self.buffer[..n_read])
                .map_err(Error::Visitor)?;
            n_left -= n_read as u64;
        }
        self.visitor.end_file().map_err(Error::Visitor)
    }
}

fn failed(doing: &'static str, path: &Path, error: impl Into<io::Error>) -> FileError {
    FileError {
        doing,
        path: path.to_owned(),
        source: error.into(),
    }
}

fn changed(doing: &'static str, path: &Path, reason: &'static str) -> FileError {
    failed(doing, path, io::Error::other(reason))
}
