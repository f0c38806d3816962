//! What a client asks for, and what it gets back.

use std::sync::Arc;

use store_model::wanted_outputs::WantedOutputs;
use store_model::{Derivation, Settings, StorePath};

use crate::goal::{BuildMode, FailureBits, GoalKey, Outcome, PathMode, RequestId};

/// One thing to bring about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Outputs of a derivation.
    Outputs {
        /// Path of the derivation.
        drv_path: StorePath,
        /// Which of its outputs.
        outputs: WantedOutputs,
        /// What they are built for.
        mode: BuildMode,
    },
    /// All outputs of a derivation that need not be in the store (SPEC B10).
    Given {
        /// The path that it has, or would have.
        drv_path: StorePath,
        /// The derivation itself.
        derivation: Arc<Derivation>,
        /// What it is built for.
        mode: BuildMode,
    },
    /// A path.
    Path(StorePath, PathMode),
}

impl Wanted {
    /// Returns the key of the goal that brings it about.
    #[must_use]
    pub fn key(&self) -> GoalKey {
        match self {
            Self::Outputs { drv_path, mode, .. } | Self::Given { drv_path, mode, .. } => {
                GoalKey::Derivation(drv_path.clone(), *mode)
            }
            Self::Path(path, mode) => GoalKey::Path(path.clone(), *mode),
        }
    }

    /// Returns whether contents are looked at.
    pub(crate) fn repairs(&self) -> bool {
        match self {
            Self::Outputs { mode, .. } | Self::Given { mode, .. } => *mode == BuildMode::Repair,
            Self::Path(_, mode) => *mode == PathMode::Repair,
        }
    }

    pub(crate) fn outputs(&self) -> WantedOutputs {
        match self {
            Self::Outputs { outputs, .. } => outputs.clone(),
            Self::Given { .. } | Self::Path(..) => WantedOutputs::All,
        }
    }

    pub(crate) fn given(&self) -> Option<(StorePath, Arc<Derivation>)> {
        match self {
            Self::Given {
                drv_path,
                derivation,
                ..
            } => Some((drv_path.clone(), Arc::clone(derivation))),
            Self::Outputs { .. } | Self::Path(..) => None,
        }
    }
}

/// What a client asks for. Policy belongs to the request: its settings decide about keep-going,
/// keep-failed, time-outs and the sandbox of the goals that it creates.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// What to bring about, in the order in which the report lists it.
    pub wanted: Vec<Wanted>,
    /// The settings; `max_jobs` caps this request's own builds below the scheduler's slots.
    pub settings: Arc<Settings>,
    /// Goals of lower numbers get slots first.
    pub priority: i32,
}

/// How a request ended: exactly one outcome for each thing that was wanted.
///
/// While the report is kept, the garbage collector leaves alone what it says was brought about.
#[derive(Debug, Clone)]
pub struct BuildReport {
    /// The request that this answers.
    pub request: RequestId,
    /// One outcome for each of the request's `wanted`, in their order.
    pub outcomes: Vec<(Wanted, Arc<Outcome>)>,
}

impl BuildReport {
    /// Returns whether everything was brought about.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.outcomes
            .iter()
            .all(|(_, outcome)| outcome.status.is_success())
    }

    /// Returns the process's exit status by SPEC A9.
    #[must_use]
    pub fn exit_status(&self) -> u8 {
        if self.is_success() {
            return 0;
        }
        self.outcomes
            .iter()
            .fold(FailureBits::default(), |bits, (_, outcome)| {
                bits | outcome.failure_bits
            })
            .exit_status()
    }
}
