//! The directories of one build, from their making to their end.
//!
//! ```text
//! <build-dir>/nix-build-<name>.drv-<n>/   0700, the store owner's: nobody passes it
//!     build/                              0700, the builder's: /build
//!     tmp/                                1777: /tmp
//! <store>/<derivation>.chroot/            0700, the store owner's: nobody passes it
//!     goalctl-store/                      01775, the builder's group: the store as it sees it
//!     work/                               an overlay's own, where there is one
//! ```
//!
//! Without a sandbox what a builder makes in the store lands in `goalctl-store` too, beside `build`.
//! Both outer directories are locked while their build lives, so that the next start can tell what
//! a dead program left behind.

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bstr::BString;
use rustix::fs::{AtFlags, Dir, FlockOperation, Gid, Mode, OFlags, RenameFlags, Uid};
use rustix::io::Errno;
use store_model::StorePath;
use store_model::settings::StoreLayout;

use crate::remove_tree::remove_tree;
use crate::user_pool::BuildUser;
use crate::{Error, ScratchOutputs};

/// The builder's store within its outer directory. The name tells our leftovers from the
/// directories that a running Nix gives the same outer name and does not lock.
const SCRATCH_STORE: &str = "goalctl-store";

/// What an overlay wants beside its upper layer.
const OVERLAY_WORK: &str = "work";

/// What every build directory's name begins with.
const BUILD_PREFIX: &str = "nix-build-";

/// Nix's limit: a disk with less left was probably full while the builder ran.
const NEARLY_FULL_BYTES: u64 = 8 << 20;

/// What a kept build directory's name ends with.
const KEPT_SUFFIX: &str = ".kept";

/// Who owns what the builder may write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// Where what the builder makes in the store lands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScratchPlace {
    /// In a directory of the store.
    InStore,
    /// The same, with room for an overlay's own files.
    InStoreForOverlay,
    /// Beside the build directory, for an overlay cannot lie inside its own lower layer.
    BesideBuild,
    /// In the store itself.
    StoreItself,
}

/// The places in which workspaces are made.
#[derive(Debug)]
pub(crate) struct Places {
    builds: OwnedFd,
    builds_path: PathBuf,
    store: OwnedFd,
    store_path: PathBuf,
    /// An empty directory, over which each build mounts its root in a mount namespace of its own.
    pub(crate) root_mount_point: PathBuf,
}

/// A locked directory, and where it is.
#[derive(Debug)]
struct Outer {
    directory: OwnedFd,
    name: CString,
    path: PathBuf,
}

/// The directories of one build.
#[derive(Debug)]
pub(crate) struct Workspace {
    places: Arc<Places>,
    build: Outer,
    chroot: Option<Outer>,
    inner_build: OwnedFd,
    scratch: ScratchOutputs,
    owner: Owner,
    is_disposed: bool,
    /// Given back when the directories are gone.
    _user: Option<BuildUser>,
}

impl Places {
    /// Makes and opens the directories in which workspaces are made.
    ///
    /// # Errors
    /// One cannot be made, or everybody may write the one for builds.
    pub(crate) fn open(layout: &StoreLayout, build_dir: Option<&Path>) -> Result<Self, Error> {
        let builds_path = build_dir.map_or_else(|| layout.state_dir.join("builds"), Path::to_owned);
        make_all(&builds_path, "making the directory for builds")?;
        let builds_path = std::fs::canonicalize(&builds_path).map_err(Error::file(
            "finding the directory for builds",
            &builds_path,
        ))?;
        refuse_world_writable(&builds_path)?;
        let root_mount_point = layout.state_dir.join("sandbox-root");
        make_all(
            &root_mount_point,
            "making the directory for the sandbox's root",
        )?;
        let store_path = &layout.real_store_dir;
        Ok(Self {
            builds: open_directory(rustix::fs::CWD, &builds_path).map_err(Error::file(
                "opening the directory for builds",
                &builds_path,
            ))?,
            builds_path,
            store: open_directory(rustix::fs::CWD, store_path)
                .map_err(Error::file("opening the store", store_path))?,
            store_path: store_path.clone(),
            root_mount_point,
        })
    }

