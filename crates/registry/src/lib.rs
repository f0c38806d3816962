//! The store on disk: which paths are valid, who may write them, and how they become valid.
//!
//! Reading order: [`messages`] (the crate's whole conversation), [`actors`], `tasks`, `archives`,
//! `present` and `realise` (what takes several steps), then what the threads do: `db` and `writer`, `ingest`, `path_lock`, `roots`.
//!
//! ```text
//! StoreRegistry ─► readers     questions to the database, one snapshot each
//!               ─► derivation  derivations, parsed and checked once
//!               ─► ingest      outputs, texts and sources: check, make canonical, hash, move ─┐
//!               ─► restore     archives: unpack, hash, check                              │
//!               ─► roots       the temporary roots file; locks for texts and sources          │
//!                  writer      one sync and one transaction for all that wait ◄───────────────┘
//!                  deletion    whatever was taken out of the store
//! LockKeeper    ─► locking     opening and trying locks; one more thread for each lock awaited
//! ```
//!
//! Every tree is walked by descriptors (`tree`); everything unfinished lies in a locked directory of
//! ours inside the store (`staging`).

#![forbid(unsafe_code)]

pub mod actors;
mod cancel;
pub mod error;
pub mod messages;
mod start;

mod archives;
mod layout;
mod present;
mod realise;
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
pub use cancel::CancelFlag;
pub use error::Error;
pub use messages::*;
pub use start::{Registry, start};
