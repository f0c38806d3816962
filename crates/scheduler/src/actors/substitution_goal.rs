//! The shell around the machine of a path goal: turns messages into events, effects into messages,
//! and holds what must be given back (leases, the lock, a transfer, what was restored).

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::prelude::*;
use registry::{
    CancelFlag, LockAttempt, LockHolder, Occupied, OutputLocks, QueryPathInfo, QueryValidPaths,
    RegisterRestored, RestoreNar, RestoredPath, RootsLease, TryLockOutputs,
};
use store_model::StorePath;
use store_model::wanted_outputs::WantedOutputs;
use substituter::{
    FetchDelayed, FetchNar, FetchProgressed, Freshness, NarTransfer, Offer, QueryOffers,
    ReportBadOffer, TransferGuard,
};

use super::questions::lend_roots;
use super::repair::{Remedy, answered, query_good_paths, remedy};
use crate::error::chain;
use crate::events::{EventKind, LockOwner, WaitReason};
use crate::goal::substitution::{Candidate, Effect, Event, Facts, Outage, State};
use crate::goal::{GoalId, GoalKey, Outcome, PathMode, Status};
use crate::messages::{
    CancelGoal, ForcePanic, GoalEnded, GoalNews, InputFinished, InputsAreCyclic, InputsRequired,
    LeaveInputs, RequestSlot, RequireInputs, RestGoal, ServiceLost, SlotGranted, SlotLease,
    WithdrawSlotRequest,
};
use crate::ports::{Ports, tell};
use crate::slots::{SlotId, SlotKind};

/// Makes sure that one path is valid.
pub(crate) struct SubstitutionGoal {
    id: GoalId,
    facts: Facts,
    ports: Arc<Ports>,
    state: State,
    /// Keeps the path from the garbage collector.
    roots: RootsLease,
    /// How references ended, which keeps them from the garbage collector.
    references: Vec<Arc<Outcome>>,
    offers: Vec<Offer>,
    /// A slot and a permit at most.
    leases: Vec<SlotLease>,
    lock: Option<OutputLocks>,
    transfer: Option<Transfer>,
    restored: Option<RestoredPath>,
    outcome: Option<Outcome>,
}

/// An archive that comes. Dropping it ends the transfer.
struct Transfer {
    cancel: CancelFlag,
    guard: Option<TransferGuard>,
    /// Whether it was said that the cache is waited for.
    is_delayed: bool,
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // First the flag: whoever reads wakes up when the transfer ends, and looks at it.
        self.cancel.raise();
        self.guard = None;
    }
}

impl SubstitutionGoal {
    pub(crate) fn new(id: GoalId, facts: Facts, ports: Arc<Ports>) -> Self {
        Self {
            id,
            facts,
            ports,
            state: State::default(),
            roots: RootsLease::default(),
            references: Vec::new(),
            offers: Vec::new(),
            leases: Vec::new(),
            lock: None,
            transfer: None,
            restored: None,
            outcome: None,
        }
    }

