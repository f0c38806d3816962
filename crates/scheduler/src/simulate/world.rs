//! Runs a plan: performs the effects of machines and the directives of the schedule, and checks
//! the invariants after each: those that `run` lists under its errors.

mod endings;
mod registration;
mod repair;
mod resolution;
mod substitution;

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use sandbox::{BuildVerdict, Disposition};
use store_model::wanted_outputs::WantedOutputs;
use store_model::{OutputName, StorePath};

use self::registration::post_build_hook;
use self::substitution::{slot_counts, substitution};
use super::{Plan, Random, SimulatedGoal};
use crate::events::{LockOwner, Round};
use crate::goal::derivation::{
    BuilderEnding, Disk, Effect, Event, Facts, KeepFailed, LocalBuilds, State, Turn,
};
use crate::goal::recipe::Recipe;
use crate::goal::{BuildMode, BuildTimes, GoalId, GoalKey, RequestId};
use crate::schedule::{Directive, Schedule};
use crate::slots::{SlotId, SlotKind};

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Summary {
    /// Goals whose builder succeeded.
    pub n_built: usize,
    /// Goals that ended otherwise than in success.
    pub n_failed: usize,
    /// Goals that found their outputs valid.
    pub n_valid: usize,
    /// Steps of machines.
    pub n_steps: u64,
    /// Pretended time from the first event to the last.
    pub makespan_ms: u64,
    /// Pretended time that builders ran, in total.
    pub work_ms: u64,
    /// The longest chain of builders that had to follow one another.
    pub longest_path_ms: u64,
    /// Most slots lent at once.
    pub peak_slots: usize,
}

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation(String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Violation {}

/// Runs a plan to its end.
///
/// # Errors
/// An invariant does not hold: more slots lent than there are, a build without a slot or a lock or
/// before its inputs, a repair that ends well though something is corrupt, outputs let go of while they are being registered, a goal or a request that
/// ends twice or never, something not given back.
pub fn run(plan: &Plan) -> Result<Summary, Violation> {
    let mut world = World::new(plan);
    world.submit_requests()?;
    while let Some(Reverse(due)) = world.queue.pop() {
        world.now_ms = due.at_ms;
        world.deliver(due.news)?;
    }
    world.check_end()?;
    Ok(world.summary)
}

/// Something that will happen.
#[derive(Debug, PartialEq, Eq)]
struct Due {
    at_ms: u64,
    /// Breaks ties: the order of sending, or chance where the real order is open.
    order: u64,
    news: News,
}

#[derive(Debug, PartialEq, Eq)]
enum News {
    ToGoal(GoalId, u32, Event),
    CancelRequest(RequestId),
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ms, self.order).cmp(&(other.at_ms, other.order))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

struct World<'a> {
    plan: &'a Plan,
    random: Random,
    schedule: Schedule,
    queue: BinaryHeap<Reverse<Due>>,
    n_sent: u64,
    now_ms: u64,
    by_path: HashMap<StorePath, usize>,
    goals: HashMap<GoalId, Goal>,
    valid: Vec<BTreeSet<OutputName>>,
    /// Valid outputs with other contents than the database says.
    corrupt: Vec<BTreeSet<OutputName>>,
    locked: HashMap<usize, GoalId>,
    finish_ms: Vec<u64>,
    replies: HashMap<RequestId, usize>,
    n_requests: usize,
    n_building: usize,
    summary: Summary,
}

struct Goal {
    idx: usize,
    facts: Facts,
    state: State,
    wanted: WantedOutputs,
    /// Counts the lives of a goal that looks again, so that old news does not reach the new one.
    life: u32,
    slot: Option<SlotId>,
    builds: bool,
    n_builds: u32,
    runs_hook: bool,
    /// Outputs that the registry is working on.
    registering: Option<BTreeSet<OutputName>>,
    /// Whether the registry was told to give them up.
    gives_up: bool,
    /// What was wanted of the goal that it was resolved to.
    adopts: Option<WantedOutputs>,
    /// How often it asked the caches.
    asked_caches: Option<Turn>,
    n_endings: u32,
}

