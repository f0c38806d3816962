//! The same of derivations that are resolved, and of outputs whose paths are learnt.

use std::collections::BTreeMap;

use super::*;

fn with_inputs() -> Event {
    Event::DerivationLoaded {
        recipe: Arc::new(Recipe {
            resolution: Resolution::WithInputs,
            ..floating()
        }),
    }
}

fn floating() -> Recipe {
    Recipe {
        outputs: BTreeMap::new(),
        unplaced: ["out", "dev"].map(output).into(),
        ..recipe()
    }
}

fn resolved() -> Event {
    Event::Resolved {
        drv_path: path("resolved.drv"),
    }
}

/// The path that an output has in the end.
fn paths(names: &[&str]) -> BTreeMap<OutputName, StorePath> {
    let placed = |name: &&str| (output(name), path(&format!("placed-{name}")));
    names.iter().map(placed).collect()
}

fn ended(status: Status) -> InputEnding {
    let mut ending = input("resolved.drv", status);
    if status.is_success() {
        let mut outcome = Outcome::clone(&ending.outcome);
        outcome.outputs = paths(&["out", "dev"]);
        ending.outcome = Arc::new(outcome);
    }
    ending
}

fn adopted() -> Event {
    Event::RealisationsAdopted {
        outputs: paths(&["out"]),
    }
}

fn required(ending: Option<InputEnding>) -> Event {
    Event::InputsRequired {
        n_pending: usize::from(ending.is_none()),
        ended: ending.into_iter().collect(),
    }
}

/// The events that lead to a goal that waits for what it was resolved to.
fn up_to_resolved() -> Vec<Event> {
    vec![
        Event::Started {
            wanted: WantedOutputs::These([output("out")].into()),
        },
        with_inputs(),
        invalid(&["out", "dev"]),
        no_inputs(),
        resolved(),
        required(None),
    ]
}

/// Returns how a goal ends that gets these events.
fn outcome(facts: &Facts, events: Vec<Event>) -> Outcome {
    let mut state = State::default();
    let mut effects = Vec::new();
    for event in events {
        (state, effects) = state.step(facts, event);
    }
    match effects.pop() {
        Some(Effect::Finish(outcome)) => *outcome,
        other => panic!("it does not end: {other:?}"),
    }
}

#[test]
fn a_derivation_is_resolved_when_its_inputs_are_there_and_another_goal_does_the_rest() {
    let mut events = up_to_resolved();
    events.extend([Event::InputFinished(ended(Status::Built)), adopted()]);
    insta::assert_snapshot!(transcript(&facts(), events.clone()));
    let built = outcome(&facts(), events);
    assert_eq!(built.outputs, paths(&["out"]));
    assert_eq!(built.resolved_to, Some(path("resolved.drv")));
    assert!(!built.has_all_outputs());
}

#[test]
fn what_was_resolved_to_something_valid_says_so_and_has_its_hook_run() {
    let mut events = up_to_resolved();
    events.pop();
    events.extend([required(Some(ended(Status::AlreadyValid))), adopted()]);
    let end = outcome(&facts(), events.clone());
    assert_eq!(end.status, Status::ResolvesToAlreadyValid);
    let facts = Facts {
        post_build_hook: PostBuildHook::Runs,
        ..facts()
    };
    events.push(Event::HookEnded { failure: None });
    insta::assert_snapshot!(transcript(&facts, events));
}

#[test]
fn what_failed_as_something_else_names_that_and_has_its_bits() {
    let mut events = up_to_resolved();
    events.push(Event::InputFinished(ended(Status::PermanentFailure)));
    insta::assert_snapshot!(transcript(&facts(), events.clone()));
    let failed = outcome(&facts(), events);
    assert_eq!(failed.failure_bits.exit_status(), 100);
    assert_eq!(failed.root_causes, [path("resolved.drv")]);
}

#[test]
fn an_input_that_fails_leaves_nothing_to_be_resolved() {
    let mut events = up_to_resolved();
    events.truncate(3);
    events.push(required(Some(input("in.drv", Status::PermanentFailure))));
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_goal_that_is_cancelled_while_it_is_resolved_leaves_what_it_waits_for() {
    let cancelled_after = |n_events| {
        let mut events = up_to_resolved();
        events.push(Event::InputFinished(ended(Status::Built)));
        events.truncate(n_events);
        events.push(Event::Cancelled);
        // What was on its way reaches nobody.
        events.push(adopted());
        transcript(&facts(), events)
    };
    let told: Vec<String> = (4..=7).map(cancelled_after).collect();
    insta::assert_snapshot!(told.join("\n"));
}

#[test]
fn the_paths_of_floating_outputs_are_learnt_when_they_are_valid_or_registered() {
    let loaded = Event::DerivationLoaded {
        recipe: Arc::new(floating()),
    };
    let learnt = Event::PathsLearnt {
        outputs: paths(&["out", "dev"]),
    };
    let valid = outcome(
        &facts(),
        vec![started(), loaded.clone(), learnt.clone(), invalid(&[])],
    );
    assert_eq!(valid.status, Status::AlreadyValid);
    assert_eq!(valid.outputs, paths(&["out", "dev"]));

    // Without a path an output is not valid, whatever else is.
    let mut events = up_to_building();
    events[1] = loaded;
    events[2] = invalid(&["out", "dev"]);
    events.extend([
        ending(BuildVerdict::Exited { code: 0 }),
        learnt,
        Event::OutputsRegistered,
    ]);
    let built = outcome(&facts(), events);
    assert_eq!(built.status, Status::Built);
    assert_eq!(built.outputs, paths(&["out", "dev"]));
    assert!(built.has_all_outputs());
}
