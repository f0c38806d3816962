//! Binary caches: who has a path, is it to be believed, and the bytes of it.
//!
//! Reading order: [`messages`] (the crate's whole conversation), [`actors`], then what is decided
//! without any I/O (`policy`, `trust`), then what speaks to caches (`transport`, `decompress`) and
//! what remembers their answers (`narinfo_cache`).

#![forbid(unsafe_code)]

pub mod error;
pub mod messages;
mod transport;

pub use error::Error;
pub use messages::*;
