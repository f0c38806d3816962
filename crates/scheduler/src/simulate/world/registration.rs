//! The pretended registry: outputs become valid, are refused, or are given up half-way.

use super::{Goal, Violation, World};
use crate::goal::derivation::{Comparison, Event, OutputsDiffer, PostBuildHook, Shown};
use crate::goal::{BuildMode, GoalId, Status};

/// Half of all goals have a hook.
pub(super) fn post_build_hook(idx: usize) -> PostBuildHook {
    if idx.is_multiple_of(2) {
        PostBuildHook::Runs
    } else {
        PostBuildHook::None
    }
}

impl World<'_> {
    /// Runs a hook, which may fail. One that is to be killed is always quicker.
    pub(super) fn run_hook(&mut self, id: GoalId) {
        let fails = self.random.chance(self.plan.chaos.outputs_refused);
        let failure = fails.then(|| "pretended".to_owned());
        self.answer(id, Event::HookEnded { failure });
    }

    /// Begins a registration; its outputs are valid when the answer arrives, if it says so.
    pub(super) fn register(&mut self, id: GoalId) {
        let found = self.goals.get(&id).and_then(|goal| {
            let is_hashed = goal.facts.mode == BuildMode::Hash;
            is_hashed.then(|| goal.facts.drv_path.clone())
        });
        let event = if self.random.chance(self.plan.chaos.outputs_refused) {
            Event::OutputsRefused {
                status: Status::OutputRejected,
                message: "pretended".to_owned(),
            }
        } else if let Some(path) = found {
            Event::OutputFound { path }
        } else {
            Event::OutputsRegistered
        };
        self.answer(id, event);
    }

    /// Compares outputs, which may come out otherwise than before.
    pub(super) fn compare(&mut self, id: GoalId, comparison: Comparison) {
        let has_earlier = comparison != Comparison::OfFirstRound;
        let differs = has_earlier && self.random.chance(self.plan.chaos.outputs_differ);
        let difference = differs.then(|| {
            let has_hook = self.random.chance(50);
            let shown = has_hook.then(|| Shown {
                earlier: "earlier".into(),
                later: "later".into(),
            });
            Box::new(OutputsDiffer {
                message: "pretended".to_owned(),
                shown: shown.into_iter().collect(),
            })
        });
        self.answer(id, Event::OutputsCompared { difference });
    }

    /// Ends a diff hook after a while.
    pub(super) fn end_hook(&mut self, id: GoalId, after_ms: u64) {
        let report = "pretended".to_owned();
        self.answer_after(after_ms, id, Event::DiffHookEnded { report });
    }

    /// Takes the registry's answer on its way to a goal: told to give up in time, it may have.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "every other event is not the end of a registration"
    )]
    pub(super) fn end_registration(&mut self, id: GoalId, event: Event) -> Event {
        let Some(goal) = self.goals.get_mut(&id) else {
            return event;
        };
        match event {
            Event::OutputsRegistered
            | Event::OutputsRefused { .. }
            | Event::OutputFound { .. }
            | Event::OutputsCompared { .. }
                if goal.gives_up && self.random.chance(50) =>
            {
                goal.registering = None;
                Event::RegistrationCancelled
            }
            Event::OutputsRegistered => {
                let idx = goal.idx;
                for name in goal.registering.take().unwrap_or_default() {
                    self.corrupt[idx].remove(&name);
                    self.valid[idx].insert(name);
                }
                let plan_goal = &self.plan.goals[idx];
                let inputs = plan_goal.inputs.iter();
                let before = inputs.map(|(input, _)| self.finish_ms[*input]).max();
                self.finish_ms[idx] = before.unwrap_or(0) + plan_goal.build_ms;
                Event::OutputsRegistered
            }
            event @ (Event::OutputsRefused { .. }
            | Event::OutputsCompared { .. }
            | Event::OutputFound { .. }
            | Event::ServiceFailed { .. }) => {
                goal.registering = None;
                event
            }
            event => event,
        }
    }
}

impl Goal {
    /// Checks that the registry does not work on what the goal is about to let go of.
    pub(super) fn check_not_registering(&self) -> Result<(), Violation> {
        match self.registering {
            None => Ok(()),
            Some(_) => Err(Violation(format!(
                "goal {} lets go of outputs that are being registered",
                self.idx
            ))),
        }
    }
}
