//! What a builder sees as its store before anything is mounted in it: a directory on the store's
//! disk, which receives what the builder makes, and the mount points of its inputs.
//!
//! Making and deleting a directory on a disk costs 0.1 to 1 ms, renaming one 0.01 ms. So the
//! directory stays for further builds, and mount points are renamed for their inputs. That is safe
//! where the builder could neither reach nor replace one: it is covered by a mount which the
//! builder has no right to take off, its name is busy as long, and nothing of the directory but
//! its mount points is left when the next build gets it.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags};
use rustix::io::Errno;
use store_model::StorePath;

use super::outer::{Outer, Owner, Parent, Traits, open_directory};
use super::{IDLE_NAME, OVERLAY_WORK, SCRATCH_STORE};
use crate::Error;
use crate::remove_tree::remove_contents;
use crate::spec::View;

/// Where mount points are that no input needs, within the outer directory.
const SPARE: &str = "spare";

/// An input as the builder shall see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Input {
    /// Mounted on a mount point.
    Mounted {
        /// Which it needs.
        kind: Kind,
        /// Its inode: another one of the same name was made since.
        inode: u64,
    },
    /// A symbolic link, which cannot be mounted and is made again.
    Link,
}

/// What a mount point is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// For directories.
    Directory,
    /// For everything else.
    File,
}

/// The builder's store.
#[derive(Debug)]
pub(super) struct ScratchStore {
    pub(super) outer: Outer,
    pub(super) directory: Arc<OwnedFd>,
    spare_directory: OwnedFd,
    /// What there is in the store besides outputs.
    mount_points: BTreeMap<String, Kind>,
    /// How many there are in the directory for those that nobody needs; numbered from zero.
    n_spare: BTreeMap<Kind, usize>,
    /// The inodes of what the last build was shown, by name.
    shown: BTreeMap<String, u64>,
    /// The last build's view: as long as it is the same, what is mounted can be used again.
    view: View,
    owner: Owner,
    traits: Traits,
}

impl ScratchStore {
    /// Makes the directories.
    pub(super) fn create(
        store: &Parent,
        drv_path: &StorePath,
        owner: Owner,
    ) -> Result<Self, Error> {
        let outer = Outer::create(store, |n| chroot_name(drv_path, n))?;
        let directory = make_store(&outer, owner)?;
        let spare_directory = outer.make(SPARE, 0o700, None)?;
        let traits = look_at(&outer, &directory)?;
        Ok(Self {
            outer,
            directory: Arc::new(directory),
            spare_directory,
            mount_points: BTreeMap::new(),
            n_spare: BTreeMap::new(),
            shown: BTreeMap::new(),
            view: View::new(),
            owner,
            traits,
        })
    }

    /// Makes an idle one that of another build.
    pub(super) fn take_up(
        mut self,
        store: &Parent,
        drv_path: &StorePath,
        owner: Owner,
    ) -> Result<Self, Error> {
        self.outer.move_to(store, |n| chroot_name(drv_path, n))?;
        if self.owner != owner {
            share(&self.outer, &self.directory, owner)?;
            self.traits = look_at(&self.outer, &self.directory)?;
            self.owner = owner;
        }
        Ok(self)
    }

    /// Deletes everything but the mount points; everything if the builder left any other trace.
    pub(super) fn clear(mut self, idle: &Parent) -> Option<Self> {
        let is_mount_point = |name: &CStr| {
            name.to_str()
                .is_ok_and(|name| self.mount_points.contains_key(name))
        };
        remove_contents(&*self.directory, is_mount_point).ok()?;
        let is_as_made = Traits::of(&self.directory).is_ok_and(|traits| traits == self.traits);
        if !is_as_made {
            return None;
        }
        // On another disk it has to be made anew each time.
        self.outer
            .move_to(idle, |n| format!("{IDLE_NAME}-{n}"))
            .ok()?;
        Some(self)
    }