    /// Deletes what builds of a program that has died left behind.
    ///
    /// Best effort: what cannot be deleted now is looked at again at the next start.
    pub(crate) fn remove_leftovers(&self) {
        // Nobody makes a directory between making and locking it while this lock is held.
        let exclusive = FlockOperation::NonBlockingLockExclusive;
        let Ok(builds) = open_directory(&self.builds, ".") else {
            return;
        };
        if rustix::fs::flock(&builds, exclusive).is_err() {
            return;
        }
        let dead = |name: &[u8]| {
            name.starts_with(BUILD_PREFIX.as_bytes()) && !name.ends_with(KEPT_SUFFIX.as_bytes())
        };
        let n_removed = remove_unlocked(&self.builds, &self.builds_path, dead, |_| true);
        // Looking through a large store takes a while; every chroot has a build directory, which is
        // made before it.
        if n_removed > 0 {
            let chroot = |name: &[u8]| name.ends_with(b".chroot");
            remove_unlocked(&self.store, &self.store_path, chroot, is_our_chroot);
        }
    }
}

/// Returns whether a `.chroot` directory is one of ours and not genuine Nix's, which are not
/// locked while they are used: it has the builder's store inside, or was about to vanish.
fn is_our_chroot(directory: &OwnedFd) -> bool {
    if rustix::fs::statat(directory, SCRATCH_STORE, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return true;
    }
    let is_private = rustix::fs::fstat(directory)
        .is_ok_and(|stat| Mode::from_raw_mode(stat.st_mode) == Mode::RWXU);
    is_private
        && rustix::fs::Dir::read_from(directory).is_ok_and(|entries| {
            entries
                .flatten()
                .all(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."))
        })
}

impl Workspace {
    /// Makes the directories of a build.
    ///
    /// # Errors
    /// One of them cannot be made.
    pub(crate) fn create(
        places: &Arc<Places>,
        drv_path: &StorePath,
        place: ScratchPlace,
        owner: Owner,
        user: Option<BuildUser>,
    ) -> Result<Self, Error> {
        let locked = open_directory(&places.builds, ".").map_err(Error::file(
            "opening the directory for builds",
            &places.builds_path,
        ))?;
        rustix::fs::flock(&locked, FlockOperation::LockShared).map_err(Error::file(
            "locking the directory for builds",
            &places.builds_path,
        ))?;
        let stem = format!("{BUILD_PREFIX}{}", drv_path.name());
        let build = Outer::create(&places.builds, &places.builds_path, |n| {
            format!("{stem}-{n}")
        })?;
        let inner_build = build.make("build", 0o700, Some(owner))?;
        build.make("tmp", 0o1777, None)?;

        let mut chroot = None;
        let (scratch_path, scratch_dir) = match place {
            ScratchPlace::InStore | ScratchPlace::InStoreForOverlay => {
                let outer = Outer::create(&places.store, &places.store_path, |n| match n {
                    0 => format!("{drv_path}.chroot"),
                    n => format!("{drv_path}-{n}.chroot"),
                })?;
                if place == ScratchPlace::InStoreForOverlay {
                    outer.make(OVERLAY_WORK, 0o700, None)?;
                }
                let outer = chroot.insert(outer);
                (outer.path.join(SCRATCH_STORE), outer.make_store(owner)?)
            }
            ScratchPlace::BesideBuild => {
                build.make(OVERLAY_WORK, 0o700, None)?;
                (build.path.join(SCRATCH_STORE), build.make_store(owner)?)
            }
            ScratchPlace::StoreItself => {
                let store = places
                    .store
                    .try_clone()
                    .map_err(Error::file("opening the store", &places.store_path))?;
                (places.store_path.clone(), store)
            }
        };
        Ok(Self {
            places: Arc::clone(places),
            build,
            chroot,
            inner_build,
            scratch: ScratchOutputs {
                dir: Arc::new(scratch_dir),
                path: scratch_path,
                builder_uid: owner.uid,
            },
            owner,
            is_disposed: false,
            _user: user,
        })
    }

    /// Returns the builder's working directory on the host.
    pub(crate) fn build_dir(&self) -> PathBuf {
        self.build.path.join("build")
    }

    /// Returns the directory around the builder's working directory.
    pub(crate) fn outer_build_dir(&self) -> &Path {
        &self.build.path
    }

    /// Returns the builder's `/tmp` on the host.
    pub(crate) fn tmp_dir(&self) -> PathBuf {
        self.build.path.join("tmp")
    }

    /// Returns what the overlay has for itself.
    pub(crate) fn overlay_work(&self) -> PathBuf {
        let outer = self.chroot.as_ref().unwrap_or(&self.build);
        outer.path.join(OVERLAY_WORK)
    }

    /// Returns where the outputs are.
    pub(crate) fn scratch(&self) -> &ScratchOutputs {
        &self.scratch
    }

    /// Writes files for the builder into its working directory.
    ///
    /// # Errors
    /// One of them cannot be written.
    pub(crate) fn write_files(&self, files: &BTreeMap<String, BString>) -> Result<(), Error> {
        for (name, content) in files {
            let failed =
                |errno: std::io::Error| Error::file("writing", self.build_dir().join(name))(errno);
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let mode = Mode::from_raw_mode(0o644);
            let file = rustix::fs::openat(&self.inner_build, name.as_str(), flags, mode)
                .map_err(|errno| failed(errno.into()))?;
            // By descriptor: by name it could be a link by now (CVE-2025-52993).
            give_to(&file, self.owner).map_err(|errno| failed(errno.into()))?;
            std::fs::File::from(file)
                .write_all(content)
                .map_err(failed)?;
        }
        Ok(())
    }

    /// Returns whether the disk of the store or of the build directory is nearly full, which may be
    /// why a builder failed.
    pub(crate) fn is_disk_nearly_full(&self) -> bool {
        let is_nearly_full = |directory: &OwnedFd| {
            rustix::fs::fstatvfs(directory)
                .is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_bsize) < NEARLY_FULL_BYTES)
        };
        is_nearly_full(&self.scratch.dir) || is_nearly_full(&self.inner_build)
    }

    /// Deletes everything but the builder's working directory; puts what there is of the outputs
    /// beside it.
    ///
    /// # Errors
    /// The directory cannot get its lasting name.
    pub(crate) fn keep(mut self, outputs: &[StorePath]) -> Result<PathBuf, Error> {
        let kept = self.build.make("outputs", 0o700, None)?;
        for output in outputs {
            let (from, name) = (&self.scratch.dir, output.base_name());
            // Usually there is none, and on another disk it has to be given up.
            let _ = rustix::fs::renameat(from, name, &kept, name);
        }
        for name in [c"tmp", c"goalctl-store", c"work"] {
            // What stays of these is only in the way.
            drop(remove_tree(&self.build.directory, name));
        }
        if let Some(chroot) = &self.chroot {
            chroot.remove(&self.places.store);
        }
        let stem = self.build.path.clone();
        let mut n_tries = 0_u64;
        loop {
            let mut path = stem.clone().into_os_string();
            if n_tries > 0 {
                path.push(format!("-{n_tries}"));
            }
            path.push(KEPT_SUFFIX);
            let path = PathBuf::from(path);
            let name = path.file_name().unwrap_or_default();
            let builds = &self.places.builds;
            let (from, flags) = (self.build.name.as_c_str(), RenameFlags::NOREPLACE);
            match rustix::fs::renameat_with(builds, from, builds, name, flags) {
                Ok(()) => {
                    self.is_disposed = true;
                    return Ok(path);
                }
                Err(Errno::EXIST) => n_tries += 1,
                Err(errno) => return Err(Error::file("keeping the build directory", path)(errno)),
            }
        }
    }
}

