//! The directories of one build, from their making to their end.
//!
//! ```text
//! <build-dir>/nix-build-<name>.drv-<n>/   0700, the store owner's: nobody passes it
//!     build/                              0700, the builder's: /build
//!     tmp/                                1777: /tmp
//! <store>/<derivation>.chroot/            0700, the store owner's: nobody passes it
//!     goalctl-store/                      01775, the builder's group: the store as it sees it
//!     spare/                              mount points that this build does not need
//!     work/                               an overlay's own, where there is one
//! ```
//!
//! Without a sandbox what root's builder makes in the store lands in `goalctl-store` too, beside
//! `build`. Anybody else's builder works in the store itself, and what it has made is put into
//! `goalctl-store` when it is gone.
//! Both outer directories are locked while their build lives, so that the next start can tell what
//! a dead program left behind. Emptied, they wait as `<build-dir>/nix-build-idle-<n>` for the next
//! build, for on a disk renaming is much cheaper than making and deleting.

mod build_place;
mod idle;
mod outer;
mod scratch_store;

use std::collections::BTreeMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bstr::BString;
use rustix::fs::{AtFlags, CWD, Dir, FlockOperation, Mode, OFlags, RenameFlags};
use rustix::io::Errno;
use store_model::StorePath;
use store_model::settings::StoreLayout;

use self::build_place::BuildPlace;
use self::idle::{Choice, Idle};
pub(crate) use self::outer::Owner;
use self::outer::{Parent, make_all, open_directory};
use self::scratch_store::{Input, ScratchStore};
use crate::remove_tree::remove_tree;
use crate::spec::Inputs;
use crate::user_pool::BuildUser;
use crate::{Error, Redirections, ScratchOutputs};

/// The builder's store within its outer directory. The name tells our leftovers from the
/// directories that a running Nix gives the same outer name and does not lock.
const SCRATCH_STORE: &str = "goalctl-store";

/// What an overlay wants beside its upper layer.
const OVERLAY_WORK: &str = "work";

/// What every build directory's name begins with.
const BUILD_PREFIX: &str = "nix-build-";

/// What the name of everything that waits for a build begins with.
const IDLE_NAME: &str = "nix-build-idle";

/// What a kept build directory's name ends with.
const KEPT_SUFFIX: &str = ".kept";

/// Where what the builder makes in the store lands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ScratchPlace {
    /// In a directory of the store.
    InStore(Reuse),
    /// Beside the build directory, for an overlay cannot lie inside its own lower layer.
    BesideBuild,
    /// In the store itself.
    StoreItself,
}

/// Which directories further builds may have. A builder that reaches a socket of the host's can
/// pass descriptors of its directories to somebody who outlives it (CVE-2024-27297).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reuse {
    /// None: other builders reach the same sockets.
    Nothing,
    /// Those into which nobody but the builder's user may write.
    Private,
    /// All: there is no socket to be reached.
    Everything,
}

/// The places in which workspaces are made.
#[derive(Debug)]
pub(crate) struct Places {
    idle: Mutex<Idle>,
    builds: Parent,
    store: Parent,
    /// An empty directory, over which each build mounts its root in a mount namespace of its own.
    pub(crate) root_mount_point: PathBuf,
}

