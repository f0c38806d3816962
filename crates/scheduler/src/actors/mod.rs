//! The shells that turn messages into events and effects into messages.

mod derivation_goal;
mod diff_hook;
mod path_goal;
mod questions;
pub(crate) mod repair;
mod scheduler;
mod surroundings;

pub(crate) use derivation_goal::DerivationGoal;
pub(crate) use path_goal::PathGoal;
pub use scheduler::Scheduler;
