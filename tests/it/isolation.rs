//! What a builder has, sees and can reach.

use std::fs;

use it::{Profile, TestStore, debris, processes, requirement};

use crate::guard::{PROBE, answer, field, guarded_stores, output_text, under_guard};

#[test]
fn a_builder_has_a_uid_of_its_own_and_no_rights() {
    for (store, canary) in guarded_stores() {
        store.signals().pipes(&["ready", "go"]);
        let drv = store.script(
            "powerless",
            "cat /proc/self/status > $out; id -u >> $out; id -g >> $out; \
             echo here > /signals/ready; read word < /signals/go",
        );
        let goalctl = store.build_with_signals(&drv).start();
        store.signals().await_word("ready");
        let outside = status_of_builder(goalctl.pid(), "/signals/ready");
        let _open = store.signals().release("go");
        let inside = output_text(&store, &drv, &goalctl.finish());

        for status in [&outside, &inside] {
            for capabilities in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
                assert_eq!(field(status, capabilities), "0000000000000000");
            }
            assert_eq!(field(status, "NoNewPrivs"), "1");
            assert_eq!(field(status, "Seccomp"), "2");
        }
        let uids = field(&outside, "Uid");
        if store.profile() == Profile::Root {
            assert!(uids.split_whitespace().all(|uid| uid != "0"), "{uids}");
            assert_eq!(field(&outside, "Groups"), "");
        } else {
            let own = store.profile().uid().to_string();
            assert!(uids.split_whitespace().all(|uid| uid == own), "{uids}");
        }
        assert!(inside.ends_with("\n1000\n100\n"), "{inside}");
        canary.assert_untouched(&store);
    }
}

#[test]
fn two_builders_of_root_never_share_a_uid_while_both_run() {
    if !requirement::genuine_nix() || !requirement::root() {
        return;
    }
    let store = TestStore::of(Profile::Root);
    store.signals().pipes(&["ready-1", "ready-2", "go"]);
    let drvs = store.instantiate(
        "map (n: mk \"side-by-side-${n}\" \"echo here > /signals/ready-${n}; \
         read word < /signals/go; echo x > $out\" { }) [ \"1\" \"2\" ]",
    );
    let goalctl = store
        .build_with_signals(&drvs[0])
        .args([&drvs[1], "-j", "2"])
        .start();
    let uids = ["1", "2"].map(|number| {
        store.signals().await_word(&format!("ready-{number}"));
        let status = status_of_builder(goalctl.pid(), &format!("/signals/ready-{number}"));
        field(&status, "Uid").to_owned()
    });
    let _open = [store.signals().release("go"), store.signals().release("go")];
    goalctl.finish().expect_status(0);
    assert_ne!(uids[0], uids[1]);
    debris::assert_clean(&store);
}

#[test]
fn a_builder_sees_its_inputs_and_nothing_of_the_host() {
    under_guard(
        r"
        {
          for file in /root /home /usr /var /etc/shadow /sys @SECRET@; do
            if [ -e $file ]; then echo sees $file; fi
          done
          ls /proc/1/root/ 2> /dev/null | sed 's/^/root: /' || true
          ls / | sed 's/^/root: /'
          ls /nix/store | sed 's/^/store: /'
          cd /; cd ../../../..; ls | sed 's/^/root: /'
        } > $out
        ",
        |store, drv, finished| {
            let seen = output_text(store, drv, finished);
            assert!(!seen.contains("sees "), "{seen}");
            let names =
                |mark: &'static str| seen.lines().filter_map(move |line| line.strip_prefix(mark));
            assert!(names("root: ").count() > 5, "{seen}");
            for name in names("root: ") {
                assert!(
                    ["bin", "build", "dev", "etc", "nix", "proc", "tmp"].contains(&name),
                    "/{name} is in the sandbox"
                );
            }
            for name in names("store: ") {
                assert!(
                    name.ends_with("-tools") || name.ends_with("-hostile"),
                    "{name} is not its input"
                );
            }
        },
    );
}

