//! Transcripts: a list of events in, `state + event → state [effects]` out.

mod repair;
mod resolution;
mod rounds;
mod substitutes;

use std::time::SystemTime;

use sandbox::SetupFault;

use super::*;
use crate::events::LockOwner;
use crate::goal::recipe::Resolution;
use crate::goal::{GoalId, Status};
use crate::slots::{Rank, SlotKind, Slots};

fn path(name: &str) -> StorePath {
    format!("{}-{name}", "0".repeat(32))
        .parse()
        .expect("a valid path")
}

fn facts() -> Facts {
    Facts {
        drv_path: path("a.drv"),
        printed_path: "/nix/store/a.drv".to_owned(),
        after_failure: AfterFailure::Stop,
        keep_failed: KeepFailed::No,
        post_build_hook: PostBuildHook::None,
        local_builds: LocalBuilds::Allowed,
        mode: BuildMode::Normal,
        n_rounds: 1,
        on_difference: OnDifference::Fail,
        substitution: Substitution::Off,
    }
}

fn recipe() -> Recipe {
    let outputs = ["out", "dev"].map(|name| (output(name), path(&format!("a-{name}"))));
    Recipe {
        outputs: outputs.into_iter().collect(),
        unplaced: BTreeSet::new(),
        inputs: vec![],
        sources: BTreeSet::new(),
        is_fixed_output: false,
        is_builtin: false,
        allows_substitutes: true,
        resolution: Resolution::AsWritten,
        obstacle: None,
    }
}

fn output(name: &str) -> OutputName {
    name.parse().expect("a valid output name")
}

fn slot() -> SlotId {
    let mut slots = Slots::new(SlotKind::Build, 1);
    let request = crate::goal::RequestId(0);
    slots.open_request(request, 1);
    slots.ask(
        request,
        Rank {
            priority: 0,
            name: String::new(),
            goal: GoalId(0),
        },
    );
    slots.next_grant().expect("a free slot").slot
}

fn ending(verdict: BuildVerdict) -> Event {
    Event::BuildExited(Box::new(BuilderEnding {
        verdict,
        disk: Disk::Roomy,
        times: BuildTimes {
            started_at: SystemTime::UNIX_EPOCH,
            stopped_at: SystemTime::UNIX_EPOCH,
        },
        log_tail: vec!["one".to_owned(), "two".to_owned()],
    }))
}

fn input(name: &str, status: Status) -> InputEnding {
    let outcome = if status.is_success() {
        Outcome::success(status, std::collections::BTreeMap::new())
    } else {
        Outcome::failure(status, format!("{name} failed"))
    };
    InputEnding {
        path: path(name),
        outcome: Arc::new(outcome),
    }
}

fn started() -> Event {
    Event::Started {
        wanted: WantedOutputs::All,
    }
}

fn loaded() -> Event {
    Event::DerivationLoaded {
        recipe: Arc::new(recipe()),
    }
}

fn invalid(names: &[&str]) -> Event {
    Event::OutputsQueried {
        invalid: names.iter().map(|name| output(name)).collect(),
    }
}

fn no_inputs() -> Event {
    Event::InputsRequired {
        n_pending: 0,
        ended: vec![],
    }
}

/// The events that lead from nothing to a running builder.
fn up_to_building() -> Vec<Event> {
    vec![
        started(),
        loaded(),
        invalid(&["out"]),
        no_inputs(),
        Event::ClosureQueried,
        Event::SlotGranted(slot()),
        Event::Locked,
        invalid(&["out"]),
        Event::InvalidPathsDiscarded,
    ]
}

/// Runs a machine and prints one line for each event.
fn transcript(facts: &Facts, events: impl IntoIterator<Item = Event>) -> String {
    let mut state = State::default();
    let mut lines = String::new();
    for event in events {
        let before = name(&state);
        let said = word(&format!("{event:?}"));
        let (next, effects) = state.step(facts, event);
        state = next;
        let effects: Vec<String> = effects.iter().map(describe).collect();
        let line = format!(
            "{before} + {said} → {} [{}]\n",
            name(&state),
            effects.join(", ")
        );
        lines.push_str(&line);
    }
    lines
}

