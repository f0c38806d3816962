//! What subscribers are told: everything that happens to a goal, in order.
//!
//! ```text
//! Created ─► Waiting* ─► Started ─► Logged* ─► Waiting(Registration) ─► HookLogged* ─► Finished
//!               ▲                                        │
//!               └────────────── another round ───────────┘
//! ```
//!
//! Every goal is created once and finished once; what lies between may be absent.

use std::sync::Arc;
use std::time::SystemTime;

use sandbox::LogLines;
use store_model::StorePath;

use crate::goal::{GoalId, GoalKey, Outcome, RequestId};

/// One thing that happened.
#[derive(Debug, Clone)]
pub struct Event {
    /// Counts up by one from 0 within a scheduler.
    pub sequence: u64,
    /// When it happened.
    pub at: SystemTime,
    /// To which goal.
    pub goal: GoalId,
    /// What.
    pub kind: EventKind,
}

/// What can happen to a goal.
#[derive(Debug, Clone)]
pub enum EventKind {
    /// Somebody was the first to ask for it.
    Created {
        /// What it is about.
        key: GoalKey,
        /// The request on whose behalf.
        request: RequestId,
    },
    /// It stands still for this reason.
    Waiting {
        /// Until then.
        reason: WaitReason,
    },
    /// Its builder runs.
    Started {
        /// Process 1 of the builder's namespace, as the host numbers it.
        pid: u32,
        /// The uid that the builder has on the host.
        uid: u32,
        /// Which of its builds this is.
        round: Round,
    },
    /// An archive of it is being fetched.
    Fetching {
        /// Whose, as messages name the cache.
        cache: Arc<str>,
        /// How many bytes will come, where the cache says so.
        n_expected: Option<u64>,
        /// How many bytes that will be when unpacked.
        nar_size_bytes: u64,
    },
    /// Some of its archive has come.
    Fetched {
        /// How many bytes so far.
        n_bytes: u64,
        /// How many there will be, where the cache says so.
        n_expected: Option<u64>,
    },
    /// Its builder wrote lines.
    Logged(LogLines),
    /// The program that runs after its build wrote lines.
    HookLogged(LogLines),
    /// It ended.
    Finished(Arc<Outcome>),
}

/// One of the builds of a goal that builds several times to compare what it makes (SPEC B9).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Round {
    /// Counts from 1.
    pub number: u32,
    /// How many there are if none differs.
    pub of: u32,
}

/// Why a goal stands still.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitReason {
    /// Its derivation was resolved to another one, which is realised in its stead.
    Resolved {
        /// Path of that one.
        drv_path: StorePath,
    },
    /// Other goals make its inputs.
    Inputs {
        /// How many it waits for.
        n_pending: usize,
    },
    /// Caches are asked for its outputs, or these are fetched.
    Substitutes {
        /// How many it waits for.
        n_pending: usize,
    },
    /// The only cache that has it gives no answer; it is asked again, for as long as a download is tried.
    Cache {
        /// The cache, as messages name it.
        cache: Arc<str>,
    },
    /// The contents of its outputs, or of what is below them, are read, in a repair.
    Contents,
    /// All build slots are taken.
    Slot,
    /// Somebody has locked this output.
    Lock {
        /// The output.
        path: StorePath,
        /// Who, where known.
        holder: LockOwner,
    },
    /// All build users are taken; it holds a slot meanwhile.
    BuildUser,
    /// Its outputs are hashed and registered; no slot is held.
    Registration,
    /// Its outputs are valid, and `post-build-hook` runs; neither slot nor lock is held.
    PostBuildHook,
}

/// Who has locked an output that a goal wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockOwner {
    /// Another goal of this scheduler.
    Goal,
    /// Another process.
    Process(u32),
    /// The kernel does not tell.
    Unknown,
}
