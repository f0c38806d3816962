//! `post-build-hook`: what it is told, who waits for it, and what its failure means.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use it::snapshot::Snapshot;
use it::{Profile, TestStore, debris, requirement};
use nix::sys::signal::Signal;

/// Two outputs, and something that needs them.
const EXPRESSION: &str = r#"
  let first = mk "first" "echo $out > $dev; echo x > $out" { outputs = [ "out" "dev" ]; };
  in mk "second" "echo ${first.dev} > $out" { }
"#;

/// Writes a hook, a shell script.
fn hook(store: &TestStore, script: &str) -> PathBuf {
    let file = store.dir().join("hook");
    std::fs::write(&file, format!("#!/bin/sh\n{script}")).expect("a fresh file can be written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))
        .expect("one's own file can be opened to others");
    file
}

/// Returns what hooks have written down: for each name in `home`, the words after each variable.
fn told(store: &TestStore) -> BTreeMap<String, BTreeMap<String, String>> {
    let home = store.dir().join("home");
    debris::names_in(&home)
        .into_iter()
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "drv"))
        .map(|name| {
            let text = std::fs::read_to_string(home.join(&name)).expect("the hook wrote it");
            let variables = text
                .split('\u{1}')
                .filter_map(|variable| variable.split_once('='))
                .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
            (name, variables.collect())
        })
        .collect()
}

/// Reads the lines of a `nix.conf`.
fn options(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .collect()
}

#[test]
fn a_hook_is_told_what_nix_tells_it_and_the_paths_besides() {
    if !requirement::genuine_nix() {
        return;
    }
    let script = "for name in DRV_PATH OUT_PATHS NIX_CONFIG KEPT; do
          eval \"printf '%s=%s\\001' $name \\\"\\$$name\\\"\"
        done > \"$HOME/$(basename $DRV_PATH)\"
        echo heard on output; echo heard on error >&2";
    for profile in Profile::all() {
        let [by_nix, by_goalctl] = [TestStore::of(profile), TestStore::of(profile)];
        let drv = by_nix.instantiate_one(EXPRESSION);
        assert_eq!(drv, by_goalctl.instantiate_one(EXPRESSION));
        let run = |store: &TestStore, nix: bool| {
            let invocation = if nix {
                store.nix_store(["--realise", &drv])
            } else {
                store.goalctl(["build", &drv])
            };
            invocation
                .option("post-build-hook", hook(store, script))
                .env("KEPT", "a variable")
                .succeed()
        };
        for finished in [run(&by_nix, true), run(&by_goalctl, false)] {
            finished.expect_error("post-build-hook: heard on output");
            finished.expect_error("post-build-hook: heard on error");
        }
        Snapshot::of(&by_nix).assert_same_as(&Snapshot::of(&by_goalctl));
        debris::assert_clean(&by_goalctl);

        let (nix, goalctl) = (told(&by_nix), told(&by_goalctl));
        assert_eq!(goalctl.len(), 2);
        assert!(nix.keys().eq(goalctl.keys()), "{nix:?} {goalctl:?}");
        for (name, variables) in &goalctl {
            assert_eq!(variables["DRV_PATH"], nix[name]["DRV_PATH"]);
            assert_eq!(variables["KEPT"], "a variable");
            // Nix tells all of its options; here it is those that somebody has set.
            let nix_config = options(&nix[name]["NIX_CONFIG"]);
            let mut goalctl_config = options(&variables["NIX_CONFIG"]);
            let root = goalctl_config.remove("store");
            assert_eq!(root.map(PathBuf::from), Some(by_goalctl.root()));
            assert!(goalctl_config.remove("post-build-hook").is_some());
            assert!(goalctl_config.len() >= 4, "{goalctl_config:?}");
            for (option, value) in &goalctl_config {
                assert_eq!(Some(value), nix_config.get(option), "{option}");
            }
            // Nix 2.8.0 leaves it empty by mistake.
            let mut paths: Vec<&str> = variables["OUT_PATHS"].split(' ').collect();
            let outputs = by_goalctl.nix_store(["--query", "--outputs", &variables["DRV_PATH"]]);
            let mut outputs = outputs.succeed().output_lines();
            outputs.sort();
            paths.sort_unstable();
            assert_eq!(paths, outputs);
        }

        // What is valid already has no build, so there is nothing after it.
        std::fs::remove_file(
            by_goalctl
                .dir()
                .join("home")
                .join(&drv["/nix/store/".len()..]),
        )
        .expect("the hook wrote it");
        run(&by_goalctl, false);
        assert_eq!(told(&by_goalctl).len(), 1);
    }
}

