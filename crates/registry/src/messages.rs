//! Everything that can be said to this crate's actors, and what they answer.
//!
//! Questions and commands only: the registry never asks anybody back. Those about archives, and
//! about what lies in the store already, have files of their own.

mod archives;
mod present;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use actix::Message;
use store_model::derivation::IngestionMethod;
use store_model::derivation::output_checks::OutputChecks;
use store_model::derivation::reference_graphs::{GraphInfos, ReferenceGraphs};
use store_model::{
    Derivation, DrvOutput, Hash, HashAlgorithm, OutputName, PathInfo, Realisation, StorePath,
};

pub use self::archives::{AddNar, RegisterRestored, RestoreError, RestoreNar, RestoredPath};
pub use self::present::{
    AddSignatures, PresentMetadata, PresentPath, RegisterPresent, ValidAlready,
};
pub use crate::ingest::RoundOutputs;
use crate::path_lock::HeldLocks;
use crate::roots::Loan;
use crate::{CancelFlag, Error};

/// Asked by anybody: what is known about one path; `None` if it is not valid.
#[derive(Debug, Message)]
#[rtype(result = "Result<Option<PathInfo>, Error>")]
pub struct QueryPathInfo {
    /// The path in question.
    pub path: StorePath,
}

/// Asked by goals and the command line: which of these paths are valid.
#[derive(Debug, Message)]
#[rtype(result = "Result<BTreeSet<StorePath>, Error>")]
pub struct QueryValidPaths {
    /// The paths in question, answered in one read transaction.
    pub paths: Vec<StorePath>,
}

/// Asked by goals: everything reachable from these valid paths by references, themselves included.
#[derive(Debug, Message)]
#[rtype(result = "Result<BTreeSet<StorePath>, Error>")]
pub struct QueryClosure {
    /// Where to start. An invalid one is an error that names it.
    pub roots: BTreeSet<StorePath>,
}

/// Asked by goals whose derivation wants `exportReferencesGraph`: every path of each graph, with
/// what is known of it.
///
/// A graph is the closure of its roots and of the outputs of the derivations in that. A root or
/// such an output that is not valid is an error that names it.
#[derive(Debug, Message)]
#[rtype(result = "Result<GraphInfos, Error>")]
pub struct QueryGraphs {
    /// The roots by the graph's name.
    pub graphs: ReferenceGraphs,
}

/// Asked by goals: the parsed and checked contents of a valid `.drv`.
///
/// Checked means: its own path follows from its text, and its output paths follow from it
/// (SECURITY V04).
#[derive(Debug, Message)]
#[rtype(result = "Result<Arc<Derivation>, Error>")]
pub struct QueryDerivation {
    /// Path of the derivation.
    pub drv_path: StorePath,
}

/// Asked by repairing goals: which of these paths are valid and have the contents that the
/// database says. Answers are remembered until somebody sends [`ForgetContents`] (SPEC A10).
#[derive(Debug, Message)]
#[rtype(result = "Result<BTreeSet<StorePath>, Error>")]
pub struct QueryGoodPaths {
    /// The paths in question.
    pub paths: Vec<StorePath>,
}

/// Sent by the scheduler when a request begins that repairs: what was good at an earlier one may not
/// be any more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ForgetContents;

/// Sent by goals before they ask for validity: keeps these paths from the garbage collector until
/// the lease is dropped.
#[derive(Debug, Message)]
#[rtype(result = "Result<RootsLease, Error>")]
pub struct AddTempRoots {
    /// Paths, valid or not.
    pub paths: Vec<StorePath>,
}

/// Temporary roots on loan: the garbage collector leaves their paths alone until the last copy of
/// the lease is dropped, or the registry stops.
#[derive(Debug, Clone, Default)]
pub struct RootsLease {
    pub(crate) loans: Vec<Arc<Loan>>,
}

impl RootsLease {
    /// Returns the paths that are kept, in the order in which they were asked for.
    pub fn paths(&self) -> impl Iterator<Item = &StorePath> {
        self.loans.iter().flat_map(|loan| &loan.paths)
    }

    /// Returns whether nothing is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.loans.is_empty()
    }

    /// Keeps what another lease keeps, too.
    pub fn absorb(&mut self, other: Self) {
        self.loans.extend(other.loans);
    }
}

impl PartialEq for RootsLease {
    fn eq(&self, other: &Self) -> bool {
        self.paths().eq(other.paths())
    }
}

impl Eq for RootsLease {}

/// Sent by a goal that holds a slot, to the lock keeper: all locks or none, without waiting.
#[derive(Debug, Message)]
#[rtype(result = "Result<LockAttempt, Error>")]
pub struct TryLockOutputs {
    /// Output paths; taken in their sorted order.
    pub paths: BTreeSet<StorePath>,
}