/// The directories of one build. They are deleted when this is dropped.
#[derive(Debug)]
pub(crate) struct Workspace {
    places: Arc<Places>,
    build: BuildPlace,
    store: Option<ScratchStore>,
    inputs: Inputs,
    scratch: ScratchOutputs,
    place: ScratchPlace,
    /// What the builder puts into the store itself, until that has been collected.
    scattered: Vec<StorePath>,
    reuse: Reuse,
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
        Ok(Self {
            idle: Mutex::default(),
            builds: Parent::open(builds_path, "opening the directory for builds")?,
            store: Parent::open(layout.real_store_dir.clone(), "opening the store")?,
            root_mount_point,
        })
    }

    /// Deletes what builds of a program that has died left behind.
    ///
    /// Best effort: what cannot be deleted now is looked at again at the next start.
    pub(crate) fn remove_leftovers(&self) {
        // Nobody makes a directory between making and locking it while this lock is held.
        let exclusive = FlockOperation::NonBlockingLockExclusive;
        let Ok(builds) = open_directory(&self.builds.directory, ".") else {
            return;
        };
        if rustix::fs::flock(&builds, exclusive).is_err() {
            return;
        }
        let dead = |name: &[u8]| {
            name.starts_with(BUILD_PREFIX.as_bytes()) && !name.ends_with(KEPT_SUFFIX.as_bytes())
        };
        let n_removed = remove_unlocked(&self.builds, dead, |_| true);
        // Looking through a large store takes a while; every chroot has a build directory, which is
        // made before it.
        if n_removed > 0 {
            let chroot = |name: &[u8]| name.ends_with(b".chroot");
            remove_unlocked(&self.store, chroot, scratch_store::is_ours);
        }
    }

    /// Deletes what waits for further builds, and lets nothing wait any more.
    pub(crate) fn close(&self) {
        let idle = self.idle(Idle::close);
        drop(idle);
    }

    /// What is behind the lock is whole between any two calls, so a panic elsewhere leaves it good.
    fn idle<T>(&self, work: impl FnOnce(&mut Idle) -> T) -> T {
        work(&mut self.idle.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns the builder's store, and how it is to be shown the inputs in it.
    fn store_for(
        &self,
        drv_path: &StorePath,
        inputs: &BTreeMap<String, Input>,
        owner: Owner,
        reuse: Reuse,
    ) -> Result<(ScratchStore, Inputs), Error> {
        let create = || ScratchStore::create(&self.store, drv_path, owner);
        let choice = match reuse {
            Reuse::Nothing => Idle::default().choose(inputs),
            Reuse::Private | Reuse::Everything => self.idle(|idle| idle.choose(inputs)),
        };
        match choice {
            Choice::Overlay => {
                let store = create()?;
                let work = store.make_overlay_work()?;
                let names = inputs.keys().cloned().collect();
                Ok((store, Inputs::Overlaid { work, names }))
            }
            Choice::MountPoints(idle) => {
                // Whatever happened to one that was idle, a new one will do.
                let idle = idle.and_then(|idle| idle.take_up(&self.store, drv_path, owner).ok());
                let mut store = idle.map_or_else(create, Ok)?;
                store.show(&self.store, inputs)?;
                let (names, view) = store.mounted();
                Ok((store, Inputs::Mounted { names, view }))
            }
        }
    }
}

impl Workspace {
    /// Makes the directories of a build.
    ///
    /// # Errors
    /// One of them cannot be made, or one of the inputs is not there.
    pub(crate) fn create<'a>(
        places: &Arc<Places>,
        drv_path: &StorePath,
        input_names: impl Iterator<Item = &'a str>,
        place: ScratchPlace,
        owner: Owner,
        user: Option<BuildUser>,
    ) -> Result<Self, Error> {
        let builds = &places.builds;
        let locked = open_directory(&builds.directory, ".").map_err(Error::file(
            "opening the directory for builds",
            &builds.path,
        ))?;
        rustix::fs::flock(&locked, FlockOperation::LockShared).map_err(Error::file(
            "locking the directory for builds",
            &builds.path,
        ))?;
        let reuse = match place {
            ScratchPlace::InStore(reuse) => reuse,
            ScratchPlace::BesideBuild | ScratchPlace::StoreItself => Reuse::Nothing,
        };
        let idle = match reuse {
            Reuse::Nothing => None,
            Reuse::Private | Reuse::Everything => places.idle(Idle::take_build),
        };
        let build = idle
            .and_then(|idle| idle.take_up(builds, drv_path, owner).ok())
            .map_or_else(|| BuildPlace::create(builds, drv_path, owner), Ok)?;
        let mut store = None;
        let mut inputs = Inputs::None;
        let (path, directory) = match place {
            ScratchPlace::InStore(_) => {
                let kinds = scratch_store::classify(&places.store, input_names)?;
                let (made, shown) = places.store_for(drv_path, &kinds, owner, reuse)?;
                inputs = shown;
                let made = store.insert(made);
                (made.path(), Arc::clone(&made.directory))
            }
            ScratchPlace::BesideBuild => {
                build.outer.make(OVERLAY_WORK, 0o700, None)?;
                let made = scratch_store::make_store(&build.outer, owner)?;
                (build.outer.path.join(SCRATCH_STORE), Arc::new(made))
            }
            ScratchPlace::StoreItself => {
                let made = store.insert(ScratchStore::create(&places.store, drv_path, owner)?);
                (made.path(), Arc::clone(&made.directory))
            }
        };
        let scratch = ScratchOutputs {
            dir: directory,
            redirected: Redirections::new(),
            // A builder that works in the store itself is the store's owner, who can write there
            // whatever was copied.
            is_exposed: place == ScratchPlace::BesideBuild,
            path,
            builder_uid: owner.uid,
            builder_gid: owner.gid,
            build_dir: build.build_dir(),
        };
        Ok(Self {
            places: Arc::clone(places),
            build,
            store,
            inputs,
            scratch,
            place,
            scattered: Vec::new(),
            reuse,
            _user: user,
        })
    }

    /// Notes where the builder will put its outputs, and clears those places that are nobody's.
    ///
    /// # Errors
    /// What a dead builder has left there cannot be deleted.
    pub(crate) fn await_outputs(
        &mut self,
        outputs: &[StorePath],
        redirected: Redirections,
    ) -> Result<(), Error> {
        let store = &self.places.store;
        for elsewhere in redirected.values() {
            let name = CString::new(elsewhere.base_name()).unwrap_or_default();
            remove_tree(&store.directory, &name).map_err(Error::file(
                "deleting the leftover",
                store.path.join(elsewhere.base_name()),
            ))?;
        }
        if self.place == ScratchPlace::StoreItself {
            let place = |output| redirected.get(output).unwrap_or(output).clone();
            self.scattered = outputs.iter().map(place).collect();
        }
        self.scratch.redirected = redirected;
        Ok(())
    }

    /// Returns whether what the builder has made lies in the store itself.
    pub(crate) fn is_scattered(&self) -> bool {
        !self.scattered.is_empty()
    }

    /// Puts what the builder has made out of everybody else's reach. It is gone by now.
    pub(crate) fn collect_outputs(&mut self) {
        let store = &self.places.store;
        for output in std::mem::take(&mut self.scattered) {
            let name = output.base_name();
            match take_away(&store.directory, name, &self.scratch.dir) {
                Ok(()) | Err(Errno::NOENT) => {}
                // Then it counts as not made, and is removed before it is made again.
                Err(errno) => {
                    let path = store.path.join(name);
                    tracing::warn!("putting aside '{}': {errno}", path.display());
                }
            }
        }
    }

    /// Returns the builder's working directory on the host.
    pub(crate) fn build_dir(&self) -> PathBuf {
        self.build.build_dir()
    }

    /// Returns the directory around the builder's working directory.
    pub(crate) fn outer_build_dir(&self) -> &Path {
        &self.build.outer.path
    }

    /// Returns the builder's `/tmp` on the host.
    pub(crate) fn tmp_dir(&self) -> PathBuf {
        self.build.tmp_dir()
    }

    /// Returns what an overlay over the host's store has for itself.
    pub(crate) fn overlay_work(&self) -> PathBuf {
        self.build.outer.path.join(OVERLAY_WORK)
    }

    /// Returns how the builder is shown its inputs.
    pub(crate) fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// Returns where the outputs are.
    pub(crate) fn scratch(&self) -> &ScratchOutputs {
        &self.scratch
    }

    /// Returns the directory in the store that is the sandbox's, where there is a sandbox.
    pub(crate) fn chroot_dir(&self) -> Option<&Path> {
        let is_sandbox = matches!(self.place, ScratchPlace::InStore(_));
        self.store
            .as_ref()
            .filter(|_| is_sandbox)
            .and(self.scratch.path.parent())
    }

    /// Gives fewer of the directories to further builds.
    pub(crate) fn limit_reuse(&mut self, reuse: Reuse) {
        self.reuse = self.reuse.min(reuse);
    }

    /// Writes files for the builder into its working directory.
    ///
    /// # Errors
    /// One of them cannot be written.
    pub(crate) fn write_files(&self, files: &BTreeMap<String, BString>) -> Result<(), Error> {
        self.build.write_files(files)
    }

    /// Returns whether the disk of the store or of the build directory is nearly full, which may be
    /// why a builder failed.
    pub(crate) fn is_disk_nearly_full(&self) -> bool {
        build_place::is_nearly_full(&self.scratch.dir)
            || build_place::is_nearly_full(self.build.directory())
    }

    /// Empties the directories for another build, or deletes them.
    pub(crate) fn dispose(self) {
        let Self {
            places,
            build,
            store,
            inputs,
            reuse,
            ..
        } = self;
        if reuse == Reuse::Nothing {
            return;
        }
        // Dropped where they are not wanted, which deletes them; not while the pool is locked.
        let build = build.clear(&places.builds, reuse);
        drop(build.and_then(|build| places.idle(|idle| idle.put_build(build))));
        // The kernel leaves traces of an overlay in its layers.
        if let (Some(store), Inputs::Mounted { .. }) = (store, inputs) {
            let store = store.clear(&places.builds);
            drop(store.and_then(|store| places.idle(|idle| idle.put_store(store))));
        }
    }

    /// Deletes everything but the builder's working directory; puts what there is of the outputs
    /// beside it.
    ///
    /// # Errors
    /// The directory cannot get its lasting name.
    pub(crate) fn keep(self, outputs: &[StorePath]) -> Result<PathBuf, Error> {
        let place = |output| self.scratch.redirected.get(output).unwrap_or(output);
        let outputs: Vec<&StorePath> = outputs.iter().map(place).collect();
        self.build
            .keep(&self.places.builds, &self.scratch.dir, &outputs)
    }
}

