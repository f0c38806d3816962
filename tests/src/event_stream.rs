//! The lines that `goalctl build --json` writes.

use serde_json::Value;

use crate::invocation::{Finished, Stream};

/// One event of a goal.
#[derive(Debug, Clone)]
pub struct Event {
    /// What happened: `created`, `waiting`, `started`, `logged` or `finished`.
    pub kind: String,
    /// The goal's derivation or path.
    pub goal: String,
    /// Its number within the run.
    pub sequence: u64,
    /// When, in milliseconds since 1970.
    pub at_ms: u64,
    /// The whole line.
    pub value: Value,
}

/// Returns the events that a program wrote, in their order.
///
/// # Panics
///
/// If a line of standard output is no JSON object, or an event lacks a field that every event has.
#[must_use]
pub fn events(finished: &Finished) -> Vec<Event> {
    finished
        .lines
        .iter()
        .filter(|line| line.stream == Stream::Output)
        .filter_map(|line| {
            let value: Value = serde_json::from_slice(&line.bytes)
                .unwrap_or_else(|error| panic!("{error}: {}", line.text()));
            let number = |name: &str| {
                value[name]
                    .as_u64()
                    .unwrap_or_else(|| panic!("no {name} in {value}"))
            };
            let kind = value["event"].as_str()?.to_owned();
            // The report at the end is about no single goal.
            let goal = value["goal"].as_str()?.to_owned();
            Some(Event {
                kind,
                goal,
                sequence: number("sequence"),
                at_ms: number("atMs"),
                value,
            })
        })
        .collect()
}

/// Returns the place among the events of one kind about one goal.
///
/// # Panics
///
/// If there is none, or more than one.
#[must_use]
pub fn position(events: &[Event], kind: &str, goal: &str) -> usize {
    let found: Vec<usize> = events
        .iter()
        .enumerate()
        .filter(|(_, event)| event.kind == kind && event.goal == goal)
        .map(|(idx, _)| idx)
        .collect();
    let [position] = found.as_slice() else {
        panic!("{goal} has {} events '{kind}'", found.len());
    };
    *position
}
