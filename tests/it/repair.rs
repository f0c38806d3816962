//! What is corrupt or missing is made again, beside genuine Nix; and outputs that are hashed.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use it::snapshot::Snapshot;
use it::{Finished, Invocation, Pair, TestStore, damage, debris, processes};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;

/// A chain of three below the derivation that is asked for, each of which counts its builds, and a
/// source below them all.
const CHAIN: &str = "let
    source = builtins.toFile \"source\" \"text\\n\";
    low = mk \"low\" \"echo low >> /signals/runs; mkdir $out; cp ${source} $out/file;
        echo ${source} > $out/source\" { };
    middle = mk \"middle\" \"echo middle >> /signals/runs; echo ${low} > $out\" { };
    high = mk \"high\" \"echo high >> /signals/runs; mkdir $out; ln -s ${middle} $out/link\" { };
in mk \"top\" \"echo top >> /signals/runs; mkdir $out; echo ${high} > $out/file; echo x > $dev\"
    { outputs = [ \"out\" \"dev\" ]; }";

/// Makes what the test says, or fails.
const SALTED: &str =
    "read salt < /signals/salt; if [ $salt = fail ]; then exit 3; fi; echo $salt > $out";

/// How long it may take until nothing is left of a program that was killed.
const PATIENCE: Duration = Duration::from_mins(1);

/// What came of the same in both stores.
struct Both {
    nix: Finished,
    goalctl: Finished,
}

/// Makes the pairs of the tests, with builders that count their runs and find a word.
fn pairs() -> Vec<Pair> {
    let pairs = Pair::all();
    for pair in &pairs {
        pair.tally();
        pair.salt("one");
    }
    pairs
}

/// Instantiates and builds.
fn built(pair: &Pair, expression: &str) -> String {
    let drv = pair.instantiate(expression);
    pair.build(&drv);
    drv
}

fn built_script(pair: &Pair, name: &str, script: &str) -> String {
    built(pair, &format!("mk \"{name}\" ''{script}'' {{ }}"))
}

/// Has both repair a derivation's outputs.
fn repair_outputs(pair: &Pair, drv: &str) -> Both {
    // In any other place Nix 2.8 takes every path for missing when it repairs.
    let nix = pair
        .by_nix
        .nix_store_in_place(["--realise", drv, "--repair"]);
    Both {
        nix: with_signals(nix, &pair.by_nix, "").run(),
        goalctl: pair.goalctl(drv).arg("--repair").run(),
    }
}

/// Has both repair a path.
fn repair_by_both(pair: &Pair, path: &str) -> Both {
    let nix = pair.by_nix.nix_store_in_place(["--repair-path", path]);
    Both {
        nix: with_signals(nix, &pair.by_nix, "").run(),
        goalctl: repair_path(&pair.by_goalctl, path).run(),
    }
}

impl Both {
    /// Fails unless both programs ended like this.
    fn expect_status(&self, status: i32) -> &Self {
        self.nix.expect_status(status);
        self.goalctl.expect_status(status);
        self
    }

    /// Fails unless both programs said so.
    fn expect_error(&self, words: &str) -> &Self {
        self.nix.expect_error(words);
        self.goalctl.expect_error(words);
        self
    }
}

fn with_signals(invocation: Invocation, store: &TestStore, suffix: &str) -> Invocation {
    let path = format!("/signals={}{suffix}", store.signals().dir().display());
    invocation.option("sandbox-paths", path)
}

fn repair_path(store: &TestStore, path: &str) -> Invocation {
    with_signals(store.goalctl(["repair", path]), store, ":rw")
}

/// Somebody who looks at a path all the time.
struct Watcher {
    is_over: Arc<AtomicBool>,
    thread: thread::JoinHandle<BTreeSet<Option<u64>>>,
}

impl Watcher {
    fn start(path: PathBuf) -> Self {
        let is_over = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&is_over);
        let look = move || path.symlink_metadata().ok().map(|facts| facts.ino());
        let mut seen = BTreeSet::from([look()]);
        let thread = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                seen.insert(look());
            }
            seen.insert(look());
            seen
        });
        Self { is_over, thread }
    }

    /// Fails unless there always was something, and there is something else in the end.
    fn expect_exchange(self) {
        self.is_over.store(true, Ordering::Relaxed);
        let seen = self.thread.join().expect("it only looks");
        assert!(!seen.contains(&None), "it was missing: {seen:?}");
        assert_eq!(seen.len(), 2, "{seen:?}");
    }
}

