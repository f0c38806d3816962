//! Whom a goal may speak to, by what it may say to them.

use std::sync::atomic::{AtomicU64, Ordering};

use actix::{Recipient, WeakRecipient};
use registry::{
    AddTempRoots, AddText, AdoptRealisations, AwaitLock, CompareOutputs, DiscardInvalidPaths,
    NoteRealisations, QueryClosure, QueryDerivation, QueryGoodPaths, QueryGraphs, QueryPathInfo,
    QueryRealisations, QueryValidDerivers, QueryValidPaths, RegisterByContents,
    RegisterFloatingOutputs, RegisterOutputs, RegisterRestored, RestoreNar, TryLockOutputs,
};
use sandbox::{BuildId, CancelBuild, DisposeBuild, StartBuild};
use store_model::StoreDir;
use substituter::{FetchNar, QueryOffers, ReportBadOffer};

use crate::hook::Hooks;
use crate::messages::{
    GoalEnded, GoalNews, LeaveInputs, RequestSlot, RequireInputs, RestGoal, WithdrawSlotRequest,
};

/// Everything that goals may say, and to whom. Shared by all goals of a scheduler.
///
/// Downward ports are strong; upward ports are weak, or nothing would ever stop.
#[derive(Debug)]
pub struct Ports {
    /// How paths are printed.
    pub store_dir: StoreDir,
    /// To the registry.
    pub add_temp_roots: Recipient<AddTempRoots>,
    /// To the registry.
    pub query_derivation: Recipient<QueryDerivation>,
    /// To the registry.
    pub query_valid_paths: Recipient<QueryValidPaths>,
    /// To the registry.
    pub query_path_info: Recipient<QueryPathInfo>,
    /// To the registry.
    pub query_good_paths: Recipient<QueryGoodPaths>,
    /// To the registry.
    pub query_valid_derivers: Recipient<QueryValidDerivers>,
    /// To the registry.
    pub query_closure: Recipient<QueryClosure>,
    /// To the registry.
    pub query_graphs: Recipient<QueryGraphs>,
    /// To the registry.
    pub discard_invalid_paths: Recipient<DiscardInvalidPaths>,
    /// To the registry.
    pub register_outputs: Recipient<RegisterOutputs>,
    /// To the registry.
    pub register_by_contents: Recipient<RegisterByContents>,
    /// To the registry.
    pub register_floating_outputs: Recipient<RegisterFloatingOutputs>,
    /// To the registry.
    pub query_realisations: Recipient<QueryRealisations>,
    /// To the registry.
    pub note_realisations: Recipient<NoteRealisations>,
    /// To the registry.
    pub adopt_realisations: Recipient<AdoptRealisations>,
    /// To the registry.
    pub add_text: Recipient<AddText>,
    /// To the registry.
    pub compare_outputs: Recipient<CompareOutputs>,
    /// To the registry.
    pub restore_nar: Recipient<RestoreNar>,
    /// To the registry.
    pub register_restored: Recipient<RegisterRestored>,
    /// To the substituter.
    pub query_offers: Recipient<QueryOffers>,
    /// To the substituter.
    pub fetch_nar: Recipient<FetchNar>,
    /// To the substituter.
    pub report_bad_offer: Recipient<ReportBadOffer>,
    /// To the lock keeper.
    pub try_lock_outputs: Recipient<TryLockOutputs>,
    /// To the lock keeper.
    pub await_lock: Recipient<AwaitLock>,
    /// To the sandbox.
    pub start_build: Recipient<StartBuild>,
    /// To the sandbox.
    pub cancel_build: Recipient<CancelBuild>,
    /// To the sandbox.
    pub dispose_build: Recipient<DisposeBuild>,
    /// Where the programs run that a build may have after it.
    pub(crate) hooks: Hooks,
    /// Up to the scheduler.
    pub(crate) upward: Upward,
    /// Counts the builds: a goal may have several, and one that is wanted again after it was
    /// cancelled has its name from before.
    pub(crate) n_builds: AtomicU64,
}

impl Ports {
    /// Returns a name that no other build of this scheduler has.
    pub(crate) fn next_build_id(&self) -> BuildId {
        // Nothing else is handed over with it, so no order is needed.
        BuildId(self.n_builds.fetch_add(1, Ordering::Relaxed))
    }
}

/// What goals say to the scheduler.
#[derive(Debug, Clone)]
pub(crate) struct Upward {
    pub(crate) require_inputs: WeakRecipient<RequireInputs>,
    pub(crate) leave_inputs: WeakRecipient<LeaveInputs>,
    pub(crate) rest: WeakRecipient<RestGoal>,
    pub(crate) request_slot: WeakRecipient<RequestSlot>,
    pub(crate) withdraw_slot_request: WeakRecipient<WithdrawSlotRequest>,
    pub(crate) news: WeakRecipient<GoalNews>,
    pub(crate) ended: WeakRecipient<GoalEnded>,
}

/// Says something upward; a scheduler that is gone needs no news.
pub(crate) fn tell<M>(port: &WeakRecipient<M>, message: M)
where
    M: actix::Message + Send + 'static,
    M::Result: Send,
{
    if let Some(recipient) = port.upgrade() {
        recipient.do_send(message);
    }
}