/// Runs a machine to its end.
fn outcome(facts: &Facts, events: impl IntoIterator<Item = Event>) -> Outcome {
    let mut state = State::default();
    let mut last = None;
    for event in events {
        let (next, effects) = state.step(facts, event);
        state = next;
        last = effects.into_iter().next_back();
    }
    let Some(Effect::Finish(outcome)) = last else {
        panic!("{last:?}");
    };
    *outcome
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "only a live goal has a phase to name"
)]
fn name(state: &State) -> String {
    match state {
        State::Live { phase, .. } => word(&format!("{phase:?}")),
        state => word(&format!("{state:?}")),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "most effects are told by their name alone"
)]
fn describe(effect: &Effect) -> String {
    match effect {
        Effect::Finish(outcome) => format!("Finish({:?}: {})", outcome.status, outcome.message),
        Effect::DisposeBuild(disposition) => format!("DisposeBuild({disposition:?})"),
        Effect::Announce(reason) => format!("Announce({})", word(&format!("{reason:?}"))),
        Effect::RegisterOutputs(names) => format!("RegisterOutputs({names:?})"),
        Effect::CompareOutputs(names, comparison) => {
            format!("CompareOutputs({names:?}, {comparison:?})")
        }
        Effect::StartBuild(round) if round.of > 1 => {
            format!("StartBuild({}/{})", round.number, round.of)
        }
        Effect::RequireRepairs(broken) => {
            let names = broken.iter().map(|it| it.path.name());
            format!("RequireRepairs({})", names.collect::<Vec<_>>().join(", "))
        }
        Effect::Warn(message) => format!("Warn({message})"),
        effect => word(&format!("{effect:?}")),
    }
}

fn word(debug: &str) -> String {
    let end = debug.find(|letter: char| !letter.is_alphanumeric());
    debug[..end.unwrap_or(debug.len())].to_owned()
}

#[test]
fn a_build_that_succeeds_gives_its_slot_back_before_it_registers() {
    let mut events = up_to_building();
    events.push(ending(BuildVerdict::Exited { code: 0 }));
    events.push(Event::OutputsRegistered);
    insta::assert_snapshot!(transcript(&facts(), events));
}

/// A goal with a hook, and the events that lead to that.
fn up_to_the_hook() -> (Facts, Vec<Event>) {
    let facts = Facts {
        post_build_hook: PostBuildHook::Runs,
        ..facts()
    };
    let mut events = up_to_building();
    events.push(ending(BuildVerdict::Exited { code: 0 }));
    events.push(Event::OutputsRegistered);
    (facts, events)
}

#[test]
fn a_hook_runs_when_slot_and_locks_are_free_and_its_failure_is_the_goals() {
    let (facts, mut events) = up_to_the_hook();
    let failure = Some("the hook failed".to_owned());
    events.push(Event::HookEnded { failure });
    insta::assert_snapshot!(transcript(&facts, events));
}

#[test]
fn a_hook_that_nobody_waits_for_is_killed_and_may_have_been_quicker() {
    let (facts, mut events) = up_to_the_hook();
    events.push(Event::Cancelled);
    let quicker = events
        .iter()
        .cloned()
        .chain([Event::HookEnded { failure: None }]);
    let quicker = transcript(&facts, quicker);
    let failure = Some("killed".to_owned());
    events.push(Event::HookEnded { failure });
    insta::assert_snapshot!(quicker + &transcript(&facts, events));
}

