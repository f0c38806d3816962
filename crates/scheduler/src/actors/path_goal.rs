//! The shell around the machine of a path goal.

use std::sync::Arc;

use actix::prelude::*;
use registry::{QueryPathInfo, QueryValidPaths, RootsLease};
use store_model::wanted_outputs::WantedOutputs;

use super::questions::lend_roots;
use super::repair::{Remedy, answered, query_good_paths, remedy};
use crate::error::chain;
use crate::goal::path::{Effect, Event, Facts, State};
use crate::goal::{GoalId, Outcome, Status};
use crate::messages::{CancelGoal, GoalEnded, ServiceLost};
use crate::ports::{Ports, tell};

/// Makes sure that one path is valid.
pub(crate) struct PathGoal {
    id: GoalId,
    facts: Facts,
    ports: Arc<Ports>,
    state: State,
    /// Keeps the path from the garbage collector.
    roots: RootsLease,
    outcome: Option<Outcome>,
}

impl PathGoal {
    pub(crate) fn new(id: GoalId, facts: Facts, ports: Arc<Ports>) -> Self {
        Self {
            id,
            facts,
            ports,
            state: State::default(),
            roots: RootsLease::default(),
            outcome: None,
        }
    }

    /// Feeds one event to the machine and performs what it asks for.
    fn advance(&mut self, event: Event, ctx: &mut Context<Self>) {
        let (next, effects) = std::mem::take(&mut self.state).step(&self.facts, event);
        self.state = next;
        for effect in effects {
            self.perform(effect, ctx);
        }
    }

    fn ask(&mut self, question: impl Future<Output = Answer> + 'static, ctx: &mut Context<Self>) {
        let answer = question.into_actor(self).map(|answer, goal, ctx| {
            let event = match answer {
                Ok((event, roots)) => {
                    goal.roots = roots;
                    event
                }
                Err(message) => Event::ServiceFailed { message },
            };
            goal.advance(event, ctx);
        });
        ctx.spawn(answer);
    }

    fn perform(&mut self, effect: Effect, ctx: &mut Context<Self>) {
        match effect {
            Effect::QueryValidity => {
                let question = query_validity(Arc::clone(&self.ports), self.facts.clone());
                self.ask(question, ctx);
            }
            Effect::QueryContents => {
                let question = query_contents(Arc::clone(&self.ports), self.facts.clone());
                self.ask(question, ctx);
            }
            Effect::Finish(outcome) => {
                self.outcome = Some(*outcome);
                ctx.stop();
            }
        }
    }
}

/// What a question comes to, and what keeps the path from the garbage collector.
type Answer = Result<(Event, RootsLease), String>;

async fn query_validity(ports: Arc<Ports>, facts: Facts) -> Answer {
    let paths = vec![facts.path.clone()];
    let roots = lend_roots(&ports, paths.clone()).await?;
    let valid = ports
        .query_valid_paths
        .send(QueryValidPaths { paths })
        .await
        .map_err(|error| chain(&error))?
        .map_err(|error| chain(&error))?;
    let is_valid = valid.contains(&facts.path);
    Ok((Event::ValidityQueried { is_valid }, roots))
}

async fn query_contents(ports: Arc<Ports>, facts: Facts) -> Answer {
    let roots = lend_roots(&ports, vec![facts.path.clone()]).await?;
    let good = query_good_paths(&ports, vec![facts.path.clone()]).await?;
    let obstacle = if good.contains(&facts.path) {
        None
    } else {
        Some(obstacle(&ports, &facts).await?)
    };
    Ok((Event::ContentsQueried { obstacle }, roots))
}

/// Says why a path that is not good is not made again.
async fn obstacle(ports: &Ports, facts: &Facts) -> Result<String, String> {
    let path = facts.path.clone();
    let info = ports.query_path_info.send(QueryPathInfo { path }).await;
    let Some(info) = answered(info)? else {
        return Ok("it is not valid".to_owned());
    };
    let Some(deriver) = info.deriver else {
        return Ok("it has no deriver".to_owned());
    };
    let printed = ports.store_dir.print(&deriver);
    let (valid, derivation) = (&ports.query_valid_paths, &ports.query_derivation);
    Ok(
        match remedy(valid, derivation, &facts.path, deriver).await? {
            Remedy::Rebuild => format!(
                "its deriver '{printed}' is none that is needed here; 'goalctl repair {}' builds it",
                facts.printed_path
            ),
            Remedy::DeriverIsGone => format!("its deriver '{printed}' is not in the store"),
            Remedy::DeriverMakesOthers => format!("its deriver '{printed}' makes other paths"),
        },
    )
}

impl Actor for PathGoal {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.advance(Event::Started, ctx);
    }

    /// Reports the ending; actix comes here after a panic too, so that no one waits for ever.
    fn stopped(&mut self, _ctx: &mut Self::Context) {
        let mut outcome = self.outcome.take().unwrap_or_else(|| {
            Outcome::failure(
                Status::Crashed,
                format!("the goal of '{}' crashed", self.facts.printed_path),
            )
        });
        if outcome.status.is_success() {
            outcome.roots = std::mem::take(&mut self.roots);
        }
        let ended = GoalEnded {
            goal: self.id,
            served: WantedOutputs::All,
            outcome: Arc::new(outcome),
        };
        tell(&self.ports.upward.ended, ended);
    }
}

impl Handler<CancelGoal> for PathGoal {
    type Result = ();

    fn handle(&mut self, _: CancelGoal, ctx: &mut Self::Context) {
        self.advance(Event::Cancelled, ctx);
    }
}

impl Handler<ServiceLost> for PathGoal {
    type Result = ();

    fn handle(&mut self, lost: ServiceLost, ctx: &mut Self::Context) {
        let message = lost.message;
        self.advance(Event::ServiceFailed { message }, ctx);
    }
}
