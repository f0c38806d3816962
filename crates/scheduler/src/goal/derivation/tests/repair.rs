//! The same of repairs, and of outputs that are hashed.

use super::*;

fn repair() -> Facts {
    Facts {
        mode: BuildMode::Repair,
        ..facts()
    }
}

fn hash() -> Facts {
    Facts {
        mode: BuildMode::Hash,
        ..facts()
    }
}

fn broken(name: &str, deriver: Option<&str>) -> BrokenPath {
    BrokenPath {
        path: path(name),
        printed_path: format!("/nix/store/{name}"),
        deriver: deriver.map(path),
    }
}

fn examined(broken: &[BrokenPath]) -> Event {
    Event::ClosureExamined {
        broken: broken.to_vec(),
    }
}

fn under_way(n_pending: usize) -> Event {
    Event::InputsRequired {
        n_pending,
        ended: vec![],
    }
}

fn only(name: &str) -> WantedOutputs {
    WantedOutputs::These(BTreeSet::from([output(name)]))
}

/// The events that lead from good outputs to two repairs below them.
fn up_to_repairs() -> Vec<Event> {
    vec![
        started(),
        loaded(),
        invalid(&[]),
        examined(&[broken("b", Some("b.drv")), broken("source", None)]),
        under_way(2),
    ]
}

#[test]
fn outputs_that_are_good_with_all_below_them_are_not_built() {
    let events = [started(), loaded(), invalid(&[]), examined(&[])];
    insta::assert_snapshot!(transcript(&repair(), events));
}

#[test]
fn a_corrupt_output_is_built_again_and_stays_until_then() {
    let mut events = up_to_building();
    events.push(ending(BuildVerdict::Exited { code: 0 }));
    events.push(Event::OutputsRegistered);
    insta::assert_snapshot!(transcript(&repair(), events));
}

#[test]
fn an_output_that_somebody_else_has_repaired_meanwhile_is_not_built() {
    let mut events = up_to_building();
    events.truncate(events.len() - 2);
    events.push(invalid(&[]));
    insta::assert_snapshot!(transcript(&repair(), events));
}

#[test]
fn what_is_broken_below_good_outputs_is_repaired_before_the_goal_ends() {
    let mut events = up_to_repairs();
    events.push(Event::InputFinished(input("b.drv", Status::Built)));
    events.push(Event::InputFinished(input("source", Status::AlreadyValid)));
    insta::assert_snapshot!(transcript(&repair(), events));
}

#[test]
fn what_cannot_be_repaired_is_named_after_the_other_repairs_have_ended() {
    let mut events = up_to_repairs();
    events.push(Event::InputFinished(input(
        "source",
        Status::NoSubstituters,
    )));
    events.push(Event::InputFinished(input("b.drv", Status::Built)));
    insta::assert_snapshot!(transcript(&repair(), events));
}

#[test]
fn a_repair_that_fails_releases_the_others() {
    let mut events = up_to_repairs();
    events.push(Event::InputFinished(input(
        "b.drv",
        Status::PermanentFailure,
    )));
    insta::assert_snapshot!(transcript(&repair(), events));
}

#[test]
fn a_wish_for_more_outputs_during_repairs_is_looked_at_afterwards() {
    let more = || Event::Widened {
        wanted: only("dev"),
    };
    let events = [
        Event::Started {
            wanted: only("out"),
        },
        loaded(),
        invalid(&["dev"]),
        more(),
        examined(&[broken("b", Some("b.drv"))]),
        more(),
        under_way(1),
        more(),
        Event::InputFinished(input("b.drv", Status::Built)),
        invalid(&["dev"]),
    ];
    insta::assert_snapshot!(transcript(&repair(), events));
}

#[test]
fn a_repair_that_nobody_wants_leaves_the_others() {
    for n_events in 3..=5 {
        let mut events = up_to_repairs();
        events.truncate(n_events);
        events.push(Event::Cancelled);
        let said = transcript(&repair(), events);
        let leaves = said.ends_with(
            "[LeaveInputs, Finish(Cancelled: building '/nix/store/a.drv' was cancelled)]\n",
        );
        // The question about the closure is answered to nobody.
        assert_eq!(leaves, n_events > 3, "{said}");
        assert!(said.contains("Finish(Cancelled"), "{said}");
    }
}

#[test]
fn only_a_single_fixed_output_is_hashed() {
    let events = [started(), loaded(), invalid(&[])];
    insta::assert_snapshot!(transcript(&hash(), events));
}

#[test]
fn an_output_is_built_to_be_hashed_though_it_is_valid_and_is_where_its_contents_say() {
    let fixed = Recipe {
        outputs: [(output("out"), path("promised"))].into(),
        is_fixed_output: true,
        ..recipe()
    };
    let mut events = up_to_building();
    events[1] = Event::DerivationLoaded {
        recipe: Arc::new(fixed),
    };
    events[2] = invalid(&[]);
    events[7] = invalid(&[]);
    // What is valid is not discarded.
    events.pop();
    events.push(ending(BuildVerdict::Exited { code: 0 }));
    events.push(Event::OutputFound {
        path: path("found"),
    });
    insta::assert_snapshot!(transcript(&hash(), events.clone()));
    let outcome = outcome(&hash(), events);
    assert_eq!(outcome.outputs, [(output("out"), path("found"))].into());
}
