//! How a goal has its derivation resolved, and takes over what that realised.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::prelude::*;
use registry::{AddText, AdoptRealisations};
use store_model::wanted_outputs::WantedOutputs;
use store_model::{OutputName, StorePath};

use super::{DerivationGoal, service_failed};
use crate::error::chain;
use crate::goal::derivation::Event;
use crate::goal::{GoalKey, Outcome};
use crate::messages::RequireInputs;
use crate::ports::tell;

/// Where each output of each input is.
pub(super) type InputPaths = BTreeMap<StorePath, BTreeMap<OutputName, StorePath>>;

/// What a derivation was resolved to.
#[derive(Debug)]
pub(super) struct Resolved {
    drv_path: StorePath,
    /// The outputs that were wanted of it.
    wanted: WantedOutputs,
}

impl DerivationGoal {
    /// Remembers where an input's outputs are, if the derivation may have to be resolved.
    pub(super) fn note_input_paths(&mut self, path: &StorePath, outcome: &Outcome) {
        if self.settings.has_ca_derivations() {
            let outputs = outcome.outputs.clone();
            self.input_paths.insert(path.clone(), outputs);
        }
    }

    /// Writes the derivation as it is with its inputs' paths.
    pub(super) fn resolve(&mut self, ctx: &mut Context<Self>) {
        let Some(derivation) = &self.derivation else {
            return;
        };
        let store_dir = &self.ports.store_dir;
        let inputs = std::mem::take(&mut self.input_paths);
        let resolved = derivation.resolve(store_dir, |input, name| {
            inputs.get(input)?.get(name).cloned()
        });
        let resolved = match resolved {
            Ok(resolved) => resolved,
            Err(error) => return self.advance(service_failed(&error), ctx),
        };
        let text = AddText {
            name: format!("{}.drv", resolved.name),
            contents: resolved.to_aterm(store_dir),
            references: resolved.input_sources,
        };
        let ports = Arc::clone(&self.ports);
        let answer = async move { ports.add_text.send(text).await }
            .into_actor(self)
            .map(|answer, goal, ctx| {
                let event = match answer {
                    Ok(Ok(added)) => {
                        goal.roots.absorb(added.roots);
                        Event::Resolved {
                            drv_path: added.path,
                        }
                    }
                    Ok(Err(error)) => service_failed(&error),
                    Err(error) => service_failed(&error),
                };
                goal.advance(event, ctx);
            });
        ctx.spawn(answer);
    }

    /// Asks for the goal of what the derivation was resolved to.
    pub(super) fn require_resolved(&mut self, drv_path: StorePath) {
        let wanted = self.wanted.clone();
        let key = GoalKey::Derivation(drv_path.clone(), self.facts.mode);
        let require = RequireInputs {
            goal: self.id,
            inputs: vec![(key, wanted.clone())],
        };
        self.resolved = Some(Resolved { drv_path, wanted });
        tell(&self.ports.upward.require_inputs, require);
    }

    /// Has what that goal realised remembered as this derivation's outputs, those that are wanted.
    pub(super) fn adopt_realisations(&mut self, outcome: &Outcome, ctx: &mut Context<Self>) {
        let (Some(derivation), Some(resolved)) = (self.derivation.clone(), &self.resolved) else {
            return;
        };
        tracing::debug!("'{}' is realised", resolved.drv_path);
        self.roots.absorb(outcome.roots.clone());
        let mut outputs = outcome.outputs.clone();
        outputs.retain(|name, _| resolved.wanted.contains(name));
        self.learnt.paths.extend(outputs.clone());
        let ports = Arc::clone(&self.ports);
        let question = async move {
            let adopt = AdoptRealisations {
                derivation,
                outputs: outputs.clone(),
            };
            match ports.adopt_realisations.send(adopt).await {
                Ok(Ok(())) => Ok(Event::RealisationsAdopted { outputs }),
                Ok(Err(error)) => Err(chain(&error)),
                Err(error) => Err(chain(&error)),
            }
        };
        self.ask(question, ctx);
    }

    /// Returns the outputs that an outcome speaks of.
    pub(super) fn served(&self, outcome: &Outcome) -> WantedOutputs {
        match &self.resolved {
            // Whoever wanted more since then gets another look.
            Some(resolved) if outcome.resolved_to.is_some() => resolved.wanted.clone(),
            Some(_) | None => self.wanted.clone(),
        }
    }
}
