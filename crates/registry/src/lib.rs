//! The store on disk: which paths are valid, who may write them, and how they become valid.
//!
//! Reading order: [`messages`] (the crate's whole conversation), then the actors, then the modules
//! that do I/O.

#![forbid(unsafe_code)]

pub mod actors;
pub mod error;
pub mod messages;
mod start;

mod layout;
mod services;
mod tasks;

mod cycle;
mod db;
mod deletion;
mod derivations;
mod ingest;
mod path_lock;
mod roots;
mod staging;
mod sync;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod testing;
mod tree;
mod workers;
mod writer;

pub use actors::{LockKeeper, StoreRegistry};
pub use error::Error;
pub use messages::*;
pub use start::{Registry, start};
