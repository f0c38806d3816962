//! goalctl and genuine Nix 2.8.0 side by side: the same derivations, two stores, one result.

use std::collections::BTreeSet;

use it::fixtures::Fixtures;
use it::graph::LayeredGraph;
use it::snapshot::Snapshot;
use it::{Finished, Profile, TestStore, debris, requirement};

/// Attributes of the fixtures' group `build` that need what goalctl does not have yet, or that
/// record a fault of Nix 2.8.
const LEFT_OUT: &[(&str, &str)] = &[(
    "structured",
    "variables that name files outside the sandbox",
)];

/// Of two recipes for one fixed output, whichever is built is the deriver of what uses it; with
/// only one of each pair the deriver does not depend on the order.
const SECOND_RECIPES: &[&str] = &["fixed-way-two", "uses-way-two"];

#[test]
fn a_layered_graph_of_300_derivations_becomes_the_same_store_under_goalctl_and_under_nix() {
    if !requirement::genuine_nix() {
        return;
    }
    let graph = LayeredGraph {
        n_layers: 10,
        width: 30,
        n_inputs: 3,
        seed: 300,
    };
    for profile in Profile::all() {
        let by_nix = TestStore::of(profile);
        let by_goalctl = TestStore::of(profile);
        let drvs = by_nix.instantiate(&graph.expression(""));
        assert_eq!(drvs, by_goalctl.instantiate(&graph.expression("")));
        assert_eq!(drvs.len(), 300);
        assert_built_alike(&by_nix, &by_goalctl, &drvs);
    }
}

#[test]
fn the_fixtures_become_the_same_store_under_goalctl_and_under_nix() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let by_nix = TestStore::of(profile);
        let by_goalctl = TestStore::of(profile);
        let attributes: Vec<String> = fixtures
            .group("build")
            .into_keys()
            .filter(|name| !LEFT_OUT.iter().any(|(left_out, _)| left_out == name))
            .filter(|name| !SECOND_RECIPES.contains(&name.as_str()))
            .collect();
        let drvs = instantiate_fixtures(&by_nix, &fixtures, "build", &attributes);
        assert_eq!(
            drvs,
            instantiate_fixtures(&by_goalctl, &fixtures, "build", &attributes)
        );
        assert_built_alike(&by_nix, &by_goalctl, &drvs);
    }
}

#[test]
fn structured_attributes_differ_from_those_of_nix_only_in_where_their_files_are() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let attributes = ["structured".to_owned()];
        let seen = [TestStore::of(profile), TestStore::of(profile)].map(|store| {
            let drvs = instantiate_fixtures(&store, &fixtures, "build", &attributes);
            (drvs, store)
        });
        let [(by_nix, nix_store), (by_goalctl, store)] = &seen;
        assert_eq!(by_nix, by_goalctl);
        realise(nix_store, by_nix);
        build(store, by_goalctl);
        let output = store.output_of(&by_nix[0], "out");
        let read = |store: &TestStore, name: &str| {
            let path = store.real(&output).join(name);
            std::fs::read_to_string(path).expect("the builder wrote it")
        };
        for file in ["attrs.json", "attrs.sh"] {
            assert_eq!(read(store, file), read(nix_store, file), "{file}");
        }
        let variables = |store: &TestStore| -> (Vec<String>, Vec<String>) {
            let lines = read(store, "env").split('\0').map(str::to_owned).collect();
            let lines: BTreeSet<String> = lines;
            lines
                .into_iter()
                .partition(|line| line.starts_with("NIX_ATTRS_"))
        };
        let (files, others) = variables(store);
        assert_eq!(others, variables(nix_store).1);
        let expected = [
            "NIX_ATTRS_JSON_FILE=/build/.attrs.json",
            "NIX_ATTRS_SH_FILE=/build/.attrs.sh",
        ];
        assert_eq!(files, expected);
        debris::assert_clean(store);
    }
}

#[test]
fn what_one_program_began_the_other_finishes() {
    if !requirement::genuine_nix() {
        return;
    }
    let graph = LayeredGraph {
        n_layers: 6,
        width: 4,
        n_inputs: 2,
        seed: 24,
    };
    for profile in Profile::all() {
        let by_nix = TestStore::of(profile);
        let drvs = by_nix.instantiate(&graph.expression(""));
        realise(&by_nix, &drvs);

        // The lower layers by one program, all by the other, in both orders.
        let by_both = [TestStore::of(profile), TestStore::of(profile)];
        for store in &by_both {
            assert_eq!(drvs, store.instantiate(&graph.expression("")));
        }
        let [goalctl_first, nix_first] = &by_both;
        build(goalctl_first, &drvs[..12]);
        realise(goalctl_first, &drvs);
        realise(nix_first, &drvs[..12]);
        build(nix_first, &drvs);

        for store in &by_both {
            debris::assert_clean(store);
            debris::assert_verifies(store);
            Snapshot::of(&by_nix).assert_same_as(&Snapshot::of(store));
        }
    }
}

#[test]
fn a_build_that_fails_has_the_exit_status_of_nix_and_says_what_failed() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        for build in fixtures.failing_builds() {
            let words = words_of_failure(&build.attribute);
            let attribute = std::slice::from_ref(&build.attribute);
            let drvs = instantiate_fixtures(&store, &fixtures, "fail", attribute);
            let [drv] = drvs.as_slice() else {
                panic!("{attribute:?} is one derivation");
            };
            assert!(drv.ends_with(&build.drv_name), "{drv} is another one");
            // Nix was given the limit by a flag that only it has, and as an option.
            let options = build
                .options
                .iter()
                .skip_while(|word| *word == "--max-build-log-size" || *word == "2000");
            let finished = store.goalctl(["build", drv]).args(options).run();
            finished.expect_status(build.status);
            for word in words {
                finished.expect_error(word);
            }
            debris::assert_clean(&store);
        }
    }
}