    /// Returns how many mount points there would have to be made, and how many renamed.
    pub(super) fn effort(&self, inputs: &BTreeMap<String, Input>) -> Effort {
        let mut n_needed = BTreeMap::from([(Kind::Directory, 0), (Kind::File, 0)]);
        let mut n_renamed = 0;
        for (name, input) in inputs {
            let Input::Mounted { kind, .. } = input else {
                continue;
            };
            *n_needed.entry(*kind).or_insert(0_usize) += 1;
            n_renamed += usize::from(self.mount_points.get(name) != Some(kind));
        }
        let n_missing = n_needed
            .into_iter()
            .map(|(kind, n)| n.saturating_sub(self.n_present(kind)))
            .sum();
        Effort {
            n_missing,
            n_renamed,
        }
    }

    fn n_present(&self, kind: Kind) -> usize {
        let n_placed = self.mount_points.values().filter(|k| **k == kind).count();
        n_placed + self.n_spare.get(&kind).copied().unwrap_or(0)
    }

    /// Lets there be mount points for exactly these inputs, and the links among them.
    pub(super) fn show(
        &mut self,
        real_store: &Parent,
        inputs: &BTreeMap<String, Input>,
    ) -> Result<(), Error> {
        let mut unneeded = self.take_unneeded(inputs);
        for (name, input) in inputs {
            let failed = Error::file::<Errno>("making the mount point", self.path().join(name));
            match input {
                Input::Link => {
                    let target = rustix::fs::readlinkat(&real_store.directory, name, Vec::new());
                    target
                        .and_then(|to| rustix::fs::symlinkat(to, &*self.directory, name))
                        .map_err(failed)?;
                }
                Input::Mounted { kind, .. } if self.mount_points.get(name) == Some(kind) => {}
                Input::Mounted { kind, .. } => {
                    let old_name = unneeded.get_mut(kind).and_then(Vec::pop);
                    self.place(name, *kind, old_name).map_err(failed)?;
                }
            }
        }
        for (kind, names) in unneeded {
            for name in names {
                let n_spare = self.n_spare.entry(kind).or_insert(0);
                let spare_name = spare_name(kind, *n_spare);
                rustix::fs::renameat(&*self.directory, &name, &self.spare_directory, &spare_name)
                    .map_err(Error::file(
                    "moving away the mount point",
                    self.outer.path.join(SCRATCH_STORE).join(&name),
                ))?;
                *n_spare += 1;
            }
        }
        let shown: BTreeMap<String, u64> = inputs
            .iter()
            .filter_map(|(name, input)| match input {
                Input::Mounted { inode, .. } => Some((name.clone(), *inode)),
                Input::Link => None,
            })
            .collect();
        if shown == self.shown {
            self.view.is_known = true;
        } else {
            self.shown = shown;
            self.view = View::new();
        }
        Ok(())
    }

    /// Returns the names of what is to be mounted, and whether that was mounted before.
    pub(super) fn mounted(&self) -> (Vec<String>, View) {
        (self.shown.keys().cloned().collect(), self.view)
    }

    /// Forgets the mount points that no input needs, and returns their names.
    fn take_unneeded(&mut self, inputs: &BTreeMap<String, Input>) -> BTreeMap<Kind, Vec<String>> {
        let mut unneeded: BTreeMap<Kind, Vec<String>> = BTreeMap::new();
        self.mount_points.retain(|name, kind| {
            let wanted = inputs.get(name);
            let is_needed = matches!(wanted, Some(Input::Mounted { kind: k, .. }) if k == kind);
            if !is_needed {
                unneeded.entry(*kind).or_default().push(name.clone());
            }
            is_needed
        });
        unneeded
    }

    /// Lets there be a mount point: one that had another name, else a spare one, else a new one.
    fn place(&mut self, name: &str, kind: Kind, old_name: Option<String>) -> Result<(), Errno> {
        let directory = &*self.directory;
        let n_spare = self.n_spare.entry(kind).or_insert(0);
        if let Some(old_name) = old_name {
            rustix::fs::renameat(directory, old_name, directory, name)?;
        } else if let Some(rest) = n_spare.checked_sub(1) {
            rustix::fs::renameat(
                &self.spare_directory,
                spare_name(kind, rest),
                directory,
                name,
            )?;
            *n_spare = rest;
        } else {
            match kind {
                // Moving it later takes the right to write it, if one is not root.
                Kind::Directory => rustix::fs::mkdirat(directory, name, Mode::RWXU)?,
                Kind::File => {
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
                    drop(rustix::fs::openat(directory, name, flags, Mode::RUSR)?);
                }
            }
        }
        self.mount_points.insert(name.to_owned(), kind);
        Ok(())
    }

