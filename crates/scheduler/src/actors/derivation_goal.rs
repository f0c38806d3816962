//! The shell around the machine of a derivation goal: turns messages into events, effects into
//! messages, and holds what must be given back (lease, locks, a running build).

mod hook;

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::prelude::*;
use registry::{CancelFlag, OutputLocks, RootsLease, RoundOutputs};
use sandbox::{
    BuildEvent, BuildExited, BuildId, BuildProgress, CancelBuild, Disposition, ScratchOutputs,
    StartBuild,
};
use store_model::wanted_outputs::WantedOutputs;
use store_model::{Derivation, Settings, StorePath};
use tokio::sync::oneshot;

use self::outputs::Learnt;
use self::resolution::{InputPaths, Resolved};
use super::questions::{
    NotLoaded, await_lock, discard_invalid_paths, load_derivation, warn_of_ignored_checks,
};
use super::surroundings::{Surroundings, query_surroundings};
use crate::error::chain;
use crate::events::{EventKind, Round, WaitReason};
use crate::goal::derivation::{BuilderEnding, Disk, Effect, Event, Facts, State};
use crate::goal::recipe::Recipe;
use crate::goal::{BuildMode, BuildTimes, GoalId, GoalKey, Outcome, PathMode, Status};
use crate::messages::{
    CancelGoal, ForcePanic, GoalEnded, GoalNews, InputFinished, InputsAreCyclic, InputsRequired,
    LeaveInputs, RequestSlot, RequireInputs, ServiceLost, SlotGranted, SlotLease, WidenGoal,
    WithdrawSlotRequest,
};
use crate::ports::{Ports, tell};
use crate::slots::SlotKind;

mod comparison;
mod disposal;
mod outputs;
mod registration;
mod repair;
mod resolution;
mod substitutes;

/// Brings the outputs of one derivation about.
pub(crate) struct DerivationGoal {
    id: GoalId,
    facts: Facts,
    settings: Arc<Settings>,
    ports: Arc<Ports>,
    state: State,
    /// What the outcome will speak of.
    wanted: WantedOutputs,
    /// The derivation: given by the client, or read from the store.
    derivation: Option<Arc<Derivation>>,
    /// Whether the client gave it, so that it need not be in the store.
    is_given: bool,
    has_rooted_outputs: bool,
    /// What is known of its outputs that the derivation does not say.
    learnt: Learnt,
    /// What the derivation was resolved to.
    resolved: Option<Resolved>,
    /// Keeps the derivation and its outputs from the garbage collector.
    roots: RootsLease,
    /// How inputs ended, which keeps them from the garbage collector.
    inputs: Vec<Arc<Outcome>>,
    /// Outputs of inputs that have ended, where the closure starts.
    input_roots: BTreeSet<StorePath>,
    /// The same by input and name, if the derivation may have to be resolved.
    input_paths: InputPaths,
    surroundings: Surroundings,
    lease: Option<SlotLease>,
    locks: Option<OutputLocks>,
    build: Option<Build>,
    /// Dropped to kill the hook that runs.
    hook: Option<oneshot::Sender<()>>,
    /// Which of its builds the last one is.
    round: Round,
    /// Where the output is that was registered by its contents.
    found: Option<StorePath>,
    /// What the rounds so far have made.
    earlier_rounds: Option<RoundOutputs>,
    /// Dropped to kill the diff hook.
    diff_hook: Option<oneshot::Sender<()>>,
    outcome: Option<Outcome>,
}

/// A build that was started and whose directories have not been disposed of.
struct Build {
    id: BuildId,
    scratch: Option<ScratchOutputs>,
    /// Who owns the outputs if it is not the builder any more.
    owner_uid: Option<u32>,
    has_exited: bool,
    /// Raised when its outputs need not be registered any more.
    cancel_registration: CancelFlag,
}

/// What a new goal is told.
pub(crate) struct NewGoal {
    pub(crate) id: GoalId,
    pub(crate) facts: Facts,
    pub(crate) settings: Arc<Settings>,
    pub(crate) wanted: WantedOutputs,
    pub(crate) derivation: Option<Arc<Derivation>>,
}