    /// Feeds one event to the machine and performs what it asks for.
    fn advance(&mut self, event: Event, ctx: &mut Context<Self>) {
        let (next, effects) = std::mem::take(&mut self.state).step(&self.facts, event);
        self.state = next;
        for effect in effects {
            self.perform(effect, ctx);
        }
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            Effect::QueryValidity => {
                let question = query_validity(Arc::clone(&self.ports), self.to_keep());
                self.ask_rooted(question, ctx);
            }
            Effect::QueryContents => {
                let question =
                    query_contents(Arc::clone(&self.ports), self.facts.clone(), self.to_keep());
                self.ask_rooted(question, ctx);
            }
            Effect::QueryOffers => self.query_offers(ctx),
            Effect::RequireReferences(paths) => self.require_references(paths),
            Effect::LeaveReferences => {
                let leave = LeaveInputs { goal: self.id };
                tell(&self.ports.upward.leave_inputs, leave);
            }
            Effect::Rest => tell(&self.ports.upward.rest, RestGoal { goal: self.id }),
            Effect::RequestSlot(kind) => self.request_slot(kind),
            Effect::WithdrawSlotRequest => {
                let withdrawal = WithdrawSlotRequest { goal: self.id };
                tell(&self.ports.upward.withdraw_slot_request, withdrawal);
            }
            Effect::ReleaseSlot(slot) => self.leases.retain(|lease| lease.slot != slot),
            Effect::TryLock => self.try_lock(ctx),
            Effect::AwaitLock => {
                let question = await_lock(Arc::clone(&self.ports), self.facts.path.clone());
                self.ask(question, ctx);
            }
            Effect::ReleaseLock => {
                self.restored = None;
                self.lock = None;
            }
            Effect::Fetch(offer_idx) => self.fetch(offer_idx, ctx),
            Effect::CancelFetch => self.transfer = None,
            Effect::ReportBadOffer(offer_idx) => self.report_bad_offer(offer_idx),
            Effect::Register => self.register(ctx),
            Effect::Warn(message) => tracing::warn!("{message}"),
            Effect::Announce(reason) => self.announce(EventKind::Waiting { reason }),
            Effect::Finish(outcome) => {
                self.outcome = Some(*outcome);
                ctx.stop();
            }
        }
    }

    /// Joins a question to the event that its answer becomes.
    fn ask(
        &mut self,
        question: impl Future<Output = Result<Event, String>> + 'static,
        ctx: &mut Context<Self>,
    ) {
        let answer = question.into_actor(self).map(|answer, goal, ctx| {
            let event = answer.unwrap_or_else(|message| Event::ServiceFailed { message });
            goal.advance(event, ctx);
        });
        ctx.spawn(answer);
    }

    /// The same for a question that also keeps the path from the garbage collector.
    fn ask_rooted(
        &mut self,
        question: impl Future<Output = Result<(Event, RootsLease), String>> + 'static,
        ctx: &mut Context<Self>,
    ) {
        let answer = question.into_actor(self).map(|answer, goal, ctx| {
            let event = match answer {
                Ok((event, roots)) => {
                    goal.roots.absorb(roots);
                    event
                }
                Err(message) => Event::ServiceFailed { message },
            };
            goal.advance(event, ctx);
        });
        ctx.spawn(answer);
    }

    /// Returns what is to be kept from the garbage collector first, and what is asked about.
    fn to_keep(&self) -> RootedQuestion {
        RootedQuestion {
            path: self.facts.path.clone(),
            is_kept: !self.roots.is_empty(),
        }
    }

    fn announce(&self, kind: EventKind) {
        let news = GoalNews {
            goal: self.id,
            kind,
        };
        tell(&self.ports.upward.news, news);
    }

    fn query_offers(&mut self, ctx: &mut Context<Self>) {
        let question = QueryOffers {
            path: self.facts.path.clone(),
            freshness: match self.facts.mode {
                PathMode::Ensure | PathMode::EnsureAgain | PathMode::Repair => {
                    Freshness::Remembered
                }
            },
        };
        let ports = Arc::clone(&self.ports);
        let answer = async move { ports.query_offers.send(question).await }
            .into_actor(self)
            .map(|answer, goal, ctx| {
                let event = match answer {
                    Ok(Ok(answer)) => {
                        goal.offers = answer.offers;
                        let offers = goal.offers.iter().map(candidate).collect();
                        Event::OffersQueried { offers }
                    }
                    Ok(Err(error)) => service_failed(&error),
                    Err(error) => service_failed(&error),
                };
                goal.advance(event, ctx);
            });
        ctx.spawn(answer);
    }

    fn require_references(&self, paths: BTreeSet<StorePath>) {
        // What replaces something corrupt may refer to what is corrupt: that is another goal's.
        let mode = match self.facts.mode {
            PathMode::Ensure | PathMode::Repair => PathMode::Ensure,
            PathMode::EnsureAgain => PathMode::EnsureAgain,
        };
        let require = RequireInputs {
            goal: self.id,
            inputs: paths
                .into_iter()
                .map(|path| (GoalKey::Path(path, mode), WantedOutputs::All))
                .collect(),
        };
        tell(&self.ports.upward.require_inputs, require);
    }

    fn request_slot(&self, kind: SlotKind) {
        let goal = self.id;
        tell(&self.ports.upward.request_slot, RequestSlot { goal, kind });
    }

    fn try_lock(&mut self, ctx: &mut Context<Self>) {
        let paths = BTreeSet::from([self.facts.path.clone()]);
        let ports = Arc::clone(&self.ports);
        let answer = async move { ports.try_lock_outputs.send(TryLockOutputs { paths }).await }
            .into_actor(self)
            .map(|answer, goal, ctx| {
                let event = match answer {
                    Ok(Ok(LockAttempt::Acquired(lock))) => {
                        goal.lock = Some(lock);
                        Event::Locked
                    }
                    Ok(Ok(LockAttempt::Busy { holder, .. })) => Event::LockBusy {
                        holder: match holder {
                            LockHolder::ThisProcess => LockOwner::Goal,
                            LockHolder::Process(pid) => LockOwner::Process(pid),
                            LockHolder::Unknown => LockOwner::Unknown,
                        },
                    },
                    Ok(Err(error)) => service_failed(&error),
                    Err(error) => service_failed(&error),
                };
                goal.advance(event, ctx);
            });
        ctx.spawn(answer);
    }

    fn fetch(&mut self, offer_idx: usize, ctx: &mut Context<Self>) {
        let Some(offer) = self.offers.get(offer_idx).cloned() else {
            return;
        };
        self.announce_fetching(&offer);
        let is_last = offer_idx + 1 == self.offers.len();
        let cancel = CancelFlag::default();
        self.transfer = Some(Transfer {
            cancel: cancel.clone(),
            guard: None,
            is_delayed: false,
        });
        let fetch = FetchNar {
            offer: offer.clone(),
            progress: Some(ctx.address().recipient()),
            delayed: (is_last && self.facts.outage == Outage::Waited)
                .then(|| ctx.address().recipient()),
        };
        let ports = Arc::clone(&self.ports);
        let answer = async move { ports.fetch_nar.send(fetch).await }
            .into_actor(self)
            .map(move |answer, goal, ctx| match answer {
                Ok(Ok(transfer)) => goal.restore(transfer, &offer, ctx),
                Ok(Err(error)) => goal.fetch_failed(&offer, &chain(&error), ctx),
                Err(error) => goal.advance(service_failed(&error), ctx),
            });
        ctx.spawn(answer);
    }

    fn announce_fetching(&self, offer: &Offer) {
        self.announce(EventKind::Fetching {
            cache: Arc::clone(&offer.cache_name),
            n_expected: offer.narinfo.file_size_bytes,
            nar_size_bytes: offer.narinfo.info.nar_size_bytes,
        });
    }

    fn fetch_failed(&mut self, offer: &Offer, message: &str, ctx: &mut Context<Self>) {
        let message = format!(
            "substituter '{}' does not give '{}': {message}",
            offer.cache_name, self.facts.printed_path
        );
        self.advance(Event::FetchFailed { message }, ctx);
    }

    fn restore(&mut self, transfer: NarTransfer, offer: &Offer, ctx: &mut Context<Self>) {
        // It may have been cancelled meanwhile.
        let Some(running) = &mut self.transfer else {
            return;
        };
        running.guard = Some(transfer.guard);
        let cancel = running.cancel.clone();
        if std::mem::take(&mut running.is_delayed) {
            self.announce_fetching(offer);
        }
        let restore = RestoreNar {
            promised: offer.narinfo.info.clone(),
            contents: transfer.contents,
            objects: transfer.objects,
            cancel,
        };
        let ports = Arc::clone(&self.ports);
        let offer = offer.clone();
        let answer = async move { ports.restore_nar.send(restore).await }
            .into_actor(self)
            .map(move |answer, goal, ctx| {
                // A cancelled goal has moved on.
                if goal.transfer.take().is_none() {
                    return;
                }
                match answer {
                    Ok(Ok(restored)) => {
                        goal.restored = Some(restored);
                        goal.advance(Event::Restored, ctx);
                    }
                    Ok(Err(registry::RestoreError::Store(error))) => {
                        goal.advance(service_failed(&error), ctx);
                    }
                    Ok(Err(error)) => goal.fetch_failed(&offer, &chain(&error), ctx),
                    Err(error) => goal.advance(service_failed(&error), ctx),
                }
            });
        ctx.spawn(answer);
    }

    fn report_bad_offer(&self, offer_idx: usize) {
        if let Some(offer) = self.offers.get(offer_idx).cloned() {
            self.ports
                .report_bad_offer
                .do_send(ReportBadOffer { offer });
        }
    }

    fn register(&mut self, ctx: &mut Context<Self>) {
        let Some(restored) = self.restored.take() else {
            return;
        };
        let register = RegisterRestored {
            restored,
            occupied: match self.facts.mode {
                PathMode::Ensure | PathMode::EnsureAgain => Occupied::Refused,
                PathMode::Repair => Occupied::Repaired,
            },
        };
        let ports = Arc::clone(&self.ports);
        let question = async move {
            answered(ports.register_restored.send(register).await).map(|()| Event::Registered)
        };
        self.ask(question, ctx);
    }
}

