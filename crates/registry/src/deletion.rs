//! Deleting trees whatever their permissions and their depth.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use crate::Error;
use crate::tree::{self, Here, Visitor};

/// Deletes `name` in `parent` and everything below it; what is gone already is fine.
///
/// # Errors
/// Something cannot be deleted; what comes after it is still there.
pub(crate) fn remove_tree(parent: BorrowedFd<'_>, name: &CStr, path: &Path) -> Result<(), Error> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        // Linux says EISDIR, POSIX says EPERM.
        Err(Errno::ISDIR | Errno::PERM) => tree::walk(parent, name, path, &mut Remove),
        Err(errno) => Err(Error::file("deleting", path, errno)),
    }
}

struct Remove;

impl Visitor for Remove {
    type Error = Error;

    const MAX_DEPTH: usize = usize::MAX;

    const UNLOCK: bool = true;

    fn enter(&mut self, dir: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Error> {
        if here.stat.st_mode & 0o700 == 0o700 {
            return Ok(());
        }
        rustix::fs::fchmod(dir, Mode::RWXU)
            .map_err(|errno| here.failed("opening to its owner", errno))
    }

    fn leave(&mut self, _dir: BorrowedFd<'_>, _here: &Here<'_>) -> Result<(), Error> {
        Ok(())
    }

    fn left(&mut self, here: &Here<'_>) -> Result<(), Error> {
        unlink(here, AtFlags::REMOVEDIR)
    }

    fn file(&mut self, here: &Here<'_>) -> Result<(), Error> {
        unlink(here, AtFlags::empty())
    }

    fn link(&mut self, here: &Here<'_>) -> Result<(), Error> {
        unlink(here, AtFlags::empty())
    }

    fn special(&mut self, here: &Here<'_>) -> Result<(), Error> {
        unlink(here, AtFlags::empty())
    }
}

fn unlink(here: &Here<'_>, flags: AtFlags) -> Result<(), Error> {
    match rustix::fs::unlinkat(here.parent, here.name, flags) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(here.failed("deleting", errno)),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::fs;
    use std::os::fd::AsFd as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn remove(dir: &Path, name: &CStr) -> Result<(), Error> {
        let parent = fs::File::open(dir).unwrap();
        remove_tree(parent.as_fd(), name, &dir.join("victim"))
    }

    #[test]
    fn unreadable_directories_go_and_the_targets_of_links_stay() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        fs::create_dir_all(victim.join("locked/inner")).unwrap();
        fs::write(victim.join("locked/inner/file"), "x").unwrap();
        fs::write(dir.path().join("canary"), "safe").unwrap();
        symlink(dir.path(), victim.join("link")).unwrap();
        for locked in ["locked/inner", "locked"] {
            let closed = fs::Permissions::from_mode(0o000);
            fs::set_permissions(victim.join(locked), closed).unwrap();
        }
        remove(dir.path(), c"victim").unwrap();
        assert!(!victim.exists());
        assert_eq!(fs::read(dir.path().join("canary")).unwrap(), b"safe");
        remove(dir.path(), c"victim").unwrap();
    }

    #[test]
    fn a_tree_deeper_than_any_path_and_any_descriptor_table_goes() {
        let dir = tempfile::tempdir().unwrap();
        // Not for the programs that other tests start: too deep to have a name, it confuses them.
        let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
        let mut current = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        rustix::fs::mkdirat(&current, c"victim", Mode::RWXU).unwrap();
        let mut name = c"victim";
        for _ in 0..3_000 {
            current = rustix::fs::openat(&current, name, flags, Mode::empty()).unwrap();
            rustix::fs::mkdirat(&current, c"deep", Mode::RWXU).unwrap();
            name = c"deep";
        }
        remove(dir.path(), c"victim").unwrap();
        assert!(!dir.path().join("victim").exists());
    }
}