impl DerivationGoal {
    pub(crate) fn new(new: NewGoal, ports: Arc<Ports>) -> Self {
        Self {
            id: new.id,
            facts: new.facts,
            settings: new.settings,
            ports,
            state: State::default(),
            wanted: new.wanted,
            is_given: new.derivation.is_some(),
            derivation: new.derivation,
            has_rooted_outputs: false,
            learnt: Learnt::default(),
            resolved: None,
            roots: RootsLease::default(),
            inputs: Vec::new(),
            input_roots: BTreeSet::new(),
            input_paths: InputPaths::new(),
            surroundings: Surroundings::default(),
            lease: None,
            locks: None,
            build: None,
            hook: None,
            round: Round { number: 1, of: 1 },
            found: None,
            earlier_rounds: None,
            diff_hook: None,
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
            Effect::LoadDerivation => self.load_derivation(ctx),
            Effect::QueryOutputs => self.query_outputs(ctx),
            Effect::ExamineClosure(outputs) => self.examine_closure(outputs, ctx),
            Effect::RequireRepairs(broken) => self.require_repairs(broken),
            Effect::RequireDerivation => self.require_derivation(),
            Effect::RequireSubstitutes(names, turn) => self.require_substitutes(&names, turn),
            Effect::RequireInputs => self.require_inputs(),
            Effect::LeaveInputs => {
                tell(
                    &self.ports.upward.leave_inputs,
                    LeaveInputs { goal: self.id },
                );
            }
            Effect::Resolve => self.resolve(ctx),
            Effect::RequireResolved(drv_path) => self.require_resolved(drv_path),
            Effect::AdoptRealisations(outcome) => self.adopt_realisations(&outcome, ctx),
            Effect::QueryClosure => self.query_surroundings(ctx),
            Effect::RequestSlot => {
                let request = RequestSlot {
                    goal: self.id,
                    kind: SlotKind::Build,
                };
                tell(&self.ports.upward.request_slot, request);
            }
            Effect::WithdrawSlotRequest => {
                let withdrawal = WithdrawSlotRequest { goal: self.id };
                tell(&self.ports.upward.withdraw_slot_request, withdrawal);
            }
            Effect::ReleaseSlot(_) => self.lease = None,
            Effect::TryLocks => self.try_locks(ctx),
            Effect::AwaitLock(path) => self.await_lock(path, ctx),
            Effect::ReleaseLocks => self.locks = None,
            Effect::DiscardInvalidPaths => self.discard_invalid_paths(ctx),
            Effect::StartBuild(round) => self.start_build(round, ctx),
            Effect::CancelBuild => self.cancel_build(),
            Effect::RegisterOutputs(names) => self.register_outputs(&names, ctx),
            Effect::CompareOutputs(names, comparison) => {
                self.compare_outputs(&names, comparison, ctx);
            }
            Effect::CancelRegistration => self.cancel_registration(),
            Effect::RunHook => self.run_hook(ctx),
            Effect::CancelHook => self.hook = None,
            Effect::RunDiffHook(shown) => self.run_diff_hook(shown, ctx),
            Effect::StopDiffHook => self.diff_hook = None,
            Effect::Warn(message) => tracing::warn!("{message}"),
            Effect::DisposeBuild(Disposition::Delete) => self.delete_build(),
            Effect::DisposeBuild(Disposition::Keep) => self.keep_build(ctx),
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

    fn announce(&self, kind: EventKind) {
        let news = GoalNews {
            goal: self.id,
            kind,
        };
        tell(&self.ports.upward.news, news);
    }

    fn load_derivation(&mut self, ctx: &mut Context<Self>) {
        let ports = Arc::clone(&self.ports);
        let drv_path = self.facts.drv_path.clone();
        let given = self.derivation.clone();
        let answer = load_derivation(ports, drv_path, given)
            .into_actor(self)
            .map(|answer, goal, ctx| {
                let event = match answer {
                    Ok((derivation, roots)) => {
                        goal.roots.absorb(roots);
                        let printed_path = &goal.facts.printed_path;
                        let recipe = Recipe::new(printed_path, &derivation, &goal.settings);
                        goal.derivation = Some(derivation);
                        Event::DerivationLoaded {
                            recipe: Arc::new(recipe),
                        }
                    }
                    Err(NotLoaded::Missing(roots)) => {
                        goal.roots.absorb(roots);
                        Event::DerivationMissing
                    }
                    Err(NotLoaded::Failed(message)) => Event::ServiceFailed { message },
                };
                goal.advance(event, ctx);
            });
        ctx.spawn(answer);
    }

    fn require_inputs(&mut self) {
        let Some(derivation) = &self.derivation else {
            return;
        };
        // Only what is checked or hashed itself is built though it is valid; but what is made of
        // something corrupt would be no repair.
        let (mode, path_mode) = match self.facts.mode {
            BuildMode::Normal | BuildMode::Check | BuildMode::Hash => {
                (BuildMode::Normal, PathMode::Ensure)
            }
            BuildMode::Repair => (BuildMode::Repair, PathMode::Repair),
        };
        let derivations = derivation.input_derivations.iter().map(|(path, names)| {
            let wanted = WantedOutputs::These(names.clone());
            (GoalKey::Derivation(path.clone(), mode), wanted)
        });
        let sources = derivation
            .input_sources
            .iter()
            .map(|path| (GoalKey::Path(path.clone(), path_mode), WantedOutputs::All));
        let require = RequireInputs {
            goal: self.id,
            inputs: derivations.chain(sources).collect(),
        };
        tell(&self.ports.upward.require_inputs, require);
    }

    /// Remembers the wanted outputs of an input that ended, for the closure, and keeps them.
    fn note_input(&mut self, path: &StorePath, outcome: &Arc<Outcome>) {
        self.inputs.push(Arc::clone(outcome));
        self.note_input_paths(path, outcome);
        let Some(derivation) = &self.derivation else {
            return;
        };
        match derivation.input_derivations.get(path) {
            Some(names) => {
                let wanted = names.iter().filter_map(|name| outcome.outputs.get(name));
                self.input_roots.extend(wanted.cloned());
            }
            None if derivation.input_sources.contains(path) => {
                self.input_roots.extend(outcome.outputs.values().cloned());
            }
            // Something below the outputs that was repaired.
            None => {}
        }
    }

    fn query_surroundings(&mut self, ctx: &mut Context<Self>) {
        let Some(derivation) = self.built_derivation() else {
            return;
        };
        let roots = std::mem::take(&mut self.input_roots);
        let (ports, settings) = (Arc::clone(&self.ports), Arc::clone(&self.settings));
        let answer = query_surroundings(ports, derivation, settings, roots)
            .into_actor(self)
            .map(|answer, goal, ctx| {
                let event = match answer {
                    Ok(surroundings) => {
                        goal.surroundings = surroundings;
                        Event::ClosureQueried
                    }
                    Err(event) => event,
                };
                goal.advance(event, ctx);
            });
        ctx.spawn(answer);
    }

    fn await_lock(&mut self, path: StorePath, ctx: &mut Context<Self>) {
        let ports = Arc::clone(&self.ports);
        self.ask(await_lock(ports, path), ctx);
    }

    fn discard_invalid_paths(&mut self, ctx: &mut Context<Self>) {
        let question = discard_invalid_paths(Arc::clone(&self.ports), self.places());
        self.ask(question, ctx);
    }

    fn start_build(&mut self, round: Round, ctx: &mut Context<Self>) {
        let Some(derivation) = self.built_derivation() else {
            return;
        };
        warn_of_ignored_checks(&derivation);
        let build_id = self.ports.next_build_id();
        self.round = round;
        self.build = Some(Build {
            id: build_id,
            scratch: None,
            owner_uid: None,
            has_exited: false,
            cancel_registration: CancelFlag::default(),
        });
        let start = StartBuild {
            build_id,
            drv_path: self.facts.drv_path.clone(),
            derivation,
            input_paths: Arc::clone(&self.surroundings.visible_paths),
            graphs: Arc::clone(&self.surroundings.graphs),
            settings: Arc::clone(&self.settings),
            observer: ctx.address().recipient(),
        };
        let ports = Arc::clone(&self.ports);
        let accepted = async move { ports.start_build.send(start).await }
            .into_actor(self)
            .map(|answer, goal, ctx| {
                // Once accepted, all further news comes from the build's session.
                if let Err(error) = answer {
                    goal.advance(service_failed(&error), ctx);
                }
            });
        ctx.spawn(accepted);
    }

    fn cancel_build(&mut self) {
        if let Some(build) = &self.build {
            let build_id = build.id;
            self.ports.cancel_build.do_send(CancelBuild { build_id });
        }
    }

    fn build_exited(&mut self, exited: BuildExited, ctx: &mut Context<Self>) {
        if let Some(build) = &mut self.build {
            build.scratch = exited.scratch;
            build.has_exited = true;
        }
        let ending = BuilderEnding {
            verdict: exited.verdict,
            disk: if exited.disk_nearly_full {
                Disk::NearlyFull
            } else {
                Disk::Roomy
            },
            times: BuildTimes {
                started_at: exited.started_at,
                stopped_at: exited.stopped_at,
            },
            log_tail: exited.log_tail,
        };
        self.advance(Event::BuildExited(Box::new(ending)), ctx);
    }
}

fn service_failed(error: &dyn std::error::Error) -> Event {
    Event::ServiceFailed {
        message: chain(error),
    }
}

impl Actor for DerivationGoal {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let wanted = self.wanted.clone();
        self.advance(Event::Started { wanted }, ctx);
    }

    /// Gives everything back and reports the ending. actix comes here after a panic too, so that
    /// no slot, lock or builder stays behind and no one waits for ever.
    fn stopped(&mut self, _ctx: &mut Self::Context) {
        if self.build.as_ref().is_some_and(|build| !build.has_exited) {
            self.cancel_build();
        }
        // Harmless once they are registered.
        self.cancel_registration();
        self.delete_build();
        self.locks = None;
        self.lease = None;
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
            served: self.served(&outcome),
            outcome: Arc::new(outcome),
        };
        tell(&self.ports.upward.ended, ended);
    }
}

