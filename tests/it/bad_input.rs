//! What people and broken machines give goalctl: a clear line, the right exit status, nothing left.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use it::snapshot::Snapshot;
use it::{Finished, Profile, TestStore, damage, debris, requirement};

/// A path that is well-formed and in no store.
const ABSENT: &str = "/nix/store/00000000000000000000000000000000-absent";

/// A store that holds one derivation which can be built.
fn store_with_a_derivation() -> Option<(TestStore, String)> {
    requirement::genuine_nix().then(|| {
        let store = TestStore::new();
        let drv = store.script("plain", "echo plain > $out");
        (store, drv)
    })
}

/// Runs `goalctl build` in vain and checks that it fails in one line, leaving nothing.
#[track_caller]
fn refused(store: &TestStore, args: &[&str], words: &[&str]) -> Finished {
    let finished = store.goalctl(["build"]).args(args).run();
    assert_refused(store, &finished, words);
    finished
}

#[track_caller]
fn assert_refused(store: &TestStore, finished: &Finished, words: &[&str]) {
    finished.expect_status(1);
    for word in words {
        finished.expect_error(word);
    }
    let said = finished.error();
    let n_errors = said
        .lines()
        .filter(|line| line.starts_with("error"))
        .count();
    assert_eq!(n_errors, 1, "one line must say what went wrong:\n{said}");
    assert!(!said.contains("panicked"), "it panicked:\n{said}");
    debris::assert_clean(store);
}

#[test]
fn a_path_that_does_not_exist_is_named() {
    let Some((store, _)) = store_with_a_derivation() else {
        return;
    };
    refused(&store, &[ABSENT], &[ABSENT]);
    refused(&store, &[&format!("{ABSENT}.drv")], &[ABSENT]);
}

#[test]
fn a_word_that_is_no_store_path_is_named() {
    let Some((store, _)) = store_with_a_derivation() else {
        return;
    };
    for word in ["nonsense", "/etc/passwd", "/nix/store/short-x", ""] {
        refused(&store, &[word], &[word]);
    }
}

#[test]
fn an_output_that_the_derivation_does_not_have_is_named() {
    let Some((store, drv)) = store_with_a_derivation() else {
        return;
    };
    refused(&store, &[&format!("{drv}^doc")], &["doc", &drv]);
    refused(&store, &[&format!("{drv}!doc")], &["doc", &drv]);
}

#[test]
fn a_file_that_is_no_derivation_is_refused_where_it_stops_being_one() {
    let Some((store, drv)) = store_with_a_derivation() else {
        return;
    };
    let text = fs::read_to_string(store.real(&drv)).expect("a derivation is text");
    let cut = &text[..text.len() / 2];
    let spoilt = text.replacen("[\"-ec\"", "[-ec\"", 1);
    let position = spoilt.find("-ec\"").expect("it was spoilt there");
    let nested = "[".repeat(1_000_000);
    for (name, contents, at) in [
        ("cut", cut, cut.len()),
        ("spoilt", spoilt.as_str(), position),
        ("empty", "", 0),
        ("nested", &format!("Derive({nested}"), 8),
        ("prose", "this is no derivation", 0),
    ] {
        let file = store.dir().join(format!("{name}.drv"));
        fs::write(&file, contents).expect("a fresh file can be written");
        let added = store.goalctl(["add"]).arg(&file).run();
        assert_refused(&store, &added, &[name, &at.to_string()]);

        // The same file where somebody else has put it.
        let path = store.smuggle(&format!("{name}.drv"), contents);
        refused(&store, &[&path], &[&path, &at.to_string()]);
    }
}

#[test]
fn a_derivation_whose_source_is_gone_says_which() {
    let Some((store, drv)) = store_with_a_derivation() else {
        return;
    };
    let tools = reference_named(&store, &drv, "-tools");
    let database = it::snapshot::open(&store.database());
    database
        .execute_batch(&format!(
            "delete from Refs where reference = (select id from ValidPaths where path = '{tools}');
             delete from ValidPaths where path = '{tools}';"
        ))
        .expect("the database can be changed");
    damage::lose(&store.real(&tools));
    let finished = refused(&store, &[&drv], &[&tools]);
    assert!(finished.error().contains(&drv), "who wanted it? {finished}");
}

