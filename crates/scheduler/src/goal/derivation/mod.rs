//! The goal of a derivation: bring its wanted outputs about.
//!
//! ```text
//! Idle ─► LoadingDerivation ─► CheckingOutputs ─────────────────────────────► AlreadyValid
//!              │   ▲               │ some are invalid   (in a check: all are valid, else it fails)
//!              ▼   │               ▼
//!      AwaitingDerivation   RequiringSubstitutes ─► AwaitingSubstitutes ────► Substituted
//!        (it is fetched)                                   │ nobody has them, or their closures:
//!                                                          ▼ all will be made
//!                     RequiringInputs ─► AwaitingInputs ─► QueryingClosure ─► failed
//!                                                   │
//!                                              AwaitingSlot ◄── CheckingAgain
//!                                                   │ slot          ▲ lock was free
//!                                                Locking ─busy─► AwaitingLock
//!                                                   │ locked
//!                                             CheckingLocked ───────────────► AlreadyValid
//!                                                   │         └─ check ─┐
//!                                               Discarding              │
//!                                                   │                   │
//!                              AwaitingRound ─► Building ◄──────────────┘
//!                                 ▲    slot         │    ─cancelled─► Stopping
//!                                 │                 │ the slot goes back here
//!                                 │ another round   │ check, or several rounds
//!                                 └──────────── Comparing ──────────────────► Built (a check)
//!                                                   │    ─cancelled─► LeavingComparison
//!                                                   │ the last round, or the only one
//!                                               Registering ─► RunningHook ─► Built
//!                                                   │ refused, cancelled, or a round or check
//!                                                   │ that differs
//!                                                Keeping ───────────────────► failed
//! ```
//!
//! Where all that was lacking is something that outputs in a cache refer to, the caches are asked once
//! more when the inputs are there (SPEC B4): after `AwaitingInputs` comes `RequiringSubstitutes` again.
//!
//! In a repair an output is valid if its contents are what the database says, and where all that are
//! wanted are, everything below them is looked at before the goal ends:
//!
//! ```text
//! CheckingOutputs ─► ExaminingClosure ─► RequiringRepairs ─► AwaitingRepairs ─► AlreadyValid
//!         ▲                  │ all is good                           │       └─► failed
//!         │                  └──────────────► AlreadyValid           │
//!         └────────────── more is wanted meanwhile ──────────────────┘
//! ```
//!
//! With the feature `ca-derivations` a derivation whose inputs are realised may be another one: it is
//! resolved, and that one has a goal of its own, which does everything from here on. What it
//! realises is remembered as this derivation's, too.
//!
//! ```text
//! AwaitingInputs ─► Resolving ─► RequiringResolved ─► AwaitingResolved ─► failed
//!                                                          └─► Adopting ─► RunningHook ─► its ending
//! ```
//!
//! What differs is shown to the diff hook, if there is one, in `RunningDiffHook`: before the goal
//! fails, or after outputs were registered whose rounds may differ.
//!
//! `RunningHook` is there only if there is a hook. Its outputs are valid by then and its locks given
//! back, so that nobody waits for the hook but who needs the goal.
//!
//! A slot is held from `Locking`, or from `AwaitingRound`, to the builder's exit, and locks from
//! `CheckingLocked` to the end, also between rounds. A round gives its slot back before its outputs
//! are read and queues for another one afterwards: hashing is not building. A goal that finds a lock
//! taken gives its slot back before it waits, so nobody who holds a slot ever waits for anybody; and
//! who holds locks while it queues for a slot keeps nobody from giving one back.
//!
//! Whoever is cancelled while comparing or registering tells the registry and waits for its answer:
//! until then the registry reads the outputs and may move them, so neither the locks nor the
//! directory may go. It comes within moments, and says whether the outputs are valid after all.

mod built;
mod endings;
mod events;
mod inputs;
mod repair;
mod resolution;
mod rounds;
mod substitutes;
mod transitions;

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use sandbox::BuildVerdict;
use store_model::wanted_outputs::{WantedOutputs, Widened};
use store_model::{OutputName, StorePath};

use super::recipe::Recipe;
use super::{BuildMode, BuildTimes, FailureBits, Outcome};
use crate::slots::SlotId;

pub use self::events::{Effect, Event};

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
    /// Whether a program runs after the build (SPEC D7).
    pub post_build_hook: PostBuildHook,
    /// Whether this machine has build slots at all (SPEC A5).
    pub local_builds: LocalBuilds,
    /// What is built for.
    pub mode: BuildMode,
    /// How many times to build, and compare; fixed outputs and checks are built once.
    pub n_rounds: u32,
    /// What a round that differs comes to (`enforce-determinism`).
    pub on_difference: OnDifference,
    /// Whether caches are asked for outputs before they are built.
    pub substitution: Substitution,
}

/// Whether caches are asked for outputs, and what follows if one fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Substitution {
    /// There are no caches, or `substitute` is off.
    Off,
    /// A download that failed everywhere fails the goal.
    Strict,
    /// What cannot be downloaded is built (`fallback`).
    WithFallback,
}

