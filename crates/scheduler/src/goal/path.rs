//! The goal of one path: make sure that it is valid, and in a repair that its contents are good.
//!
//! ```text
//! Idle ─Started─► CheckingValidity ─ValidityQueried─► Finished
//!           └───► CheckingContents ─ContentsQueried─► Finished
//! ```
//!
//! There is no substituter yet, so a path that is not as it should be has none that could bring it.
//! What a derivation makes is repaired by the goal of that derivation, not here.

use std::collections::BTreeMap;

use store_model::{OutputName, StorePath};

use super::{Outcome, PathMode, Status};

/// What never changes about a path goal.
#[derive(Debug, Clone)]
pub struct Facts {
    /// The path.
    pub path: StorePath,
    /// The path as messages print it.
    pub printed_path: String,
    /// What it is wanted for.
    pub mode: PathMode,
}

/// The life of a path goal.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum State {
    /// Nothing has happened.
    #[default]
    Idle,
    /// The registry was asked.
    CheckingValidity,
    /// The registry reads the contents.
    CheckingContents,
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
    /// The registry has read the contents.
    ContentsQueried {
        /// Why they are not good and nobody makes them, if so, such as "it has no deriver".
        obstacle: Option<String>,
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
    /// Keep the path from the garbage collector, then ask whether its contents are good.
    QueryContents,
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
            (Self::Idle, Event::Started) => match facts.mode {
                PathMode::Ensure => (Self::CheckingValidity, vec![Effect::QueryValidity]),
                PathMode::Repair => (Self::CheckingContents, vec![Effect::QueryContents]),
            },
            (Self::CheckingValidity, Event::ValidityQueried { is_valid: true })
            | (Self::CheckingContents, Event::ContentsQueried { obstacle: None }) => {
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
            (
                Self::CheckingContents,
                Event::ContentsQueried {
                    obstacle: Some(obstacle),
                },
            ) => finish(Outcome::failure(
                Status::NoSubstituters,
                format!(
                    "cannot repair path '{}': no substituter has it, and {obstacle}",
                    facts.printed_path
                ),
            )),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(mode: PathMode) -> Facts {
        let path = format!("{}-source", "0".repeat(32));
        Facts {
            printed_path: format!("/nix/store/{path}"),
            path: path.parse().expect("a valid path"),
            mode,
        }
    }

    /// Runs a machine from its start to its end.
    fn run(mode: PathMode, answer: Event) -> (Vec<Effect>, Outcome) {
        let (state, asked) = State::default().step(&facts(mode), Event::Started);
        let (state, mut effects) = state.step(&facts(mode), answer);
        assert_eq!(state, State::Finished);
        match effects.pop() {
            Some(Effect::Finish(outcome)) if effects.is_empty() => (asked, *outcome),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_path_that_is_only_ensured_is_not_read() {
        let (asked, outcome) = run(PathMode::Ensure, Event::ValidityQueried { is_valid: true });
        assert_eq!(asked, [Effect::QueryValidity]);
        assert_eq!(outcome.status, Status::AlreadyValid);
    }

    #[test]
    fn a_path_that_nobody_can_make_again_is_named_with_the_reason() {
        let good = Event::ContentsQueried { obstacle: None };
        let (asked, outcome) = run(PathMode::Repair, good);
        assert_eq!(asked, [Effect::QueryContents]);
        assert_eq!(outcome.status, Status::AlreadyValid);
        let obstacle = Some("it has no deriver".to_owned());
        let (_, outcome) = run(PathMode::Repair, Event::ContentsQueried { obstacle });
        assert_eq!(outcome.status, Status::NoSubstituters);
        let path = facts(PathMode::Repair).printed_path;
        let words = "no substituter has it, and it has no deriver";
        assert_eq!(
            outcome.message,
            format!("cannot repair path '{path}': {words}")
        );
    }
}