fn n_runs(store: &TestStore) -> usize {
    store.signals().count("runs")
}

#[test]
fn a_corrupt_output_is_built_again_and_is_never_missing() {
    for pair in pairs() {
        let drv = built(&pair, CHAIN);
        let before = Snapshot::of(&pair.by_goalctl);
        let output = pair.by_goalctl.output_of(&drv, "out");
        pair.damage(&output);
        let watcher = Watcher::start(pair.by_goalctl.real(&output));
        let both = repair_outputs(&pair, &drv);
        both.expect_status(0)
            .expect_error(&format!("path '{output}' is corrupted or missing"))
            .expect_error(&format!("repairing outputs of '{drv}'..."));
        watcher.expect_exchange();
        assert_eq!(n_runs(&pair.by_goalctl), 5);
        Snapshot::of(&pair.by_goalctl).assert_same_as(&before);
        pair.assert_same();

        let again = repair_outputs(&pair, &drv);
        again.expect_status(0);
        assert_eq!(again.goalctl.output_lines(), both.goalctl.output_lines());
        assert_eq!(n_runs(&pair.by_goalctl), 5, "nothing is left to be built");
        pair.assert_same();
    }
}

#[test]
fn a_missing_output_is_made_again() {
    for pair in pairs() {
        let drv = built(&pair, CHAIN);
        let before = Snapshot::of(&pair.by_goalctl);
        for name in ["out", "dev"] {
            let output = pair.by_goalctl.output_of(&drv, name);
            for store in pair.stores() {
                damage::lose(&store.real(&output));
            }
            repair_outputs(&pair, &drv).expect_status(0);
        }
        Snapshot::of(&pair.by_goalctl).assert_same_as(&before);
        pair.assert_same();
    }
}

#[test]
fn what_is_corrupt_or_missing_three_levels_below_is_repaired_and_nothing_else_is_built() {
    for pair in pairs() {
        let drv = built(&pair, CHAIN);
        let before = Snapshot::of(&pair.by_goalctl);
        let low = pair.path("low");
        pair.damage(&low);
        let watcher = Watcher::start(pair.by_goalctl.real(&low));
        repair_outputs(&pair, &drv)
            .expect_status(0)
            .expect_error(&format!(
                "found corrupted or missing path '{low}' in the output closure of '{drv}'"
            ));
        watcher.expect_exchange();
        assert_eq!(n_runs(&pair.by_goalctl), 5);
        assert_eq!(n_runs(&pair.by_nix), 5);
        pair.assert_same();

        let (middle, top) = (pair.path("middle"), pair.path("top"));
        for store in pair.stores() {
            damage::lose(&store.real(&middle));
        }
        repair_by_both(&pair, &top).expect_status(0);
        assert_eq!(n_runs(&pair.by_goalctl), 6);
        Snapshot::of(&pair.by_goalctl).assert_same_as(&before);
        pair.assert_same();
    }
}

#[test]
fn inputs_are_repaired_before_what_is_made_of_them() {
    for pair in pairs() {
        let drv = built(&pair, CHAIN);
        let before = Snapshot::of(&pair.by_goalctl);
        for name in ["low", "top"] {
            pair.damage(&pair.path(name));
        }
        let both = repair_outputs(&pair, &drv);
        both.expect_status(0);
        let said = both.goalctl.error();
        let place = |name: &str| {
            let words = format!("-{name}.drv'...");
            said.find(&words).unwrap_or_else(|| panic!("{said}"))
        };
        assert!(place("low") < place("top"), "{said}");
        assert_eq!(n_runs(&pair.by_goalctl), 6);
        Snapshot::of(&pair.by_goalctl).assert_same_as(&before);
        pair.assert_same();
    }
}

