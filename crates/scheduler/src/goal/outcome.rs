//! How a goal ends: every ending there is, with its number on the wire (SPEC A8) and its part in
//! the exit status (SPEC A9).

use std::collections::BTreeMap;
use std::ops::BitOr;
use std::path::PathBuf;
use std::time::SystemTime;

use registry::RootsLease;
use store_model::{OutputName, StorePath};

/// How a goal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// A builder made the outputs.
    Built,
    /// A cache had them.
    Substituted,
    /// They were there.
    AlreadyValid,
    /// They were there under the name that the resolved derivation gives them.
    ResolvesToAlreadyValid,
    /// The builder failed; it would fail again.
    PermanentFailure,
    /// The builder could not be set up from what the derivation says.
    InputRejected,
    /// The builder made something that no store may hold, or nothing.
    OutputRejected,
    /// The builder failed; another try may succeed.
    TransientFailure,
    /// It failed before, and that is remembered.
    CachedFailure,
    /// The builder ran, or was silent, for too long.
    TimedOut,
    /// Anything without a number of its own.
    MiscFailure,
    /// An input failed.
    DependencyFailed,
    /// The builder wrote too long a log.
    LogLimitExceeded,
    /// Another round gave other outputs.
    NotDeterministic,
    /// No cache has the path.
    NoSubstituters,
    /// A cache has the path, but nobody has what it refers to. Once somebody has built that, the path
    /// can be fetched.
    IncompleteClosure,
    /// A fixed output has other contents than promised.
    HashMismatch,
    /// Nobody wanted the goal any more.
    Cancelled,
    /// The goal's actor panicked, or a service that it needed did.
    Crashed,
}

impl Status {
    /// Returns the number that the worker protocol gives this status. What only we know is
    /// `MiscFailure` there.
    #[must_use]
    pub const fn wire_number(self) -> u64 {
        match self {
            Self::Built => 0,
            Self::Substituted => 1,
            Self::AlreadyValid => 2,
            Self::PermanentFailure => 3,
            Self::InputRejected => 4,
            Self::OutputRejected => 5,
            Self::TransientFailure => 6,
            Self::CachedFailure => 7,
            Self::TimedOut => 8,
            Self::MiscFailure | Self::Cancelled | Self::Crashed => 9,
            Self::DependencyFailed | Self::IncompleteClosure => 10,
            Self::LogLimitExceeded => 11,
            Self::NotDeterministic => 12,
            Self::ResolvesToAlreadyValid => 13,
            Self::NoSubstituters => 14,
            Self::HashMismatch => 15,
        }
    }

    /// Returns whether the goal brought about what it was for.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(
            self,
            Self::Built | Self::Substituted | Self::AlreadyValid | Self::ResolvesToAlreadyValid
        )
    }

    /// Returns whether nothing failed, and there is only nobody to fetch something from (SPEC A3).
    #[must_use]
    pub const fn is_absence(self) -> bool {
        matches!(self, Self::NoSubstituters | Self::IncompleteClosure)
    }

    /// Returns the bits that this ending sets in the exit status (SPEC A9).
    #[must_use]
    pub const fn failure_bits(self) -> FailureBits {
        FailureBits(match self {
            Self::PermanentFailure | Self::InputRejected => 0b0100,
            Self::TimedOut => 0b0101,
            Self::HashMismatch => 0b0110,
            Self::NotDeterministic => 0b1000,
            Self::Built
            | Self::Substituted
            | Self::AlreadyValid
            | Self::ResolvesToAlreadyValid
            | Self::OutputRejected
            | Self::TransientFailure
            | Self::CachedFailure
            | Self::MiscFailure
            | Self::DependencyFailed
            | Self::LogLimitExceeded
            | Self::NoSubstituters
            | Self::IncompleteClosure
            | Self::Cancelled
            | Self::Crashed => 0,
        })
    }
}

/// Kinds of failure, gathered over all goals of a request (SPEC A9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FailureBits(u8);

impl FailureBits {
    /// What is added when any bit is set.
    const BASE: u8 = 0x60;

    /// Returns the exit status of a run that failed in these ways: 1 if in none of them.
    #[must_use]
    pub const fn exit_status(self) -> u8 {
        if self.0 == 0 { 1 } else { Self::BASE | self.0 }
    }
}

impl BitOr for FailureBits {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// The ending of one goal, as everybody who waited for it gets it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub status: Status,
    /// What went wrong, in whole lines; empty on success.
    pub message: String,
    /// The kinds of failure of this goal and of the inputs that it failed for.
    pub failure_bits: FailureBits,
    /// Outputs that are valid now and were wanted, by name; a path goal has its path as `out`.
    pub outputs: BTreeMap<OutputName, StorePath>,
    /// The derivation that this one was resolved to, which was realised in its stead. Then `outputs`
    /// has no more than what was wanted.
    pub resolved_to: Option<StorePath>,
    /// When the builder ran, if one did.
    pub build_times: Option<BuildTimes>,
    /// How many times the derivation was built.
    pub n_rounds: u32,
    /// Where the failed build's directory was kept.
    pub kept_build_dir: Option<PathBuf>,
    /// Goals that failed first and so made this one fail, by their paths; empty unless the status
    /// is `DependencyFailed`.
    pub root_causes: Vec<StorePath>,
    /// Keeps what the goal brought about from the garbage collector while anybody has this outcome:
    /// goals that need it, the request, and clients for as long as they keep their report. Empty
    /// unless it was a success.
    pub roots: RootsLease,
}

impl Outcome {
    /// Returns a success.
    #[must_use]
    pub fn success(status: Status, outputs: BTreeMap<OutputName, StorePath>) -> Self {
        Self {
            status,
            message: String::new(),
            failure_bits: FailureBits::default(),
            outputs,
            resolved_to: None,
            build_times: None,
            n_rounds: 0,
            kept_build_dir: None,
            root_causes: Vec::new(),
            roots: RootsLease::default(),
        }
    }

    /// Returns whether all outputs are valid and not only those that were wanted.
    #[must_use]
    pub fn has_all_outputs(&self) -> bool {
        self.status == Status::Built && self.resolved_to.is_none()
    }

    /// Returns a failure with its own bits.
    #[must_use]
    pub fn failure(status: Status, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            failure_bits: status.failure_bits(),
            ..Self::success(status, BTreeMap::new())
        }
    }
}

/// When a builder ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BuildTimes {
    /// When it was started.
    pub started_at: SystemTime,
    /// When it ended.
    pub stopped_at: SystemTime,
}
