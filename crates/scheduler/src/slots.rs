//! Slots: how many builders run and how many archives come at once, and who is next.
//!
//! A freed slot wakes exactly one waiter: the one of the lowest priority number, then of the first
//! name, among the requests that are below their own cap. Asking, granting, returning and
//! withdrawing cost O(log goals + requests).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;

use crate::goal::{GoalId, RequestId};

/// Names one slot while it is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId {
    kind: SlotKind,
    number: u32,
}

/// What a slot is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum SlotKind {
    /// A builder (`max-jobs`).
    #[default]
    Build,
    /// An archive that comes (`max-substitution-jobs`).
    Fetch,
    /// An archive that comes, or has come, before what it refers to is valid.
    EarlyFetch,
}

impl SlotId {
    /// Returns what the slot is for.
    #[must_use]
    pub const fn kind(self) -> SlotKind {
        self.kind
    }
}

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.number)
    }
}

/// What decides the order of waiting goals: equal inputs give an equal order (SPEC A2).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// The request's priority; lower goes first.
    pub priority: i32,
    /// The goal's name, then its path.
    pub name: String,
    /// Tells equal names apart.
    pub goal: GoalId,
}

/// A slot was given to this goal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grant {
    /// To whom.
    pub goal: GoalId,
    /// Which.
    pub slot: SlotId,
}

/// Lends slots to goals.
#[derive(Debug, Default)]
pub struct Slots {
    capacity: usize,
    lent: BTreeMap<SlotId, RequestId>,
    free: BTreeSet<SlotId>,
    requests: HashMap<RequestId, RequestShare>,
    waiting: HashMap<GoalId, (RequestId, Rank)>,
}

/// What one request has and wants.
#[derive(Debug)]
struct RequestShare {
    cap: usize,
    n_lent: usize,
    queue: BTreeSet<Rank>,
}

impl Slots {
    /// Makes `capacity` slots of one kind, all free.
    #[must_use]
    pub fn new(kind: SlotKind, capacity: usize) -> Self {
        Self {
            capacity,
            free: (0..u32::try_from(capacity).unwrap_or(u32::MAX))
                .map(|number| SlotId { kind, number })
                .collect(),
            ..Self::default()
        }
    }

    /// Returns how many slots there are.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Returns how many slots are lent.
    #[must_use]
    pub fn n_lent(&self) -> usize {
        self.lent.len()
    }

    /// Sets how many slots a request may have at once.
    pub fn open_request(&mut self, request: RequestId, cap: usize) {
        self.requests.insert(
            request,
            RequestShare {
                cap,
                n_lent: 0,
                queue: BTreeSet::new(),
            },
        );
    }

    /// Forgets a request that has no slot and no waiting goal any more. A slot of it that is still
    /// lent stays counted in the total.
    pub fn close_request(&mut self, request: RequestId) {
        if let Some(share) = self.requests.remove(&request) {
            for rank in share.queue {
                self.waiting.remove(&rank.goal);
            }
        }
    }

    /// Queues a goal for a slot. The grant, if one is possible now, comes from
    /// [`next_grant`](Self::next_grant).
    pub fn ask(&mut self, request: RequestId, rank: Rank) {
        if let Some(share) = self.requests.get_mut(&request) {
            self.waiting.insert(rank.goal, (request, rank.clone()));
            share.queue.insert(rank);
        }
    }

    /// Takes a goal out of the queue.
    pub fn withdraw(&mut self, goal: GoalId) {
        if let Some((request, rank)) = self.waiting.remove(&goal)
            && let Some(share) = self.requests.get_mut(&request)
        {
            share.queue.remove(&rank);
        }
    }

    /// Takes a slot back.
    pub fn give_back(&mut self, slot: SlotId) {
        if let Some(request) = self.lent.remove(&slot) {
            self.free.insert(slot);
            if let Some(share) = self.requests.get_mut(&request) {
                share.n_lent -= 1;
            }
        }
    }

    /// Lends a free slot to the next goal, if there are both. Call it until it returns `None` after
    /// [`ask`](Self::ask) and [`give_back`](Self::give_back).
    #[must_use]
    pub fn next_grant(&mut self) -> Option<Grant> {
        let slot = *self.free.first()?;
        let request = self
            .requests
            .iter()
            .filter(|(_, share)| share.n_lent < share.cap)
            .filter_map(|(request, share)| Some((share.queue.first()?, *request)))
            .min()
            .map(|(_, request)| request)?;
        let share = self.requests.get_mut(&request)?;
        let rank = share.queue.pop_first()?;
        share.n_lent += 1;
        self.waiting.remove(&rank.goal);
        self.free.remove(&slot);
        self.lent.insert(slot, request);
        Some(Grant {
            goal: rank.goal,
            slot,
        })
    }
}

/// How many archives may come, or wait, before what they refer to is valid. Each holds a lock, which is
/// an open file.
const N_EARLY_FETCHES: usize = 256;

/// The slots of every kind.
#[derive(Debug)]
pub struct SlotPools {
    build: Slots,
    fetch: Slots,
    early_fetch: Slots,
}

