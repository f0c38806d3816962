//! Closures of ten thousand paths, as deep and as wide as there can be (SPEC B3).

use it::handmade_cache::{HandmadeCache, Shape};
use it::{TestStore, debris, requirement};

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

fn assert_fetched(shape: Shape) {
    if !requirement::genuine_nix() || !requirement::programs(&["sh"]) {
        return;
    }
    let store = TestStore::new();
    let cache = HandmadeCache::beside(&store, shape, N_PATHS);
    let shell = requirement::find_program("sh").expect("it was found just now");
    let mut small_stack = store.profile().command(&shell);
    small_stack.args(["-c", "ulimit -s 1024; exec \"$@\"", "sh"]);
    let ensuring = store.goalctl(["ensure", &cache.top()]).under(small_stack);
    let ensured = cache.used_by(ensuring).succeed();
    assert_eq!(ensured.output_lines(), [cache.top()]);
    cache.assert_fetched(&store);
    debris::assert_clean(&store);
}
