//! Performs the steps that put a root directory together.
//!
//! Everything inside the new root is reached from its descriptor, one component at a time, without
//! following links: a configured path may lead through a directory of the host that was bound
//! before, and making a mount point must never make or touch anything on the host.

use std::ffi::{CStr, CString, OsStr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::libc;
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use super::failure::{Context, Failure};
use super::{sys, views};
use crate::plan::{Absence, Access, Link};

pub(super) const EMPTY: &CStr = c"";

/// The root directory in the making.
pub(crate) struct NewRoot {
    directory: OwnedFd,
    path: PathBuf,
    /// The mounts in which mount points may be made: this one, and the build's own directories.
    own_mounts: Vec<u64>,
}

/// Makes sure that nothing mounted here is seen on the host, and the other way round.
pub(crate) fn detach_from_host() -> Result<(), Failure> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .context(|| "making the mounts private")
}

/// Makes this mount namespace follow the host's mounts without showing it any.
pub(crate) fn receive_from_host() -> Result<(), Failure> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
    )
    .context(|| "keeping mounts from the host")
}

impl NewRoot {
    /// Mounts a small tmpfs over a host directory.
    pub(crate) fn mount(over: &Path) -> Result<Self, Failure> {
        let operation = || format!("mounting the root directory at '{}'", over.display());
        // It holds mount points, a few links and the files of /etc, all made by us.
        rustix::mount::mount(
            "tmpfs",
            over,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0755,size=16m",
        )
        .context(operation)?;
        let directory = open_directory(rustix::fs::CWD, over).context(operation)?;
        let own_mounts = vec![mount_id(&directory).context(operation)?];
        Ok(Self {
            directory,
            path: over.to_owned(),
            own_mounts,
        })
    }

