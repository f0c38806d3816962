//! Threads that do what an actor must not: wait for a disk.
//!
//! Jobs come through one bounded queue for each pool; the sender waits in a future, never in a
//! thread. A job that panics costs its own answer, not the thread: the others go on.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use nix::sys::signal::{SigSet, SigmaskHow};
use tokio::sync::{mpsc, oneshot};

use crate::Error;

/// How many jobs may wait in a queue before senders do: enough to keep a thread busy, few enough
/// that a flood of requests stays with those who make it.
const QUEUE_LEN: usize = 256;

/// How much stack a thread has for jobs of any kind, in bytes.
const STACK_BYTES: usize = 2 << 20;

/// Starts a thread that no signal is ever delivered to, so that handlers run where they expect to.
pub(crate) fn spawn(
    name: &'static str,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    spawn_with_stack(name, STACK_BYTES, body)
}

fn spawn_with_stack(
    name: &'static str,
    stack_bytes: usize,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, Error> {
    // A thread inherits the mask of its maker. Blocking only inside the thread would leave a moment
    // in which a signal could still choose it.
    let previous = SigSet::all()
        .thread_swap_mask(SigmaskHow::SIG_SETMASK)
        .map_err(|errno| Error::StartThread {
            name,
            source: errno.into(),
        })?;
    let started = std::thread::Builder::new()
        .name(format!("registry-{name}"))
        .stack_size(stack_bytes)
        .spawn(body);
    let restored = previous.thread_set_mask();
    let thread = started.map_err(|source| Error::StartThread { name, source })?;
    restored.map_err(|errno| Error::StartThread {
        name,
        source: io::Error::from(errno),
    })?;
    Ok(thread)
}

type Job<S> = Box<dyn FnOnce(&mut S) + Send>;

/// A pool of threads, each with a state of its own such as a database connection.
#[derive(Debug)]
pub(crate) struct WorkerPool<S> {
    queue: WorkQueue<S>,
    threads: Vec<JoinHandle<()>>,
}

/// The sending end of a pool's queue.
#[derive(Debug)]
pub(crate) struct WorkQueue<S> {
    name: &'static str,
    jobs: mpsc::Sender<Job<S>>,
}

/// A sending end that does not keep the pool from ending.
#[derive(Debug)]
pub(crate) struct WeakWorkQueue<S> {
    name: &'static str,
    jobs: mpsc::WeakSender<Job<S>>,
}

impl<S> Clone for WeakWorkQueue<S> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            jobs: self.jobs.clone(),
        }
    }
}

impl<S> WeakWorkQueue<S> {
    /// Returns the sending end, unless the pool is about to end.
    pub(crate) fn upgrade(&self) -> Option<WorkQueue<S>> {
        self.jobs.upgrade().map(|jobs| WorkQueue {
            name: self.name,
            jobs,
        })
    }
}

impl<S> Clone for WorkQueue<S> {
    fn clone(&self) -> Self {
        Self {
            name: self.name,
            jobs: self.jobs.clone(),
        }
    }
}

impl<S: Send + 'static> WorkerPool<S> {
    /// Starts one thread for each of `states`.
    ///
    /// # Errors
    /// The kernel refuses a thread; those already started end by themselves.
    pub(crate) fn start(name: &'static str, states: Vec<S>) -> Result<Self, Error> {
        Self::start_with_stack(name, STACK_BYTES, states)
    }

    /// Starts threads with stacks of `stack_bytes`: of a pool that has many.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub(crate) fn start_with_stack(
        name: &'static str,
        stack_bytes: usize,
        states: Vec<S>,
    ) -> Result<Self, Error> {
        let (jobs, receiver) = mpsc::channel(QUEUE_LEN);
        let receiver = Arc::new(Mutex::new(receiver));
        let threads = states
            .into_iter()
            .map(|state| {
                let receiver = Arc::clone(&receiver);
                spawn_with_stack(name, stack_bytes, move || work(name, state, &receiver))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            queue: WorkQueue { name, jobs },
            threads,
        })
    }

    /// Returns the sending end.
    pub(crate) fn queue(&self) -> WorkQueue<S> {
        self.queue.clone()
    }

    /// Waits until every job is done and every thread gone. Blocks: not for actors.
    pub(crate) fn join(self) {
        drop(self.queue);
        for thread in self.threads {
            // A worker catches the panics of its jobs, and has nothing else that could panic.
            if thread.join().is_err() {
                tracing::error!("a registry thread panicked");
            }
        }
    }
}

