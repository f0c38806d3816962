//! From the decision to build to inputs that are there (SPEC B1, B5).

use std::sync::Arc;

use store_model::wanted_outputs::WantedOutputs;

use super::endings::dependency_failed;
use super::substitutes::ask_again;
use super::transitions::{Step, end, live};
use super::{
    AfterFailure, AfterInputs, Effect, Facts, InputEnding, InputFailures, LocalBuilds, Phase, State,
};
use crate::events::WaitReason;
use crate::goal::recipe::{Recipe, Resolution};
use crate::goal::{Outcome, Status};

/// Goes on to the inputs, unless this machine cannot build.
pub(super) fn build(facts: &Facts, recipe: Arc<Recipe>, next: AfterInputs) -> Step {
    // Who may still get the outputs from a cache needs the inputs all the same.
    let obstacle = match next {
        AfterInputs::Build => obstacle(facts, &recipe),
        AfterInputs::AskAgain(_) => None,
    };
    match obstacle {
        Some(message) => end(vec![], Outcome::failure(Status::MiscFailure, message)),
        None => live(
            recipe,
            Phase::RequiringInputs(next),
            vec![Effect::RequireInputs],
        ),
    }
}

/// Goes on to build when the inputs are there, unless this machine cannot.
pub(super) fn build_with_inputs(facts: &Facts, recipe: Arc<Recipe>) -> Step {
    if let Some(message) = obstacle(facts, &recipe) {
        return end(vec![], Outcome::failure(Status::MiscFailure, message));
    }
    let (phase, effect) = match recipe.resolution {
        Resolution::AsWritten => (Phase::QueryingClosure, Effect::QueryClosure),
        Resolution::WithInputs => (Phase::Resolving, Effect::Resolve),
    };
    live(recipe, phase, vec![effect])
}

/// Returns why this machine cannot build the derivation, if so.
fn obstacle(facts: &Facts, recipe: &Recipe) -> Option<String> {
    let forbidden = || {
        format!(
            "unable to build '{}': 'max-jobs' is 0 and no build machine takes it",
            facts.printed_path
        )
    };
    let is_forbidden = facts.local_builds == LocalBuilds::Forbidden;
    recipe
        .obstacle
        .clone()
        .or_else(|| is_forbidden.then(forbidden))
}

/// Reads the derivation once it was fetched.
pub(super) fn derivation_fetched(
    facts: &Facts,
    wanted: WantedOutputs,
    ending: &InputEnding,
) -> Step {
    if ending.outcome.status.is_success() {
        return (
            State::LoadingDerivation { wanted },
            vec![Effect::LoadDerivation],
        );
    }
    let message = format!(
        "cannot build missing derivation '{}': {}",
        facts.printed_path, ending.outcome.message
    );
    end(vec![], Outcome::failure(Status::MiscFailure, message))
}

/// Decides what follows when an input has ended, or when it is known how many there are.
pub(super) fn inputs_changed(
    facts: &Facts,
    recipe: Arc<Recipe>,
    next: AfterInputs,
    n_pending: usize,
    failures: InputFailures,
) -> Step {
    let gives_up = facts.after_failure == AfterFailure::Stop && failures.releases_the_rest();
    if n_pending > 0 && !gives_up {
        let phase = Phase::AwaitingInputs {
            next,
            n_pending,
            failures,
        };
        let effects = vec![Effect::Announce(WaitReason::Inputs { n_pending })];
        return live(recipe, phase, effects);
    }
    if failures.paths.is_empty() {
        return match next {
            AfterInputs::Build => build_with_inputs(facts, recipe),
            AfterInputs::AskAgain(wanted) => ask_again(recipe, wanted),
        };
    }
    let effects = if n_pending > 0 {
        vec![Effect::LeaveInputs]
    } else {
        vec![]
    };
    end(effects, dependency_failed(facts, &failures))
}
