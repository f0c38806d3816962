//! The transition table: one arm for each arrow of the diagrams in the parent module.

use super::{Archive, Caches, Candidate, Effect, Event, Facts, Need, Obtaining, References, State};
use crate::events::WaitReason;
use crate::goal::derivation::{AfterFailure, InputFailures};
use crate::goal::{Outcome, PathMode, Status};
use crate::slots::{SlotId, SlotKind};

type Step = (State, Vec<Effect>);

impl State {
    /// Takes one event; returns the next state and the effects to perform, in order.
    #[must_use]
    pub fn step(self, facts: &Facts, event: Event) -> Step {
        match (self, event) {
            // Late news for a finished goal is expected: cancellation races with answers.
            (Self::Finished, _) => (Self::Finished, vec![]),
            (Self::Idle, Event::Started) => {
                let state = match facts.mode {
                    PathMode::Ensure | PathMode::EnsureAgain => Self::CheckingValidity,
                    PathMode::Repair => Self::CheckingContents,
                };
                (state, vec![facts.question()])
            }
            (Self::CheckingValidity, Event::ValidityQueried { is_valid: true })
            | (Self::CheckingContents, Event::ContentsQueried { obstacle: None }) => {
                finish(vec![], facts.success(Status::AlreadyValid))
            }
            (Self::CheckingValidity, Event::ValidityQueried { is_valid: false }) => {
                query_offers(facts, Need::Invalid)
            }
            (
                Self::CheckingContents,
                Event::ContentsQueried {
                    obstacle: Some(obstacle),
                },
            ) => query_offers(facts, Need::Corrupt { obstacle }),
            (Self::QueryingOffers(need), Event::OffersQueried { offers }) => {
                offers_queried(facts, &need, offers)
            }
            // Whoever is about to be valid is left to it: it takes moments. And of references there
            // may be news from an offer that was given up.
            (
                Self::Registering,
                Event::Cancelled | Event::InputsRequired { .. } | Event::InputFinished(_),
            ) => (Self::Registering, vec![]),
            (Self::Registering, Event::Registered) => finish(
                vec![Effect::ReleaseLock],
                facts.success(Status::Substituted),
            ),
            (Self::Obtaining(obtaining), event) => obtaining.step(facts, event),
            (Self::Registering, Event::ServiceFailed { message }) => finish(
                vec![Effect::ReleaseLock],
                Outcome::failure(Status::MiscFailure, message),
            ),
            (_, Event::ServiceFailed { message }) => {
                finish(vec![], Outcome::failure(Status::MiscFailure, message))
            }
            (_, Event::Cancelled) => finish(vec![], cancelled(facts)),
            // Granted while we left the queue.
            (state, Event::SlotGranted(slot)) => (state, vec![Effect::ReleaseSlot(slot)]),
            (state, event) => unreachable!("{event:?} cannot happen in {state:?}"),
        }
    }
}

fn finish(mut effects: Vec<Effect>, outcome: Outcome) -> Step {
    effects.push(Effect::Finish(Box::new(outcome)));
    (State::Finished, effects)
}

fn cancelled(facts: &Facts) -> Outcome {
    let message = format!("realising '{}' was cancelled", facts.printed_path);
    Outcome::failure(Status::Cancelled, message)
}

fn query_offers(facts: &Facts, need: Need) -> Step {
    match facts.caches {
        Caches::NotAsked => finish(vec![], nobody_has_it(facts, &need)),
        Caches::Asked => (State::QueryingOffers(need), vec![Effect::QueryOffers]),
    }
}

fn nobody_has_it(facts: &Facts, need: &Need) -> Outcome {
    let path = &facts.printed_path;
    let message = match need {
        Need::Invalid => format!("path '{path}' is not valid and no substituter has it"),
        Need::Corrupt { obstacle } => {
            format!("cannot repair path '{path}': no substituter has it, and {obstacle}")
        }
    };
    Outcome::failure(Status::NoSubstituters, message)
}

fn offers_queried(facts: &Facts, need: &Need, offers: Vec<Candidate>) -> Step {
    if offers.is_empty() {
        return finish(vec![], nobody_has_it(facts, need));
    }
    let obtaining = Obtaining {
        offers,
        offer_idx: 0,
        references: References::Requiring,
        n_unanswered: 0,
        archive: Archive::Untouched,
        permit: None,
        failures: Vec::new(),
    };
    obtaining.require_references(facts, vec![])
}