#[test]
fn a_path_is_repaired_by_its_deriver_or_the_reason_is_told() {
    for pair in pairs() {
        let drv = built(&pair, CHAIN);
        let (low, middle) = (pair.path("low"), pair.path("middle"));
        pair.damage(&low);
        let events = repair_path(&pair.by_goalctl, &low).arg("--json").succeed();
        assert!(events.output().contains("\"mode\":\"repair\""));
        let nix = pair.by_nix.nix_store_in_place(["--repair-path", &low]);
        with_signals(nix, &pair.by_nix, "").succeed();
        pair.assert_same();

        // What is good needs nobody, where Nix gives up.
        repair_path(&pair.by_goalctl, &drv).succeed();
        let source = pair.path("source");
        pair.damage(&source);
        let words = format!("cannot repair path '{source}'");
        let both = repair_by_both(&pair, &source);
        both.expect_status(1).expect_error(&words);
        both.goalctl.expect_error("it has no deriver");

        for store in pair.stores() {
            let database = rusqlite::Connection::open(store.database()).expect("it is there");
            let gone = format!("/nix/store/{}-gone.drv", "0".repeat(32));
            let forget = "update ValidPaths set deriver = ?1 where path = ?2";
            database
                .execute(forget, (&gone, &middle))
                .expect("nobody works on it");
        }
        pair.damage(&middle);
        let both = repair_by_both(&pair, &middle);
        both.expect_status(1)
            .expect_error(&format!("cannot repair path '{middle}'"));
        both.goalctl.expect_error("-gone.drv' is not in the store");

        let nothing = format!("/nix/store/{}-nothing", "0".repeat(32));
        let both = repair_by_both(&pair, &nothing);
        both.expect_status(1).expect_error("is not valid");
    }
}

#[test]
fn what_cannot_be_repaired_fails_as_under_nix_and_is_not_taken_away() {
    for pair in pairs() {
        let drv = built(
            &pair,
            &format!("mk \"user\" \"echo ${{mk \"salted\" ''{SALTED}'' {{ }}}} > $out\" {{ }}"),
        );
        let salted = pair.path("salted");
        pair.salt("fail");
        pair.damage(&salted);
        let both = repair_outputs(&pair, &drv);
        both.expect_status(1)
            .expect_error("-salted.drv' failed with exit code 3")
            .expect_error("some paths in the output closure of derivation");
        assert!(!pair.by_nix.real(&salted).exists(), "a fault of Nix 2.8");
        assert!(pair.by_goalctl.real(&salted).exists());

        // As an input of what is corrupt too, it fails like any input.
        pair.damage(&pair.path("user"));
        repair_outputs(&pair, &drv).expect_status(100);
        let goalctl = repair_path(&pair.by_goalctl, &salted).run();
        goalctl.expect_status(100);

        pair.salt("one");
        repair_outputs(&pair, &drv).expect_status(0);
        pair.assert_same();
    }
}

#[test]
fn what_is_made_otherwise_replaces_what_is_corrupt_and_its_row_is_true() {
    for pair in pairs() {
        let drv = built_script(&pair, "salted", SALTED);
        let output = pair.by_goalctl.output_of(&drv, "out");
        let before = Snapshot::of(&pair.by_goalctl);
        pair.damage(&output);
        pair.salt("other");
        let both = repair_outputs(&pair, &drv);
        both.expect_status(0);
        both.goalctl
            .expect_error(&format!("'{output}' was made again, but not as it was"));
        let after = Snapshot::of(&pair.by_goalctl);
        let hash = |snapshot: &Snapshot| snapshot.objects[&output].nar_hash.clone();
        assert_ne!(hash(&before), hash(&after));
        pair.assert_same();
    }
}

