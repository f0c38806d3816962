//! The shells that turn messages into events and effects into messages.

mod derivation_goal;
mod diff_hook;
mod questions;
pub(crate) mod repair;
mod scheduler;
mod substitution_goal;
mod surroundings;

pub(crate) use derivation_goal::DerivationGoal;
pub use scheduler::Scheduler;
pub(crate) use scheduler::slot_counts;
pub(crate) use substitution_goal::SubstitutionGoal;
