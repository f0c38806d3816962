//! Runs a builder where it can see its inputs and nothing else, and reports how it ended.
//!
//! Reading order: [`messages`] (the crate's whole conversation), then the actors, then the pure
//! modules (`spec`, `plan`, `environment`), then those that do I/O.

pub mod error;
pub mod messages;

pub use error::Error;
pub use messages::*;
