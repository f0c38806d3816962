//! Which goals there are, who waits for whom, and whom nobody wants any more.
//!
//! A waiter is a request or another goal. A goal whose last waiter has left is unwanted and is
//! cancelled; a finished goal stays, with its outcome, until the request that first wanted it is
//! forgotten, so that nothing is tried twice for one request. Every call costs time proportional to the edges
//! that it touches.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use crate::goal::{GoalId, GoalKey, Outcome, RequestId};

/// Somebody who is told when a goal ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Waiter {
    /// A client's request.
    Request(RequestId),
    /// Another goal.
    Goal(GoalId),
}

/// Answer to [`Graph::require`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Required {
    /// The goal is new and must be started.
    Created(GoalId),
    /// The goal is under way.
    Joined(GoalId),
    /// The goal has ended, like this.
    Ended(GoalId, Arc<Outcome>),
}

/// All goals of a scheduler.
#[derive(Debug, Default)]
pub struct Graph {
    n_created: u32,
    ids: HashMap<GoalKey, GoalId>,
    goals: HashMap<GoalId, Entry>,
    /// Which goals each waiter waits for, so that it can leave them all.
    awaited: HashMap<Waiter, HashSet<GoalId>>,
    /// Which goals were first wanted by each request.
    origins: HashMap<RequestId, Offspring>,
    /// How many goals have not ended.
    n_live: usize,
}

/// The goals that a request was the first to want.
#[derive(Debug, Default)]
struct Offspring {
    goals: Vec<GoalId>,
    n_live: usize,
}

/// What is known about one goal.
#[derive(Debug)]
struct Entry {
    key: GoalKey,
    origin: RequestId,
    waiters: BTreeSet<Waiter>,
    outcome: Option<Arc<Outcome>>,
}

impl Graph {
    /// Makes `waiter` wait for the goal of this key, which is created if there is none.
    pub fn require(&mut self, waiter: Waiter, key: &GoalKey, origin: RequestId) -> Required {
        if let Some(id) = self.ids.get(key).copied()
            && let Some(entry) = self.goals.get_mut(&id)
        {
            if let Some(outcome) = &entry.outcome {
                return Required::Ended(id, Arc::clone(outcome));
            }
            entry.waiters.insert(waiter);
            self.awaited.entry(waiter).or_default().insert(id);
            return Required::Joined(id);
        }
        let id = GoalId(self.n_created);
        self.n_created += 1;
        self.ids.insert(key.clone(), id);
        self.goals.insert(
            id,
            Entry {
                key: key.clone(),
                origin,
                waiters: BTreeSet::from([waiter]),
                outcome: None,
            },
        );
        self.awaited.entry(waiter).or_default().insert(id);
        let offspring = self.origins.entry(origin).or_default();
        offspring.goals.push(id);
        offspring.n_live += 1;
        self.n_live += 1;
        Required::Created(id)
    }

    /// Makes a goal that has ended live again, for this waiter.
    pub fn reopen(&mut self, goal: GoalId, waiter: Waiter) {
        if let Some(entry) = self.goals.get_mut(&goal)
            && entry.outcome.take().is_some()
        {
            entry.waiters.insert(waiter);
            self.awaited.entry(waiter).or_default().insert(goal);
            self.origins.entry(entry.origin).or_default().n_live += 1;
            self.n_live += 1;
        }
    }

    /// Returns whether anybody waits for a goal.
    #[must_use]
    pub fn is_wanted(&self, goal: GoalId) -> bool {
        self.goals
            .get(&goal)
            .is_some_and(|entry| !entry.waiters.is_empty())
    }

    /// Returns how many goals that this request was the first to want have not ended.
    #[must_use]
    pub fn n_live(&self, request: RequestId) -> usize {
        self.origins
            .get(&request)
            .map_or(0, |offspring| offspring.n_live)
    }

    /// Returns how many goals have not ended.
    #[must_use]
    pub fn n_all_live(&self) -> usize {
        self.n_live
    }

    /// Returns whether a goal waits for another.
    #[must_use]
    pub fn awaits_any(&self, goal: GoalId) -> bool {
        let awaited = self.awaited.get(&Waiter::Goal(goal));
        awaited.is_some_and(|awaited| !awaited.is_empty())
    }

    /// Returns goals of which each waits for the next, and the last for the first, where every goal
    /// waits for another; it begins with the smallest of them.
    #[must_use]
    pub fn find_ring(&self) -> Option<Vec<GoalId>> {
        let mut places = HashMap::new();
        let mut way: Vec<GoalId> = Vec::new();
        let mut goal = self.live().min()?;
        while !places.contains_key(&goal) {
            places.insert(goal, way.len());
            way.push(goal);
            goal = *self.awaited.get(&Waiter::Goal(goal))?.iter().min()?;
        }
        let mut ring = way.split_off(places[&goal]);
        let smallest = (0..ring.len()).min_by_key(|idx| ring[*idx])?;
        ring.rotate_left(smallest);
        Some(ring)
    }

    /// Returns the request that first wanted a goal.
    #[must_use]
    pub fn origin(&self, goal: GoalId) -> Option<RequestId> {
        self.goals.get(&goal).map(|entry| entry.origin)
    }

