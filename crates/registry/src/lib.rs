//! The store on disk: which paths are valid, who may write them, and how they become valid.
//!
//! Reading order: [`messages`] (the crate's whole conversation), then the actors, then the modules
//! that do I/O.

#![forbid(unsafe_code)]

pub mod error;
pub mod messages;

mod layout;

mod db;
mod deletion;
mod sync;
mod tree;
mod workers;
mod writer;

pub use error::Error;
pub use messages::*;
