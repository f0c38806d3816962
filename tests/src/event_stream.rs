//! The lines that `goalctl --json` writes.

use serde_json::Value;

use crate::invocation::{Finished, Line};

/// Returns the events of a program that has ended, in their order.
#[must_use]
pub fn events(finished: &Finished) -> Vec<Value> {
    finished.lines.iter().filter_map(event).collect()
}

/// Returns the event that a line is, if it is one.
#[must_use]
pub fn event(line: &Line) -> Option<Value> {
    serde_json::from_slice::<Value>(&line.bytes)
        .ok()
        .filter(Value::is_object)
}

/// Returns the place in the output of the line that says that a goal ended.
///
/// # Panics
///
/// If no line does.
#[must_use]
pub fn position_of_end(finished: &Finished, drv: &str) -> usize {
    finished
        .lines
        .iter()
        .position(|line| {
            event(line).is_some_and(|event| {
                event["event"] == "finished" && event["goal"].to_string().contains(drv)
            })
        })
        .unwrap_or_else(|| panic!("no goal of {drv} ended: {finished}"))
}
