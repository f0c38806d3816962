//! What can be done to make a builder's surroundings, as data.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::spec::{NestedNamespaces, View};

/// What `sandbox-init` does for one build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// The uid of which every process is killed before anything else happens, since an earlier
    /// build may have left some.
    pub(crate) cleared_uid: Option<u32>,
    /// Which namespaces the build's first process starts in.
    pub(crate) namespaces: Vec<Namespace>,
    /// What that process does.
    pub(crate) outer: Vec<Step>,
    /// The builder's own user namespace, which also locks every mount made so far.
    pub(crate) mapping: Option<IdMapping>,
    /// What the builder's process does before it becomes the builder.
    pub(crate) inner: Vec<InnerStep>,
    /// Who the builder's descendants are.
    pub(crate) descendants: Descendants,
}

impl Plan {
    /// Returns the name of what is mounted for the builder to read.
    pub(crate) fn view(&self) -> Option<View> {
        self.outer.iter().find_map(|step| {
            if let Step::MountStore { view, .. } = step {
                Some(*view)
            } else {
                None
            }
        })
    }
}

/// A namespace that the kernel can make new.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Namespace {
    /// Process numbers; when its first process ends, all end.
    Pid,
    /// Mounts.
    Mount,
    /// Network interfaces and abstract sockets.
    Network,
    /// System V IPC and message queues.
    Ipc,
    /// Host and domain name.
    Uts,
    /// The view of control groups.
    Cgroup,
}

/// How the builder's ids look from outside its user namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMapping {
    /// Its uid inside.
    pub(crate) inside_uid: u32,
    /// The launcher's number for it.
    pub(crate) outside_uid: u32,
    /// Its gid inside.
    pub(crate) inside_gid: u32,
    /// The launcher's number for it.
    pub(crate) outside_gid: u32,
}

/// How the processes that a builder leaves behind are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Descendants {
    /// They die with the pid namespace.
    InPidNamespace,
    /// They become children of the build's first process and are killed one by one.
    Adopted,
    /// The same, and nothing else may run under this uid.
    OfUser(u32),
}

/// What may be done through a bind mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Access {
    /// Read, and execute.
    ReadOnly,
    /// Anything that the files' modes allow, but no set-user-id and no devices.
    Writable,
    /// Open a device.
    Device,
}

/// What becomes of a bind mount whose source does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Absence {
    /// It is an error.
    Refused,
    /// The mount is left out.
    PassedOver,
}

/// What becomes of a bind mount whose source is a symbolic link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Link {
    /// The link is made again, with its target.
    MadeAgain,
    /// What it points at is mounted.
    Followed,
}

