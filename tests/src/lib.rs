//! The harness of the end-to-end tests: fresh stores, the programs that work on them, and what must
//! be true of a store afterwards.
//!
//! It drives the released binary and genuine Nix from outside and imports none of the crates under
//! test, so that no mistake of theirs can be the measure of itself.
//! Everything here panics when something is not as a test needs it; nothing returns an error.
//!
//! Reading order: [`requirement`] (what this machine can run), [`profile`] (as whom), [`store`] (a
//! store of one's own), [`invocation`] (running a program on it), then the observations.

#![expect(
    clippy::missing_panics_doc,
    reason = "a harness says that a test failed by panicking"
)]
#![expect(
    clippy::must_use_candidate,
    reason = "what runs a program or checks a store is called for what it asserts"
)]

pub mod requirement;

pub mod binaries;
pub mod fixtures;
pub mod profile;

pub mod invocation;
pub mod machine;
pub mod pair;
pub mod store;
pub mod terminal;

pub mod archive;
pub mod binary_cache;
pub mod handmade_cache;
pub mod publication;

pub mod graph;
pub mod hand_over;
pub mod signals;

pub mod cache_server;
pub mod canary;
pub mod damage;
pub mod debris;
pub mod event_stream;
pub mod measure;
pub mod processes;
pub mod snapshot;
pub mod web;

pub use binary_cache::BinaryCache;
pub use invocation::{Finished, Invocation, Running};
pub use machine::Machine;
pub use pair::Pair;
pub use profile::Profile;
pub use store::TestStore;
pub use terminal::Terminal;
