//! Builds that are interrupted: by a signal that can be answered, and by one that can't.

use std::time::Duration;

use it::processes::{self, Process, Watched};
use it::snapshot::Snapshot;
use it::{Profile, Running, TestStore, debris, measure, requirement};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long a killed build may take to be gone.
const AT_ONCE: Duration = Duration::from_secs(2);

/// A builder that leaves processes of several kinds behind and waits for ever, except in a store
/// whose `/signals/again` exists: there it succeeds.
const STUCK: &str = r"
if [ -e /signals/again ]; then echo made > $out; exit 0; fi
mkdir half-made; echo half > $out
setsid sleep 1000 &
(trap '' TERM INT HUP; sleep 1000) &
echo here > /signals/ready
sleep 1000
";

/// A builder whose output takes minutes to hash and no room on the disk, except in a store whose
/// `/signals/again` exists.
const HUGE: &str = r"
if [ -e /signals/again ]; then echo made > $out; exit 0; fi
dd if=/dev/zero of=$out bs=1 count=1 seek=68719476735
";

/// How far into a file a program must be before a test believes that it has begun with it.
const WELL_INTO_BYTES: u64 = 1 << 20;

/// How long a program may take to begin.
const PATIENCE: Duration = Duration::from_mins(1);

/// A store in which a builder is stuck.
#[derive(Debug)]
struct Stuck {
    store: TestStore,
    drv: String,
    goalctl: Running,
}

impl Stuck {
    fn start(profile: Profile) -> Self {
        let store = TestStore::of(profile);
        store.signals().pipes(&["ready"]);
        let drv = store.script("stuck", STUCK);
        let goalctl = store.build_with_signals(&drv).start();
        store.signals().await_word("ready");
        Self {
            store,
            drv,
            goalctl,
        }
    }

    /// Checks that the same command now succeeds, and that nothing is left of either run.
    fn assert_recovers(store: &TestStore, drv: &str) {
        std::fs::write(store.signals().dir().join("again"), "").expect("the folder is ours");
        store.build_with_signals(drv).succeed();
        assert!(is_valid(store, &store.output_of(drv, "out")));
        debris::assert_clean(store);
        debris::assert_verifies(store);
    }
}

#[test]
fn an_interrupt_kills_the_builder_and_leaves_nothing() {
    assert_signal_ends_all(Signal::SIGINT, 130);
}

#[test]
fn a_termination_kills_the_builder_and_leaves_nothing() {
    assert_signal_ends_all(Signal::SIGTERM, 143);
}

#[test]
fn a_signal_ends_the_hashing_of_a_huge_output_and_leaves_nothing() {
    if !requirement::genuine_nix() {
        return;
    }
    for (profile, (signal, status)) in Profile::all()
        .into_iter()
        .zip([(Signal::SIGINT, 130), (Signal::SIGTERM, 143)])
    {
        let store = TestStore::of(profile);
        let drv = store.script("huge", HUGE);
        let goalctl = store.build_with_signals(&drv).start();
        // Builders write as processes of their own: this is goalctl, reading.
        processes::await_progress(goalctl.pid(), &store.objects(), WELL_INTO_BYTES, PATIENCE);
        let signalled_at = measure::now();
        goalctl.signal(signal);
        let finished = goalctl.finish();
        finished.expect_status(status);
        let took = finished.ended_at - signalled_at;
        assert!(took < AT_ONCE, "it took {took:?} to end");
        debris::assert_clean(&store);
        assert!(!is_valid(&store, &store.output_of(&drv, "out")));
        Stuck::assert_recovers(&store, &drv);
    }
}

#[test]
fn an_interrupt_ends_the_adding_of_a_large_file_and_leaves_nothing() {
    let store = TestStore::new();
    let source = store.dir().join("large");
    let file = std::fs::File::create(&source).expect("a fresh file can be made");
    file.set_len(4 << 30).expect("a sparse file takes no room");
    let goalctl = store.goalctl(["add"]).arg(&source).start();
    processes::await_progress(goalctl.pid(), store.dir(), WELL_INTO_BYTES, PATIENCE);
    let signalled_at = measure::now();
    goalctl.signal(Signal::SIGINT);
    let finished = goalctl.finish();
    finished.expect_status(130);
    let took = finished.ended_at - signalled_at;
    assert!(took < AT_ONCE, "it took {took:?} to end");
    debris::assert_clean(&store);
}

#[test]
fn kill_9_of_goalctl_takes_the_builder_with_it_and_the_next_start_cleans_up() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let Stuck {
            store,
            drv,
            goalctl,
        } = Stuck::start(profile);
        goalctl.signal(Signal::SIGKILL);
        let finished = goalctl.finish();
        assert_eq!(finished.code(), 128 + 9);
        processes::await_none_touching(store.dir(), AT_ONCE);
        assert!(processes::mounts_below(store.dir()).is_empty());
        assert!(!is_valid(&store, &store.output_of(&drv, "out")));
        Stuck::assert_recovers(&store, &drv);
    }
}

