//! Outputs whose paths follow from their contents: both programs on the same derivations, what the
//! one realised found by the other, and nothing built whose inputs came out the same.

use std::collections::{BTreeMap, BTreeSet};

use it::fixtures::Fixtures;
use it::snapshot::{self, Snapshot};
use it::{Finished, Invocation, Profile, TestStore, debris, requirement};

mod commands;
mod goals;
mod places;

/// What every invocation of these tests is told, of either program.
const FEATURE: (&str, &str) = ("experimental-features", "nix-command ca-derivations");

/// Attributes that make a derivation's outputs float.
const CA: &str = "ca = { __contentAddressed = true; outputHashMode = \"recursive\"; \
                  outputHashAlgo = \"sha256\"; };";

/// The tables of realisations: signatures by output and path, and what refers to what.
#[derive(Debug, PartialEq, Eq)]
struct Realisations {
    outputs: BTreeMap<String, (String, String)>,
    /// Nix may write a row twice when a realisation is registered again.
    references: BTreeSet<(String, String)>,
}

impl Realisations {
    fn of(store: &TestStore) -> Self {
        let database = snapshot::open(&store.database());
        let mut outputs = database
            .prepare(
                "select r.drvPath || '!' || r.outputName, v.path, r.signatures \
                 from Realisations r join ValidPaths v on v.id = r.outputPath",
            )
            .expect("the database has tables of realisations");
        let outputs = outputs
            .query_map([], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))
            .expect("realisations can be read")
            .collect::<Result<_, _>>()
            .expect("a realisation has these columns");
        let mut references = database
            .prepare(
                "select a.drvPath || '!' || a.outputName, b.drvPath || '!' || b.outputName \
                 from RealisationsRefs r join Realisations a on a.id = r.referrer \
                 join Realisations b on b.id = r.realisationReference",
            )
            .expect("the database has tables of realisations");
        let references = references
            .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("references can be read")
            .collect::<Result<_, _>>()
            .expect("a reference has two ends");
        Self {
            outputs,
            references,
        }
    }
}

fn with_feature(invocation: Invocation) -> Invocation {
    invocation.option(FEATURE.0, FEATURE.1)
}

/// Has genuine Nix evaluate an expression in which `ca` is at hand.
pub(crate) fn instantiate(store: &TestStore, expression: &str) -> Vec<String> {
    // Whether an output floats is in the derivation; only building one needs the feature, but
    // evaluating does as well.
    let conf = store.dir().join("conf/nix.conf");
    let text = std::fs::read_to_string(&conf).expect("the configuration can be read");
    std::fs::write(
        &conf,
        text.replace("= nix-command\n", "= nix-command ca-derivations\n"),
    )
    .expect("the configuration can be written");
    store.instantiate(&format!("let {CA} in {expression}"))
}

fn goalctl(store: &TestStore, drvs: &[String]) -> Invocation {
    with_feature(store.goalctl(["build"]).args(drvs))
}

fn nix(store: &TestStore, drvs: &[String]) -> Invocation {
    with_feature(store.nix_store(["--realise"]).args(drvs))
}

fn sorted(finished: &Finished) -> BTreeSet<String> {
    finished.output_lines().into_iter().collect()
}

/// Fails unless both stores hold the same objects and remember the same of them, and nothing is left
/// in the second one; Nix leaves its locks where a build fails.
#[track_caller]
fn assert_same(one: &TestStore, other: &TestStore) {
    Snapshot::of(one).assert_same_as(&Snapshot::of(other));
    assert_eq!(Realisations::of(one), Realisations::of(other));
    debris::assert_clean(other);
    for store in [one, other] {
        debris::assert_verifies(store);
    }
}

/// Builds what an expression is by each program in a store of its own, and compares the stores and
/// how the programs ended; returns the stores, Nix's first, and what goalctl said.
fn assert_alike(
    profile: Profile,
    expression: &str,
    options: &[(&str, &str)],
) -> ([TestStore; 2], Finished) {
    let stores = [TestStore::of(profile), TestStore::of(profile)];
    let [by_nix, by_goalctl] = &stores;
    let drvs = instantiate(by_nix, expression);
    assert_eq!(drvs, instantiate(by_goalctl, expression));
    let add = |invocation: Invocation| {
        let options = options.iter();
        options.fold(invocation, |it, (name, value)| it.option(name, value))
    };
    let built_by_nix = add(nix(by_nix, &drvs)).run();
    let finished = add(goalctl(by_goalctl, &drvs)).run();
    finished.expect_status(built_by_nix.code());
    assert_eq!(sorted(&finished), sorted(&built_by_nix));
    assert_same(by_nix, by_goalctl);
    (stores, finished)
}

