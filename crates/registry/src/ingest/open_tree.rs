//! Trees on the disk, opened for a comparison: by descriptors, never through a link.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bstr::{BStr, BString};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir};
use store_model::nar::FileHeader;
use store_model::nar::diff::{Directory, Node};

use crate::CancelFlag;
use crate::tree::{describe, is_same};

/// Bytes of directory listing that are asked for at once.
const LISTING_BYTES: usize = 16 << 10;

/// Most directories below each other: a comparison keeps all of them open, in both trees, and there
/// must be descriptors left for everybody else.
const MAX_DEPTH: usize = 128;

/// An open directory of a tree that is compared with another.
#[derive(Debug)]
pub(super) struct OpenDirectory<'a> {
    directory: OwnedFd,
    depth: usize,
    cancel: &'a CancelFlag,
}

/// The bytes of a file, as long as anybody wants them.
#[derive(Debug)]
pub(super) struct OpenFile<'a> {
    file: File,
    cancel: &'a CancelFlag,
}

/// Opens what `name` is in `parent`.
///
/// # Errors
/// It cannot be opened, it is nothing that a store can hold, or nobody wants to know any more.
pub(super) fn open_tree<'a>(
    parent: BorrowedFd<'_>,
    name: &CStr,
    cancel: &'a CancelFlag,
) -> io::Result<Node<OpenDirectory<'a>>> {
    open_node(parent, name, 0, cancel)
}

fn open_node<'a>(
    parent: BorrowedFd<'_>,
    name: &CStr,
    depth: usize,
    cancel: &'a CancelFlag,
) -> io::Result<Node<OpenDirectory<'a>>> {
    check(cancel)?;
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    if file_type == FileType::Symlink {
        let target = rustix::fs::readlinkat(parent, name, Vec::new())?;
        return Ok(Node::Symlink(target.into_bytes().into()));
    }
    let kind = if file_type == FileType::RegularFile {
        // Should a pipe have taken the file's place, opening it must not wait for a writer.
        OFlags::NONBLOCK
    } else if file_type != FileType::Directory {
        return Err(io::Error::other(format!("one is {}", describe(file_type))));
    } else if depth < MAX_DEPTH {
        OFlags::DIRECTORY
    } else {
        return Err(io::Error::other(format!(
            "they are nested more than {MAX_DEPTH} directories deep"
        )));
    };
    let flags = kind | OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    if !is_same(&rustix::fs::fstat(&opened)?, &stat) {
        return Err(io::Error::other("one was replaced while it was read"));
    }
    if file_type == FileType::Directory {
        return Ok(Node::Directory(OpenDirectory {
            directory: opened,
            depth: depth + 1,
            cancel,
        }));
    }
    Ok(Node::File {
        header: FileHeader {
            is_executable: stat.st_mode & 0o100 != 0,
            size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        },
        contents: OpenFile {
            file: opened.into(),
            cancel,
        },
    })
}

impl<'a> Directory for OpenDirectory<'a> {
    type Contents = OpenFile<'a>;

    fn names(&self) -> io::Result<Vec<BString>> {
        let mut names = Vec::new();
        let mut buffer = [MaybeUninit::uninit(); LISTING_BYTES];
        let mut listing = RawDir::new(&self.directory, &mut buffer);
        while let Some(listed) = listing.next() {
            let listed = listed?;
            let name = listed.file_name();
            if name != c"." && name != c".." {
                names.push(name.to_bytes().into());
            }
        }
        Ok(names)
    }

    fn open(&self, name: &BStr) -> io::Result<Node<Self>> {
        let name = CString::new(name.to_vec()).map_err(io::Error::other)?;
        open_node(self.directory.as_fd(), &name, self.depth, self.cancel)
    }
}

impl Read for OpenFile<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        check(self.cancel)?;
        self.file.read(buffer)
    }
}

fn check(cancel: &CancelFlag) -> io::Result<()> {
    cancel.check().map_err(io::Error::other)
}
