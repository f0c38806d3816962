//! The shell around the schedule: owns the goals' actors, answers clients, tells subscribers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use actix::prelude::*;
use store_model::wanted_outputs::WantedOutputs;
use store_model::{Derivation, Settings, StorePath};
use tokio::sync::{mpsc, oneshot};

use crate::Error;
use crate::actors::derivation_goal::NewGoal;
use crate::actors::{DerivationGoal, SubstitutionGoal};
use crate::events::{Event, EventKind};
use crate::goal::derivation::{
    AfterFailure, Facts, KeepFailed, LocalBuilds, OnDifference, PostBuildHook, Substitution,
};
use crate::goal::substitution::{Caches, Outage};
use crate::goal::{BuildMode, GoalId, GoalKey, Outcome, RequestId, substitution};
use crate::messages::{
    CancelGoal, CancelRequests, ForcePanic, GoalEnded, GoalNews, InputFinished, InputsAreCyclic,
    InputsRequired, LeaveInputs, PanickingActor, RequestSlot, RequireInputs, RestGoal, ServiceLost,
    SlotGranted, SlotLease, SlotReleased, StopScheduler, SubmitGoals, Subscribe, WidenGoal,
    WithdrawSlotRequest,
};
use crate::ports::{Ports, Upward};
use crate::request::{BuildReport, Wanted};
use crate::schedule::{Directive, Schedule};
use crate::slots::SlotCounts;
use crate::start::Services;

/// Turns requests into goals and brings every goal to an end.
pub struct Scheduler {
    services: Services,
    ports: Option<Arc<Ports>>,
    schedule: Schedule,
    requests: HashMap<RequestId, Client>,
    goals: HashMap<GoalId, GoalActor>,
    subscribers: Vec<mpsc::UnboundedSender<Event>>,
    n_events: u64,
    life: Life,
}

/// Whether the scheduler takes requests.
enum Life {
    /// It does.
    Running,
    /// It ends when no goal is left; these wait for that.
    Draining(Vec<oneshot::Sender<()>>),
    /// The services are being stopped, once.
    Ending,
}

/// What is kept of a request until no goal of it is left.
struct Client {
    settings: Arc<Settings>,
    wanted: Vec<Wanted>,
    given: HashMap<StorePath, Arc<Derivation>>,
    reply: Option<oneshot::Sender<BuildReport>>,
}

/// The actor of a running goal.
enum GoalActor {
    Derivation(Addr<DerivationGoal>),
    Path(Addr<SubstitutionGoal>),
}

impl GoalActor {
    /// Tells the actor something that goals of both kinds are told.
    fn tell<M>(&self, message: M)
    where
        M: Message + Send + 'static,
        M::Result: Send,
        DerivationGoal: Handler<M>,
        SubstitutionGoal: Handler<M>,
    {
        match self {
            Self::Derivation(addr) => addr.do_send(message),
            Self::Path(addr) => addr.do_send(message),
        }
    }
}

impl Scheduler {
    pub(crate) fn new(services: Services, n_slots: SlotCounts) -> Self {
        Self {
            services,
            ports: None,
            schedule: Schedule::new(n_slots),
            requests: HashMap::new(),
            goals: HashMap::new(),
            subscribers: Vec::new(),
            n_events: 0,
            life: Life::Running,
        }
    }

    fn carry_out(&mut self, directives: Vec<Directive>, ctx: &mut Context<Self>) {
        for directive in directives {
            match directive {
                Directive::Start {
                    goal,
                    key,
                    wanted,
                    origin,
                } => self.start_goal(goal, key, wanted, origin),
                Directive::Widen { goal, wanted } => {
                    if let Some(GoalActor::Derivation(addr)) = self.goals.get(&goal) {
                        addr.do_send(WidenGoal { wanted });
                    }
                }
                Directive::TellInputs {
                    goal,
                    n_pending,
                    ended,
                } => {
                    if let Some(actor) = self.goals.get(&goal) {
                        actor.tell(InputsRequired { n_pending, ended });
                    }
                }
                Directive::TellInput { goal, ending } => {
                    if let Some(actor) = self.goals.get(&goal) {
                        actor.tell(InputFinished(ending));
                    }
                }
                Directive::BreakRing { goal, ring } => self.break_ring(goal, &ring),
                Directive::Grant(grant) => {
                    let lease = SlotLease {
                        slot: grant.slot,
                        returns_to: ctx.address().downgrade().recipient(),
                    };
                    // Dropped undelivered, the lease comes straight back.
                    if let Some(actor) = self.goals.get(&grant.goal) {
                        actor.tell(SlotGranted { lease });
                    }
                }
                Directive::Cancel(goal) => self.cancel_goal(goal),
                Directive::Reply { request, outcomes } => self.reply(request, outcomes),
                Directive::Forget(request) => {
                    self.requests.remove(&request);
                }
            }
        }
        self.stop_if_idle(ctx);
    }