#[test]
fn the_fixtures_become_the_same_store_under_goalctl_and_under_nix_and_as_it_was_recorded() {
    let Some(fixtures) = Fixtures::find() else {
        return;
    };
    if !requirement::genuine_nix() {
        return;
    }
    let recorded = fixtures.floating_outputs();
    for profile in Profile::all() {
        // Of two recipes with one result whichever is built first is the deriver.
        for left_out in ["two", "one"] {
            let attributes: Vec<String> = recorded
                .keys()
                .filter(|attribute| !attribute.ends_with(&format!("-{left_out}")))
                .cloned()
                .collect();
            let stores = [TestStore::of(profile), TestStore::of(profile)];
            let drvs = stores.each_ref().map(|store| {
                with_feature(fixtures.instantiation(store, "ca-build", &attributes))
                    .succeed()
                    .output_lines()
                    .iter()
                    .map(|line| line.split('!').next().unwrap_or(line).to_owned())
                    .collect::<BTreeSet<String>>()
            });
            let drvs = drvs.map(|drvs| drvs.into_iter().collect::<Vec<String>>());
            let [by_nix, by_goalctl] = &stores;
            nix(by_nix, &drvs[0]).succeed();
            let built = goalctl(by_goalctl, &drvs[1]).succeed();
            assert_same(by_nix, by_goalctl);
            let expected: BTreeSet<String> = attributes
                .iter()
                .flat_map(|attribute| recorded[attribute].values().cloned())
                .collect();
            assert_eq!(sorted(&built), expected);
        }
    }
}

/// A derivation that floats, one of two outputs that uses it, and what comes of those.
const CHAIN: &str = r#"
  base = mk "base" "echo base > $out" ca;
  plain = mk "plain" "echo plain > $out" { };
  multi = mk "multi" "mkdir $out; echo $out $dev > $out/x; ln -s $out/x $out/y; echo ${base} > $dev"
    (ca // { outputs = [ "out" "dev" ]; });
  top = mk "top" "echo ${multi.dev} ${plain} > $out" ca;
  deferred = mk "deferred" "echo ${multi} > $out; echo $out > $doc" { outputs = [ "out" "doc" ]; };
  last = mk "last" "echo ${deferred.doc} ${top} > $out" { };
"#;

#[test]
fn what_one_program_realised_the_other_uses_in_both_orders() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let expression = |wanted: &str| format!("let {CHAIN} in {wanted}");
        let all = "[ multi top deferred last ]";
        let (stores, _) = assert_alike(profile, &expression(all), &[]);
        let reference = &stores[0];

        let by_both = [TestStore::of(profile), TestStore::of(profile)];
        let first = by_both
            .each_ref()
            .map(|store| instantiate(store, &expression("top")));
        let drvs = by_both
            .each_ref()
            .map(|store| instantiate(store, &expression(all)));
        let [goalctl_first, nix_first] = &by_both;
        goalctl(goalctl_first, &first[0]).succeed();
        nix(goalctl_first, &drvs[0]).succeed();
        nix(nix_first, &first[1]).succeed();
        goalctl(nix_first, &drvs[1]).succeed();
        assert_same(reference, goalctl_first);
        assert_same(reference, nix_first);

        // Nothing is left to do for either.
        let again = goalctl(goalctl_first, &drvs[0]).succeed();
        assert!(!again.error().contains("building '"), "{again}");
        let nix_again = nix(nix_first, &drvs[1]).succeed();
        assert!(!nix_again.error().contains("building '"), "{nix_again}");
        assert_eq!(sorted(&again), sorted(&nix_again));
        let planned = with_feature(nix_first.goalctl(["build", "--dry-run", "--json"]))
            .args(&drvs[1])
            .succeed();
        assert!(planned.output().contains(r#""willBuild": []"#), "{planned}");
        assert_same(goalctl_first, nix_first);
    }
}

#[test]
fn only_the_outputs_that_are_wanted_are_remembered_of_what_was_resolved() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let expression = |wanted: &str| format!("let {CHAIN} in {wanted}");
        let (stores, _) = assert_alike(profile, &expression("top"), &[]);
        // All of the second derivation's outputs are valid now, but one is not known as its own.
        for store in &stores {
            let drvs = instantiate(store, &expression("multi"));
            let paths = goalctl(store, &drvs).succeed();
            assert_eq!(paths.output_lines().len(), 2, "{paths}");
            assert!(!paths.error().contains("building '"), "{paths}");
        }
        assert_same(&stores[0], &stores[1]);
    }
}

