//! Answers who may write which output.

use actix::{Actor, Context, Handler, ResponseFuture};

use crate::Error;
use crate::messages::{AwaitLock, LockAttempt, TryLockOutputs};
use crate::path_lock::PathLocker;
use crate::workers::WeakWorkQueue;

/// Gives out locks on outputs, and wakes those who wait for one.
#[derive(Debug)]
pub struct LockKeeper {
    locker: PathLocker,
    /// To one thread: opening a lock file can wait for a disk. It ends with the registry's others.
    locking: WeakWorkQueue<()>,
}

impl LockKeeper {
    pub(crate) const fn new(locker: PathLocker, locking: WeakWorkQueue<()>) -> Self {
        Self { locker, locking }
    }
}

impl Actor for LockKeeper {
    type Context = Context<Self>;
}

impl Handler<TryLockOutputs> for LockKeeper {
    type Result = ResponseFuture<Result<LockAttempt, Error>>;

    fn handle(&mut self, request: TryLockOutputs, _: &mut Context<Self>) -> Self::Result {
        let locker = self.locker.clone();
        let queue = self.locking.upgrade();
        Box::pin(async move {
            let queue = queue.ok_or(Error::Stopped)?;
            queue.run(move |()| locker.try_lock(request.paths)).await
        })
    }
}

impl Handler<AwaitLock> for LockKeeper {
    type Result = ResponseFuture<Result<(), Error>>;

    fn handle(&mut self, request: AwaitLock, _: &mut Context<Self>) -> Self::Result {
        let locker = self.locker.clone();
        Box::pin(async move { locker.wait(&request.path).await })
    }
}
