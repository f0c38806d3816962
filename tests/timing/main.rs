//! End-to-end tests of how long things take: a program of its own with one test, because cargo runs
//! the test programs one after another, and the tests within one side by side.

use std::time::Duration;

use it::hand_over::{self, Program};
use it::{TestStore, debris, measure, requirement};

/// How often the lock changes hands.
const N_TIMES: usize = 10;

#[test]
fn a_lock_that_goalctl_or_nix_gives_back_wakes_its_waiter_at_once() {
    if !requirement::genuine_nix() {
        return;
    }
    for holder in [Program::Goalctl, Program::GenuineNix] {
        let store = TestStore::new();
        hand_over::prepare(&store);
        let times: Vec<Duration> = (0..N_TIMES)
            .map(|idx| hand_over::measure(&store, holder, Program::Goalctl, idx))
            .collect();
        assert_eq!(store.signals().count("runs"), N_TIMES);
        debris::assert_clean(&store);

        requirement::say(&format!("from {holder:?} to goalctl: {times:?}"));
        let median = measure::median(&times);
        assert!(median <= Duration::from_millis(20), "median {median:?}");
        let longest = times.iter().max().expect("there are ten");
        assert!(*longest <= Duration::from_millis(250), "once {longest:?}");
    }
}