impl<'a> World<'a> {
    fn new(plan: &'a Plan) -> Self {
        let mut random = Random::new(plan.seed);
        let mut choose = |percent| {
            let of_goal = |goal: &SimulatedGoal| {
                let outputs = goal.outputs.iter();
                let chosen = outputs.filter(|_| random.chance(percent));
                chosen.cloned().collect()
            };
            plan.goals.iter().map(of_goal).collect()
        };
        let valid = choose(plan.chaos.is_valid);
        let corrupt = choose(plan.chaos.is_corrupt);
        Self {
            plan,
            random,
            schedule: Schedule::new(slot_counts(plan.n_slots)),
            queue: BinaryHeap::new(),
            n_sent: 0,
            now_ms: 0,
            by_path: plan
                .goals
                .iter()
                .enumerate()
                .map(|(idx, goal)| (goal.drv_path.clone(), idx))
                .collect(),
            goals: HashMap::new(),
            valid,
            corrupt,
            locked: HashMap::new(),
            finish_ms: vec![0; plan.goals.len()],
            replies: HashMap::new(),
            n_requests: 0,
            n_building: 0,
            summary: Summary::default(),
        }
    }

    fn submit_requests(&mut self) -> Result<(), Violation> {
        for wanted in &self.plan.requests {
            let caps = slot_counts(self.plan.n_slots);
            let request = self.schedule.open_request(self.plan.after_failure, 0, caps);
            self.n_requests += 1;
            let wanted = wanted
                .iter()
                .map(|(idx, mode)| {
                    let path = self.plan.goals[*idx].drv_path.clone();
                    (GoalKey::Derivation(path, *mode), WantedOutputs::All)
                })
                .collect();
            let directives = self.schedule.submit(request, wanted);
            self.carry_out(directives)?;
            if self.random.chance(self.plan.chaos.request_is_cancelled) {
                let at_ms = self.now_ms + self.random.below(200);
                self.push(at_ms, News::CancelRequest(request));
            }
        }
        Ok(())
    }

    fn push(&mut self, at_ms: u64, news: News) {
        self.n_sent += 1;
        let order = self.n_sent;
        self.queue.push(Reverse(Due { at_ms, order, news }));
    }

