//! Caches of a pretended world: each output is there, or not, or cannot be had.

use std::collections::BTreeSet;
use std::sync::Arc;

use store_model::{OutputName, StorePath};

use super::{Violation, World};
use crate::goal::derivation::{Event, InputEnding, Substitution, Turn};
use crate::goal::{GoalId, Outcome, Status};
use crate::simulate::Plan;
use crate::slots::SlotCounts;

/// Returns the slots of a world; archives come as they like there.
pub(super) fn slot_counts(n_builds: usize) -> SlotCounts {
    SlotCounts {
        n_builds,
        n_fetches: 16,
    }
}

/// Returns whether a goal asks caches.
pub(super) fn substitution(plan: &Plan, idx: usize) -> Substitution {
    if plan.chaos.cache_has_it == 0 {
        Substitution::Off
    } else if idx.is_multiple_of(2) {
        Substitution::Strict
    } else {
        Substitution::WithFallback
    }
}

impl World<'_> {
    /// Answers as the goals of the outputs' paths would.
    pub(super) fn require_substitutes(
        &mut self,
        id: GoalId,
        idx: usize,
        names: &BTreeSet<OutputName>,
        turn: Turn,
    ) -> Result<(), Violation> {
        let asked_before = self.goals.get_mut(&id).is_some_and(|goal| {
            let asked = goal.asked_caches;
            goal.asked_caches = Some(turn);
            asked == Some(Turn::Again)
        });
        if asked_before && turn == Turn::Again {
            return Err(Violation(format!(
                "goal {idx} asks the caches a third time"
            )));
        }
        let n_pending = names.len();
        let ended = Vec::new();
        self.tell(id, Event::InputsRequired { n_pending, ended });
        for name in names {
            let status = self.chance_of_substitute();
            if status == Status::Substituted {
                self.valid[idx].insert(name.clone());
                self.corrupt[idx].remove(name);
            }
            let path: StorePath = self.plan.goals[idx].drv_path.clone();
            let outcome = if status.is_success() {
                Outcome::success(status, [(name.clone(), path.clone())].into())
            } else {
                Outcome::failure(status, "pretended")
            };
            let ending = InputEnding {
                path,
                outcome: Arc::new(outcome),
            };
            // In their order: the same scheduler tells all of it.
            self.tell(id, Event::InputFinished(ending));
        }
        Ok(())
    }

    fn chance_of_substitute(&mut self) -> Status {
        if self.random.chance(self.plan.chaos.cache_has_it) {
            return Status::Substituted;
        }
        if self.random.chance(self.plan.chaos.download_fails) {
            return Status::TransientFailure;
        }
        if self.random.chance(50) {
            Status::NoSubstituters
        } else {
            Status::IncompleteClosure
        }
    }
}
