//! Closures that grow: what they cost grows with them, and no faster (SPEC B3).

use std::path::Path;
use std::time::Duration;

use it::handmade_cache::{HandmadeCache, Shape};
use it::{TestStore, binaries, measure, requirement};

use crate::alone;

/// How many paths a small closure has.
const FEW: usize = 2_500;

/// How many times as many a large one has.
const GROWTH: usize = 4;

/// What a closure may cost that is `GROWTH` times as large, as a multiple of what the small one costs.
/// What takes quadratic time takes 16 times as long.
const MAX_RATIO: f64 = 8.0;

/// The most memory that goalctl may hold for the large one.
const MAX_PEAK_KILOBYTES: u64 = 400_000;

/// What fetching a closure took.
struct Cost {
    took: Duration,
    peak_kilobytes: u64,
}

#[test]
fn a_chain_that_is_four_times_as_long_takes_about_four_times_as_long() {
    assert_linear(Shape::Chain);
}

#[test]
fn a_star_that_is_four_times_as_wide_takes_about_four_times_as_long() {
    assert_linear(Shape::Star);
}

fn assert_linear(shape: Shape) {
    if !requirement::genuine_nix() {
        return;
    }
    let _alone = alone();
    let small = fetch(shape, FEW);
    let large = fetch(shape, FEW * GROWTH);
    let ratio = large.took.as_secs_f64() / small.took.as_secs_f64();
    requirement::say(&format!(
        "{shape:?}: {:?} and {:?}, {ratio:.1} times; {} kB",
        small.took, large.took, large.peak_kilobytes
    ));
    assert!(ratio < MAX_RATIO, "{ratio:.1}");
    let peak = large.peak_kilobytes;
    assert!(peak < MAX_PEAK_KILOBYTES, "{peak} kB");
}

/// Fetches a closure into a fresh store.
fn fetch(shape: Shape, n_paths: usize) -> Cost {
    let store = TestStore::new();
    let cache = HandmadeCache::beside(&store, shape, n_paths);
    let probing = store
        .program(Path::new(env!("CARGO_BIN_EXE_probe")))
        .arg("peak")
        .arg(binaries::goalctl())
        .arg("--store")
        .arg(store.root())
        .args(["ensure", &cache.top()])
        // The disk's own time is no measure of ours.
        .option("fsync-store-paths", "false")
        .option("fsync-metadata", "false");
    let begun = measure::now();
    let fetched = cache.used_by(probing).succeed();
    let took = fetched.ended_at - begun;
    cache.assert_fetched(&store);
    let output = fetched.output();
    let (_, peak) = output.split_once("peak ").expect("the probe says the peak");
    Cost {
        took,
        peak_kilobytes: peak.trim().parse().expect("a peak is a number"),
    }
}
