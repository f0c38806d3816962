//! Caches that lie, break, stall or flood, each row of the tables played to goalctl itself (SECURITY
//! N01 to N12, P01 to P14, F55 to F59).
//!
//! Whatever a cache does, nothing is valid that should not be, nothing is left in the store, memory
//! stays bounded, the cache is named, and another one or a build takes over.

mod addresses;
mod answers;
mod archives;
mod closures;
mod downloads;
mod identity;
mod lie;
mod memory;
mod scene;
mod signatures;
mod transport;
