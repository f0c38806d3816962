//! How goals, requests and the whole world end, and what must have been given back by then.

use std::sync::Arc;

use super::{Violation, World};
use crate::goal::{BuildMode, GoalId, Outcome, RequestId, Status};

impl World<'_> {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "every other status is a failure"
    )]
    pub(super) fn finish(
        &mut self,
        id: GoalId,
        idx: usize,
        outcome: Outcome,
    ) -> Result<(), Violation> {
        let Some(goal) = self.goals.get_mut(&id) else {
            return Ok(());
        };
        goal.n_endings += 1;
        if goal.n_endings > 1 {
            return Err(Violation(format!("goal {idx} ended twice")));
        }
        if let Some(slot) = goal.slot {
            return Err(Violation(format!("goal {idx} ended with slot {slot}")));
        }
        if self.locked.get(&idx) == Some(&id) {
            return Err(Violation(format!("goal {idx} ended with its lock")));
        }
        if outcome.status.is_success() && goal.facts.mode == BuildMode::Repair {
            let wanted = goal.wanted.clone();
            self.check_repaired(idx, &wanted)?;
        }
        let Some(goal) = self.goals.get_mut(&id) else {
            return Ok(());
        };
        match outcome.status {
            Status::Built => self.summary.n_built += 1,
            status if status.is_success() => self.summary.n_valid += 1,
            _ => self.summary.n_failed += 1,
        }
        self.summary.makespan_ms = self.now_ms;
        let adopted = goal.adopts.take().filter(|_| outcome.resolved_to.is_some());
        let served = adopted.unwrap_or_else(|| goal.wanted.clone());
        let directives = self.schedule.goal_ended(id, &served, &Arc::new(outcome));
        self.carry_out(directives)
    }

    pub(super) fn reply(&mut self, request: RequestId, n_outcomes: usize) -> Result<(), Violation> {
        *self.replies.entry(request).or_default() += 1;
        if self.replies.get(&request) != Some(&1) {
            return Err(Violation(format!("request {request} was answered twice")));
        }
        let n_wanted = usize::try_from(request.0)
            .ok()
            .and_then(|idx| self.plan.requests.get(idx))
            .map_or(0, Vec::len);
        if n_outcomes != n_wanted {
            return Err(Violation(format!(
                "request {request} wanted {n_wanted} things and got {n_outcomes} outcomes"
            )));
        }
        Ok(())
    }

    pub(super) fn check_end(&mut self) -> Result<(), Violation> {
        if self.replies.len() != self.n_requests {
            let n_open = self.n_requests - self.replies.len();
            return Err(Violation(format!("{n_open} requests were never answered")));
        }
        for (id, goal) in &self.goals {
            if goal.n_endings == 0 {
                return Err(Violation(format!(
                    "goal {id} never ended: {:?}",
                    goal.state
                )));
            }
        }
        if self.schedule.n_slots_lent() > 0 || !self.locked.is_empty() {
            return Err(Violation(
                "a slot or a lock was never given back".to_owned(),
            ));
        }
        self.summary.longest_path_ms = self.finish_ms.iter().copied().max().unwrap_or(0);
        Ok(())
    }
}