    /// Makes a directory and its parents.
    pub(crate) fn make_directory(&self, path: &Path, mode: u32) -> Result<(), Failure> {
        let operation = || format!("making the directory '{}'", path.display());
        let (parent, name) = self.parent_of(path).context(operation)?;
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(mode)) {
            Err(rustix::io::Errno::EXIST) => Ok(()),
            result => result.context(operation),
        }
    }

    /// Makes a file that everybody may read.
    pub(crate) fn write_file(&self, path: &Path, content: &[u8]) -> Result<(), Failure> {
        let operation = || format!("writing '{}'", path.display());
        let (parent, name) = self.parent_of(path).context(operation)?;
        let file = create_file(&parent, name).context(operation)?;
        rustix::io::write(&file, content).context(operation)?;
        Ok(())
    }

    /// Makes a symbolic link.
    pub(crate) fn make_link(&self, path: &Path, target: &Path) -> Result<(), Failure> {
        let operation = || format!("making the link '{}'", path.display());
        let (parent, name) = self.parent_of(path).context(operation)?;
        rustix::fs::symlinkat(target, &parent, name).context(operation)
    }

    /// Shows a host file or directory, with everything that is mounted below it.
    pub(crate) fn bind(
        &self,
        source: &Path,
        target: &Path,
        access: Access,
        absence: Absence,
        link: Link,
    ) -> Result<(), Failure> {
        let operation = || {
            let (source, target) = (source.display(), target.display());
            format!("showing '{source}' as '{target}'")
        };
        let lookup = match link {
            Link::MadeAgain => AtFlags::SYMLINK_NOFOLLOW,
            Link::Followed => AtFlags::empty(),
        };
        let stat = match rustix::fs::statat(rustix::fs::CWD, source, lookup) {
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR)
                if absence == Absence::PassedOver =>
            {
                return Ok(());
            }
            stat => stat.context(operation)?,
        };
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink {
            let points_at = rustix::fs::readlink(source, Vec::new()).context(operation)?;
            return self.make_link(target, Path::new(OsStr::from_bytes(points_at.as_bytes())));
        }
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        if link == Link::MadeAgain {
            flags |= OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        }
        let tree = rustix::mount::open_tree(rustix::fs::CWD, source, flags).context(operation)?;
        restrict(tree.as_fd(), access).context(operation)?;
        let mount_point = self.mount_point(target, kind).context(operation)?;
        attach(tree.as_fd(), mount_point.as_fd()).context(operation)
    }

    /// Shows one of the build's own directories.
    pub(crate) fn bind_own(&mut self, source: &Path, target: &Path) -> Result<(), Failure> {
        let (absence, link) = (Absence::Refused, Link::Followed);
        self.bind(source, target, Access::Writable, absence, link)?;
        self.note_own(target)
            .context(|| format!("opening '{}' in the sandbox", target.display()))
    }

    /// Allows mount points to be made in what is mounted at `target`.
    fn note_own(&mut self, target: &Path) -> io::Result<()> {
        let directory = open_directory(rustix::fs::CWD, self.host_path(target))?;
        self.own_mounts.push(mount_id(&directory)?);
        Ok(())
    }

    /// Shows the builder's store, and store objects on their mount points in it.
    pub(crate) fn mount_store(
        &mut self,
        scratch: &Path,
        source: &Path,
        target: &Path,
        names: &[String],
    ) -> Result<(), Failure> {
        self.bind_own(scratch, target)?;
        let (store, inside) = self.open_stores(source, target)?;
        attach_inputs(&store, &inside, names)
    }

    /// The same, with what was mounted before.
    pub(crate) fn place_view(
        &mut self,
        view: BorrowedFd<'_>,
        target: &Path,
    ) -> Result<(), Failure> {
        let operation = || format!("showing the store as '{}'", target.display());
        let mounts = views::clone(view)?;
        let mount_point = self
            .mount_point(target, FileType::Directory)
            .context(operation)?;
        attach(mounts.as_fd(), mount_point.as_fd()).context(operation)?;
        self.note_own(target).context(operation)
    }

    /// Shows store objects in an overlay at `target`: its lower layer is a tmpfs that holds the
    /// mount points, which so cost no disk; its upper layer receives what the builder makes.
    pub(crate) fn overlay_inputs(
        &self,
        upper: &Path,
        work: &Path,
        source: &Path,
        target: &Path,
        names: &[String],
    ) -> Result<(), Failure> {
        let operation = || format!("laying the inputs under '{}'", target.display());
        let place = self.host_path(target);
        // The size only guards against mistakes: a mount point takes at most a page.
        rustix::mount::mount(
            "tmpfs",
            &place,
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            c"mode=0755,size=1g",
        )
        .context(operation)?;
        let (store, skeleton) = self.open_stores(source, target)?;
        let mountable = make_mount_points(&store, &skeleton, names)?;
        mount_overlay(&place, &place, upper, work).context(operation)?;
        let (store, inside) = self.open_stores(source, target)?;
        attach_inputs(&store, &inside, &mountable)
    }

    /// Mounts a file system of the kernel's own at a directory that was made before.
    pub(crate) fn mount_special(
        &self,
        kind: &str,
        target: &str,
        flags: MountFlags,
        options: &str,
    ) -> Result<(), Failure> {
        let operation = || format!("mounting {kind} at '{target}'");
        let options = CString::new(options).context(operation)?;
        let place = self.host_path(Path::new(target));
        rustix::mount::mount(kind, &place, kind, flags, options.as_c_str()).context(operation)
    }

    /// Makes the root directory, but nothing that is mounted in it, read-only.
    pub(crate) fn seal(&self) -> Result<(), Failure> {
        set_attributes(self.directory.as_fd(), 0, libc::MOUNT_ATTR_RDONLY, 0)
            .context(|| "making the root directory read-only")
    }

    /// Makes this the root directory and lets go of the old one.
    pub(crate) fn enter(self) -> Result<(), Failure> {
        let operation = || "changing the root directory";
        rustix::process::fchdir(&self.directory).context(operation)?;
        // Both the same: the old root ends up mounted over the new one, from where it is taken off.
        rustix::process::pivot_root(".", ".").context(operation)?;
        rustix::mount::unmount(".", UnmountFlags::DETACH).context(operation)?;
        rustix::process::chdir("/").context(operation)
    }

    fn open_stores(&self, source: &Path, target: &Path) -> Result<(OwnedFd, OwnedFd), Failure> {
        let store = open_directory(rustix::fs::CWD, source)
            .context(|| format!("opening '{}'", source.display()))?;
        let inside = open_directory(rustix::fs::CWD, self.host_path(target))
            .context(|| format!("opening '{}' in the sandbox", target.display()))?;
        Ok((store, inside))
    }

    /// Returns where a path that we made ourselves is before the root is entered.
    fn host_path(&self, inside: &Path) -> PathBuf {
        self.path.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// Opens what a mount hides or makes it, as a directory or as a file.
    fn mount_point(&self, target: &Path, kind: FileType) -> io::Result<OwnedFd> {
        let (parent, name) = self.parent_of(target)?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(&parent, name, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => self.check_own(&parent)?,
            found => return Ok(found?),
        }
        if kind == FileType::Directory {
            rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
        } else {
            drop(create_file(&parent, name)?);
        }
        Ok(rustix::fs::openat(&parent, name, flags, Mode::empty())?)
    }

    /// Opens the directory that holds `path`, making what is missing of it.
    fn parent_of<'a>(&self, path: &'a Path) -> io::Result<(OwnedFd, &'a OsStr)> {
        let mut names = path.components().filter_map(|component| match component {
            Component::RootDir => None,
            Component::Normal(name) => Some(Ok(name)),
            Component::CurDir | Component::ParentDir | Component::Prefix(_) => {
                Some(Err(io::Error::other("the path escapes the sandbox")))
            }
        });
        let mut name = names
            .next()
            .ok_or_else(|| io::Error::other("the root directory itself cannot be replaced"))??;
        let mut parent = self.directory.try_clone()?;
        for next in names {
            parent = self.enter_or_make(&parent, name)?;
            name = next?;
        }
        Ok((parent, name))
    }

    fn enter_or_make(&self, parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
        match open_directory(parent, name) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.check_own(parent)?;
                rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
                open_directory(parent, name)
            }
            opened => opened,
        }
    }

    /// Refuses to make anything in a directory of the host, where it would stay.
    fn check_own(&self, directory: &OwnedFd) -> io::Result<()> {
        if self.own_mounts.contains(&mount_id(directory)?) {
            return Ok(());
        }
        Err(io::Error::other(
            "the mount point would have to be made in a directory of the host",
        ))
    }
}