impl Handler<InputsRequired> for DerivationGoal {
    type Result = ();

    fn handle(&mut self, required: InputsRequired, ctx: &mut Self::Context) {
        for ending in &required.ended {
            self.note_input(&ending.path, &ending.outcome);
        }
        let event = Event::InputsRequired {
            n_pending: required.n_pending,
            ended: required.ended,
        };
        self.advance(event, ctx);
    }
}

impl Handler<InputFinished> for DerivationGoal {
    type Result = ();

    fn handle(&mut self, finished: InputFinished, ctx: &mut Self::Context) {
        self.note_input(&finished.0.path, &finished.0.outcome);
        self.advance(Event::InputFinished(finished.0), ctx);
    }
}

impl Handler<SlotGranted> for DerivationGoal {
    type Result = ();

    fn handle(&mut self, granted: SlotGranted, ctx: &mut Self::Context) {
        let slot = granted.lease.slot;
        // A goal that ended meanwhile drops the lease, which gives the slot back.
        self.lease = self.outcome.is_none().then_some(granted.lease);
        self.advance(Event::SlotGranted(slot), ctx);
    }
}

impl Handler<BuildProgress> for DerivationGoal {
    type Result = ();

    fn handle(&mut self, progress: BuildProgress, ctx: &mut Self::Context) {
        match progress.event {
            BuildEvent::AwaitingUser => self.announce(EventKind::Waiting {
                reason: WaitReason::BuildUser,
            }),
            BuildEvent::Started(started) => self.announce(EventKind::Started {
                pid: started.pid,
                uid: started.uid,
                round: self.round,
            }),
            BuildEvent::Logged(lines) if self.shows_log() => {
                self.announce(EventKind::Logged(lines));
            }
            BuildEvent::Logged(_) => {}
            BuildEvent::Exited(exited) => self.build_exited(*exited, ctx),
        }
    }
}

