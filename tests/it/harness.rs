//! The harness itself, tried on genuine Nix alone: a measure that can't tell right from wrong would
//! let everything pass.

use it::graph::LayeredGraph;
use it::snapshot::Snapshot;
use it::{Profile, TestStore, debris, requirement};

#[test]
fn two_stores_that_genuine_nix_built_alike_agree_and_are_clean() {
    if !requirement::genuine_nix() {
        return;
    }
    for profile in Profile::all() {
        let graph = LayeredGraph {
            n_layers: 3,
            width: 4,
            n_inputs: 2,
            seed: 1,
        };
        let stores = [TestStore::of(profile), TestStore::of(profile)];
        for store in &stores {
            let drvs = store.instantiate(&graph.expression(""));
            assert_eq!(drvs.len(), graph.len());
            let built = store.nix_store(["--realise"]).args(&drvs).succeed();
            assert_eq!(built.output_lines().len(), graph.len());
            debris::assert_clean(store);
            debris::assert_verifies(store);
        }
        let [first, second] = stores.map(|store| Snapshot::of(&store));
        first.assert_same_as(&second);
        let n_referring = first
            .outputs()
            .filter(|(path, object)| path.contains("-layer-") && !object.references.is_empty())
            .count();
        // All of the upper two layers, and the first layer refers to nothing.
        assert_eq!(n_referring, 8);
    }
}

#[test]
fn a_file_left_in_the_store_is_noticed() {
    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drv = store.script("plain", "echo plain > $out");
    store.nix_store(["--realise", &drv]).succeed();
    debris::assert_clean(&store);
    std::fs::write(store.objects().join("left.lock"), "").expect("the store is ours");
    let verdict = std::panic::catch_unwind(|| debris::assert_clean(&store));
    assert!(verdict.is_err(), "a lock file was left and not noticed");
}

#[test]
fn an_output_that_can_be_written_is_noticed() {
    use std::os::unix::fs::PermissionsExt;

    if !requirement::genuine_nix() {
        return;
    }
    let store = TestStore::new();
    let drv = store.script("plain", "echo plain > $out");
    store.nix_store(["--realise", &drv]).succeed();
    let output = store.real(&store.output_of(&drv, "out"));
    std::fs::set_permissions(output, std::fs::Permissions::from_mode(0o644))
        .expect("the store is ours");
    let verdict = std::panic::catch_unwind(|| debris::assert_sound(&store));
    assert!(verdict.is_err(), "a writable output was not noticed");
}
