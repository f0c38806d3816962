//! The goal of one path: make sure that it is valid.
//!
//! ```text
//! Idle ─Started─► CheckingValidity ─ValidityQueried─► Finished
//! ```
//!
//! There is no substituter yet, so a path that is not valid has none that could bring it.

use std::collections::BTreeMap;

use store_model::{OutputName, StorePath};

use super::{Outcome, Status};

/// What never changes about a path goal.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The path.
    pub path: StorePath,
    /// The path as messages print it.
    pub printed_path: String,
}

/// The life of a path goal.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing has happened.
    #[default]
    Idle,
    /// The registry was asked.
    CheckingValidity,
    /// It ended.
    Finished,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The actor runs.
    Started,
    /// The registry answered.
    ValidityQueried {
        /// Whether the path is valid.
        is_valid: bool,
    },
    /// A service failed.
    ServiceFailed {
        /// The chain of causes.
        message: String,
    },
    /// Nobody wants the goal any more.
    Cancelled,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Keep the path from the garbage collector, then ask whether it is valid.
    QueryValidity,
    /// Tell everybody who waits, and stop.
    Finish(Box<Outcome>),
}

impl State {
    /// Takes one event; returns the next state and the effects to perform, in order.
    #[must_use]
    pub fn step(self, facts: &Facts, event: Event) -> (Self, Vec<Effect>) {
        match (self, event) {
            // Late news for a finished goal is expected: cancellation races with answers.
            (Self::Finished, _) => (Self::Finished, vec![]),
            (Self::Idle, Event::Started) => (Self::CheckingValidity, vec![Effect::QueryValidity]),
            (Self::CheckingValidity, Event::ValidityQueried { is_valid: true }) => {
                let outputs = BTreeMap::from([(OutputName::default(), facts.path.clone())]);
                finish(Outcome::success(Status::AlreadyValid, outputs))
            }
            (Self::CheckingValidity, Event::ValidityQueried { is_valid: false }) => {
                finish(Outcome::failure(
                    Status::NoSubstituters,
                    format!(
                        "path '{}' is not valid and no substituter has it",
                        facts.printed_path
                    ),
                ))
            }
            (_, Event::ServiceFailed { message }) => {
                finish(Outcome::failure(Status::MiscFailure, message))
            }
            (_, Event::Cancelled) => finish(Outcome::failure(
                Status::Cancelled,
                format!("realising '{}' was cancelled", facts.printed_path),
            )),
            (state, event) => unreachable!("{event:?} cannot happen in {state:?}"),
        }
    }
}

fn finish(outcome: Outcome) -> (State, Vec<Effect>) {
    (State::Finished, vec![Effect::Finish(Box::new(outcome))])
}
