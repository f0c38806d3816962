//! The goal of a derivation: bring its wanted outputs about.
//!
//! ```text
//! Idle ─► LoadingDerivation ─► CheckingOutputs ─────────────────────────────► AlreadyValid
//!                                  │ some are invalid: all will be made
//!                                  ▼
//!                     RequiringInputs ─► AwaitingInputs ─► QueryingClosure
//!                                                   │
//!                                              AwaitingSlot ◄── CheckingAgain
//!                                                   │ slot          ▲ lock was free
//!                                                Locking ─busy─► AwaitingLock
//!                                                   │ locked
//!                                             CheckingLocked ───────────────► AlreadyValid
//!                                                   │
//!                                               Discarding
//!                                                   │
//!                                               Building ─cancelled─► Stopping
//!                                                   │ the slot goes back here
//!                                               Registering ────────────────► Built
//!                                                   │
//!                                                Keeping ───────────────────► failed
//! ```
//!
//! A slot is held from `Locking` to the builder's exit, locks from `CheckingLocked` to the end.
//! A goal that finds a lock taken gives its slot back before it waits, so nobody who holds a slot
//! ever waits for anybody.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use sandbox::{BuildVerdict, Disposition};
use store_model::wanted_outputs::WantedOutputs;
use store_model::{OutputName, StorePath};

use super::recipe::Recipe;
use super::{BuildTimes, FailureBits, Outcome, Status};
use crate::events::{LockOwner, WaitReason};
use crate::slots::SlotId;

/// What never changes about a derivation goal.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Path of the derivation.
    pub drv_path: StorePath,
    /// The path as messages print it.
    pub printed_path: String,
    /// Whether to wait for all inputs after one failed (SPEC A3).
    pub after_failure: AfterFailure,
    /// Whether a failed build's directory stays (SPEC B12).
    pub keep_failed: KeepFailed,
    /// Whether this machine has build slots at all (SPEC A5).
    pub local_builds: LocalBuilds,
}

/// What a goal does when an input failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFailure {
    /// It fails at once and leaves its other inputs.
    Stop,
    /// It lets the others end first (`keep-going`).
    KeepGoing,
}

/// What becomes of a failed build's directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepFailed {
    /// It goes.
    No,
    /// It stays (`keep-failed`).
    Yes,
}

/// Whether builders run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LocalBuilds {
    /// There are slots.
    Allowed,
    /// `max-jobs` is 0.
    Forbidden,
}

/// The life of a derivation goal.
#[derive(Debug, Default)]
pub enum State {
    /// Nothing has happened.
    #[default]
    Idle,
    /// The registry was asked for the derivation.
    LoadingDerivation {
        /// The outputs that are wanted so far.
        wanted: WantedOutputs,
    },
    /// The derivation is known.
    Live {
        /// The derivation.
        recipe: Arc<Recipe>,
        /// Where it stands.
        phase: Phase,
    },
    /// It ended.
    Finished,
}

/// Where a goal with a known derivation stands.
#[derive(Debug, PartialEq, Eq)]
pub enum Phase {
    /// The registry was asked which outputs are valid.
    CheckingOutputs {
        /// Outputs that are wanted.
        wanted: WantedOutputs,
    },
    /// The scheduler was asked for the inputs.
    RequiringInputs,
    /// Inputs are under way.
    AwaitingInputs {
        /// How many have not ended.
        n_pending: usize,
        /// What failed so far.
        failures: InputFailures,
    },
    /// The registry was asked for the closure of the inputs.
    QueryingClosure,
    /// All slots are taken.
    AwaitingSlot,
    /// The lock keeper was asked.
    Locking(SlotId),
    /// Somebody else has a lock.
    AwaitingLock,
    /// A lock was free for a moment: has its holder built what we want?
    CheckingAgain,
    /// The locks are ours: has anybody built it meanwhile?
    CheckingLocked(SlotId),
    /// What lies at the output paths without being valid is being removed.
    Discarding(SlotId, BTreeSet<OutputName>),
    /// The builder runs.
    Building(SlotId, BTreeSet<OutputName>),
    /// The builder is being killed.
    Stopping(SlotId),
    /// The outputs are being registered.
    Registering(BuildTimes),
    /// The failed build's directory is being put aside.
    Keeping(Box<Outcome>),
}

