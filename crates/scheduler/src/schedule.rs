//! The scheduler's decisions: which goals to start, whom to tell, whom to cancel, who gets a slot.
//!
//! Facts come in as method calls, what is to be done comes out as [`Directive`]s, in order. The
//! scheduler's actor carries them out; [`simulate`](crate::simulate) does the same for simulated
//! goals.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use store_model::StorePath;
use store_model::wanted_outputs::{WantedOutputs, Widened};

use crate::goal::derivation::{AfterFailure, InputEnding};
use crate::goal::{GoalId, GoalKey, Outcome, RequestId, Status};
use crate::graph::{Graph, Required, Waiter};
use crate::rest::Resting;
use crate::slots::{Grant, Rank, SlotCounts, SlotId, SlotKind, SlotPools};

/// Something to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Directive {
    /// Start this goal.
    Start {
        /// Its name in this scheduler.
        goal: GoalId,
        /// What it is about.
        key: GoalKey,
        /// The outputs that are wanted.
        wanted: WantedOutputs,
        /// The request that wanted it first.
        origin: RequestId,
    },
    /// Tell a running goal that more outputs are wanted.
    Widen {
        /// The goal.
        goal: GoalId,
        /// The further outputs.
        wanted: WantedOutputs,
    },
    /// Tell a goal how its inputs stand.
    TellInputs {
        /// The goal that asked.
        goal: GoalId,
        /// How many are under way.
        n_pending: usize,
        /// Those that have ended.
        ended: Vec<InputEnding>,
    },
    /// Tell a goal that an input ended.
    TellInput {
        /// The goal that waits.
        goal: GoalId,
        /// The input.
        ending: InputEnding,
    },
    /// Lend a slot.
    Grant(Grant),
    /// Tell a goal that nobody wants it.
    Cancel(GoalId),
    /// Tell a goal that it waits for itself, in the end.
    BreakRing {
        /// One of the ring.
        goal: GoalId,
        /// The paths that wait for one another, each for the next and the last for the first.
        ring: Vec<StorePath>,
    },
    /// Answer a request.
    Reply {
        /// Which.
        request: RequestId,
        /// An outcome for each thing that it wanted, in its order.
        outcomes: Vec<Arc<Outcome>>,
    },
    /// Forget a request: no goal that it was the first to want is left.
    Forget(RequestId),
}

impl Directive {
    fn grants_to(&self, goal: GoalId) -> bool {
        matches!(self, Self::Grant(grant) if grant.goal == goal)
    }
}

/// All goals, requests and slots of a scheduler.
#[derive(Debug)]
pub struct Schedule {
    graph: Graph,
    slots: SlotPools,
    /// Goals that can only wait for their inputs.
    resting: Resting,
    requests: HashMap<RequestId, OpenRequest>,
    /// Goals that were told to stop and have not, and the request that waits for that.
    stopping: BTreeMap<GoalId, RequestId>,
    /// What each running goal is known to want.
    wanted: HashMap<GoalId, WantedOutputs>,
    n_requests: u32,
}

#[derive(Debug)]
struct OpenRequest {
    after_failure: AfterFailure,
    priority: i32,
    goals: Vec<GoalId>,
    /// Those of the goals that have no outcome yet.
    unfinished: HashSet<GoalId>,
    outcomes: HashMap<GoalId, Arc<Outcome>>,
    n_stopping: usize,
}

impl OpenRequest {
    /// Asked whenever a goal ends, of which a request may have many thousands.
    fn is_complete(&self) -> bool {
        self.n_stopping == 0 && self.unfinished.is_empty()
    }
}

impl Schedule {
    /// Makes a schedule with this many slots.
    #[must_use]
    pub fn new(n_slots: SlotCounts) -> Self {
        Self {
            graph: Graph::default(),
            slots: SlotPools::new(n_slots),
            resting: Resting::default(),
            requests: HashMap::new(),
            stopping: BTreeMap::new(),
            wanted: HashMap::new(),
            n_requests: 0,
        }
    }

    /// Returns how many slots for builders are lent.
    #[must_use]
    pub fn n_slots_lent(&self) -> usize {
        self.slots.of(SlotKind::Build).n_lent()
    }

    /// Returns how many slots for builders there are.
    #[must_use]
    pub fn n_slots(&self) -> usize {
        self.slots.of(SlotKind::Build).capacity()
    }

    /// Returns the requests that have not been answered.
    pub fn open_requests(&self) -> impl Iterator<Item = RequestId> {
        self.requests.keys().copied()
    }