    fn start_goal(&mut self, id: GoalId, key: GoalKey, wanted: WantedOutputs, origin: RequestId) {
        let (Some(ports), Some(client)) = (&self.ports, self.requests.get(&origin)) else {
            return;
        };
        let ports = Arc::clone(ports);
        let printed_path = ports.store_dir.print(key.path());
        let actor = match &key {
            GoalKey::Path(path, mode) => {
                let settings = &client.settings;
                let facts = substitution::Facts {
                    path: path.clone(),
                    printed_path,
                    mode: *mode,
                    caches: match self.services.substitution(settings) {
                        Substitution::Off => Caches::NotAsked,
                        Substitution::Strict | Substitution::WithFallback => Caches::Asked,
                    },
                    after_failure: after_failure(settings),
                    outage: if settings.fallback {
                        Outage::NotWaited
                    } else {
                        Outage::Waited
                    },
                };
                GoalActor::Path(SubstitutionGoal::new(id, facts, ports).start())
            }
            GoalKey::Derivation(drv_path, mode) => {
                let new = NewGoal {
                    id,
                    facts: Facts {
                        mode: *mode,
                        substitution: self.services.substitution(&client.settings),
                        ..facts(drv_path, printed_path, &client.settings, &self.schedule)
                    },
                    settings: Arc::clone(&client.settings),
                    wanted,
                    derivation: client.given.get(drv_path).map(Arc::clone),
                };
                GoalActor::Derivation(DerivationGoal::new(new, ports).start())
            }
        };
        // A goal that looks again was created before.
        if self.goals.insert(id, actor).is_none() {
            let request = origin;
            self.publish(id, EventKind::Created { key, request });
        }
    }

    /// Fails every goal that may be waiting for a service that is gone: nobody restarts it, since
    /// what a panic left behind is not to be trusted.
    fn service_lost(&self, service: &str) {
        let lost = ServiceLost {
            message: format!("{service} crashed"),
        };
        for goal in self.goals.values() {
            goal.tell(lost.clone());
        }
    }

    /// Fails a goal that waits for itself.
    fn break_ring(&self, goal: GoalId, ring: &[StorePath]) {
        let (Some(actor), Some(ports)) = (self.goals.get(&goal), &self.ports) else {
            return;
        };
        let first = ring.first();
        let paths: Vec<String> = ring
            .iter()
            .chain(first)
            .map(|path| format!("'{}'", ports.store_dir.print(path)))
            .collect();
        let message = format!(
            "paths refer to one another in a ring, which can never be valid: {}",
            paths.join(" -> ")
        );
        actor.tell(InputsAreCyclic { message });
    }

    /// Learns of the end of a service when the question that it never answers is dropped.
    fn watch(&self, end: impl Future<Output = &'static str> + 'static, ctx: &mut Context<Self>) {
        let lost = end.into_actor(self).map(|service, scheduler, _ctx| {
            if matches!(scheduler.life, Life::Running) {
                scheduler.service_lost(service);
            }
        });
        ctx.spawn(lost);
    }

    fn cancel_goal(&self, goal: GoalId) {
        if let Some(actor) = self.goals.get(&goal) {
            actor.tell(CancelGoal);
        }
    }

    fn reply(&mut self, request: RequestId, outcomes: Vec<Arc<Outcome>>) {
        let Some(client) = self.requests.get_mut(&request) else {
            return;
        };
        let wanted = std::mem::take(&mut client.wanted);
        if let Some(reply) = client.reply.take() {
            // A client that is gone needs no report.
            let _gone = reply.send(BuildReport {
                request,
                outcomes: wanted.into_iter().zip(outcomes).collect(),
            });
        }
    }

    fn publish(&mut self, goal: GoalId, kind: EventKind) {
        let event = Event {
            sequence: self.n_events,
            at: now(),
            goal,
            kind,
        };
        self.n_events += 1;
        self.subscribers
            .retain(|subscriber| subscriber.send(event.clone()).is_ok());
    }

    fn cancel_all(&mut self, ctx: &mut Context<Self>) {
        let requests: Vec<RequestId> = self.schedule.open_requests().collect();
        for request in requests {
            let directives = self.schedule.cancel_request(request);
            self.carry_out(directives, ctx);
        }
    }