    /// Returns where it is on the host.
    pub(super) fn path(&self) -> PathBuf {
        self.outer.path.join(SCRATCH_STORE)
    }

    /// Makes what an overlay wants for itself.
    pub(super) fn make_overlay_work(&self) -> Result<PathBuf, Error> {
        self.outer.make(OVERLAY_WORK, 0o700, None)?;
        Ok(self.outer.path.join(OVERLAY_WORK))
    }
}

impl View {
    /// Nobody has had it.
    fn new() -> Self {
        static N_VIEWS: AtomicU64 = AtomicU64::new(0);
        Self {
            id: N_VIEWS.fetch_add(1, Ordering::Relaxed),
            is_known: false,
        }
    }
}

/// What it takes to show a builder its inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Effort {
    /// Mount points that have to be made.
    pub(super) n_missing: usize,
    /// Mount points that get another name.
    pub(super) n_renamed: usize,
}

/// Finds out what each input is.
pub(super) fn classify<'a>(
    real_store: &Parent,
    names: impl Iterator<Item = &'a str>,
) -> Result<BTreeMap<String, Input>, Error> {
    let mut inputs = BTreeMap::new();
    for name in names {
        let stat =
            rustix::fs::statat(&real_store.directory, name, AtFlags::SYMLINK_NOFOLLOW).map_err(
                Error::file("looking at the input", real_store.path.join(name)),
            )?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let input = if kind == FileType::Symlink {
            Input::Link
        } else {
            Input::Mounted {
                kind: if kind == FileType::Directory {
                    Kind::Directory
                } else {
                    Kind::File
                },
                inode: stat.st_ino,
            }
        };
        inputs.insert(name.to_owned(), input);
    }
    Ok(inputs)
}

/// Makes the builder's store: its group may make names in it, but only root may remove others'.
pub(super) fn make_store(outer: &Outer, owner: Owner) -> Result<OwnedFd, Error> {
    let made = outer.make(SCRATCH_STORE, 0o700, None)?;
    share(outer, &made, owner)?;
    Ok(made)
}

fn share(outer: &Outer, directory: &OwnedFd, owner: Owner) -> Result<(), Error> {
    let share = || {
        if rustix::process::geteuid().is_root() {
            rustix::fs::fchown(directory, None, Some(Gid::from_raw(owner.gid)))?;
        }
        rustix::fs::fchmod(directory, Mode::from_raw_mode(0o1775))
    };
    share().map_err(Error::file::<Errno>(
        "sharing the directory",
        outer.path.join(SCRATCH_STORE),
    ))
}

fn look_at(outer: &Outer, directory: &OwnedFd) -> Result<Traits, Error> {
    Traits::of(directory).map_err(Error::file(
        "looking at the directory",
        outer.path.join(SCRATCH_STORE),
    ))
}

fn chroot_name(drv_path: &StorePath, n_taken: u64) -> String {
    match n_taken {
        0 => format!("{drv_path}.chroot"),
        n => format!("{drv_path}-{n}.chroot"),
    }
}

fn spare_name(kind: Kind, idx: usize) -> String {
    match kind {
        Kind::Directory => format!("directory-{idx}"),
        Kind::File => format!("file-{idx}"),
    }
}

/// Returns whether a `.chroot` directory is one of ours and not genuine Nix's, which are not
/// locked while they are used: it has the builder's store inside, or was about to vanish.
pub(super) fn is_ours(directory: &OwnedFd) -> bool {
    if rustix::fs::statat(directory, SCRATCH_STORE, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
        return true;
    }
    let is_private = rustix::fs::fstat(directory)
        .is_ok_and(|stat| Mode::from_raw_mode(stat.st_mode) == Mode::RWXU);
    is_private
        && open_directory(directory, ".")
            .and_then(rustix::fs::Dir::new)
            .is_ok_and(|entries| {
                entries
                    .flatten()
                    .all(|entry| matches!(entry.file_name().to_bytes(), b"." | b".."))
            })
}