/// What it comes to that a round makes other outputs than the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDifference {
    /// The goal fails.
    Fail,
    /// It is told, and the rounds end: their last outputs become valid.
    Tell,
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

/// Whether a program runs after a build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PostBuildHook {
    /// None.
    None,
    /// One that `post-build-hook` names.
    Runs,
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
    /// The derivation is not in the store; the scheduler was asked for it.
    AwaitingDerivation {
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
    /// The registry was asked what below the outputs is corrupt or missing.
    ExaminingClosure(Examined),
    /// The scheduler was asked to have it repaired.
    RequiringRepairs(Examined),
    /// Repairs are under way.
    AwaitingRepairs {
        /// Whose closure it is.
        examined: Examined,
        /// How many have not ended.
        n_pending: usize,
        /// What failed so far.
        failures: InputFailures,
    },
    /// The scheduler was asked for what the caches may have.
    RequiringSubstitutes(Sought),
    /// The caches are being asked, or outputs fetched.
    AwaitingSubstitutes {
        /// What is sought there.
        sought: Sought,
        /// How many outputs have not ended.
        n_pending: usize,
        /// What failed so far.
        failures: InputFailures,
    },
    /// The scheduler was asked for the inputs.
    RequiringInputs(AfterInputs),
    /// Inputs are under way.
    AwaitingInputs {
        /// What comes then.
        next: AfterInputs,
        /// How many have not ended.
        n_pending: usize,
        /// What failed so far.
        failures: InputFailures,
    },
    /// The derivation is being resolved, and put into the store as that.
    Resolving,
    /// The scheduler was asked for the goal of what it was resolved to.
    RequiringResolved,
    /// What it was resolved to is under way.
    AwaitingResolved,
    /// What that realised is being remembered as this derivation's.
    Adopting(InputEnding),
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
    Building(SlotId, Attempt),
    /// The builder is being killed.
    Stopping(SlotId),
    /// The outputs are being compared with those that are valid, or with the round before.
    Comparing(Made),
    /// The same, and nobody wants to know any more.
    LeavingComparison(Made),
    /// All slots are taken when another round is due.
    AwaitingRound(Attempt),
    /// The outputs are being registered; these are to be shown to the diff hook then.
    Registering(Made, Vec<Shown>),
    /// The diff hook looks at outputs that differ; the goal ends like this.
    RunningDiffHook(Box<Outcome>),
    /// The outputs are valid, and the hook runs.
    RunningHook {
        /// How the goal ends if the hook succeeds.
        outcome: Box<Outcome>,
        /// Whether anybody still wants the goal.
        interest: Interest,
    },
    /// The failed build's directory is being put aside.
    Keeping(Box<Outcome>),
}

/// Outputs whose contents are good, while everything below them is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Examined {
    /// The outputs that are wanted, also those that were not yet when this began.
    pub wanted: WantedOutputs,
    /// Whether there are such.
    pub growth: Widened,
}

/// Outputs that caches are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sought {
    /// The outputs that are wanted, also those that were not yet when this began.
    pub wanted: WantedOutputs,
    /// Whether there are such.
    pub growth: Widened,
    /// Whether it is the first time.
    pub turn: Turn,
}

/// How often caches were asked for the outputs of a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// They were not.
    First,
    /// Once, when something was lacking that the inputs have brought.
    Again,
}

/// What a goal does once its inputs are there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterInputs {
    /// It builds.
    Build,
    /// It asks the caches for these outputs once more: all that these lacked were references.
    AskAgain(WantedOutputs),
}

/// A path below an output that is corrupt or missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokenPath {
    /// The path.
    pub path: StorePath,
    /// The path as messages print it.
    pub printed_path: String,
    /// The derivation that makes it, where the goal's own needs that.
    pub deriver: Option<StorePath>,
}

/// Whether anybody wants a goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interest {
    /// Somebody does.
    Wanted,
    /// Nobody does.
    Gone,
}

/// A build that is to be made, or runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The outputs that count.
    pub names: BTreeSet<OutputName>,
    /// Which round it is; counts from 1.
    pub round: u32,
}

/// A build whose builder succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Which.
    pub attempt: Attempt,
    /// When its builder ran.
    pub times: BuildTimes,
}

/// What a build's outputs are compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// With the valid ones.
    WithValid,
    /// With nothing yet: they are the first of several rounds.
    OfFirstRound,
    /// With those of the rounds before, which were all the same.
    WithEarlierRound,
}

/// Outputs that differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputsDiffer {
    /// Which, and how.
    pub message: String,
    /// What the diff hook is to look at; empty if there is none.
    pub shown: Vec<Shown>,
}

/// Two outputs that differ, for the diff hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The one that was made first.
    pub earlier: PathBuf,
    /// The other one.
    pub later: PathBuf,
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
    /// How many of them some cache has, but not what they refer to.
    pub n_incomplete: usize,
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
