//! How others learn of the supervisor's end, and how tests bring an actor's end about.

use actix::prelude::*;

use super::SandboxSupervisor;
use super::builder_session::BuilderSession;
use crate::messages::{AwaitEnd, ForcePanic, PanickingActor};

impl Handler<AwaitEnd> for SandboxSupervisor {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: AwaitEnd, _ctx: &mut Self::Context) -> Self::Result {
        // Dropped with the actor.
        Box::pin(std::future::pending().into_actor(self))
    }
}

impl Handler<ForcePanic> for SandboxSupervisor {
    type Result = ();

    fn handle(&mut self, force: ForcePanic, _ctx: &mut Self::Context) {
        match force.actor {
            PanickingActor::Supervisor => panic!("forced by a test"),
            PanickingActor::Sessions => {
                for session in self.sessions() {
                    session.do_send(force);
                }
            }
        }
    }
}

impl Handler<ForcePanic> for BuilderSession {
    type Result = ();

    fn handle(&mut self, _: ForcePanic, _ctx: &mut Self::Context) {
        panic!("forced by a test");
    }
}