/// Moves an output into another directory, also one that its builder has closed to itself: moving a
/// directory changes its `..`.
fn take_away(from: &OwnedFd, name: &str, to: &OwnedFd) -> Result<(), Errno> {
    let take = || rustix::fs::renameat_with(from, name, to, name, RenameFlags::NOREPLACE);
    match take() {
        Err(Errno::ACCESS) => {}
        outcome => return outcome,
    }
    // It may be closed to reading, too; the link leads to what was opened.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(from, name, flags, Mode::empty())?;
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    rustix::fs::chmodat(CWD, link, Mode::RWXU, AtFlags::empty())?;
    take()
}

/// Deletes directories whose lock nobody holds; returns how many there were.
fn remove_unlocked(
    parent: &Parent,
    is_candidate: impl Fn(&[u8]) -> bool,
    is_ours: impl Fn(&OwnedFd) -> bool,
) -> usize {
    let Ok(found) = Dir::read_from(&parent.directory) else {
        return 0;
    };
    let mut n_removed = 0;
    for name in found.filter_map(Result::ok) {
        let name = name.file_name();
        if !is_candidate(name.to_bytes()) {
            continue;
        }
        let Ok(directory) = open_directory(&parent.directory, name) else {
            continue;
        };
        let lock = FlockOperation::NonBlockingLockExclusive;
        if rustix::fs::flock(&directory, lock).is_err() || !is_ours(&directory) {
            continue;
        }
        n_removed += 1;
        if let Err(error) = remove_tree(&parent.directory, name) {
            let path = parent.path.join(OsStr::from_bytes(name.to_bytes()));
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