/// Answer to [`TryLockOutputs`].
#[derive(Debug)]
pub enum LockAttempt {
    /// All of them are ours until the value is dropped.
    Acquired(OutputLocks),
    /// Somebody has this one; none was taken.
    Busy {
        /// The first output whose lock is taken.
        path: StorePath,
        /// Who has it, where the kernel tells.
        holder: LockHolder,
    },
}

/// Who holds a lock that we want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockHolder {
    /// Another goal of this process.
    ThisProcess,
    /// Another process.
    Process(u32),
    /// The kernel does not tell.
    Unknown,
}

/// Locks on outputs. Dropping them lets everybody else go on at once.
#[derive(Debug)]
pub struct OutputLocks {
    pub(crate) _held: HeldLocks,
}

/// Sent by a goal that found a lock busy, to the lock keeper: answers when the lock was free for a
/// moment. The lock is not held afterwards: the goal asks for a slot and tries again.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct AwaitLock {
    /// The output whose lock was busy.
    pub path: StorePath,
}

/// Sent by a goal that holds the locks: removes what lies at these paths without being valid.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct DiscardInvalidPaths {
    /// Output paths; those that are valid are left alone.
    pub paths: Vec<StorePath>,
}

/// One output as the builder left it.
#[derive(Debug, Clone)]
pub struct ScratchOutput {
    /// Its symbolic name.
    pub name: OutputName,
    /// Where it belongs, or its provisional path; in the scratch directory it has the same base
    /// name, unless it was redirected.
    pub path: StorePath,
    /// Whether its path follows from its contents.
    pub kind: OutputKind,
}

/// What follows from what: an output's path from its contents, or its contents from its path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// Its path follows from its derivation, whatever it contains.
    InputAddressed,
    /// It must have this hash, modulo mentions of itself; its path follows from that.
    Fixed {
        /// What is hashed.
        method: IngestionMethod,
        /// What it must be.
        hash: Hash,
    },
    /// Its path follows from its contents; until that is known it has a provisional one.
    Floating {
        /// What is hashed.
        method: IngestionMethod,
        /// With which algorithm.
        algorithm: HashAlgorithm,
    },
}

/// The directory that a builder saw as the store, reached by descriptor only.
#[derive(Debug, Clone)]
pub struct ScratchStore {
    /// The open directory.
    pub dir: Arc<OwnedFd>,
    /// Outputs of the build that were made under other paths, which all of its outputs may mention
    /// instead: wherever they do, the output's own path is put back.
    pub redirected: BTreeMap<StorePath, StorePath>,
    /// Whether somebody who outlives the builder may have files of it open, and write to them
    /// still: then copies become valid. What is fixed is always taken for that.
    pub is_exposed: bool,
    /// Its path, for messages.
    pub path: PathBuf,
}

/// Sent by a goal that holds the locks, after its builder is gone: checks the outputs, makes their
/// metadata canonical, hashes and scans them in one pass, moves them into the store, syncs, and
/// registers all of them in one transaction.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<PathInfo>, RegisterError>")]
pub struct RegisterOutputs {
    /// The derivation that made them.
    pub drv_path: StorePath,
    /// Where they are.
    pub scratch: ScratchStore,
    /// The uid that must own every file of them.
    pub builder_uid: u32,
    /// All outputs to register. An output that is valid already is left out by the goal.
    pub outputs: Vec<ScratchOutput>,
    /// The derivation's other outputs, which are valid already: checks may name them.
    pub other_outputs: BTreeMap<OutputName, StorePath>,
    /// What the derivation demands of its outputs.
    pub checks: OutputChecks,
    /// What the contents may mention: the input closure and all outputs.
    pub reference_candidates: Arc<BTreeSet<StorePath>>,
    /// What becomes of a valid object that lies where an output belongs.
    pub occupied: Occupied,
    /// As what the outputs are remembered; empty without the feature `ca-derivations`.
    pub realises: BTreeMap<OutputName, DrvOutput>,
    /// Raised by the goal when nobody wants the outputs any more. What has been handed to the writer
    /// by then becomes valid all the same; anything else is given up within moments, and the answer
    /// says which it was.
    pub cancel: CancelFlag,
}

/// What it means that an output's path is valid already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupied {
    /// A mistake: the goal leaves out what is valid.
    Refused,
    /// It was found to be corrupt or missing: it makes way, at no moment leaving nothing at the path
    /// where the file system can exchange names, and its row says from then on what lies there.
    Repaired,
}

/// Sent by a goal that holds the locks, after its builder is gone: registers a derivation's only
/// output, which is fixed, at the path that follows from its contents, whatever was promised.
#[derive(Debug, Message)]
#[rtype(result = "Result<ContentAddressed, RegisterError>")]
pub struct RegisterByContents {
    /// What was made.
    pub candidate: RegisterOutputs,
}

