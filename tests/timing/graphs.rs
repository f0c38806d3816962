//! Graphs that are made to take for ever (SECURITY P10).

use std::fmt::Write as _;
use std::time::Duration;

use it::{TestStore, measure, requirement};

use crate::{alone, promise};

/// How long each may take to be read, written and planned.
const LIMIT: Duration = Duration::from_secs(2);

#[test]
fn a_graph_with_2_to_the_40_ways_through_it_is_planned_in_two_seconds() {
    let mut goals = String::from("[goal.a0]\n[goal.b0]\n");
    for level in 1..=40 {
        for side in ["a", "b"] {
            let below = level - 1;
            writeln!(
                goals,
                "[goal.{side}{level}]\ninputs = [\"a{below}\", \"b{below}\"]"
            )
            .expect("a string takes any text");
        }
    }
    goals.push_str("[goal.top]\ninputs = [\"a40\", \"b40\"]\n");
    assert_planned_soon(&goals, 83);
}

#[test]
fn a_derivation_with_5000_outputs_is_planned_in_two_seconds() {
    let names: Vec<String> = (0..5_000).map(|idx| format!("\"o{idx}\"")).collect();
    let goals = format!("[goal.top]\noutputs = [{}]\n", names.join(", "));
    assert_planned_soon(&goals, 1);
}

fn assert_planned_soon(goals: &str, n_derivations: usize) {
    let _alone = alone();
    let store = TestStore::new();
    let file = store.dir().join("goals.toml");
    let text = format!("[defaults]\nbuilder = \"/bin/sh\"\n{goals}");
    std::fs::write(&file, text).expect("a fresh file can be written");
    let wanted = format!("{}#top", file.display());
    let instantiated = store.goalctl(["instantiate", &wanted]).succeed();
    let drv = instantiated.output_lines().pop().expect("it has a path");

    let started_at = measure::now();
    let planned = store.goalctl(["build", "--dry-run", &drv]).succeed();
    let took = planned.ended_at - started_at;
    let said = planned.output() + &planned.error();
    let n_planned = said
        .lines()
        .filter(|line| line.starts_with("  /nix/store/"))
        .count();
    assert_eq!(n_planned, n_derivations, "{planned}");
    requirement::say(&format!("{n_derivations} derivations: {took:?}"));
    assert!(took < promise(LIMIT), "{took:?}");
}
