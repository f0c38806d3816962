//! What follows from a build: checks of what is valid, rounds, and outputs that are hashed to learn
//! their path (SPEC B8, B9).

use std::sync::Arc;

use store_model::StorePath;

use super::built::{built, delete_build, failed_build};
use super::transitions::{Step, live};
use super::{Attempt, Comparison, Effect, Facts, Made, OnDifference, OutputsDiffer, Phase, Shown};
use crate::events::{Round, WaitReason};
use crate::goal::recipe::Recipe;
use crate::goal::{BuildMode, Outcome, Status};
use crate::slots::SlotId;

impl Facts {
    /// Returns how many times the derivation is built. What a fixed output must be is known, so
    /// nothing is learnt by making it again.
    fn n_rounds(&self, recipe: &Recipe) -> u32 {
        match self.mode {
            BuildMode::Normal if !recipe.is_fixed_output => self.n_rounds.max(1),
            BuildMode::Normal | BuildMode::Check | BuildMode::Repair | BuildMode::Hash => 1,
        }
    }
}

impl Made {
    /// Returns the outcome with what is known of the builds.
    pub(super) fn told(&self, mut outcome: Outcome) -> Outcome {
        outcome.build_times = Some(self.times);
        outcome.n_rounds = self.attempt.round;
        outcome
    }

    /// Returns the ending of a goal that made its outputs.
    pub(super) fn built(&self, recipe: &Recipe) -> Outcome {
        self.told(Outcome::success(Status::Built, recipe.outputs.clone()))
    }
}

/// Returns the ending of a check of what is not there.
pub(super) fn not_checkable(facts: &Facts) -> Outcome {
    let message = format!(
        "some outputs of '{}' are not valid, so checking is not possible",
        facts.printed_path
    );
    Outcome::failure(Status::MiscFailure, message)
}

/// Returns the ending of a goal that is to learn the hash of what has none.
pub(super) fn not_hashable(facts: &Facts) -> Outcome {
    let message = format!(
        "cannot do a hash build of '{}': a single output 'out' with a fixed hash is needed, \
         whatever that hash is",
        facts.printed_path
    );
    Outcome::failure(Status::MiscFailure, message)
}

/// Runs the builder.
pub(super) fn start_build(
    facts: &Facts,
    recipe: Arc<Recipe>,
    slot: SlotId,
    attempt: Attempt,
) -> Step {
    let round = Round {
        number: attempt.round,
        of: facts.n_rounds(&recipe),
    };
    let phase = Phase::Building(slot, attempt);
    live(recipe, phase, vec![Effect::StartBuild(round)])
}

/// Goes on after a builder that succeeded; `effects` give its slot back.
pub(super) fn build_succeeded(
    facts: &Facts,
    recipe: Arc<Recipe>,
    made: Made,
    mut effects: Vec<Effect>,
) -> Step {
    effects.push(Effect::Announce(WaitReason::Registration));
    let comparison = match facts.mode {
        BuildMode::Check => Comparison::WithValid,
        BuildMode::Repair | BuildMode::Hash => return register(recipe, made, vec![], effects),
        BuildMode::Normal if facts.n_rounds(&recipe) == 1 => {
            return register(recipe, made, vec![], effects);
        }
        BuildMode::Normal if made.attempt.round == 1 => Comparison::OfFirstRound,
        BuildMode::Normal => Comparison::WithEarlierRound,
    };
    let names = made.attempt.names.clone();
    effects.push(Effect::CompareOutputs(names, comparison));
    live(recipe, Phase::Comparing(made), effects)
}

fn register(recipe: Arc<Recipe>, made: Made, shown: Vec<Shown>, mut effects: Vec<Effect>) -> Step {
    effects.push(Effect::RegisterOutputs(made.attempt.names.clone()));
    live(recipe, Phase::Registering(made, shown), effects)
}

/// Decides what follows from a comparison.
pub(super) fn outputs_compared(
    facts: &Facts,
    recipe: Arc<Recipe>,
    made: Made,
    difference: Option<OutputsDiffer>,
) -> Step {
    let Some(difference) = difference else {
        return outputs_are_the_same(facts, recipe, made);
    };
    let fails = facts.mode == BuildMode::Check || facts.on_difference == OnDifference::Fail;
    if !fails {
        let effects = vec![Effect::Warn(difference.message)];
        return register(recipe, made, difference.shown, effects);
    }
    let outcome = Outcome::failure(Status::NotDeterministic, difference.message);
    let outcome = made.told(outcome);
    if difference.shown.is_empty() {
        return failed_build(facts, recipe, vec![], outcome);
    }
    let effects = vec![Effect::RunDiffHook(difference.shown)];
    live(recipe, Phase::RunningDiffHook(Box::new(outcome)), effects)
}

fn outputs_are_the_same(facts: &Facts, recipe: Arc<Recipe>, made: Made) -> Step {
    if facts.mode == BuildMode::Check {
        let outcome = made.built(&recipe);
        return built(facts, recipe, vec![], outcome);
    }
    let round = made.attempt.round + 1;
    if round > facts.n_rounds(&recipe) {
        return register(recipe, made, vec![], vec![]);
    }
    // The registry has what the next round is compared with; the rest, and the builder's user, go.
    let effects = vec![
        delete_build(),
        Effect::Announce(WaitReason::Slot),
        Effect::RequestSlot,
    ];
    let attempt = Attempt {
        round,
        ..made.attempt
    };
    live(recipe, Phase::AwaitingRound(attempt), effects)
}

/// Goes on when the outputs are valid.
pub(super) fn outputs_registered(
    facts: &Facts,
    recipe: Arc<Recipe>,
    made: &Made,
    shown: Vec<Shown>,
) -> Step {
    let outcome = made.built(&recipe);
    if shown.is_empty() {
        return built(facts, recipe, vec![], outcome);
    }
    let effects = vec![Effect::RunDiffHook(shown)];
    live(recipe, Phase::RunningDiffHook(Box::new(outcome)), effects)
}

/// Goes on when the output is valid at the path that its contents have.
pub(super) fn output_found(
    facts: &Facts,
    recipe: Arc<Recipe>,
    made: &Made,
    path: &StorePath,
) -> Step {
    let mut outcome = made.built(&recipe);
    outcome.outputs = outcome
        .outputs
        .into_keys()
        .map(|name| (name, path.clone()))
        .collect();
    built(facts, recipe, vec![], outcome)
}

/// Ends the goal after the diff hook.
pub(super) fn diff_hook_ended(
    facts: &Facts,
    recipe: Arc<Recipe>,
    mut outcome: Outcome,
    report: String,
) -> Step {
    if outcome.status.is_success() {
        let effects = if report.is_empty() {
            vec![]
        } else {
            vec![Effect::Warn(report)]
        };
        return built(facts, recipe, effects, outcome);
    }
    if !report.is_empty() {
        outcome.message.push('\n');
        outcome.message.push_str(&report);
    }
    failed_build(facts, recipe, vec![], outcome)
}
