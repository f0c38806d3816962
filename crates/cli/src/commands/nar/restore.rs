//! Makes files as an archive tells them.
//!
//! Every name is created where nothing was, relative to a descriptor of the directory that was
//! created before it, so that neither a link nor a race leads anywhere else (SECURITY P02).

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use bstr::{BStr, BString, ByteSlice as _};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat, symlinkat};
use store_model::nar::{FileHeader, NarVisitor};

/// A node that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{doing} '{}'", path.display())]
pub(super) struct RestoreError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// Makes one tree. Unless it is told to keep what it made, it removes that when dropped.
#[derive(Debug)]
pub(super) struct Restorer {
    root: PathBuf,
    /// The directory that the root lies in, and the root's name there.
    parent: OwnedFd,
    root_name: BString,
    /// Directories that are open, with their names.
    levels: Vec<(OwnedFd, BString)>,
    file: Option<File>,
    /// Whether something at `root` is ours to remove.
    made_root: bool,
}

impl Restorer {
    /// Prepares to make `path`, where nothing may be yet.
    ///
    /// # Errors
    /// The path names no new file, or its parent directory cannot be opened.
    pub(super) fn new(path: &Path) -> Result<Self, RestoreError> {
        let fail = |error: io::Error| RestoreError {
            doing: "creating",
            path: path.to_owned(),
            source: error,
        };
        let bytes = path.as_os_str().as_bytes();
        let name = bytes
            .rsplit(|byte| *byte == b'/')
            .next()
            .unwrap_or_default();
        if matches!(name, b"" | b"." | b"..") {
            return Err(fail(io::Error::other("the path does not end in a name")));
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            Some(_) | None => Path::new("."),
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self {
            parent: openat(CWD, parent, flags, Mode::empty())
                .map_err(|error| fail(error.into()))?,
            root: path.to_owned(),
            root_name: name.into(),
            levels: Vec::new(),
            file: None,
            made_root: false,
        })
    }

    /// Keeps what was made.
    pub(super) fn keep(mut self) {
        self.made_root = false;
    }

    /// Where the next node is made: the innermost open directory, or the root's parent.
    fn place<'a>(&'a self, name: Option<&'a BStr>) -> (&'a OwnedFd, &'a BStr) {
        let parent = self.levels.last().map_or(&self.parent, |(fd, _)| fd);
        (parent, name.unwrap_or(self.root_name.as_bstr()))
    }

    fn error(&self, doing: &'static str, name: Option<&BStr>, error: io::Error) -> RestoreError {
        let inner = self.levels.iter().skip(1).map(|(_, name)| name.as_bstr());
        let path = inner.chain(name).fold(self.root.clone(), |path, name| {
            path.join(std::ffi::OsStr::from_bytes(name))
        });
        RestoreError {
            doing,
            path,
            source: error,
        }
    }
}

impl NarVisitor for Restorer {
    type Error = RestoreError;

    fn enter_directory(&mut self, name: Option<&BStr>) -> Result<(), RestoreError> {
        let (parent, file_name) = self.place(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        mkdirat(parent, file_name.as_bytes(), Mode::from_raw_mode(0o777))
            .map_err(|error| self.error("creating the directory", name, error.into()))?;
        let opened = openat(parent, file_name.as_bytes(), flags, Mode::empty())
            .map_err(|error| self.error("opening the directory", name, error.into()));
        let file_name = BString::from(file_name);
        self.made_root = true;
        self.levels.push((opened?, file_name));
        Ok(())
    }

    fn leave_directory(&mut self) -> Result<(), RestoreError> {
        self.levels.pop();
        Ok(())
    }

    fn begin_file(&mut self, name: Option<&BStr>, header: FileHeader) -> Result<(), RestoreError> {
        let (parent, file_name) = self.place(name);
        let mode = if header.is_executable { 0o777 } else { 0o666 };
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(
            parent,
            file_name.as_bytes(),
            flags,
            Mode::from_raw_mode(mode),
        )
        .map_err(|error| self.error("creating", name, error.into()))?;
        self.made_root = true;
        self.file = Some(File::from(file));
        Ok(())
    }

    fn file_contents(&mut self, chunk: &[u8]) -> Result<(), RestoreError> {
        let Some(file) = &mut self.file else {
            return Ok(());
        };
        file.write_all(chunk)
            .map_err(|error| self.error("writing a file in", None, error))
    }

    fn end_file(&mut self) -> Result<(), RestoreError> {
        self.file = None;
        Ok(())
    }

    fn symlink(&mut self, name: Option<&BStr>, target: &BStr) -> Result<(), RestoreError> {
        let (parent, file_name) = self.place(name);
        symlinkat(target.as_bytes(), parent, file_name.as_bytes())
            .map_err(|error| self.error("creating the link", name, error.into()))?;
        self.made_root = true;
        Ok(())
    }
}

impl Drop for Restorer {
    fn drop(&mut self) {
        if !self.made_root {
            return;
        }
        self.levels.clear();
        // Both work by descriptor below the root and follow no link; what cannot be removed is
        // the user's to look at, beside the error that led here.
        let _left_over = match self.root.symlink_metadata() {
            Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(&self.root),
            Ok(_) | Err(_) => std::fs::remove_file(&self.root),
        };
    }
}