/// How many slots of each kind there are, or a request may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotCounts {
    /// For builders (`max-jobs`).
    pub n_builds: usize,
    /// For archives that come (`max-substitution-jobs`).
    pub n_fetches: usize,
}

impl SlotPools {
    /// Makes as many slots, all free.
    #[must_use]
    pub fn new(counts: SlotCounts) -> Self {
        Self {
            build: Slots::new(SlotKind::Build, counts.n_builds),
            fetch: Slots::new(SlotKind::Fetch, counts.n_fetches),
            early_fetch: Slots::new(SlotKind::EarlyFetch, N_EARLY_FETCHES),
        }
    }

    /// Returns the slots of one kind.
    #[must_use]
    pub const fn of(&self, kind: SlotKind) -> &Slots {
        match kind {
            SlotKind::Build => &self.build,
            SlotKind::Fetch => &self.fetch,
            SlotKind::EarlyFetch => &self.early_fetch,
        }
    }

    /// Returns the slots of one kind.
    pub const fn of_mut(&mut self, kind: SlotKind) -> &mut Slots {
        match kind {
            SlotKind::Build => &mut self.build,
            SlotKind::Fetch => &mut self.fetch,
            SlotKind::EarlyFetch => &mut self.early_fetch,
        }
    }

    /// Sets how many slots a request may have at once.
    pub fn open_request(&mut self, request: RequestId, caps: SlotCounts) {
        self.build.open_request(request, caps.n_builds);
        self.fetch.open_request(request, caps.n_fetches);
        self.early_fetch.open_request(request, N_EARLY_FETCHES);
    }

    /// Forgets a request that has no slot and no waiting goal any more.
    pub fn close_request(&mut self, request: RequestId) {
        for slots in [&mut self.build, &mut self.fetch, &mut self.early_fetch] {
            slots.close_request(request);
        }
    }

    /// Takes a goal out of every queue.
    pub fn withdraw(&mut self, goal: GoalId) {
        for slots in [&mut self.build, &mut self.fetch, &mut self.early_fetch] {
            slots.withdraw(goal);
        }
    }

    /// Lends a free slot of one kind to the next goal, if there are both.
    #[must_use]
    pub fn next_grant(&mut self, kind: SlotKind) -> Option<Grant> {
        self.of_mut(kind).next_grant()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUEST: RequestId = RequestId(0);

    fn rank(name: &str, goal: u32) -> Rank {
        Rank {
            priority: 0,
            name: name.to_owned(),
            goal: GoalId(goal),
        }
    }

    fn granted(slots: &mut Slots) -> Vec<u32> {
        std::iter::from_fn(|| slots.next_grant())
            .map(|grant| grant.goal.0)
            .collect()
    }

    #[test]
    fn a_freed_slot_wakes_one_waiter_and_no_more() {
        let mut slots = Slots::new(SlotKind::Build, 1);
        slots.open_request(REQUEST, 8);
        for (idx, name) in ["b", "a", "c"].into_iter().enumerate() {
            slots.ask(REQUEST, rank(name, u32::try_from(idx).unwrap_or(0)));
        }
        let first = slots.next_grant();
        assert_eq!(first.map(|grant| grant.goal), Some(GoalId(1)));
        assert_eq!(granted(&mut slots), Vec::<u32>::new());
        if let Some(grant) = first {
            slots.give_back(grant.slot);
        }
        assert_eq!(granted(&mut slots), [0]);
    }

    #[test]
    fn a_request_stays_below_its_own_cap_while_others_use_the_rest() {
        let mut slots = Slots::new(SlotKind::Build, 4);
        slots.open_request(REQUEST, 1);
        slots.open_request(RequestId(1), 8);
        for goal in 0..3 {
            slots.ask(REQUEST, rank("a", goal));
            slots.ask(RequestId(1), rank("b", 10 + goal));
        }
        assert_eq!(granted(&mut slots), [0, 10, 11, 12]);
    }

    #[test]
    fn priority_comes_before_name() {
        let mut slots = Slots::new(SlotKind::Build, 1);
        slots.open_request(REQUEST, 8);
        slots.ask(REQUEST, rank("a", 0));
        slots.ask(
            REQUEST,
            Rank {
                priority: -1,
                ..rank("z", 1)
            },
        );
        assert_eq!(granted(&mut slots), [1]);
    }

    #[test]
    fn a_withdrawn_goal_is_never_granted_a_slot() {
        let mut slots = Slots::new(SlotKind::Build, 1);
        slots.open_request(REQUEST, 8);
        slots.ask(REQUEST, rank("a", 0));
        slots.withdraw(GoalId(0));
        assert_eq!(granted(&mut slots), Vec::<u32>::new());
    }

    #[test]
    fn a_slot_given_back_twice_is_free_once() {
        let mut slots = Slots::new(SlotKind::Build, 1);
        slots.open_request(REQUEST, 8);
        slots.ask(REQUEST, rank("a", 0));
        let slot = slots.next_grant().map(|grant| grant.slot);
        for slot in slot.into_iter().chain(slot) {
            slots.give_back(slot);
        }
        assert_eq!(slots.n_lent(), 0);
    }
}
