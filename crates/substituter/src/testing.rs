//! What the tests of several modules need.

use std::path::PathBuf;

pub(crate) mod server;

/// Returns where the caches are that Nix 2.8 wrote.
pub(crate) fn fixtures() -> PathBuf {
    let shared = std::env::var_os("GOAL_SHARED").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared"),
        PathBuf::from,
    );
    shared.join("fixtures/nix-2.8")
}