/// Lays an overlay over the host's store in this mount namespace.
pub(crate) fn overlay_store(store_dir: &Path, upper: &Path, work: &Path) -> Result<(), Failure> {
    mount_overlay(store_dir, store_dir, upper, work)
        .context(|| format!("laying an overlay over '{}'", store_dir.display()))
}

/// Mounts a tmpfs over `directory` that shows nothing but its `name`.
pub(crate) fn show_only(directory: &Path, name: &str) -> Result<(), Failure> {
    let operation = || format!("showing only '{name}' in '{}'", directory.display());
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let inner = directory.join(name);
    let tree = rustix::mount::open_tree(rustix::fs::CWD, &inner, flags).context(operation)?;
    restrict(tree.as_fd(), Access::Writable).context(operation)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("tmpfs", directory, "tmpfs", flags, c"mode=0755,size=64k")
        .context(operation)?;
    rustix::fs::mkdir(&inner, Mode::from_raw_mode(0o755)).context(operation)?;
    let mount_point = open_directory(rustix::fs::CWD, &inner).context(operation)?;
    attach(tree.as_fd(), mount_point.as_fd()).context(operation)
}

/// Covers what of `/proc` concerns the whole machine; the root directory has been entered.
pub(crate) fn cover_proc() -> Result<(), Failure> {
    const READ_ONLY: [&str; 4] = ["/proc/sys", "/proc/irq", "/proc/bus", "/proc/fs"];
    const HIDDEN: [&str; 7] = [
        "/proc/kcore",
        "/proc/keys",
        "/proc/latency_stats",
        "/proc/sched_debug",
        "/proc/sysrq-trigger",
        "/proc/timer_list",
        "/proc/timer_stats",
    ];
    for path in READ_ONLY {
        cover(path, path).context(|| format!("making '{path}' read-only"))?;
    }
    for path in HIDDEN {
        cover("/dev/null", path).context(|| format!("hiding '{path}'"))?;
    }
    Ok(())
}

