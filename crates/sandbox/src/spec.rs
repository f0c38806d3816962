//! What a builder's surroundings shall be, before anybody thinks about how to make them.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use store_model::settings::SandboxPath;

/// The uid that every builder has inside its sandbox.
pub(crate) const SANDBOX_UID: u32 = 1000;

/// The gid that every builder has inside its sandbox.
pub(crate) const SANDBOX_GID: u32 = 100;

/// Everything that decides what a builder sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxSpec {
    /// How far the builder is kept from the host.
    pub(crate) isolation: Isolation,
    /// Who runs it.
    pub(crate) identity: Identity,
    /// Host directory that becomes its working directory.
    pub(crate) build_dir: PathBuf,
    /// Where the builder sees it.
    pub(crate) build_dir_inside: PathBuf,
    /// Whether it sees kernel 2.6.
    pub(crate) impersonate_linux_26: bool,
    /// Whether `uname` names a 32-bit machine.
    pub(crate) thirty_two_bit: bool,
}

/// How far a builder is kept from the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// Namespaces of its own and a root directory of its own.
    Sandbox(Box<SandboxView>),
    /// The host's view, but the store's directory shows `scratch_store` on top of the real one, so
    /// that nothing reaches the store unregistered.
    OverlaidStore {
        /// The store's directory on the host.
        store_dir: PathBuf,
        /// Where what the builder makes in the store lands.
        scratch_store: PathBuf,
        /// What the overlay needs for itself, on the same file system.
        overlay_work: PathBuf,
        /// The directory that holds the working directory, and that only the store's owner passes.
        outer_build_dir: PathBuf,
    },
    /// The host's view, and the store itself: without privileges there is no other way.
    Bare,
}

/// Who runs a builder, in the numbers of the user namespace that the launcher lives in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The user.
    pub(crate) uid: u32,
    /// The group; in a sandbox the only one.
    pub(crate) gid: u32,
    /// Other groups of the user.
    pub(crate) supplementary_gids: Vec<u32>,
    /// Whether the launcher may change its own user at all.
    pub(crate) switch: Switch,
    /// Whether processes of this user may run already.
    pub(crate) predecessors: Predecessors,
}

/// Whether somebody may have left processes of a builder's user running.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Predecessors {
    /// Nobody else has the user, or builders of nobody else.
    None,
    /// Another program may have.
    Possible,
}

/// Whether a builder outside the sandbox gets another user than the launcher's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Switch {
    /// The launcher is root and becomes the builder's user.
    Become,
    /// The launcher is nobody special and stays who it is.
    Stay,
}

/// What a sandboxed builder sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SandboxView {
    /// An empty host directory over which the new root is mounted while it is being made.
    pub(crate) root_mount_point: PathBuf,
    /// The store's directory as the builder names it.
    pub(crate) store_dir: PathBuf,
    /// The store's directory on the host.
    pub(crate) real_store_dir: PathBuf,
    /// Host directory that becomes the builder's store.
    pub(crate) scratch_store: PathBuf,
    /// The store objects that it may read.
    pub(crate) inputs: Inputs,
    /// Host directory that becomes `/tmp`.
    pub(crate) tmp_dir: PathBuf,
    /// What else of the host it sees.
    pub(crate) host_paths: Vec<SandboxPath>,
    /// Size of `/dev/shm`.
    pub(crate) shm_size: String,
    /// Whether it sees `/dev/kvm`.
    pub(crate) kvm: Kvm,
    /// Which network it is on.
    pub(crate) network: Network,
    /// Whether it may make user namespaces of its own.
    pub(crate) nested_namespaces: NestedNamespaces,
}

/// The store objects that a builder may read, by their base names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Inputs {
    /// There is no sandbox: it may read all.
    None,
    /// Each is mounted on its mount point in the scratch store.
    Mounted {
        /// Of those that are not symbolic links, which are there already.
        names: Vec<String>,
        /// Names what is mounted where.
        view: View,
    },
    /// An overlay shows mount points, and links, that are made in memory.
    Overlaid {
        /// What the overlay needs for itself, on the scratch store's disk.
        work: PathBuf,
        /// Of all of them.
        names: Vec<String>,
    },
}

/// Names a set of inputs on the mount points of one scratch store. As long as neither an input nor a
/// mount point is another one, neither is the view.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct View {
    /// Never used for another.
    pub(crate) id: u64,
    /// Whether a builder has had it before, and so a further one may.
    pub(crate) is_known: bool,
}

/// Whether a builder sees `/dev/kvm`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// It does.
    Offered,
    /// It does not.
    Hidden,
}

/// Which network a builder is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Network {
    /// A loopback interface of its own.
    Loopback,
    /// The host's: its output is fixed.
    Host,
}

/// Whether a builder may make user namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum NestedNamespaces {
    /// It may, and so `/proc` must be bare: the kernel lets nobody mount a second `/proc` while
    /// parts of the first are covered. File permissions alone guard it.
    Allowed,
    /// It may not, and what is dangerous below `/proc` is covered.
    Denied,
}