#[test]
fn a_recipe_that_gives_the_same_contents_again_has_nothing_built_that_depends_on_it() {
    if !requirement::genuine_nix() {
        return;
    }
    let expression = |way: &str| {
        format!(
            r#"let
              base = mk "base" "echo same > $out" (ca // {{ way = "{way}"; }});
              middle = mk "middle" "echo ${{base}} > $out" ca;
              top = mk "top" "echo ${{middle}} > $out" {{ }};
            in top"#
        )
    };
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        let first = goalctl(&store, &instantiate(&store, &expression("one"))).succeed();
        let n_built = |finished: &Finished| finished.error().matches("building '").count();
        assert_eq!(n_built(&first), 3, "{first}");
        first.expect_error("resolved derivation: '/nix/store/");
        let second = goalctl(&store, &instantiate(&store, &expression("two"))).succeed();
        assert_eq!(n_built(&second), 1, "{second}");
        second.expect_error("-base.drv");
        assert_eq!(sorted(&second), sorted(&first));
        // And Nix sees it likewise.
        let third = nix(&store, &instantiate(&store, &expression("three"))).succeed();
        assert_eq!(n_built(&third), 1, "{third}");
        assert_eq!(sorted(&third), sorted(&first));
        debris::assert_clean(&store);
    }
}

