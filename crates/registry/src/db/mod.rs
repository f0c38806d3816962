//! The database of valid paths: Nix's schema 10, to the byte.

pub(crate) mod connection;
pub(crate) mod query;
pub(crate) mod realisations;
mod schema;
pub(crate) mod write;

pub(crate) use connection::{Database, DatabaseOptions};
