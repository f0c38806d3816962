//! Transcripts: a list of events in, `event → state [effects]` out.

use std::sync::Arc;

use super::*;
use crate::goal::{GoalId, RequestId};
use crate::slots::{Rank, Slots};

fn path(name: &str) -> StorePath {
    format!("{}-{name}", "0".repeat(32))
        .parse()
        .expect("a valid path")
}

fn facts() -> Facts {
    Facts {
        path: path("a"),
        printed_path: "/nix/store/a".to_owned(),
        mode: PathMode::Ensure,
        caches: Caches::Asked,
        after_failure: AfterFailure::Stop,
        outage: Outage::Waited,
    }
}

fn slot(kind: SlotKind) -> SlotId {
    let mut slots = Slots::new(kind, 1);
    let request = RequestId(0);
    slots.open_request(request, 1);
    let rank = Rank {
        priority: 0,
        name: String::new(),
        goal: GoalId(0),
    };
    slots.ask(request, rank);
    slots.next_grant().expect("a free slot").slot
}

fn granted(kind: SlotKind) -> Event {
    Event::SlotGranted(slot(kind))
}

fn invalid() -> Event {
    Event::ValidityQueried { is_valid: false }
}

fn valid() -> Event {
    Event::ValidityQueried { is_valid: true }
}

fn offers(references: &[&[&str]]) -> Event {
    let offer = |names: &&[&str]| Candidate {
        references: names.iter().map(|name| path(name)).collect(),
    };
    Event::OffersQueried {
        offers: references.iter().map(offer).collect(),
    }
}

fn ending(name: &str, status: Status) -> InputEnding {
    let outcome = if status.is_success() {
        Outcome::success(status, BTreeMap::new())
    } else {
        Outcome::failure(status, format!("{name} failed"))
    };
    InputEnding {
        path: path(name),
        outcome: Arc::new(outcome),
    }
}

fn pending(n_pending: usize) -> Event {
    Event::InputsRequired {
        n_pending,
        ended: vec![],
    }
}

fn finished(name: &str, status: Status) -> Event {
    Event::InputFinished(ending(name, status))
}

fn fetch_failed(message: &str) -> Event {
    Event::FetchFailed {
        message: message.to_owned(),
    }
}

/// Runs a machine and prints for each event what it is told to do.
fn transcript(facts: &Facts, events: impl IntoIterator<Item = Event>) -> String {
    let mut state = State::default();
    let mut lines = String::new();
    for event in events {
        let said = word(&format!("{event:?}"));
        let (next, effects) = state.step(facts, event);
        let effects: Vec<String> = effects.iter().map(print).collect();
        state = next;
        let line = format!("{said} -> {} [{}]\n", name(&state), effects.join(", "));
        lines.push_str(&line);
    }
    lines
}

fn name(state: &State) -> String {
    if let State::Obtaining(obtaining) = state {
        let references = word(&format!("{:?}", obtaining.references));
        let archive = word(&format!("{:?}", obtaining.archive));
        return format!("{references} + {archive}");
    }
    word(&format!("{state:?}"))
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "most effects are told by their name alone"
)]
fn print(effect: &Effect) -> String {
    match effect {
        Effect::Finish(outcome) => format!("Finish({:?}: {})", outcome.status, outcome.message),
        Effect::RequestSlot(_) | Effect::Fetch(_) | Effect::ReportBadOffer(_) => {
            format!("{effect:?}")
        }
        Effect::ReleaseSlot(slot) => format!("ReleaseSlot({:?})", slot.kind()),
        Effect::Warn(message) => format!("Warn({message})"),
        effect => word(&format!("{effect:?}")),
    }
}

fn word(text: &str) -> String {
    text.chars()
        .take_while(|letter| letter.is_alphanumeric())
        .collect()
}

/// The events that lead from nothing to an archive that comes.
fn up_to_fetching() -> Vec<Event> {
    vec![
        Event::Started,
        invalid(),
        offers(&[&[]]),
        granted(SlotKind::Fetch),
        Event::Locked,
        invalid(),
    ]
}

#[test]
fn a_path_that_is_only_ensured_is_not_read() {
    insta::assert_snapshot!(transcript(&facts(), [Event::Started, valid()]));
}

#[test]
fn a_path_that_a_cache_has_is_fetched_and_registered() {
    let rest = [Event::Restored, Event::Registered];
    insta::assert_snapshot!(transcript(
        &facts(),
        up_to_fetching().into_iter().chain(rest)
    ));
}