    /// Opens a request; it has at most as many slots as `slot_caps` says.
    pub fn open_request(
        &mut self,
        after_failure: AfterFailure,
        priority: i32,
        slot_caps: SlotCounts,
    ) -> RequestId {
        let request = RequestId(self.n_requests);
        self.n_requests += 1;
        self.slots.open_request(request, slot_caps);
        self.requests.insert(
            request,
            OpenRequest {
                after_failure,
                priority,
                goals: Vec::new(),
                unfinished: HashSet::new(),
                outcomes: HashMap::new(),
                n_stopping: 0,
            },
        );
        request
    }

    /// Adds what an open request wants. Call it once for each request.
    #[must_use]
    pub fn submit(
        &mut self,
        request: RequestId,
        wanted: Vec<(GoalKey, WantedOutputs)>,
    ) -> Vec<Directive> {
        let mut directives = Vec::new();
        for (key, outputs) in wanted {
            let waiter = Waiter::Request(request);
            let (goal, ended) = self.require(waiter, key, &outputs, request, &mut directives);
            if let Some(open) = self.requests.get_mut(&request) {
                open.goals.push(goal);
                if let Some(outcome) = ended {
                    open.outcomes.insert(goal, outcome);
                } else {
                    open.unfinished.insert(goal);
                }
            }
        }
        self.answer_if_complete(request, &mut directives);
        directives
    }

    /// Makes a goal wait for its inputs.
    #[must_use]
    pub fn require_inputs(
        &mut self,
        goal: GoalId,
        inputs: Vec<(GoalKey, WantedOutputs)>,
    ) -> Vec<Directive> {
        let mut directives = Vec::new();
        let Some(origin) = self.graph.origin(goal) else {
            return directives;
        };
        let mut n_pending = 0;
        let mut ended = Vec::new();
        for (key, outputs) in inputs {
            let path: StorePath = key.path().clone();
            let waiter = Waiter::Goal(goal);
            match self.require(waiter, key, &outputs, origin, &mut directives) {
                (_, Some(outcome)) => ended.push(InputEnding { path, outcome }),
                (_, None) => n_pending += 1,
            }
        }
        directives.push(Directive::TellInputs {
            goal,
            n_pending,
            ended,
        });
        // A path has its archive to see to; it says so when that is done.
        if matches!(self.graph.key(goal), Some(GoalKey::Derivation(..))) {
            directives.extend(self.rest(goal));
        }
        directives
    }

    /// Makes a goal stop waiting for its inputs.
    #[must_use]
    pub fn leave_inputs(&mut self, goal: GoalId) -> Vec<Directive> {
        let mut directives = Vec::new();
        self.resting.wake(goal);
        self.leave(Waiter::Goal(goal), &mut directives);
        directives
    }

    /// Takes note that a goal can only wait for its inputs until one of them ends.
    #[must_use]
    pub fn rest(&mut self, goal: GoalId) -> Vec<Directive> {
        if !self.graph.is_over(goal) && self.graph.awaits_any(goal) {
            self.resting.lie_down(goal);
        }
        self.break_ring().into_iter().collect()
    }

    /// Finds goals that wait for one another, where nobody is left who does anything else. Only paths
    /// can: what a cache says that they refer to is its word, and no hash of anything.
    fn break_ring(&mut self) -> Option<Directive> {
        if self.resting.len() == 0 || self.resting.len() < self.graph.n_all_live() {
            return None;
        }
        let ring = self.graph.find_ring()?;
        let goal = *ring.first()?;
        self.resting.wake(goal);
        let path = |goal| self.graph.key(goal).map(|key| key.path().clone());
        let ring = ring.into_iter().filter_map(path).collect();
        Some(Directive::BreakRing { goal, ring })
    }

    /// Queues a goal for a slot.
    #[must_use]
    pub fn ask_slot(&mut self, goal: GoalId, kind: SlotKind) -> Vec<Directive> {
        if let (Some(key), Some(origin)) = (self.graph.key(goal), self.graph.origin(goal)) {
            let path = key.path();
            let priority = self.requests.get(&origin).map_or(0, |open| open.priority);
            let rank = Rank {
                priority,
                name: format!("{}-{}", path.name(), path.hash_part()),
                goal,
            };
            self.slots.of_mut(kind).ask(origin, rank);
        }
        let mut directives = self.grants(kind);
        if kind == SlotKind::EarlyFetch && !directives.iter().any(|it| it.grants_to(goal)) {
            // It goes on as soon as its inputs are there, permit or not.
            directives.extend(self.rest(goal));
        }
        directives
    }