#[test]
fn kill_9_of_the_launcher_fails_the_build_and_leaves_nothing() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let n_launchers = launchers(&Stuck::start(profile).goalctl).len();
        assert!(n_launchers > 0, "the builder runs without a launcher");
        // The stage outside the namespaces, process 1 inside, and any other.
        for idx in 0..n_launchers {
            let Stuck {
                store,
                drv,
                goalctl,
            } = Stuck::start(profile);
            let launcher = launchers(&goalctl).swap_remove(idx);
            kill_9(&launcher);
            let finished = goalctl.finish();
            finished.expect_status(100).expect_error(&drv);
            finished.expect_error("signal 9");
            debris::assert_clean(&store);
            assert!(!is_valid(&store, &store.output_of(&drv, "out")));
            Stuck::assert_recovers(&store, &drv);
        }
    }
}

#[test]
fn a_builder_that_kills_itself_is_reported_with_its_signal() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drv = store.script("suicidal", "kill -9 $$");
    let finished = store.goalctl(["build", &drv]).run();
    finished.expect_status(100).expect_error("signal 9");
    debris::assert_clean(&store);
}

#[test]
fn an_interrupted_build_keeps_its_directory_when_asked_to() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["ready"]);
    let drv = store.script("stuck", STUCK);
    let goalctl = store.build_with_signals(&drv).arg("-K").start();
    store.signals().await_word("ready");
    goalctl.signal(Signal::SIGINT);
    let finished = goalctl.finish();
    finished.expect_status(130);
    let kept = kept_directory(&finished.error());
    assert!(kept.is_dir(), "{} is not there", kept.display());
    assert!(processes::touching(store.dir()).is_empty());
    assert!(!store.real(&store.output_of(&drv, "out")).exists());
}

#[test]
fn kill_9_at_every_step_of_registering_leaves_a_store_that_goes_on() {
    if !requirement::genuine_nix() || !requirement::programs(&["strace"]) {
        return;
    }
    let strace = requirement::find_program("strace").expect("it was found just now");
    // What makes changes last: renames, syncs, unlinks, and the database's writes.
    for calls in [
        "rename,renameat,renameat2",
        "fsync,fdatasync,syncfs",
        "unlink,unlinkat,rmdir",
        "pwrite64",
    ] {
        let mut n_killed = 0;
        for nth in 1..200 {
            let store = TestStore::new();
            let drv = store.instantiate_one(
                "mk \"two-outputs\" \"mkdir $out; echo lib > $out/lib; echo $out > $dev\" \
                 { outputs = [ \"out\" \"dev\" ]; }",
            );
            let mut wrapper = store.profile().command(&strace);
            wrapper.args(["-f", "-q", "-o", "/dev/null", "-e"]);
            wrapper.arg(format!("trace={calls}"));
            wrapper.arg("-e");
            wrapper.arg(format!("inject={calls}:signal=KILL:when={nth}"));
            let finished = store.goalctl(["build", &drv]).under(wrapper).run();
            if finished.code() == 0 {
                break;
            }
            requirement::say(&format!("killed at {calls}, number {nth}"));
            n_killed += 1;
            processes::await_none_touching(store.dir(), AT_ONCE);
            assert_all_or_nothing(&store, &drv);
            debris::assert_sound(&store);
            store.goalctl(["build", &drv]).succeed();
            debris::assert_clean(&store);
            debris::assert_verifies(&store);
        }
        assert!(n_killed > 0, "nothing was ever killed at {calls}");
    }
}

fn assert_signal_ends_all(signal: Signal, status: i32) {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let Stuck {
            store,
            drv,
            goalctl,
        } = Stuck::start(profile);
        let signalled_at = measure::now();
        goalctl.signal(signal);
        let finished = goalctl.finish();
        finished.expect_status(status);
        let took = finished.ended_at - signalled_at;
        assert!(took < AT_ONCE, "it took {took:?} to end");
        debris::assert_clean(&store);
        assert!(!is_valid(&store, &store.output_of(&drv, "out")));
        Stuck::assert_recovers(&store, &drv);
    }
}

/// Returns the launchers that run for a goalctl.
fn launchers(goalctl: &Running) -> Vec<Process> {
    processes::descendants(goalctl.pid())
        .into_iter()
        // Run from memory, it is named after that; the kernel keeps 15 bytes.
        .filter(|process| process.name.contains("sandbox-i"))
        .collect()
}

/// Kills a process and waits until it is dead.
fn kill_9(process: &Process) {
    let watched = Watched::new(process.pid).expect("it runs");
    let pid = i32::try_from(process.pid).expect("a process id fits");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it can be killed");
    assert!(watched.await_end(AT_ONCE), "it survived");
}

fn is_valid(store: &TestStore, path: &str) -> bool {
    Snapshot::of(store).objects.contains_key(path)
}

fn assert_all_or_nothing(store: &TestStore, drv: &str) {
    let validity = ["out", "dev"].map(|name| is_valid(store, &store.output_of(drv, name)));
    assert_eq!(validity[0], validity[1], "one output without the other");
}

/// Returns the folder that a message says was kept.
fn kept_directory(message: &str) -> std::path::PathBuf {
    let line = message
        .lines()
        .find(|line| line.contains("kept") || line.contains("keeping"))
        .unwrap_or_else(|| panic!("nothing says what was kept:\n{message}"));
    let quoted = line
        .split('\'')
        .skip(1)
        .step_by(2)
        .find(|word| word.starts_with('/') && !word.starts_with("/nix/store"));
    quoted
        .unwrap_or_else(|| panic!("no folder is named: {line}"))
        .into()
}