/// One thing that the build's first process does. Paths that are not sources are absolute paths of
/// the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Step {
    /// Cuts the mounts of this namespace off from the host's.
    DetachFromHost,
    /// Mounts the tmpfs that becomes the root directory.
    MountRoot {
        /// Over this host directory, for the time being.
        over: PathBuf,
    },
    /// Makes a directory, its parents too.
    MakeDirectory {
        /// Where.
        path: PathBuf,
        /// With these permission bits.
        mode: u32,
    },
    /// Makes a file.
    WriteFile {
        /// Where.
        path: PathBuf,
        /// With this content.
        content: String,
    },
    /// Makes a symbolic link.
    MakeLink {
        /// Where.
        path: PathBuf,
        /// Pointing there.
        target: PathBuf,
    },
    /// Shows a host file or directory.
    Bind {
        /// On the host.
        source: PathBuf,
        /// In the sandbox.
        target: PathBuf,
        /// What may be done through it.
        access: Access,
        /// If there is none.
        absence: Absence,
        /// If it is a link.
        link: Link,
    },
    /// Shows one of the build's own directories, in which further mount points may be made.
    BindOwn {
        /// On the host.
        source: PathBuf,
        /// In the sandbox.
        target: PathBuf,
    },
    /// Lays a tmpfs with the mount points of all inputs under the builder's store, so that the disk
    /// holds none of them.
    OverlayInputs {
        /// The builder's store on the host, which receives what it writes.
        upper: PathBuf,
        /// The overlay's own directory, on the same disk.
        work: PathBuf,
        /// The store's real directory.
        source: PathBuf,
        /// Where the store is in the sandbox.
        target: PathBuf,
        /// The inputs' base names.
        names: Vec<String>,
    },
    /// Shows the builder's store, and in it store objects on their mount points, read-only.
    MountStore {
        /// The builder's store on the host, which has the mount points.
        scratch: PathBuf,
        /// The store's real directory.
        source: PathBuf,
        /// Where the store is in the sandbox.
        target: PathBuf,
        /// The inputs' base names.
        names: Vec<String>,
        /// Names all of that: what was mounted for it before can be used again.
        view: View,
    },
    /// Lays an overlay over the host's store directory in this mount namespace.
    OverlayStore {
        /// The directory.
        store_dir: PathBuf,
        /// What receives writes.
        upper: PathBuf,
        /// The overlay's own directory.
        work: PathBuf,
    },
    /// Hides a directory that the builder's user may not pass behind one that it may, with only
    /// one of the directories in it.
    ShowOnly {
        /// The directory.
        directory: PathBuf,
        /// What is seen in it.
        name: String,
    },
    /// Mounts a new `/proc`.
    MountProc,
    /// Covers what is dangerous below `/proc`.
    CoverProc,
    /// Mounts a new `/dev/pts`.
    MountTerminals,
    /// Mounts a `/dev/shm` of this size.
    MountSharedMemory {
        /// As mount(8) spells sizes.
        size: String,
    },
    /// Switches the loopback interface on.
    RaiseLoopback,
    /// Sets the host's name and domain.
    NameHost {
        /// The name.
        host: String,
        /// The NIS domain.
        domain: String,
    },
    /// Makes the root directory read-only.
    SealRoot,
    /// Makes the new root the root, and lets go of the host's.
    EnterRoot,
    /// Offers the build to the out-of-memory killer first.
    VolunteerForOom,
}

/// One thing that the builder's process does, in this order, before it is the builder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum InnerStep {
    /// Makes sure that no capability is ever gained. Before the ids, which may take the right to.
    LimitCapabilities,
    /// Takes the ids. Everything later happens as the builder's user.
    BecomeUser {
        /// The uid.
        uid: u32,
        /// The gid.
        gid: u32,
        /// Further groups; in a user namespace of one's own there can be none.
        supplementary_gids: Vec<u32>,
    },
    /// Asks to be killed with its parent. After the ids, for changing them forgets it.
    DieWithParent,
    /// Leaves the launcher's session, so that there is no terminal to type into.
    LeaveSession,
    /// Standard input is empty, standard output and error are the log; nothing else stays open.
    Redirect,
    /// Goes where the builder works. After the ids, so that the user's own rights count.
    EnterDirectory(PathBuf),
    /// Takes an empty key ring; the user's own would outlive the build.
    ForgetKeys,
    /// No core dumps.
    ForbidCoreDumps,
    /// The same addresses in each run, and other traits that show in a build's result.
    Imitate {
        /// Kernel 2.6.
        linux_26: bool,
        /// A 32-bit machine.
        thirty_two_bit: bool,
    },
    /// Umask 022 and default signals.
    ResetProcess,
    /// Looks where the builder's path leads, as its user and with a call that the filter forbids.
    FindBuilder,
    /// Gives up every capability for good.
    DropCapabilities,
    /// No file that is executed from now on adds privileges.
    ForbidNewPrivileges,
    /// Best effort: no abstract sockets and no signals to processes outside.
    ScopeSockets,
    /// Loads the filter of system calls. Last, for it forbids some of the above.
    FilterSystemCalls(NestedNamespaces),
}
