//! What `--json` tells, and in which order.

use std::collections::BTreeSet;

use it::event_stream::{Event, events, position};
use it::graph::LayeredGraph;
use it::snapshot::Snapshot;
use it::{Finished, TestStore, debris, requirement};

#[test]
fn every_goal_is_created_once_and_finished_once_and_starts_after_its_inputs() {
    if !requirement::genuine_nix() {
        return;
    }
    let graph = LayeredGraph {
        n_layers: 4,
        width: 5,
        n_inputs: 2,
        seed: 9,
    };
    let store = TestStore::new();
    let drvs = store.instantiate(&graph.expression("echo I am $name"));
    let finished = build(&store, &drvs, &["-j", "3"]);
    finished.expect_status(0);
    let events = events(&finished);
    assert_consistent(&events);

    let objects = Snapshot::of(&store).objects;
    for drv in &drvs {
        let created = position(&events, "created", drv);
        let started = position(&events, "started", drv);
        let ended = position(&events, "finished", drv);
        assert!(created < started && started < ended, "{drv}");
        assert_eq!(events[ended].value["status"], "Built");
        for input in objects[drv]
            .references
            .iter()
            .filter(|path| drvs.contains(path))
        {
            assert!(position(&events, "finished", input) < started, "{input}");
        }
        assert_eq!(logged(&events, drv), [format!("I am {}", name_of(drv))]);
    }
    assert_slots_respected(&events, 3);
    debris::assert_clean(&store);
}

#[test]
fn a_goal_that_has_nothing_to_do_is_created_and_finished() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drv = store.script("plain", "echo plain > $out");
    store.goalctl(["build", &drv]).succeed();
    let finished = build(&store, std::slice::from_ref(&drv), &[]);
    let events = events(&finished);
    assert_consistent(&events);
    let ended = position(&events, "finished", &drv);
    assert_eq!(events[ended].value["status"], "AlreadyValid");
    assert!(events.iter().all(|event| event.kind != "started"));
}

#[test]
fn what_needs_a_failed_goal_names_it_and_what_does_not_is_built_when_going_on() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drvs = store.instantiate(
        r#"
        let
          bad = mk "bad" "echo oh no; exit 7" { };
          above = mk "above" "echo $bad > $out" { inherit bad; };
          top = mk "top" "echo $above > $out" { inherit above; };
        in [ bad above top (mk "good" "echo good > $out" { }) ]
        "#,
    );
    let finished = build(&store, &drvs[1..], &["-k", "-j", "1"]);
    finished.expect_status(100);
    let events = events(&finished);
    assert_consistent(&events);
    let ending = |drv: &str| &events[position(&events, "finished", drv)].value;
    let [bad, above, top, good] = [&drvs[0], &drvs[1], &drvs[2], &drvs[3]];
    assert_eq!(ending(bad)["status"], "PermanentFailure");
    assert_eq!(ending(bad)["statusNumber"], 3);
    for drv in [above, top] {
        assert_eq!(ending(drv)["status"], "DependencyFailed");
        assert_eq!(ending(drv)["rootCauses"][0], bad.as_str());
        assert!(
            events
                .iter()
                .all(|event| event.goal != *drv || event.kind != "started")
        );
    }
    assert_eq!(ending(good)["status"], "Built");
    debris::assert_clean(&store);
}

#[test]
fn the_first_failure_cancels_what_runs_unless_told_to_go_on() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["ready"]);
    let drvs = store.instantiate(
        r#"
        [ (mk "stuck" "echo here > /signals/ready; exec sleep 1000" { })
          (mk "bad" "read word < /signals/ready; exit 7" { }) ]
        "#,
    );
    let finished = store
        .build_with_signals(&drvs[0])
        .args([&drvs[1], "-j", "2", "--json"])
        .run();
    finished.expect_status(100);
    let events = events(&finished);
    assert_consistent(&events);
    let ended = position(&events, "finished", &drvs[0]);
    assert_eq!(events[ended].value["status"], "Cancelled");
    debris::assert_clean(&store);
}

#[test]
fn one_slot_is_given_to_waiting_goals_in_the_order_of_their_names() {
    if !requirement::genuine_nix() {
        return;
    }
    let expression = "builtins.genList (n: mk \"goal-${toString n}\" \"echo x > $out\" { }) 12";
    let store = TestStore::new();
    let mut drvs = store.instantiate(expression);
    // The order of asking is not the order of names.
    drvs.reverse();
    let finished = build(&store, &drvs, &["-j", "1"]);
    let order: Vec<String> = events(&finished)
        .into_iter()
        .filter(|event| event.kind == "started")
        .map(|event| name_of(&event.goal).to_owned())
        .collect();
    assert_eq!(order.len(), 12);
    // Whoever is ready first takes the free slot; by the time it comes back all others wait.
    assert!(order[1..].is_sorted(), "{order:#?}");
}

fn build(store: &TestStore, drvs: &[String], options: &[&str]) -> Finished {
    store
        .goalctl(["build", "--json"])
        .args(options)
        .args(drvs)
        .run()
}

/// Fails unless the events are numbered without a gap, never go back in time, and each goal is
/// created first, finished last, and both once.
#[track_caller]
fn assert_consistent(events: &[Event]) {
    assert!(!events.is_empty());
    for (idx, event) in events.iter().enumerate() {
        assert_eq!(event.sequence, idx as u64, "{}", event.value);
    }
    let goals: BTreeSet<&str> = events.iter().map(|event| event.goal.as_str()).collect();
    for goal in goals {
        let own: Vec<&Event> = events.iter().filter(|event| event.goal == goal).collect();
        let kinds: Vec<&str> = own.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds.first(), Some(&"created"), "{goal}: {kinds:?}");
        assert_eq!(kinds.last(), Some(&"finished"), "{goal}: {kinds:?}");
        for once in ["created", "finished"] {
            let n_times = kinds.iter().filter(|kind| **kind == once).count();
            assert_eq!(n_times, 1, "{goal}: {kinds:?}");
        }
        let started = kinds.iter().position(|kind| *kind == "started");
        let logged = kinds.iter().position(|kind| *kind == "logged");
        assert!(logged.is_none() || started < logged, "{goal}: {kinds:?}");
        assert!(own.is_sorted_by_key(|event| event.at_ms), "{goal}");
    }
}

/// Fails if more builders ran at once than there are slots: from `started` to the wait for
/// registration, or the end.
#[track_caller]
fn assert_slots_respected(events: &[Event], n_slots: usize) {
    let mut running = BTreeSet::new();
    let mut most = 0;
    for event in events {
        if event.kind == "started" {
            running.insert(&event.goal);
        } else if event.kind == "finished" || event.value["for"] == "registration" {
            running.remove(&event.goal);
        }
        most = most.max(running.len());
    }
    assert!(most <= n_slots, "{most} builders at once");
    assert!(most > 1, "only one builder at a time");
}

fn logged(events: &[Event], drv: &str) -> Vec<String> {
    events
        .iter()
        .filter(|event| event.kind == "logged" && event.goal == drv)
        .flat_map(|event| event.value["lines"].as_array().into_iter().flatten())
        .map(|line| line.as_str().expect("a line is text").to_owned())
        .collect()
}

/// Returns the name of a derivation of the graph.
fn name_of(drv: &str) -> &str {
    let (_, name) = drv.split_once('-').expect("a store path has a name");
    name.trim_end_matches(".drv")
}