#[test]
fn a_builder_cannot_leave_its_root_though_it_may_change_it_in_a_namespace_of_its_own() {
    under_guard(
        r#"
        mkdir jail
        if chroot jail /bin/true 2> /dev/null; then echo chroot >> $out; fi
        unshare -Urm sh -c "mkdir inner; chroot inner sh -c 'cd ../../../..; ls'; \
          cd ../../../../../..; ls; cat @SECRET@ /proc/1/root@SECRET@" >> $out 2> /dev/null || true
        cat /proc/self/mountinfo >> $out
        "#,
        |store, drv, finished| {
            let seen = output_text(store, drv, finished);
            assert!(!seen.contains("home") && !seen.contains("CANARY"), "{seen}");
            // Nothing of the host is mounted but the shell, and folders of the store's own.
            for line in seen.lines().filter(|line| line.contains(" - ext4 ")) {
                let columns: Vec<&str> = line.split(' ').collect();
                let is_known = columns[3].contains("/nix/") || columns[4] == "/bin/sh";
                assert!(is_known, "mounted from the host: {line}");
            }
        },
    );
}

#[test]
fn a_builder_cannot_change_its_inputs() {
    under_guard(
        r#"
        victim=${tools}/bin/busybox
        try() { what=$1; shift; if "$@" 2> /dev/null; then echo worked: $what; fi; }
        try chmod chmod u+w $victim
        try chmod-folder chmod u+w ${tools}/bin
        try append sh -c "echo evil >> $victim"
        try remove rm -f ${tools}/bin/awk
        try move mv ${tools} /nix/store/moved
        try create touch ${tools}/new
        try remount unshare -Urm sh -c "mount -o remount,rw,bind ${tools} && echo evil >> $victim"
        try umount unshare -Urm umount ${tools}
        echo tried > $out
        "#,
        |store, drv, finished| {
            assert_eq!(output_text(store, drv, finished), "tried\n");
            let log = store.goalctl(["log", drv]).succeed().output();
            assert!(!log.contains("worked:"), "{log}");
            debris::assert_verifies(store);
        },
    );
}

#[test]
fn no_call_makes_a_file_that_runs_with_its_owners_rights() {
    const EPERM: &str = "1";
    const ENOSYS: &str = "38";
    under_guard(
        "probe mode ./x > $out; cp ${tools}/bin/sh ./sh; chmod 4755 ./sh 2> /dev/null || true; \
         find . -perm /6000 >> $out",
        |store, drv, finished| {
            let report = output_text(store, drv, finished);
            for name in [
                "open",
                "openat",
                "creat",
                "mknod",
                "mknodat",
                "tmpfile",
                "chmod",
                "fchmodat",
                "fchmodat2",
            ] {
                assert_eq!(answer(&report, name), EPERM, "{name}");
            }
            for name in ["openat2", "io_uring"] {
                assert_eq!(answer(&report, name), ENOSYS, "{name}");
            }
            assert!(!report.contains("./"), "there are some:\n{report}");
        },
    );
}

#[test]
fn a_builder_has_no_terminal_to_type_into() {
    under_guard("probe terminal > $out", |store, drv, finished| {
        let report = output_text(store, drv, finished);
        // ENXIO: there is no controlling terminal.
        assert_eq!(answer(&report, "open"), "6");
        for line in report.lines() {
            assert!(!line.ends_with(" ok"), "{line}");
        }
    });
}

#[test]
fn a_builder_inherits_no_descriptor_but_its_three() {
    under_guard(
        "exec 9> $out; readlink /proc/self/fd/0 >&9; cd /proc/self/fd; \
         for fd in *; do echo fd $fd >&9; done",
        |store, drv, finished| {
            let report = output_text(store, drv, finished);
            assert!(report.starts_with("/dev/null\n"), "{report}");
            let descriptors: Vec<_> = report
                .lines()
                .filter_map(|line| line.strip_prefix("fd "))
                // 9 is the output.
                .filter(|number| *number != "9")
                .collect();
            assert_eq!(descriptors[..3], ["0", "1", "2"]);
            // The shell opens one more to read the folder.
            assert!(descriptors.len() <= 4, "{descriptors:?}");
        },
    );
}

