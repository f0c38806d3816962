//! Binary caches: who has a path, is it to be believed, and the bytes of it.
//!
//! Reading order: [`messages`] (the crate's whole conversation), [`start`], [`actors`], then what is
//! decided without any I/O (`address`, `policy`, `trust`), then what speaks to caches (`client`,
//! `transport`, `transfer`, `decompress`) and what remembers their answers (`narinfo_cache`).

#![forbid(unsafe_code)]

pub mod actors;
mod address;
mod client;
mod decompress;
pub mod error;
pub mod messages;
mod narinfo_cache;
mod policy;
mod read_ahead;
mod runtime;
pub mod start;
#[cfg(test)]
mod testing;
mod transfer;
mod transport;
mod trust;

pub use actors::Substituter;
pub use error::Error;
pub use messages::*;
pub use start::start;
