//! What a goal does besides building when it repairs, and where it puts what it hashes (SPEC B8).

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::prelude::*;
use registry::{RegisterByContents, RegisterOutputs};
use store_model::StorePath;
use store_model::wanted_outputs::WantedOutputs;

use super::{DerivationGoal, service_failed};
use crate::actors::questions::refusal;
use crate::actors::repair;
use crate::goal::derivation::{BrokenPath, Event};
use crate::goal::{BuildMode, GoalKey, PathMode};
use crate::messages::RequireInputs;
use crate::ports::tell;

impl DerivationGoal {
    /// Has everything below these outputs looked at.
    pub(super) fn examine_closure(
        &mut self,
        outputs: BTreeSet<StorePath>,
        ctx: &mut Context<Self>,
    ) {
        let own = self.output_paths().into_values();
        let drv_path = (!self.is_given).then(|| self.facts.drv_path.clone());
        let ports = Arc::clone(&self.ports);
        self.ask(
            repair::examine_closure(ports, drv_path, outputs, own.collect()),
            ctx,
        );
    }

    /// Asks the scheduler for goals that repair what is broken.
    pub(super) fn require_repairs(&self, broken: Vec<BrokenPath>) {
        let goal = |broken: BrokenPath| match broken.deriver {
            Some(drv_path) => GoalKey::Derivation(drv_path, BuildMode::Repair),
            None => GoalKey::Path(broken.path, PathMode::Repair),
        };
        // Two outputs of one derivation are one goal.
        let goals: BTreeSet<GoalKey> = broken.into_iter().map(goal).collect();
        let require = RequireInputs {
            goal: self.id,
            inputs: goals
                .into_iter()
                .map(|goal| (goal, WantedOutputs::All))
                .collect(),
        };
        tell(&self.ports.upward.require_inputs, require);
    }

    /// Registers the output at the path that its contents have, and keeps it there.
    pub(super) fn register_by_contents(
        &mut self,
        candidate: RegisterOutputs,
        ctx: &mut Context<Self>,
    ) {
        let ports = Arc::clone(&self.ports);
        let register = RegisterByContents { candidate };
        let answer = async move { ports.register_by_contents.send(register).await }
            .into_actor(self)
            .map(|answer, goal, ctx| {
                let event = match answer {
                    Ok(Ok(found)) => {
                        goal.roots.absorb(found.roots);
                        let path = found.info.path;
                        goal.found = Some(path.clone());
                        Event::OutputFound { path }
                    }
                    Ok(Err(error)) => refusal(&error),
                    Err(error) => service_failed(&error),
                };
                goal.advance(event, ctx);
            });
        ctx.spawn(answer);
    }
}
