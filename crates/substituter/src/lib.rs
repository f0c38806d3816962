//! Binary caches: who has a path, is it to be believed, and the bytes of it.
//!
//! Reading order: [`messages`] (the crate's whole conversation), [`start`], [`actors`], then what is
//! decided without any I/O (`address`, `policy`, `trust`), then what speaks to caches (`client`,
//! `transport`, `transfer`, `decompress`) and what remembers their answers (`narinfo_cache`).
//!
//! The other way there are [`start_writer`], what is decided (`destination`, `publications`), and
//! what writes a cache (`upload`, `pack`, `compress`).

#![forbid(unsafe_code)]

pub mod actors;
mod address;
mod client;
mod compress;
mod decompress;
mod destination;
pub mod error;
pub mod messages;
mod narinfo_cache;
mod pack;
mod policy;
mod publications;
mod read_ahead;
mod runtime;
pub mod start;
mod start_writer;
#[cfg(test)]
mod testing;
mod transfer;
mod transport;
mod trust;
mod upload;

pub use actors::{CacheWriter, Substituter};
pub use address::without_secrets as shown_address;
pub use error::Error;
pub use messages::*;
pub use start::start;
pub use start_writer::start_writer;
