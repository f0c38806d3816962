//! A running scheduler, as plain async Rust sees it.

use std::sync::Arc;

use actix::Addr;
use registry::QueryPathInfo;
use store_model::wanted_outputs::WantedOutputs;
use store_model::{Derivation, Settings, StorePath};
use tokio::sync::{mpsc, oneshot, watch};

use crate::Error;
use crate::actors::Scheduler;
use crate::actors::repair::{self, Remedy};
use crate::events::Event;
use crate::goal::{BuildMode, PathMode};
use crate::messages::{
    CancelRequests, ForcePanic, PanickingActor, StopScheduler, SubmitGoals, Subscribe,
};
use crate::request::{BuildReport, BuildRequest, Wanted};

/// A running scheduler. Cheap to clone; the scheduler stops when [`stop`](Self::stop) is called or
/// the last handle is dropped.
///
/// Every method may be called from any runtime, tokio's or another: the scheduler has a thread and
/// an actix system of its own.
#[derive(Clone)]
pub struct SchedulerHandle {
    inner: Arc<Inner>,
}

struct Inner {
    scheduler: Addr<Scheduler>,
    services: crate::start::Services,
    /// Closed when the scheduler's thread has ended.
    ended: watch::Receiver<()>,
}

/// Everything that happens, in order, from the moment of subscribing.
///
/// Log lines that are not taken slow their builders down, so that nothing is lost and memory stays
/// bounded; whoever does not want them drops the stream.
pub type EventStream = mpsc::UnboundedReceiver<Event>;

impl SchedulerHandle {
    pub(crate) fn new(
        scheduler: Addr<Scheduler>,
        services: crate::start::Services,
        ended: watch::Receiver<()>,
    ) -> Self {
        Self {
            inner: Arc::new(Inner {
                scheduler,
                services,
                ended,
            }),
        }
    }

    /// Brings about everything that the request wants, and reports how each part ended.
    ///
    /// Dropping the future cancels the request: what nobody else wants is killed.
    ///
    /// # Errors
    /// The scheduler has stopped. Failed builds are outcomes in the report.
    pub async fn build_paths(&self, request: BuildRequest) -> Result<BuildReport, Error> {
        // Dropping this future drops the sender, which the scheduler takes as leaving.
        let (_stays, abandoned) = oneshot::channel();
        let submit = SubmitGoals {
            request,
            abandoned: Some(abandoned),
        };
        let report = self.inner.scheduler.send(submit).await;
        report.map_err(|_| Error::Stopped)?
    }

    /// Builds a derivation that need not be in the store (SPEC B10). What it needs must be valid.
    ///
    /// # Errors
    /// The scheduler has stopped. A failed build is the outcome in the report.
    pub async fn build_derivation(
        &self,
        drv_path: StorePath,
        derivation: Arc<Derivation>,
        settings: Arc<Settings>,
    ) -> Result<BuildReport, Error> {
        self.build_paths(BuildRequest {
            wanted: vec![Wanted::Given {
                drv_path,
                derivation,
                mode: BuildMode::Normal,
            }],
            settings,
            priority: 0,
        })
        .await
    }

    /// Makes sure that one path is valid.
    ///
    /// # Errors
    /// The scheduler has stopped.
    pub async fn ensure_path(
        &self,
        path: StorePath,
        settings: Arc<Settings>,
    ) -> Result<BuildReport, Error> {
        self.build_paths(BuildRequest {
            wanted: vec![Wanted::Path(path, PathMode::Ensure)],
            settings,
            priority: 0,
        })
        .await
    }

    /// Repairs one path and everything below it: what is corrupt or missing is built again.
    ///
    /// # Errors
    /// The scheduler has stopped. What cannot be repaired is the outcome in the report.
    pub async fn repair_path(
        &self,
        path: StorePath,
        settings: Arc<Settings>,
    ) -> Result<BuildReport, Error> {
        let wanted = vec![self.remedy(path).await?];
        self.build_paths(BuildRequest {
            wanted,
            settings,
            priority: 0,
        })
        .await
    }

    /// Returns what repairs a path: all outputs of the derivation that made it, where that is in the
    /// store, else the path alone, whose goal says what stands in the way.
    ///
    /// # Errors
    /// The scheduler has stopped.
    pub async fn remedy(&self, path: StorePath) -> Result<Wanted, Error> {
        let services = &self.inner.services;
        let question = QueryPathInfo { path: path.clone() };
        let info = services.store.send(question).await;
        // What the store cannot tell now it tells the goal, too.
        let deriver = info
            .map_err(|_| Error::Stopped)?
            .ok()
            .flatten()
            .and_then(|info| info.deriver);
        let Some(deriver) = deriver else {
            return Ok(Wanted::Path(path, PathMode::Repair));
        };
        let valid = services.store.clone().recipient();
        let derivation = services.store.clone().recipient();
        let remedy = repair::remedy(&valid, &derivation, &path, deriver.clone());
        Ok(match remedy.await {
            Ok(Remedy::Rebuild) => Wanted::Outputs {
                drv_path: deriver,
                outputs: WantedOutputs::All,
                mode: BuildMode::Repair,
            },
            Ok(Remedy::DeriverIsGone | Remedy::DeriverMakesOthers) | Err(_) => {
                Wanted::Path(path, PathMode::Repair)
            }
        })
    }

    /// Subscribes to everything that happens from now on.
    ///
    /// # Errors
    /// The scheduler has stopped.
    pub async fn subscribe(&self) -> Result<EventStream, Error> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.inner
            .scheduler
            .send(Subscribe { sender })
            .await
            .map_err(|_| Error::Stopped)?;
        Ok(receiver)
    }

    /// Cancels every request: builders are killed, locks released, reports given.
    ///
    /// # Errors
    /// The scheduler has stopped.
    pub async fn cancel_all(&self) -> Result<(), Error> {
        self.inner
            .scheduler
            .send(CancelRequests)
            .await
            .map_err(|_| Error::Stopped)
    }

    /// Returns the store's actor, for questions that need no goal.
    #[must_use]
    pub fn store(&self) -> &Addr<registry::StoreRegistry> {
        &self.inner.services.store
    }

    /// Returns the scheduler's actor, for programs that are made of actors themselves.
    #[must_use]
    pub fn actor(&self) -> &Addr<Scheduler> {
        &self.inner.scheduler
    }

    /// Panics in an actor, for tests that show that nothing is left behind.
    #[doc(hidden)]
    pub fn force_panic(&self, actor: PanickingActor) {
        self.inner.scheduler.do_send(ForcePanic { actor });
    }

    /// Cancels what runs, cleans up, and answers when no process, lock or directory is left and
    /// the scheduler's thread has ended.
    pub async fn stop(&self) {
        // An error means that it has stopped already.
        let _stopped = self.inner.scheduler.send(StopScheduler).await;
        let mut ended = self.inner.ended.clone();
        while ended.changed().await.is_ok() {}
    }
}

impl std::fmt::Debug for SchedulerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SchedulerHandle")
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.scheduler.do_send(StopScheduler);
    }
}
