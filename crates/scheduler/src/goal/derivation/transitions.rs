//! The transition table: one arm for each arrow of the diagram in the parent module.

use std::collections::BTreeSet;
use std::sync::Arc;

use sandbox::Disposition;
use store_model::OutputName;
use store_model::wanted_outputs::WantedOutputs;

use super::built::{build_exited, failed_build, hook_ended};
use super::endings::{cancelled, while_setting_up};
use super::inputs::{build, derivation_fetched, inputs_changed};
use super::repair::{closure_examined, examine_closure, repairs_changed};
use super::resolution::{adopted, require_resolved, resolved_finished, resolved_required};
use super::rounds::{
    diff_hook_ended, not_checkable, not_hashable, output_found, outputs_compared,
    outputs_registered, start_build,
};
use super::substitutes::{seek_substitutes, substitutes_changed};
use super::{
    AfterInputs, Attempt, Effect, Event, Facts, InputFailures, Interest, Phase, State, Turn,
};
use crate::events::WaitReason;
use crate::goal::recipe::{Recipe, Resolution};
use crate::goal::{BuildMode, Outcome, Status};
use crate::slots::SlotId;

pub(super) type Step = (State, Vec<Effect>);

impl State {
    /// Takes one event; returns the next state and the effects to perform, in order.
    #[must_use]
    pub fn step(self, facts: &Facts, event: Event) -> Step {
        match (self, event) {
            // Late news for a finished goal is expected: cancellation races with answers.
            (Self::Finished, _) => (Self::Finished, vec![]),
            (Self::Idle, Event::Started { wanted }) => (
                Self::LoadingDerivation { wanted },
                vec![Effect::LoadDerivation],
            ),
            (Self::LoadingDerivation { mut wanted }, Event::Widened { wanted: more }) => {
                let _grown = wanted.widen(&more);
                (Self::LoadingDerivation { wanted }, vec![])
            }
            (Self::AwaitingDerivation { mut wanted }, Event::Widened { wanted: more }) => {
                let _grown = wanted.widen(&more);
                (Self::AwaitingDerivation { wanted }, vec![])
            }
            (Self::LoadingDerivation { wanted }, Event::DerivationMissing) => (
                Self::AwaitingDerivation { wanted },
                vec![Effect::RequireDerivation],
            ),
            (Self::AwaitingDerivation { wanted }, Event::InputsRequired { mut ended, .. }) => {
                match ended.pop() {
                    Some(ending) => derivation_fetched(facts, wanted, &ending),
                    None => (Self::AwaitingDerivation { wanted }, vec![]),
                }
            }
            (Self::AwaitingDerivation { wanted }, Event::InputFinished(ending)) => {
                derivation_fetched(facts, wanted, &ending)
            }
            (Self::AwaitingDerivation { .. }, Event::ServiceFailed { message }) => end(
                vec![Effect::LeaveInputs],
                Outcome::failure(Status::MiscFailure, message),
            ),
            (Self::AwaitingDerivation { .. }, Event::Cancelled) => {
                end(vec![Effect::LeaveInputs], cancelled(facts))
            }
            (Self::LoadingDerivation { wanted }, Event::DerivationLoaded { recipe }) => {
                check_outputs(facts, recipe, wanted)
            }
            (Self::Idle | Self::LoadingDerivation { .. }, Event::ServiceFailed { message }) => {
                end(vec![], Outcome::failure(Status::MiscFailure, message))
            }
            (Self::Idle | Self::LoadingDerivation { .. }, Event::Cancelled) => {
                end(vec![], cancelled(facts))
            }
            (Self::Live { recipe, phase }, event) => phase.step(facts, recipe, event),
            (state, event) => unreachable!("{event:?} cannot happen in {state:?}"),
        }
    }
}

