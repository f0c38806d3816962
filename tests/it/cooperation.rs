//! Several processes on one store: goalctl beside goalctl, and goalctl beside genuine Nix.

use std::time::{Duration, Instant};

use it::graph::LayeredGraph;
use it::{Invocation, Profile, Running, TestStore, debris, measure, requirement};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

/// A builder that counts its runs, says that it is there, and waits to be let go.
const PATIENT: &str = "echo run >> /signals/runs; echo here > /signals/ready; read go < /signals/go; echo made > $out";

/// Which program holds the lock that goalctl wants.
#[derive(Debug, Clone, Copy)]
enum Holder {
    Goalctl,
    GenuineNix,
}

impl Holder {
    fn build(self, store: &TestStore, drv: &str) -> Invocation {
        match self {
            Self::Goalctl => store.build_with_signals(drv),
            Self::GenuineNix => store.realise_with_signals(drv),
        }
    }
}

#[test]
fn two_processes_that_want_one_derivation_run_its_builder_once() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        for holder in [Holder::Goalctl, Holder::GenuineNix] {
            let store = TestStore::of(profile);
            store.signals().pipes(&["ready", "go"]);
            store.signals().tally("runs");
            let drv = store.script("wanted-twice", PATIENT);

            let first = holder.build(&store, &drv).start();
            store.signals().await_word("ready");
            let mut second = store.build_with_signals(&drv).start();
            await_lock_message(&mut second, &drv, first.pid());
            let _open = store.signals().release("go");

            let outputs = [first, second].map(|build| {
                let finished = build.finish();
                finished.expect_status(0);
                finished.output_lines()
            });
            assert_eq!(outputs[0], outputs[1]);
            assert_eq!(store.signals().count("runs"), 1, "after {holder:?}");
            debris::assert_clean(&store);
        }
    }
}

#[test]
fn a_lock_that_goalctl_gives_back_wakes_its_waiter_at_once() {
    assert_hand_over(Holder::Goalctl);
}

#[test]
fn a_lock_that_genuine_nix_gives_back_wakes_its_waiter_at_once() {
    assert_hand_over(Holder::GenuineNix);
}

#[test]
fn two_goalctls_on_one_graph_build_each_derivation_once() {
    assert_built_once_by_both(Holder::Goalctl);
}

#[test]
fn goalctl_and_genuine_nix_on_one_graph_build_each_derivation_once() {
    assert_built_once_by_both(Holder::GenuineNix);
}

#[test]
fn a_process_that_waits_for_a_lock_can_be_interrupted_and_disturbs_nobody() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["ready", "go"]);
    store.signals().tally("runs");
    let drv = store.script("wanted-twice", PATIENT);
    let first = store.build_with_signals(&drv).start();
    store.signals().await_word("ready");
    let mut second = store.build_with_signals(&drv).start();
    await_lock_message(&mut second, &drv, first.pid());

    let interrupted_at = measure::now();
    second.signal(nix::sys::signal::Signal::SIGINT);
    let second = second.finish();
    second.expect_status(130);
    assert!(second.ended_at - interrupted_at < Duration::from_secs(2));

    let _open = store.signals().release("go");
    first.finish().expect_status(0);
    assert_eq!(store.signals().count("runs"), 1);
    debris::assert_clean(&store);
}

#[test]
fn two_derivations_with_one_fixed_output_build_it_once_in_one_process() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().tally("runs");
    let drvs = store.instantiate(
        r#"
        let fixed = way: mk "same" "echo run >> /signals/runs; printf x > $out" {
          inherit way; outputHashAlgo = "sha256";
          outputHash = builtins.hashString "sha256" "x";
        };
        in map fixed [ "one" "two" "three" ]
        "#,
    );
    assert_eq!(drvs.len(), 3);
    let finished = store
        .build_with_signals(&drvs[0])
        .args(&drvs[1..])
        .succeed();
    assert_eq!(finished.output_lines().len(), 3);
    assert_eq!(store.signals().count("runs"), 1);
    debris::assert_clean(&store);
}

/// Ten times in a row: from the moment when the holder gives the lock back until the waiting
/// goalctl has returned.
fn assert_hand_over(holder: Holder) {
    const N_TIMES: usize = 10;
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["ready", "go"]);
    store.signals().tally("runs");
    let times: Vec<Duration> = (0..N_TIMES)
        .map(|idx| {
            let drv = store.script(&format!("hand-over-{idx}"), PATIENT);
            let lock = format!("{}.lock", store.output_of(&drv, "out"));
            let first = holder.build(&store, &drv).start();
            store.signals().await_word("ready");
            let mut second = store.build_with_signals(&drv).start();
            await_lock_message(&mut second, &drv, first.pid());

            let watch = Deletion::watch(&store, &lock);
            let open = store.signals().release("go");
            let released_at = watch.await_deletion();
            let second = second.finish();
            second.expect_status(0);
            first.finish().expect_status(0);
            drop(open);
            second.ended_at.saturating_duration_since(released_at)
        })
        .collect();
    assert_eq!(store.signals().count("runs"), N_TIMES);
    debris::assert_clean(&store);

    requirement::say(&format!("from {holder:?} to goalctl: {times:?}"));
    let median = measure::median(&times);
    assert!(median <= Duration::from_millis(20), "median {median:?}");
    let longest = times.iter().max().expect("there are ten");
    assert!(*longest <= Duration::from_millis(250), "once {longest:?}");
}

/// Two programs are given the whole graph at once, in opposite order.
fn assert_built_once_by_both(other: Holder) {
    if !requirement::genuine_nix() {
        return;
    }
    let graph = LayeredGraph {
        n_layers: 5,
        width: 10,
        n_inputs: 2,
        seed: 50,
    };
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        store.signals().tally("runs");
        let drvs = store.instantiate(&graph.expression("echo $name >> /signals/runs"));
        assert_eq!(drvs.len(), 50);
        let (first, rest) = drvs.split_first().expect("there are fifty");
        let (last, others) = drvs.split_last().expect("there are fifty");

        let ours = store.build_with_signals(first).args(rest).start();
        let theirs = other.build(&store, last).args(others.iter().rev()).start();
        ours.finish().expect_status(0);
        theirs.finish().expect_status(0);

        assert_eq!(store.signals().count("runs"), 50, "{profile:?}, {other:?}");
        debris::assert_clean(&store);
        debris::assert_verifies(&store);
    }
}

/// Waits until goalctl says that somebody has the lock, and who.
fn await_lock_message(waiter: &mut Running, drv: &str, holder: u32) {
    let name = drv.rsplit('-').next().expect("a derivation has a name");
    let name = name.trim_end_matches(".drv");
    let line = waiter.await_line(|line| line.contains("lock") && line.contains(name));
    assert!(
        line.text().contains(&holder.to_string()),
        "it does not say that process {holder} has the lock: {}",
        line.text()
    );
}

/// Notices when a lock file is unlinked, the last thing its holder does before it lets go.
#[derive(Debug)]
struct Deletion {
    events: std::os::fd::OwnedFd,
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
            let n_ready = poll(
                &mut [PollFd::new(&self.events, PollFlags::IN)],
                Some(&timeout),
            )
            .expect("inotify can be polled");
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
