//! What caches cost that are silent or die, with the time-outs that people have (SPEC E3).
//!
//! Each time is compared with what the same closure takes from the good cache alone, measured right
//! before and after it, so that a machine that is busy with other things is so for both.

use std::time::Duration;

use it::cache_server::{CacheServer, Files};
use it::handmade_cache::{HandmadeCache, Shape};
use it::web::Answer;
use it::{TestStore, debris, measure, requirement};

use crate::alone;

/// How many paths the closure has.
const N_PATHS: usize = 500;

/// What a cache may cost that accepts connections and never answers: its one time-out is 5 s.
const SILENT: Duration = Duration::from_secs(10);

/// What a cache may cost that dies half-way.
const DYING: Duration = Duration::from_secs(5);

/// Fetches the closure into a fresh store from caches, in the order of the list.
fn fetch(cache: &HandmadeCache, caches: &[&CacheServer]) -> Duration {
    let store = TestStore::new();
    let addresses: Vec<String> = caches.iter().map(|cache| cache.url()).collect();
    let begun = measure::now();
    let fetched = store
        .goalctl(["ensure", &cache.top()])
        .option("substituters", addresses.join(" "))
        .option("require-sigs", "false")
        // The disk's own time is no measure of ours.
        .option("fsync-store-paths", "false")
        .option("fsync-metadata", "false")
        .succeed();
    let took = fetched.ended_at - begun;
    cache.assert_fetched(&store);
    debris::assert_clean(&store);
    took
}

/// Fails unless a cache before the good one costs less than a limit.
fn assert_delays(name: &str, limit: Duration, spoil: impl FnOnce(&CacheServer)) {
    if !requirement::genuine_nix() {
        return;
    }
    let _alone = alone();
    let origin = TestStore::new();
    let cache = HandmadeCache::beside(&origin, Shape::Star, N_PATHS);
    let without = || fetch(&cache, &[&CacheServer::start(cache.dir())]);
    let before = without();
    let [bad, good] = [(); 2].map(|()| CacheServer::start(cache.dir()));
    spoil(&bad);
    let with = fetch(&cache, &[&bad, &good]);
    let longest = before.max(without());
    let cost = with.saturating_sub(longest);
    requirement::say(&format!("{name}: {with:?} instead of {longest:?}"));
    assert!(cost < limit, "{name}: {with:?} instead of {longest:?}");
}

#[test]
fn a_cache_that_never_answers_costs_500_paths_less_than_10_seconds() {
    assert_delays("never", SILENT, |bad| {
        bad.play(Files::All, |_| Answer::silence());
    });
}

#[test]
fn a_cache_that_says_what_it_is_and_then_nothing_costs_500_paths_less_than_10_seconds() {
    assert_delays("no narinfo", SILENT, |bad| {
        bad.play(Files::Narinfos, |_| Answer::silence());
    });
}

#[test]
fn a_cache_that_dies_half_way_costs_500_paths_less_than_5_seconds() {
    // Itself, every narinfo, and half of the archives.
    let n_answers = 1 + N_PATHS + N_PATHS / 2;
    assert_delays("dies among archives", DYING, |bad| {
        bad.web().die_after(n_answers);
    });
    assert_delays("dies among questions", DYING, |bad| {
        bad.web().die_after(N_PATHS / 2);
    });
}