/// Answer to [`RegisterByContents`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContentAddressed {
    /// What is known of it: its path, and its address by contents.
    pub info: PathInfo,
    /// Keeps it from the garbage collector.
    pub roots: RootsLease,
}

/// Sent by a goal that holds the locks of its derivation, after its builder is gone: does what
/// [`RegisterOutputs`] does with outputs whose paths follow from their contents. What mentions
/// itself, or another output, is rewritten to say the path that there is in the end.
///
/// Waits for locks on those paths, which somebody else may hold who has made the same.
#[derive(Debug, Message)]
#[rtype(result = "Result<RegisteredFloating, RegisterError>")]
pub struct RegisterFloatingOutputs {
    /// What was made, under provisional paths.
    pub made: RegisterOutputs,
    /// The provisional paths of the derivation's other outputs, and where those are.
    pub settled: BTreeMap<StorePath, StorePath>,
}

/// Answer to [`RegisterFloatingOutputs`].
#[derive(Debug)]
pub struct RegisteredFloating {
    /// Where the outputs are, valid.
    pub outputs: BTreeMap<OutputName, StorePath>,
    /// Keeps them from the garbage collector.
    pub roots: RootsLease,
}

/// Asked by goals and the command line, where the store was opened with the feature
/// `ca-derivations`: which of a derivation's outputs are realised, whatever recipe it was.
#[derive(Debug, Message)]
#[rtype(result = "Result<RealisedOutputs, Error>")]
pub struct QueryRealisations {
    /// The derivation, whose inputs are in the store.
    pub derivation: Arc<Derivation>,
}

/// Answer to [`QueryRealisations`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RealisedOutputs {
    /// As what each output is remembered.
    pub ids: BTreeMap<OutputName, DrvOutput>,
    /// The paths of those that are realised.
    pub paths: BTreeMap<OutputName, StorePath>,
}

/// Asked by the command line, where the store was opened with the feature `ca-derivations`: all
/// that is remembered of these outputs. Those that are not realised are not in the answer.
#[derive(Debug, Message)]
#[rtype(result = "Result<BTreeMap<DrvOutput, Realisation>, Error>")]
pub struct QueryRealisationInfos {
    /// The outputs, by what was built.
    pub outputs: BTreeSet<DrvOutput>,
}

/// Sent by goals that found outputs valid whose paths follow from their derivation, and nothing
/// remembered of them: they were made without the feature.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct NoteRealisations {
    /// Which output each valid path is.
    pub outputs: BTreeMap<DrvOutput, StorePath>,
}

/// Sent by a goal whose derivation was resolved, when what it was resolved to is realised:
/// remembers the same paths as the outputs of the derivation as it was written, with the
/// realisations of its inputs that they refer to.
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct AdoptRealisations {
    /// The derivation as it was written.
    pub derivation: Arc<Derivation>,
    /// Its outputs that were wanted, valid.
    pub outputs: BTreeMap<OutputName, StorePath>,
}

/// Why outputs were not registered. Nothing of them is valid then, and nothing is left at their
/// paths, unless they were to be repaired: then there is what was there before, or what was made.
/// And a fixed output with other contents than promised may be valid at the path that those
/// have.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// The builder left something that no store may hold, or that its derivation forbids
    /// (`OutputRejected`).
    #[error("{0}")]
    Rejected(String),
    /// A fixed output has other contents than promised (`HashMismatch`).
    #[error(
        "hash mismatch in fixed-output derivation '{drv_path}':\n  specified: {}\n     got:    {}",
        wanted.to_sri(),
        got.to_sri()
    )]
    HashMismatch {
        /// Full path of the derivation.
        drv_path: String,
        /// What the derivation says.
        wanted: Box<Hash>,
        /// What the output has.
        got: Box<Hash>,
    },
    /// The goal raised the request's flag. What has not been read yet lies where its builder left it.
    #[error("registering the outputs was cancelled")]
    Cancelled,
    /// The store failed, not the builder.
    #[error(transparent)]
    Store(Error),
}

impl From<Error> for RegisterError {
    fn from(error: Error) -> Self {
        if matches!(error, Error::Cancelled) {
            Self::Cancelled
        } else {
            Self::Store(error)
        }
    }
}

/// Sent by a goal that holds the locks, after its builder is gone: makes the outputs canonical and
/// hashes them, as [`RegisterOutputs`] does, but only to compare them. Nothing becomes valid, and
/// nothing valid is replaced; a valid output that was made again as it was is `ultimate` from then
/// on.
#[derive(Debug, Message)]
#[rtype(result = "Result<Compared, RegisterError>")]
pub struct CompareOutputs {
    /// What was made: what could be registered as well.
    pub candidate: RegisterOutputs,
    /// What it is compared with.
    pub with: Comparand,
    /// What becomes of outputs that differ.
    pub differing: DifferingOutputs,
}

