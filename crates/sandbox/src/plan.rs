//! How a builder's surroundings are made: a [`SandboxSpec`] becomes two lists of steps.
//!
//! The *outer* steps are performed by the build's first process, which is still as powerful as the
//! launcher; the *inner* ones by the builder's own process just before it becomes the builder.
//! Nothing here touches the system, so tests compare plans.

mod steps;

use std::path::{Path, PathBuf};

use store_model::settings::SandboxPath;

use crate::spec::{
    Identity, Inputs, Isolation, Kvm, NestedNamespaces, Network, Predecessors, SANDBOX_GID,
    SANDBOX_UID, SandboxSpec, SandboxView, Switch,
};

pub(crate) use self::steps::{
    Absence, Access, Descendants, IdMapping, InnerStep, Link, Namespace, Plan, Step,
};

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
            cleared_uid: Some(spec.identity.uid),
            namespaces: vec![Namespace::Mount],
            outer: vec![
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
            cleared_uid: None,
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
        cleared_uid: (spec.identity.predecessors == Predecessors::Possible).then_some(uid),
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
            supplementary_gids: Vec::new(),
        });
    } else if spec.identity.switch == Switch::Become {
        steps.push(InnerStep::BecomeUser {
            uid: spec.identity.uid,
            gid: spec.identity.gid,
            supplementary_gids: spec.identity.supplementary_gids.clone(),
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
