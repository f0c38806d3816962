//! The same in checks and rounds, beside other processes, and where something goes wrong.

use it::canary::Canary;
use it::hand_over::{self, PATIENT, Program};
use it::snapshot::Snapshot;
use it::{Profile, TestStore, damage, debris, requirement};
use serde_json::{Value, json};

use super::{
    CHAIN, Realisations, assert_alike, assert_same, goalctl, instantiate, nix, sorted, with_feature,
};
use crate::guard::guarded_stores;

#[test]
fn a_check_of_what_floats_compares_it_and_leaves_it_alone() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let (stores, _) = assert_alike(profile, &format!("let {CHAIN} in last"), &[]);
        let store = &stores[1];
        let before = Snapshot::of(store);
        for wanted in ["base", "top", "last"] {
            let drvs = instantiate(store, &format!("let {CHAIN} in {wanted}"));
            let checked = goalctl(store, &drvs).arg("--check").succeed();
            checked.expect_error("checking '");
        }
        assert_eq!(before, Snapshot::of(store));
        assert_same(&stores[0], store);

        let random = r#"mk "random" "od -N8 -x /dev/urandom > $out" ca"#;
        let drvs = instantiate(store, random);
        goalctl(store, &drvs).succeed();
        let checked = goalctl(store, &drvs).arg("--check").run();
        checked
            .expect_status(104)
            .expect_error("may not be deterministic");
        debris::assert_clean(store);
    }
}

#[test]
fn rounds_of_what_floats_are_compared_and_the_last_one_is_realised() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drvs = instantiate(&store, r#"mk "self" "echo $out > $out" ca"#);
    let built = goalctl(&store, &drvs).args(["--rounds", "3"]).succeed();
    assert_eq!(built.error().matches("building '").count(), 3, "{built}");
    let once = TestStore::new();
    assert_eq!(
        drvs,
        instantiate(&once, r#"mk "self" "echo $out > $out" ca"#)
    );
    nix(&once, &drvs).succeed();
    assert_same(&once, &store);

    let random = instantiate(&store, r#"mk "random" "od -N8 -x /dev/urandom > $out" ca"#);
    let failed = goalctl(&store, &random).args(["--rounds", "2"]).run();
    failed.expect_status(104);
    debris::assert_clean(&store);
}

#[test]
fn links_hooks_and_queries_have_the_paths_that_were_learnt() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let hook = store.dir().join("hook");
    let seen = store.dir().join("seen");
    let script = format!(
        "#!/bin/sh\necho \"$DRV_PATH: $OUT_PATHS\" >> {}\n",
        seen.display()
    );
    std::fs::write(&hook, script).expect("a fresh file can be written");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&hook, executable).expect("one's own file can be opened");
    let drvs = instantiate(&store, &format!("let {CHAIN} in multi"));
    let link = store.dir().join("result");
    let built = goalctl(&store, &drvs)
        .arg("-o")
        .arg(&link)
        .option("post-build-hook", hook.to_string_lossy().as_ref())
        .succeed();
    let paths = built.output_lines();
    let target = |link: &str| {
        let target = std::fs::read_link(store.dir().join(link)).expect("the link was made");
        target.to_string_lossy().into_owned()
    };
    assert_eq!(paths, [target("result-dev"), target("result")]);
    let seen = std::fs::read_to_string(seen).expect("the hook wrote it");
    let lines: Vec<&str> = seen.lines().collect();
    // What it was resolved to comes first, then the derivation as it was written.
    assert_eq!(lines.len(), 3, "{seen}");
    for line in &lines[1..] {
        assert!(paths.iter().all(|path| line.contains(path)), "{seen}");
    }
    assert!(lines[2].starts_with(&drvs[0]), "{seen}");

    let told = goalctl(&store, &drvs).arg("--json").succeed();
    let report = told.output_lines().pop().expect("the report comes last");
    let report: Value = serde_json::from_str(&report).expect("a line is JSON");
    assert_eq!(report["results"][0]["outputs"]["out"], json!(paths[1]));

    let queried = with_feature(store.goalctl(["query", "--outputs", &drvs[0]])).succeed();
    assert_eq!(sorted(&queried), paths.iter().cloned().collect());
    // The links keep both from Nix's collector.
    store.collect_garbage();
    let valid = Snapshot::of(&store).objects;
    assert!(paths.iter().all(|path| valid.contains_key(path)));
}

#[test]
fn events_and_reports_name_what_a_derivation_was_resolved_to() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drvs = instantiate(&store, &format!("let {CHAIN} in top"));
    let told = goalctl(&store, &drvs).arg("--json").succeed();
    let events: Vec<Value> = told
        .output_lines()
        .iter()
        .map(|line| serde_json::from_str(line).expect("a line is JSON"))
        .collect();
    let of_goal = |event: &&Value| event["goal"] == json!(drvs[0]);
    let resolved = events
        .iter()
        .filter(of_goal)
        .find(|event| event["for"] == "resolved")
        .expect("it is resolved");
    let resolved_to = &resolved["resolvedTo"];
    assert!(
        resolved_to
            .as_str()
            .is_some_and(|path| path.ends_with("-top.drv"))
    );
    let finished = events
        .iter()
        .filter(of_goal)
        .find(|event| event["event"] == "finished")
        .expect("it ends");
    assert_eq!(finished["resolvedTo"], *resolved_to);
    assert_eq!(finished["status"], "Built");
    // The builder's own goal is the other one.
    let is_start = |event: &&Value| event["event"] == "started";
    let started: Vec<&Value> = events.iter().filter(is_start).collect();
    assert!(started.iter().any(|event| event["goal"] == *resolved_to));
    assert!(!started.iter().any(|event| event["goal"] == json!(drvs[0])));
}