#[test]
fn a_path_that_nobody_has_is_not_a_failure() {
    let events = [Event::Started, invalid(), offers(&[])];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn without_caches_nobody_is_asked() {
    let facts = Facts {
        caches: Caches::NotAsked,
        ..facts()
    };
    insta::assert_snapshot!(transcript(&facts, [Event::Started, invalid()]));
}

#[test]
fn an_archive_comes_while_references_are_on_their_way_and_becomes_valid_after_them() {
    let events = [
        Event::Started,
        invalid(),
        offers(&[&["b", "c"]]),
        pending(2),
        granted(SlotKind::EarlyFetch),
        granted(SlotKind::Fetch),
        Event::Locked,
        invalid(),
        finished("b", Status::Substituted),
        Event::Restored,
        finished("c", Status::AlreadyValid),
        Event::Registered,
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn whose_references_are_there_needs_no_permit() {
    let events = [
        Event::Started,
        invalid(),
        offers(&[&["b"]]),
        pending(1),
        finished("b", Status::Substituted),
        granted(SlotKind::EarlyFetch),
        granted(SlotKind::Fetch),
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_reference_that_nobody_has_is_an_incomplete_closure() {
    let mut events = up_to_fetching();
    events.splice(
        2..3,
        [
            offers(&[&["b", "c"]]),
            pending(2),
            granted(SlotKind::EarlyFetch),
        ],
    );
    events.push(finished("b", Status::NoSubstituters));
    events.push(finished("c", Status::Substituted));
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_reference_that_fails_ends_the_goal_and_leaves_the_others() {
    let events = [
        Event::Started,
        invalid(),
        offers(&[&["b", "c"]]),
        Event::InputsRequired {
            n_pending: 1,
            ended: vec![ending("b", Status::TransientFailure)],
        },
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_bad_offer_is_told_and_the_next_one_taken_with_the_same_slot_and_lock() {
    let mut events = up_to_fetching();
    events[2] = offers(&[&[], &[]]);
    events.extend([fetch_failed("wrong hash"), Event::Restored]);
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn the_next_offer_may_refer_to_something_else() {
    let events = [
        Event::Started,
        invalid(),
        offers(&[&["b"], &["c"]]),
        pending(1),
        granted(SlotKind::EarlyFetch),
        granted(SlotKind::Fetch),
        Event::Locked,
        invalid(),
        fetch_failed("wrong hash"),
        // Told before the scheduler heard that nobody waits for it.
        finished("b", Status::Substituted),
        pending(1),
        Event::Restored,
        finished("c", Status::Substituted),
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn an_answer_about_the_references_of_an_offer_that_was_given_up_says_nothing() {
    let events = [
        Event::Started,
        invalid(),
        offers(&[&["b"], &["c"], &["d"], &[]]),
        pending(1),
        granted(SlotKind::EarlyFetch),
        granted(SlotKind::Fetch),
        Event::Locked,
        invalid(),
        fetch_failed("wrong hash"),
        fetch_failed("wrong hash"),
        // About the second offer, and then about the third.
        pending(1),
        pending(1),
        fetch_failed("wrong hash"),
        finished("d", Status::NoSubstituters),
        Event::Restored,
    ];
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn when_the_last_offer_is_bad_the_goal_fails_and_says_all_that_was_wrong() {
    let mut events = up_to_fetching();
    events[2] = offers(&[&[], &[]]);
    events.extend([fetch_failed("wrong hash"), fetch_failed("hung up")]);
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_taken_lock_costs_the_slot_and_what_its_holder_brings_is_not_fetched_again() {
    let mut events = up_to_fetching();
    let holder = LockOwner::Process(7);
    events.splice(4.., [Event::LockBusy { holder }, Event::LockFreed, valid()]);
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_lock_holder_that_failed_leaves_the_fetching_to_us() {
    let mut events = up_to_fetching();
    let holder = LockOwner::Goal;
    events.splice(
        4..,
        [
            Event::LockBusy { holder },
            Event::LockFreed,
            invalid(),
            granted(SlotKind::Fetch),
        ],
    );
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_cancelled_fetch_gives_everything_back() {
    let mut events = up_to_fetching();
    events.extend([Event::Cancelled, Event::Restored]);
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_goal_cancelled_while_it_registers_ends_as_it_would() {
    let mut events = up_to_fetching();
    events.extend([Event::Restored, Event::Cancelled, Event::Registered]);
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn paths_that_wait_for_one_another_fail() {
    let mut events = up_to_fetching();
    events.splice(
        2..3,
        [offers(&[&["b"]]), pending(1), granted(SlotKind::EarlyFetch)],
    );
    events.push(Event::Restored);
    events.push(Event::InputsAreCyclic {
        message: "a -> b -> a".to_owned(),
    });
    insta::assert_snapshot!(transcript(&facts(), events));
}

#[test]
fn a_corrupt_path_is_replaced_and_without_an_offer_the_reason_is_told() {
    let facts = Facts {
        mode: PathMode::Repair,
        ..facts()
    };
    let corrupt = || Event::ContentsQueried {
        obstacle: Some("it has no deriver".to_owned()),
    };
    let replaced = [
        Event::Started,
        corrupt(),
        offers(&[&[]]),
        granted(SlotKind::Fetch),
        Event::Locked,
        corrupt(),
        Event::Restored,
        Event::Registered,
    ];
    let good = [Event::Started, Event::ContentsQueried { obstacle: None }];
    let nobody = [Event::Started, corrupt(), offers(&[])];
    insta::assert_snapshot!(
        [
            transcript(&facts, replaced),
            transcript(&facts, good),
            transcript(&facts, nobody)
        ]
        .join("\n")
    );
}
