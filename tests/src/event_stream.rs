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
