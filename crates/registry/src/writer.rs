//! The one thread that writes to the database.
//!
//! ```text
//! take one commit ─► and all that wait ─► one sync of contents ─► one transaction ─► answer each
//! ```
//!
//! Registrations that arrive while a batch is on its way to the disk share the next one. When many
//! come at once and more are announced, a batch waits for those, for no longer than twice the time that
//! the disk took for the last one: so at most a third of the time is spent on syncing, which everybody
//! who makes files suffers from.
//! Each has a savepoint of its own, so a bad one fails alone; a failed sync or commit fails all of
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, SyncSender, TryRecvError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use store_model::{Realisation, StorePath};

use crate::db::Database;
use crate::db::realisations;
use crate::db::write::{Registration, add_signatures, register_valid};
use crate::layout::Layout;
use crate::{Error, sync, workers};

/// Most commits in one batch: beyond it sharing saves nothing, and the first ones wait longer.
const MAX_BATCH: usize = 256;

/// From how many commits on a batch is part of a flood: so many that were made at the same time do not
/// wait for each other's answers, and will hardly mind to wait for a few more.
const FLOOD: usize = 4;

/// Longest that a batch waits for more of a flood, however slow the disk is.
const MAX_GATHERING: Duration = Duration::from_millis(50);

/// How many commits may wait before those who make them do.
const QUEUE_LEN: usize = 256;

/// Paths that become valid together or not at all.
pub(crate) struct Commit {
    /// What to write.
    pub(crate) registrations: Vec<Registration>,
    /// What is known of outputs then, of these paths or of others that are valid.
    pub(crate) realisations: Vec<Realisation>,
    /// Signatures of valid paths, added to those that they have.
    pub(crate) signatures: BTreeMap<StorePath, BTreeSet<String>>,
    /// Told the outcome, on the writer's thread: must be quick.
    pub(crate) done: Box<dyn FnOnce(Result<(), Error>) + Send>,
}

/// Whether contents are synced before they become valid (`fsync-store-paths`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContentSync {
    /// A valid path has its contents after a power cut.
    Durable,
    /// The kernel writes them when it likes.
    Relaxed,
}

/// The sending end of the writer's queue.
#[derive(Debug, Clone)]
pub(crate) struct CommitQueue {
    commits: SyncSender<Commit>,
    n_announced: Arc<AtomicUsize>,
    #[cfg(test)]
    n_batches: Arc<AtomicU64>,
}

/// Announces a commit, or what will probably become one, until it is dropped.
#[derive(Debug)]
pub(crate) struct Announced {
    n_announced: Arc<AtomicUsize>,
}

impl Drop for Announced {
    fn drop(&mut self) {
        self.n_announced.fetch_sub(1, Ordering::Relaxed);
    }
}

impl CommitQueue {
    /// Queues a commit from a thread that may wait.
    pub(crate) fn submit_blocking(&self, commit: Commit) {
        if let Err(refused) = self.commits.send(commit) {
            (refused.0.done)(Err(Error::Stopped));
        }
    }

    /// Says that a commit is on its way, which a batch may wait for.
    pub(crate) fn announce(&self) -> Announced {
        self.n_announced.fetch_add(1, Ordering::Relaxed);
        Announced {
            n_announced: Arc::clone(&self.n_announced),
        }
    }

    /// Returns how many transactions there have been.
    #[cfg(test)]
    pub(crate) fn n_batches(&self) -> u64 {
        self.n_batches.load(Ordering::Relaxed)
    }
}

/// The writer's thread.
#[derive(Debug)]
pub(crate) struct Writer {
    queue: CommitQueue,
    thread: JoinHandle<()>,
}

impl Writer {
    /// Starts it with a connection of its own.
    ///
    /// # Errors
    /// The kernel refuses a thread.
    pub(crate) fn start(
        layout: Arc<Layout>,
        database: Database,
        content_sync: ContentSync,
    ) -> Result<Self, Error> {
        let (commits, receiver) = mpsc::sync_channel(QUEUE_LEN);
        let n_announced = Arc::new(AtomicUsize::new(0));
        let n_batches = Arc::new(AtomicU64::new(0));
        let state = State {
            layout,
            database,
            content_sync,
            n_announced: Arc::clone(&n_announced),
            n_batches: Arc::clone(&n_batches),
        };
        Ok(Self {
            queue: CommitQueue {
                commits,
                n_announced,
                #[cfg(test)]
                n_batches,
            },
            thread: workers::spawn("writer", move || state.run(&receiver))?,
        })
    }

    /// Returns the sending end.
    pub(crate) fn queue(&self) -> CommitQueue {
        self.queue.clone()
    }

    /// Waits until everything queued is committed and the thread gone. Blocks: not for actors.
    pub(crate) fn join(self) {
        drop(self.queue);
        if self.thread.join().is_err() {
            tracing::error!("the registry's writer thread panicked");
        }
    }
}

struct State {
    layout: Arc<Layout>,
    database: Database,
    content_sync: ContentSync,
    n_announced: Arc<AtomicUsize>,
    n_batches: Arc<AtomicU64>,
}

