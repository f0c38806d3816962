//! The threads on which caches are asked.
//!
//! The actors' thread only passes messages on: TLS, parsing and checking signatures of thousands of
//! answers would hold up every goal.

use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};
use tokio::sync::oneshot;

use crate::Error;

/// Threads that run tasks: one that parses, one that goes on receiving.
const N_WORKERS: usize = 2;

/// Most threads that wait for a disk, or for the address of a server, started as they are needed. One
/// cache's disk or name server that hangs holds as many of them as it may have questions (25 by
/// default), and must not hold up the others.
const MAX_BLOCKING: usize = 128;

/// How long a thread that waits for a disk or a name server is waited for at the end: those may hang.
const STOP_LIMIT: Duration = Duration::from_secs(1);

/// A runtime that may be dropped anywhere.
#[derive(Debug)]
pub(crate) struct Engine {
    /// `None` once it is being stopped.
    runtime: Option<Runtime>,
    handle: Handle,
    threads: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Starts the threads.
    ///
    /// # Errors
    /// The kernel refuses them.
    pub(crate) fn start() -> Result<Self, Error> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(N_WORKERS)
            .max_blocking_threads(MAX_BLOCKING)
            .thread_name("substituter")
            .enable_all()
            .build()
            .map_err(|source| Error::StartThreads { source })?;
        let handle = runtime.handle().clone();
        Ok(Self {
            runtime: Some(runtime),
            handle,
            threads: Vec::new(),
        })
    }

    /// Returns where tasks are started.
    pub(crate) fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Has another thread waited for at the end, which ends when no task is left.
    pub(crate) fn keep(&mut self, thread: JoinHandle<()>) {
        self.threads.push(thread);
    }

    /// Drops all tasks; what it returns is answered when the threads are gone.
    pub(crate) fn stop(mut self) -> oneshot::Receiver<()> {
        let (done, stopped) = oneshot::channel();
        let runtime = self.runtime.take();
        let threads = std::mem::take(&mut self.threads);
        // Dropping a runtime waits for its threads, which no actor may do.
        let joining = std::thread::Builder::new()
            .name("substituter-stop".to_owned())
            .spawn(move || {
                if let Some(runtime) = runtime {
                    runtime.shutdown_timeout(STOP_LIMIT);
                }
                for thread in threads {
                    if thread.join().is_err() {
                        tracing::error!("a thread of the substituter panicked");
                    }
                }
                let _nobody_waits = done.send(());
            });
        if let Err(error) = joining {
            tracing::warn!("{error}: not waiting for the threads that ask caches");
        }
        stopped
    }
}

/// A panic of the actor must not become another one because its runtime may not be waited for here.
impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