impl Obtaining {
    fn step(mut self, facts: &Facts, event: Event) -> Step {
        match (self.archive, event) {
            (_, Event::Cancelled) => self.end(cancelled(facts)),
            (_, Event::ServiceFailed { message } | Event::InputsAreCyclic { message }) => {
                self.end(Outcome::failure(Status::MiscFailure, message))
            }
            (_, Event::InputsRequired { n_pending, ended }) => {
                self.n_unanswered -= 1;
                if self.n_unanswered > 0 || self.references != References::Requiring {
                    // About an offer that was given up.
                    return live(self, vec![]);
                }
                self.references_changed(facts, n_pending, InputFailures::of(&ended))
            }
            (_, Event::InputFinished(ending)) => match self.references {
                References::Awaiting {
                    n_pending,
                    mut failures,
                } => {
                    failures.count(&ending);
                    self.references = References::Requiring;
                    self.references_changed(facts, n_pending - 1, failures)
                }
                // Of an offer that was given up.
                References::Requiring | References::Valid => live(self, vec![]),
            },

            (Archive::AwaitingPermit, Event::SlotGranted(slot))
                if slot.kind() == SlotKind::EarlyFetch =>
            {
                self.permit = Some(slot);
                self.await_slot(vec![])
            }
            (Archive::AwaitingSlot, Event::SlotGranted(slot)) if slot.kind() == SlotKind::Fetch => {
                self.archive = Archive::Locking(slot);
                live(self, vec![Effect::TryLock])
            }
            // Granted while we left the queue, or moved on to another.
            (_, Event::SlotGranted(slot)) => live(self, vec![Effect::ReleaseSlot(slot)]),

            (Archive::Locking(slot), Event::Locked) => {
                self.archive = Archive::CheckingLocked(slot);
                live(self, vec![facts.question()])
            }
            (Archive::Locking(slot), Event::LockBusy { holder }) => {
                self.archive = Archive::AwaitingLock;
                let path = facts.path.clone();
                let effects = vec![
                    Effect::ReleaseSlot(slot),
                    Effect::Announce(WaitReason::Lock { path, holder }),
                    Effect::AwaitLock,
                ];
                live(self, effects)
            }
            (Archive::AwaitingLock, Event::LockFreed) => {
                self.archive = Archive::CheckingAgain;
                live(self, vec![facts.question()])
            }
            (
                Archive::CheckingAgain | Archive::CheckingLocked(_),
                Event::ValidityQueried { is_valid: true }
                | Event::ContentsQueried { obstacle: None },
            ) => self.end(facts.success(Status::AlreadyValid)),
            (
                Archive::CheckingAgain,
                Event::ValidityQueried { is_valid: false }
                | Event::ContentsQueried { obstacle: Some(_) },
            ) => self.await_slot(vec![]),
            (
                Archive::CheckingLocked(slot),
                Event::ValidityQueried { is_valid: false }
                | Event::ContentsQueried { obstacle: Some(_) },
            ) => {
                self.archive = Archive::Fetching(slot);
                let effects = vec![Effect::Fetch(self.offer_idx)];
                live(self, effects)
            }
            (Archive::Fetching(slot), Event::Restored) => {
                self.archive = Archive::Restored;
                self.restored(vec![Effect::ReleaseSlot(slot)])
            }
            (Archive::Fetching(slot), Event::FetchFailed { message }) => {
                self.try_next_offer(facts, slot, message)
            }
            (archive, event) => unreachable!("{event:?} cannot happen in {archive:?}"),
        }
    }

    /// Returns what the offer that is being taken refers to.
    fn wanted_references(&self) -> &Candidate {
        &self.offers[self.offer_idx]
    }

    /// Asks for the references of the offer that is being taken.
    fn require_references(mut self, facts: &Facts, mut effects: Vec<Effect>) -> Step {
        let references = &self.wanted_references().references;
        if references.is_empty() {
            // Most archives of sources and derivations: no need to ask anybody.
            let (state, more) = self.references_changed(facts, 0, InputFailures::default());
            effects.extend(more);
            return (state, effects);
        }
        effects.push(Effect::RequireReferences(references.clone()));
        self.references = References::Requiring;
        self.n_unanswered += 1;
        live(self, effects)
    }

    /// Decides what follows when a reference has ended, or when it is known how many there are.
    fn references_changed(
        mut self,
        facts: &Facts,
        n_pending: usize,
        failures: InputFailures,
    ) -> Step {
        let gives_up = facts.after_failure == AfterFailure::Stop && failures.releases_the_rest();
        if n_pending == 0 || gives_up {
            if failures.paths.is_empty() {
                return self.references_valid();
            }
            self.references = References::Awaiting {
                n_pending,
                failures: InputFailures::default(),
            };
            return self.end(references_failed(facts, &failures));
        }
        self.references = References::Awaiting {
            n_pending,
            failures,
        };
        match self.archive {
            Archive::Untouched => {
                self.archive = Archive::AwaitingPermit;
                let effects = vec![
                    Effect::Announce(WaitReason::Inputs { n_pending }),
                    Effect::RequestSlot(SlotKind::EarlyFetch),
                ];
                live(self, effects)
            }
            Archive::Restored
            | Archive::AwaitingPermit
            | Archive::AwaitingSlot
            | Archive::Locking(_)
            | Archive::AwaitingLock
            | Archive::CheckingAgain
            | Archive::CheckingLocked(_)
            | Archive::Fetching(_) => live(self, vec![]),
        }
    }

