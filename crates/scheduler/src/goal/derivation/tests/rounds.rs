//! The same of checks and of rounds.

use super::*;

fn check() -> Facts {
    Facts {
        mode: BuildMode::Check,
        ..facts()
    }
}

fn three_rounds(on_difference: OnDifference) -> Facts {
    Facts {
        n_rounds: 3,
        on_difference,
        ..facts()
    }
}

fn succeeded() -> Event {
    ending(BuildVerdict::Exited { code: 0 })
}

fn the_same() -> Event {
    Event::OutputsCompared { difference: None }
}

fn differs(shown: bool) -> Event {
    let pair = Shown {
        earlier: "/nix/store/a-out.check".into(),
        later: "/nix/store/a-out".into(),
    };
    Event::OutputsCompared {
        difference: Some(Box::new(OutputsDiffer {
            message: "out differs".to_owned(),
            shown: shown.then_some(pair).into_iter().collect(),
        })),
    }
}

fn hook_ended() -> Event {
    Event::DiffHookEnded {
        report: "1c1".to_owned(),
    }
}

/// The events that lead from nothing to a running builder of a check.
fn up_to_checking() -> Vec<Event> {
    vec![
        started(),
        loaded(),
        invalid(&[]),
        no_inputs(),
        Event::ClosureQueried,
        Event::SlotGranted(slot()),
        Event::Locked,
        invalid(&[]),
    ]
}

#[test]
fn a_check_builds_what_is_valid_and_compares_all_of_it() {
    let events = [up_to_checking(), vec![succeeded(), the_same()]].concat();
    insta::assert_snapshot!(transcript(&check(), events));
}

#[test]
fn what_is_not_valid_as_a_whole_is_not_checked() {
    let events = [started(), loaded(), invalid(&["dev"])];
    insta::assert_snapshot!(transcript(&check(), events));
    let mut events = up_to_checking();
    events.pop();
    events.push(invalid(&["dev"]));
    insta::assert_snapshot!(transcript(&check(), events));
}

#[test]
fn a_check_that_differs_fails_after_the_hook_has_seen_it() {
    let events = [
        up_to_checking(),
        vec![succeeded(), differs(true), hook_ended()],
    ];
    insta::assert_snapshot!(transcript(&check(), events.concat()));
    let facts = Facts {
        keep_failed: KeepFailed::Yes,
        ..check()
    };
    let events = [up_to_checking(), vec![succeeded(), differs(false)]];
    insta::assert_snapshot!(transcript(&facts, events.concat()));
}

#[test]
fn each_round_gives_its_slot_back_and_keeps_the_locks_and_the_last_one_is_registered() {
    let mut events = up_to_building();
    for _ in 0..2 {
        events.extend([succeeded(), the_same(), Event::SlotGranted(slot())]);
    }
    events.extend([succeeded(), the_same(), Event::OutputsRegistered]);
    let facts = three_rounds(OnDifference::Fail);
    insta::assert_snapshot!(transcript(&facts, events));
}

#[test]
fn a_round_that_differs_ends_the_rounds() {
    let second = [succeeded(), the_same(), Event::SlotGranted(slot())];
    let mut events = [up_to_building(), second.to_vec()].concat();
    events.extend([succeeded(), differs(true), hook_ended()]);
    let facts = three_rounds(OnDifference::Fail);
    insta::assert_snapshot!(transcript(&facts, events.clone()));
    events.insert(events.len() - 1, Event::OutputsRegistered);
    let facts = three_rounds(OnDifference::Tell);
    insta::assert_snapshot!(transcript(&facts, events));
}

#[test]
fn fixed_outputs_and_checks_are_built_once() {
    let fixed = Recipe {
        is_fixed_output: true,
        ..recipe()
    };
    let mut events = up_to_building();
    events[1] = Event::DerivationLoaded {
        recipe: Arc::new(fixed),
    };
    events.extend([succeeded(), Event::OutputsRegistered]);
    let facts = three_rounds(OnDifference::Fail);
    let said = transcript(&facts, events);
    assert!(said.ends_with("Finish(Built: )]\n"), "{said}");
    let facts = Facts {
        mode: BuildMode::Check,
        ..facts
    };
    let events = [up_to_checking(), vec![succeeded(), the_same()]].concat();
    let said = transcript(&facts, events);
    assert!(said.ends_with("Finish(Built: )]\n"), "{said}");
}

#[test]
fn a_goal_cancelled_between_its_rounds_gives_everything_back() {
    let mut events = up_to_building();
    events.extend([succeeded(), the_same(), Event::Cancelled]);
    let facts = three_rounds(OnDifference::Fail);
    insta::assert_snapshot!(transcript(&facts, events.clone()));
    let outcome = outcome(&facts, events);
    assert_eq!(outcome.n_rounds, 1, "the second one was not made");
    let mut events = up_to_building();
    events.extend([succeeded(), Event::Cancelled, the_same()]);
    insta::assert_snapshot!(transcript(&facts, events));
    let mut events = up_to_checking();
    events.extend([succeeded(), differs(true), Event::Cancelled, hook_ended()]);
    insta::assert_snapshot!(transcript(&check(), events));
}