#[test]
fn a_builder_that_is_not_there_is_the_builders_failure() {
    let Some((store, _)) = store_with_a_derivation() else {
        return;
    };
    for builder in ["${tools}/bin/absent", "/no/such/builder", "${tools}"] {
        let drv = store.instantiate_one(&format!(
            "derivation {{ name = \"lost\"; system = \"x86_64-linux\"; builder = \"{builder}\"; }}"
        ));
        let finished = store.goalctl(["build", &drv]).run();
        finished.expect_status(100).expect_error(&drv);
        let name = builder.rsplit('/').next().unwrap_or(builder);
        finished.expect_error(name.trim_start_matches("${").trim_end_matches('}'));
        debris::assert_clean(&store);
    }
}

#[test]
fn a_builder_for_another_system_fails_alone_and_says_which() {
    let Some((store, drv)) = store_with_a_derivation() else {
        return;
    };
    let foreign = store.instantiate_one(
        "derivation { name = \"foreign\"; system = \"riscv64-plan9\"; builder = \"/bin/sh\"; }",
    );
    let finished = refused(
        &store,
        &["-k", &foreign, &drv],
        &["riscv64-plan9", &foreign],
    );
    assert!(
        Snapshot::of(&store)
            .objects
            .contains_key(&store.output_of(&drv, "out"))
    );
    // It is no path that was made, so it is not printed.
    assert!(!finished.output().contains("foreign"));
}

#[test]
fn a_feature_that_this_machine_lacks_is_named() {
    let Some((store, _)) = store_with_a_derivation() else {
        return;
    };
    let drv = store.instantiate_one(
        "mk \"choosy\" \"echo x > $out\" { requiredSystemFeatures = [ \"quantum\" ]; }",
    );
    refused(&store, &[&drv], &["quantum", &drv]);
    store
        .goalctl(["build", &drv])
        .option("extra-system-features", "quantum")
        .succeed();
}

#[test]
fn without_build_slots_a_goal_fails_alone_and_says_so() {
    let Some((store, drv)) = store_with_a_derivation() else {
        return;
    };
    refused(&store, &["-j", "0", &drv], &["max-jobs", &drv]);
    store.goalctl(["build", &drv]).succeed();
    // What is valid needs no slot.
    store.goalctl(["build", "-j", "0", &drv]).succeed();
}

#[test]
fn an_unknown_option_is_refused() {
    let Some((store, drv)) = store_with_a_derivation() else {
        return;
    };
    let unknown_flag = store.goalctl(["build", "--no-such-flag", &drv]).run();
    unknown_flag.expect_status(1).expect_error("--no-such-flag");
    let unknown_command = store.goalctl(["frobnicate"]).run();
    unknown_command.expect_status(1).expect_error("frobnicate");
    let nonsense = store
        .goalctl(["build", &drv])
        .option("max-jobs", "many")
        .run();
    nonsense.expect_status(1).expect_error("max-jobs");
    nonsense.expect_error("many");
    let unknown_setting = store
        .goalctl(["build", &drv])
        .option("no-such-setting", "1")
        .run();
    unknown_setting.expect_error("no-such-setting");
    debris::assert_clean(&store);
}

#[test]
fn a_store_that_cannot_be_written_is_named() {
    if !requirement::genuine_nix() || !Profile::all().contains(&Profile::Ordinary) {
        return;
    }
    let store = TestStore::of(Profile::Ordinary);
    let drv = store.script("plain", "echo plain > $out");
    let objects = store.objects();
    fs::set_permissions(&objects, fs::Permissions::from_mode(0o555)).expect("the store is ours");
    let finished = store.goalctl(["build", &drv]).run();
    finished.expect_status(1);
    finished.expect_error("nix/store");
    finished.expect_error("ermission denied");
    fs::set_permissions(&objects, fs::Permissions::from_mode(0o755)).expect("the store is ours");
    debris::assert_clean(&store);
    store.goalctl(["build", &drv]).succeed();
}

#[test]
fn a_store_that_cannot_be_made_is_named() {
    if !Profile::all().contains(&Profile::Ordinary) {
        return;
    }
    let store = TestStore::of(Profile::Ordinary);
    fs::set_permissions(store.dir(), fs::Permissions::from_mode(0o555)).expect("the store is ours");
    let finished = store.goalctl(["build", ABSENT]).run();
    finished.expect_status(1).expect_error("ermission denied");
    finished.expect_error(&store.root().to_string_lossy());
    assert!(!store.root().exists());
}

#[test]
fn a_database_of_a_newer_schema_is_left_alone() {
    let Some((store, drv)) = store_with_a_derivation() else {
        return;
    };
    let schema = store.state().join("db/schema");
    let before = fs::read(store.database()).expect("the database can be read");
    fs::write(&schema, "11").expect("the store is ours");
    let finished = store.goalctl(["build", &drv]).run();
    finished.expect_status(1).expect_error("schema");
    finished.expect_error("11");
    assert_eq!(fs::read(&schema).expect("it is there"), b"11");
    assert_eq!(fs::read(store.database()).expect("it is there"), before);
    fs::write(&schema, "10").expect("the store is ours");
    store.goalctl(["build", &drv]).succeed();
    debris::assert_clean(&store);
}