#[test]
fn nothing_is_made_of_a_corrupt_source() {
    for pair in pairs() {
        let drv = built(&pair, CHAIN);
        let (source, low) = (pair.path("source"), pair.path("low"));
        pair.damage(&source);
        let both = repair_outputs(&pair, &drv);
        both.expect_status(1)
            .expect_error(&format!("found corrupted or missing path '{source}'"));
        // Nix builds, and registers what it makes of the corrupt source.
        pair.damage(&low);
        let goalctl = pair
            .by_goalctl
            .build_with_signals(&drv)
            .arg("--repair")
            .run();
        goalctl
            .expect_status(1)
            .expect_error(&format!("cannot repair path '{source}'"));
        assert_eq!(n_runs(&pair.by_goalctl), 4, "nothing was built");
        debris::assert_clean(&pair.by_goalctl);
    }
}

#[test]
fn what_is_repaired_is_not_linked_to_a_corrupt_file_again() {
    for pair in pairs() {
        // Both are made good at the same time.
        let expression = "let same = name: mk name \"mkdir $out; echo same > $out/file\" { };
            one = same \"one\"; two = same \"two\";
            in mk \"both\" \"mkdir $out; echo ${one} ${two} > $out/file\" { }";
        let drv = pair.instantiate(expression);
        let shared = |invocation: Invocation| invocation.option("auto-optimise-store", "true");
        for invocation in [
            pair.by_nix.realise_with_signals(&drv),
            pair.by_goalctl.build_with_signals(&drv),
        ] {
            shared(invocation).succeed();
        }
        let before = Snapshot::of(&pair.by_goalctl);
        let file = |name| pair.by_goalctl.real(&pair.path(name)).join("file");
        let inode = |name| file(name).metadata().expect("it is there").ino();
        let damaged = inode("one");
        assert_eq!(damaged, inode("two"), "one file has both names");
        pair.damage(&pair.path("one"));
        let repair = pair.by_goalctl.build_with_signals(&drv).arg("--repair");
        shared(repair).succeed();
        for name in ["one", "two"] {
            assert_ne!(inode(name), damaged);
        }
        assert_eq!(inode("one"), inode("two"), "and so has the good one");
        Snapshot::of(&pair.by_goalctl).assert_same_as(&before);
        pair.assert_sound();
    }
}

#[test]
fn an_interrupted_repair_leaves_what_was_there() {
    for pair in pairs() {
        let store = &pair.by_goalctl;
        let drv = built_script(&pair, "salted", SALTED);
        let output = store.real(&store.output_of(&drv, "out"));
        pair.damage(&store.output_of(&drv, "out"));
        let damaged = fs::read(&output).expect("it is there");
        fs::remove_file(store.signals().dir().join("salt")).expect("the folder is ours");
        store.signals().pipes(&["salt"]);
        let mut running = store.build_with_signals(&drv).arg("--repair").start();
        running.await_line(|line| line.contains("repairing outputs of"));
        running.signal(Signal::SIGINT);
        running.finish().expect_status(130);
        assert_eq!(fs::read(&output).expect("it is there"), damaged);
        debris::assert_clean(store);
        let _held = {
            let go = store.signals().release("salt");
            // The builder reads what the first repair never made.
            store.build_with_signals(&drv).arg("--repair").succeed();
            go
        };
        debris::assert_verifies(store);
    }
}

#[test]
fn a_repair_that_is_killed_leaves_what_was_there_and_the_next_one_tidies_up() {
    for pair in pairs() {
        let store = &pair.by_goalctl;
        let drv = built_script(&pair, "salted", SALTED);
        let before = Snapshot::of(store);
        let output = store.real(&store.output_of(&drv, "out"));
        damage::flip_a_bit(&output);
        let damaged = fs::read(&output).expect("it is there");
        fs::remove_file(store.signals().dir().join("salt")).expect("the folder is ours");
        store.signals().pipes(&["salt"]);
        let mut running = store.build_with_signals(&drv).arg("--repair").start();
        running.await_line(|line| line.contains("repairing outputs of"));
        running.signal(Signal::SIGKILL);
        assert_eq!(running.finish().code(), 128 + 9);
        processes::await_none_touching(store.dir(), PATIENCE);
        assert_eq!(fs::read(&output).expect("it is there"), damaged);
        fs::remove_file(store.signals().dir().join("salt")).expect("the folder is ours");
        pair.salt("one");
        store.build_with_signals(&drv).arg("--repair").succeed();
        Snapshot::of(store).assert_same_as(&before);
        pair.assert_sound();
    }
}

