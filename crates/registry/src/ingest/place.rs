//! Giving an object its name in the store, taking it away, or putting another in its place: one
//! rename, never over another.

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

/// Exchanges two names, so that at no moment nothing has either.
///
/// # Errors
/// [`Errno::NOENT`] if there is nothing of one name, [`Errno::INVAL`] where the file system cannot
/// do it, and the kernel's other objections.
pub(crate) fn exchange(
    one: (BorrowedFd<'_>, &CStr),
    other: (BorrowedFd<'_>, &CStr),
) -> Result<(), Errno> {
    let exchange =
        || rustix::fs::renameat_with(one.0, one.1, other.0, other.1, RenameFlags::EXCHANGE);
    match exchange() {
        // Both may be directories that only root may move as they are.
        Err(Errno::ACCESS) => with_writable(one, || with_writable(other, exchange)),
        outcome => outcome,
    }
}

/// Moves a directory of ours that we may not write to.
fn rename_read_only(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
) -> Result<(), Errno> {
    with_writable(from, || rename_no_replace(from, to))
}

/// Does something while a directory of ours is writable; anything else is left as it is.
fn with_writable(
    place: (BorrowedFd<'_>, &CStr),
    work: impl FnOnce() -> Result<(), Errno>,
) -> Result<(), Errno> {
    let directory = rustix::fs::openat(
        place.0,
        place.1,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let stat: Stat = rustix::fs::fstat(&directory)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return work();
    }
    // The link leads to the directory that is open, wherever its name leads by now.
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    let set = |mode| rustix::fs::chmodat(CWD, &*link, Mode::from_raw_mode(mode), AtFlags::empty());
    set(stat.st_mode & 0o777 | 0o700)?;
    let outcome = work();
    set(stat.st_mode & 0o777)?;
    outcome
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn directories_that_nobody_may_write_are_exchanged_and_stay_so() {
        let scratch = tempfile::tempdir().unwrap();
        for name in ["one", "other"] {
            fs::create_dir_all(scratch.path().join(name).join("object")).unwrap();
            let object = scratch.path().join(name).join("object");
            fs::write(object.join("file"), name).unwrap();
            fs::set_permissions(&object, fs::Permissions::from_mode(0o555)).unwrap();
        }
        let open = |name| fs::File::open(scratch.path().join(name)).unwrap();
        let (one, other) = (open("one"), open("other"));
        exchange((one.as_fd(), c"object"), (other.as_fd(), c"object")).unwrap();
        for (name, contents) in [("one", "other"), ("other", "one")] {
            let object = scratch.path().join(name).join("object");
            assert_eq!(fs::read_to_string(object.join("file")).unwrap(), contents);
            let mode = object.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o555);
            fs::set_permissions(&object, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let missing = exchange((one.as_fd(), c"object"), (other.as_fd(), c"nothing"));
        assert_eq!(missing, Err(Errno::NOENT));
    }
}
