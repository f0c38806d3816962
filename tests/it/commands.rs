//! The smaller commands, each beside what genuine Nix answers.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::PathBuf;

use it::snapshot::{Snapshot, walk};
use it::{Finished, Invocation, Profile, TestStore, debris, requirement};
use serde_json::Value;

/// A store with two derivations, the second using the first, both built by genuine Nix.
fn built_store() -> Option<(TestStore, [String; 2])> {
    requirement::genuine_nix().then(|| {
        let store = TestStore::new();
        let drvs = store.instantiate(
            r#"
            let lib = mk "lib" "mkdir $out $dev; echo 1 > $out/lib; echo $out > $dev/header" {
                  outputs = [ "out" "dev" ];
                };
            in [ lib (mk "user" "echo ${lib.dev} > $out; echo told; echo twice" { }) ]
            "#,
        );
        store.nix_store(["--realise"]).args(&drvs).succeed();
        let drvs = drvs.try_into().expect("the list has two derivations");
        (store, drvs)
    })
}

/// A folder with everything that an archive can hold.
fn sample_tree(store: &TestStore) -> PathBuf {
    let tree = store.dir().join("sample");
    fs::create_dir_all(tree.join("folder/empty")).expect("a fresh folder can be made");
    fs::write(tree.join("folder/file"), "some text").expect("a fresh file can be written");
    fs::write(tree.join("run"), "#!/bin/sh\n").expect("a fresh file can be written");
    let executable = fs::Permissions::from_mode(0o755);
    fs::set_permissions(tree.join("run"), executable).expect("the file is ours");
    symlink("folder/file", tree.join("link")).expect("a fresh link can be made");
    symlink("/no/where", tree.join("dangling")).expect("a fresh link can be made");
    tree
}

/// Runs both programs and checks that they print the same.
#[track_caller]
pub(crate) fn assert_same_output(ours: Invocation, theirs: Invocation) -> Finished {
    let ours = ours.succeed();
    assert_eq!(ours.output(), theirs.succeed().output(), "{ours}");
    ours
}

#[test]
fn queries_are_answered_as_nix_answers_them() {
    let Some((store, [lib, user])) = built_store() else {
        return;
    };
    let output = store.output_of(&user, "out");
    let header = store.output_of(&lib, "dev");
    for (question, path) in [
        ("--references", &output),
        ("--references", &user),
        ("--referrers", &header),
        ("--requisites", &output),
        ("--requisites", &user),
        ("--deriver", &output),
        ("--outputs", &lib),
        ("--hash", &output),
        ("--size", &output),
        ("--tree", &output),
    ] {
        assert_same_output(
            store.goalctl(["query", question, path]),
            store.nix_store(["--query", question, path]),
        );
    }
    debris::assert_clean(&store);
}

#[test]
fn derivations_and_path_infos_are_printed_as_nix_prints_them() {
    let Some((store, [lib, user])) = built_store() else {
        return;
    };
    let json = |finished: Finished| -> Value {
        serde_json::from_str(&finished.output()).expect("the output is JSON")
    };
    let ours = store.goalctl(["show", &lib, &user]).succeed();
    let theirs = store
        .nix_program("nix")
        .args(["show-derivation", &lib, &user])
        .succeed();
    assert_eq!(json(ours), json(theirs));

    let by_path = |infos: Value| -> Vec<Value> {
        let mut infos = infos.as_array().cloned().expect("it is a list");
        infos.sort_by_key(|info| info["path"].to_string());
        infos
    };
    let ours = store.goalctl(["path-info", "--json", "--all"]).succeed();
    let theirs = store
        .nix_program("nix")
        .args(["path-info", "--json", "--all"])
        .succeed();
    assert_eq!(by_path(json(ours)), by_path(json(theirs)));
}

#[test]
fn a_log_is_read_whoever_wrote_it() {
    let Some((store, [_, user])) = built_store() else {
        return;
    };
    let shown = store.goalctl(["log", &user]).succeed();
    assert_eq!(shown.output(), "told\ntwice\n");
    let by_output = store
        .goalctl(["log", &store.output_of(&user, "out")])
        .succeed();
    assert_eq!(by_output.output(), "told\ntwice\n");
}

#[test]
fn archives_are_those_of_nix() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let tree = sample_tree(&store);
    let ours = store.goalctl(["nar", "dump"]).arg(&tree).succeed();
    let theirs = store.nix_store(["--dump"]).arg(&tree).succeed();
    let bytes = |finished: &Finished| -> Vec<Vec<u8>> {
        let lines = finished.lines.iter();
        lines.map(|line| line.bytes.clone()).collect()
    };
    assert_eq!(bytes(&ours), bytes(&theirs));

    let hash = store.goalctl(["nar", "hash"]).arg(&tree).succeed().output();
    let nix_hash = requirement::find_program("nix-hash").expect("it comes with Nix");
    let expected = store
        .program(&nix_hash)
        .args(["--type", "sha256", "--base32"])
        .arg(&tree)
        .succeed()
        .output();
    let sri = store
        .nix_program("nix")
        .args(["hash", "path"])
        .arg(&tree)
        .succeed()
        .output();
    assert!(
        hash.contains(expected.trim()) || hash.contains(sri.trim()),
        "{hash}"
    );
}

