//! Makes the files that an archive tells of, with canonical metadata from the beginning.
//!
//! Every name is made where nothing was, in a directory that is open; the uppermost of them is our
//! own, which nobody else can enter. So there is no path here that a link could lead astray
//! (SECURITY P01, P02), and nobody moves a directory while its parent is looked up.

use std::ffi::{CStr, OsStr};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use bstr::{BStr, ByteSlice as _};
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use store_model::nar::{FileHeader, NarVisitor};

use crate::Error;
use crate::ingest::canonical::{MODIFIED, strip_attributes};
use crate::ingest::copy::write_all;
use crate::ingest::hash_scan::{ContentHasher, SYNCED_ALONE_BYTES};
use crate::layout::Layout;
use crate::messages::RestoreError;
use crate::writer::ContentSync;

/// The mode of a directory that is being filled.
const OPEN_DIR: Mode = Mode::RWXU;

/// Makes one tree.
pub(super) struct Files<'a> {
    layout: &'a Layout,
    content_sync: ContentSync,
    /// Our own directory, and the tree's name there.
    staging: BorrowedFd<'a>,
    root: &'a CStr,
    /// The directory that is being filled; `None` above the root.
    ///
    /// Those above it are not kept open: a tree may be deeper than there are descriptors.
    dir: Option<OwnedFd>,
    depth: usize,
    file: Option<(OwnedFd, FileHeader)>,
    /// Hashes the contents of the only file, where the path follows from them alone.
    flat: Option<ContentHasher>,
    /// The full path of what is being made, for messages.
    path: PathBuf,
}

impl<'a> Files<'a> {
    /// Prepares to make `root` in `staging`, where nothing is yet. `path` is for messages.
    pub(super) fn new(
        layout: &'a Layout,
        content_sync: ContentSync,
        (staging, root): (BorrowedFd<'a>, &'a CStr),
        path: PathBuf,
        flat: Option<ContentHasher>,
    ) -> Self {
        Self {
            layout,
            content_sync,
            staging,
            root,
            dir: None,
            depth: 0,
            file: None,
            flat,
            path,
        }
    }

    /// Returns what hashed the contents of the only file.
    pub(super) fn into_flat(self) -> Option<ContentHasher> {
        self.flat
    }

    /// Returns where the next node is made.
    fn place<'b>(&'b self, name: Option<&'b BStr>) -> (BorrowedFd<'b>, &'b [u8]) {
        let dir = self.dir.as_ref().map_or(self.staging, OwnedFd::as_fd);
        (
            dir,
            name.map_or(self.root.to_bytes(), |name| name.as_bytes()),
        )
    }

    fn failed(&self, operation: &'static str, name: Option<&BStr>, errno: Errno) -> Error {
        let path = match name {
            // Without a slash, and not "..": the reader has checked.
            Some(name) => self.path.join(OsStr::from_bytes(name)),
            None => self.path.clone(),
        };
        Error::file(operation, path, errno)
    }

    /// Refuses what has structure where only contents were promised.
    fn check_flat(&self, is_plain: bool) -> Result<(), RestoreError> {
        if is_plain || self.flat.is_none() {
            return Ok(());
        }
        Err(RestoreError::Broken(format!(
            "the archive of '{}' should be a single file that is not executable, since its path \
             follows from bare contents",
            self.path.display()
        )))
    }

    /// Gives something that was just made the metadata that does not change with its contents.
    fn take_over(
        &self,
        node: &OwnedFd,
        mode: Mode,
        failed: impl Fn(&'static str, Errno) -> Error,
    ) -> Result<(), Error> {
        // A directory may hand its default list of access rights down to what is node in it.
        strip_attributes(node.as_fd(), |errno| {
            failed("removing the attributes of", errno)
        })?;
        let stat = rustix::fs::fstat(node).map_err(|errno| failed("looking at", errno))?;
        let is_foreign = self.is_foreign(&stat);
        if is_foreign {
            let (uid, gid) = self.owner();
            rustix::fs::fchown(node, Some(uid), Some(gid))
                .map_err(|errno| failed("taking over", errno))?;
        }
        // The process may mask some bits of new files.
        if is_foreign || stat.st_mode & 0o7777 != mode.as_raw_mode() {
            rustix::fs::fchmod(node, mode)
                .map_err(|errno| failed("setting permissions of", errno))?;
        }
        Ok(())
    }

    /// What is new has another group than ours where its directory or file system says so.
    fn is_foreign(&self, stat: &Stat) -> bool {
        (stat.st_uid, stat.st_gid) != (self.layout.owner_uid, self.layout.owner_gid)
    }

    fn owner(&self) -> (Uid, Gid) {
        let layout = self.layout;
        (
            Uid::from_raw(layout.owner_uid),
            Gid::from_raw(layout.owner_gid),
        )
    }
}