    /// Takes a goal out of the queue for slots.
    pub fn withdraw(&mut self, goal: GoalId) {
        self.slots.withdraw(goal);
    }

    /// Takes a slot back and lends it on.
    #[must_use]
    pub fn give_back(&mut self, slot: SlotId) -> Vec<Directive> {
        self.slots.of_mut(slot.kind()).give_back(slot);
        self.grants(slot.kind())
    }

    /// Records how a goal ended that wanted these outputs last.
    #[must_use]
    pub fn goal_ended(
        &mut self,
        goal: GoalId,
        served: &WantedOutputs,
        outcome: &Arc<Outcome>,
    ) -> Vec<Directive> {
        let mut directives = Vec::new();
        self.slots.withdraw(goal);
        self.resting.wake(goal);
        if self.needs_another_look(goal, served, outcome, &mut directives) {
            if let Some(origin) = self.graph.origin(goal) {
                self.answer_if_complete(origin, &mut directives);
            }
            return directives;
        }
        self.leave(Waiter::Goal(goal), &mut directives);
        let path = self.graph.key(goal).map(|key| key.path().clone());
        let origin = self.graph.origin(goal);
        let mut touched: Vec<RequestId> = origin.into_iter().collect();
        for waiter in self.graph.finish(goal, outcome) {
            match (waiter, &path) {
                (Waiter::Request(request), _) => {
                    touched.push(request);
                    self.top_goal_ended(request, goal, outcome, &mut directives);
                }
                (Waiter::Goal(waiting), Some(path)) => {
                    if !self.graph.awaits_any(waiting) {
                        self.resting.wake(waiting);
                    }
                    directives.push(Directive::TellInput {
                        goal: waiting,
                        ending: InputEnding {
                            path: path.clone(),
                            outcome: Arc::clone(outcome),
                        },
                    });
                }
                (Waiter::Goal(_), None) => {}
            }
        }
        if let Some(request) = self.stopping.remove(&goal) {
            touched.push(request);
            if let Some(open) = self.requests.get_mut(&request) {
                open.n_stopping -= 1;
                // What it says of its own end is better than that it was given up.
                if let Some(provisional) = open.outcomes.get_mut(&goal) {
                    *provisional = Arc::clone(outcome);
                }
            }
        }
        touched.sort_unstable();
        touched.dedup();
        for request in touched {
            self.answer_if_complete(request, &mut directives);
        }
        if let Some(origin) = origin {
            self.forget_if_over(origin, &mut directives);
        }
        directives.extend(self.break_ring());
        directives
    }

    /// Cancels a request: goals that nobody else wants are told to stop, and the request is
    /// answered when they have.
    #[must_use]
    pub fn cancel_request(&mut self, request: RequestId) -> Vec<Directive> {
        let mut directives = Vec::new();
        self.give_up(request, "the request was cancelled", &mut directives);
        self.answer_if_complete(request, &mut directives);
        directives
    }

    fn require(
        &mut self,
        waiter: Waiter,
        key: GoalKey,
        outputs: &WantedOutputs,
        origin: RequestId,
        directives: &mut Vec<Directive>,
    ) -> (GoalId, Option<Arc<Outcome>>) {
        match self.graph.require(waiter, &key, origin) {
            Required::Created(goal) => {
                self.wanted.insert(goal, outputs.clone());
                directives.push(Directive::Start {
                    goal,
                    key,
                    wanted: outputs.clone(),
                    origin,
                });
                (goal, None)
            }
            Required::Joined(goal) => {
                let known = self.wanted.entry(goal).or_insert_with(|| outputs.clone());
                if known.widen(outputs) == Widened::Grown {
                    directives.push(Directive::Widen {
                        goal,
                        wanted: outputs.clone(),
                    });
                }
                (goal, None)
            }
            Required::Ended(goal, outcome) => {
                let known = self.wanted.get(&goal);
                let serves = !speaks_of_wanted_only(&outcome)
                    || known.is_none_or(|known| known.covers(outputs));
                // What nobody had may have been built since; to look costs little.
                if serves && !outcome.status.is_absence() {
                    return (goal, Some(outcome));
                }
                self.graph.reopen(goal, waiter);
                self.wanted.insert(goal, outputs.clone());
                directives.push(Directive::Start {
                    goal,
                    key,
                    wanted: outputs.clone(),
                    origin,
                });
                (goal, None)
            }
        }
    }