/// Inputs that failed, as far as they have ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InputFailures {
    /// Their paths, in order.
    pub paths: BTreeSet<StorePath>,
    /// Those that failed first, below them.
    pub root_causes: BTreeSet<StorePath>,
    /// How many of them have no substituter (SPEC A3).
    pub n_without_substituter: usize,
    /// Their kinds of failure.
    pub bits: FailureBits,
    /// What they said, of the kinds that nobody else reports.
    pub messages: Vec<String>,
}

/// How an input ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputEnding {
    /// Its path.
    pub path: StorePath,
    /// Its outcome.
    pub outcome: Arc<Outcome>,
}

/// How a builder ended, as far as decisions depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuilderEnding {
    /// Why it ended.
    pub verdict: BuildVerdict,
    /// Whether the disk has less than 8 MiB left.
    pub disk: Disk,
    /// When it ran.
    pub times: BuildTimes,
    /// The last lines of its log.
    pub log_tail: Vec<String>,
}

/// Whether a failure may be for want of space (SPEC B11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// There is space.
    Roomy,
    /// Less than 8 MiB are left.
    NearlyFull,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The actor runs and wants these outputs.
    Started {
        /// Which.
        wanted: WantedOutputs,
    },
    /// Somebody wants further outputs (SPEC A1).
    Widened {
        /// Which.
        wanted: WantedOutputs,
    },
    /// The registry read and checked the derivation.
    DerivationLoaded {
        /// What it says.
        recipe: Arc<Recipe>,
    },
    /// The registry said which outputs are not valid.
    OutputsQueried {
        /// Those of all outputs.
        invalid: BTreeSet<OutputName>,
    },
    /// The scheduler has a goal for each input.
    InputsRequired {
        /// How many are under way; each ends with [`Event::InputFinished`] later.
        n_pending: usize,
        /// Those that had ended before.
        ended: Vec<InputEnding>,
    },
    /// An input ended.
    InputFinished(InputEnding),
    /// The registry gave the closure of the inputs.
    ClosureQueried,
    /// The scheduler lent a slot.
    SlotGranted(SlotId),
    /// The lock keeper gave all locks.
    Locked,
    /// Somebody has one of the locks.
    LockBusy {
        /// The output.
        path: StorePath,
        /// Who.
        holder: LockOwner,
    },
    /// The lock was free for a moment.
    LockFreed,
    /// Nothing invalid is left at the output paths.
    InvalidPathsDiscarded,
    /// The builder and all that it left are gone.
    BuildExited(Box<BuilderEnding>),
    /// The outputs are valid.
    OutputsRegistered,
    /// The outputs were refused, or could not be registered.
    OutputsRefused {
        /// In which way.
        status: Status,
        /// Why.
        message: String,
    },
    /// The failed build's directory was put aside.
    BuildKept {
        /// Where, if it was there at all.
        path: Option<PathBuf>,
    },
    /// A service failed to answer.
    ServiceFailed {
        /// The chain of causes.
        message: String,
    },
    /// Nobody wants the goal any more.
    Cancelled,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Keep the derivation from the garbage collector and read it.
    LoadDerivation,
    /// Keep all outputs from the garbage collector, then ask which are invalid.
    QueryOutputs,
    /// Ask the scheduler for the goals of all inputs.
    RequireInputs,
    /// Stop waiting for inputs.
    LeaveInputs,
    /// Ask for the closure of the inputs.
    QueryClosure,
    /// Queue for a slot.
    RequestSlot,
    /// Leave the queue.
    WithdrawSlotRequest,
    /// Give the slot back.
    ReleaseSlot(SlotId),
    /// Try all locks at once.
    TryLocks,
    /// Ask to be told when this lock is free.
    AwaitLock(StorePath),
    /// Give the locks back.
    ReleaseLocks,
    /// Remove what lies at the output paths without being valid.
    DiscardInvalidPaths,
    /// Run the builder.
    StartBuild,
    /// Kill the builder.
    CancelBuild,
    /// Check, hash and register these outputs.
    RegisterOutputs(BTreeSet<OutputName>),
    /// Do away with the build's directories, or keep them.
    DisposeBuild(Disposition),
    /// Tell subscribers why the goal stands still.
    Announce(WaitReason),
    /// Tell everybody who waits, and stop.
    Finish(Box<Outcome>),
}

