//! Answers who may write which output.

use actix::{Actor, Context, Handler, ResponseFuture};

use crate::Error;
use crate::messages::{AwaitLock, LockAttempt, TryLockOutputs};
use crate::path_lock::PathLocker;
use crate::workers::WorkerPool;

/// Gives out locks on outputs, and wakes those who wait for one.
#[derive(Debug)]
pub struct LockKeeper {
    locker: PathLocker,
    /// One thread: opening a lock file can wait for a disk.
    locking: WorkerPool<()>,
}

impl LockKeeper {
    pub(crate) fn new(locker: PathLocker) -> Result<Self, Error> {
        Ok(Self {
            locker,
            locking: WorkerPool::start("locking", vec![()])?,
        })
    }
}

impl Actor for LockKeeper {
    type Context = Context<Self>;
}

impl Handler<TryLockOutputs> for LockKeeper {
    type Result = ResponseFuture<Result<LockAttempt, Error>>;

    fn handle(&mut self, request: TryLockOutputs, _: &mut Context<Self>) -> Self::Result {
        let locker = self.locker.clone();
        let queue = self.locking.queue();
        Box::pin(async move { queue.run(move |()| locker.try_lock(request.paths)).await })
    }
}

impl Handler<AwaitLock> for LockKeeper {
    type Result = ResponseFuture<Result<(), Error>>;

    fn handle(&mut self, request: AwaitLock, _: &mut Context<Self>) -> Self::Result {
        let locker = self.locker.clone();
        Box::pin(async move { locker.wait(&request.path).await })
    }
}