#[test]
fn a_hook_that_fails_fails_the_goal_and_leaves_its_outputs_valid() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let [by_nix, by_goalctl] = [TestStore::of(profile), TestStore::of(profile)];
        let drv = by_nix.instantiate_one(EXPRESSION);
        assert_eq!(drv, by_goalctl.instantiate_one(EXPRESSION));
        let script = "echo cannot upload >&2; exit 3";
        let nix = by_nix
            .nix_store(["--realise", &drv])
            .option("post-build-hook", hook(&by_nix, script))
            .run();
        let goalctl = by_goalctl
            .goalctl(["build", &drv])
            .option("post-build-hook", hook(&by_goalctl, script))
            .run();
        nix.expect_status(1).expect_error("failed with exit code 3");
        goalctl
            .expect_status(1)
            .expect_error("failed with exit code 3")
            .expect_error("> cannot upload")
            .expect_error("-first.drv");
        Snapshot::of(&by_nix).assert_same_as(&Snapshot::of(&by_goalctl));
        debris::assert_clean(&by_goalctl);
        by_goalctl.goalctl(["build", &drv]).succeed();

        let store = TestStore::of(profile);
        let drv = store.instantiate_one(EXPRESSION);
        let missing = store
            .goalctl(["build", &drv])
            .option("post-build-hook", "/no/such/hook")
            .run();
        missing.expect_status(1).expect_error("/no/such/hook");
    }
}

#[test]
fn nobody_waits_for_a_hook_but_those_who_need_its_goal() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["ready", "go"]);
    let drvs = store.instantiate(
        "let first = mk \"a-first\" \"echo x > $out\" { };
             second = mk \"b-second\" \"echo x > $out\" { }; in [
           (mk \"needs-first\" \"echo ${first} > $out\" { })
           (mk \"z-other\" \"echo ${second} > $out\" { }) ]",
    );
    let folder = store.signals().dir().display().to_string();
    let script = format!(
        "case $DRV_PATH in *-a-first.drv) echo here > {folder}/ready; read word < {folder}/go;; esac"
    );
    let mut goalctl = store
        .goalctl(["build", "--json", "-j", "1"])
        .args(&drvs)
        .option("post-build-hook", hook(&store, &script))
        .start();
    store.signals().await_word("ready");
    let is = |line: &str, event: &str, name: &str| {
        line.contains(&format!("\"event\":\"{event}\"")) && line.contains(name)
    };
    // There is one slot, which the other goal gets after the one whose hook runs: that has none.
    // Nor has it the lock.
    goalctl.await_line(|line| {
        assert!(!is(line, "started", "-needs-first.drv"), "{line}");
        is(line, "finished", "-z-other.drv")
    });
    let first = store
        .nix_store(["--query", "--requisites", &drvs[0]])
        .succeed();
    let first = first.output_lines();
    let first = first.iter().find(|path| path.ends_with("-a-first.drv"));
    let first = first.expect("it is needed");
    store.goalctl(["build", first]).succeed();
    let _open = store.signals().release("go");
    let finished = goalctl.finish();
    finished.expect_status(0);
    debris::assert_clean(&store);
}

#[test]
fn an_interrupt_kills_the_hook() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    store.signals().pipes(&["ready", "alive"]);
    let drv = store.script("hooked", "echo x > $out");
    let folder = store.signals().dir().display().to_string();
    let script = format!("echo here > {folder}/ready; exec sleep 1000 > {folder}/alive");
    let goalctl = store
        .goalctl(["build", &drv])
        .option("post-build-hook", hook(&store, &script))
        .start();
    store.signals().await_word("ready");
    let mut alive =
        std::fs::File::open(store.signals().dir().join("alive")).expect("the pipe is there");
    goalctl.signal(Signal::SIGINT);
    goalctl.finish().expect_status(130);
    // Ends when nobody has it open any more.
    alive
        .read_to_end(&mut Vec::new())
        .expect("a pipe can be read");
    debris::assert_clean(&store);
}
