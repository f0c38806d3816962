//! Floating outputs on the command line: what is known of realisations, and goals that float.

use std::fs;

use it::{Invocation, Profile, TestStore, debris, requirement};
use serde_json::Value;

use super::{CHAIN, Realisations, goalctl, instantiate, nix, sorted, with_feature};
use crate::commands::assert_same_output;

/// The same as [`GOALS_IN_NIX`].
const GOALS: &str = r#"
[defaults]
system = "x86_64-linux"
builder = "${source:tools}/bin/sh"

[goal.base]
sources = { tools = "tools" }
args = ["-ec", "echo base > $out"]
floating = {}

[goal.flat]
sources = { tools = "tools" }
args = ["-ec", "echo flat > $out"]
env = { kind = "flat" }
floating = { mode = "flat", algorithm = "sha512" }

[goal.multi]
sources = { tools = "tools" }
args = ["-ec", "echo ${base} > $out; echo ${output:out} > $dev"]
outputs = ["out", "dev"]
floating = { mode = "recursive" }

[goal.plain]
sources = { tools = "tools" }
args = ["-ec", "echo ${multi} ${multi.dev} ${flat} > $out"]
"#;

/// What Nix is told for the same derivations.
const GOALS_IN_NIX: &str = r#"
let
  make = name: script: extra: derivation ({
    inherit name;
    system = "x86_64-linux";
    builder = "${tools}/bin/sh";
    args = [ "-ec" script ];
  } // extra);
  base = make "base" "echo base > $out" ca;
  flat = make "flat" "echo flat > $out" {
    kind = "flat";
    __contentAddressed = true; outputHashMode = "flat"; outputHashAlgo = "sha512";
  };
  multi = make "multi" "echo ${base} > $out; echo ${placeholder "out"} > $dev"
    (ca // { outputs = [ "out" "dev" ]; });
  plain = make "plain" "echo ${multi} ${multi.dev} ${flat} > $out" { };
in [ base flat multi plain ]
"#;

fn realisation_info(store: &TestStore, arguments: &[&str]) -> [Invocation; 2] {
    let ours = store.goalctl(["realisation", "info"]);
    let theirs = store.nix_program("nix").args(["realisation", "info"]);
    [ours, theirs].map(|it| with_feature(it.args(arguments)))
}

#[test]
fn what_is_known_of_realisations_is_printed_as_nix_prints_it() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let all = format!("let {CHAIN} in [ base multi top deferred last ]");
    let drvs = instantiate(&store, &all);
    let built = goalctl(&store, &drvs).succeed();
    let mut arguments: Vec<&str> = drvs.iter().map(String::as_str).collect();
    // A path is not asked which realisation it is.
    let paths = built.output_lines();
    arguments.push(&paths[0]);
    let [ours, theirs] = realisation_info(&store, &arguments);
    let told = assert_same_output(ours, theirs);
    assert_eq!(told.output_lines().len(), 8, "{told}");
    // Nix prints no newline after its JSON.
    let [ours, theirs] = realisation_info(&store, &arguments).map(|it| it.arg("--json").succeed());
    assert_eq!(ours.output(), theirs.output());
    let json: Value = serde_json::from_str(&ours.output()).expect("it is JSON");
    assert_eq!(json.as_array().map(Vec::len), Some(8));

    let multi = drvs.iter().find(|drv| drv.ends_with("-multi.drv"));
    let multi = multi.expect("it is one of them");
    let [ours, _] = realisation_info(&store, &[&format!("{multi}^dev")]);
    let told = ours.succeed().output();
    assert!(told.contains("!dev /nix/store/"), "{told}");
    assert_eq!(told.lines().count(), 1);
}

#[test]
fn an_output_without_a_realisation_is_named_and_without_the_feature_none_is_looked_for() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drvs = instantiate(&store, &format!("let {CHAIN} in [ base ]"));
    for invocation in realisation_info(&store, &[&drvs[0]]) {
        invocation.run().expect_status(1);
    }
    let [ours, _] = realisation_info(&store, &[&drvs[0]]);
    ours.run().expect_error(&format!(
        "no realisation of output 'out' of '{}' is known",
        drvs[0]
    ));
    goalctl(&store, &drvs).succeed();
    for invocation in realisation_info(&store, &[&drvs[0]]) {
        let refused = invocation.option("experimental-features", "nix-command");
        refused
            .run()
            .expect_status(1)
            .expect_error("ca-derivations");
    }
    debris::assert_clean(&store);
}

#[test]
fn goals_that_float_are_the_derivations_that_nix_makes_of_the_same_recipe() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let stores = [TestStore::of(profile), TestStore::of(profile)];
        let [by_nix, by_goalctl] = &stores;
        let drvs = instantiate(by_nix, GOALS_IN_NIX);
        fs::write(by_goalctl.dir().join("goals.toml"), GOALS).expect("a fresh file can be written");
        let made = with_feature(by_goalctl.goalctl(["instantiate", "goals.toml"])).succeed();
        assert_eq!(made.output_lines(), drvs);
        for drv in &drvs {
            let [theirs, ours] = stores.each_ref().map(|store| fs::read(store.real(drv)));
            assert_eq!(ours.expect("it was made"), theirs.expect("it was made"));
        }
        let json = with_feature(by_goalctl.goalctl(["instantiate", "--json", "goals.toml#plain"]));
        let json: Value = serde_json::from_str(&json.succeed().output()).expect("it is JSON");
        assert_eq!(json[0]["outputs"]["out"], Value::Null);

        let built = with_feature(by_goalctl.goalctl(["build", "goals.toml"])).succeed();
        assert_eq!(sorted(&built), sorted(&nix(by_nix, &drvs).succeed()));
        let shown = with_feature(by_goalctl.goalctl(["realisation", "info", "goals.toml#multi"]));
        assert_eq!(shown.succeed().output_lines().len(), 2);
        super::assert_same(by_nix, by_goalctl);
        assert!(!Realisations::of(by_goalctl).outputs.is_empty());
    }
}

#[test]
fn a_goal_that_floats_needs_the_feature_and_a_file_cannot_switch_it_on() {
    let store = TestStore::new();
    let file = store.dir().join("goals.toml");
    fs::write(&file, GOALS).expect("a fresh file can be written");
    for command in ["build", "instantiate"] {
        let refused = store.goalctl([command, "goals.toml#base"]).run();
        refused.expect_status(1).expect_error(
            "goal 'base', key 'floating': this needs 'ca-derivations' among the \
             'experimental-features'",
        );
    }
    let settings = "[settings]\nexperimental-features = ['ca-derivations']\n";
    fs::write(&file, settings.to_owned() + GOALS).expect("the file is ours");
    let refused = store.goalctl(["instantiate", "goals.toml#base"]).run();
    refused.expect_status(1).expect_error("unknown field");
}
