//! Contents that are not what the database says, and their repair.

use std::collections::BTreeSet;

use store_model::OutputName;
use store_model::wanted_outputs::WantedOutputs;

use super::{Violation, World};
use crate::goal::derivation::{BrokenPath, Event};
use crate::goal::{BuildMode, GoalId, GoalKey};

/// Returns what the inputs of a goal are built for.
fn mode_of_inputs(mode: BuildMode) -> BuildMode {
    match mode {
        BuildMode::Normal | BuildMode::Check | BuildMode::Hash => BuildMode::Normal,
        BuildMode::Repair => BuildMode::Repair,
    }
}

impl World<'_> {
    /// Has the inputs of a goal brought about.
    pub(super) fn require_inputs(&mut self, id: GoalId, idx: usize) -> Result<(), Violation> {
        let mode = self.goals.get(&id).map(|goal| goal.facts.mode);
        let mode = mode_of_inputs(mode.unwrap_or_default());
        let inputs = self.plan.goals[idx].inputs.iter().map(|(input, names)| {
            let path = self.plan.goals[*input].drv_path.clone();
            (
                GoalKey::Derivation(path, mode),
                WantedOutputs::These(names.iter().cloned().collect()),
            )
        });
        let directives = self.schedule.require_inputs(id, inputs.collect());
        self.carry_out(directives)
    }

    /// Returns whether an output is as good as goals of this mode want it.
    pub(super) fn serves(&self, mode: BuildMode, idx: usize, name: &OutputName) -> bool {
        let is_good = mode != BuildMode::Repair || !self.corrupt[idx].contains(name);
        is_good && self.valid[idx].contains(name)
    }

    /// Answers with the goals below this one whose outputs are corrupt or missing.
    pub(super) fn examine_closure(&mut self, id: GoalId, idx: usize) {
        let broken = self.broken_below(idx).into_iter().map(|input| {
            let drv_path = self.plan.goals[input].drv_path.clone();
            BrokenPath {
                printed_path: drv_path.to_string(),
                path: drv_path.clone(),
                deriver: Some(drv_path),
            }
        });
        let broken = broken.collect();
        self.answer(id, Event::ClosureExamined { broken });
    }

    pub(super) fn require_repairs(
        &mut self,
        id: GoalId,
        broken: Vec<BrokenPath>,
    ) -> Result<(), Violation> {
        let inputs = broken.into_iter().filter_map(|broken| broken.deriver);
        let inputs = inputs.map(|drv_path| {
            (
                GoalKey::Derivation(drv_path, BuildMode::Repair),
                WantedOutputs::All,
            )
        });
        let directives = self.schedule.require_inputs(id, inputs.collect());
        self.carry_out(directives)
    }

    /// Checks that what a repair calls good is, and everything below it.
    pub(super) fn check_repaired(
        &self,
        idx: usize,
        wanted: &WantedOutputs,
    ) -> Result<(), Violation> {
        let mut outputs = self.plan.goals[idx].outputs.iter();
        let is_bad = |name: &OutputName| !self.serves(BuildMode::Repair, idx, name);
        if outputs.any(|name| wanted.contains(name) && is_bad(name)) {
            return Err(Violation(format!("goal {idx} is repaired and corrupt")));
        }
        match self.broken_below(idx).first() {
            None => Ok(()),
            Some(input) => Err(Violation(format!(
                "goal {idx} is repaired, but its input {input} is not"
            ))),
        }
    }

    /// Returns the goals that this one needs, and they in turn, of whose outputs one that is needed
    /// is not good.
    fn broken_below(&self, idx: usize) -> BTreeSet<usize> {
        let mut broken = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut pending: Vec<&(usize, Box<[OutputName]>)> =
            self.plan.goals[idx].inputs.iter().collect();
        while let Some(input) = pending.pop() {
            let (input_idx, names) = input;
            if !seen.insert(input) {
                continue;
            }
            let is_good = |name| self.serves(BuildMode::Repair, *input_idx, name);
            if !names.iter().all(is_good) {
                broken.insert(*input_idx);
            }
            pending.extend(&self.plan.goals[*input_idx].inputs);
        }
        broken
    }
}
