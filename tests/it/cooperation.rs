//! Several processes on one store: goalctl beside goalctl, and goalctl beside genuine Nix.

use std::time::Duration;

use it::graph::LayeredGraph;
use it::hand_over::{self, PATIENT, Program, await_lock_message};
use it::{Profile, TestStore, debris, measure, requirement};

#[test]
fn two_processes_that_want_one_derivation_run_its_builder_once() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        for holder in [Program::Goalctl, Program::GenuineNix] {
            let store = TestStore::of(profile);
            hand_over::prepare(&store);
            let drv = store.script("wanted-twice", PATIENT);
            hand_over::assert_built_once(&store, &drv, holder, "-wanted-twice'");
        }
    }
}

#[test]
fn two_goalctls_on_one_graph_build_each_derivation_once() {
    assert_built_once_by_both(Program::Goalctl);
}

#[test]
fn goalctl_and_genuine_nix_on_one_graph_build_each_derivation_once() {
    assert_built_once_by_both(Program::GenuineNix);
}

#[test]
fn a_process_that_waits_for_a_lock_can_be_interrupted_and_disturbs_nobody() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["ready", "go"]);
    store.signals().tally("runs");
    let drv = store.script("wanted-twice", PATIENT);
    let first = store.build_with_signals(&drv).start();
    store.signals().await_word("ready");
    let mut second = store.build_with_signals(&drv).start();
    let message = await_lock_message(&mut second, &drv);
    assert!(message.contains(&first.pid().to_string()), "{message}");

    let interrupted_at = measure::now();
    second.signal(nix::sys::signal::Signal::SIGINT);
    let second = second.finish();
    second.expect_status(130);
    assert!(second.ended_at - interrupted_at < Duration::from_secs(2));

    let _open = store.signals().release("go");
    first.finish().expect_status(0);
    assert_eq!(store.signals().count("runs"), 1);
    debris::assert_clean(&store);
}

#[test]
fn a_build_in_one_store_does_not_disturb_a_build_in_another() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let [long, short] = [TestStore::of(profile), TestStore::of(profile)];
        long.signals().pipes(&["ready", "go"]);
        long.signals().tally("runs");
        let patient = long.script("patient", PATIENT);
        let first = long.build_with_signals(&patient).start();
        long.signals().await_word("ready");
        // Its builder may be given the same uid: the stores know nothing of each other.
        let quick = short.script("quick", "echo x > $out");
        short.goalctl(["build", &quick]).succeed();
        let _open = long.signals().release("go");
        first.finish().expect_status(0);
        debris::assert_clean(&long);
        debris::assert_clean(&short);
    }
}

#[test]
fn two_derivations_with_one_fixed_output_build_it_once_in_one_process() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().tally("runs");
    let drvs = store.instantiate(
        r#"
        let fixed = way: mk "same" "echo run >> /signals/runs; printf x > $out" {
          inherit way; outputHashAlgo = "sha256";
          outputHash = builtins.hashString "sha256" "x";
        };
        in map fixed [ "one" "two" "three" ]
        "#,
    );
    assert_eq!(drvs.len(), 3);
    let finished = store
        .build_with_signals(&drvs[0])
        .args(&drvs[1..])
        .succeed();
    assert_eq!(finished.output_lines().len(), 3);
    assert_eq!(store.signals().count("runs"), 1);
    debris::assert_clean(&store);
}

/// Two programs are given the whole graph at once, in opposite order.
fn assert_built_once_by_both(other: Program) {
    if !requirement::genuine_nix() {
        return;
    }
    let graph = LayeredGraph {
        n_layers: 5,
        width: 10,
        n_inputs: 2,
        seed: 50,
    };
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        store.signals().tally("runs");
        let drvs = store.instantiate(&graph.expression("echo $name >> /signals/runs"));
        assert_eq!(drvs.len(), 50);
        let (first, rest) = drvs.split_first().expect("there are fifty");
        let (last, others) = drvs.split_last().expect("there are fifty");

        let ours = store.build_with_signals(first).args(rest).start();
        let theirs = other.build(&store, last).args(others.iter().rev()).start();
        ours.finish().expect_status(0);
        theirs.finish().expect_status(0);

        assert_eq!(store.signals().count("runs"), 50, "{profile:?}, {other:?}");
        debris::assert_clean(&store);
        debris::assert_verifies(&store);
    }
}
