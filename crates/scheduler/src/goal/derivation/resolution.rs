//! Derivations that are resolved when their inputs are realised (SPEC D8): another goal does what is
//! to be done, and this one takes its outputs over.

use std::collections::BTreeMap;
use std::sync::Arc;

use store_model::{OutputName, StorePath};

use super::built::run_hook;
use super::transitions::{Step, end, live};
use super::{Effect, Facts, InputEnding, Phase};
use crate::events::WaitReason;
use crate::goal::recipe::Recipe;
use crate::goal::{BuildMode, Outcome, Status};

/// Asks for the goal of what the derivation was resolved to.
pub(super) fn require_resolved(recipe: Arc<Recipe>, drv_path: StorePath) -> Step {
    let reason = WaitReason::Resolved {
        drv_path: drv_path.clone(),
    };
    let effects = vec![Effect::Announce(reason), Effect::RequireResolved(drv_path)];
    live(recipe, Phase::RequiringResolved, effects)
}

/// Goes on when that goal is known: it may have ended for another derivation that was resolved to
/// the same.
pub(super) fn resolved_required(
    facts: &Facts,
    recipe: Arc<Recipe>,
    mut ended: Vec<InputEnding>,
) -> Step {
    match ended.pop() {
        Some(ending) => resolved_finished(facts, recipe, ending),
        None => live(recipe, Phase::AwaitingResolved, vec![]),
    }
}

/// Takes over what that goal realised, or its failure.
pub(super) fn resolved_finished(facts: &Facts, recipe: Arc<Recipe>, ending: InputEnding) -> Step {
    if !ending.outcome.status.is_success() {
        return end(vec![], resolved_failed(facts, &ending));
    }
    if facts.mode == BuildMode::Hash {
        // Where its contents belong is no output of any derivation's.
        let mut outcome = Outcome::clone(&ending.outcome);
        outcome.resolved_to = Some(ending.path);
        return end(vec![], outcome);
    }
    let effects = vec![Effect::AdoptRealisations(Arc::clone(&ending.outcome))];
    live(recipe, Phase::Adopting(ending), effects)
}

/// Ends the goal when its outputs are remembered.
pub(super) fn adopted(
    facts: &Facts,
    recipe: &Recipe,
    ending: &InputEnding,
    outputs: BTreeMap<OutputName, StorePath>,
) -> Step {
    let recipe = Arc::new(recipe.with_paths(outputs.clone()));
    let status = if ending.outcome.status == Status::AlreadyValid {
        Status::ResolvesToAlreadyValid
    } else {
        ending.outcome.status
    };
    let mut outcome = Outcome::success(status, outputs);
    outcome.resolved_to = Some(ending.path.clone());
    outcome.build_times = ending.outcome.build_times;
    outcome.n_rounds = ending.outcome.n_rounds;
    run_hook(facts, recipe, vec![], outcome)
}

/// Returns the ending of a goal whose derivation failed as what it was resolved to.
fn resolved_failed(facts: &Facts, ending: &InputEnding) -> Outcome {
    let failed = &ending.outcome;
    let message = format!(
        "derivation '{}' was resolved to '{}', which failed",
        facts.printed_path, ending.path
    );
    let mut outcome = Outcome::failure(Status::DependencyFailed, message);
    outcome.resolved_to = Some(ending.path.clone());
    outcome.failure_bits = failed.failure_bits;
    outcome.root_causes = if failed.root_causes.is_empty() {
        vec![ending.path.clone()]
    } else {
        failed.root_causes.clone()
    };
    outcome
}
