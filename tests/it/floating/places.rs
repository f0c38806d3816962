//! Floating outputs without a sandbox: the builder works under a provisional path of the store
//! itself, and what it made is where its contents say.

use it::snapshot::Snapshot;
use it::{Invocation, Profile, TestStore, damage, debris, requirement};

use super::{CHAIN, Realisations, assert_same, instantiate, sorted, with_feature};

/// Outputs that mention themselves and each other in contents, links and names.
const TWO: &str = r#"mk "two" "mkdir $out; echo $dev > $dev; echo $out $dev > $out/both;
    ln -s $out/both $out/link; echo y > $out/own-\${out##*/}; chmod 555 $out"
    (ca // { outputs = [ "out" "dev" ]; })"#;

fn unsandboxed(invocation: Invocation, drvs: &[String]) -> Invocation {
    with_feature(invocation.args(drvs)).option("sandbox", "false")
}

fn goalctl(store: &TestStore, drvs: &[String]) -> Invocation {
    unsandboxed(store.goalctl_in_place(["build"]), drvs)
}

/// Builds what an expression is by each program in a store of its own, without a sandbox; returns
/// the stores, Nix's first, and the derivations.
fn built_alike(profile: Profile, expression: &str) -> ([TestStore; 2], Vec<String>) {
    let stores = [TestStore::of(profile), TestStore::of(profile)];
    let [by_nix, by_goalctl] = &stores;
    let drvs = instantiate(by_nix, expression);
    assert_eq!(drvs, instantiate(by_goalctl, expression));
    let nix = unsandboxed(by_nix.nix_store_in_place(["--realise"]), &drvs).succeed();
    let ours = goalctl(by_goalctl, &drvs).succeed();
    assert_eq!(sorted(&ours), sorted(&nix));
    assert_same(by_nix, by_goalctl);
    (stores, drvs)
}

#[test]
fn outputs_that_float_come_out_the_same_without_a_sandbox_as_with_one() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        for expression in [
            format!("let {CHAIN} in [ multi top deferred last ]"),
            TWO.to_owned(),
        ] {
            let (stores, drvs) = built_alike(profile, &expression);
            let sandboxed = TestStore::of(profile);
            assert_eq!(drvs, instantiate(&sandboxed, &expression));
            super::goalctl(&sandboxed, &drvs).succeed();
            assert_same(&stores[1], &sandboxed);
            // Nothing is left to do.
            let again = goalctl(&stores[1], &drvs).succeed();
            assert!(!again.error().contains("building '"), "{again}");
        }
    }
}

#[test]
fn what_floats_is_checked_and_repaired_without_a_sandbox() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let (stores, drvs) = built_alike(profile, TWO);
        let store = &stores[1];
        let before = (Snapshot::of(store), Realisations::of(store));
        let unchanged = || {
            assert_eq!(before, (Snapshot::of(store), Realisations::of(store)));
            debris::assert_clean(store);
            debris::assert_verifies(store);
        };
        let checked = goalctl(store, &drvs).arg("--check").succeed();
        checked.expect_error("checking '");
        unchanged();
        let paths = goalctl(store, &drvs).succeed().output_lines();
        for path in paths {
            damage::flip_a_bit(&store.real(&path));
            let repaired = goalctl(store, &drvs).arg("--repair").succeed();
            repaired.expect_error("repairing outputs of");
            unchanged();
        }
        let rounds = goalctl(
            store,
            &instantiate(store, r#"mk "r" "echo $out > $out" ca"#),
        );
        rounds.args(["--rounds", "2"]).succeed();
        debris::assert_clean(store);
        debris::assert_verifies(store);
    }
}

#[test]
fn a_floating_output_that_cannot_be_kept_leaves_nothing_in_the_store_it_was_made_in() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let store = TestStore::of(profile);
        for (script, status, words) in [
            (
                "mkdir $out; echo x > $out/file; chmod 0 $out; exit 3",
                100,
                "exit code 3",
            ),
            ("true", 1, "failed to produce output"),
            ("mkfifo $out", 1, "named pipe"),
        ] {
            let expression = format!(r#"mk "broken" "{script}" ca"#);
            let failed = goalctl(&store, &instantiate(&store, &expression)).run();
            failed.expect_status(status).expect_error(words);
            debris::assert_clean(&store);
        }
    }
}