#[test]
fn what_is_added_gets_the_path_that_nix_gives_it() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let ours = TestStore::of(profile);
        let theirs = TestStore::of(profile);
        for store in [&ours, &theirs] {
            sample_tree(store);
        }
        let added = ours.goalctl(["add", "sample"]).succeed();
        let expected = theirs.nix_store(["--add", "sample"]).succeed();
        assert_eq!(added.output(), expected.output());

        let flat = ours
            .goalctl(["add", "--flat", "sample/folder/file"])
            .succeed();
        let expected = theirs
            .nix_store(["--add-fixed", "sha256", "sample/folder/file"])
            .succeed();
        assert_eq!(flat.output(), expected.output());

        Snapshot::of(&theirs).assert_same_as(&Snapshot::of(&ours));
        debris::assert_clean(&ours);
        debris::assert_verifies(&ours);
    }
}

#[test]
fn a_written_derivation_can_be_added_and_built() {
    if !requirement::genuine_nix() {
        return;
    }
    let from = TestStore::new();
    let drv = from.script("travelling", "echo arrived > $out");
    let into = TestStore::new();
    // Its inputs come first: a derivation is valid only with all that it refers to.
    let tools = from.dir().join("tools");
    into.goalctl(["add"]).arg(&tools).succeed();
    let file = into.dir().join("travelling.drv");
    fs::copy(from.real(&drv), &file).expect("a derivation can be copied");
    let added = into.goalctl(["add"]).arg(&file).succeed();
    assert_eq!(added.output().trim(), drv);
    into.goalctl(["build", &drv]).succeed();
    debris::assert_clean(&into);
    debris::assert_verifies(&into);
}

#[test]
fn a_dry_run_says_what_would_be_built_and_builds_nothing() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drvs = store.instantiate(
        r#"
        let below = mk "below" "echo x > $out" { };
        in [ (mk "above" "echo ${below} > $out" { }) below ]
        "#,
    );
    let planned = store.goalctl(["build", "--dry-run", &drvs[0]]).succeed();
    for drv in &drvs {
        let is_named = planned.output().contains(drv) || planned.error().contains(drv);
        assert!(is_named, "{drv} is not mentioned by {planned}");
        assert!(!store.real(&store.output_of(drv, "out")).exists());
    }
    debris::assert_clean(&store);
}

#[test]
fn an_output_link_keeps_the_output_from_the_garbage_collector_of_nix() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drvs = store
        .instantiate(r#"[ (mk "kept" "echo x > $out" { }) (mk "not-kept" "echo y > $out" { }) ]"#);
    store.goalctl(["build", &drvs[0], "-o", "result"]).succeed();
    store.goalctl(["build", &drvs[1]]).succeed();
    let [kept, lost] = [0, 1].map(|idx| store.output_of(&drvs[idx], "out"));
    let link = store.dir().join("result");
    let target = fs::read_link(&link).expect("the link was made");
    assert_eq!(target.to_str(), Some(kept.as_str()));
    store.collect_garbage();
    let objects = Snapshot::of(&store).objects;
    assert!(objects.contains_key(&kept));
    assert!(!objects.contains_key(&lost));
    debris::assert_clean(&store);
}

#[test]
fn the_configuration_is_shown_with_where_each_value_comes_from() {
    let store = TestStore::new();
    let shown = store.goalctl(["config", "show"]).succeed().output();
    let line = |name: &str| {
        shown
            .lines()
            .find(|line| line.split([' ', '=']).next() == Some(name))
            .unwrap_or_else(|| panic!("no {name} in\n{shown}"))
            .to_owned()
    };
    let conf = store.dir().join("conf/nix.conf");
    assert!(line("max-jobs").contains('2'));
    assert!(line("max-jobs").contains(&*conf.to_string_lossy()));
    assert!(line("sandbox-build-dir").contains("/build"));
    assert!(line("sandbox-build-dir").contains("default"));
    // Old names are accepted, and set the option of today.
    let renamed = store
        .goalctl(["config", "show", "max-jobs"])
        .option("build-max-jobs", "7")
        .succeed();
    assert!(renamed.output().contains('7'), "{renamed}");
}

#[test]
fn a_goals_file_is_built_by_name_and_its_derivations_are_those_that_nix_reads() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        fs::write(
            store.dir().join("goals.toml"),
            r#"
            [defaults]
            system = "x86_64-linux"
            builder = "${source:tools}/bin/sh"

            [goal.low]
            sources = { tools = "tools" }
            args = ["-ec", "echo low > $out"]

            [goal.high]
            sources = { tools = "tools" }
            args = ["-ec", "${source:tools}/bin/cat ${low} > $out"]
            "#,
        )
        .expect("a fresh file can be written");
        let built = store.goalctl(["build", "goals.toml#high"]).succeed();
        let [output] = &built.output_lines()[..] else {
            panic!("one path was asked for: {built}");
        };
        assert_eq!(fs::read(store.real(output)).expect("it was made"), b"low\n");

        let drvs = store.goalctl(["instantiate", "goals.toml"]).succeed();
        assert_eq!(drvs.output_lines().len(), 2);
        let known = store
            .nix_program("nix")
            .arg("show-derivation")
            .args(drvs.output_lines())
            .succeed();
        assert!(known.output().contains("-high.drv"));
        debris::assert_clean(&store);
        debris::assert_verifies(&store);
        assert!(walk(&store.real(output)).len() == 1);
    }
}

#[test]
fn a_fixed_output_with_other_contents_is_refused_and_nothing_is_left() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drv = store.instantiate_one(
        r#"
        mk "fixed" "printf %s made > $out" {
          outputHashAlgo = "sha256"; outputHash = builtins.hashString "sha256" "promised";
        }
        "#,
    );
    let finished = store.goalctl(["build", &drv]).run();
    finished.expect_status(102).expect_error("hash mismatch");
    let promised = store.output_of(&drv, "out");
    assert!(!Snapshot::of(&store).objects.contains_key(&promised));
    debris::assert_clean(&store);
    debris::assert_verifies(&store);
}
