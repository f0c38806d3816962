//! The goal of one path: make sure that it is valid, and in a repair that its contents are good. What
//! is not is fetched from a cache.
//!
//! ```text
//! Idle ─► CheckingValidity ─valid─► AlreadyValid
//!    └──► CheckingContents ─good──► AlreadyValid
//!                 │ not so
//!                 ▼
//!          QueryingOffers ─none─► NoSubstituters
//!                 │ some
//!                 ▼
//!             Obtaining ─► Registering ─► Substituted
//! ```
//!
//! While it is being obtained two things go on beside each other, and both must have ended well:
//!
//! ```text
//! references   Requiring ─► Awaiting ─► Valid
//! archive      AwaitingPermit ─► AwaitingSlot ─► Locking ─► CheckingLocked ─► Fetching ─► Restored
//!                                     ▲             │ busy         └─valid─► AlreadyValid  │ failed
//!                                     └─CheckingAgain ◄─ AwaitingLock       the next offer ┘
//! ```
//!
//! A slot is held while an archive comes, never while references are awaited. Who begins before its
//! references are valid needs a permit besides, of which there are not many: otherwise a long chain
//! would be fetched from its wrong end, and everything fetched would wait, with its lock, for the
//! last. The lock is held from the first byte to the end, so that nobody else fetches the same; whoever
//! holds one waits for nothing but what lies further down, so nobody waits in a ring.

use std::collections::{BTreeMap, BTreeSet};

use store_model::{OutputName, StorePath};

use super::derivation::{AfterFailure, InputEnding, InputFailures};
use super::{Outcome, PathMode, Status};
use crate::events::{LockOwner, WaitReason};
use crate::slots::{SlotId, SlotKind};

mod transitions;

/// What never changes about a path goal.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The path.
    pub path: StorePath,
    /// The path as messages print it.
    pub printed_path: String,
    /// What it is wanted for.
    pub mode: PathMode,
    /// Whether caches are asked.
    pub caches: Caches,
    /// Whether to wait for all references after one failed (SPEC A3).
    pub after_failure: AfterFailure,
    /// What to do when a cache that has promised the path gives no answer, and no other has it.
    pub outage: Outage,
}

/// What a short outage of a cache means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// The cache is waited for.
    Waited,
    /// Nobody waits: what cannot be fetched is built (`fallback`).
    NotWaited,
}

/// Whether a goal may ask caches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caches {
    /// There are some, and the settings allow it.
    Asked,
    /// There are none, or `substitute` is off.
    NotAsked,
}

/// The life of a path goal.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing has happened.
    #[default]
    Idle,
    /// The registry was asked.
    CheckingValidity,
    /// The registry reads the contents.
    CheckingContents,
    /// The caches were asked.
    QueryingOffers(Need),
    /// A cache has it.
    Obtaining(Obtaining),
    /// The registry makes it valid.
    Registering,
    /// It ended.
    Finished,
}

/// Why a path has to be fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// It is not valid.
    Invalid,
    /// Its contents are not good, and this is why nobody here makes it again.
    Corrupt {
        /// Such as "it has no deriver".
        obstacle: String,
    },
}

/// A path that a cache has.
#[derive(Debug, PartialEq, Eq)]
pub struct Obtaining {
    /// What the caches offer, best first.
    pub offers: Vec<Candidate>,
    /// The offer that is being taken, by its place in the list.
    pub offer_idx: usize,
    /// What it refers to.
    pub references: References,
    /// How many times the scheduler was asked for references and has not answered: only its last
    /// answer is about this offer.
    pub n_unanswered: usize,
    /// Its contents.
    pub archive: Archive,
    /// Leave to begin before the references are valid.
    pub permit: Option<SlotId>,
    /// What went wrong with the offers before.
    pub failures: Vec<String>,
}

/// An offer, as far as decisions depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What the path refers to, by this cache's word; without itself.
    pub references: BTreeSet<StorePath>,
}

/// How the references of a path stand.
#[derive(Debug, PartialEq, Eq)]
pub enum References {
    /// The scheduler was asked for them.
    Requiring,
    /// Some are under way.
    Awaiting {
        /// How many have not ended.
        n_pending: usize,
        /// What failed so far.
        failures: InputFailures,
    },
    /// All are valid.
    Valid,
}

