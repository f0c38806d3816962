//! End-to-end tests of how long things take and how much they hold: a program of its own, because
//! cargo runs the test programs one after another.

mod closures;
mod graphs;
mod outages;
mod throughput;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use it::hand_over::{self, Program};
use it::{TestStore, binaries, debris, measure, requirement};
use serde_json::Value;

/// How often the lock changes hands.
const N_TIMES: usize = 10;

/// Has the tests of this program, too, run one after another.
fn alone() -> MutexGuard<'static, ()> {
    static MACHINE: Mutex<()> = Mutex::new(());
    MACHINE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn a_lock_that_goalctl_gives_back_wakes_its_waiter_at_once() {
    assert_hand_over(Program::Goalctl);
}

#[test]
fn a_lock_that_genuine_nix_gives_back_wakes_its_waiter_at_once() {
    assert_hand_over(Program::GenuineNix);
}

#[test]
fn a_hundred_thousand_goals_are_decided_in_five_seconds_and_400_megabytes() {
    let _alone = alone();
    let store = TestStore::new();
    let simulated = store
        .program(Path::new(env!("CARGO_BIN_EXE_probe")))
        .arg("peak")
        .arg(binaries::goalctl())
        .args(["simulate", "--goals", "100000", "--json"])
        .succeed();
    let output = simulated.output();
    let (summary, peak) = output.split_once("peak ").expect("the probe says the peak");
    let summary: Value = serde_json::from_str(summary).expect("the summary is JSON");
    assert_eq!(summary["goals"], 100_000);
    assert_eq!(summary["built"], 100_000);

    let peak_kilobytes: u64 = peak.trim().parse().expect("a peak is a number");
    assert!(peak_kilobytes < 400_000, "{peak_kilobytes} kB");
    let seconds = summary["seconds"].as_f64().expect("a time is a number");
    requirement::say(&format!("{seconds:.2} s, {peak_kilobytes} kB"));
    let limit = promise(Duration::from_secs(5));
    assert!(seconds < limit.as_secs_f64(), "{seconds} s");
}

fn assert_hand_over(holder: Program) {
    if !requirement::genuine_nix() {
        return;
    }
    let _alone = alone();
    let store = TestStore::new();
    hand_over::prepare(&store);
    let times: Vec<Duration> = (0..N_TIMES)
        .map(|idx| hand_over::measure(&store, holder, Program::Goalctl, idx))
        .collect();
    assert_eq!(store.signals().count("runs"), N_TIMES);
    debris::assert_clean(&store);

    requirement::say(&format!("from {holder:?} to goalctl: {times:?}"));
    let median = measure::median(&times);
    let limit = promise(Duration::from_millis(20));
    assert!(median <= limit, "median {median:?}");
    let longest = times.iter().max().expect("there are ten");
    let limit = promise(Duration::from_millis(250));
    assert!(*longest <= limit, "once {longest:?}");
}

/// Returns a limit as it holds for the goalctl under test: the promises are about the program that
/// people run, which is optimised, and one that is not may take ten times as long.
fn promise(limit: Duration) -> Duration {
    if is_optimised() { limit } else { limit * 10 }
}

fn is_optimised() -> bool {
    binaries::goalctl().iter().any(|part| part == "release")
}
