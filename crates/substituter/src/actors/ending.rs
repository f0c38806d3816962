//! How others learn of the actor's end, and how tests bring it about.

use actix::prelude::*;

use super::Substituter;
use crate::messages::{AwaitEnd, ForcePanic};

impl Handler<AwaitEnd> for Substituter {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: AwaitEnd, _ctx: &mut Self::Context) -> Self::Result {
        Box::pin(std::future::pending().into_actor(self))
    }
}

impl Handler<ForcePanic> for Substituter {
    type Result = ();

    fn handle(&mut self, _: ForcePanic, _ctx: &mut Self::Context) {
        panic!("forced by a test");
    }
}
