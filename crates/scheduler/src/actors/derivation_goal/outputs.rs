//! Which paths a goal's outputs have: those that the derivation says, and those that are learnt.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use actix::prelude::*;
use registry::{LockAttempt, LockHolder, RegisterFloatingOutputs, RegisterOutputs, TryLockOutputs};
use store_model::settings::SandboxMode;
use store_model::{Derivation, DerivationKind, DerivationOutput, DrvOutput, OutputName, StorePath};

use super::{DerivationGoal, service_failed};
use crate::actors::questions::{FoundOutputs, OutputsQuestion, query_outputs, refusal};
use crate::events::LockOwner;
use crate::goal::BuildMode;
use crate::goal::derivation::Event;

/// What is known of outputs that the derivation does not say.
#[derive(Debug, Default)]
pub(super) struct Learnt {
    /// As what they are remembered; empty without the feature `ca-derivations`.
    pub(super) ids: BTreeMap<OutputName, DrvOutput>,
    /// The paths of floating and of deferred outputs.
    pub(super) paths: BTreeMap<OutputName, StorePath>,
}

impl DerivationGoal {
    /// Returns the outputs whose paths are known.
    pub(super) fn output_paths(&self) -> BTreeMap<OutputName, StorePath> {
        let said = self.derivation.iter().flat_map(|it| it.known_outputs());
        let mut paths: BTreeMap<_, _> = said
            .map(|(name, path)| (name.clone(), path.clone()))
            .collect();
        paths.extend(self.learnt.paths.clone());
        paths
    }

    /// Returns the outputs of other names, as far as their paths are known.
    pub(super) fn other_outputs(
        &self,
        names: &BTreeSet<OutputName>,
    ) -> BTreeMap<OutputName, StorePath> {
        let mut others = self.output_paths();
        others.retain(|name, _| !names.contains(name));
        others
    }

    /// Returns whether the outputs' paths follow from their contents.
    pub(super) fn is_floating(&self) -> bool {
        let kind = self.derivation.as_ref().map(|derivation| derivation.kind());
        matches!(kind, Some(Ok(DerivationKind::Floating)))
    }

    /// Returns the derivation as it is built. In a check the paths of floating outputs are known,
    /// so that what is built can be compared with what lies there.
    pub(super) fn built_derivation(&self) -> Option<Arc<Derivation>> {
        let derivation = self.derivation.as_ref()?;
        if self.facts.mode != BuildMode::Check || !self.is_floating() {
            return Some(Arc::clone(derivation));
        }
        let mut pinned = Derivation::clone(derivation);
        for (name, output) in &mut pinned.outputs {
            if let Some(path) = self.learnt.paths.get(name) {
                *output = DerivationOutput::InputAddressed(path.clone());
            }
        }
        Some(Arc::new(pinned))
    }

    /// Returns where the builder puts each output.
    pub(super) fn scratch_paths(&self, derivation: &Derivation) -> BTreeMap<OutputName, StorePath> {
        let (store_dir, drv_path) = (&self.ports.store_dir, &self.facts.drv_path);
        let outputs = derivation.outputs.iter();
        let place = |(name, output): (&OutputName, &DerivationOutput)| {
            let path = sandbox::scratch_output_path(store_dir, drv_path, derivation, name, output);
            // Nothing is built whose outputs have no place.
            Some((name.clone(), path.ok()?))
        };
        outputs.filter_map(place).collect()
    }

    /// Returns all paths at which something of this goal may lie without being valid: without a
    /// sandbox what is valid is made again at another path.
    pub(super) fn places(&self) -> Vec<StorePath> {
        let mut places: Vec<StorePath> = self.output_paths().into_values().collect();
        if self.settings.sandbox != SandboxMode::Always {
            let (store_dir, drv_path) = (&self.ports.store_dir, &self.facts.drv_path);
            let elsewhere = |path| sandbox::redirected_path(store_dir, drv_path, path).ok();
            let others: Vec<StorePath> = places.iter().filter_map(elsewhere).collect();
            places.extend(others);
        }
        if let Some(derivation) = self.derivation.as_ref().filter(|_| self.is_floating()) {
            places.extend(self.scratch_paths(derivation).into_values());
        }
        places
    }

