//! A machine that has too little: descriptors, processes, memory, time.

use std::process::Command;

use it::snapshot::Snapshot;
use it::{Invocation, Profile, TestStore, debris, requirement};
use nix::sys::signal::Signal;

/// Puts `prlimit` in front of goalctl.
fn limited(invocation: Invocation, profile: Profile, limit: &str) -> Invocation {
    let prlimit = requirement::find_program("prlimit").expect("it comes with util-linux");
    let mut wrapper: Command = profile.command(&prlimit);
    wrapper.arg(limit);
    invocation.under(wrapper)
}

#[test]
fn with_too_few_descriptors_a_wide_graph_is_built_or_refused_and_nothing_breaks() {
    const WIDTH: usize = 200;
    if !requirement::genuine_nix() || !requirement::programs(&["prlimit"]) {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        let drvs = store.instantiate(&format!(
            "builtins.genList (n: mk \"wide-${{toString n}}\" \"echo $name > $out\" {{ }}) {WIDTH}"
        ));
        // From what is hardly enough to start, to what is enough.
        for n_descriptors in [16, 24, 32, 40, 48, 64] {
            let invocation = store.goalctl(["build", "-k", "-j", "40"]).args(&drvs);
            let limit = format!("--nofile={n_descriptors}:{n_descriptors}");
            let finished = limited(invocation, profile, &limit).run();
            let n_built = Snapshot::of(&store).objects.len();
            requirement::say(&format!(
                "{profile:?}, {n_descriptors} descriptors: status {}, {n_built} objects",
                finished.code()
            ));
            assert!(!finished.error().contains("panicked"), "{finished}");
            let is_expected = [0, 1].contains(&finished.code());
            assert!(is_expected, "{finished}");
            if finished.code() != 0 {
                // The database has words of its own for it.
                let said = finished.error();
                let is_said = ["oo many open files", "unable to open database file"]
                    .iter()
                    .any(|words| said.contains(words));
                assert!(is_said, "{finished}");
            }
            debris::assert_sound(&store);
        }
        store.goalctl(["build"]).args(&drvs).succeed();
        debris::assert_clean(&store);
        debris::assert_verifies(&store);
    }
}

#[test]
fn no_descriptor_is_lost_over_hundreds_of_builds() {
    const N_BUILDS: usize = 400;
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store
        .signals()
        .pipes(&["ready-m-2", "go-m-2", "ready-z", "go-z"]);
    // One slot is given in the order of names, so the first gate comes after a hundred builds: by
    // then every worker has come, and directories wait to be used again.
    let drvs = store.instantiate(&format!(
        r#"
        let gate = name: mk "${{name}}-gate" ''
              echo here > /signals/ready-${{name}}; read word < /signals/go-${{name}}; echo x > $out
            '' {{ }};
            trivial = n: mk "m-${{toString n}}" (if lib n then "exit 1" else "echo $name > $out") {{ }};
            # Some fail, which closes other things.
            lib = n: builtins.elem n [ 7 77 177 277 377 ];
        in [ (gate "m-2") ] ++ builtins.genList trivial {N_BUILDS} ++ [ (gate "z") ]
        "#
    ));
    let goalctl = store
        .build_with_signals(&drvs[0])
        .args(&drvs[1..])
        .args(["-j", "1", "-k"])
        .start();
    let mut counts = Vec::new();
    let mut open = Vec::new();
    for name in ["m-2", "z"] {
        store.signals().await_word(&format!("ready-{name}"));
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", goalctl.pid()));
        counts.push(descriptors.expect("it runs").count());
        open.push(store.signals().release(&format!("go-{name}")));
    }
    goalctl.finish().expect_status(100);
    drop(open);
    requirement::say(&format!("descriptors before and after: {counts:?}"));
    // A few more directories may wait than did then.
    assert!(counts[1] <= counts[0] + 24, "{counts:?}");
    debris::assert_clean(&store);
}

