//! Transcripts of goals that ask caches (SPEC B1, B3, B4).

use super::*;

fn asking(substitution: Substitution) -> Facts {
    Facts {
        substitution,
        ..facts()
    }
}

fn ended(endings: &[(&str, Status)]) -> Event {
    Event::InputsRequired {
        n_pending: 0,
        ended: endings
            .iter()
            .map(|(name, status)| input(name, *status))
            .collect(),
    }
}

#[test]
fn outputs_that_a_cache_has_are_not_built() {
    let events = [
        started(),
        loaded(),
        invalid(&["dev", "out"]),
        Event::InputsRequired {
            n_pending: 1,
            ended: vec![input("a-dev", Status::Substituted)],
        },
        Event::InputFinished(input("a-out", Status::Substituted)),
    ];
    insta::assert_snapshot!(transcript(&asking(Substitution::Strict), events));
}

#[test]
fn outputs_that_nobody_has_are_built() {
    let events = [
        started(),
        loaded(),
        invalid(&["dev", "out"]),
        ended(&[
            ("a-dev", Status::NoSubstituters),
            ("a-out", Status::IncompleteClosure),
        ]),
        no_inputs(),
    ];
    insta::assert_snapshot!(transcript(&asking(Substitution::Strict), events));
}

#[test]
fn a_download_that_fails_fails_the_goal_and_leaves_the_others() {
    let events = [
        started(),
        loaded(),
        invalid(&["dev", "out"]),
        Event::InputsRequired {
            n_pending: 1,
            ended: vec![input("a-dev", Status::TransientFailure)],
        },
    ];
    insta::assert_snapshot!(transcript(&asking(Substitution::Strict), events));
}

#[test]
fn with_fallback_a_download_that_fails_is_a_build() {
    let events = [
        started(),
        loaded(),
        invalid(&["dev", "out"]),
        Event::InputsRequired {
            n_pending: 1,
            ended: vec![input("a-dev", Status::TransientFailure)],
        },
        Event::InputFinished(input("a-out", Status::Substituted)),
        no_inputs(),
    ];
    insta::assert_snapshot!(transcript(&asking(Substitution::WithFallback), events));
}

#[test]
fn an_incomplete_closure_is_asked_for_once_more_when_the_inputs_are_there() {
    let events = [
        started(),
        loaded(),
        invalid(&["dev", "out"]),
        ended(&[
            ("a-dev", Status::IncompleteClosure),
            ("a-out", Status::IncompleteClosure),
        ]),
        no_inputs(),
        ended(&[
            ("a-dev", Status::Substituted),
            ("a-out", Status::Substituted),
        ]),
    ];
    insta::assert_snapshot!(transcript(&asking(Substitution::Strict), events));
}

#[test]
fn an_incomplete_closure_is_asked_for_once_more_and_not_twice() {
    let events = [
        started(),
        loaded(),
        invalid(&["out"]),
        ended(&[("a-out", Status::IncompleteClosure)]),
        no_inputs(),
        ended(&[("a-out", Status::IncompleteClosure)]),
        Event::ClosureQueried,
    ];
    insta::assert_snapshot!(transcript(&asking(Substitution::Strict), events));
}

#[test]
fn without_slots_a_goal_still_asks_the_caches() {
    let facts = Facts {
        local_builds: LocalBuilds::Forbidden,
        ..asking(Substitution::Strict)
    };
    let events = [
        started(),
        loaded(),
        invalid(&["out"]),
        ended(&[("a-out", Status::NoSubstituters)]),
    ];
    insta::assert_snapshot!(transcript(&facts, events));
}

#[test]
fn a_derivation_that_allows_no_substitutes_is_built() {
    let recipe = Recipe {
        allows_substitutes: false,
        ..recipe()
    };
    let events = [
        started(),
        Event::DerivationLoaded {
            recipe: Arc::new(recipe),
        },
        invalid(&["out"]),
    ];
    insta::assert_snapshot!(transcript(&asking(Substitution::Strict), events));
}

#[test]
fn an_output_that_is_wanted_while_others_are_fetched_is_looked_at_afterwards() {
    let wanted = |name| WantedOutputs::These([output(name)].into());
    let events = [
        Event::Started {
            wanted: wanted("out"),
        },
        loaded(),
        invalid(&["dev", "out"]),
        Event::InputsRequired {
            n_pending: 1,
            ended: vec![],
        },
        Event::Widened {
            wanted: wanted("dev"),
        },
        Event::InputFinished(input("a-out", Status::Substituted)),
        invalid(&["dev"]),
    ];
    insta::assert_snapshot!(transcript(&asking(Substitution::Strict), events));
}

#[test]
fn a_derivation_that_is_not_in_the_store_is_fetched() {
    let events = [
        started(),
        Event::DerivationMissing,
        Event::InputsRequired {
            n_pending: 1,
            ended: vec![],
        },
        Event::InputFinished(input("a.drv", Status::Substituted)),
        loaded(),
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_derivation_that_nobody_has_is_an_error_that_names_it() {
    let events = [
        started(),
        Event::DerivationMissing,
        ended(&[("a.drv", Status::NoSubstituters)]),
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn repaired_outputs_come_from_a_cache_and_then_their_closure_is_looked_at() {
    let facts = Facts {
        mode: BuildMode::Repair,
        ..asking(Substitution::Strict)
    };
    let events = [
        started(),
        loaded(),
        invalid(&["out"]),
        ended(&[("a-out", Status::Substituted)]),
    ];
    insta::assert_snapshot!(transcript(&facts, events));
}