/// Returns what decisions depend on. A path may refer to itself, and does not wait for that.
fn candidate(offer: &Offer) -> Candidate {
    let info = &offer.narinfo.info;
    let mut references = info.references.clone();
    references.remove(&info.path);
    Candidate { references }
}

fn service_failed(error: &dyn std::error::Error) -> Event {
    Event::ServiceFailed {
        message: chain(error),
    }
}

/// A path that is asked about.
struct RootedQuestion {
    path: StorePath,
    /// Whether it is kept from the garbage collector already.
    is_kept: bool,
}

impl RootedQuestion {
    async fn keep(&self, ports: &Ports) -> Result<RootsLease, String> {
        if self.is_kept {
            return Ok(RootsLease::default());
        }
        lend_roots(ports, vec![self.path.clone()]).await
    }
}

/// What a question comes to, and what keeps the path from the garbage collector.
type Answer = Result<(Event, RootsLease), String>;

async fn query_validity(ports: Arc<Ports>, question: RootedQuestion) -> Answer {
    let roots = question.keep(&ports).await?;
    let paths = vec![question.path.clone()];
    let valid = ports
        .query_valid_paths
        .send(QueryValidPaths { paths })
        .await;
    let is_valid = answered(valid)?.contains(&question.path);
    Ok((Event::ValidityQueried { is_valid }, roots))
}