    /// Returns what a goal is about.
    #[must_use]
    pub fn key(&self, goal: GoalId) -> Option<&GoalKey> {
        self.goals.get(&goal).map(|entry| &entry.key)
    }

    /// Returns whether a goal has ended or was never there.
    #[must_use]
    pub fn is_over(&self, goal: GoalId) -> bool {
        self.goals
            .get(&goal)
            .is_none_or(|entry| entry.outcome.is_some())
    }

    /// Returns the goals that have not ended.
    pub fn live(&self) -> impl Iterator<Item = GoalId> {
        self.goals
            .iter()
            .filter(|(_, entry)| entry.outcome.is_none())
            .map(|(id, _)| *id)
    }

    /// Records how a goal ended; returns who waited for it, in order. A second ending of the same
    /// goal is ignored and returns nobody.
    pub fn finish(&mut self, goal: GoalId, outcome: &Arc<Outcome>) -> Vec<Waiter> {
        let Some(entry) = self.goals.get_mut(&goal) else {
            return Vec::new();
        };
        if entry.outcome.is_some() {
            return Vec::new();
        }
        entry.outcome = Some(Arc::clone(outcome));
        self.n_live -= 1;
        let waiters: Vec<Waiter> = std::mem::take(&mut entry.waiters).into_iter().collect();
        for waiter in &waiters {
            if let Some(awaited) = self.awaited.get_mut(waiter) {
                awaited.remove(&goal);
            }
        }
        if let Some(offspring) = self.origins.get_mut(&entry.origin) {
            offspring.n_live -= 1;
        }
        waiters
    }

    /// Takes `waiter` away from everything that it still waits for; returns the goals that nobody
    /// wants now, in order.
    pub fn leave(&mut self, waiter: Waiter) -> Vec<GoalId> {
        let mut unwanted = Vec::new();
        for goal in self.awaited.remove(&waiter).unwrap_or_default() {
            if let Some(entry) = self.goals.get_mut(&goal)
                && entry.waiters.remove(&waiter)
                && entry.waiters.is_empty()
                && entry.outcome.is_none()
            {
                unwanted.push(goal);
            }
        }
        unwanted.sort_unstable();
        unwanted
    }

    /// Forgets every goal that this request was the first to want; returns them. All must have
    /// ended.
    pub fn forget_request(&mut self, request: RequestId) -> Vec<GoalId> {
        let goals = self
            .origins
            .remove(&request)
            .map_or_else(Vec::new, |offspring| offspring.goals);
        for goal in &goals {
            if let Some(entry) = self.goals.remove(goal) {
                self.ids.remove(&entry.key);
            }
            self.awaited.remove(&Waiter::Goal(*goal));
        }
        self.awaited.remove(&Waiter::Request(request));
        goals
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goal::BuildMode;
    use crate::goal::Status;

    const REQUEST: RequestId = RequestId(0);
    const CLIENT: Waiter = Waiter::Request(REQUEST);

    fn key(name: &str) -> GoalKey {
        let path = format!("{}-{name}.drv", "0".repeat(32));
        GoalKey::Derivation(path.parse().expect("a valid path"), BuildMode::Normal)
    }

    fn create(graph: &mut Graph, waiter: Waiter, name: &str) -> GoalId {
        match graph.require(waiter, &key(name), REQUEST) {
            Required::Created(id) | Required::Joined(id) | Required::Ended(id, _) => id,
        }
    }

    fn failure() -> Arc<Outcome> {
        Arc::new(Outcome::failure(Status::PermanentFailure, "no"))
    }

    #[test]
    fn the_same_key_is_the_same_goal() {
        let mut graph = Graph::default();
        let first = create(&mut graph, CLIENT, "a");
        let other = Waiter::Request(RequestId(1));
        assert_eq!(
            graph.require(other, &key("a"), RequestId(1)),
            Required::Joined(first)
        );
        assert_eq!(graph.finish(first, &failure()), [CLIENT, other]);
    }

    #[test]
    fn a_goal_is_unwanted_only_when_its_last_waiter_has_left() {
        let mut graph = Graph::default();
        let top = create(&mut graph, CLIENT, "top");
        let other = create(&mut graph, CLIENT, "other");
        let shared = create(&mut graph, Waiter::Goal(top), "shared");
        create(&mut graph, Waiter::Goal(other), "shared");
        assert_eq!(graph.leave(Waiter::Goal(top)), []);
        assert_eq!(graph.leave(Waiter::Goal(other)), [shared]);
    }

    #[test]
    fn a_goal_that_ended_is_not_tried_again_for_the_same_request() {
        let mut graph = Graph::default();
        let goal = create(&mut graph, CLIENT, "a");
        graph.finish(goal, &failure());
        assert_eq!(
            graph.require(CLIENT, &key("a"), REQUEST),
            Required::Ended(goal, failure())
        );
        graph.forget_request(REQUEST);
        assert!(matches!(
            graph.require(CLIENT, &key("a"), RequestId(1)),
            Required::Created(_)
        ));
    }

    #[test]
    fn a_second_ending_reaches_nobody() {
        let mut graph = Graph::default();
        let goal = create(&mut graph, CLIENT, "a");
        assert_eq!(graph.finish(goal, &failure()).len(), 1);
        assert_eq!(graph.finish(goal, &failure()), []);
    }
}
