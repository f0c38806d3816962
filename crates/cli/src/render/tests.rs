//! The same events in all three languages.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use sandbox::LogLines;
use scheduler::{
    BuildMode, EventKind, GoalId, GoalKey, LockOwner, Outcome, RequestId, Round, Status, WaitReason,
};
use serde_json::json;
use store_model::StorePath;

use super::*;

const DRV: &str = "y9l3yib9djbzl56n3397rf7b63ciki14-top-1.0.drv";
const OUT: &str = "l6bcrn7136a8mxanqvnyvrzv3m9xkq6i-top-1.0";

fn path(base_name: &str) -> StorePath {
    base_name.parse().unwrap()
}

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn event(goal: u32, seconds: u64, kind: EventKind) -> Event {
    Event {
        sequence: seconds,
        at: at(seconds),
        goal: GoalId::new(goal),
        kind,
    }
}

fn created(base_name: &str) -> EventKind {
    EventKind::Created {
        key: GoalKey::Derivation(path(base_name), BuildMode::Normal),
        request: RequestId::new(0),
    }
}

fn started(pid: u32, uid: u32) -> EventKind {
    let round = Round { number: 1, of: 1 };
    EventKind::Started { pid, uid, round }
}

fn logged(text: &'static [u8]) -> EventKind {
    EventKind::Logged(LogLines::unbudgeted(Bytes::from_static(text)))
}

fn finished(outcome: Outcome) -> EventKind {
    EventKind::Finished(Arc::new(outcome))
}

fn waiting(reason: WaitReason) -> EventKind {
    EventKind::Waiting { reason }
}

fn lock() -> WaitReason {
    WaitReason::Lock {
        path: path(OUT),
        holder: LockOwner::Process(77),
    }
}

/// The plain lines of events about one derivation.
fn plain(logs: BuildLogs, kinds: Vec<EventKind>) -> String {
    let plain = Plain::new(StoreDir::default(), Style::Plain, logs);
    let mut progress = Progress::default();
    let mut text = String::new();
    for (seconds, kind) in std::iter::once(created(DRV)).chain(kinds).enumerate() {
        let event = event(1, seconds as u64, kind);
        text += &plain.lines(&event, &progress);
        progress.update(&event);
    }
    text
}

#[test]
fn a_pipe_gets_a_line_for_each_thing_that_happens() {
    let outcome = Outcome::failure(Status::PermanentFailure, "builder failed;\n> \u{1b}[2Jlast");
    let text = plain(
        BuildLogs::Printed,
        vec![
            waiting(WaitReason::Inputs { n_pending: 2 }),
            waiting(lock()),
            started(1, 2),
            logged(b"one\ntwo\x1b]0;title\x07\n\x1b[31mred"),
            finished(outcome),
        ],
    );
    assert_eq!(
        text,
        format!(
            "waiting for the lock on '/nix/store/{OUT}', held by process 77\n\
             building '/nix/store/{DRV}'...\n\
             top-1.0> one\n\
             top-1.0> two\n\
             top-1.0> red\n\
             error: builder failed;\n> last\n"
        )
    );
}

#[test]
fn what_went_well_or_failed_for_another_is_not_an_error() {
    for status in [Status::Built, Status::AlreadyValid] {
        let outcome = Outcome::success(status, BTreeMap::new());
        assert_eq!(
            plain(BuildLogs::Hidden, vec![logged(b"x"), finished(outcome)]),
            ""
        );
    }
    for status in [Status::DependencyFailed, Status::Cancelled] {
        let outcome = Outcome::failure(status, "told elsewhere");
        assert_eq!(plain(BuildLogs::Printed, vec![finished(outcome)]), "");
    }
    let silent = Outcome::failure(Status::Crashed, "");
    assert_eq!(
        plain(BuildLogs::Printed, vec![finished(silent)]),
        format!("error: '/nix/store/{DRV}' failed\n")
    );
}

#[test]
fn the_live_view_counts_and_says_what_waits_for_what() {
    let mut progress = Progress::default();
    let name = |idx: u32| format!("{}-goal-{idx}.drv", &DRV[..32]);
    for idx in 0..9 {
        progress.update(&event(idx, 0, created(&name(idx))));
    }
    let built = Outcome::success(Status::Built, BTreeMap::new());
    let failed = Outcome::failure(Status::TimedOut, "late");
    for (goal, seconds, kind) in [
        (0, 1, finished(built)),
        (1, 1, finished(failed)),
        (2, 10, started(1, 1)),
        (2, 11, logged(b"first\nlast\x1b[2J")),
        (3, 5, started(2, 2)),
        (4, 1, waiting(WaitReason::Slot)),
        (5, 1, waiting(WaitReason::Inputs { n_pending: 1 })),
        (6, 1, waiting(lock())),
        (7, 1, waiting(WaitReason::Registration)),
        (8, 1, waiting(WaitReason::BuildUser)),
    ] {
        progress.update(&event(goal, seconds, kind));
    }
    assert_eq!(
        progress.lines(at(75), 12, Style::Plain),
        [
            "1 built, 2 running, 5 waiting, 1 failed",
            "  goal-3 1m10s ",
            "  goal-2 1m05s last",
            "  1 being registered; 1 waiting for a build slot; 1 waiting for a build user; \
             1 waiting for inputs; \
             goal-6 waiting for a lock held by process 77",
        ]
    );
    let narrow = progress.lines(at(75), 3, Style::Plain);
    assert_eq!(narrow.len(), 3);
    assert!(narrow[2].contains("1 more running"), "{narrow:?}");
}

#[test]
fn json_lines_name_the_goal_and_carry_everything() {
    let dir = StoreDir::default();
    let goal = format!("/nix/store/{DRV}");
    let mut outcome = Outcome::failure(Status::HashMismatch, "other contents");
    outcome.kept_build_dir = Some(PathBuf::from("/kept"));
    for (kind, expected) in [
        (
            created(DRV),
            json!({"event": "created", "mode": "normal", "request": "0"}),
        ),
        (
            waiting(lock()),
            json!({"event": "waiting", "for": "lock", "lock": format!("/nix/store/{OUT}"),
                   "holder": "process", "holderPid": 77}),
        ),
        (
            started(5, 6),
            json!({"event": "started", "pid": 5, "uid": 6, "round": 1, "rounds": 1}),
        ),
        (
            logged(b"a\n\xff"),
            json!({"event": "logged", "lines": ["a", "\u{fffd}"]}),
        ),
        (
            finished(outcome),
            json!({"event": "finished", "success": false, "status": "HashMismatch",
                   "statusNumber": 15, "outputs": {}, "rounds": 0, "message": "other contents",
                   "keptBuildDir": "/kept"}),
        ),
    ] {
        let line = json::event(&event(3, 2, kind), Some(&path(DRV)), &dir);
        let mut expected = expected;
        for (key, value) in [
            ("sequence", json!(2)),
            ("atMs", json!(2000)),
            ("goalId", json!("3")),
            ("goal", json!(goal)),
        ] {
            expected[key] = value;
        }
        assert_eq!(line, expected);
    }
}