#[test]
fn what_floats_is_repaired_where_it_is() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drvs = instantiate(
        &store,
        r#"let own = mk "own" "echo $out > $out" ca; in mk "user" "echo ${own} > $out" ca"#,
    );
    let built = goalctl(&store, &drvs).succeed();
    let before = (Snapshot::of(&store), Realisations::of(&store));
    for name in ["-own", "-user"] {
        let objects = before.0.objects.keys();
        let path = objects.into_iter().find(|path| path.ends_with(name));
        let object = store.real(path.expect("it was built"));
        damage::flip_a_bit(&object);
        let repaired = goalctl(&store, &drvs).args(["--repair"]).succeed();
        assert_eq!(sorted(&repaired), sorted(&built), "{name}");
        assert!(repaired.error().contains(name), "{repaired}");
        assert_eq!(before, (Snapshot::of(&store), Realisations::of(&store)));
        debris::assert_clean(&store);
        debris::assert_verifies(&store);
    }
}

#[test]
fn a_repair_that_makes_something_else_fails_and_takes_nothing_away() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drvs = instantiate(&store, r#"mk "random" "od -N8 -x /dev/urandom > $out" ca"#);
    let built = goalctl(&store, &drvs).succeed().output_lines();
    let realisations = Realisations::of(&store);
    damage::flip_a_bit(&store.real(&built[0]));
    let repaired = goalctl(&store, &drvs).args(["--repair"]).run();
    repaired.expect_status(1).expect_error("is realised by");
    assert!(store.real(&built[0]).exists());
    assert_eq!(realisations, Realisations::of(&store));
}

#[test]
fn what_is_collected_is_realised_again() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let expression = format!("let {CHAIN} in last");
    let drvs = instantiate(&store, &expression);
    let first = goalctl(&store, &drvs).succeed();
    store.collect_garbage();
    assert!(Realisations::of(&store).outputs.is_empty());
    assert_eq!(drvs, instantiate(&store, &expression));
    let second = goalctl(&store, &drvs).succeed();
    assert_eq!(sorted(&second), sorted(&first));
    debris::assert_clean(&store);
    debris::assert_verifies(&store);
}

#[test]
fn two_processes_that_want_one_floating_output_run_its_builder_once() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        for holder in [Program::Goalctl, Program::GenuineNix] {
            let store = TestStore::of(profile);
            hand_over::prepare(&store);
            let expression = format!("mk \"wanted-twice\" \"{PATIENT}\" ca");
            let [drv] = &instantiate(&store, &expression)[..] else {
                panic!("it is one derivation");
            };
            hand_over::assert_built_once(&store, drv, holder, "-wanted-twice.drv.out'");
        }
    }
}

#[test]
fn an_interrupt_ends_a_goal_that_waits_for_what_it_was_resolved_to() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    hand_over::prepare(&store);
    let expression = format!(
        "let base = mk \"base\" \"echo x > $out\" ca; \
         in mk \"waits\" \"{PATIENT}; echo ${{base}}\" ca"
    );
    let drvs = instantiate(&store, &expression);
    let running = store.build_with_signals(&drvs[0]).start();
    store.signals().await_word("ready");
    running.signal(nix::sys::signal::Signal::SIGINT);
    running.finish().expect_status(130);
    debris::assert_clean(&store);
}

#[test]
fn what_is_planted_beside_a_floating_output_is_never_written_through() {
    for (store, canary) in guarded_stores() {
        if !requirement::genuine_nix() {
            return;
        }
        let secret = Canary::secret(&store);
        let secret = secret.display();
        let script = format!(
            "ln -s {secret} $out.tmp; ln -s {secret} $out.lock; ln -s {secret} $out~; \
             echo $out > $out"
        );
        let drvs = instantiate(&store, &format!("mk \"planter\" \"{script}\" ca"));
        goalctl(&store, &drvs).succeed();
        canary.assert_untouched(&store);
        debris::assert_clean(&store);
    }
}

#[test]
fn two_recipes_that_end_together_with_the_same_contents_both_succeed() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drvs = instantiate(
        &store,
        r#"map (way: mk "same" "echo $out > $out" (ca // { inherit way; })) [ "a" "b" "c" "d" "e" "f" ]"#,
    );
    let built = goalctl(&store, &drvs).args(["-j", "6"]).succeed();
    assert_eq!(sorted(&built).len(), 1, "{built}");
    assert_eq!(Realisations::of(&store).outputs.len(), 6);
    debris::assert_clean(&store);
    debris::assert_verifies(&store);
}