type Step = (State, Vec<Effect>);

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
                wanted.widen(&more);
                (Self::LoadingDerivation { wanted }, vec![])
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
    fn step(self, facts: &Facts, recipe: Arc<Recipe>, event: Event) -> Step {
        match (self, event) {
            (phase, Event::Widened { wanted }) => phase.widen(recipe, &wanted),
            (phase, Event::Cancelled) => phase.cancel(facts, recipe),
            (phase, Event::ServiceFailed { message }) => {
                phase.abandon(Outcome::failure(Status::MiscFailure, message))
            }

            (Self::CheckingOutputs { wanted }, Event::OutputsQueried { invalid }) => {
                outputs_checked(facts, recipe, wanted, &invalid)
            }
            (Self::RequiringInputs, Event::InputsRequired { n_pending, ended }) => {
                let mut failures = InputFailures::default();
                for ending in &ended {
                    failures.count(ending);
                }
                inputs_changed(facts, recipe, n_pending, failures)
            }
            (
                Self::AwaitingInputs {
                    n_pending,
                    mut failures,
                },
                Event::InputFinished(ending),
            ) => {
                failures.count(&ending);
                inputs_changed(facts, recipe, n_pending - 1, failures)
            }
            (Self::QueryingClosure, Event::ClosureQueried) => await_slot(recipe),
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
                if invalid.is_empty() {
                    already_valid(&recipe, vec![])
                } else {
                    await_slot(recipe)
                }
            }
            (Self::CheckingLocked(slot), Event::OutputsQueried { invalid }) => {
                if invalid.is_empty() {
                    let effects = vec![Effect::ReleaseSlot(slot), Effect::ReleaseLocks];
                    already_valid(&recipe, effects)
                } else {
                    let effects = vec![Effect::DiscardInvalidPaths];
                    live(recipe, Self::Discarding(slot, invalid), effects)
                }
            }
            (Self::Discarding(slot, invalid), Event::InvalidPathsDiscarded) => live(
                recipe,
                Self::Building(slot, invalid),
                vec![Effect::StartBuild],
            ),

            (Self::Building(slot, invalid), Event::BuildExited(ending)) => {
                build_exited(facts, recipe, slot, invalid, *ending)
            }
            (Self::Stopping(slot), Event::BuildExited(_)) => {
                let effects = vec![Effect::ReleaseSlot(slot)];
                failed_build(facts, recipe, effects, cancelled(facts))
            }
            (Self::Registering(times), Event::OutputsRegistered) => {
                let mut outcome = Outcome::success(Status::Built, recipe.outputs.clone());
                outcome.build_times = Some(times);
                outcome.n_rounds = 1;
                let effects = vec![
                    Effect::ReleaseLocks,
                    Effect::DisposeBuild(Disposition::Delete),
                ];
                end(effects, outcome)
            }
            (Self::Registering(times), Event::OutputsRefused { status, message }) => {
                let mut outcome = Outcome::failure(status, message);
                outcome.build_times = Some(times);
                outcome.n_rounds = 1;
                failed_build(facts, recipe, vec![], outcome)
            }
            (Self::Keeping(mut outcome), Event::BuildKept { path }) => {
                if let Some(path) = &path {
                    outcome.message.push_str(&format!(
                        "\nnote: keeping build directory '{}'",
                        path.display()
                    ));
                }
                outcome.kept_build_dir = path;
                end(vec![Effect::ReleaseLocks], *outcome)
            }

            (phase, event) => phase.late(recipe, event),
        }
    }

    /// Takes note of further wanted outputs. Once building is decided all outputs are made (SPEC
    /// B5), so only a goal that may still end as valid has to look again.
    fn widen(self, recipe: Arc<Recipe>, more: &WantedOutputs) -> Step {
        match self {
            // The question was about all outputs, so its answer serves the wider wish too.
            Self::CheckingOutputs { mut wanted } => {
                wanted.widen(more);
                live(recipe, Self::CheckingOutputs { wanted }, vec![])
            }
            phase => live(recipe, phase, vec![]),
        }
    }

    /// Gives everything back. Only a running builder has to be waited for; outputs that are being
    /// registered are waited for too, since they are made already.
    fn cancel(self, facts: &Facts, recipe: Arc<Recipe>) -> Step {
        match self {
            Self::Building(slot, _) => {
                live(recipe, Self::Stopping(slot), vec![Effect::CancelBuild])
            }
            phase @ (Self::Stopping(_) | Self::Registering(_) | Self::Keeping(_)) => {
                live(recipe, phase, vec![])
            }
            phase => phase.abandon(cancelled(facts)),
        }
    }

    /// Ends the goal from wherever it stands, giving back what it has.
    fn abandon(self, outcome: Outcome) -> Step {
        let effects = match self {
            Self::CheckingOutputs { .. }
            | Self::QueryingClosure
            | Self::AwaitingLock
            | Self::CheckingAgain => vec![],
            Self::RequiringInputs | Self::AwaitingInputs { .. } => vec![Effect::LeaveInputs],
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
            Self::Registering(_) => vec![
                Effect::DisposeBuild(Disposition::Delete),
                Effect::ReleaseLocks,
            ],
            Self::Keeping(_) => vec![Effect::ReleaseLocks],
        };
        end(effects, outcome)
    }

    /// Takes news that a goal may get after it has moved on.
    fn late(self, recipe: Arc<Recipe>, event: Event) -> Step {
        match event {
            // A slot that was granted while we left the queue goes straight back.
            Event::SlotGranted(slot) => live(recipe, self, vec![Effect::ReleaseSlot(slot)]),
            event => unreachable!("{event:?} cannot happen in {self:?}"),
        }
    }
}

