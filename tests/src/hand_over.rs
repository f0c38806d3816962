//! A lock that goes from one process to another: how long the second takes to notice.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use crate::debris;
use crate::invocation::{Invocation, Running};
use crate::measure;
use crate::store::TestStore;

/// A builder that counts its runs, says that it is there, and waits to be let go.
pub const PATIENT: &str = "echo run >> /signals/runs; echo here > /signals/ready; read go < /signals/go; echo made > $out";

/// A program that builds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Ours.
    Goalctl,
    /// Nix 2.8.
    GenuineNix,
}

impl Program {
    /// Prepares a build whose builder sees `/signals`.
    #[must_use]
    pub fn build(self, store: &TestStore, drv: &str) -> Invocation {
        match self {
            Self::Goalctl => store.build_with_signals(drv),
            Self::GenuineNix => store.realise_with_signals(drv),
        }
    }
}

/// Makes what [`PATIENT`] builders need.
pub fn prepare(store: &TestStore) {
    store.signals().pipes(&["ready", "go"]);
    store.signals().tally("runs");
}

/// Has `holder` build a derivation whose builder is [`PATIENT`], and goalctl build it as well, which
/// waits for the lock whose name has `lock` in it; fails unless the builder runs once, both get its
/// outputs, and nothing is left.
#[track_caller]
pub fn assert_built_once(store: &TestStore, drv: &str, holder: Program, lock: &str) {
    let first = holder.build(store, drv).start();
    store.signals().await_word("ready");
    let mut second = store.build_with_signals(drv).start();
    let message = await_lock_message(&mut second, drv);
    assert!(message.contains(lock), "{message}");
    assert!(message.contains(&first.pid().to_string()), "{message}");
    let open = store.signals().release("go");
    let outputs = [first, second].map(|build| {
        let finished = build.finish();
        finished.expect_status(0);
        finished.output_lines()
    });
    drop(open);
    assert_eq!(outputs[0], outputs[1]);
    assert_eq!(store.signals().count("runs"), 1, "after {holder:?}");
    debris::assert_clean(store);
}

/// Has `holder` build a new derivation while `waiter` waits for its lock; returns the time from the
/// moment when the holder gives the lock back until the waiter has returned.
#[must_use]
pub fn measure(store: &TestStore, holder: Program, waiter: Program, idx: usize) -> Duration {
    let drv = store.script(&format!("hand-over-{idx}"), PATIENT);
    let lock = format!("{}.lock", store.output_of(&drv, "out"));
    let first = holder.build(store, &drv).start();
    store.signals().await_word("ready");
    let mut second = waiter.build(store, &drv).start();
    await_lock_message(&mut second, &drv);

    let deletion = Deletion::watch(store, &lock);
    let open = store.signals().release("go");
    let released_at = deletion.await_deletion();
    let second = second.finish();
    second.expect_status(0);
    first.finish().expect_status(0);
    drop(open);
    second.ended_at.saturating_duration_since(released_at)
}

/// Waits until a program says that somebody has the lock of a derivation's output; returns what it
/// says.
pub fn await_lock_message(waiter: &mut Running, drv: &str) -> String {
    let (_, name) = drv.split_once('-').expect("a store path has a name");
    let name = name.trim_end_matches(".drv");
    waiter
        .await_line(|line| line.contains("lock") && line.contains(name))
        .text()
}

/// Notices when a lock file is unlinked, the last thing that its holder does before it lets go.
#[derive(Debug)]
struct Deletion {
    events: OwnedFd,
    name: String,
}

impl Deletion {
    fn watch(store: &TestStore, lock: &str) -> Self {
        let events = inotify::init(inotify::CreateFlags::NONBLOCK).expect("inotify is there");
        inotify::add_watch(&events, store.objects(), inotify::WatchFlags::DELETE)
            .expect("the store can be watched");
        let name = lock.rsplit('/').next().expect("a lock has a name");
        Self {
            events,
            name: name.to_owned(),
        }
    }

    /// Waits for the deletion; returns when it was seen.
    fn await_deletion(&self) -> Instant {
        let timeout = Timespec::try_from(Duration::from_mins(1)).expect("a minute is short");
        loop {
            let mut descriptors = [PollFd::new(&self.events, PollFlags::IN)];
            let n_ready =
                poll(&mut descriptors, Some(&timeout)).expect("a descriptor can be polled");
            let seen_at = measure::now();
            assert!(n_ready > 0, "{} was never unlinked", self.name);
            let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(&self.events, &mut buffer);
            while let Ok(event) = reader.next() {
                let is_lock = event
                    .file_name()
                    .is_some_and(|name| name.to_bytes() == self.name.as_bytes());
                if is_lock {
                    return seen_at;
                }
            }
        }
    }
}