impl Phase {
    #[expect(
        clippy::too_many_lines,
        reason = "the transition table is one table, one arm for each arrow"
    )]
    fn step(self, facts: &Facts, recipe: Arc<Recipe>, event: Event) -> Step {
        match (self, event) {
            (phase, Event::Widened { wanted }) => phase.widen(recipe, &wanted),
            (phase, Event::PathsLearnt { outputs }) => {
                live(Arc::new(recipe.with_paths(outputs)), phase, vec![])
            }
            (phase, Event::Cancelled) => phase.cancel(facts, recipe),
            (phase, Event::ServiceFailed { message }) => {
                phase.abandon(Outcome::failure(Status::MiscFailure, message))
            }

            (Self::CheckingOutputs { wanted }, Event::OutputsQueried { invalid }) => {
                outputs_checked(facts, recipe, wanted, &invalid)
            }
            (Self::ExaminingClosure(examined), Event::ClosureExamined { broken }) => {
                closure_examined(facts, recipe, examined, broken)
            }
            (Self::RequiringRepairs(examined), Event::InputsRequired { n_pending, ended }) => {
                let failures = InputFailures::of(&ended);
                repairs_changed(facts, recipe, examined, n_pending, failures)
            }
            (
                Self::AwaitingRepairs {
                    examined,
                    n_pending,
                    mut failures,
                },
                Event::InputFinished(ending),
            ) => {
                failures.count(&ending);
                repairs_changed(facts, recipe, examined, n_pending - 1, failures)
            }
            (Self::RequiringSubstitutes(sought), Event::InputsRequired { n_pending, ended }) => {
                let failures = InputFailures::of(&ended);
                substitutes_changed(facts, recipe, sought, n_pending, failures)
            }
            (
                Self::AwaitingSubstitutes {
                    sought,
                    n_pending,
                    mut failures,
                },
                Event::InputFinished(ending),
            ) => {
                failures.count(&ending);
                substitutes_changed(facts, recipe, sought, n_pending - 1, failures)
            }
            (Self::RequiringInputs(next), Event::InputsRequired { n_pending, ended }) => {
                let failures = InputFailures::of(&ended);
                inputs_changed(facts, recipe, next, n_pending, failures)
            }
            (
                Self::AwaitingInputs {
                    next,
                    n_pending,
                    mut failures,
                },
                Event::InputFinished(ending),
            ) => {
                failures.count(&ending);
                inputs_changed(facts, recipe, next, n_pending - 1, failures)
            }
            (Self::Resolving, Event::Resolved { drv_path }) => require_resolved(recipe, drv_path),
            (Self::RequiringResolved, Event::InputsRequired { ended, .. }) => {
                resolved_required(facts, recipe, ended)
            }
            (Self::AwaitingResolved, Event::InputFinished(ending)) => {
                resolved_finished(facts, recipe, ending)
            }
            (Self::Adopting(ending), Event::RealisationsAdopted { outputs }) => {
                adopted(facts, &recipe, &ending, outputs)
            }
            (Self::QueryingClosure, Event::ClosureQueried) => await_slot(recipe),
            (Self::QueryingClosure, Event::SurroundingsRefused { status, message }) => {
                let message = while_setting_up(facts, &message);
                end(vec![], Outcome::failure(status, message))
            }
            (Self::AwaitingSlot, Event::SlotGranted(slot)) => {
                live(recipe, Self::Locking(slot), vec![Effect::TryLocks])
            }

            (Self::Locking(slot), Event::Locked) => live(
                recipe,
                Self::CheckingLocked(slot),
                vec![Effect::QueryOutputs],
            ),
            (Self::Locking(slot), Event::LockBusy { path, holder }) => live(
                recipe,
                Self::AwaitingLock,
                vec![
                    Effect::ReleaseSlot(slot),
                    Effect::Announce(WaitReason::Lock {
                        path: path.clone(),
                        holder,
                    }),
                    Effect::AwaitLock(path),
                ],
            ),
            (Self::AwaitingLock, Event::LockFreed) => {
                live(recipe, Self::CheckingAgain, vec![Effect::QueryOutputs])
            }
            (Self::CheckingAgain, Event::OutputsQueried { invalid }) => {
                match (facts.mode, invalid.is_empty()) {
                    (BuildMode::Normal | BuildMode::Repair, true) => already_valid(&recipe, vec![]),
                    (BuildMode::Check, false) => end(vec![], not_checkable(facts)),
                    (BuildMode::Normal | BuildMode::Repair, false)
                    | (BuildMode::Check, true)
                    | (BuildMode::Hash, _) => await_slot(recipe),
                }
            }
            (Self::CheckingLocked(slot), Event::OutputsQueried { invalid }) => {
                outputs_locked(facts, recipe, slot, invalid)
            }
            (Self::Discarding(slot, names), Event::InvalidPathsDiscarded) => {
                start_build(facts, recipe, slot, Attempt { names, round: 1 })
            }
            (Self::AwaitingRound(attempt), Event::SlotGranted(slot)) => {
                start_build(facts, recipe, slot, attempt)
            }

            (Self::Building(slot, attempt), Event::BuildExited(ending)) => {
                build_exited(facts, recipe, slot, attempt, &ending)
            }
            (Self::Stopping(slot), Event::BuildExited(_)) => {
                let effects = vec![Effect::ReleaseSlot(slot)];
                failed_build(facts, recipe, effects, cancelled(facts))
            }
            (Self::RunningHook { outcome, interest }, Event::HookEnded { failure }) => {
                hook_ended(facts, *outcome, interest, failure)
            }
            (Self::Comparing(made), Event::OutputsCompared { difference }) => {
                outputs_compared(facts, recipe, made, difference.map(|it| *it))
            }
            (
                Self::LeavingComparison(made),
                Event::OutputsCompared { .. }
                | Event::OutputsRefused { .. }
                | Event::RegistrationCancelled,
            )
            | (Self::Registering(made, _) | Self::Comparing(made), Event::RegistrationCancelled) => {
                failed_build(facts, recipe, vec![], made.told(cancelled(facts)))
            }
            (Self::Registering(made, shown), Event::OutputsRegistered) => {
                outputs_registered(facts, recipe, &made, shown)
            }
            (Self::Registering(made, _), Event::OutputFound { path }) => {
                output_found(facts, recipe, &made, &path)
            }
            (
                Self::Registering(made, _) | Self::Comparing(made),
                Event::OutputsRefused { status, message },
            ) => {
                let outcome = made.told(Outcome::failure(status, message));
                failed_build(facts, recipe, vec![], outcome)
            }
            (Self::RunningDiffHook(outcome), Event::DiffHookEnded { report }) => {
                diff_hook_ended(facts, recipe, *outcome, report)
            }
            (Self::Keeping(mut outcome), Event::BuildKept { path }) => {
                if let Some(path) = &path {
                    let note = format!("\nnote: keeping build directory '{}'", path.display());
                    outcome.message.push_str(&note);
                }
                outcome.kept_build_dir = path;
                end(vec![Effect::ReleaseLocks], *outcome)
            }

            (phase, event) => phase.late(recipe, event),
        }
    }

    /// Takes note of further wanted outputs. Once building is decided all outputs are made (SPEC
    /// B5), so only a goal that may still end as valid has to look again.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a new phase is past the decision to build unless it says otherwise"
    )]
    fn widen(self, recipe: Arc<Recipe>, more: &WantedOutputs) -> Step {
        match self {
            // The question was about all outputs, so its answer serves the wider wish too.
            Self::CheckingOutputs { mut wanted } => {
                let _grown = wanted.widen(more);
                live(recipe, Self::CheckingOutputs { wanted }, vec![])
            }
            // Here too the goal may still end as valid, but the answer will not be about these.
            Self::ExaminingClosure(examined) => {
                live(recipe, Self::ExaminingClosure(examined.widen(more)), vec![])
            }
            Self::RequiringRepairs(examined) => {
                live(recipe, Self::RequiringRepairs(examined.widen(more)), vec![])
            }
            Self::AwaitingRepairs {
                examined,
                n_pending,
                failures,
            } => {
                let phase = Self::AwaitingRepairs {
                    examined: examined.widen(more),
                    n_pending,
                    failures,
                };
                live(recipe, phase, vec![])
            }
            Self::RequiringSubstitutes(sought) => live(
                recipe,
                Self::RequiringSubstitutes(sought.widen(more)),
                vec![],
            ),
            Self::AwaitingSubstitutes {
                sought,
                n_pending,
                failures,
            } => {
                let phase = Self::AwaitingSubstitutes {
                    sought: sought.widen(more),
                    n_pending,
                    failures,
                };
                live(recipe, phase, vec![])
            }
            Self::RequiringInputs(next) => {
                live(recipe, Self::RequiringInputs(next.widen(more)), vec![])
            }
            Self::AwaitingInputs {
                next,
                n_pending,
                failures,
            } => {
                let phase = Self::AwaitingInputs {
                    next: next.widen(more),
                    n_pending,
                    failures,
                };
                live(recipe, phase, vec![])
            }
            phase => live(recipe, phase, vec![]),
        }
    }

    /// Gives everything back. A running builder has to be waited for, and so has the registry while
    /// it may be moving outputs into the store: it is told to stop, and says how far it got.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "`abandon` lists every phase, so a new one cannot be forgotten"
    )]
    fn cancel(self, facts: &Facts, recipe: Arc<Recipe>) -> Step {
        match self {
            Self::Building(slot, _) => {
                live(recipe, Self::Stopping(slot), vec![Effect::CancelBuild])
            }
            Self::RunningHook { outcome, .. } => {
                let interest = Interest::Gone;
                let phase = Self::RunningHook { outcome, interest };
                live(recipe, phase, vec![Effect::CancelHook])
            }
            phase @ Self::Registering(..) => live(recipe, phase, vec![Effect::CancelRegistration]),
            Self::Comparing(made) => {
                let effects = vec![Effect::CancelRegistration];
                live(recipe, Self::LeavingComparison(made), effects)
            }
            // How the goal ends is decided; what is shown to the hook has to be taken away.
            phase @ Self::RunningDiffHook(_) => live(recipe, phase, vec![Effect::StopDiffHook]),
            phase @ (Self::Stopping(_) | Self::LeavingComparison(_) | Self::Keeping(_)) => {
                live(recipe, phase, vec![])
            }
            phase => phase.abandon(cancelled(facts)),
        }
    }

    /// Ends the goal from wherever it stands, giving back what it has.
    fn abandon(self, mut outcome: Outcome) -> Step {
        if let Self::AwaitingRound(attempt) = &self {
            // The one that is due has not been made.
            outcome.n_rounds = attempt.round - 1;
        }
        let effects = match self {
            Self::CheckingOutputs { .. }
            | Self::ExaminingClosure(_)
            | Self::Resolving
            | Self::Adopting(_)
            | Self::QueryingClosure
            | Self::AwaitingLock
            | Self::CheckingAgain => vec![],
            Self::RequiringSubstitutes(_)
            | Self::AwaitingSubstitutes { .. }
            | Self::RequiringInputs(_)
            | Self::AwaitingInputs { .. }
            | Self::RequiringRepairs(_)
            | Self::AwaitingRepairs { .. }
            | Self::RequiringResolved
            | Self::AwaitingResolved => vec![Effect::LeaveInputs],
            Self::AwaitingSlot => vec![Effect::WithdrawSlotRequest],
            Self::Locking(slot) | Self::CheckingLocked(slot) | Self::Discarding(slot, _) => {
                vec![Effect::ReleaseSlot(slot), Effect::ReleaseLocks]
            }
            Self::Building(slot, _) | Self::Stopping(slot) => vec![
                Effect::CancelBuild,
                Effect::ReleaseSlot(slot),
                Effect::DisposeBuild(Disposition::Delete),
                Effect::ReleaseLocks,
            ],
            Self::AwaitingRound(_) => {
                vec![Effect::WithdrawSlotRequest, Effect::ReleaseLocks]
            }
            Self::RunningDiffHook(_) => vec![
                Effect::StopDiffHook,
                Effect::DisposeBuild(Disposition::Delete),
                Effect::ReleaseLocks,
            ],
            Self::Comparing(_) | Self::LeavingComparison(_) | Self::Registering(..) => vec![
                Effect::CancelRegistration,
                Effect::DisposeBuild(Disposition::Delete),
                Effect::ReleaseLocks,
            ],
            Self::RunningHook { .. } => vec![Effect::CancelHook],
            Self::Keeping(_) => vec![Effect::ReleaseLocks],
        };
        end(effects, outcome)
    }

    /// Takes news that a goal may get after it has moved on.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "any other event is a bug of ours, whatever its name"
    )]
    fn late(self, recipe: Arc<Recipe>, event: Event) -> Step {
        match event {
            // A slot that was granted while we left the queue goes straight back.
            Event::SlotGranted(slot) => live(recipe, self, vec![Effect::ReleaseSlot(slot)]),
            event => unreachable!("{event:?} cannot happen in {self:?}"),
        }
    }
}