/// Deletes everything, unless it was kept.
impl Drop for Workspace {
    fn drop(&mut self) {
        if self.is_disposed {
            return;
        }
        if let Some(chroot) = &self.chroot {
            chroot.remove(&self.places.store);
        }
        self.build.remove(&self.places.builds);
    }
}

impl Outer {
    /// Makes a directory under the first free name and locks it.
    fn create(
        parent: &OwnedFd,
        parent_path: &Path,
        name: impl Fn(u64) -> String,
    ) -> Result<Self, Error> {
        let mut n_taken = 0;
        loop {
            let name = name(n_taken);
            let path = parent_path.join(&name);
            let failed = Error::file::<Errno>("making the directory", &path);
            match rustix::fs::mkdirat(parent, name.as_str(), Mode::RWXU) {
                Ok(()) => {}
                Err(Errno::EXIST) => {
                    n_taken += 1;
                    continue;
                }
                Err(errno) => return Err(failed(errno)),
            }
            let lock = || {
                let directory = open_directory(parent, name.as_str())?;
                rustix::fs::flock(&directory, FlockOperation::NonBlockingLockExclusive)?;
                Ok(directory)
            };
            let directory = lock().map_err(failed)?;
            let name = CString::new(name).map_err(|_| Error::NulByte {
                what: "the name of a directory".to_owned(),
            })?;
            return Ok(Self {
                directory,
                name,
                path,
            });
        }
    }