/// How the contents of a path stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Archive {
    /// Nothing was done: the references decide.
    Untouched,
    /// Many have begun before their references are valid.
    AwaitingPermit,
    /// All slots are taken.
    AwaitingSlot,
    /// The lock keeper was asked.
    Locking(SlotId),
    /// Somebody else has the lock.
    AwaitingLock,
    /// The lock was free for a moment: has its holder brought what we want?
    CheckingAgain,
    /// The lock is ours: has anybody brought it meanwhile?
    CheckingLocked(SlotId),
    /// It comes.
    Fetching(SlotId),
    /// It is here, and good.
    Restored,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The actor runs.
    Started,
    /// The registry answered.
    ValidityQueried {
        /// Whether the path is valid.
        is_valid: bool,
    },
    /// The registry has read the contents.
    ContentsQueried {
        /// Why they are not good and nobody makes them, if so, such as "it has no deriver".
        obstacle: Option<String>,
    },
    /// The caches answered.
    OffersQueried {
        /// What may be believed, best first.
        offers: Vec<Candidate>,
    },
    /// The scheduler has a goal for each reference.
    InputsRequired {
        /// How many are under way; each ends with [`Event::InputFinished`] later.
        n_pending: usize,
        /// Those that had ended before.
        ended: Vec<InputEnding>,
    },
    /// A reference ended.
    InputFinished(InputEnding),
    /// References wait for one another in a ring, which an honest cache cannot have.
    InputsAreCyclic {
        /// The ring.
        message: String,
    },
    /// The scheduler lent a slot, or a permit.
    SlotGranted(SlotId),
    /// The lock keeper gave the lock.
    Locked,
    /// Somebody has the lock.
    LockBusy {
        /// Who.
        holder: LockOwner,
    },
    /// The lock was free for a moment.
    LockFreed,
    /// The archive is here, and is what was promised.
    Restored,
    /// It is not, or did not come.
    FetchFailed {
        /// Which cache, and why.
        message: String,
    },
    /// The path is valid.
    Registered,
    /// A service failed.
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
    /// Keep the path from the garbage collector, then ask whether it is valid.
    QueryValidity,
    /// Keep the path from the garbage collector, then ask whether its contents are good.
    QueryContents,
    /// Ask the caches.
    QueryOffers,
    /// Ask the scheduler for goals of these.
    RequireReferences(BTreeSet<StorePath>),
    /// Stop waiting for references.
    LeaveReferences,
    /// Tell the scheduler that nothing is left to do but wait for references.
    Rest,
    /// Queue for a slot or a permit.
    RequestSlot(SlotKind),
    /// Leave the queue.
    WithdrawSlotRequest,
    /// Give a slot or a permit back.
    ReleaseSlot(SlotId),
    /// Try the lock.
    TryLock,
    /// Ask to be told when the lock is free.
    AwaitLock,
    /// Give the lock back, and delete what was restored if it is not valid.
    ReleaseLock,
    /// Fetch what the offer of this place promises, and restore it.
    Fetch(usize),
    /// End the transfer.
    CancelFetch,
    /// Tell the cache's actor that the offer of this place was no good.
    ReportBadOffer(usize),
    /// Make what was restored valid.
    Register,
    /// Tell people, though nothing fails.
    Warn(String),
    /// Tell subscribers why the goal stands still.
    Announce(WaitReason),
    /// Tell everybody who waits, and stop.
    Finish(Box<Outcome>),
}

impl Facts {
    /// Returns the ending of a goal whose path is as it should be.
    fn success(&self, status: Status) -> Outcome {
        Outcome::success(
            status,
            BTreeMap::from([(OutputName::default(), self.path.clone())]),
        )
    }

    /// Returns the question whether anything has to be done.
    fn question(&self) -> Effect {
        match self.mode {
            PathMode::Ensure | PathMode::EnsureAgain => Effect::QueryValidity,
            PathMode::Repair => Effect::QueryContents,
        }
    }
}

#[cfg(test)]
mod tests;
