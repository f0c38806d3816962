//! What a goal asks of caches, through goals of paths: its derivation, and its outputs (SPEC B1, B3).

use std::collections::BTreeSet;

use store_model::OutputName;
use store_model::wanted_outputs::WantedOutputs;

use super::DerivationGoal;
use crate::goal::derivation::Turn;
use crate::goal::{BuildMode, GoalKey, PathMode};
use crate::messages::RequireInputs;
use crate::ports::tell;

impl DerivationGoal {
    /// Asks the scheduler for the derivation itself.
    pub(super) fn require_derivation(&self) {
        let drv_path = self.facts.drv_path.clone();
        let key = GoalKey::Path(drv_path, PathMode::Ensure);
        self.require(vec![(key, WantedOutputs::All)]);
    }

    /// Asks the scheduler for goals that fetch outputs.
    pub(super) fn require_substitutes(&self, names: &BTreeSet<OutputName>, turn: Turn) {
        let mode = match (self.facts.mode, turn) {
            (BuildMode::Repair, _) => PathMode::Repair,
            (BuildMode::Normal | BuildMode::Check | BuildMode::Hash, Turn::First) => {
                PathMode::Ensure
            }
            (BuildMode::Normal | BuildMode::Check | BuildMode::Hash, Turn::Again) => {
                PathMode::EnsureAgain
            }
        };
        let outputs = self.output_paths().into_iter();
        let inputs = outputs
            .filter(|(name, _)| names.contains(name))
            .map(|(_, path)| (GoalKey::Path(path, mode), WantedOutputs::All));
        self.require(inputs.collect());
    }

    fn require(&self, inputs: Vec<(GoalKey, WantedOutputs)>) {
        let goal = self.id;
        let require = RequireInputs { goal, inputs };
        tell(&self.ports.upward.require_inputs, require);
    }
}
