//! How others learn of an actor's end, and how tests bring it about.

use actix::prelude::*;

use super::{LockKeeper, StoreRegistry};
use crate::messages::{AwaitEnd, ForcePanic};

/// Returns an answer that never comes, and is dropped with the actor.
fn never<A: Actor>(actor: &A) -> ResponseActFuture<A, ()> {
    Box::pin(std::future::pending().into_actor(actor))
}

impl Handler<AwaitEnd> for StoreRegistry {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: AwaitEnd, _ctx: &mut Self::Context) -> Self::Result {
        never(self)
    }
}

impl Handler<AwaitEnd> for LockKeeper {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: AwaitEnd, _ctx: &mut Self::Context) -> Self::Result {
        never(self)
    }
}

impl Handler<ForcePanic> for StoreRegistry {
    type Result = ();

    fn handle(&mut self, _: ForcePanic, _ctx: &mut Self::Context) {
        panic!("forced by a test");
    }
}

impl Handler<ForcePanic> for LockKeeper {
    type Result = ();

    fn handle(&mut self, _: ForcePanic, _ctx: &mut Self::Context) {
        panic!("forced by a test");
    }
}