    /// Sends an answer of a service: after a while, or at once, or never in order.
    fn answer(&mut self, goal: GoalId, event: Event) {
        let delay_ms = if self.plan.chaos.reorder {
            self.random.below(5)
        } else {
            0
        };
        self.answer_after(delay_ms, goal, event);
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "whatever is not a build's ending is an answer, and answers can fail"
    )]
    fn answer_after(&mut self, delay_ms: u64, goal: GoalId, event: Event) {
        let fails = self.random.chance(self.plan.chaos.service_fails);
        // A build reports its ending whatever happens; only questions can fail.
        let event = match event {
            event @ (Event::BuildExited(_)
            | Event::BuildKept { .. }
            | Event::DiffHookEnded { .. }) => event,
            _ if fails => Event::ServiceFailed {
                message: "pretended".to_owned(),
            },
            event => event,
        };
        if let Some(life) = self.goals.get(&goal).map(|goal| goal.life) {
            self.push(self.now_ms + delay_ms, News::ToGoal(goal, life, event));
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only a lease has to be given back"
    )]
    fn deliver(&mut self, news: News) -> Result<(), Violation> {
        match news {
            News::ToGoal(id, life, event) => {
                let is_there = self
                    .goals
                    .get(&id)
                    .is_some_and(|goal| goal.life == life && goal.n_endings == 0);
                match event {
                    // A lease that reaches nobody is dropped, which gives its slot back.
                    Event::SlotGranted(slot) if !is_there => {
                        let directives = self.schedule.give_back(slot);
                        self.carry_out(directives)
                    }
                    event if is_there => self.step(id, event),
                    _ => Ok(()),
                }
            }
            News::CancelRequest(request) => {
                let directives = self.schedule.cancel_request(request);
                self.carry_out(directives)
            }
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "most events change only the machine"
    )]
    fn step(&mut self, id: GoalId, event: Event) -> Result<(), Violation> {
        let event = self.end_registration(id, event);
        let Some(goal) = self.goals.get_mut(&id) else {
            return Ok(());
        };
        self.summary.n_steps += 1;
        match &event {
            Event::SlotGranted(slot) => goal.slot = Some(*slot),
            Event::Widened { wanted } => {
                let _grown = goal.wanted.widen(wanted);
            }
            Event::BuildExited(_) if !goal.builds => {
                // It was cancelled, and that ending has come; a session reports only one.
                return Ok(());
            }
            Event::BuildExited(_) => {
                goal.builds = false;
                self.n_building -= 1;
            }
            Event::DiffHookEnded { .. } if !std::mem::take(&mut goal.runs_hook) => {
                // It was stopped, and ended once.
                return Ok(());
            }
            Event::Locked if self.locked.get(&goal.idx) != Some(&id) => {
                return Err(Violation(format!(
                    "goal {id} has a lock that was given back"
                )));
            }
            _ => {}
        }
        let (next, effects) = std::mem::take(&mut goal.state).step(&goal.facts, event);
        goal.state = next;
        for effect in effects {
            self.perform(id, effect)?;
        }
        Ok(())
    }

    fn perform(&mut self, id: GoalId, effect: Effect) -> Result<(), Violation> {
        let Some(goal) = self.goals.get_mut(&id) else {
            return Ok(());
        };
        let idx = goal.idx;
        match effect {
            Effect::LoadDerivation => {
                let recipe = Arc::new(self.recipe(idx));
                self.answer(id, Event::DerivationLoaded { recipe });
            }
            Effect::QueryOutputs => {
                let mode = goal.facts.mode;
                let invalid = self.plan.goals[idx]
                    .outputs
                    .iter()
                    .filter(|name| !self.serves(mode, idx, name))
                    .cloned()
                    .collect();
                self.answer(id, Event::OutputsQueried { invalid });
            }
            Effect::ExamineClosure(_) => self.examine_closure(id, idx),
            Effect::RequireRepairs(broken) => self.require_repairs(id, broken)?,
            Effect::RequireSubstitutes(names, turn) => {
                self.require_substitutes(id, idx, &names, turn)?;
            }
            Effect::RequireInputs => self.require_inputs(id, idx)?,
            Effect::LeaveInputs => {
                let directives = self.schedule.leave_inputs(id);
                self.carry_out(directives)?;
            }
            Effect::Resolve => self.resolve(id, idx),
            Effect::RequireResolved(drv_path) => self.require_resolved(id, drv_path)?,
            Effect::AdoptRealisations(outcome) => self.adopt(id, idx, &outcome)?,
            Effect::QueryClosure => self.answer(id, Event::ClosureQueried),
            Effect::RequestSlot => {
                let directives = self.schedule.ask_slot(id, SlotKind::Build);
                self.carry_out(directives)?;
            }
            Effect::WithdrawSlotRequest => self.schedule.withdraw(id),
            Effect::ReleaseSlot(slot) => {
                goal.slot = None;
                let directives = self.schedule.give_back(slot);
                self.carry_out(directives)?;
            }
            Effect::TryLocks => self.try_locks(id, idx),
            Effect::AwaitLock(_) => {
                // Whoever had the lock may have built the derivation.
                if self.random.chance(50) {
                    let outputs = self.plan.goals[idx].outputs.iter().cloned();
                    self.valid[idx].extend(outputs);
                    self.corrupt[idx].clear();
                }
                self.answer(id, Event::LockFreed);
            }
            Effect::ReleaseLocks => {
                goal.check_not_registering()?;
                if self.locked.get(&idx) == Some(&id) {
                    self.locked.remove(&idx);
                }
            }
            Effect::DiscardInvalidPaths => self.answer(id, Event::InvalidPathsDiscarded),
            Effect::StartBuild(round) => self.start_build(id, idx, round)?,
            Effect::CancelBuild => {
                self.answer_after(1, id, ending(BuildVerdict::Cancelled));
            }
            Effect::RegisterOutputs(names) => {
                goal.registering = Some(names);
                self.register(id);
            }
            Effect::RunHook => self.run_hook(id),
            Effect::CompareOutputs(_, comparison) => {
                // Nothing of them becomes valid.
                goal.registering = Some(BTreeSet::new());
                self.compare(id, comparison);
            }
            Effect::CancelRegistration => goal.gives_up = true,
            Effect::RunDiffHook(_) => {
                goal.runs_hook = true;
                self.end_hook(id, 50);
            }
            Effect::StopDiffHook => self.end_hook(id, 1),
            Effect::DisposeBuild(Disposition::Keep) => {
                goal.check_not_registering()?;
                self.answer(id, Event::BuildKept { path: None });
            }
            Effect::DisposeBuild(Disposition::Delete) => goal.check_not_registering()?,
            // Every derivation of these worlds is in the store.
            Effect::RequireDerivation
            | Effect::CancelHook
            | Effect::Announce(_)
            | Effect::Warn(_) => {}
            Effect::Finish(outcome) => self.finish(id, idx, *outcome)?,
        }
        Ok(())
    }

    fn recipe(&self, idx: usize) -> Recipe {
        let goal = &self.plan.goals[idx];
        Recipe {
            outputs: goal
                .outputs
                .iter()
                .map(|name| (name.clone(), goal.drv_path.clone()))
                .collect(),
            unplaced: BTreeSet::new(),
            inputs: Vec::new(),
            sources: BTreeSet::new(),
            is_fixed_output: goal.is_fixed_output,
            is_builtin: false,
            allows_substitutes: true,
            resolution: self.resolution(idx),
            obstacle: None,
        }
    }

    fn try_locks(&mut self, id: GoalId, idx: usize) {
        let is_busy = self.random.chance(self.plan.chaos.lock_is_busy);
        let event = if is_busy || self.locked.contains_key(&idx) {
            Event::LockBusy {
                path: self.plan.goals[idx].drv_path.clone(),
                holder: LockOwner::Unknown,
            }
        } else {
            // The lock keeper gives it now, whenever the goal hears of it.
            self.locked.insert(idx, id);
            Event::Locked
        };
        self.answer(id, event);
    }

    fn start_build(&mut self, id: GoalId, idx: usize, round: Round) -> Result<(), Violation> {
        let plan_goal = &self.plan.goals[idx];
        let mode = self
            .goals
            .get(&id)
            .map_or(BuildMode::Normal, |goal| goal.facts.mode);
        for (input, names) in &plan_goal.inputs {
            if !names.iter().all(|name| self.serves(mode, *input, name)) {
                return Err(Violation(format!(
                    "goal {idx} builds before its input {input} is valid"
                )));
            }
        }
        if self.locked.get(&idx) != Some(&id) || plan_goal.resolves_to.is_some() {
            return Err(Violation(format!(
                "goal {idx} builds without its lock, or though it is resolved"
            )));
        }
        let Some(goal) = self.goals.get_mut(&id) else {
            return Ok(());
        };
        if goal.slot.is_none() {
            return Err(Violation(format!("goal {idx} builds without a slot")));
        }
        goal.n_builds += 1;
        if goal.n_builds != round.number || round.number > round.of {
            return Err(Violation(format!(
                "build {} of goal {idx} is {round:?}",
                goal.n_builds
            )));
        }
        goal.builds = true;
        self.n_building += 1;
        let n_building = self.n_building;
        if n_building > self.plan.n_slots || self.schedule.n_slots_lent() > self.plan.n_slots {
            return Err(Violation(format!("{n_building} builders at once")));
        }
        self.summary.peak_slots = self.summary.peak_slots.max(n_building);
        let verdict = if self.random.chance(self.plan.chaos.builder_fails) {
            BuildVerdict::Exited { code: 1 }
        } else {
            BuildVerdict::Exited { code: 0 }
        };
        self.summary.work_ms += plan_goal.build_ms;
        self.answer_after(plan_goal.build_ms, id, ending(verdict));
        Ok(())
    }

    fn carry_out(&mut self, directives: Vec<Directive>) -> Result<(), Violation> {
        for directive in directives {
            match directive {
                Directive::Start {
                    goal, key, wanted, ..
                } => self.start_goal(goal, &key, wanted),
                Directive::Widen { goal, wanted } => {
                    self.tell(goal, Event::Widened { wanted });
                }
                Directive::TellInputs {
                    goal,
                    n_pending,
                    ended,
                } => self.tell(goal, Event::InputsRequired { n_pending, ended }),
                Directive::TellInput { goal, ending } => {
                    self.tell(goal, Event::InputFinished(ending));
                }
                Directive::Grant(grant) => self.tell(grant.goal, Event::SlotGranted(grant.slot)),
                Directive::Cancel(goal) => self.tell(goal, Event::Cancelled),
                Directive::BreakRing { goal, ring } => {
                    return Err(Violation(format!(
                        "goal {goal} is in a ring of {}",
                        ring.len()
                    )));
                }
                Directive::Reply { request, outcomes } => self.reply(request, outcomes.len())?,
                Directive::Forget(_) => {}
            }
        }
        Ok(())
    }

    /// Sends what the scheduler says: mailboxes keep its order.
    fn tell(&mut self, goal: GoalId, event: Event) {
        if let Some(life) = self.goals.get(&goal).map(|goal| goal.life) {
            self.push(self.now_ms, News::ToGoal(goal, life, event));
        }
    }

    fn start_goal(&mut self, id: GoalId, key: &GoalKey, wanted: WantedOutputs) {
        let (Some(idx), &GoalKey::Derivation(_, mode)) =
            (self.by_path.get(key.path()).copied(), key)
        else {
            return;
        };
        let life = self.goals.get(&id).map_or(0, |goal| goal.life + 1);
        let drv_path = key.path().clone();
        let facts = Facts {
            printed_path: drv_path.to_string(),
            drv_path,
            after_failure: self.plan.after_failure,
            keep_failed: if idx.is_multiple_of(3) {
                KeepFailed::Yes
            } else {
                KeepFailed::No
            },
            post_build_hook: post_build_hook(idx),
            local_builds: LocalBuilds::Allowed,
            mode,
            n_rounds: self.plan.goals[idx].n_rounds,
            on_difference: self.plan.goals[idx].on_difference,
            substitution: substitution(self.plan, idx),
        };
        let goal = Goal {
            idx,
            facts,
            state: State::default(),
            wanted: wanted.clone(),
            life,
            slot: None,
            builds: false,
            n_builds: 0,
            runs_hook: false,
            registering: None,
            gives_up: false,
            adopts: None,
            asked_caches: None,
            n_endings: 0,
        };
        self.goals.insert(id, goal);
        self.tell(id, Event::Started { wanted });
    }
}

fn ending(verdict: BuildVerdict) -> Event {
    let times = BuildTimes {
        started_at: SystemTime::UNIX_EPOCH,
        stopped_at: SystemTime::UNIX_EPOCH,
    };
    Event::BuildExited(Box::new(BuilderEnding {
        verdict,
        disk: Disk::Roomy,
        times,
        log_tail: Vec::new(),
    }))
}