    pub(super) fn query_outputs(&mut self, ctx: &mut Context<Self>) {
        let Some(derivation) = self.derivation.clone() else {
            return;
        };
        let question = OutputsQuestion {
            derivation,
            mode: self.facts.mode,
            to_keep: if std::mem::replace(&mut self.has_rooted_outputs, true) {
                Vec::new()
            } else {
                self.places()
            },
            has_realisations: self.settings.has_ca_derivations(),
        };
        let answer = query_outputs(Arc::clone(&self.ports), question)
            .into_actor(self)
            .map(|answer, goal, ctx| match answer {
                Ok(found) => goal.outputs_queried(found, ctx),
                Err(message) => goal.advance(Event::ServiceFailed { message }, ctx),
            });
        ctx.spawn(answer);
    }

    fn outputs_queried(&mut self, found: FoundOutputs, ctx: &mut Context<Self>) {
        self.roots.absorb(found.roots);
        self.learnt.ids = found.ids;
        self.learn(found.learnt, ctx);
        let invalid = found.invalid;
        self.advance(Event::OutputsQueried { invalid }, ctx);
    }

    fn learn(&mut self, outputs: BTreeMap<OutputName, StorePath>, ctx: &mut Context<Self>) {
        if !outputs.is_empty() {
            self.learnt.paths.extend(outputs.clone());
            self.advance(Event::PathsLearnt { outputs }, ctx);
        }
    }

    /// Returns the paths whose locks stand for the outputs. What has no path yet is locked by the
    /// derivation's name and its own, as Nix does.
    fn lock_paths(&self) -> Result<BTreeSet<StorePath>, store_model::Error> {
        let outputs = self.derivation.iter().flat_map(|it| &it.outputs);
        outputs
            .map(|(name, output)| match output.path() {
                Some(path) => Ok(path.clone()),
                None => format!("{}.{name}", self.facts.drv_path).parse(),
            })
            .collect()
    }

    pub(super) fn try_locks(&mut self, ctx: &mut Context<Self>) {
        let paths = match self.lock_paths() {
            Ok(paths) => paths,
            Err(error) => return self.advance(service_failed(&error), ctx),
        };
        let ports = Arc::clone(&self.ports);
        let answer = async move { ports.try_lock_outputs.send(TryLockOutputs { paths }).await }
            .into_actor(self)
            .map(|answer, goal, ctx| {
                let event = match answer {
                    Ok(Ok(LockAttempt::Acquired(locks))) => {
                        // A goal that ended meanwhile must not keep them.
                        goal.locks = goal.outcome.is_none().then_some(locks);
                        Event::Locked
                    }
                    Ok(Ok(LockAttempt::Busy { path, holder })) => Event::LockBusy {
                        path,
                        holder: match holder {
                            LockHolder::ThisProcess => LockOwner::Goal,
                            LockHolder::Process(pid) => LockOwner::Process(pid),
                            LockHolder::Unknown => LockOwner::Unknown,
                        },
                    },
                    Ok(Err(error)) => service_failed(&error),
                    Err(error) => service_failed(&error),
                };
                goal.advance(event, ctx);
            });
        ctx.spawn(answer);
    }

    /// Has outputs registered under the paths that follow from them.
    pub(super) fn register_floating(&mut self, made: RegisterOutputs, ctx: &mut Context<Self>) {
        let scratch_paths = self
            .derivation
            .as_ref()
            .map(|derivation| self.scratch_paths(derivation))
            .unwrap_or_default();
        let settled = made.other_outputs.iter().filter_map(|(name, path)| {
            let provisional = scratch_paths.get(name)?;
            Some((provisional.clone(), path.clone()))
        });
        let settled = settled.collect();
        let register = RegisterFloatingOutputs { made, settled };
        let ports = Arc::clone(&self.ports);
        let answer = async move { ports.register_floating_outputs.send(register).await }
            .into_actor(self)
            .map(|answer, goal, ctx| {
                let event = match answer {
                    Ok(Ok(registered)) => {
                        goal.roots.absorb(registered.roots);
                        goal.learn(registered.outputs, ctx);
                        Event::OutputsRegistered
                    }
                    Ok(Err(error)) => refusal(&error),
                    Err(error) => service_failed(&error),
                };
                goal.advance(event, ctx);
            });
        ctx.spawn(answer);
    }
}
