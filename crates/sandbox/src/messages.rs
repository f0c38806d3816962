//! Everything that can be said to this crate's actors, and what they tell.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use actix::{Message, Recipient};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use store_model::derivation::reference_graphs::GraphInfos;
use store_model::{Derivation, Settings, StorePath};

use crate::{Error, Redirections};

/// Names one run of one builder within one supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BuildId(pub u64);

/// Sent by a goal that holds a slot and the locks: runs the builder.
///
/// Answers as soon as the build is accepted. Everything after that comes to `observer`, in order,
/// and ends with exactly one [`BuildEvent::Exited`], also after [`CancelBuild`] and after errors
/// while setting up.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StartBuild {
    /// Chosen by the sender, never used twice.
    pub build_id: BuildId,
    /// The derivation's path; names directories and the log.
    pub drv_path: StorePath,
    /// What to run.
    pub derivation: Arc<Derivation>,
    /// The store objects that the builder may see: a set without references out of it.
    pub input_paths: Arc<BTreeSet<StorePath>>,
    /// The graphs that `exportReferencesGraph` asks for, to be handed to the builder as files.
    pub graphs: Arc<GraphInfos>,
    /// The settings of the request: time-outs, cores, sandbox and log options.
    pub settings: Arc<Settings>,
    /// Who is told.
    pub observer: Recipient<BuildProgress>,
}

/// Sent by the session of a running builder to the goal that started it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct BuildProgress {
    /// Which build.
    pub build_id: BuildId,
    /// What happened.
    pub event: BuildEvent,
}

/// What can happen to a build, in this order.
#[derive(Debug)]
pub enum BuildEvent {
    /// All build users are taken; the builder starts as soon as there is one.
    AwaitingUser,
    /// The builder runs.
    Started(BuilderStarted),
    /// It wrote whole lines (or a part of a line longer than 64 KiB, or the unfinished last one).
    Logged(LogLines),
    /// It is gone, and so is every process that it left.
    Exited(Box<BuildExited>),
}

/// The builder runs.
#[derive(Debug, Clone)]
pub struct BuilderStarted {
    /// The process that is 1 in the builder's namespace, as the host numbers it.
    pub pid: u32,
    /// The uid that the builder has on the host.
    pub uid: u32,
}

/// Lines that a builder wrote, without their newlines, as raw bytes.
///
/// While the value lives its bytes count against the session's budget: a reader that keeps lines
/// slows the builder down, so that 1 GB of log costs no memory and loses nothing.
#[derive(Debug, Clone)]
pub struct LogLines {
    /// Lines separated by `\n`, without one at the end.
    pub text: Bytes,
    /// Gives the bytes back to the session's budget when the last clone is dropped.
    pub credit: Arc<LogCredit>,
}

impl LogLines {
    /// Wraps lines that count against no budget, for programs that make events of their own.
    #[must_use]
    pub fn unbudgeted(text: Bytes) -> Self {
        Self {
            text,
            credit: Arc::new(LogCredit { permit: None }),
        }
    }
}

/// A share of a session's log budget.
#[derive(Debug)]
pub struct LogCredit {
    /// Held for its drop.
    #[expect(dead_code, reason = "held for its drop")]
    pub(crate) permit: Option<tokio::sync::OwnedSemaphorePermit>,
}

/// How a build ended. When this arrives no process of the build is left.
#[derive(Debug)]
pub struct BuildExited {
    /// Why it ended.
    pub verdict: BuildVerdict,
    /// What it made, whatever the verdict; `None` if set-up never got so far.
    pub scratch: Option<ScratchOutputs>,
    /// When the builder was started.
    pub started_at: SystemTime,
    /// When it ended.
    pub stopped_at: SystemTime,
    /// The last `log-lines` lines, without carriage-return overwritten parts.
    pub log_tail: Vec<String>,
    /// Where the whole log is kept, if it is.
    pub log_path: Option<PathBuf>,
    /// Whether the disk of the store or of the build directory has less than 8 MiB left.
    pub disk_nearly_full: bool,
}

/// The directory that the builder saw as the store.
#[derive(Debug, Clone)]
pub struct ScratchOutputs {
    /// The open directory; outputs lie in it by base name.
    pub dir: Arc<OwnedFd>,
    /// Outputs that lie in it under other names, and mention those: without a sandbox, what lies in
    /// the store already is made elsewhere.
    pub redirected: Redirections,
    /// Whether somebody outside may have files of it open, handed out by the builder over a socket
    /// of the host's, and write to them still: then only copies are to be trusted.
    pub is_exposed: bool,
    /// Its path, for messages.
    pub path: PathBuf,
    /// The uid that must own every file in it.
    pub builder_uid: u32,
    /// The group that its builder had.
    pub builder_gid: u32,
    /// Where its builder worked, as the host names it.
    pub build_dir: PathBuf,
}

/// Why a build ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BuildVerdict {
    /// The builder exited.
    Exited {
        /// Its status, 0 for success.
        code: i32,
    },
    /// A signal ended it.
    Signalled {
        /// Its number.
        signal: i32,
    },
    /// It ran longer than `timeout`.
    TimedOut {
        /// The limit.
        after: Duration,
    },
    /// It was silent longer than `max-silent-time`.
    Silent {
        /// The limit.
        after: Duration,
    },
    /// It wrote more than `max-build-log-size`.
    LogLimitExceeded {
        /// The limit.
        limit_bytes: u64,
    },
    /// Somebody sent [`CancelBuild`].
    Cancelled,
    /// The environment could not be made; the builder never ran.
    SetupFailed {
        /// The whole chain of causes, without "while setting up the build environment".
        message: String,
        /// Whether another try may succeed.
        fault: SetupFault,
    },
}

/// Why a build's surroundings could not be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum SetupFault {
    /// It is the derivation's, the settings' or the kernel's, and stays.
    Lasting,
    /// The machine has too little of something just now: descriptors, processes, memory, disk; or
    /// the program is ending.
    Passing,
    /// What the user has set stands against it: the derivation asks for more than the settings
    /// allow, or the user's hook failed.
    Refused,
}

/// Sent by a goal that is cancelled: kills every process of the build. The ending still comes as
/// [`BuildEvent::Exited`].
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct CancelBuild {
    /// Which build.
    pub build_id: BuildId,
}

/// What becomes of a build's directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Everything goes.
    Delete,
    /// The build directory stays, with what was made of the outputs inside (`keep-failed`).
    Keep,
}

/// Sent by a goal when its outputs are registered or given up. Answers at once when deleting (a
/// worker does it), and with the kept directory when keeping.
#[derive(Debug, Message)]
#[rtype(result = "Result<Option<PathBuf>, Error>")]
pub struct DisposeBuild {
    /// Which build.
    pub build_id: BuildId,
    /// What becomes of it.
    pub disposition: Disposition,
}

/// Sent once at the end: kills what runs, waits for deletions and logs, ends the launcher, and
/// answers when all is gone.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StopSandbox;

/// Sent once to the supervisor by whoever must know when it is gone. Never answered: the question
/// is dropped with the actor, which a panic in it does too.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AwaitEnd;

/// Sent by tests to the supervisor: panics there or in every session, to show that nothing is left
/// behind.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct ForcePanic {
    /// Which actor.
    pub actor: PanickingActor,
}

/// Which actor is to panic.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanickingActor {
    /// The supervisor.
    Supervisor,
    /// Every session.
    Sessions,
}