    /// Stops the services once somebody wants the end and no goal is left.
    fn stop_if_idle(&mut self, ctx: &mut Context<Self>) {
        if !self.goals.is_empty() || !matches!(self.life, Life::Draining(_)) {
            return;
        }
        // Late news would otherwise stop the services again, and not wait for the first time.
        let draining = std::mem::replace(&mut self.life, Life::Ending);
        let services = self.services.clone();
        let stopped = async move { services.stop().await }.into_actor(self).map(
            move |(), _, ctx: &mut Context<Self>| {
                if let Life::Draining(waiters) = draining {
                    for waiter in waiters {
                        let _gone = waiter.send(());
                    }
                }
                ctx.stop();
                System::current().stop();
            },
        );
        ctx.spawn(stopped);
    }
}

/// Returns the time for people; decisions never see it.
#[expect(
    clippy::disallowed_methods,
    reason = "events tell people when something happened"
)]
fn now() -> SystemTime {
    SystemTime::now()
}

fn facts(
    drv_path: &StorePath,
    printed_path: String,
    settings: &Settings,
    schedule: &Schedule,
) -> Facts {
    Facts {
        drv_path: drv_path.clone(),
        printed_path,
        after_failure: after_failure(settings),
        keep_failed: if settings.keep_failed {
            KeepFailed::Yes
        } else {
            KeepFailed::No
        },
        post_build_hook: match settings.post_build_hook {
            Some(_) => PostBuildHook::Runs,
            None => PostBuildHook::None,
        },
        local_builds: if schedule.n_slots() == 0 || settings.max_jobs == 0 {
            LocalBuilds::Forbidden
        } else {
            LocalBuilds::Allowed
        },
        mode: BuildMode::Normal,
        n_rounds: u32::try_from(settings.repeat).map_or(u32::MAX, |more| more.saturating_add(1)),
        on_difference: if settings.enforce_determinism {
            OnDifference::Fail
        } else {
            OnDifference::Tell
        },
        substitution: Substitution::Off,
    }
}

/// Returns how many slots a scheduler of these settings has, or a request may have.
pub(crate) fn slot_counts(settings: &Settings) -> SlotCounts {
    SlotCounts {
        n_builds: settings.max_jobs,
        // Of a scheduler without any nothing could be fetched, and everything would wait for ever.
        n_fetches: settings.max_substitution_jobs.max(1),
    }
}

fn after_failure(settings: &Settings) -> AfterFailure {
    if settings.keep_going {
        AfterFailure::KeepGoing
    } else {
        AfterFailure::Stop
    }
}

impl Actor for Scheduler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let scheduler = ctx.address().downgrade();
        let upward = Upward {
            require_inputs: scheduler.clone().recipient(),
            leave_inputs: scheduler.clone().recipient(),
            request_slot: scheduler.clone().recipient(),
            rest: scheduler.clone().recipient(),
            withdraw_slot_request: scheduler.clone().recipient(),
            news: scheduler.clone().recipient(),
            ended: scheduler.recipient(),
        };
        self.ports = Some(Arc::new(self.services.ports(upward)));
        for end in self.services.ends() {
            self.watch(end, ctx);
        }
    }

    /// Ends the thread also after a panic, so that nobody waits for a scheduler that is gone.
    fn stopped(&mut self, _ctx: &mut Self::Context) {
        if let Some(system) = System::try_current() {
            system.stop();
        }
    }
}

impl Handler<SubmitGoals> for Scheduler {
    type Result = ResponseFuture<Result<BuildReport, Error>>;

    fn handle(&mut self, submit: SubmitGoals, ctx: &mut Self::Context) -> Self::Result {
        if !matches!(self.life, Life::Running) {
            return Box::pin(async { Err(Error::Stopped) });
        }
        let SubmitGoals { request, abandoned } = submit;
        let settings = request.settings;
        let id = self.schedule.open_request(
            after_failure(&settings),
            request.priority,
            slot_counts(&settings),
        );
        let (sender, receiver) = oneshot::channel();
        let keys = request
            .wanted
            .iter()
            .map(|wanted| (wanted.key(), wanted.outputs()))
            .collect();
        let given = request.wanted.iter().filter_map(Wanted::given).collect();
        if request.wanted.iter().any(Wanted::repairs) {
            self.services.forget_contents();
        }
        self.requests.insert(
            id,
            Client {
                settings,
                wanted: request.wanted,
                given,
                reply: Some(sender),
            },
        );
        let directives = self.schedule.submit(id, keys);
        self.carry_out(directives, ctx);
        if let Some(abandoned) = abandoned {
            let gone = abandoned.into_actor(self).map(move |_, scheduler, ctx| {
                let directives = scheduler.schedule.cancel_request(id);
                scheduler.carry_out(directives, ctx);
            });
            ctx.spawn(gone);
        }
        Box::pin(async move { receiver.await.map_err(|_| Error::Stopped) })
    }
}