    /// A goal starts over if it saw only to what was wanted while somebody asked for more, or
    /// if it was cancelled and somebody wanted it again before it had stopped.
    fn needs_another_look(
        &mut self,
        goal: GoalId,
        served: &WantedOutputs,
        outcome: &Outcome,
        directives: &mut Vec<Directive>,
    ) -> bool {
        let (Some(known), Some(key), Some(origin)) = (
            self.wanted.get(&goal),
            self.graph.key(goal),
            self.graph.origin(goal),
        ) else {
            return false;
        };
        let fell_short = speaks_of_wanted_only(outcome) && !served.covers(known);
        let was_cancelled = outcome.status == Status::Cancelled;
        if !(fell_short || was_cancelled) || !self.graph.is_wanted(goal) {
            return false;
        }
        directives.push(Directive::Start {
            goal,
            key: key.clone(),
            wanted: known.clone(),
            origin,
        });
        if let Some(request) = self.stopping.remove(&goal)
            && let Some(open) = self.requests.get_mut(&request)
        {
            open.n_stopping -= 1;
        }
        true
    }

    fn top_goal_ended(
        &mut self,
        request: RequestId,
        goal: GoalId,
        outcome: &Arc<Outcome>,
        directives: &mut Vec<Directive>,
    ) {
        let Some(open) = self.requests.get_mut(&request) else {
            return;
        };
        open.outcomes.insert(goal, Arc::clone(outcome));
        open.unfinished.remove(&goal);
        if !outcome.status.is_success() && open.after_failure == AfterFailure::Stop {
            self.give_up(request, "another goal of the request failed", directives);
        }
    }

    /// Gives every unfinished part of a request the outcome "cancelled" and stops what nobody else
    /// wants.
    fn give_up(&mut self, request: RequestId, reason: &str, directives: &mut Vec<Directive>) {
        let Some(open) = self.requests.get_mut(&request) else {
            return;
        };
        for goal in open.unfinished.drain() {
            let message = match self.graph.key(goal) {
                Some(key) => format!("realising '{}' was cancelled: {reason}", key.path()),
                None => reason.to_owned(),
            };
            let outcome = Outcome::failure(Status::Cancelled, message);
            open.outcomes.insert(goal, Arc::new(outcome));
        }
        self.leave(Waiter::Request(request), directives);
    }

    fn leave(&mut self, waiter: Waiter, directives: &mut Vec<Directive>) {
        for goal in self.graph.leave(waiter) {
            if let Some(origin) = self.graph.origin(goal)
                && let Some(open) = self.requests.get_mut(&origin)
                && self.stopping.insert(goal, origin).is_none()
            {
                open.n_stopping += 1;
            }
            self.resting.wake(goal);
            directives.push(Directive::Cancel(goal));
        }
    }

    fn answer_if_complete(&mut self, request: RequestId, directives: &mut Vec<Directive>) {
        if !self
            .requests
            .get(&request)
            .is_some_and(OpenRequest::is_complete)
        {
            return;
        }
        let Some(open) = self.requests.remove(&request) else {
            return;
        };
        let outcomes = open
            .goals
            .iter()
            .filter_map(|goal| open.outcomes.get(goal).map(Arc::clone))
            .collect();
        directives.push(Directive::Reply { request, outcomes });
        self.forget_if_over(request, directives);
    }

    /// Forgets a request that was answered, once no goal of it lives on for somebody else.
    fn forget_if_over(&mut self, request: RequestId, directives: &mut Vec<Directive>) {
        if self.requests.contains_key(&request) || self.graph.n_live(request) > 0 {
            return;
        }
        self.slots.close_request(request);
        for goal in self.graph.forget_request(request) {
            self.wanted.remove(&goal);
        }
        directives.push(Directive::Forget(request));
    }

    fn grants(&mut self, kind: SlotKind) -> Vec<Directive> {
        let mut directives = Vec::new();
        while let Some(grant) = self.slots.next_grant(kind) {
            self.resting.wake(grant.goal);
            directives.push(Directive::Grant(grant));
        }
        directives
    }
}
/// Returns whether nothing is known of outputs that nobody wanted.
fn speaks_of_wanted_only(outcome: &Outcome) -> bool {
    outcome.status.is_success() && !outcome.has_all_outputs()
}

#[cfg(test)]
mod tests;
