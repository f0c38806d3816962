//! Builders' stores that stay mounted, nowhere, for the next build with the same inputs.
//!
//! Mounting an input takes 15 µs, cloning one that is mounted 2 µs. A view is a mount tree that no
//! mount namespace contains, so that no other build's namespace copies it: a tmpfs whose only
//! directory is covered by the builder's store, with all inputs on their mount points. Each build
//! gets a clone. Only a tree that began as a new file system may be cloned from another namespace
//! than the one that made it, hence the tmpfs.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::Mode;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use super::failure::{Context, Failure};
use super::mounts::{EMPTY, attach_input, open_directory, restrict};
use crate::plan::Access;

/// So many views are kept: about as many as builders' stores wait for a build.
const MAX_VIEWS: usize = 16;

/// With fewer inputs mounting them anew is as quick.
const MIN_INPUTS: usize = 16;

/// Where the store is in a view.
const STORE: &str = "store";

/// The views that a launcher keeps, the least recently used first.
#[derive(Debug, Default)]
pub(super) struct Views(VecDeque<(u64, OwnedFd)>);

impl Views {
    /// Returns a view, if there is one of this name.
    pub(super) fn get(&self, id: u64) -> Option<BorrowedFd<'_>> {
        let found = self.0.iter().find(|(known, _)| *known == id);
        found.map(|(_, view)| view.as_fd())
    }

    /// Notes that a view is about to be used.
    pub(super) fn touch(&mut self, id: u64) {
        if let Some(idx) = self.0.iter().position(|(known, _)| *known == id)
            && let Some(view) = self.0.remove(idx)
        {
            self.0.push_back(view);
        }
    }

    /// Keeps a view; drops the one that was not used for longest if there are too many.
    pub(super) fn keep(&mut self, id: u64, view: OwnedFd) {
        if self.get(id).is_some() {
            // Two builds made it at the same time.
            return;
        }
        if self.0.len() >= MAX_VIEWS {
            self.0.pop_front();
        }
        self.0.push_back((id, view));
    }
}

/// Returns whether a view of so many inputs is worth keeping.
pub(super) fn is_worthwhile(n_inputs: usize) -> bool {
    n_inputs >= MIN_INPUTS
}

/// Mounts a builder's store and its inputs as a view.
///
/// # Errors
/// Something cannot be mounted; kernels before 6.15 mount nothing where nobody is.
pub(super) fn make(scratch: &Path, source: &Path, names: &[String]) -> Result<OwnedFd, Failure> {
    let operation = || format!("keeping the view of '{}'", scratch.display());
    let empty = || {
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&context, "mode", "0700")?;
        fsconfig_set_string(&context, "size", "64k")?;
        fsconfig_create(&context)?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let view = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        rustix::fs::mkdirat(&view, STORE, Mode::RWXU)?;
        Ok::<_, rustix::io::Errno>(view)
    };
    let view = empty().context(operation)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let store = open_tree(rustix::fs::CWD, scratch, flags).context(operation)?;
    restrict(store.as_fd(), Access::Writable).context(operation)?;
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    move_mount(&store, EMPTY, &view, STORE, how).context(operation)?;
    let inside = open_directory(&view, STORE).context(operation)?;
    let source = open_directory(rustix::fs::CWD, source)
        .context(|| format!("opening '{}'", source.display()))?;
    for name in names {
        // One by one, for where nobody is attributes are set only before something is mounted.
        let read_only = |input: BorrowedFd<'_>| restrict(input, Access::ReadOnly);
        attach_input(&source, &inside, name, read_only)?;
    }
    Ok(view)
}

/// Returns the mounts of a view, to be put where a build wants them.
///
/// # Errors
/// The kernel does not clone it.
pub(super) fn clone(view: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(view, STORE, flags).context(|| "using what is mounted already")
}