    /// Makes a directory in this one with exactly these permissions.
    fn make(&self, name: &str, mode: u32, owner: Option<Owner>) -> Result<OwnedFd, Error> {
        let attempt = || {
            rustix::fs::mkdirat(&self.directory, name, Mode::RWXU)?;
            let directory = open_directory(&self.directory, name)?;
            if let Some(owner) = owner {
                give_to(&directory, owner)?;
            }
            // The umask does not count here, and the owner's change would clear bits.
            rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode))?;
            Ok(directory)
        };
        attempt().map_err(Error::file::<Errno>(
            "making the directory",
            self.path.join(name),
        ))
    }

    /// Makes the builder's store: its group may make names in it, but only root may remove others'.
    fn make_store(&self, owner: Owner) -> Result<OwnedFd, Error> {
        let made = self.make(SCRATCH_STORE, 0o700, None)?;
        let share = || {
            if rustix::process::geteuid().is_root() {
                rustix::fs::fchown(&made, None, Some(Gid::from_raw(owner.gid)))?;
            }
            rustix::fs::fchmod(&made, Mode::from_raw_mode(0o1775))
        };
        share().map_err(Error::file::<Errno>(
            "sharing the directory",
            self.path.join(SCRATCH_STORE),
        ))?;
        Ok(made)
    }

    fn remove(&self, parent: &OwnedFd) {
        if let Err(error) = remove_tree(parent, &self.name) {
            tracing::warn!("deleting '{}': {error}", self.path.display());
        }
    }
}

/// Deletes directories whose lock nobody holds; returns how many there were.
fn remove_unlocked(
    parent: &OwnedFd,
    parent_path: &Path,
    is_candidate: impl Fn(&[u8]) -> bool,
    is_ours: impl Fn(&OwnedFd) -> bool,
) -> usize {
    let Ok(found) = Dir::read_from(parent) else {
        return 0;
    };
    let mut n_removed = 0;
    for name in found.filter_map(Result::ok) {
        let name = name.file_name();
        if !is_candidate(name.to_bytes()) {
            continue;
        }
        let Ok(directory) = open_directory(parent, name) else {
            continue;
        };
        let lock = FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::flock(&directory, lock).is_err() || !is_ours(&directory) {
            continue;
        }
        n_removed += 1;
        if let Err(error) = remove_tree(parent, name) {
            let path = parent_path.join(OsStr::from_bytes(name.to_bytes()));
            tracing::warn!("deleting the leftover '{}': {error}", path.display());
        }
    }
    n_removed
}

/// Refuses a directory in which other users could put a link or a directory first.
fn refuse_world_writable(path: &Path) -> Result<(), Error> {
    for (depth, directory) in path.ancestors().enumerate() {
        let stat = rustix::fs::stat(directory)
            .map_err(Error::file("looking at the directory", directory))?;
        let everybody = stat.st_mode & 0o002 != 0;
        // In a sticky directory nobody can move away what is ours.
        let sticky = stat.st_mode & 0o1000 != 0;
        if everybody && (depth == 0 || !sticky) {
            return Err(Error::WorldWritable {
                path: directory.to_owned(),
            });
        }
    }
    Ok(())
}

fn give_to(file: impl AsFd, owner: Owner) -> Result<(), Errno> {
    if !rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let (uid, gid) = (Uid::from_raw(owner.uid), Gid::from_raw(owner.gid));
    rustix::fs::fchown(file, Some(uid), Some(gid))
}

fn make_all(path: &Path, operation: &'static str) -> Result<(), Error> {
    std::fs::create_dir_all(path).map_err(Error::file(operation, path))
}

fn open_directory(parent: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(parent, path, flags, Mode::empty())
}