#[test]
fn a_corrupt_database_is_refused_and_never_made_anew() {
    let Some((store, drv)) = store_with_a_derivation() else {
        return;
    };
    for name in ["db.sqlite-wal", "db.sqlite-shm"] {
        // Absent where the last program closed the database well.
        drop(fs::remove_file(store.state().join("db").join(name)));
    }
    let sound = fs::read(store.database()).expect("the database can be read");
    let mut headless = sound.clone();
    headless[..100].fill(b'x');
    let mut holed = sound.clone();
    holed[4096..].fill(0);
    for (kind, contents) in [("headless", &headless), ("holed", &holed)] {
        fs::write(store.database(), contents).expect("the store is ours");
        let finished = store.goalctl(["build", &drv]).run();
        finished.expect_status(1);
        finished.expect_error("db.sqlite");
        assert!(!finished.error().contains("panicked"), "{kind}: {finished}");
        let after = fs::read(store.database()).expect("it is there");
        assert_eq!(after.len(), contents.len(), "{kind}: it was made anew");
        assert!(!store.real(&output_path_in(&drv, &store)).exists());
    }
    // An empty schema file is what a power cut leaves.
    fs::write(store.database(), &sound).expect("the store is ours");
    fs::write(store.state().join("db/schema"), "").expect("the store is ours");
    let finished = store.goalctl(["build", &drv]).run();
    finished.expect_status(1).expect_error("schema");
}

#[test]
fn an_output_that_was_not_made_is_named() {
    let Some((store, _)) = store_with_a_derivation() else {
        return;
    };
    let drv = store
        .instantiate_one("mk \"forgetful\" \"echo x > $out\" { outputs = [ \"out\" \"dev\" ]; }");
    refused(&store, &[&drv], &["'dev'", &drv]);
    // The output that was made is not registered alone.
    let objects = Snapshot::of(&store).objects;
    assert!(!objects.contains_key(&store.output_of(&drv, "out")));
}

#[test]
fn an_output_of_a_kind_that_no_store_holds_is_refused_by_its_inner_path() {
    let Some((store, _)) = store_with_a_derivation() else {
        return;
    };
    for (name, script, inner) in [
        ("pipe", "mkfifo $out", "-pipe"),
        (
            "inner-pipe",
            "mkdir -p $out/a/b; mkfifo $out/a/b/pipe",
            "a/b/pipe",
        ),
        ("whiteout", "mkdir $out; mknod $out/gone c 0 0", "gone"),
    ] {
        let drv = store.script(name, script);
        refused(&store, &[&drv], &[inner, &drv]);
    }
}

#[test]
fn an_output_that_others_may_write_is_refused() {
    let Some((store, _)) = store_with_a_derivation() else {
        return;
    };
    for (name, mode) in [("group", "0664"), ("world", "0646")] {
        let drv = store.script(name, &format!("echo x > $out; chmod {mode} $out"));
        refused(&store, &[&drv], &["permission", &drv]);
    }
}

#[test]
fn goals_that_need_each_other_are_refused_by_the_circle_that_they_form() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let file = store.dir().join("goals.toml");
    fs::write(
        &file,
        r#"
        [goal.hen]
        system = "x86_64-linux"
        builder = "/bin/sh"
        inputs = ["egg"]

        [goal.egg]
        system = "x86_64-linux"
        builder = "/bin/sh"
        inputs = ["hen"]
        "#,
    )
    .expect("a fresh file can be written");
    let finished = store.goalctl(["build"]).arg(&file).run();
    finished.expect_status(1).expect_error("hen");
    finished.expect_error("egg");
}

/// Returns what a valid path refers to, by the end of its name.
fn reference_named(store: &TestStore, path: &str, end: &str) -> String {
    Snapshot::of(store).objects[path]
        .references
        .iter()
        .find(|reference| reference.ends_with(end))
        .expect("the derivation refers to it")
        .clone()
}

/// Returns the path of `out` by reading the derivation, without any database.
fn output_path_in(drv: &str, store: &TestStore) -> String {
    let text = fs::read_to_string(store.real(drv)).expect("a derivation is text");
    text.split('"')
        .find(|word| word.starts_with("/nix/store/"))
        .expect("the first path of a derivation is an output's")
        .to_owned()
}
