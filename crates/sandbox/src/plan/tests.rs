//! Plans are compared as data: the kernel has no part in them.

use super::*;
use crate::spec::View;

fn view(network: Network, nested_namespaces: NestedNamespaces) -> SandboxView {
    SandboxView {
        root_mount_point: "/state/sandbox-root".into(),
        store_dir: "/nix/store".into(),
        real_store_dir: "/real/store".into(),
        scratch_store: "/real/store/x.drv.chroot/goalctl-store".into(),
        inputs: Inputs::Mounted {
            names: vec!["a-input".to_owned()],
            view: View {
                id: 0,
                is_known: false,
            },
        },
        tmp_dir: "/state/builds/x/tmp".into(),
        host_paths: vec![
            SandboxPath {
                target: "/bin/sh".into(),
                source: "/bin/busybox".into(),
                optional: false,
                writable: false,
            },
            SandboxPath {
                target: "/proc".into(),
                source: "/proc".into(),
                optional: false,
                writable: false,
            },
        ],
        shm_size: "50%".to_owned(),
        kvm: Kvm::Hidden,
        network,
        nested_namespaces,
    }
}

fn plan_of(isolation: Isolation) -> Plan {
    plan(&SandboxSpec {
        isolation,
        identity: Identity {
            uid: 30_001,
            gid: 30_001,
            supplementary_gids: vec![30_002],
            switch: Switch::Become,
            predecessors: Predecessors::None,
        },
        build_dir: "/state/builds/x/build".into(),
        build_dir_inside: "/build".into(),
        impersonate_linux_26: false,
        thirty_two_bit: false,
    })
}

fn sandboxed_plan(network: Network, nested: NestedNamespaces) -> Plan {
    plan_of(Isolation::Sandbox(Box::new(view(network, nested))))
}

fn position(plan: &Plan, step: &Step) -> usize {
    plan.outer
        .iter()
        .position(|candidate| candidate == step)
        .unwrap_or_else(|| panic!("{step:?} is missing"))
}

#[test]
fn the_host_is_cut_off_first_and_let_go_of_after_the_last_mount() {
    let plan = sandboxed_plan(Network::Loopback, NestedNamespaces::Allowed);
    assert_eq!(position(&plan, &Step::DetachFromHost), 0);
    let sealed = position(&plan, &Step::SealRoot);
    assert_eq!(position(&plan, &Step::EnterRoot), sealed + 1);
    let is_mount = |step: &Step| {
        matches!(
            step,
            Step::Bind { .. }
                | Step::BindOwn { .. }
                | Step::MountStore { .. }
                | Step::MakeDirectory { .. }
                | Step::WriteFile { .. }
        )
    };
    let last_mount = plan.outer.iter().rposition(is_mount);
    assert!(last_mount < Some(sealed), "{:?}", plan.outer);
}

#[test]
fn rights_go_after_everything_that_needs_them_and_the_filter_is_last() {
    let plan = sandboxed_plan(Network::Loopback, NestedNamespaces::Denied);
    assert_eq!(
        plan.inner,
        [
            InnerStep::LimitCapabilities,
            InnerStep::BecomeUser {
                uid: 1000,
                gid: 100,
                supplementary_gids: Vec::new()
            },
            InnerStep::DieWithParent,
            InnerStep::LeaveSession,
            InnerStep::Redirect,
            InnerStep::EnterDirectory("/build".into()),
            InnerStep::ForgetKeys,
            InnerStep::ForbidCoreDumps,
            InnerStep::Imitate {
                linux_26: false,
                thirty_two_bit: false
            },
            InnerStep::ResetProcess,
            InnerStep::FindBuilder,
            InnerStep::DropCapabilities,
            InnerStep::ForbidNewPrivileges,
            InnerStep::ScopeSockets,
            InnerStep::FilterSystemCalls(NestedNamespaces::Denied),
        ]
    );
}

#[test]
fn only_a_fixed_output_is_on_the_hosts_network() {
    let own = sandboxed_plan(Network::Loopback, NestedNamespaces::Allowed);
    assert!(own.namespaces.contains(&Namespace::Network));
    position(&own, &Step::RaiseLoopback);
    let hosts = sandboxed_plan(Network::Host, NestedNamespaces::Allowed);
    assert!(!hosts.namespaces.contains(&Namespace::Network));
    assert!(!hosts.outer.contains(&Step::RaiseLoopback));
}

#[test]
fn a_configured_proc_is_passed_over_and_ours_is_covered_on_demand() {
    let allowed = sandboxed_plan(Network::Loopback, NestedNamespaces::Allowed);
    assert!(!allowed.outer.contains(&Step::CoverProc));
    let is_hosts =
        |step: &Step| matches!(step, Step::Bind { source, .. } if source == Path::new("/proc"));
    assert!(!allowed.outer.iter().any(is_hosts));
    let denied = sandboxed_plan(Network::Loopback, NestedNamespaces::Denied);
    assert!(position(&denied, &Step::CoverProc) > position(&denied, &Step::EnterRoot));
}

#[test]
fn an_overlay_takes_no_mount_points_on_disk() {
    let mut view = view(Network::Loopback, NestedNamespaces::Allowed);
    let names: Vec<_> = (0..100).map(|idx| format!("input-{idx}")).collect();
    view.inputs = Inputs::Overlaid {
        work: "/real/store/x.drv.chroot/work".into(),
        names: names.clone(),
    };
    let plan = plan_of(Isolation::Sandbox(Box::new(view)));
    position(
        &plan,
        &Step::OverlayInputs {
            upper: "/real/store/x.drv.chroot/goalctl-store".into(),
            work: "/real/store/x.drv.chroot/work".into(),
            source: "/real/store".into(),
            target: "/nix/store".into(),
            names,
        },
    );
}

#[test]
fn without_a_sandbox_the_user_is_still_another_one() {
    let plan = plan_of(Isolation::OverlaidStore {
        store_dir: "/nix/store".into(),
        scratch_store: "/state/builds/x/goalctl-store".into(),
        overlay_work: "/state/builds/x/work".into(),
        outer_build_dir: "/state/builds/x".into(),
    });
    assert_eq!(plan.namespaces, [Namespace::Mount]);
    assert_eq!(plan.descendants, Descendants::OfUser(30_001));
    let becomes = InnerStep::BecomeUser {
        uid: 30_001,
        gid: 30_001,
        supplementary_gids: vec![30_002],
    };
    assert_eq!(plan.cleared_uid, Some(30_001));
    assert!(plan.inner.contains(&becomes));
    assert!(plan.inner.contains(&InnerStep::DropCapabilities));
}
