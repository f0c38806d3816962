//! What a derivation goal is told, and what it has done.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use sandbox::Disposition;
use store_model::wanted_outputs::WantedOutputs;
use store_model::{OutputName, StorePath};

use super::{BrokenPath, BuilderEnding, Comparison, InputEnding, OutputsDiffer, Shown, Turn};
use crate::events::{LockOwner, Round, WaitReason};
use crate::goal::recipe::Recipe;
use crate::goal::{Outcome, Status};
use crate::slots::SlotId;

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
    /// The derivation is not in the store.
    DerivationMissing,
    /// The registry read and checked the derivation.
    DerivationLoaded {
        /// What it says.
        recipe: Arc<Recipe>,
    },
    /// The paths of outputs are known that were not; comes before what is said of these outputs.
    PathsLearnt {
        /// The outputs.
        outputs: BTreeMap<OutputName, StorePath>,
    },
    /// The registry said which outputs are not valid; in a repair, which are corrupt or missing.
    OutputsQueried {
        /// Those of all outputs.
        invalid: BTreeSet<OutputName>,
    },
    /// The registry looked at everything below the outputs.
    ClosureExamined {
        /// What is not as it should be.
        broken: Vec<BrokenPath>,
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
    /// The derivation was resolved to this one, which is in the store.
    Resolved {
        /// Its path.
        drv_path: StorePath,
    },
    /// What the derivation was resolved to realised these outputs, which are remembered as its own.
    RealisationsAdopted {
        /// Those that were wanted.
        outputs: BTreeMap<OutputName, StorePath>,
    },
    /// The registry gave the closure of the inputs, and what else surrounds the builder.
    ClosureQueried,
    /// The derivation asks for surroundings that it cannot have.
    SurroundingsRefused {
        /// In which way.
        status: Status,
        /// Why.
        message: String,
    },
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
    /// The output is valid at the path that its contents have.
    OutputFound {
        /// Which.
        path: StorePath,
    },
    /// The outputs were refused, or could not be registered.
    OutputsRefused {
        /// In which way.
        status: Status,
        /// Why.
        message: String,
    },
    /// The registry gave the outputs up, as it was told to.
    RegistrationCancelled,
    /// The registry compared the outputs.
    OutputsCompared {
        /// How they differ, if they do.
        difference: Option<Box<OutputsDiffer>>,
    },
    /// The diff hook has ended, and what it showed is taken away again.
    DiffHookEnded {
        /// What it wrote, in whole lines.
        report: String,
    },
    /// The hook ended.
    HookEnded {
        /// What went wrong, if anything did.
        failure: Option<String>,
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
    /// Ask the scheduler for the derivation itself.
    RequireDerivation,
    /// Ask the scheduler for goals that fetch these outputs.
    RequireSubstitutes(BTreeSet<OutputName>, Turn),
    /// Keep all outputs from the garbage collector, then ask which are invalid; in a repair, which
    /// are corrupt or missing.
    QueryOutputs,
    /// Ask which paths below these outputs are corrupt or missing.
    ExamineClosure(BTreeSet<StorePath>),
    /// Ask the scheduler for goals that repair these.
    RequireRepairs(Vec<BrokenPath>),
    /// Ask the scheduler for the goals of all inputs.
    RequireInputs,
    /// Stop waiting for inputs.
    LeaveInputs,
    /// Resolve the derivation, and put it into the store as that.
    Resolve,
    /// Ask the scheduler for the goal of this derivation, in place of the inputs.
    RequireResolved(StorePath),
    /// Remember what that goal realised as this derivation's outputs.
    AdoptRealisations(Arc<Outcome>),
    /// Ask for the closure of the inputs, and for what else surrounds the builder.
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
    StartBuild(Round),
    /// Kill the builder.
    CancelBuild,
    /// Check, hash and register these outputs, in the place of what is broken or wherever they
    /// belong by their contents, as the goal's mode has it.
    RegisterOutputs(BTreeSet<OutputName>),
    /// Make these outputs canonical, hash them, and compare them.
    CompareOutputs(BTreeSet<OutputName>, Comparison),
    /// Tell the registry that nobody wants the outputs any more.
    CancelRegistration,
    /// Run the hook.
    RunHook,
    /// Kill the hook.
    CancelHook,
    /// Run the diff hook; then remove what lies at the output paths without being valid.
    RunDiffHook(Vec<Shown>),
    /// Kill the diff hook.
    StopDiffHook,
    /// Tell people, though nothing fails.
    Warn(String),
    /// Do away with the build's directories, or keep them.
    DisposeBuild(Disposition),
    /// Tell subscribers why the goal stands still.
    Announce(WaitReason),
    /// Tell everybody who waits, and stop.
    Finish(Box<Outcome>),
}