impl Handler<Subscribe> for Scheduler {
    type Result = ();

    fn handle(&mut self, subscribe: Subscribe, _ctx: &mut Self::Context) {
        self.subscribers.push(subscribe.sender);
    }
}

impl Handler<CancelRequests> for Scheduler {
    type Result = ();

    fn handle(&mut self, _: CancelRequests, ctx: &mut Self::Context) {
        self.cancel_all(ctx);
    }
}

impl Handler<StopScheduler> for Scheduler {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: StopScheduler, ctx: &mut Self::Context) -> Self::Result {
        let (sender, receiver) = oneshot::channel();
        match &mut self.life {
            Life::Running => {
                self.life = Life::Draining(vec![sender]);
                self.cancel_all(ctx);
                self.stop_if_idle(ctx);
            }
            Life::Draining(waiters) => waiters.push(sender),
            // The handle waits for the thread's end besides.
            Life::Ending => {}
        }
        Box::pin(async move {
            // A dropped sender means that the scheduler is ending, which is what was asked for.
            let _gone = receiver.await;
        })
    }
}

impl Handler<RequireInputs> for Scheduler {
    type Result = ();

    fn handle(&mut self, require: RequireInputs, ctx: &mut Self::Context) {
        let directives = self.schedule.require_inputs(require.goal, require.inputs);
        self.carry_out(directives, ctx);
    }
}

impl Handler<LeaveInputs> for Scheduler {
    type Result = ();

    fn handle(&mut self, leave: LeaveInputs, ctx: &mut Self::Context) {
        let directives = self.schedule.leave_inputs(leave.goal);
        self.carry_out(directives, ctx);
    }
}

impl Handler<RestGoal> for Scheduler {
    type Result = ();

    fn handle(&mut self, rest: RestGoal, ctx: &mut Self::Context) {
        let directives = self.schedule.rest(rest.goal);
        self.carry_out(directives, ctx);
    }
}

impl Handler<RequestSlot> for Scheduler {
    type Result = ();

    fn handle(&mut self, request: RequestSlot, ctx: &mut Self::Context) {
        let directives = self.schedule.ask_slot(request.goal, request.kind);
        self.carry_out(directives, ctx);
    }
}

impl Handler<WithdrawSlotRequest> for Scheduler {
    type Result = ();

    fn handle(&mut self, withdrawal: WithdrawSlotRequest, _ctx: &mut Self::Context) {
        self.schedule.withdraw(withdrawal.goal);
    }
}

impl Handler<SlotReleased> for Scheduler {
    type Result = ();

    fn handle(&mut self, released: SlotReleased, ctx: &mut Self::Context) {
        let directives = self.schedule.give_back(released.slot);
        self.carry_out(directives, ctx);
    }
}

impl Handler<GoalNews> for Scheduler {
    type Result = ();

    fn handle(&mut self, news: GoalNews, _ctx: &mut Self::Context) {
        self.publish(news.goal, news.kind);
    }
}

impl Handler<GoalEnded> for Scheduler {
    type Result = ();

    fn handle(&mut self, ended: GoalEnded, ctx: &mut Self::Context) {
        let GoalEnded {
            goal,
            served,
            outcome,
        } = ended;
        let directives = self.schedule.goal_ended(goal, &served, &outcome);
        let looks_again = directives
            .iter()
            .any(|directive| matches!(directive, Directive::Start { goal: id, .. } if *id == goal));
        if !looks_again {
            self.goals.remove(&goal);
            self.publish(goal, EventKind::Finished(outcome));
        }
        self.carry_out(directives, ctx);
    }
}

impl Handler<ForcePanic> for Scheduler {
    type Result = ();

    fn handle(&mut self, force: ForcePanic, _ctx: &mut Self::Context) {
        match force.actor {
            PanickingActor::Scheduler => panic!("forced by a test"),
            PanickingActor::DerivationGoals => {
                for goal in self.goals.values() {
                    if let GoalActor::Derivation(addr) = goal {
                        addr.do_send(ForcePanic { actor: force.actor });
                    }
                }
            }
            PanickingActor::SubstitutionGoals => {
                for goal in self.goals.values() {
                    if let GoalActor::Path(addr) = goal {
                        addr.do_send(ForcePanic { actor: force.actor });
                    }
                }
            }
            PanickingActor::StoreRegistry
            | PanickingActor::Substituter
            | PanickingActor::LockKeeper
            | PanickingActor::SandboxSupervisor
            | PanickingActor::BuilderSessions => self.services.force_panic(force.actor),
        }
    }
}
