//! Who a builder is, inside and outside.

use crate::lab::{Lab, Profile, as_root, in_both_profiles, profile};

in_both_profiles! {
    a_builder_has_no_rights_at_all => super::has_no_rights;
    a_builder_is_user_1000_in_group_100 => super::is_nixbld;
    the_machine_is_called_localhost => super::machine_name;
    a_builder_dumps_no_core_and_has_umask_022 => super::limits;
    addresses_are_the_same_in_each_run => super::personality;
    signals_have_their_default_actions => super::signals;
}

as_root! {
    each_running_builder_has_a_user_of_its_own => users_differ;
    a_builder_of_root_is_not_root_on_the_host => is_not_root;
}

async fn has_no_rights(lab: Lab) {
    let built = lab.run("cat /proc/self/status").await;
    built.assert_success();
    let status = |name: &str| {
        let line = built.log.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|value| value.strip_prefix(':'))
            .map(str::trim)
            .unwrap()
            .to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(status(set), "0000000000000000", "{set}");
    }
    assert_eq!(status("NoNewPrivs"), "1");
    assert_eq!(status("Uid"), "1000\t1000\t1000\t1000");
    assert_eq!(status("Gid"), "100\t100\t100\t100");
    assert_eq!(status("Groups"), kept_groups());
}

/// Returns the groups that a builder has besides its own, as it sees them: without root's rights
/// nobody can leave a group, so an ordinary user's builders are in the user's.
fn kept_groups() -> String {
    if rustix::process::geteuid().is_root() {
        return String::new();
    }
    let own = rustix::process::getegid();
    let groups = rustix::process::getgroups().unwrap();
    let seen = groups.iter().map(|group| {
        // Groups that are not mapped all look the same, and name nothing inside.
        if *group == own { "100" } else { "65534" }
    });
    seen.collect::<Vec<_>>().join(" ")
}

async fn is_nixbld(lab: Lab) {
    let built = lab
        .run("id -un; id -gn; id -u; id -g; cat /etc/passwd /etc/group")
        .await;
    built.assert_success();
    assert_eq!(
        built.log,
        "nixbld\n\
         nixbld\n\
         1000\n\
         100\n\
         root:x:0:0:Nix build user:/build:/noshell\n\
         nixbld:x:1000:100:Nix build user:/build:/noshell\n\
         nobody:x:65534:65534:Nobody:/:/noshell\n\
         root:x:0:\n\
         nixbld:!:100:\n\
         nogroup:x:65534:\n"
    );
}

async fn machine_name(lab: Lab) {
    let script = "hostname; cat /proc/sys/kernel/domainname; cat /etc/hosts; \
                  ping -c 1 -q 127.0.0.1 2>&1 | head -n 1; ip link | grep -c '^[0-9]'; \
                  ip link show lo | head -n 1";
    let built = lab.run(script).await;
    assert!(
        built
            .log
            .starts_with("localhost\n(none)\n127.0.0.1 localhost\n::1 localhost\n"),
        "{}",
        built.log
    );
    assert!(
        built.log.contains("\n1\n1: lo: <LOOPBACK,UP,LOWER_UP>"),
        "{}",
        built.log
    );
}

async fn limits(lab: Lab) {
    let built = lab
        .run("umask; ulimit -c; ulimit -Hc; pwd; ps | wc -l")
        .await;
    assert!(
        built.log.starts_with("0022\n0\n0\n/build\n"),
        "{}",
        built.log
    );
}

async fn personality(lab: Lab) {
    let built = lab.run("cat /proc/self/personality; uname -r").await;
    assert!(built.log.starts_with("00040000\n"), "{}", built.log);

    let mut lab = lab;
    lab.settings.impersonate_linux_26 = true;
    let built = lab.run("uname -r").await;
    assert!(built.log.starts_with("2.6."), "{}", built.log);
}

async fn signals(lab: Lab) {
    // Not a shell, for that ignores some itself.
    let mut derivation = lab.script("");
    derivation.builder = derivation
        .builder
        .to_string()
        .replace("/sh", "/grep")
        .into();
    derivation.args = vec![
        "-E".into(),
        "^Sig(Blk|Ign|Pnd)".into(),
        "/proc/self/status".into(),
    ];
    let built = lab.run_derivation(derivation).await;
    built.assert_success();
    for line in built.log.lines() {
        assert!(line.ends_with("\t0000000000000000"), "{line}");
    }
    assert_eq!(built.log.lines().count(), 3);
}

async fn users_differ(lab: Lab) {
    let supervisor = lab.start();
    let mut derivation = lab.script("echo here; read forever < /dev/zero; sleep 60");
    let mut first = lab.build(&supervisor, 1, derivation.clone());
    "other".clone_into(&mut derivation.name);
    let mut second = lab.build(&supervisor, 2, derivation);
    let first = first.started().await;
    let second = second.started().await;
    assert_ne!(first.uid, second.uid);
    for started in [first, second] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", started.pid)).unwrap();
        assert!(status.contains("NSpid:"), "the pid is a host's");
        assert!(started.uid >= lab.settings.start_id);
    }
    supervisor.send(sandbox::StopSandbox).await.unwrap();
    lab.assert_clean();
}

async fn is_not_root(lab: Lab) {
    let supervisor = lab.start();
    let mut building = lab.build(&supervisor, 1, lab.script("echo here; exec sleep 60"));
    let started = building.started().await;
    building.wait_for("here").await;
    // The builder is the only child of the build's first process.
    let children = format!("/proc/{0}/task/{0}/children", started.pid);
    let builder = std::fs::read_to_string(children).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", builder.trim())).unwrap();
    let uid = started.uid;
    assert!(
        status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")),
        "{status}"
    );
    assert!(
        status.contains(&format!("Gid:\t{uid}\t{uid}\t{uid}\t{uid}\n")),
        "{status}"
    );
    assert_eq!(profile(), Profile::Root);
    supervisor.send(sandbox::StopSandbox).await.unwrap();
}