#[test]
fn a_process_that_cannot_be_made_fails_its_build_and_the_next_one_succeeds() {
    if !requirement::genuine_nix() || !requirement::programs(&["strace"]) {
        return;
    }
    let strace = requirement::find_program("strace").expect("it was found just now");
    for error in ["EAGAIN", "ENOMEM"] {
        let mut n_refused = 0;
        // Threads are made by clone3, processes by clone.
        for nth in 1..20 {
            let store = TestStore::new();
            let drvs = store.instantiate(
                r#"map (name: mk name "echo $name > $out" { }) [ "a-first" "b-second" "c-third" ]"#,
            );
            let mut wrapper = store.profile().command(&strace);
            wrapper.args([
                "-f",
                "-q",
                "-o",
                "/dev/null",
                "-e",
                "trace=clone,fork,vfork",
                "-e",
            ]);
            wrapper.arg(format!("inject=clone,fork,vfork:error={error}:when={nth}"));
            let finished = store
                .goalctl(["build", "-k", "-j", "1"])
                .args(&drvs)
                .under(wrapper)
                .run();
            requirement::say(&format!("{error} at process {nth}: {}", finished.code()));
            assert!(!finished.error().contains("panicked"), "{finished}");
            debris::assert_clean(&store);
            if finished.code() == 0 {
                break;
            }
            n_refused += 1;
            // Where the builder itself was refused a process, that is the builder's failure.
            assert!([1, 100].contains(&finished.code()), "{finished}");
            let objects = Snapshot::of(&store).objects;
            let n_built = drvs
                .iter()
                .filter(|drv| objects.contains_key(&store.output_of(drv, "out")))
                .count();
            requirement::say(&format!("{n_built} of 3 were built"));
            store.goalctl(["build"]).args(&drvs).succeed();
            debris::assert_clean(&store);
        }
        assert!(n_refused > 0, "no process was ever refused");
    }
}

#[test]
fn builders_are_the_first_that_go_when_memory_runs_out_and_goalctl_is_not() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        volunteers(&TestStore::of(profile));
    }
}

fn volunteers(store: &TestStore) {
    store.signals().pipes(&["ready", "go"]);
    let drv = store.script(
        "volunteer",
        "(cat /proc/self/oom_score_adj > $out); \
         echo -1000 2> /dev/null > /proc/self/oom_score_adj || echo kept >> $out; \
         echo here > /signals/ready; read word < /signals/go",
    );
    let goalctl = store.build_with_signals(&drv).start();
    store.signals().await_word("ready");
    let own = std::fs::read_to_string("/proc/self/oom_score_adj").expect("/proc is there");
    let path = format!("/proc/{}/oom_score_adj", goalctl.pid());
    assert_eq!(std::fs::read_to_string(path).expect("it runs"), own);
    let open = store.signals().release("go");
    goalctl.finish().expect_status(0);
    drop(open);
    let output = store.real(&store.output_of(&drv, "out"));
    let text = std::fs::read_to_string(output).expect("it was made");
    assert_eq!(text, "1000\nkept\n");
    debris::assert_clean(store);
}

#[test]
fn a_goalctl_that_was_stopped_for_longer_than_a_silence_may_last_kills_nobody_for_it() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        store.signals().pipes(&["ready", "later", "go"]);
        let drv = store.script(
            "chatty",
            "echo here > /signals/ready; n=0; \
             while [ $n -lt 35 ]; do echo still here; sleep 0.1; n=$((n + 1)); done; \
             echo here > /signals/later; read word < /signals/go; echo made > $out",
        );
        let goalctl = store
            .build_with_signals(&drv)
            .args(["--max-silent-time", "2"])
            .start();
        store.signals().await_word("ready");
        goalctl.signal(Signal::SIGSTOP);
        store.signals().await_word("later");
        goalctl.signal(Signal::SIGCONT);
        let open = store.signals().release("go");
        goalctl.finish().expect_status(0);
        drop(open);
        debris::assert_clean(&store);
    }
}