impl State {
    fn run(self, receiver: &Receiver<Commit>) {
        let mut patience = Duration::ZERO;
        while let Ok(first) = receiver.recv() {
            let batch = gather(first, receiver, patience, &self.n_announced);
            let n_commits = batch.len();
            let started_at = now();
            self.commit_and_answer(batch);
            patience = self::patience(n_commits, started_at.elapsed());
        }
    }

    fn commit_and_answer(&self, batch: Vec<Commit>) {
        self.n_batches.fetch_add(1, Ordering::Relaxed);
        match catch_unwind(AssertUnwindSafe(|| self.commit(&batch))) {
            Ok(Ok(outcomes)) => {
                for (commit, outcome) in batch.into_iter().zip(outcomes) {
                    answer(commit, outcome);
                }
            }
            Ok(Err(failure)) => {
                let failure = Arc::new(failure);
                for commit in batch {
                    answer(commit, Err(Error::Shared(Arc::clone(&failure))));
                }
            }
            Err(_) => {
                for commit in batch {
                    answer(commit, Err(Error::WorkerLost { name: "writer" }));
                }
            }
        }
    }

    /// Makes a batch durable; returns how each of its commits fared.
    fn commit(&self, batch: &[Commit]) -> Result<Vec<Result<(), Error>>, Error> {
        let mut outcomes = self.sync_contents(batch)?;
        let failed = |source| self.database.failed("committing", source);
        let mut transaction = self.database.begin()?;
        for (commit, outcome) in batch.iter().zip(&mut outcomes) {
            if outcome.is_err() {
                continue;
            }
            let mut savepoint = transaction.savepoint().map_err(failed)?;
            *outcome = register_valid(&self.database, &commit.registrations)
                .and_then(|()| realisations::register(&self.database, &commit.realisations))
                .and_then(|()| add_signatures(&self.database, &commit.signatures));
            // A full disk can end the whole transaction. Without this check the next savepoint
            // would open a new one, and commit what we report as failed.
            if self.database.connection.is_autocommit() {
                let cause = std::mem::replace(outcome, Ok(())).err();
                return Err(cause.unwrap_or_else(|| failed(rolled_back())));
            }
            if outcome.is_err() {
                savepoint.rollback().map_err(failed)?;
            }
            savepoint.commit().map_err(failed)?;
        }
        transaction.commit().map_err(failed)?;
        Ok(outcomes)
    }

    /// Syncs what a batch makes valid; returns which of its commits may go on.
    fn sync_contents(&self, batch: &[Commit]) -> Result<Vec<Result<(), Error>>, Error> {
        let n_paths: usize = batch.iter().map(|commit| commit.registrations.len()).sum();
        if self.content_sync == ContentSync::Relaxed || n_paths == 0 {
            return Ok(batch.iter().map(|_| Ok(())).collect());
        }
        let strategy = sync::Strategy::now(n_paths as u64);
        let synced = batch
            .iter()
            .map(|commit| {
                let registrations = commit.registrations.iter();
                let paths = registrations.map(|registration| &registration.info.path);
                strategy.sync_each(&self.layout, paths)
            })
            .collect();
        strategy.sync_rest(&self.layout)?;
        Ok(synced)
    }
}

/// Takes what waits behind `first`, and what comes within `patience` while something is announced.
fn gather(
    first: Commit,
    receiver: &Receiver<Commit>,
    patience: Duration,
    n_announced: &AtomicUsize,
) -> Vec<Commit> {
    let mut batch = vec![first];
    let deadline = now() + patience;
    while batch.len() < MAX_BATCH {
        match receiver.try_recv() {
            Ok(commit) => batch.push(commit),
            Err(TryRecvError::Disconnected) => break,
            Err(TryRecvError::Empty) if n_announced.load(Ordering::Relaxed) == 0 => break,
            Err(TryRecvError::Empty) => {
                let left = deadline.saturating_duration_since(now());
                match receiver.recv_timeout(left) {
                    Ok(commit) => batch.push(commit),
                    Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
                }
            }
        }
    }
    batch
}

/// Returns how long the next batch may wait for more, after one of `n_commits` that took so long.
fn patience(n_commits: usize, took: Duration) -> Duration {
    if n_commits < FLOOD {
        // Perhaps one that waits for the answer before it asks for more.
        return Duration::ZERO;
    }
    (took * 2).min(MAX_GATHERING)
}

#[expect(
    clippy::disallowed_methods,
    reason = "a thread of its own, which no test's clock could wake"
)]
fn now() -> Instant {
    Instant::now()
}

/// What the engine means when it ends a transaction without an error of its own.
fn rolled_back() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_ABORT_ROLLBACK),
        None,
    )
}

/// Tells a commit's maker how it went; their panic is not ours.
fn answer(commit: Commit, outcome: Result<(), Error>) {
    if catch_unwind(AssertUnwindSafe(|| (commit.done)(outcome))).is_err() {
        tracing::error!("answering a registration panicked");
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
