//! Goals as pure machines: an event comes in, a new state and a list of effects come out.
//!
//! No clock, no randomness, no I/O and no actix: the same code runs under the actors and in
//! [`simulate`](crate::simulate).

pub mod derivation;
mod key;
mod outcome;
pub mod recipe;
pub mod substitution;

pub use key::{BuildMode, GoalId, GoalKey, PathMode, RequestId};
pub use outcome::{BuildTimes, FailureBits, Outcome, Status};