async fn query_contents(ports: Arc<Ports>, facts: Facts, question: RootedQuestion) -> Answer {
    let roots = question.keep(&ports).await?;
    let good = query_good_paths(&ports, vec![facts.path.clone()]).await?;
    let obstacle = if good.contains(&facts.path) {
        None
    } else {
        Some(obstacle(&ports, &facts).await?)
    };
    Ok((Event::ContentsQueried { obstacle }, roots))
}

/// Says why a path that is not good is not made again.
async fn obstacle(ports: &Ports, facts: &Facts) -> Result<String, String> {
    let path = facts.path.clone();
    let info = ports.query_path_info.send(QueryPathInfo { path }).await;
    let Some(info) = answered(info)? else {
        return Ok("it is not valid".to_owned());
    };
    let Some(deriver) = info.deriver else {
        return Ok("it has no deriver".to_owned());
    };
    let printed = ports.store_dir.print(&deriver);
    let (valid, derivation) = (&ports.query_valid_paths, &ports.query_derivation);
    Ok(
        match remedy(valid, derivation, &facts.path, deriver).await? {
            Remedy::Rebuild => format!(
                "its deriver '{printed}' is none that is needed here; 'goalctl repair {}' builds it",
                facts.printed_path
            ),
            Remedy::DeriverIsGone => format!("its deriver '{printed}' is not in the store"),
            Remedy::DeriverMakesOthers => format!("its deriver '{printed}' makes other paths"),
        },
    )
}