pub(super) fn live(recipe: Arc<Recipe>, phase: Phase, effects: Vec<Effect>) -> Step {
    (State::Live { recipe, phase }, effects)
}

pub(super) fn end(mut effects: Vec<Effect>, outcome: Outcome) -> Step {
    effects.push(Effect::Finish(Box::new(outcome)));
    (State::Finished, effects)
}

fn already_valid(recipe: &Recipe, effects: Vec<Effect>) -> Step {
    let outputs = recipe.outputs.clone();
    end(effects, Outcome::success(Status::AlreadyValid, outputs))
}

fn await_slot(recipe: Arc<Recipe>) -> Step {
    let effects = vec![Effect::Announce(WaitReason::Slot), Effect::RequestSlot];
    live(recipe, Phase::AwaitingSlot, effects)
}

pub(super) fn check_outputs(facts: &Facts, recipe: Arc<Recipe>, wanted: WantedOutputs) -> Step {
    let unknown = recipe.unknown_outputs(&wanted);
    if !unknown.is_empty() {
        let message = format!(
            "derivation '{}' does not have the wanted output '{}'",
            facts.printed_path,
            unknown.join("', '")
        );
        return end(vec![], Outcome::failure(Status::MiscFailure, message));
    }
    let phase = Phase::CheckingOutputs { wanted };
    let mut effects = vec![Effect::QueryOutputs];
    if facts.mode == BuildMode::Repair {
        effects.insert(0, Effect::Announce(WaitReason::Contents));
    }
    live(recipe, phase, effects)
}