impl InputFailures {
    fn count(&mut self, ending: &InputEnding) {
        let outcome = &ending.outcome;
        if outcome.status.is_success() {
            return;
        }
        self.paths.insert(ending.path.clone());
        if outcome.root_causes.is_empty() {
            self.root_causes.insert(ending.path.clone());
        } else {
            self.root_causes.extend(outcome.root_causes.iter().cloned());
        }
        if outcome.status == Status::NoSubstituters {
            self.n_without_substituter += 1;
            self.messages.push(outcome.message.clone());
        }
        self.bits = self.bits | outcome.failure_bits;
    }

    /// Returns whether an input failed in a way that makes waiting for the others pointless
    /// (SPEC A3).
    fn releases_the_rest(&self) -> bool {
        self.paths.len() > self.n_without_substituter
    }
}

fn live(recipe: Arc<Recipe>, phase: Phase, effects: Vec<Effect>) -> Step {
    (State::Live { recipe, phase }, effects)
}

fn end(mut effects: Vec<Effect>, outcome: Outcome) -> Step {
    effects.push(Effect::Finish(Box::new(outcome)));
    (State::Finished, effects)
}

fn already_valid(recipe: &Recipe, effects: Vec<Effect>) -> Step {
    let outputs = recipe.outputs.clone();
    end(effects, Outcome::success(Status::AlreadyValid, outputs))
}

fn cancelled(facts: &Facts) -> Outcome {
    let message = format!("building '{}' was cancelled", facts.printed_path);
    Outcome::failure(Status::Cancelled, message)
}

fn await_slot(recipe: Arc<Recipe>) -> Step {
    let effects = vec![Effect::Announce(WaitReason::Slot), Effect::RequestSlot];
    live(recipe, Phase::AwaitingSlot, effects)
}

fn check_outputs(facts: &Facts, recipe: Arc<Recipe>, wanted: WantedOutputs) -> Step {
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
    live(recipe, phase, vec![Effect::QueryOutputs])
}

fn outputs_checked(
    facts: &Facts,
    recipe: Arc<Recipe>,
    wanted: WantedOutputs,
    invalid: &BTreeSet<OutputName>,
) -> Step {
    let wanted_paths: BTreeMap<OutputName, StorePath> = recipe.wanted(&wanted);
    let unknown = recipe.unknown_outputs(&wanted);
    if !unknown.is_empty() {
        // Somebody widened the goal by an output that there is not.
        return check_outputs(facts, recipe, wanted);
    }
    if !wanted_paths.keys().any(|name| invalid.contains(name)) {
        return end(vec![], Outcome::success(Status::AlreadyValid, wanted_paths));
    }
    if let Some(obstacle) = &recipe.obstacle {
        let message = obstacle.clone();
        return end(vec![], Outcome::failure(Status::MiscFailure, message));
    }
    if facts.local_builds == LocalBuilds::Forbidden {
        let message = format!(
            "unable to build '{}': 'max-jobs' is 0 and no build machine takes it",
            facts.printed_path
        );
        return end(vec![], Outcome::failure(Status::MiscFailure, message));
    }
    live(recipe, Phase::RequiringInputs, vec![Effect::RequireInputs])
}

