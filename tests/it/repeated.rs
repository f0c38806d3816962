//! Builds that are made again to see whether they come out the same: checks and rounds.
//!
//! The builders look at a file of the test's, so that they make what the test wants them to, and
//! the same under both programs.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use it::snapshot::{self, Snapshot};
use it::{Finished, Invocation, Pair, TestStore, debris, requirement};

/// Makes two outputs, one of which depends on what the test says.
const SALTED: &str = "mk \"salted\" \"read salt < /signals/salt; mkdir $out $dev; \
     echo $salt > $out/file; echo same > $out/same; echo $salt > $dev/header\" \
     { outputs = [ \"out\" \"dev\" ]; }";

/// Makes an output that says how often its builder has run.
const COUNTING: &str = "echo run >> /signals/runs; n=0; \
     while read line; do n=$((n+1)); done < /signals/runs; echo $n > $out";

/// Returns where what differs from an output is kept.
fn check_path(store: &TestStore, output: &str) -> PathBuf {
    store.real(&format!("{output}.check"))
}

/// Writes a hook into the folder that everybody can reach.
fn hook(store: &TestStore, script: &str) -> PathBuf {
    let shell = requirement::find_program("sh").expect("there is a shell");
    let path = store.signals().dir().join("hook");
    fs::write(&path, format!("#!{}\n{script}\n", shell.display())).expect("the folder is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    path
}

fn with_hook(invocation: Invocation, hook: &Path) -> Invocation {
    invocation
        .option("diff-hook", hook)
        .option("run-diff-hook", "true")
}

fn expect_both(nix: &Finished, goalctl: &Finished, status: i32, words: &str) {
    nix.expect_status(status).expect_error(words);
    goalctl.expect_status(status).expect_error(words);
}

#[test]
fn a_check_that_comes_out_the_same_makes_the_outputs_ultimate() {
    for pair in Pair::all() {
        pair.salt("one");
        let drv = pair.instantiate(SALTED);
        pair.build(&drv);
        for store in [&pair.by_nix, &pair.by_goalctl] {
            let database = rusqlite::Connection::open(store.database()).expect("it is there");
            let forget = "update ValidPaths set ultimate = null where path like '%-salted%' \
                 and path not like '%.drv'";
            let n_forgotten = database.execute(forget, []).expect("nobody works on it");
            assert_eq!(n_forgotten, 2);
        }
        pair.nix(&drv).arg("--check").succeed();
        let checked = pair.goalctl(&drv).arg("--check").succeed();
        checked.expect_error(&format!("checking '{drv}'..."));
        assert_eq!(checked.output_lines().len(), 2);
        let snapshot = Snapshot::of(&pair.by_goalctl);
        for name in ["out", "dev"] {
            let output = pair.by_goalctl.output_of(&drv, name);
            assert!(snapshot.objects[&output].is_ultimate, "{name}");
        }
        pair.assert_same();
    }
}

#[test]
fn a_check_that_differs_fails_as_under_nix_and_names_every_output_and_file() {
    for pair in Pair::all() {
        pair.salt("one");
        let drv = pair.instantiate(SALTED);
        pair.build(&drv);
        let before = Snapshot::of(&pair.by_goalctl);
        pair.salt("other");
        let nix = pair.nix(&drv).arg("--check").run();
        let goalctl = pair.goalctl(&drv).arg("--check").run();
        let words = format!("derivation '{drv}' may not be deterministic: output '");
        expect_both(&nix, &goalctl, 104, &words);
        goalctl
            .expect_error("\"file\": 4 bytes in the earlier build, 6 in the later one")
            .expect_error("\"header\": 4 bytes in the earlier build, 6 in the later one");
        pair.assert_same();
        before.assert_same_as(&Snapshot::of(&pair.by_goalctl));

        let nix = pair.nix(&drv).args(["--check", "--keep-failed"]).run();
        let goalctl = pair.goalctl(&drv).args(["--check", "--keep-failed"]).run();
        expect_both(&nix, &goalctl, 104, ".check'");
        goalctl.expect_error("note: keeping build directory '");
        before.assert_same_as(&Snapshot::of(&pair.by_goalctl));
        // Nix ends at the first output that differs.
        let outputs = ["out", "dev"].map(|name| pair.by_goalctl.output_of(&drv, name));
        let mut n_kept_by_nix = 0;
        for output in outputs {
            let by_goalctl = snapshot::walk(&check_path(&pair.by_goalctl, &output));
            assert_eq!(by_goalctl[""].modified, (1, 0));
            let by_nix = check_path(&pair.by_nix, &output);
            if by_nix.exists() {
                assert_eq!(snapshot::walk(&by_nix), by_goalctl);
                n_kept_by_nix += 1;
            }
        }
        assert_eq!(n_kept_by_nix, 1);
    }
}

#[test]
fn what_is_not_valid_cannot_be_checked() {
    for pair in Pair::all() {
        pair.salt("one");
        let drv = pair.instantiate(SALTED);
        let nix = pair.nix(&drv).arg("--check").run();
        let goalctl = pair.goalctl(&drv).arg("--check").run();
        let words = format!("some outputs of '{drv}' are not valid, so checking is not possible");
        expect_both(&nix, &goalctl, 1, &words);
        pair.assert_same();
    }
}

#[test]
fn inputs_of_a_check_are_built_as_always_and_a_path_is_only_ensured() {
    for pair in Pair::all() {
        pair.tally();
        let below = format!("mk \"below\" \"{COUNTING}\" {{ }}");
        let drv = pair.instantiate(&format!(
            "let below = {below}; in mk \"above\" \"read n < $below; echo $n > $out\" \
             {{ inherit below; }}"
        ));
        pair.build(&drv);
        pair.nix(&drv).arg("--check").succeed();
        pair.goalctl(&drv).arg("--check").succeed();
        assert_eq!(pair.n_runs(), (1, 1));
        let output = pair.by_goalctl.output_of(&drv, "out");
        pair.nix(&output).arg("--check").succeed();
        pair.goalctl(&output).arg("--check").succeed();
        pair.assert_same();
    }
}

#[test]
fn the_diff_hook_is_shown_what_a_check_made_and_its_failure_is_only_a_warning() {
    for pair in Pair::all() {
        pair.salt("one");
        let drv = pair.instantiate(SALTED);
        pair.build(&drv);
        pair.salt("two");
        let script = "echo \"earlier $(cat \"$1\"/*r* \"$1\"/fil* 2>&1)\"; echo \"of $3 in $PWD\"; \
             echo \"later ${2##*.} build ${4##*/}\"; exit 3";
        for (store, invocation) in [
            (&pair.by_nix, pair.nix(&drv)),
            (&pair.by_goalctl, pair.goalctl(&drv)),
        ] {
            let hook = hook(store, script);
            let finished = with_hook(invocation.arg("--check"), &hook).run();
            finished
                .expect_status(104)
                .expect_error("diff hook execution failed");
            let output = pair.by_goalctl.output_of(&drv, "dev");
            assert!(check_path(store, &output).exists() || store.root() == pair.by_nix.root());
        }
        let hook = hook(&pair.by_goalctl, &script.replace("exit 3", "id -u"));
        let goalctl = with_hook(pair.goalctl(&drv).arg("--check"), &hook).run();
        goalctl
            .expect_status(104)
            .expect_error("earlier one")
            .expect_error(&format!("of {drv} in /"))
            .expect_error("later check build build");
        let runs_as_us = goalctl.error().lines().any(|line| line.trim() == "0");
        assert!(!runs_as_us, "the hook of root is no root");
    }
}

#[test]
fn rounds_that_are_the_same_become_what_nix_makes_of_them() {
    for pair in Pair::all() {
        pair.tally();
        pair.salt("one");
        let drv = pair.script(
            "steady",
            "echo run >> /signals/runs; read salt < /signals/salt; echo $salt $out > $out",
        );
        pair.nix(&drv).option("repeat", "2").succeed();
        let built = pair.goalctl(&drv).args(["--rounds", "3"]).succeed();
        built.expect_error(&format!("building '{drv}' (round 3/3)..."));
        assert_eq!(pair.n_runs(), (3, 3));
        pair.assert_same();
    }
}

#[test]
fn a_round_that_differs_fails_and_leaves_nothing() {
    for pair in Pair::all() {
        pair.tally();
        let drv = pair.script("counting", COUNTING);
        let nix = pair.nix(&drv).option("repeat", "4").run();
        let goalctl = pair.goalctl(&drv).option("repeat", "4").run();
        // Nix forgets that this is a difference, and exits like any other failure.
        nix.expect_status(1);
        goalctl
            .expect_status(104)
            .expect_error(&format!("of '{drv}' differs from previous round"))
            .expect_error("the output itself: 2 bytes that differ from offset 0 on");
        nix.expect_error("differs from previous round");
        assert_eq!(pair.n_runs(), (2, 2));
        pair.assert_same();

        let goalctl = pair.goalctl(&drv).args(["--rounds", "2", "-K"]).run();
        goalctl.expect_status(104).expect_error(".check' from");
        let output = pair.by_goalctl.output_of(&drv, "out");
        let earlier = fs::read_to_string(check_path(&pair.by_goalctl, &output));
        assert_eq!(earlier.expect("it was kept"), "3\n");
        assert!(!pair.by_goalctl.real(&output).exists());
    }
}

#[test]
fn the_diff_hook_is_shown_both_rounds_and_nothing_invalid_stays() {
    for pair in Pair::all() {
        pair.tally();
        let drv = pair.script("counting", COUNTING);
        let hook = hook(
            &pair.by_goalctl,
            "read a < $1; read b < $2; echo \"$a then $b\"",
        );
        let rounds = pair.goalctl(&drv).args(["--rounds", "2"]);
        let goalctl = with_hook(rounds, &hook).run();
        goalctl.expect_status(104).expect_error("1 then 2");
        let output = pair.by_goalctl.output_of(&drv, "out");
        assert!(!pair.by_goalctl.real(&output).exists());
        fs::remove_file(check_path(&pair.by_goalctl, &output)).expect("it was kept");

        // Only told: the hook sees what has become valid.
        let rounds = pair.goalctl(&drv).args(["--rounds", "2"]);
        let told = with_hook(rounds, &hook)
            .option("enforce-determinism", "false")
            .succeed();
        told.expect_error("3 then 4");
        fs::remove_file(check_path(&pair.by_goalctl, &output)).expect("it was kept");
        debris::assert_clean(&pair.by_goalctl);
    }
}

#[test]
fn a_difference_that_need_not_be_a_failure_ends_the_rounds_and_the_last_one_is_valid() {
    for pair in Pair::all() {
        pair.tally();
        let drv = pair.script("counting", COUNTING);
        let tolerant = |invocation: Invocation| invocation.option("enforce-determinism", "false");
        tolerant(pair.nix(&drv).option("repeat", "4"))
            .succeed()
            .expect_error("differs from previous round");
        tolerant(pair.goalctl(&drv).args(["--rounds", "5"]))
            .succeed()
            .expect_error("differs from previous round");
        assert_eq!(pair.n_runs(), (2, 2));
        let output = pair.by_goalctl.output_of(&drv, "out");
        let registered = fs::read_to_string(pair.by_goalctl.real(&output));
        assert_eq!(registered.expect("it is valid"), "2\n");
        pair.assert_same();
    }
}

#[test]
fn a_fixed_output_is_built_once_however_many_rounds() {
    for pair in Pair::all() {
        pair.tally();
        let drv = pair.instantiate(
            "mk \"fixed\" \"echo run >> /signals/runs; echo fixed > $out\" { \
             outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; \
             outputHash = builtins.hashString \"sha256\" \"fixed\\n\"; }",
        );
        pair.nix(&drv).option("repeat", "2").succeed();
        pair.goalctl(&drv).args(["--rounds", "3"]).succeed();
        assert_eq!(pair.n_runs(), (1, 1));
        pair.assert_same();
    }
}

#[test]
fn the_log_of_further_rounds_is_shown_unless_it_is_not_wanted() {
    for pair in Pair::all() {
        let script = "echo 'from the builder'; echo made > $out";
        for (shown, n_lines) in [("true", 2), ("false", 1)] {
            let drv = pair.script(&format!("loud-{shown}"), script);
            let rounds = pair.goalctl(&drv).args(["--rounds", "2"]);
            let built = rounds.option("print-repeated-builds", shown).succeed();
            let error = built.error();
            let lines = error
                .lines()
                .filter(|line| line.ends_with("from the builder"));
            assert_eq!(lines.count(), n_lines, "{error}");
        }
    }
}

#[test]
fn an_interrupt_kills_the_diff_hook_and_leaves_nothing() {
    for pair in Pair::all() {
        pair.tally();
        let store = &pair.by_goalctl;
        store.signals().pipes(&["ready"]);
        let drv = pair.script("counting", COUNTING);
        let ready = store.signals().dir().join("ready");
        let script = format!("echo ready > {}; exec sleep 1000", ready.display());
        let hook = hook(store, &script);
        let rounds = pair.goalctl(&drv).args(["--rounds", "2"]);
        let running = with_hook(rounds, &hook).start();
        store.signals().await_word("ready");
        running.signal(nix::sys::signal::Signal::SIGINT);
        running.finish().expect_status(130);
        let output = store.output_of(&drv, "out");
        assert!(!store.real(&output).exists());
        fs::remove_file(check_path(store, &output)).expect("it was kept for the hook");
        debris::assert_clean(store);
    }
}

#[test]
fn a_check_that_confirms_signs_as_nix_does() {
    for pair in Pair::all() {
        pair.salt("one");
        let drv = pair.instantiate(SALTED);
        pair.build(&drv);
        let key = pair.by_nix.dir().join("key");
        let public = pair.by_nix.dir().join("key.pub");
        let generate = pair
            .by_nix
            .nix_store(["--generate-binary-cache-key", "key-1"]);
        generate.arg(&key).arg(public).succeed();
        for store in [&pair.by_nix, &pair.by_goalctl] {
            let database = rusqlite::Connection::open(store.database()).expect("it is there");
            let forget = "update ValidPaths set ultimate = null where path like '%-salted'";
            assert_eq!(database.execute(forget, []).ok(), Some(1));
        }
        for checked in [pair.nix(&drv), pair.goalctl(&drv)] {
            let checked = checked.arg("--check").option("secret-key-files", &key);
            checked.succeed();
        }
        let output = pair.by_goalctl.output_of(&drv, "out");
        let snapshot = Snapshot::of(&pair.by_goalctl);
        let signatures = snapshot.objects[&output].signatures.as_deref();
        assert!(signatures.is_some_and(|signed| signed.starts_with("key-1:")));
        pair.assert_same();
    }
}
