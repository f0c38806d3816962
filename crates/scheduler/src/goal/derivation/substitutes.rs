//! Asking the caches for outputs before they are built (SPEC B3, B4).

use std::collections::BTreeSet;
use std::sync::Arc;

use store_model::OutputName;
use store_model::wanted_outputs::{WantedOutputs, Widened};

use super::inputs::{build, build_with_inputs};
use super::repair::examine_closure;
use super::transitions::{Step, check_outputs, end, live};
use super::{
    AfterFailure, AfterInputs, Effect, Facts, InputFailures, Phase, Sought, Substitution, Turn,
};
use crate::events::WaitReason;
use crate::goal::recipe::Recipe;
use crate::goal::{BuildMode, Outcome, Status};

impl Sought {
    /// Takes note of further wanted outputs.
    pub(super) fn widen(mut self, more: &WantedOutputs) -> Self {
        if self.wanted.widen(more) == Widened::Grown {
            self.growth = Widened::Grown;
        }
        self
    }
}

impl AfterInputs {
    /// Takes note of further wanted outputs.
    pub(super) fn widen(mut self, more: &WantedOutputs) -> Self {
        match &mut self {
            Self::Build => {}
            Self::AskAgain(wanted) => {
                let _grown = wanted.widen(more);
            }
        }
        self
    }
}

/// Asks the caches for the outputs that are wanted and not there, or builds if nobody may be asked.
pub(super) fn seek_substitutes(
    facts: &Facts,
    recipe: Arc<Recipe>,
    wanted: WantedOutputs,
    invalid: &BTreeSet<OutputName>,
    turn: Turn,
) -> Step {
    let names: BTreeSet<OutputName> = recipe
        .wanted(&wanted)
        .into_keys()
        .filter(|name| invalid.contains(name))
        .collect();
    // Of an output without a path nobody can be asked.
    let is_unplaced = |name: &OutputName| wanted.contains(name);
    let is_off = facts.substitution == Substitution::Off || !recipe.allows_substitutes;
    if is_off || names.is_empty() || recipe.unplaced.iter().any(is_unplaced) {
        return build(facts, recipe, AfterInputs::Build);
    }
    let sought = Sought {
        wanted,
        growth: Widened::Unchanged,
        turn,
    };
    let effects = vec![Effect::RequireSubstitutes(names, turn)];
    live(recipe, Phase::RequiringSubstitutes(sought), effects)
}

/// Asks once more, now that the inputs are there.
pub(super) fn ask_again(recipe: Arc<Recipe>, wanted: WantedOutputs) -> Step {
    let names = recipe.wanted(&wanted).into_keys().collect();
    let sought = Sought {
        wanted,
        growth: Widened::Unchanged,
        turn: Turn::Again,
    };
    let effects = vec![Effect::RequireSubstitutes(names, Turn::Again)];
    live(recipe, Phase::RequiringSubstitutes(sought), effects)
}

/// Decides what follows when an output has ended, or when it is known how many there are.
pub(super) fn substitutes_changed(
    facts: &Facts,
    recipe: Arc<Recipe>,
    sought: Sought,
    n_pending: usize,
    failures: InputFailures,
) -> Step {
    let fails = failures.releases_the_rest() && facts.substitution != Substitution::WithFallback;
    let gives_up = facts.after_failure == AfterFailure::Stop && fails;
    if n_pending > 0 && !gives_up {
        let phase = Phase::AwaitingSubstitutes {
            sought,
            n_pending,
            failures,
        };
        let effects = vec![Effect::Announce(WaitReason::Substitutes { n_pending })];
        return live(recipe, phase, effects);
    }
    if failures.paths.is_empty() {
        return substituted(facts, recipe, sought);
    }
    if fails {
        let effects = if n_pending > 0 {
            vec![Effect::LeaveInputs]
        } else {
            vec![]
        };
        return end(effects, download_failed(facts, &failures));
    }
    build_instead(facts, recipe, sought, &failures)
}

/// Ends the goal, or looks at what else has to be.
fn substituted(facts: &Facts, recipe: Arc<Recipe>, sought: Sought) -> Step {
    match (sought.growth, facts.mode) {
        (Widened::Grown, _) => check_outputs(facts, recipe, sought.wanted),
        (Widened::Unchanged, BuildMode::Repair) => examine_closure(recipe, sought.wanted),
        (Widened::Unchanged, BuildMode::Normal | BuildMode::Check | BuildMode::Hash) => {
            let outputs = recipe.wanted(&sought.wanted);
            end(vec![], Outcome::success(Status::Substituted, outputs))
        }
    }
}

/// Builds what no cache has. Where all that was lacking is what outputs refer to, the inputs may bring
/// it; where one output is to be had nowhere, it will be built, and with it the others.
fn build_instead(
    facts: &Facts,
    recipe: Arc<Recipe>,
    sought: Sought,
    failures: &InputFailures,
) -> Step {
    let lacks_references = failures.n_incomplete == failures.paths.len();
    match sought.turn {
        Turn::First if lacks_references => {
            build(facts, recipe, AfterInputs::AskAgain(sought.wanted))
        }
        Turn::First => build(facts, recipe, AfterInputs::Build),
        Turn::Again => build_with_inputs(facts, recipe),
    }
}

fn download_failed(facts: &Facts, failures: &InputFailures) -> Outcome {
    let mut message = format!(
        "some substitutes for the outputs of derivation '{}' failed; 'fallback' builds it instead",
        facts.printed_path
    );
    for cause in &failures.messages {
        message.push('\n');
        message.push_str(cause);
    }
    Outcome::failure(Status::TransientFailure, message)
}
