//! Which goals have nothing left to do but wait for their inputs.
//!
//! Where all goals rest, some of them wait for one another, for ever. Derivations cannot, since each
//! names its inputs by their hashes; but what a path refers to is the word of a cache.

use std::collections::HashSet;

use crate::goal::GoalId;

/// The goals that rest.
#[derive(Debug, Default)]
pub(crate) struct Resting(HashSet<GoalId>);

impl Resting {
    /// Takes note that a goal only waits from now on.
    pub(crate) fn lie_down(&mut self, goal: GoalId) {
        self.0.insert(goal);
    }

    /// Takes note that a goal was told something, and may do something about it.
    pub(crate) fn wake(&mut self, goal: GoalId) {
        self.0.remove(&goal);
    }

    /// Returns how many rest.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}
