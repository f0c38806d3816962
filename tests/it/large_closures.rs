//! Closures of ten thousand paths, as deep and as wide as there can be (SPEC B3).

use it::handmade_cache::{HandmadeCache, Shape};
use it::{Finished, TestStore, debris, requirement};

/// As many as issue trackers have seen; a step of a recursion takes more than 100 bytes of stack.
const N_PATHS: usize = 10_000;

#[test]
fn ten_thousand_paths_in_a_chain_are_fetched_with_a_small_stack() {
    assert_fetched(Shape::Chain);
}

#[test]
fn ten_thousand_paths_in_a_star_are_fetched_with_a_small_stack() {
    assert_fetched(Shape::Star);
}

#[test]
fn a_chain_of_ten_thousand_paths_whose_first_nobody_has_fails_and_names_it() {
    let Some(scene) = Scene::new(Shape::Chain) else {
        return;
    };
    let missing = scene.cache.remove_first();
    let failed = scene.ensure();
    failed.expect_status(1).expect_error(&format!(
        "path '{missing}' is not valid and no substituter has it"
    ));
    // Some archives came before that was known; of the rest there is not a line each.
    let told = failed.error();
    let others = told
        .lines()
        .filter(|line| !line.starts_with("copying path "));
    assert!(others.count() < 10, "{failed}");
    debris::assert_clean(&scene.store);
}

/// A cache of a large closure, and a store that lacks it.
struct Scene {
    store: TestStore,
    cache: HandmadeCache,
}

impl Scene {
    fn new(shape: Shape) -> Option<Self> {
        if !requirement::genuine_nix() || !requirement::programs(&["sh"]) {
            return None;
        }
        let store = TestStore::new();
        let cache = HandmadeCache::beside(&store, shape, N_PATHS);
        Some(Self { store, cache })
    }

    /// Fetches everything with little stack.
    fn ensure(&self) -> Finished {
        let shell = requirement::find_program("sh").expect("it was found just now");
        let mut small_stack = self.store.profile().command(&shell);
        small_stack.args(["-c", "ulimit -s 1024; exec \"$@\"", "sh"]);
        let ensuring = self.store.goalctl(["ensure", &self.cache.top()]);
        self.cache
            .used_by(ensuring.under(small_stack))
            // Ten thousand syncs one after another would be the disk's time.
            .option("fsync-store-paths", "false")
            .option("fsync-metadata", "false")
            .run()
    }
}

fn assert_fetched(shape: Shape) {
    let Some(scene) = Scene::new(shape) else {
        return;
    };
    let ensured = scene.ensure();
    ensured.expect_status(0);
    assert_eq!(ensured.output_lines(), [scene.cache.top()]);
    scene.cache.assert_fetched(&scene.store);
    debris::assert_clean(&scene.store);
}