/// Mounts `source` over `path`, read-only, unless this kernel has no such file.
fn cover(source: &str, path: &str) -> io::Result<()> {
    match rustix::fs::stat(path) {
        Err(rustix::io::Errno::NOENT) => return Ok(()),
        stat => drop(stat?),
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, source, flags)?;
    set_attributes(tree.as_fd(), 0, libc::MOUNT_ATTR_RDONLY, 0)?;
    Ok(rustix::mount::move_mount(
        &tree,
        EMPTY,
        rustix::fs::CWD,
        path,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// Makes in `directory` what each store object needs to be mounted on, and symbolic links, which
/// cannot be mounted, outright. Returns what is left to mount.
fn make_mount_points<'a>(
    store: &OwnedFd,
    directory: &OwnedFd,
    names: &'a [String],
) -> Result<Vec<&'a str>, Failure> {
    let mut mountable = Vec::with_capacity(names.len());
    for name in names {
        let operation = || format!("making the mount point of the input '{name}'");
        let name = name.as_str();
        let stat = rustix::fs::statat(store, name, AtFlags::SYMLINK_NOFOLLOW).context(operation)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::Symlink {
            let points_at = rustix::fs::readlinkat(store, name, Vec::new()).context(operation)?;
            rustix::fs::symlinkat(points_at, directory, name).context(operation)?;
            continue;
        }
        if kind == FileType::Directory {
            let mode = Mode::from_raw_mode(0o555);
            rustix::fs::mkdirat(directory, name, mode).context(operation)?;
        } else {
            drop(create_file(directory, OsStr::new(name)).context(operation)?);
        }
        mountable.push(name);
    }
    Ok(mountable)
}

/// Mounts store objects on their mount points in `inside`, read-only.
fn attach_inputs(
    store: &OwnedFd,
    inside: &OwnedFd,
    names: &[impl AsRef<str>],
) -> Result<(), Failure> {
    for name in names {
        attach_input(store, inside, name.as_ref(), |_| Ok(()))?;
    }
    let operation = || "making the inputs read-only";
    // One call for all is cheaper than one for each; the store itself must stay writable.
    let read_only = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV;
    set_attributes(inside.as_fd(), libc::AT_RECURSIVE, read_only, 0).context(operation)?;
    set_attributes(inside.as_fd(), 0, 0, libc::MOUNT_ATTR_RDONLY).context(operation)
}

/// Mounts a store object on its mount point in `inside`, after `prepare` has seen its mount.
pub(super) fn attach_input(
    store: &OwnedFd,
    inside: &OwnedFd,
    name: &str,
    prepare: impl FnOnce(BorrowedFd<'_>) -> io::Result<()>,
) -> Result<(), Failure> {
    let operation = || format!("showing the input '{name}'");
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    let tree = rustix::mount::open_tree(store, name, flags).context(operation)?;
    prepare(tree.as_fd()).context(operation)?;
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    rustix::mount::move_mount(&tree, EMPTY, inside, name, how).context(operation)
}

/// Mounts an overlay at `place`. Layers are named by path: the comma and the colon that the options
/// cannot carry are refused by the kernel's own parser, never misread as another directory.
fn mount_overlay(lower: &Path, place: &Path, upper: &Path, work: &Path) -> io::Result<()> {
    let context = rustix::mount::fsopen("overlay", rustix::mount::FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", "overlay")?;
    rustix::mount::fsconfig_set_string(&context, "lowerdir", lower)?;
    rustix::mount::fsconfig_set_string(&context, "upperdir", upper)?;
    rustix::mount::fsconfig_set_string(&context, "workdir", work)?;
    rustix::mount::fsconfig_create(&context)?;
    let overlay = rustix::mount::fsmount(
        &context,
        rustix::mount::FsMountFlags::FSMOUNT_CLOEXEC,
        rustix::mount::MountAttrFlags::MOUNT_ATTR_NOSUID
            | rustix::mount::MountAttrFlags::MOUNT_ATTR_NODEV,
    )?;
    Ok(rustix::mount::move_mount(
        &overlay,
        EMPTY,
        rustix::fs::CWD,
        place,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )?)
}

/// Tells mounts apart, which device numbers do not: all binds of one disk share them.
fn mount_id(directory: &OwnedFd) -> io::Result<u64> {
    let flags = AtFlags::EMPTY_PATH;
    let stat = rustix::fs::statx(directory, "", flags, rustix::fs::StatxFlags::MNT_ID)?;
    Ok(stat.stx_mnt_id)
}

fn attach(tree: BorrowedFd<'_>, mount_point: BorrowedFd<'_>) -> io::Result<()> {
    let how = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(
        tree,
        EMPTY,
        mount_point,
        EMPTY,
        how,
    )?)
}

pub(super) fn restrict(tree: BorrowedFd<'_>, access: Access) -> io::Result<()> {
    let attributes = match access {
        Access::ReadOnly => {
            libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV
        }
        Access::Writable => libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        Access::Device => libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC,
    };
    set_attributes(tree, libc::AT_RECURSIVE, attributes, 0)
}

/// Sets and clears attributes of one mount, or of a whole tree with `AT_RECURSIVE`. What comes from
/// the host also stops receiving the host's later mounts.
fn set_attributes(mount: BorrowedFd<'_>, flags: i32, set: u64, clear: u64) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    sys::mount_setattr(mount, EMPTY, flags | libc::AT_EMPTY_PATH, &attributes)
}

pub(super) fn open_directory(
    parent: impl AsFd,
    path: impl rustix::path::Arg,
) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, path, flags, Mode::empty())?)
}

fn create_file(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(
        parent,
        name,
        flags,
        Mode::from_raw_mode(0o444),
    )?)
}
