//! The threads of a registry, and the queues that lead to them.

use std::sync::Arc;

use store_model::StorePath;
use tokio::sync::watch;

use crate::db::Database;
use crate::db::connection::{Realisations, SchemaGuard};
use crate::derivations::Derivations;
use crate::ingest::{GoodPaths, Ingest, Trash};
use crate::layout::Layout;
use crate::messages::RootsLease;
use crate::path_lock::PathLocker;
use crate::roots::TempRoots;
use crate::workers::{WorkQueue, WorkerPool};
use crate::writer::Writer;
use crate::{CancelFlag, Error};

/// What a task of the registry can ask for. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Queues {
    pub(crate) layout: Arc<Layout>,
    pub(crate) locker: PathLocker,
    pub(crate) good_paths: GoodPaths,
    pub(crate) readers: WorkQueue<Database>,
    pub(crate) derivations: WorkQueue<Derivations>,
    pub(crate) ingest: WorkQueue<Ingest>,
    pub(crate) restore: WorkQueue<Ingest>,
    pub(crate) roots: WorkQueue<TempRoots>,
    pub(crate) trash: Trash,
    pub(crate) realisations: Realisations,
    /// Closed when the registry stops.
    pub(crate) stopping: watch::Receiver<()>,
}

/// The threads themselves.
#[derive(Debug)]
pub(crate) struct Pools {
    pub(crate) readers: WorkerPool<Database>,
    pub(crate) derivations: WorkerPool<Derivations>,
    pub(crate) ingest: WorkerPool<Ingest>,
    /// May be kept waiting by whoever sends an archive.
    pub(crate) restore: WorkerPool<Ingest>,
    pub(crate) writer: Writer,
    /// Takes locks and lets go of them.
    pub(crate) locking: WorkerPool<()>,
    pub(crate) deletion: WorkerPool<()>,
    pub(crate) roots: WorkerPool<TempRoots>,
    pub(crate) guard: SchemaGuard,
    /// Dropped to tell the tasks that wait for others.
    pub(crate) running: watch::Sender<()>,
    /// Raised to tell the ingest threads that nobody waits for them any more.
    pub(crate) given_up: CancelFlag,
}

impl Pools {
    /// Waits until all queues are empty and all threads gone. Blocks: not for actors.
    ///
    /// Those who make work for others end first.
    pub(crate) fn join(self) {
        drop(self.running);
        self.given_up.raise();
        self.restore.join();
        self.ingest.join();
        self.writer.join();
        self.derivations.join();
        self.readers.join();
        self.locking.join();
        self.deletion.join();
        self.roots.join();
        // Nobody speaks to the database any more: others may change its schema.
        drop(self.guard);
    }
}

impl Queues {
    /// Runs a question on a reader.
    ///
    /// # Errors
    /// The question's own, or the readers are gone.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Database) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        self.readers.run(|database| question(database)).await
    }

    /// Keeps paths from the garbage collector.
    ///
    /// # Errors
    /// The roots cannot be written, or their thread is gone.
    pub(crate) async fn lend_roots(&self, paths: Vec<StorePath>) -> Result<RootsLease, Error> {
        let queue = self.roots.downgrade();
        // Made over there: an asker who is gone drops the lease with the answer.
        self.roots.run(move |roots| roots.lend(paths, &queue)).await
    }

    /// Waits for a lock that somebody else holds.
    ///
    /// # Errors
    /// The lock file cannot be used, or the registry stops.
    pub(crate) async fn wait_for_lock(&self, path: &StorePath) -> Result<(), Error> {
        let mut stopping = self.stopping.clone();
        tokio::select! {
            freed = self.locker.wait(path) => freed,
            _ = stopping.changed() => Err(Error::Stopped),
        }
    }
}