fn outputs_checked(
    facts: &Facts,
    recipe: Arc<Recipe>,
    wanted: WantedOutputs,
    invalid: &BTreeSet<OutputName>,
) -> Step {
    let unknown = recipe.unknown_outputs(&wanted);
    if !unknown.is_empty() {
        // Somebody widened the goal by an output that there is not.
        return check_outputs(facts, recipe, wanted);
    }
    let lacks_wanted = invalid.iter().any(|name| wanted.contains(name));
    match facts.mode {
        BuildMode::Normal if !lacks_wanted => {
            let outputs = recipe.wanted(&wanted);
            return end(vec![], Outcome::success(Status::AlreadyValid, outputs));
        }
        BuildMode::Repair if !lacks_wanted => return examine_closure(recipe, wanted),
        BuildMode::Check => {
            // Of a derivation that was resolved no more is known than what was wanted of it.
            let is_lacking = match recipe.resolution {
                Resolution::AsWritten => !invalid.is_empty(),
                Resolution::WithInputs => lacks_wanted,
            };
            if is_lacking {
                return end(vec![], not_checkable(facts));
            }
        }
        BuildMode::Hash if !recipe.is_hashable() => return end(vec![], not_hashable(facts)),
        BuildMode::Normal | BuildMode::Repair | BuildMode::Hash => {}
    }
    match facts.mode {
        BuildMode::Normal | BuildMode::Repair => {
            seek_substitutes(facts, recipe, wanted, invalid, Turn::First)
        }
        BuildMode::Check | BuildMode::Hash => build(facts, recipe, AfterInputs::Build),
    }
}

/// Decides what follows when the locks are ours and it is known what others have built meanwhile.
fn outputs_locked(
    facts: &Facts,
    recipe: Arc<Recipe>,
    slot: SlotId,
    invalid: BTreeSet<OutputName>,
) -> Step {
    let give_back = vec![Effect::ReleaseSlot(slot), Effect::ReleaseLocks];
    match (facts.mode, invalid.is_empty()) {
        (BuildMode::Normal | BuildMode::Repair, true) => already_valid(&recipe, give_back),
        // In a repair what is corrupt is valid, so it stays until there is something better.
        (BuildMode::Normal | BuildMode::Repair | BuildMode::Hash, false) => {
            let effects = vec![Effect::DiscardInvalidPaths];
            live(recipe, Phase::Discarding(slot, invalid), effects)
        }
        (BuildMode::Check, false) => end(give_back, not_checkable(facts)),
        (BuildMode::Check | BuildMode::Hash, true) => {
            let names = recipe.outputs.keys().cloned().collect();
            start_build(facts, recipe, slot, Attempt { names, round: 1 })
        }
    }
}
