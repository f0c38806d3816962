//! What follows when a builder has ended: the hook after a build, and what becomes of a failed one's
//! directories (SPEC B11, B12, D7).

use std::sync::Arc;

use sandbox::{BuildVerdict, Disposition};

use super::endings::{cancelled, failure, quote_log};
use super::rounds::build_succeeded;
use super::transitions::{Step, end, live};
use super::{
    Attempt, BuilderEnding, Disk, Effect, Facts, Interest, KeepFailed, Made, Phase, PostBuildHook,
};
use crate::events::WaitReason;
use crate::goal::recipe::Recipe;
use crate::goal::{Outcome, Status};
use crate::slots::SlotId;

pub(super) fn build_exited(
    facts: &Facts,
    recipe: Arc<Recipe>,
    slot: SlotId,
    attempt: Attempt,
    ending: &BuilderEnding,
) -> Step {
    let effects = vec![Effect::ReleaseSlot(slot)];
    let times = ending.times;
    let made = Made { attempt, times };
    if ending.verdict == (BuildVerdict::Exited { code: 0 }) {
        return build_succeeded(facts, recipe, made, effects);
    }
    let (status, cause) = failure(facts, &recipe, ending);
    let mut message = cause;
    // A limit or a set-up failure explains itself; a builder's own failure is explained by its log.
    if !matches!(
        ending.verdict,
        BuildVerdict::SetupFailed { .. } | BuildVerdict::Cancelled
    ) {
        quote_log(&mut message, facts, &ending.log_tail);
    }
    if ending.disk == Disk::NearlyFull {
        message.push_str("\nnote: build failure may have been caused by lack of free disk space");
    }
    let outcome = made.told(Outcome::failure(status, message));
    failed_build(facts, recipe, effects, outcome)
}

/// Ends a build whose outputs are valid, or has the hook run first. Others need not wait for that.
pub(super) fn built(
    facts: &Facts,
    recipe: Arc<Recipe>,
    mut effects: Vec<Effect>,
    outcome: Outcome,
) -> Step {
    effects.extend([Effect::ReleaseLocks, delete_build()]);
    run_hook(facts, recipe, effects, outcome)
}

/// Ends a goal whose outputs are valid, or has the hook run first.
pub(super) fn run_hook(
    facts: &Facts,
    recipe: Arc<Recipe>,
    mut effects: Vec<Effect>,
    outcome: Outcome,
) -> Step {
    match facts.post_build_hook {
        PostBuildHook::None => end(effects, outcome),
        PostBuildHook::Runs => {
            effects.push(Effect::Announce(WaitReason::PostBuildHook));
            effects.push(Effect::RunHook);
            let outcome = Box::new(outcome);
            let interest = Interest::Wanted;
            live(recipe, Phase::RunningHook { outcome, interest }, effects)
        }
    }
}

/// Ends a goal after its hook. A hook that nobody waited for any more was killed, or was quicker.
pub(super) fn hook_ended(
    facts: &Facts,
    built: Outcome,
    interest: Interest,
    failure: Option<String>,
) -> Step {
    let mut outcome = match (failure, interest) {
        (None, _) => return end(vec![], built),
        (Some(_), Interest::Gone) => cancelled(facts),
        (Some(message), Interest::Wanted) => Outcome::failure(Status::MiscFailure, message),
    };
    outcome.resolved_to = built.resolved_to;
    outcome.build_times = built.build_times;
    outcome.n_rounds = built.n_rounds;
    end(vec![], outcome)
}

/// Has a build's directories deleted.
pub(super) fn delete_build() -> Effect {
    Effect::DisposeBuild(Disposition::Delete)
}

/// Ends a build that failed: its directories go, or are kept for the user (SPEC B12).
pub(super) fn failed_build(
    facts: &Facts,
    recipe: Arc<Recipe>,
    mut effects: Vec<Effect>,
    outcome: Outcome,
) -> Step {
    if facts.keep_failed == KeepFailed::Yes && !recipe.is_builtin {
        effects.push(Effect::DisposeBuild(Disposition::Keep));
        return live(recipe, Phase::Keeping(Box::new(outcome)), effects);
    }
    effects.push(Effect::DisposeBuild(Disposition::Delete));
    effects.push(Effect::ReleaseLocks);
    end(effects, outcome)
}
