//! How a goal has registered what its builder has left.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::prelude::*;
use registry::{Occupied, RegisterOutputs, ScratchStore};
use store_model::OutputName;

use super::{DerivationGoal, service_failed};
use crate::actors::questions::{register_outputs, scratch_outputs};
use crate::goal::BuildMode;
use crate::goal::derivation::Event;
use crate::goal::recipe::output_checks;

impl DerivationGoal {
    /// Describes what the builder has left.
    pub(super) fn describe_outputs(
        &self,
        names: &BTreeSet<OutputName>,
    ) -> Result<RegisterOutputs, Event> {
        let build = self.build.as_ref().ok_or_else(nothing_left)?;
        let scratch = build.scratch.clone().ok_or_else(nothing_left)?;
        let derivation = self.built_derivation().ok_or_else(nothing_left)?;
        let checks = output_checks(&derivation).map_err(|error| service_failed(&error))?;
        let scratch_paths = self.scratch_paths(&derivation);
        let mut candidates = BTreeSet::clone(&self.surroundings.input_closure);
        candidates.extend(scratch_paths.values().cloned());
        Ok(RegisterOutputs {
            drv_path: self.facts.drv_path.clone(),
            // Of what is copied, what its builder has left stays the builder's.
            builder_uid: match build.owner_uid {
                Some(owner_uid) if scratch.redirected.is_empty() && !scratch.is_exposed => {
                    owner_uid
                }
                Some(_) | None => scratch.builder_uid,
            },
            scratch: ScratchStore {
                dir: scratch.dir,
                redirected: scratch.redirected,
                is_exposed: scratch.is_exposed,
                path: scratch.path,
            },
            outputs: scratch_outputs(&derivation, names, &scratch_paths),
            other_outputs: self.other_outputs(names),
            checks,
            reference_candidates: Arc::new(candidates),
            occupied: match self.facts.mode {
                BuildMode::Normal | BuildMode::Check | BuildMode::Hash => Occupied::Refused,
                BuildMode::Repair => Occupied::Repaired,
            },
            realises: self.learnt.ids.clone(),
            cancel: build.cancel_registration.clone(),
        })
    }

    pub(super) fn register_outputs(
        &mut self,
        names: &BTreeSet<OutputName>,
        ctx: &mut Context<Self>,
    ) {
        match self.describe_outputs(names) {
            Ok(register) if self.facts.mode == BuildMode::Hash => {
                self.register_by_contents(register, ctx);
            }
            Ok(register) if self.is_floating() => self.register_floating(register, ctx),
            Ok(register) => {
                let ports = Arc::clone(&self.ports);
                self.ask(register_outputs(ports, register), ctx);
            }
            Err(event) => self.advance(event, ctx),
        }
    }

    pub(super) fn cancel_registration(&self) {
        if let Some(build) = &self.build {
            build.cancel_registration.raise();
        }
    }
}

fn nothing_left() -> Event {
    Event::ServiceFailed {
        message: "the builder left no outputs directory".to_owned(),
    }
}