    fn references_valid(mut self) -> Step {
        self.references = References::Valid;
        let mut effects: Vec<Effect> = self
            .permit
            .take()
            .map(Effect::ReleaseSlot)
            .into_iter()
            .collect();
        match self.archive {
            Archive::Untouched => self.await_slot(effects),
            Archive::AwaitingPermit => {
                effects.push(Effect::WithdrawSlotRequest);
                self.await_slot(effects)
            }
            Archive::Restored => self.restored(effects),
            Archive::AwaitingSlot
            | Archive::Locking(_)
            | Archive::AwaitingLock
            | Archive::CheckingAgain
            | Archive::CheckingLocked(_)
            | Archive::Fetching(_) => live(self, effects),
        }
    }

    fn await_slot(mut self, mut effects: Vec<Effect>) -> Step {
        self.archive = Archive::AwaitingSlot;
        effects.push(Effect::RequestSlot(SlotKind::Fetch));
        live(self, effects)
    }

    /// Decides what follows when the archive is here.
    fn restored(self, mut effects: Vec<Effect>) -> Step {
        match self.references {
            References::Valid => {
                effects.push(Effect::Register);
                (State::Registering, effects)
            }
            References::Awaiting { n_pending, .. } => {
                effects.push(Effect::Announce(WaitReason::Inputs { n_pending }));
                effects.push(Effect::Rest);
                live(self, effects)
            }
            References::Requiring => {
                effects.push(Effect::Rest);
                live(self, effects)
            }
        }
    }

    /// Takes the next offer, with the slot and the lock that there are.
    fn try_next_offer(mut self, facts: &Facts, slot: SlotId, message: String) -> Step {
        let mut effects = vec![
            Effect::Warn(message.clone()),
            Effect::ReportBadOffer(self.offer_idx),
        ];
        self.failures.push(message);
        if self.offer_idx + 1 == self.offers.len() {
            let outcome = nobody_could(facts, &self.failures);
            let (state, more) = self.end(outcome);
            effects.extend(more);
            return (state, effects);
        }
        let references = std::mem::take(&mut self.offers[self.offer_idx].references);
        self.offer_idx += 1;
        self.archive = Archive::Fetching(slot);
        effects.push(Effect::Fetch(self.offer_idx));
        if self.wanted_references().references == references {
            return live(self, effects);
        }
        match self.references {
            References::Requiring | References::Awaiting { .. } => {
                effects.push(Effect::LeaveReferences);
            }
            References::Valid => {}
        }
        self.require_references(facts, effects)
    }

    /// Ends the goal from wherever it stands, giving back what it has.
    fn end(self, outcome: Outcome) -> Step {
        let mut effects = match self.archive {
            Archive::Untouched | Archive::AwaitingLock | Archive::CheckingAgain => vec![],
            Archive::AwaitingPermit | Archive::AwaitingSlot => vec![Effect::WithdrawSlotRequest],
            Archive::Locking(slot) | Archive::CheckingLocked(slot) => {
                vec![Effect::ReleaseSlot(slot), Effect::ReleaseLock]
            }
            Archive::Fetching(slot) => vec![
                Effect::CancelFetch,
                Effect::ReleaseSlot(slot),
                Effect::ReleaseLock,
            ],
            Archive::Restored => vec![Effect::ReleaseLock],
        };
        effects.extend(self.permit.map(Effect::ReleaseSlot));
        match self.references {
            References::Requiring | References::Awaiting { .. } => {
                effects.push(Effect::LeaveReferences);
            }
            References::Valid => {}
        }
        finish(effects, outcome)
    }
}

fn live(obtaining: Obtaining, effects: Vec<Effect>) -> Step {
    (State::Obtaining(obtaining), effects)
}

/// Says that references are missing. If it is only that nobody has them, the path may be had once
/// somebody has built them (SPEC B4).
fn references_failed(facts: &Facts, failures: &InputFailures) -> Outcome {
    let names: Vec<String> = failures
        .root_causes
        .iter()
        .map(|path| format!("'{}'", path.name()))
        .collect();
    let mut message = format!(
        "some references of path '{}' could not be realised: {}",
        facts.printed_path,
        names.join(", ")
    );
    for cause in &failures.messages {
        message.push('\n');
        message.push_str(cause);
    }
    let status = if failures.releases_the_rest() {
        Status::DependencyFailed
    } else {
        Status::IncompleteClosure
    };
    let mut outcome = Outcome::failure(status, message);
    outcome.failure_bits = failures.bits;
    outcome.root_causes = failures.root_causes.iter().cloned().collect();
    outcome
}

fn nobody_could(facts: &Facts, failures: &[String]) -> Outcome {
    let message = format!(
        "path '{}' could not be fetched:\n{}",
        facts.printed_path,
        failures.join("\n")
    );
    Outcome::failure(Status::TransientFailure, message)
}