impl Handler<WidenGoal> for DerivationGoal {
    type Result = ();

    fn handle(&mut self, widen: WidenGoal, ctx: &mut Self::Context) {
        if self.outcome.is_none() {
            let _grown = self.wanted.widen(&widen.wanted);
        }
        let wanted = widen.wanted;
        self.advance(Event::Widened { wanted }, ctx);
    }
}

/// Only what refers to something by another's word can refer to itself; derivations wait for paths.
impl Handler<InputsAreCyclic> for DerivationGoal {
    type Result = ();

    fn handle(&mut self, cyclic: InputsAreCyclic, ctx: &mut Self::Context) {
        let message = cyclic.message;
        self.advance(Event::ServiceFailed { message }, ctx);
    }
}

impl Handler<CancelGoal> for DerivationGoal {
    type Result = ();

    fn handle(&mut self, _: CancelGoal, ctx: &mut Self::Context) {
        self.advance(Event::Cancelled, ctx);
    }
}

impl Handler<ServiceLost> for DerivationGoal {
    type Result = ();

    fn handle(&mut self, lost: ServiceLost, ctx: &mut Self::Context) {
        let message = lost.message;
        self.advance(Event::ServiceFailed { message }, ctx);
    }
}

impl Handler<ForcePanic> for DerivationGoal {
    type Result = ();

    fn handle(&mut self, _: ForcePanic, _ctx: &mut Self::Context) {
        panic!("forced by a test");
    }
}
