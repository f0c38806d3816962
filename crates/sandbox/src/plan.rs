//! How a builder's surroundings are made: a [`SandboxSpec`] becomes two lists of steps.
//!
//! The *outer* steps are performed by the build's first process, which is still as powerful as the
//! launcher; the *inner* ones by the builder's own process just before it becomes the builder.
//! Nothing here touches the system, so tests compare plans.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use store_model::settings::SandboxPath;

use crate::spec::{
    Identity, Inputs, Isolation, Kvm, NestedNamespaces, Network, SANDBOX_GID, SANDBOX_UID,
    SandboxSpec, SandboxView, Switch, View,
};

/// What `sandbox-init` does for one build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
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
    /// Kills whatever an earlier build left running under this uid.
    ClearUser {
        /// The uid.
        uid: u32,
    },
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

/// Turns a description into the steps that make it true.
pub(crate) fn plan(spec: &SandboxSpec) -> Plan {
    match &spec.isolation {
        Isolation::Sandbox(view) => sandboxed(spec, view),
        Isolation::OverlaidStore {
            store_dir,
            scratch_store,
            overlay_work,
            outer_build_dir,
        } => Plan {
            namespaces: vec![Namespace::Mount],
            outer: vec![
                Step::ClearUser {
                    uid: spec.identity.uid,
                },
                Step::DetachFromHost,
                Step::OverlayStore {
                    store_dir: store_dir.clone(),
                    upper: scratch_store.clone(),
                    work: overlay_work.clone(),
                },
                // After the overlay, whose layers are in there.
                Step::ShowOnly {
                    directory: outer_build_dir.clone(),
                    name: "build".to_owned(),
                },
                Step::VolunteerForOom,
            ],
            mapping: None,
            inner: inner(spec, NestedNamespaces::Allowed),
            descendants: Descendants::OfUser(spec.identity.uid),
        },
        Isolation::Bare => Plan {
            namespaces: Vec::new(),
            outer: vec![Step::VolunteerForOom],
            mapping: None,
            inner: inner(spec, NestedNamespaces::Allowed),
            descendants: Descendants::Adopted,
        },
    }
}

fn sandboxed(spec: &SandboxSpec, view: &SandboxView) -> Plan {
    let mut namespaces = vec![
        Namespace::Pid,
        Namespace::Mount,
        Namespace::Ipc,
        Namespace::Uts,
        Namespace::Cgroup,
    ];
    if view.network == Network::Loopback {
        namespaces.push(Namespace::Network);
    }
    let Identity { uid, gid, .. } = spec.identity;
    Plan {
        namespaces,
        outer: outer(spec, view),
        mapping: Some(IdMapping {
            inside_uid: SANDBOX_UID,
            outside_uid: uid,
            inside_gid: SANDBOX_GID,
            outside_gid: gid,
        }),
        inner: inner(spec, view.nested_namespaces),
        descendants: Descendants::InPidNamespace,
    }
}

fn outer(spec: &SandboxSpec, view: &SandboxView) -> Vec<Step> {
    let mut steps = vec![
        // Before the first mount, or the host would see it.
        Step::DetachFromHost,
        Step::MountRoot {
            over: view.root_mount_point.clone(),
        },
    ];
    // Before the store, which may lie in there.
    steps.push(bind_own(&view.tmp_dir, "/tmp"));
    steps.push(bind_own(&spec.build_dir, &spec.build_dir_inside));
    steps.extend(store(view));
    steps.extend(etc(view.network, &spec.build_dir_inside));
    steps.push(directory("/proc", 0o555));
    steps.push(Step::MountProc);
    steps.extend(devices(view));
    // The user's own come after ours, so that they win, and after /proc, whose source is passed
    // over because a second one would show the host's processes.
    steps.extend(
        view.host_paths
            .iter()
            .filter(|path| path.source != Path::new("/proc"))
            .map(host_path),
    );
    if view.network == Network::Loopback {
        steps.push(Step::RaiseLoopback);
    }
    steps.push(Step::NameHost {
        host: "localhost".to_owned(),
        domain: "(none)".to_owned(),
    });
    // After everything that makes files in it, and before the builder can.
    steps.push(Step::SealRoot);
    steps.push(Step::EnterRoot);
    // Needs the new /proc. Before it is covered, for then /proc/self stays writable.
    steps.push(Step::VolunteerForOom);
    if view.nested_namespaces == NestedNamespaces::Denied {
        steps.push(Step::CoverProc);
    }
    steps
}

fn store(view: &SandboxView) -> Vec<Step> {
    match &view.inputs {
        Inputs::Overlaid { work, names } => vec![
            directory(&view.store_dir, 0o755),
            Step::OverlayInputs {
                upper: view.scratch_store.clone(),
                work: work.clone(),
                source: view.real_store_dir.clone(),
                target: view.store_dir.clone(),
                names: names.clone(),
            },
        ],
        Inputs::Mounted { names, view: known } => vec![
            directory(&view.store_dir, 0o755),
            Step::MountStore {
                scratch: view.scratch_store.clone(),
                source: view.real_store_dir.clone(),
                target: view.store_dir.clone(),
                names: names.clone(),
                view: *known,
            },
        ],
        Inputs::None => vec![bind_own(&view.scratch_store, &view.store_dir)],
    }
}