#[test]
fn valid_outputs_end_the_goal_without_inputs_or_slot() {
    let events = [started(), loaded(), invalid(&[])];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn an_output_that_nobody_wants_need_not_be_valid() {
    let only_out = WantedOutputs::These(BTreeSet::from([output("out")]));
    let events = [
        Event::Started { wanted: only_out },
        loaded(),
        invalid(&["dev"]),
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_wish_for_more_outputs_counts_while_their_validity_is_unknown() {
    let only = |name| WantedOutputs::These(BTreeSet::from([output(name)]));
    let events = [
        Event::Started {
            wanted: only("out"),
        },
        Event::Widened {
            wanted: only("dev"),
        },
        loaded(),
        invalid(&["dev"]),
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_wanted_output_that_does_not_exist_is_named() {
    let bogus = WantedOutputs::These(BTreeSet::from([output("bogus")]));
    let events = [Event::Started { wanted: bogus }, loaded()];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_build_whose_input_fails_never_asks_for_a_slot() {
    let events = [
        started(),
        loaded(),
        invalid(&["out"]),
        Event::InputsRequired {
            n_pending: 2,
            ended: vec![],
        },
        Event::InputFinished(input("b.drv", Status::PermanentFailure)),
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn with_keep_going_all_inputs_end_before_the_goal_fails() {
    let facts = Facts {
        after_failure: AfterFailure::KeepGoing,
        ..facts()
    };
    let events = [
        started(),
        loaded(),
        invalid(&["out"]),
        Event::InputsRequired {
            n_pending: 1,
            ended: vec![input("b.drv", Status::TimedOut)],
        },
        Event::InputFinished(input("c.drv", Status::Built)),
    ];
    insta::assert_snapshot!(transcript(&facts, events));
}

#[test]
fn a_missing_source_says_so_after_the_other_inputs_have_ended() {
    let events = [
        started(),
        loaded(),
        invalid(&["out"]),
        Event::InputsRequired {
            n_pending: 1,
            ended: vec![input("source", Status::NoSubstituters)],
        },
        Event::InputFinished(input("c.drv", Status::Built)),
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_taken_lock_costs_the_slot_and_is_waited_for_without_it() {
    let events = [
        started(),
        loaded(),
        invalid(&["out"]),
        no_inputs(),
        Event::ClosureQueried,
        Event::SlotGranted(slot()),
        Event::LockBusy {
            path: path("a-out"),
            holder: LockOwner::Process(7),
        },
        Event::LockFreed,
        invalid(&[]),
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_lock_holder_that_failed_leaves_the_build_to_us() {
    let events = [
        started(),
        loaded(),
        invalid(&["out"]),
        no_inputs(),
        Event::ClosureQueried,
        Event::SlotGranted(slot()),
        Event::LockBusy {
            path: path("a-out"),
            holder: LockOwner::Unknown,
        },
        Event::LockFreed,
        invalid(&["out"]),
        Event::SlotGranted(slot()),
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_cancelled_build_is_killed_before_its_slot_is_given_back() {
    let mut events = up_to_building();
    events.push(Event::Cancelled);
    events.push(ending(BuildVerdict::Cancelled));
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_goal_cancelled_while_it_registers_waits_until_the_registry_has_given_up() {
    let mut events = up_to_building();
    events.push(ending(BuildVerdict::Exited { code: 0 }));
    events.push(Event::Cancelled);
    events.push(Event::RegistrationCancelled);
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn outputs_that_became_valid_before_the_registry_gave_up_are_built() {
    let mut events = up_to_building();
    events.push(ending(BuildVerdict::Exited { code: 0 }));
    events.push(Event::Cancelled);
    events.push(Event::OutputsRegistered);
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_registration_that_was_given_up_keeps_the_build_directory_if_told_so() {
    let facts = Facts {
        keep_failed: KeepFailed::Yes,
        ..facts()
    };
    let mut events = up_to_building();
    events.push(ending(BuildVerdict::Exited { code: 0 }));
    events.push(Event::Cancelled);
    events.push(Event::RegistrationCancelled);
    events.push(Event::BuildKept {
        path: Some("/nix/var/nix/builds/a".into()),
    });
    insta::assert_snapshot!(transcript(&facts, events));
}

#[test]
fn a_slot_granted_to_a_goal_that_was_cancelled_meanwhile_changes_nothing() {
    let events = [
        started(),
        loaded(),
        invalid(&["out"]),
        no_inputs(),
        Event::ClosureQueried,
        Event::Cancelled,
        Event::SlotGranted(slot()),
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_failed_build_quotes_its_log_and_keeps_its_directory_if_told_so() {
    let facts = Facts {
        keep_failed: KeepFailed::Yes,
        ..facts()
    };
    let mut events = up_to_building();
    events.push(ending(BuildVerdict::Exited { code: 3 }));
    events.push(Event::BuildKept {
        path: Some("/nix/var/nix/builds/a".into()),
    });
    insta::assert_snapshot!(transcript(&facts, events));
}

#[test]
fn refused_outputs_fail_the_goal_after_its_slot_is_free() {
    let mut events = up_to_building();
    events.push(ending(BuildVerdict::Exited { code: 0 }));
    events.push(Event::OutputsRefused {
        status: Status::OutputRejected,
        message: "no".to_owned(),
    });
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn without_local_builds_only_the_goal_that_would_build_fails() {
    let facts = Facts {
        local_builds: LocalBuilds::Forbidden,
        ..facts()
    };
    insta::assert_snapshot!(transcript(&facts, [started(), loaded(), invalid(&["out"])]));
    insta::assert_snapshot!(transcript(&facts, [started(), loaded(), invalid(&[])]));
}

#[test]
fn a_service_that_fails_ends_the_goal_and_gives_everything_back() {
    let failed = || Event::ServiceFailed {
        message: "disk on fire".to_owned(),
    };
    for n_events in 0..=9 {
        let mut events: Vec<Event> = up_to_building().into_iter().take(n_events).collect();
        events.push(failed());
        let said = transcript(&facts(), events);
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains("Finish(MiscFailure: disk on fire)"), "{said}");
        if n_events >= 6 {
            assert!(last.contains("ReleaseSlot"), "{said}");
            assert!(last.contains("ReleaseLocks"), "{said}");
        }
    }
}

#[test]
fn a_derivation_that_asks_for_what_it_cannot_have_is_rejected_before_it_asks_for_a_slot() {
    let rejected = Event::SurroundingsRefused {
        status: Status::InputRejected,
        message: "not an input".to_owned(),
    };
    let required = Event::InputsRequired {
        n_pending: 0,
        ended: vec![],
    };
    let said = transcript(
        &facts(),
        [started(), loaded(), invalid(&["out"]), required, rejected],
    );
    let last = said.lines().last().unwrap_or_default();
    assert!(last.contains("Finish(InputRejected: "), "{said}");
    assert!(last.contains("not an input"), "{said}");
    assert!(!said.contains("RequestSlot"), "{said}");
}

#[test]
fn every_verdict_has_the_status_that_the_exit_status_is_made_of() {
    use std::time::Duration;
    let verdicts = [
        (BuildVerdict::Exited { code: 1 }, 100),
        (BuildVerdict::Signalled { signal: 9 }, 100),
        (
            BuildVerdict::TimedOut {
                after: Duration::from_secs(2),
            },
            101,
        ),
        (
            BuildVerdict::Silent {
                after: Duration::from_secs(2),
            },
            101,
        ),
        (BuildVerdict::LogLimitExceeded { limit_bytes: 9 }, 1),
        (
            BuildVerdict::SetupFailed {
                message: "no".to_owned(),
                fault: SetupFault::Lasting,
            },
            100,
        ),
        (
            BuildVerdict::SetupFailed {
                message: "not now".to_owned(),
                fault: SetupFault::Passing,
            },
            1,
        ),
        (
            BuildVerdict::SetupFailed {
                message: "not here".to_owned(),
                fault: SetupFault::Refused,
            },
            1,
        ),
        (BuildVerdict::Cancelled, 1),
    ];
    for (verdict, exit_status) in verdicts {
        let mut events = up_to_building();
        events.push(ending(verdict.clone()));
        let mut state = State::default();
        let mut bits = None;
        for event in events {
            let (next, effects) = state.step(&facts(), event);
            state = next;
            for effect in effects {
                if let Effect::Finish(outcome) = effect {
                    bits = Some(outcome.failure_bits);
                }
            }
        }
        let bits = bits.expect("the goal ends");
        assert_eq!(bits.exit_status(), exit_status, "{verdict:?}");
    }
}
