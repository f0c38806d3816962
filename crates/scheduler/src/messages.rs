//! Everything that is said to and among this crate's actors.
//!
//! ```text
//! client     SubmitGoals          ─► scheduler   ─► BuildReport
//! goal       RequireInputs        ─► scheduler   ─► InputsRequired, then InputFinished for each
//! goal       RequestSlot          ─► scheduler   ─► SlotGranted, with the lease
//! lease      SlotReleased         ─► scheduler   when dropped
//! goal       RestGoal             ─► scheduler   ─► InputsAreCyclic, if nobody will ever end
//! goal       GoalNews, GoalEnded  ─► scheduler   ─► waiters, subscribers
//! ```

use std::sync::Arc;

use actix::{Message, WeakRecipient};
use store_model::wanted_outputs::WantedOutputs;
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::events::{Event, EventKind};
use crate::goal::derivation::InputEnding;
use crate::goal::{GoalId, GoalKey, Outcome};
use crate::request::{BuildReport, BuildRequest};
use crate::slots::{SlotId, SlotKind};

/// Sent by clients: brings about what the request wants; answered when all of it has ended.
#[derive(Debug, Message)]
#[rtype(result = "Result<BuildReport, Error>")]
pub struct SubmitGoals {
    /// What is wanted, and how.
    pub request: BuildRequest,
    /// Resolves when the client is gone, which cancels the request; `None` if it waits for ever.
    pub abandoned: Option<oneshot::Receiver<()>>,
}

/// Sent by clients: sends every event from now on to this channel.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Subscribe {
    /// Where to.
    pub sender: mpsc::UnboundedSender<Event>,
}

/// Sent by clients: cancels every request. Each is answered when its builders are gone.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct CancelRequests;

/// Sent by the handle: cancels everything, stops the services, and ends the scheduler's thread.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StopScheduler;

/// Sent by a goal to the scheduler: needs goals for its inputs.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RequireInputs {
    pub(crate) goal: GoalId,
    pub(crate) inputs: Vec<(GoalKey, WantedOutputs)>,
}

/// Sent by a goal to the scheduler: does not need its inputs any more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct LeaveInputs {
    pub(crate) goal: GoalId,
}

/// Sent by the scheduler to the goal that sent [`RequireInputs`].
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct InputsRequired {
    pub(crate) n_pending: usize,
    pub(crate) ended: Vec<InputEnding>,
}

/// Sent by the scheduler to every goal that waits for another, when that ends.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct InputFinished(pub(crate) InputEnding);

/// Sent by a goal to the scheduler: has nothing left to do but wait for its inputs.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RestGoal {
    pub(crate) goal: GoalId,
}

/// Sent by the scheduler to a goal that waits for itself in the end.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct InputsAreCyclic {
    /// The ring.
    pub(crate) message: String,
}

/// Sent by a goal to the scheduler: queues for a slot.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct RequestSlot {
    pub(crate) goal: GoalId,
    pub(crate) kind: SlotKind,
}

/// Sent by a goal to the scheduler: leaves the queue.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct WithdrawSlotRequest {
    pub(crate) goal: GoalId,
}

/// Sent by the scheduler to the next goal in the queue.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct SlotGranted {
    pub(crate) lease: SlotLease,
}

/// Sent by a lease to the scheduler when it is dropped.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct SlotReleased {
    pub(crate) slot: SlotId,
}

/// A slot on loan. It goes back when the value is dropped, also by a panic.
#[derive(Debug)]
pub(crate) struct SlotLease {
    pub(crate) slot: SlotId,
    pub(crate) returns_to: WeakRecipient<SlotReleased>,
}

impl Drop for SlotLease {
    fn drop(&mut self) {
        if let Some(scheduler) = self.returns_to.upgrade() {
            scheduler.do_send(SlotReleased { slot: self.slot });
        }
    }
}

/// Sent by a goal to the scheduler, which passes it to subscribers.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct GoalNews {
    pub(crate) goal: GoalId,
    pub(crate) kind: EventKind,
}

/// Sent by a goal to the scheduler, exactly once, also after a panic.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct GoalEnded {
    pub(crate) goal: GoalId,
    /// The outputs that the outcome speaks of.
    pub(crate) served: WantedOutputs,
    pub(crate) outcome: Arc<Outcome>,
}

/// Sent by the scheduler to a goal: somebody wants further outputs.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct WidenGoal {
    pub(crate) wanted: WantedOutputs,
}

/// Sent by the scheduler to a goal: nobody wants it.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct CancelGoal;

/// Sent by the scheduler to a goal: a service that it may be waiting for has crashed.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub(crate) struct ServiceLost {
    pub(crate) message: String,
}

/// Sent by tests: panics in the actor that gets it, to show that nothing is left behind.
#[doc(hidden)]
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ForcePanic {
    /// Which actor.
    pub actor: PanickingActor,
}

/// Which actor is to panic.
#[doc(hidden)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PanickingActor {
    /// The scheduler itself.
    Scheduler,
    /// Every derivation goal.
    DerivationGoals,
    /// Every path goal.
    SubstitutionGoals,
    /// The store registry.
    StoreRegistry,
    /// The lock keeper.
    LockKeeper,
    /// The substituter.
    Substituter,
    /// The sandbox supervisor.
    SandboxSupervisor,
    /// The sessions of running builders.
    BuilderSessions,
}
