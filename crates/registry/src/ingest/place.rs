//! Giving an object its name in the store, or taking it away: one rename, never over another.

use std::ffi::CStr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat};
use rustix::io::Errno;

/// Moves a name from one open directory to a free name in another.
///
/// # Errors
/// [`Errno::EXIST`] if the name is not free, [`Errno::XDEV`] between file systems, and the kernel's
/// other objections.
pub(crate) fn rename(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
) -> Result<(), Errno> {
    match rename_no_replace(from, to) {
        // Moving a directory changes its `..`, which only root may do to a read-only one.
        Err(Errno::ACCESS) => rename_read_only(from, to),
        outcome => outcome,
    }
}

fn rename_no_replace(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
) -> Result<(), Errno> {
    match rustix::fs::renameat_with(from.0, from.1, to.0, to.1, RenameFlags::NOREPLACE) {
        // Some network file systems do not know the flag. We hold the lock on the name, so nobody
        // who keeps to the protocol takes it between the two calls.
        Err(Errno::INVAL | Errno::NOSYS) => {
            match rustix::fs::statat(to.0, to.1, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => rustix::fs::renameat(from.0, from.1, to.0, to.1),
                Ok(_) => Err(Errno::EXIST),
                Err(errno) => Err(errno),
            }
        }
        outcome => outcome,
    }
}

/// Moves a directory of ours that we may not write to.
fn rename_read_only(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
) -> Result<(), Errno> {
    let place = rustix::fs::openat(
        from.0,
        from.1,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let stat: Stat = rustix::fs::fstat(&place)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Errno::ACCESS);
    }
    // The link leads to the directory that is open, wherever its name leads by now.
    let link = format!("/proc/self/fd/{}", place.as_raw_fd());
    let set = |mode| rustix::fs::chmodat(CWD, &*link, Mode::from_raw_mode(mode), AtFlags::empty());
    set(stat.st_mode & 0o777 | 0o700)?;
    let moved = rename_no_replace(from, to);
    set(stat.st_mode & 0o777)?;
    moved
}