/// What a build's outputs are compared with.
#[derive(Debug)]
pub enum Comparand {
    /// With nothing: they are the first of several rounds, and are kept for the next one.
    Nothing,
    /// With what an earlier round made.
    Round(RoundOutputs),
    /// With what the database says of the valid paths, which all of them must be.
    Valid,
}

/// What becomes of outputs that differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DifferingOutputs {
    /// They go.
    Discard,
    /// The one that is not at the path, or will not be, stays beside it with the suffix `.check`:
    /// in a check the new one, else that of the earlier round.
    Keep,
    /// The same, and a round's own output is put at its path though it is not valid, for a program
    /// to look at; the asker sends [`DiscardInvalidPaths`] then.
    Show,
}

/// Answer to [`CompareOutputs`].
#[derive(Debug)]
pub struct Compared {
    /// The outputs that differ, by their names' order in the request.
    pub differences: Vec<OutputDifference>,
    /// What the next round is to be compared with: what was compared with if nothing differs, or
    /// the outputs themselves if they are the first. `None` otherwise.
    pub round: Option<RoundOutputs>,
    /// Who owns the outputs now that their metadata is canonical.
    pub owner_uid: u32,
}

/// An output that was made otherwise than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputDifference {
    /// Its symbolic name.
    pub name: OutputName,
    /// Where it is or would be.
    pub output: PathBuf,
    /// Where the other one was put, if it was kept.
    pub kept_at: Option<PathBuf>,
    /// Which files differ and how, a line for each.
    pub summary: String,
}

/// Sent by the command line and the library: puts a text file, such as a derivation, into the
/// store.
#[derive(Debug, Message)]
#[rtype(result = "Result<Added, Error>")]
pub struct AddText {
    /// Name part of the path.
    pub name: String,
    /// The bytes.
    pub contents: Vec<u8>,
    /// What the contents refer to; all must be valid.
    pub references: BTreeSet<StorePath>,
}

/// Answer to [`AddText`] and [`AddPath`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Where it is, valid and durable.
    pub path: StorePath,
    /// Keeps it from the garbage collector until something else does.
    pub roots: RootsLease,
}

/// Sent by the command line: copies a file or a tree into the store.
#[derive(Debug, Message)]
#[rtype(result = "Result<Added, Error>")]
pub struct AddPath {
    /// The file or directory on the host.
    pub source: PathBuf,
    /// Name part of the path.
    pub name: String,
    /// How it is addressed; [`IngestionMethod::Recursive`] for ordinary sources.
    pub method: IngestionMethod,
    /// With which hash function, SHA-256 for ordinary sources.
    pub algorithm: HashAlgorithm,
}

/// Asked by the command line: which valid paths refer to this one.
#[derive(Debug, Message)]
#[rtype(result = "Result<BTreeSet<StorePath>, Error>")]
pub struct QueryReferrers {
    /// A valid path.
    pub path: StorePath,
}

/// Asked by the command line: which valid derivations have this path as an output.
#[derive(Debug, Message)]
#[rtype(result = "Result<BTreeSet<StorePath>, Error>")]
pub struct QueryValidDerivers {
    /// The path.
    pub path: StorePath,
}

/// Asked by the command line: every valid path.
#[derive(Debug, Message)]
#[rtype(result = "Result<BTreeSet<StorePath>, Error>")]
pub struct QueryAllValidPaths;

/// Asked by the command line: the valid path whose name begins with this hash part.
#[derive(Debug, Message)]
#[rtype(result = "Result<Option<StorePath>, Error>")]
pub struct QueryPathFromHashPart {
    /// 32 base-32 digits.
    pub hash_part: String,
}

/// Sent by the command line: makes `link` point at `target` and keeps what it points at from the
/// garbage collector for as long as it does (`gcroots/auto`).
#[derive(Debug, Message)]
#[rtype(result = "Result<(), Error>")]
pub struct AddIndirectRoot {
    /// Absolute path of the link; an older link into the store is replaced.
    pub link: PathBuf,
    /// A valid path.
    pub target: StorePath,
}

/// Sent once at the end: gives up sources that are still being copied or read, commits what is
/// queued, removes the temporary roots file, ends the worker threads, and answers when they are gone.
///
/// Archives are given up as well, but a read that blocks is waited for: whoever sent the archive ends
/// it first.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StopRegistry;

/// Sent once to each actor by whoever must know when it is gone. Never answered: the question is
/// dropped with the actor, which a panic in it does too.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AwaitEnd;

/// Sent by tests: panics in the actor that gets it, to show that nothing is left behind.
#[doc(hidden)]
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ForcePanic;