fn work<S>(name: &'static str, mut state: S, receiver: &Mutex<mpsc::Receiver<Job<S>>>) {
    loop {
        // Whoever holds the mutex is the one that waits for the next job; the others queue for it.
        let next = receiver
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .blocking_recv();
        let Some(job) = next else {
            // One after another: of two connections that close at once each finds the other still
            // there, and neither folds the database's log.
            let _turn = receiver.lock().unwrap_or_else(PoisonError::into_inner);
            drop(state);
            return;
        };
        if catch_unwind(AssertUnwindSafe(|| job(&mut state))).is_err() {
            tracing::error!("a job of the registry's {name} thread panicked");
        }
    }
}

impl<S: 'static> WorkQueue<S> {
    /// Returns a sending end for those who outlive the pool.
    pub(crate) fn downgrade(&self) -> WeakWorkQueue<S> {
        WeakWorkQueue {
            name: self.name,
            jobs: self.jobs.downgrade(),
        }
    }

    /// Runs a job and returns its answer.
    ///
    /// # Errors
    /// The job's own, or the pool is gone, or the job panicked.
    pub(crate) async fn run<T, E>(
        &self,
        job: impl FnOnce(&mut S) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.submit(move |state| {
            // The asker may be gone: a cancelled goal does not wait.
            let _asker_gone = reply.send(job(state));
        })
        .await?;
        answer
            .await
            .unwrap_or_else(|_| Err(Error::WorkerLost { name: self.name }.into()))
    }

    /// Queues a job that answers by itself.
    ///
    /// # Errors
    /// The pool is gone.
    pub(crate) async fn submit(
        &self,
        job: impl FnOnce(&mut S) + Send + 'static,
    ) -> Result<(), Error> {
        self.jobs
            .send(Box::new(job))
            .await
            .map_err(|_| Error::Stopped)
    }

    /// Queues a job if there is room; else it is never done.
    pub(crate) fn try_submit(&self, job: impl FnOnce(&mut S) + Send + 'static) {
        if self.jobs.try_send(Box::new(job)).is_err() {
            tracing::debug!("the registry's {} thread is too busy", self.name);
        }
    }

    /// Runs a job and returns its answer, from a thread that may wait.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub(crate) fn run_blocking<T, E>(
        &self,
        job: impl FnOnce(&mut S) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let job: Job<S> = Box::new(move |state| {
            let _asker_gone = reply.send(job(state));
        });
        if self.jobs.blocking_send(job).is_err() {
            return Err(Error::Stopped.into());
        }
        answer
            .blocking_recv()
            .unwrap_or_else(|_| Err(Error::WorkerLost { name: self.name }.into()))
    }

    /// Queues a job from a thread that may wait.
    pub(crate) fn submit_blocking(&self, job: impl FnOnce(&mut S) + Send + 'static) {
        // Without its pool there is nobody left to do the job; the next start cleans up.
        if self.jobs.blocking_send(Box::new(job)).is_err() {
            tracing::debug!("the registry's {} thread is gone", self.name);
        }
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[actix::test]
    async fn a_panicking_job_is_an_error_and_the_next_job_runs() {
        let pool = WorkerPool::start("test", vec![7]).unwrap();
        let queue = pool.queue();
        let lost: Result<(), Error> = queue.run(|_| panic!("on purpose")).await;
        assert!(matches!(lost, Err(Error::WorkerLost { name: "test" })));
        let kept: Result<i32, Error> = queue.run(|state| Ok(*state)).await;
        assert_eq!(kept.unwrap(), 7);
        drop(queue);
        pool.join();
    }

    #[actix::test]
    async fn a_worker_blocks_every_signal() {
        let pool = WorkerPool::start("test", vec![()]).unwrap();
        let status: Result<String, Error> = pool
            .queue()
            .run(|()| Ok(std::fs::read_to_string("/proc/thread-self/status").unwrap()))
            .await;
        let status = status.unwrap();
        let mask = status
            .lines()
            .find_map(|line| line.strip_prefix("SigBlk:\t"))
            .unwrap();
        let mask = u64::from_str_radix(mask, 16).unwrap();
        // SIGKILL, SIGSTOP and the C library's own two can not be blocked.
        for signal in [1, 2, 3, 10, 12, 13, 14, 15, 17] {
            assert_ne!(mask & (1 << (signal - 1)), 0, "signal {signal}");
        }
        pool.join();
    }

    #[actix::test]
    async fn joining_finishes_what_is_queued() {
        let pool = WorkerPool::start("test", vec![()]).unwrap();
        let (done, mut finished) = mpsc::channel(10);
        for idx in 0..10 {
            let done = done.clone();
            pool.queue()
                .submit(move |()| done.blocking_send(idx).unwrap())
                .await
                .unwrap();
        }
        drop(done);
        std::thread::spawn(move || pool.join()).join().unwrap();
        let mut seen = Vec::new();
        while let Some(idx) = finished.recv().await {
            seen.push(idx);
        }
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
    }
}