/// Decides what follows when an input has ended, or when it is known how many there are.
fn inputs_changed(
    facts: &Facts,
    recipe: Arc<Recipe>,
    n_pending: usize,
    failures: InputFailures,
) -> Step {
    let gives_up = facts.after_failure == AfterFailure::Stop && failures.releases_the_rest();
    if n_pending > 0 && !gives_up {
        let phase = Phase::AwaitingInputs {
            n_pending,
            failures,
        };
        let effects = vec![Effect::Announce(WaitReason::Inputs { n_pending })];
        return live(recipe, phase, effects);
    }
    if failures.paths.is_empty() {
        return live(recipe, Phase::QueryingClosure, vec![Effect::QueryClosure]);
    }
    let effects = if n_pending > 0 {
        vec![Effect::LeaveInputs]
    } else {
        vec![]
    };
    end(effects, dependency_failed(facts, &failures))
}

fn dependency_failed(facts: &Facts, failures: &InputFailures) -> Outcome {
    let names: Vec<String> = failures
        .root_causes
        .iter()
        .map(|path| format!("'{}'", path.name()))
        .collect();
    let n_failed = failures.paths.len();
    let noun = if n_failed == 1 {
        "dependency"
    } else {
        "dependencies"
    };
    let mut message = format!(
        "{n_failed} {noun} of derivation '{}' failed: {}",
        facts.printed_path,
        names.join(", ")
    );
    for cause in &failures.messages {
        message.push('\n');
        message.push_str(cause);
    }
    let mut outcome = Outcome::failure(Status::DependencyFailed, message);
    outcome.failure_bits = failures.bits;
    outcome.root_causes = failures.root_causes.iter().cloned().collect();
    outcome
}

fn build_exited(
    facts: &Facts,
    recipe: Arc<Recipe>,
    slot: SlotId,
    invalid: BTreeSet<OutputName>,
    ending: BuilderEnding,
) -> Step {
    let mut effects = vec![Effect::ReleaseSlot(slot)];
    if ending.verdict == (BuildVerdict::Exited { code: 0 }) {
        effects.push(Effect::Announce(WaitReason::Registration));
        effects.push(Effect::RegisterOutputs(invalid));
        return live(recipe, Phase::Registering(ending.times), effects);
    }
    let (status, cause) = failure(facts, &recipe, &ending);
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
    let mut outcome = Outcome::failure(status, message);
    outcome.build_times = Some(ending.times);
    outcome.n_rounds = 1;
    failed_build(facts, recipe, effects, outcome)
}

/// Classifies a builder that did not succeed (SPEC A8, B11).
fn failure(facts: &Facts, recipe: &Recipe, ending: &BuilderEnding) -> (Status, String) {
    let drv_path = &facts.printed_path;
    let own_failure = if recipe.is_fixed_output || ending.disk == Disk::NearlyFull {
        Status::TransientFailure
    } else {
        Status::PermanentFailure
    };
    match &ending.verdict {
        BuildVerdict::Exited { code } => (
            own_failure,
            format!("builder for '{drv_path}' failed with exit code {code}"),
        ),
        BuildVerdict::Signalled { signal } => (
            own_failure,
            format!("builder for '{drv_path}' failed due to signal {signal}"),
        ),
        BuildVerdict::TimedOut { after } => (
            Status::TimedOut,
            format!(
                "building of '{drv_path}' timed out after {} seconds",
                after.as_secs_f64()
            ),
        ),
        BuildVerdict::Silent { after } => (
            Status::TimedOut,
            format!(
                "building of '{drv_path}' timed out after {} seconds of silence",
                after.as_secs_f64()
            ),
        ),
        BuildVerdict::LogLimitExceeded { limit_bytes } => (
            Status::LogLimitExceeded,
            format!(
                "builder for '{drv_path}' killed after writing more than {limit_bytes} bytes of \
                 log output"
            ),
        ),
        BuildVerdict::Cancelled => (
            Status::Cancelled,
            format!("building '{drv_path}' was cancelled"),
        ),
        BuildVerdict::SetupFailed { message } => (
            Status::InputRejected,
            format!("while setting up the build environment of '{drv_path}': {message}"),
        ),
    }
}

fn quote_log(message: &mut String, facts: &Facts, log_tail: &[String]) {
    if log_tail.is_empty() {
        return;
    }
    let noun = if log_tail.len() == 1 { "line" } else { "lines" };
    message.push_str(&format!(";\nlast {} log {noun}:", log_tail.len()));
    for line in log_tail {
        message.push_str("\n> ");
        message.push_str(line);
    }
    message.push_str(&format!(
        "\nfor the full log, run 'goalctl log {}'",
        facts.printed_path
    ));
}

/// Ends a build that failed: its directories go, or are kept for the user (SPEC B12).
fn failed_build(
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
