//! The scheduler's decisions in a pretended world: the same machines, graph and slots, with
//! builders that are numbers, a clock that jumps, and every invariant checked at every step.
//!
//! One seed replays a run. `Chaos` decides what goes wrong: builders fail, locks are taken by
//! others, services fail, requests are cancelled, and news arrives in any order that the real
//! mailboxes allow (in order for each pair of sender and receiver, in any order otherwise).

mod plan;
mod random;
mod world;

pub use plan::{Chaos, Plan, SimulatedGoal};
pub use random::Random;
pub use world::{Summary, Violation, run};

#[cfg(test)]
mod tests {
    use super::*;

    /// How many random worlds the tests visit.
    const N_WORLDS: u64 = 1_000;

    #[test]
    fn a_thousand_random_worlds_keep_every_invariant() {
        for seed in 0..N_WORLDS {
            let plan = Plan::random(seed);
            if let Err(violation) = run(&plan) {
                panic!("seed {seed}: {violation}\nreplay with Plan::random({seed}): {plan:?}");
            }
        }
    }

    #[test]
    fn a_layered_graph_without_chaos_builds_every_goal_once() {
        let plan = Plan::layered(10, 40, 3, 7);
        let summary = run(&plan).expect("no violation");
        assert_eq!(summary.n_built, 400);
        assert_eq!(summary.n_failed, 0);
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        let plan = Plan::random(42);
        assert_eq!(run(&plan), run(&plan));
    }

    #[test]
    fn list_scheduling_stays_within_its_bound_of_the_best_possible() {
        // Graham: any schedule that never idles a slot while a goal is ready takes at most
        // (2 - 1/m) times the best one, and the best one is at least work/m and the longest path.
        let plan = Plan::layered(10, 40, 3, 1);
        let summary = run(&plan).expect("no violation");
        let lower_bound = summary
            .longest_path_ms
            .max(summary.work_ms / plan.n_slots as u64);
        assert!(summary.makespan_ms <= 2 * lower_bound + 2 * 10 * 60);
    }
}