#[test]
fn outputs_of_every_kind_have_the_paths_that_nix_gives_them() {
    if !requirement::genuine_nix() {
        return;
    }
    let expression = r#"[
      (mk "self" "mkdir $out; echo $out > $out/x; ln -s $out/x $out/y" ca)
      (mk "large" "seq 200000 | sed s,00,$out, > $out" ca)
      (mk "flat" "echo flat > $out" (ca // { outputHashMode = "flat"; }))
      (mk "flat-self" "echo $out > $out" (ca // { outputHashMode = "flat"; }))
      (mk "sha1" "mkdir $out; echo sha1 > $out/x" (ca // { outputHashAlgo = "sha1"; }))
      (mk "sha1-self" "echo $out > $out" (ca // { outputHashAlgo = "sha1"; }))
      (mk "sha512" "echo $out > $out" (ca // { outputHashAlgo = "sha512"; }))
      (mk "executable" "echo $out > $out; chmod +x $out" ca)
      (mk "named" "mkdir $out; echo x > $out/\${out##*/}; ln -s . $out/link" ca)
      (mk "three" "echo $b $c > $out; echo $c > $b; echo $c > $c" (ca // { outputs = [ "out" "b" "c" ]; }))
    ]"#;
    for profile in Profile::all() {
        for sharing in ["false", "true"] {
            let options = [("auto-optimise-store", sharing)];
            let (_, finished) = assert_alike(profile, expression, &options);
            finished.expect_status(0);
        }
    }
}

#[test]
fn what_has_no_path_or_is_of_the_wrong_kind_fails_as_under_nix_and_leaves_nothing() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        for (expression, words) in [
            (
                r#"mk "circle" "echo $dev > $out; echo $out > $dev" (ca // { outputs = [ "out" "dev" ]; })"#,
                "cycle",
            ),
            (
                r#"mk "flat" "mkdir $out" (ca // { outputHashMode = "flat"; })"#,
                "regular file",
            ),
            (r#"mk "none" "true" ca"#, "failed to produce output"),
            (r#"mk "fails" "exit 3" ca"#, "exit code 3"),
            (
                r#"let base = mk "base" "echo x > $out" ca; in mk "fails" "echo ${base}; exit 4" ca"#,
                "exit code 4",
            ),
        ] {
            let (_, finished) = assert_alike(profile, expression, &[]);
            assert_ne!(finished.code(), 0, "{finished}");
            finished.expect_error(words);
        }
    }
}

#[test]
fn a_reference_that_the_kind_of_address_cannot_record_is_refused_where_nix_aborts() {
    let store = TestStore::new();
    if !requirement::genuine_nix() {
        return;
    }
    for kind in ["outputHashMode = \"flat\"", "outputHashAlgo = \"sha1\""] {
        let expression = format!(
            r#"let plain = mk "plain" "echo x > $out" {{ }};
               in mk "refers" "echo ${{plain}} > $out" (ca // {{ {kind}; }})"#
        );
        let finished = goalctl(&store, &instantiate(&store, &expression)).run();
        finished.expect_status(1).expect_error("has no path");
        debris::assert_clean(&store);
    }
}

#[test]
fn without_the_feature_such_derivations_are_refused_as_by_nix() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drvs = instantiate(&store, &format!("let {CHAIN} in [ base deferred ]"));
    for drv in &drvs {
        for invocation in [
            store.goalctl(["build", drv]),
            store.nix_store(["--realise", drv]),
        ] {
            let finished = invocation.option("experimental-features", "").run();
            finished.expect_status(1).expect_error("ca-derivations");
        }
    }
    debris::assert_clean(&store);
}

#[test]
fn realisations_are_signed_as_nix_signs_them() {
    if !requirement::genuine_nix() {
        return;
    }
    let key = "test-1:HLrbbGmUL6bYFf1jU+fz2bV/XT98CX8MOmOsY6kwCfsoXP0KGE6pJ24M92qonf97TRY5l2fKAVYdO3hpVF8WDA==";
    let dir = tempfile::tempdir().expect("a temporary folder can be made");
    let file = dir.path().join("key");
    std::fs::write(&file, key).expect("a fresh file can be written");
    let file = file.to_string_lossy().into_owned();
    let options = [("secret-key-files", file.as_str())];
    // The key is of the user who runs the tests.
    let expression = format!("let {CHAIN} in last");
    let (stores, _) = assert_alike(Profile::native(), &expression, &options);
    let signed = Realisations::of(&stores[1]).outputs;
    assert!(!signed.is_empty());
    for (path, signatures) in signed.values() {
        assert!(signatures.starts_with("test-1:"), "{path}: {signatures}");
    }
}

#[test]
fn what_was_built_without_the_feature_is_remembered_when_it_is_on() {
    if !requirement::genuine_nix() {
        return;
    }
    let expression = r#"mk "plain" "echo plain > $out" { }"#;
    let stores = [TestStore::new(), TestStore::new()];
    let [by_nix, by_goalctl] = &stores;
    for store in &stores {
        let drvs = store.instantiate(expression);
        store.goalctl(["build"]).args(&drvs).succeed();
    }
    let drvs = by_nix.instantiate(expression);
    nix(by_nix, &drvs).succeed();
    let found = goalctl(by_goalctl, &drvs).succeed();
    assert!(!found.error().contains("building '"), "{found}");
    assert_eq!(Realisations::of(by_goalctl).outputs.len(), 1);
    assert_same(by_nix, by_goalctl);
}

#[test]
fn a_fixed_output_that_mentions_itself_is_hashed_as_if_it_did_not() {
    if !requirement::genuine_nix() {
        return;
    }
    let expression = r#"mk "fixed" "echo $out > $out"
      { outputHashMode = "recursive"; outputHashAlgo = "sha256";
        outputHash = "0000000000000000000000000000000000000000000000000000"; }"#;
    let stores = [TestStore::new(), TestStore::new()];
    let drvs = stores.each_ref().map(|store| store.instantiate(expression));
    let by_nix = stores[0].nix_store(["--realise"]).args(&drvs[0]).run();
    let by_goalctl = stores[1].goalctl(["build"]).args(&drvs[1]).run();
    by_goalctl.expect_status(by_nix.code()).expect_status(102);
    let got = |finished: &Finished| {
        let error = finished.error();
        let line = error.lines().find(|line| line.contains("got:"));
        line.and_then(|line| line.split_whitespace().last())
            .expect("it says what it got")
            .to_owned()
    };
    assert_eq!(got(&by_goalctl), got(&by_nix));
    debris::assert_clean(&stores[1]);
}