#[test]
fn several_failures_combine_their_bits_only_when_going_on() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let attributes = ["exit-1", "hash-mismatch-flat", "timeout", "dependency"].map(str::to_owned);
    let drvs = instantiate_fixtures(&store, &fixtures, "fail", &attributes);
    let going_on = store
        .goalctl(["build", "-k", "--timeout", "2"])
        .args(&drvs)
        .run();
    going_on.expect_status(103);
    for drv in &drvs {
        going_on.expect_error(drv);
    }
    debris::assert_clean(&store);

    // One at a time and the first fails at once, so nothing else was ever started.
    let stopping = store
        .goalctl(["build", "-j", "1", "--timeout", "2"])
        .arg(&drvs[0])
        .run();
    stopping.expect_status(100);
    debris::assert_clean(&store);
}

/// Returns what goalctl must say of a failing fixture.
fn words_of_failure(attribute: &str) -> &'static [&'static str] {
    match attribute {
        "builder-absent" => &["/no/such/builder"],
        "dependency" => &["fail-dependency.drv", "fail-exit-1.drv", "exit code 1"],
        "exit-1" => &["fail-exit-1.drv", "exit code 1", "a line of error"],
        "exit-100" => &["fail-exit-100.drv", "exit code 100"],
        "fixed-with-reference" | "irreproducible" => &[],
        "flat-is-directory" | "flat-is-executable" => &["flat", "-fail-flat-is-"],
        "hash-mismatch-flat" | "hash-mismatch-recursive" => &["hash mismatch", "sha256-"],
        "killed" => &["fail-killed.drv", "signal"],
        "log-limit" => &["fail-log-limit.drv", "2000"],
        "missing-feature" => &["no-such-feature"],
        "no-output" => &["failed to produce output", "'out'"],
        "one-output-missing" => &["failed to produce output", "'dev'"],
        "other-system" => &["aarch64-linux"],
        "output-cycle" => &["cycle"],
        "silence" => &["fail-silence.drv", "2 seconds"],
        "timeout" => &["fail-timeout.drv", "timed out", "2 seconds"],
        "disallowed-reference" => &["disallowedReferences", "-simple"],
        "disallowed-requisite" => &["disallowedRequisites", "-diamond-base, through /nix/store/"],
        "not-allowed-reference" => &["allowedReferences", "-simple"],
        "not-allowed-requisite" => &["allowedRequisites", "-diamond-base, through /nix/store/"],
        "structured-requisites" => &["allowedRequisites", "-fail-structured-requisites"],
        "structured-too-big" => &["too large", "limit is 1000 bytes"],
        other => panic!("nobody has said yet what failure {other} is"),
    }
}

/// Builds the same derivations by each program in its own store and compares everything; then has
/// each program ask for what the other built.
fn assert_built_alike(by_nix: &TestStore, by_goalctl: &TestStore, drvs: &[String]) {
    let nix_outputs = realise(by_nix, drvs);
    let goalctl_outputs = build(by_goalctl, drvs);
    assert_eq!(
        sorted(&goalctl_outputs),
        sorted(&nix_outputs),
        "what the two programs print"
    );

    let snapshot = Snapshot::of(by_nix);
    snapshot.assert_same_as(&Snapshot::of(by_goalctl));
    for store in [by_nix, by_goalctl] {
        debris::assert_clean(store);
        debris::assert_verifies(store);
    }

    let again = by_goalctl.nix_store(["--realise"]).args(drvs).succeed();
    assert!(!again.error().contains("building '"), "Nix builds {again}");
    let again = by_nix.goalctl(["build"]).args(drvs).succeed();
    assert_eq!(sorted(&again), sorted(&nix_outputs));
    for store in [by_nix, by_goalctl] {
        debris::assert_clean(store);
        snapshot.assert_same_as(&Snapshot::of(store));
    }
}

/// Has genuine Nix build derivations.
fn realise(store: &TestStore, drvs: &[String]) -> Finished {
    store.nix_store(["--realise"]).args(drvs).succeed()
}

/// Has goalctl build derivations.
fn build(store: &TestStore, drvs: &[String]) -> Finished {
    store.goalctl(["build"]).args(drvs).succeed()
}

fn sorted(finished: &Finished) -> BTreeSet<String> {
    finished.output_lines().into_iter().collect()
}

/// Has genuine Nix write derivations of the fixtures into a store.
fn instantiate_fixtures(
    store: &TestStore,
    fixtures: &Fixtures,
    group: &str,
    attributes: &[String],
) -> Vec<String> {
    let tree = store.dir().join("tmp/tree");
    let shell = requirement::find_program("sh").expect("there is a shell");
    store
        .program(&shell)
        .arg(fixtures.expressions().join("mktree"))
        .arg(&tree)
        .succeed();
    let mut invocation = store
        .nix_program("nix-instantiate")
        .arg(fixtures.expressions())
        .arg("--arg")
        .arg("tree")
        .arg(&tree);
    for attribute in attributes {
        invocation = invocation.arg("-A").arg(format!("{group}.{attribute}"));
    }
    let drvs = invocation
        .succeed()
        .output_lines()
        .iter()
        .map(|line| line.split('!').next().unwrap_or(line).to_owned())
        .collect();
    std::fs::remove_dir_all(&tree).expect("the tree can be removed");
    drvs
}
