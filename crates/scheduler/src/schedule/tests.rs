//! Requests, their goals and how they end, without a single actor.

use super::*;
use crate::goal::{BuildMode, PathMode};

const ONE_OF_EACH: SlotCounts = SlotCounts {
    n_builds: 1,
    n_fetches: 1,
};

fn key(name: &str) -> GoalKey {
    let path = format!("{}-{name}.drv", "0".repeat(32));
    GoalKey::Derivation(path.parse().expect("a valid path"), BuildMode::Normal)
}

fn these(name: &str) -> WantedOutputs {
    WantedOutputs::These([name.parse().expect("a valid name")].into())
}

fn starts(directives: &[Directive]) -> Vec<(GoalId, WantedOutputs)> {
    let started = directives.iter().filter_map(|directive| match directive {
        Directive::Start { goal, wanted, .. } => Some((*goal, wanted.clone())),
        Directive::Widen { .. }
        | Directive::TellInputs { .. }
        | Directive::TellInput { .. }
        | Directive::Grant(_)
        | Directive::Cancel(_)
        | Directive::BreakRing { .. }
        | Directive::Reply { .. }
        | Directive::Forget(_) => None,
    });
    started.collect()
}

/// Returns which goals start when a goal that was built for `out`, as itself or as what it was
/// resolved to, ends, and when another one wants its output `dev` then.
fn restarted(resolved_to: Option<StorePath>) -> Vec<(GoalId, WantedOutputs)> {
    let mut schedule = Schedule::new(ONE_OF_EACH);
    let request = schedule.open_request(AfterFailure::Stop, 0, ONE_OF_EACH);
    let wanted = vec![(key("a"), these("out")), (key("b"), WantedOutputs::All)];
    let started = starts(&schedule.submit(request, wanted));
    let [(first, _), (second, _)] = &started[..] else {
        panic!("two goals: {started:?}");
    };
    let mut outcome = Outcome::success(Status::Built, BTreeMap::new());
    outcome.resolved_to = resolved_to;
    let ended = schedule.goal_ended(*first, &these("out"), &Arc::new(outcome));
    assert_eq!(starts(&ended), []);
    let inputs = vec![(key("a"), these("dev"))];
    let again = starts(&schedule.require_inputs(*second, inputs));
    assert!(again.iter().all(|(goal, _)| goal == first), "{again:?}");
    again
}

#[test]
fn what_was_resolved_looks_again_for_an_output_that_nobody_wanted_before() {
    assert_eq!(restarted(None), []);
    let again = restarted(Some(key("resolved").path().clone()));
    assert_eq!(again.len(), 1);
    assert_eq!(again[0].1, these("dev"));
}

fn path_key(name: &str) -> GoalKey {
    let path = format!("{}-{name}", "0".repeat(32));
    GoalKey::Path(path.parse().expect("a valid path"), PathMode::Ensure)
}

/// Returns the ring that is broken, if one is.
fn broken(directives: &[Directive]) -> Option<(GoalId, Vec<String>)> {
    directives.iter().find_map(|directive| match directive {
        Directive::BreakRing { goal, ring } => {
            let names = ring.iter().map(|path| path.name().to_string());
            Some((*goal, names.collect()))
        }
        Directive::Start { .. }
        | Directive::Widen { .. }
        | Directive::TellInputs { .. }
        | Directive::TellInput { .. }
        | Directive::Grant(_)
        | Directive::Cancel(_)
        | Directive::Reply { .. }
        | Directive::Forget(_) => None,
    })
}

#[test]
fn paths_that_refer_to_one_another_are_found_once_nobody_does_anything_else() {
    let mut schedule = Schedule::new(ONE_OF_EACH);
    let request = schedule.open_request(AfterFailure::Stop, 0, ONE_OF_EACH);
    let all = || WantedOutputs::All;
    let wanted = vec![(key("top"), all()), (path_key("other"), all())];
    let ids: Vec<GoalId> = starts(&schedule.submit(request, wanted))
        .into_iter()
        .map(|(goal, _)| goal)
        .collect();
    let mut require = |goal, name| {
        let directives = schedule.require_inputs(goal, vec![(path_key(name), all())]);
        assert_eq!(broken(&directives), None);
        starts(&directives).first().map(|(goal, _)| *goal)
    };
    let a = require(ids[0], "a").expect("a new goal");
    let b = require(a, "b").expect("a new goal");
    let c = require(b, "c").expect("a new goal");
    assert_eq!(require(c, "a"), None);
    for goal in [a, b, c] {
        assert_eq!(broken(&schedule.rest(goal)), None);
    }
    // The other one may still end and bring what they wait for.
    let outcome = Arc::new(Outcome::success(Status::AlreadyValid, BTreeMap::new()));
    let ended = schedule.goal_ended(ids[1], &WantedOutputs::All, &outcome);
    let ring = ["a", "b", "c"].map(str::to_owned).to_vec();
    assert_eq!(broken(&ended), Some((a, ring)));
}

#[test]
fn what_nobody_had_is_looked_at_again_when_somebody_else_needs_it() {
    let mut schedule = Schedule::new(ONE_OF_EACH);
    let request = schedule.open_request(AfterFailure::KeepGoing, 0, ONE_OF_EACH);
    let all = || WantedOutputs::All;
    let wanted = vec![(path_key("a"), all()), (key("b"), all())];
    let started = starts(&schedule.submit(request, wanted));
    let outcome = Arc::new(Outcome::failure(Status::NoSubstituters, "no"));
    let ended = schedule.goal_ended(started[0].0, &WantedOutputs::All, &outcome);
    assert_eq!(starts(&ended), []);
    let again = schedule.require_inputs(started[1].0, vec![(path_key("a"), all())]);
    assert_eq!(starts(&again), [(started[0].0, all())]);
}

#[test]
fn what_was_widened_while_its_realisation_was_adopted_looks_again() {
    let mut schedule = Schedule::new(ONE_OF_EACH);
    let request = schedule.open_request(AfterFailure::Stop, 0, ONE_OF_EACH);
    let wanted = vec![(key("a"), these("out")), (key("a"), these("dev"))];
    let started = starts(&schedule.submit(request, wanted));
    let [(goal, _)] = &started[..] else {
        panic!("one goal: {started:?}");
    };
    let mut outcome = Outcome::success(Status::Built, BTreeMap::new());
    outcome.resolved_to = Some(key("resolved").path().clone());
    let outcome = Arc::new(outcome);
    let again = starts(&schedule.goal_ended(*goal, &these("out"), &outcome));
    let mut both = these("out");
    let _grown = both.widen(&these("dev"));
    assert_eq!(again, [(*goal, both.clone())]);
    let ended = schedule.goal_ended(*goal, &both, &outcome);
    assert_eq!(starts(&ended), []);
}
