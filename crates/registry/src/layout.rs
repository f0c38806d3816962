//! The directories of a store and its state: made as Nix makes them, and opened once.
//!
//! Everything in the store directory is reached by this one descriptor from then on.

use std::fs::DirBuilder;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use nix::unistd::Group;
use rustix::fs::{AtFlags, CWD, Gid, Mode, OFlags};
use rustix::io::Errno;
use store_model::settings::StoreLayout;
use store_model::{Settings, StorePath};

use crate::Error;

/// Suffixes of names that look like store paths but are working files of ours or of Nix.
const WORKING_SUFFIXES: [&str; 3] = [".lock", ".chroot", ".check"];

/// A store that is open: where things are, and the store directory itself.
#[derive(Debug)]
pub(crate) struct Layout {
    /// Where things are.
    pub(crate) paths: StoreLayout,
    /// The real store directory.
    pub(crate) store: OwnedFd,
    /// Who owns valid objects: the user that this program runs as.
    pub(crate) owner_uid: u32,
    /// Their group.
    pub(crate) owner_gid: u32,
}

impl Layout {
    /// Makes what is missing and opens the store directory.
    ///
    /// # Errors
    /// A directory can be neither found nor made, or the store is read-only.
    pub(crate) fn open(paths: StoreLayout, settings: &Settings) -> Result<Self, Error> {
        let real_store = paths.real_store_dir.clone();
        make_dir(&real_store)?;
        let store = rustix::fs::openat(
            CWD,
            &real_store,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|errno| Error::file("opening store directory", &real_store, errno))?;
        let layout = Self {
            paths,
            store,
            owner_uid: rustix::process::geteuid().as_raw(),
            owner_gid: rustix::process::getegid().as_raw(),
        };
        layout.share_with_builders(&settings.build_users_group)?;
        layout.make_state_dirs()?;
        layout.check_writable()?;
        Ok(layout)
    }

    /// Returns where an object really is.
    pub(crate) fn real_path(&self, path: &StorePath) -> PathBuf {
        self.paths.real_store_dir.join(path.base_name())
    }

    /// Returns an object's full logical path, as it is printed and stored.
    pub(crate) fn print(&self, path: &StorePath) -> String {
        self.paths.store_dir.print(path)
    }

    /// Returns a file or directory of the state.
    pub(crate) fn state(&self, name: &str) -> PathBuf {
        self.paths.state_dir.join(name)
    }

    /// Returns one object of the store, if there is any: something that a database should know.
    ///
    /// # Errors
    /// The store directory cannot be read.
    pub(crate) fn any_object(&self) -> Result<Option<StorePath>, Error> {
        let failed = |errno: Errno| {
            Error::file("reading store directory", &self.paths.real_store_dir, errno)
        };
        for listed in rustix::fs::Dir::read_from(&self.store).map_err(failed)? {
            let listed = listed.map_err(failed)?;
            let object = listed
                .file_name()
                .to_str()
                .ok()
                .filter(|name| !WORKING_SUFFIXES.iter().any(|end| name.ends_with(end)))
                .and_then(|name| name.parse().ok());
            if object.is_some() {
                return Ok(object);
            }
        }
        Ok(None)
    }

    /// Lets unsandboxed builders make their outputs, and nobody remove another's (as Nix does).
    fn share_with_builders(&self, group_name: &str) -> Result<(), Error> {
        if self.owner_uid != 0 || group_name.is_empty() {
            return Ok(());
        }
        let failed =
            |errno: Errno| Error::file("setting up store directory", self.real_store(), errno);
        let Ok(Some(group)) = Group::from_name(group_name) else {
            tracing::warn!("the group '{group_name}' of the build users does not exist");
            return Ok(());
        };
        let stat = rustix::fs::fstat(&self.store).map_err(failed)?;
        if stat.st_uid == 0 && stat.st_gid == group.gid.as_raw() && stat.st_mode & 0o7777 == 0o1775
        {
            return Ok(());
        }
        let gid = Gid::from_raw(group.gid.as_raw());
        rustix::fs::fchown(&self.store, Some(rustix::fs::Uid::ROOT), Some(gid)).map_err(failed)?;
        rustix::fs::fchmod(&self.store, Mode::from_raw_mode(0o1775)).map_err(failed)
    }

    fn make_state_dirs(&self) -> Result<(), Error> {
        make_dir(&self.paths.real_store_dir.join(".links"))?;
        for name in [
            "db",
            "temproots",
            "gcroots/auto",
            "gcroots/per-user",
            "profiles/per-user",
        ] {
            make_dir(&self.state(name))?;
        }
        make_dir(&self.paths.log_dir.join("drvs"))?;
        // Old programs made these writable for all, so that any user could plant another's.
        for name in ["gcroots/per-user", "profiles/per-user"] {
            close_to_others(&self.state(name))?;
        }
        let link = self.state("gcroots/profiles");
        match rustix::fs::symlinkat(self.state("profiles"), CWD, &link) {
            Ok(()) | Err(Errno::EXIST) => Ok(()),
            Err(errno) => Err(Error::file("making link", link, errno)),
        }
    }

    /// Fails now, with the right words, instead of in the middle of a registration.
    fn check_writable(&self) -> Result<(), Error> {
        for dir in [self.real_store().to_owned(), self.state("db")] {
            rustix::fs::accessat(
                CWD,
                &dir,
                rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK,
                AtFlags::EACCESS,
            )
            .map_err(|errno| Error::file("writing to directory", dir, errno))?;
        }
        Ok(())
    }

    fn real_store(&self) -> &Path {
        &self.paths.real_store_dir
    }
}

/// Makes a directory and its parents, readable by everybody whatever the umask.
fn make_dir(path: &Path) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    match DirBuilder::new().mode(0o755).create(path) {
        // A umask of 077 would hide the store from the builders that need it.
        Ok(()) => rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(0o755), AtFlags::empty())
            .map_err(|errno| Error::file("setting permissions of directory", path, errno)),
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(Error::file("making directory", path, error)),
    }
}

fn close_to_others(path: &Path) -> Result<(), Error> {
    let failed = |errno: Errno| Error::file("setting permissions of directory", path, errno);
    let dir = rustix::fs::openat(
        CWD,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    let stat = rustix::fs::fstat(&dir).map_err(failed)?;
    if stat.st_mode & 0o002 == 0 {
        return Ok(());
    }
    rustix::fs::fchmod(&dir, Mode::from_raw_mode(0o755)).map_err(failed)
}
