//! Goals that are resolved to others.

use store_model::StorePath;

use super::{Violation, World};
use crate::goal::derivation::Event;
use crate::goal::recipe::Resolution;
use crate::goal::{BuildMode, GoalId, GoalKey, Outcome};

impl World<'_> {
    pub(super) fn resolution(&self, idx: usize) -> Resolution {
        match self.plan.goals[idx].resolves_to {
            Some(_) => Resolution::WithInputs,
            None => Resolution::AsWritten,
        }
    }

    pub(super) fn resolve(&mut self, id: GoalId, idx: usize) {
        if let Some(resolved) = self.plan.goals[idx].resolves_to {
            let drv_path = self.plan.goals[resolved].drv_path.clone();
            self.answer(id, Event::Resolved { drv_path });
        }
    }

    pub(super) fn require_resolved(
        &mut self,
        id: GoalId,
        drv_path: StorePath,
    ) -> Result<(), Violation> {
        let Some(goal) = self.goals.get_mut(&id) else {
            return Ok(());
        };
        let wanted = goal.wanted.clone();
        goal.adopts = Some(wanted.clone());
        let key = GoalKey::Derivation(drv_path, goal.facts.mode);
        let directives = self.schedule.require_inputs(id, vec![(key, wanted)]);
        self.carry_out(directives)
    }

    /// Makes outputs valid that another goal has realised, all that were wanted of it.
    pub(super) fn adopt(
        &mut self,
        id: GoalId,
        idx: usize,
        outcome: &Outcome,
    ) -> Result<(), Violation> {
        let wanted = self.goals.get(&id).and_then(|goal| goal.adopts.clone());
        let mut outputs = outcome.outputs.clone();
        outputs.retain(|name, _| wanted.as_ref().is_some_and(|it| it.contains(name)));
        let all = &self.plan.goals[idx].outputs;
        let lacks = |it: &store_model::WantedOutputs| {
            all.iter()
                .any(|name| it.contains(name) && !outputs.contains_key(name))
        };
        if wanted.as_ref().is_none_or(lacks) {
            return Err(Violation(format!(
                "goal {idx} wanted {wanted:?} of what it was resolved to, and got {outputs:?}"
            )));
        }
        self.valid[idx].extend(outputs.keys().cloned());
        // It is the same object, whose contents were looked at.
        if self.goals.get(&id).map(|goal| goal.facts.mode) == Some(BuildMode::Repair) {
            self.corrupt[idx].retain(|name| !outputs.contains_key(name));
        }
        self.answer(id, Event::RealisationsAdopted { outputs });
        Ok(())
    }
}