fn open_dir(parent: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, name, flags, Mode::empty())
}

impl NarVisitor for Files<'_> {
    type Error = RestoreError;

    fn enter_directory(&mut self, name: Option<&BStr>) -> Result<(), RestoreError> {
        self.check_flat(false)?;
        let (parent, dir_name) = self.place(name);
        rustix::fs::mkdirat(parent, dir_name, OPEN_DIR)
            .map_err(|errno| self.failed("making directory", name, errno))?;
        let dir =
            open_dir(parent, dir_name).map_err(|errno| self.failed("opening", name, errno))?;
        self.take_over(&dir, OPEN_DIR, |operation, errno| {
            self.failed(operation, name, errno)
        })?;
        self.dir = Some(dir);
        self.depth += 1;
        if let Some(name) = name {
            self.path.push(OsStr::from_bytes(name));
        }
        Ok(())
    }

    fn leave_directory(&mut self) -> Result<(), RestoreError> {
        let Some(dir) = self.dir.take() else {
            return Ok(());
        };
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o555))
            .map_err(|errno| self.failed("setting permissions of", None, errno))?;
        rustix::fs::futimens(&dir, &MODIFIED)
            .map_err(|errno| self.failed("setting the time of", None, errno))?;
        self.depth -= 1;
        if self.depth > 0 {
            let parent = open_dir(dir.as_fd(), b"..");
            self.dir = Some(parent.map_err(|errno| self.failed("leaving", None, errno))?);
            self.path.pop();
        }
        Ok(())
    }

    fn begin_file(&mut self, name: Option<&BStr>, header: FileHeader) -> Result<(), RestoreError> {
        self.check_flat(!header.is_executable)?;
        let (parent, file_name) = self.place(name);
        let mode = Mode::from_raw_mode(if header.is_executable { 0o555 } else { 0o444 });
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, file_name, flags, mode)
            .map_err(|errno| self.failed("making", name, errno))?;
        self.take_over(&file, mode, |operation, errno| {
            self.failed(operation, name, errno)
        })?;
        self.file = Some((file, header));
        if let Some(name) = name {
            self.path.push(OsStr::from_bytes(name));
        }
        Ok(())
    }

    fn file_contents(&mut self, chunk: &[u8]) -> Result<(), RestoreError> {
        if let Some((file, _)) = &self.file {
            write_all(file, chunk).map_err(|errno| self.failed("writing", None, errno))?;
        }
        if let Some(hasher) = &mut self.flat {
            let hashed = hasher.update(chunk);
            hashed.map_err(|error| Error::file("hashing", &self.path, error))?;
        }
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), RestoreError> {
        let Some((file, header)) = self.file.take() else {
            return Ok(());
        };
        rustix::fs::futimens(&file, &MODIFIED)
            .map_err(|errno| self.failed("setting the time of", None, errno))?;
        if header.size_bytes >= SYNCED_ALONE_BYTES && self.content_sync == ContentSync::Durable {
            rustix::fs::fdatasync(&file).map_err(|errno| self.failed("syncing", None, errno))?;
        }
        if self.depth > 0 {
            self.path.pop();
        }
        Ok(())
    }

    fn symlink(&mut self, name: Option<&BStr>, target: &BStr) -> Result<(), RestoreError> {
        self.check_flat(false)?;
        let (parent, link_name) = self.place(name);
        let failed = |operation, errno| self.failed(operation, name, errno);
        rustix::fs::symlinkat(target.as_bytes(), parent, link_name)
            .map_err(|errno| failed("making link", errno))?;
        let stat = rustix::fs::statat(parent, link_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("looking at", errno))?;
        if self.is_foreign(&stat) {
            let (uid, gid) = self.owner();
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(parent, link_name, Some(uid), Some(gid), flags)
                .map_err(|errno| failed("taking over", errno))?;
        }
        rustix::fs::utimensat(parent, link_name, &MODIFIED, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| failed("setting the time of", errno))?;
        Ok(())
    }
}
