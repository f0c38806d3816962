//! Times, and what is said about many of them.

use std::time::{Duration, Instant};

/// Returns the present moment.
#[must_use]
pub fn now() -> Instant {
    #[expect(
        clippy::disallowed_methods,
        reason = "end-to-end tests measure real programs by the real clock"
    )]
    Instant::now()
}

/// Returns the value in the middle, of two the larger.
#[must_use]
pub fn median(times: &[Duration]) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted
        .get(sorted.len() / 2)
        .copied()
        .expect("a median needs at least one value")
}