async fn await_lock(ports: Arc<Ports>, path: StorePath) -> Result<Event, String> {
    let freed = ports.await_lock.send(registry::AwaitLock { path }).await;
    answered(freed).map(|()| Event::LockFreed)
}

impl Actor for SubstitutionGoal {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.advance(Event::Started, ctx);
    }

    /// Reports the ending; actix comes here after a panic too, so that no one waits for ever.
    fn stopped(&mut self, _ctx: &mut Self::Context) {
        let mut outcome = self.outcome.take().unwrap_or_else(|| {
            Outcome::failure(
                Status::Crashed,
                format!("the goal of '{}' crashed", self.facts.printed_path),
            )
        });
        if outcome.status.is_success() {
            outcome.roots = std::mem::take(&mut self.roots);
        }
        let ended = GoalEnded {
            goal: self.id,
            served: WantedOutputs::All,
            outcome: Arc::new(outcome),
        };
        tell(&self.ports.upward.ended, ended);
    }
}

impl Handler<InputsRequired> for SubstitutionGoal {
    type Result = ();

    fn handle(&mut self, required: InputsRequired, ctx: &mut Self::Context) {
        let InputsRequired { n_pending, ended } = required;
        let outcomes = ended.iter().map(|ending| Arc::clone(&ending.outcome));
        self.references.extend(outcomes);
        self.advance(Event::InputsRequired { n_pending, ended }, ctx);
    }
}

impl Handler<InputFinished> for SubstitutionGoal {
    type Result = ();

    fn handle(&mut self, finished: InputFinished, ctx: &mut Self::Context) {
        self.references.push(Arc::clone(&finished.0.outcome));
        self.advance(Event::InputFinished(finished.0), ctx);
    }
}

impl Handler<InputsAreCyclic> for SubstitutionGoal {
    type Result = ();

    fn handle(&mut self, cyclic: InputsAreCyclic, ctx: &mut Self::Context) {
        let message = cyclic.message;
        self.advance(Event::InputsAreCyclic { message }, ctx);
    }
}

impl Handler<SlotGranted> for SubstitutionGoal {
    type Result = ();

    fn handle(&mut self, granted: SlotGranted, ctx: &mut Self::Context) {
        let slot: SlotId = granted.lease.slot;
        self.leases.push(granted.lease);
        self.advance(Event::SlotGranted(slot), ctx);
    }
}

impl Handler<FetchProgressed> for SubstitutionGoal {
    type Result = ();

    fn handle(&mut self, progressed: FetchProgressed, _ctx: &mut Self::Context) {
        if self.transfer.is_some() {
            self.announce(EventKind::Fetched {
                n_bytes: progressed.n_bytes,
                n_expected: progressed.n_expected,
            });
        }
    }
}

impl Handler<FetchDelayed> for SubstitutionGoal {
    type Result = ();

    fn handle(&mut self, delayed: FetchDelayed, _ctx: &mut Self::Context) {
        if let Some(transfer) = &mut self.transfer {
            transfer.is_delayed = true;
            let cache = delayed.cache;
            let reason = WaitReason::Cache { cache };
            self.announce(EventKind::Waiting { reason });
        }
    }
}

impl Handler<CancelGoal> for SubstitutionGoal {
    type Result = ();

    fn handle(&mut self, _: CancelGoal, ctx: &mut Self::Context) {
        self.advance(Event::Cancelled, ctx);
    }
}

impl Handler<ServiceLost> for SubstitutionGoal {
    type Result = ();

    fn handle(&mut self, lost: ServiceLost, ctx: &mut Self::Context) {
        let message = lost.message;
        self.advance(Event::ServiceFailed { message }, ctx);
    }
}

impl Handler<ForcePanic> for SubstitutionGoal {
    type Result = ();

    fn handle(&mut self, _: ForcePanic, _ctx: &mut Self::Context) {
        panic!("forced by a test");
    }
}