fn etc(network: Network, home: &Path) -> Vec<Step> {
    let home = home.display();
    let mut steps = vec![
        // Nobody adds an /etc/ld.so.preload, not even where the root is a directory of a disk.
        directory("/etc", 0o555),
        file(
            "/etc/passwd",
            format!(
                "root:x:0:0:Nix build user:{home}:/noshell\n\
                 nixbld:x:{SANDBOX_UID}:{SANDBOX_GID}:Nix build user:{home}:/noshell\n\
                 nobody:x:65534:65534:Nobody:/:/noshell\n"
            ),
        ),
        file(
            "/etc/group",
            format!("root:x:0:\nnixbld:!:{SANDBOX_GID}:\nnogroup:x:65534:\n"),
        ),
    ];
    match network {
        Network::Loopback => steps.push(file(
            "/etc/hosts",
            "127.0.0.1 localhost\n::1 localhost\n".to_owned(),
        )),
        Network::Host => {
            steps.push(file(
                "/etc/nsswitch.conf",
                "hosts: files dns\nservices: files\n".to_owned(),
            ));
            steps.extend(
                [
                    "/etc/resolv.conf",
                    "/etc/services",
                    "/etc/hosts",
                    "/etc/ssl/certs/ca-certificates.crt",
                ]
                .map(|path| Step::Bind {
                    source: path.into(),
                    target: path.into(),
                    access: Access::ReadOnly,
                    absence: Absence::PassedOver,
                    link: Link::Followed,
                }),
            );
        }
    }
    steps
}

fn devices(view: &SandboxView) -> Vec<Step> {
    let users_own = |path: &SandboxPath| path.target == Path::new("/dev");
    if view.host_paths.iter().any(users_own) {
        return Vec::new();
    }
    let mut steps = vec![directory("/dev", 0o755)];
    let kvm = (view.kvm == Kvm::Offered).then_some("kvm");
    steps.extend(
        ["full", "null", "random", "tty", "urandom", "zero"]
            .into_iter()
            .chain(kvm)
            .map(|name| {
                let path = Path::new("/dev").join(name);
                Step::Bind {
                    source: path.clone(),
                    target: path,
                    access: Access::Device,
                    absence: Absence::Refused,
                    link: Link::Followed,
                }
            }),
    );
    steps.extend([
        link("/dev/fd", "/proc/self/fd"),
        link("/dev/stdin", "/proc/self/fd/0"),
        link("/dev/stdout", "/proc/self/fd/1"),
        link("/dev/stderr", "/proc/self/fd/2"),
        link("/dev/ptmx", "/dev/pts/ptmx"),
        directory("/dev/pts", 0o755),
        Step::MountTerminals,
        directory("/dev/shm", 0o755),
        Step::MountSharedMemory {
            size: view.shm_size.clone(),
        },
    ]);
    steps
}

fn inner(spec: &SandboxSpec, nested_namespaces: NestedNamespaces) -> Vec<InnerStep> {
    let sandboxed = matches!(spec.isolation, Isolation::Sandbox(_));
    let mut steps = vec![InnerStep::LimitCapabilities];
    if sandboxed {
        steps.push(InnerStep::BecomeUser {
            uid: SANDBOX_UID,
            gid: SANDBOX_GID,
        });
    } else if spec.identity.switch == Switch::Become {
        steps.push(InnerStep::BecomeUser {
            uid: spec.identity.uid,
            gid: spec.identity.gid,
        });
    }
    let build_dir = if sandboxed {
        &spec.build_dir_inside
    } else {
        &spec.build_dir
    };
    steps.extend([
        InnerStep::DieWithParent,
        InnerStep::LeaveSession,
        InnerStep::Redirect,
        InnerStep::EnterDirectory(build_dir.clone()),
        InnerStep::ForgetKeys,
        InnerStep::ForbidCoreDumps,
        InnerStep::Imitate {
            linux_26: spec.impersonate_linux_26,
            thirty_two_bit: spec.thirty_two_bit,
        },
        InnerStep::ResetProcess,
        InnerStep::FindBuilder,
        InnerStep::DropCapabilities,
        InnerStep::ForbidNewPrivileges,
        InnerStep::ScopeSockets,
        InnerStep::FilterSystemCalls(nested_namespaces),
    ]);
    steps
}

fn host_path(path: &SandboxPath) -> Step {
    Step::Bind {
        source: path.source.clone(),
        target: path.target.clone(),
        access: match (path.target.starts_with("/dev"), path.writable) {
            (true, _) => Access::Device,
            (false, true) => Access::Writable,
            (false, false) => Access::ReadOnly,
        },
        absence: if path.optional {
            Absence::PassedOver
        } else {
            Absence::Refused
        },
        link: Link::MadeAgain,
    }
}

fn bind_own(source: &Path, target: impl Into<PathBuf>) -> Step {
    Step::BindOwn {
        source: source.into(),
        target: target.into(),
    }
}

fn directory(path: impl Into<PathBuf>, mode: u32) -> Step {
    Step::MakeDirectory {
        path: path.into(),
        mode,
    }
}

fn file(path: &str, content: String) -> Step {
    Step::WriteFile {
        path: path.into(),
        content,
    }
}

fn link(path: &str, target: &str) -> Step {
    Step::MakeLink {
        path: path.into(),
        target: target.into(),
    }
}

#[cfg(test)]
mod tests;
