//! Everything that genuine Nix 2.8.0 wrote into the reference fixtures, read, computed anew and
//! written again.

#![expect(clippy::expect_used, reason = "a test may panic")]

mod archives;
mod derivations;
mod equal_inputs;
mod fixed;
mod fixtures;
mod floating;
mod graphs;
mod interchange;
mod json;
mod reference_graphs;
mod signatures;
mod structured;