#[test]
fn a_builder_sees_no_process_but_its_own() {
    under_guard(
        "cd /proc; for pid in [0-9]*; do cat $pid/comm 2> /dev/null || true; done > $out",
        |store, drv, finished| {
            let names = output_text(store, drv, finished);
            assert!(names.lines().count() >= 2, "{names}");
            for name in names.lines() {
                assert!(
                    name.contains("sandbox-i") || ["sh", "cat"].contains(&name),
                    "{name}"
                );
            }
        },
    );
}

#[test]
fn a_key_that_one_builder_leaves_is_not_there_for_the_next() {
    for (store, canary) in guarded_stores() {
        let leaving = store.script("leaving", &format!("{PROBE}probe keyring add > $out"));
        let finished = store.goalctl(["build", &leaving]).run();
        output_text(&store, &leaving, &finished);
        let looking = store.script("looking", &format!("{PROBE}probe keyring find > $out"));
        let finished = store.goalctl(["build", &looking]).run();
        assert_ne!(output_text(&store, &looking, &finished), "find ok\n");
        canary.assert_untouched(&store);
    }
}

#[test]
fn only_ordinary_sockets_can_be_opened() {
    const EAFNOSUPPORT: &str = "97";
    under_guard("probe sockets > $out", |store, drv, finished| {
        let report = output_text(store, drv, finished);
        for name in ["unix", "inet", "inet6", "netlink"] {
            assert_eq!(answer(&report, name), "ok", "{name}");
        }
        for name in ["vsock", "alg", "packet", "bluetooth"] {
            assert_eq!(answer(&report, name), EAFNOSUPPORT, "{name}");
        }
    });
}

#[test]
fn a_builder_has_only_a_loopback_and_can_use_it() {
    under_guard(
        "ifconfig -a | grep -c '^[a-z]' > $out; ifconfig lo | grep -c UP >> $out; \
         hostname >> $out",
        |store, drv, finished| {
            assert_eq!(output_text(store, drv, finished), "1\n1\nlocalhost\n");
        },
    );
}

#[test]
fn extended_attributes_are_neither_read_nor_written() {
    const ENOTSUP: &str = " 95";
    under_guard(
        "echo x > file; probe xattrs file > $out",
        |store, drv, finished| {
            let report = output_text(store, drv, finished);
            assert_eq!(report.lines().count(), 7, "{report}");
            for line in report.lines() {
                // Kernels before 6.13 lack the last three calls.
                let is_unknown = line.ends_with("at 38");
                assert!(line.ends_with(ENOTSUP) || is_unknown, "{line}");
            }
        },
    );
}

#[test]
fn the_kernels_settings_cannot_be_written() {
    under_guard(
        "for file in /proc/sys/kernel/hostname /proc/sys/kernel/core_pattern /proc/sysrq-trigger \
           /sys/kernel/uevent_helper /sys/fs/cgroup/release_agent; do \
           if (echo x > $file) 2> /dev/null; then echo $file; fi; done > $out",
        |store, drv, finished| {
            assert_eq!(output_text(store, drv, finished), "");
        },
    );
}

#[test]
fn without_namespaces_nothing_is_built_unsandboxed() {
    if !requirement::genuine_nix() || !requirement::programs(&["strace"]) {
        return;
    }
    let store = TestStore::new();
    let drv = store.script("outside", "id > $out");
    let strace = requirement::find_program("strace").expect("it was found just now");
    let mut wrapper = store.profile().command(&strace);
    wrapper.args(["-f", "-q", "-o", "/dev/null", "-e", "trace=unshare"]);
    wrapper.args(["-e", "inject=unshare:error=EPERM"]);
    let finished = store.goalctl(["build", &drv]).under(wrapper).run();
    finished.expect_status(100);
    finished.expect_error("while setting up the build environment");
    debris::assert_clean(&store);
}

/// Returns `/proc/PID/status` of the builder whose arguments hold `word`.
fn status_of_builder(goalctl: u32, word: &str) -> String {
    let builder = processes::descendants(goalctl)
        .into_iter()
        .find(|process| process.arguments.contains(word))
        .expect("the builder runs");
    fs::read_to_string(format!("/proc/{}/status", builder.pid)).expect("the builder runs")
}