#[test]
fn a_hashed_output_is_kept_where_its_contents_say() {
    for pair in pairs() {
        let store = &pair.by_goalctl;
        for (mode, script) in [
            ("flat", "echo hello > $out"),
            ("recursive", "mkdir $out; echo hello > $out/file"),
        ] {
            let expression = |hash: &str| {
                format!(
                    "mk \"fixed-{mode}\" ''{script}'' {{ outputHashAlgo = \"sha256\"; \
                     outputHashMode = \"{mode}\"; outputHash = \"{hash}\"; }}"
                )
            };
            let guess = store.instantiate_one(&expression(&"0".repeat(64)));
            let built = store.goalctl(["build", "--hash", &guess]).succeed();
            let said = built.error();
            let hash = said
                .split("with hash '")
                .nth(1)
                .and_then(|rest| rest.split('\'').next())
                .unwrap_or_else(|| panic!("{said}"));
            let drv = pair.instantiate(&expression(hash));
            let output = store.output_of(&drv, "out");
            assert_eq!(built.output_lines(), [output.as_str()]);
            built.expect_error(&format!("build produced path '{output}'"));
            // It is there already, under both programs, as Nix would have it.
            let found = store.goalctl(["build", &drv]).succeed();
            assert!(!found.error().contains("building"), "{}", found.error());
            let nix = store.nix_store(["--realise", &drv]).succeed();
            assert!(!nix.error().contains("building"), "{}", nix.error());
            pair.by_nix.nix_store(["--realise", &drv]).succeed();
            let object = |store| {
                let mut object = Snapshot::of(store).objects[&output].clone();
                // Made by the derivation that did not know its hash.
                object.deriver = None;
                object
            };
            assert_eq!(object(store), object(&pair.by_nix));

            // What is valid is built and hashed all the same.
            let again = store.goalctl(["build", "--hash", &drv]).succeed();
            again.expect_error("building").expect_error(hash);
            assert_eq!(again.output_lines(), [output.as_str()]);
        }
        let drv = store.script("free", "echo x > $out");
        let refused = store.goalctl(["build", "--hash", &drv]).run();
        refused
            .expect_status(1)
            .expect_error("cannot do a hash build of");
        pair.assert_sound();
    }
}

#[test]
fn the_path_that_contents_have_is_never_waited_for_though_somebody_has_locked_it() {
    for pair in pairs() {
        let store = &pair.by_goalctl;
        let fixed = |hash: &str| {
            store.instantiate_one(&format!(
                "mk \"fixed\" \"printf hello > $out\" {{ outputHashAlgo = \"sha256\"; \
                 outputHash = {hash}; }}"
            ))
        };
        let guess = fixed("builtins.hashString \"sha256\" \"other\"");
        let output = store.output_of(&fixed("builtins.hashString \"sha256\" \"hello\""), "out");
        let lock_file = store.real(&format!("{output}.lock"));
        let lock = fs::File::create_new(&lock_file).expect("nobody has it");
        let owner = store.profile().foreign_id();
        chown(&lock_file, owner, owner).expect("root can give files away");
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).expect("nobody has it");
        let hashed = store.goalctl(["build", "--hash", &guess]).run();
        hashed
            .expect_status(1)
            .expect_error(&format!("'{output}' is locked"));
        // The mismatch is told all the same, and what was made is not kept.
        let mismatch = store.goalctl(["build", &guess]).run();
        mismatch.expect_status(102).expect_error("hash mismatch");
        assert!(!Snapshot::of(store).objects.contains_key(&output));
        drop(lock);
        fs::remove_file(&lock_file).expect("it is ours");
        store.goalctl(["build", "--hash", &guess]).succeed();
        pair.assert_sound();
    }
}
