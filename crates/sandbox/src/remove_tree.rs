//! Deletes a tree that a builder made, whatever it made of it.
//!
//! Everything is reached by descriptor and name, never by path: somebody who still holds one of the
//! tree's directories could swap a name for a link and have us delete elsewhere (CVE-2025-46415).

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// How deep directories are held open at once. What lies deeper is first moved up, so that neither
/// descriptors nor the stack run out.
const MAX_OPEN_DEPTH: usize = 64;

/// A directory whose content is being deleted.
struct Level {
    directory: OwnedFd,
    /// Its name in the level above.
    name: CString,
    /// What was in it and is still to be deleted.
    names: Vec<CString>,
}

/// Deletes `name` in `parent` and everything below it. Nothing being there is fine.
///
/// # Errors
/// Something could not be deleted; as much as possible was.
pub(crate) fn remove_tree(parent: impl AsFd, name: &CStr) -> io::Result<()> {
    let parent = parent.as_fd();
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    let mut n_moved = 0_u64;
    let mut levels = vec![Level::open(parent, name)?];
    while let Some(level) = levels.last_mut() {
        let Some(child) = level.names.pop() else {
            let (directory, name) = levels
                .pop()
                .map(|level| (level.directory, level.name))
                .ok_or_else(|| io::Error::other("the tree has no root"))?;
            drop(directory);
            let above = levels
                .last()
                .map_or(parent, |level| level.directory.as_fd());
            rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)?;
            continue;
        };
        match rustix::fs::unlinkat(&level.directory, &child, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => continue,
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(errno) => return Err(errno.into()),
        }
        if levels.len() >= MAX_OPEN_DEPTH {
            n_moved += 1;
            move_up(&mut levels, &child, n_moved)?;
            continue;
        }
        if let Some(level) = levels.last() {
            let below = Level::open(level.directory.as_fd(), &child)?;
            levels.push(below);
        }
    }
    Ok(())
}

/// Deletes everything in a directory but what is to be kept.
///
/// # Errors
/// Something could not be deleted.
pub(crate) fn remove_contents(
    directory: impl AsFd,
    is_kept: impl Fn(&CStr) -> bool,
) -> io::Result<()> {
    // Collected first: what a directory lists while it changes is anybody's guess.
    for name in names_in(directory.as_fd())? {
        if !is_kept(&name) {
            remove_tree(directory.as_fd(), &name)?;
        }
    }
    Ok(())
}

fn names_in(directory: impl AsFd) -> io::Result<Vec<CString>> {
    let mut names = Vec::new();
    for found in Dir::read_from(directory)? {
        let found = found?;
        if !matches!(found.file_name().to_bytes(), b"." | b"..") {
            names.push(found.file_name().to_owned());
        }
    }
    Ok(names)
}

/// Moves a directory of the lowest level into the topmost one.
fn move_up(levels: &mut [Level], child: &CStr, n_moved: u64) -> io::Result<()> {
    // No builder's name has this byte pattern by accident, and a taken name is only an error.
    let new_name = CString::new(format!(".\u{1}goalctl-{n_moved}"))?;
    let [top, .., lowest] = levels else {
        return Err(io::Error::other("the tree is not deep"));
    };
    let flags = rustix::fs::RenameFlags::NOREPLACE;
    make_accessible(lowest.directory.as_fd(), child)?;
    rustix::fs::renameat_with(&lowest.directory, child, &top.directory, &new_name, flags)?;
    top.names.push(new_name);
    Ok(())
}

impl Level {
    fn open(parent: impl AsFd, name: &CStr) -> io::Result<Self> {
        make_accessible(parent.as_fd(), name)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let names = names_in(&directory)?;
        Ok(Self {
            directory,
            name: name.to_owned(),
            names,
        })
    }
}

/// Gives a directory back the permissions that deleting needs; a builder may have taken them away,
/// and where we are not root that stops us.
fn make_accessible(parent: impl AsFd, name: &CStr) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let stat = rustix::fs::fstat(&directory)?;
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && stat.st_mode & 0o700 != 0o700
    {
        // A descriptor opened with O_PATH can be changed through /proc only; it cannot be swapped.
        use std::os::fd::AsRawFd;
        let path = format!("/proc/self/fd/{}", directory.as_raw_fd());
        rustix::fs::chmod(path, Mode::RWXU)?;
    }
    Ok(())
}
