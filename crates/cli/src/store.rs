//! The store, for questions that need no goal.

use actix::Addr;
use actix::dev::ToEnvelope;
use actix::prelude::*;
use registry::{StopRegistry, StoreRegistry};
use store_model::settings::StoreLayout;
use store_model::{Settings, StoreDir};

use crate::failure::{Failure, Result};

/// An open store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: StoreDir,
    registry: Addr<StoreRegistry>,
}

impl Store {
    /// Opens a store, making it if there is none. Runs within an actix system.
    ///
    /// # Errors
    /// The store cannot be opened.
    pub(crate) fn open(layout: &StoreLayout, settings: &Settings) -> Result<Self> {
        let services = registry::start(layout.clone(), settings)
            .map_err(|error| explain(layout, Failure::new(error)))?;
        Ok(Self {
            dir: layout.store_dir.clone(),
            registry: services.store,
        })
    }

    /// Speaks to a store that a scheduler has opened.
    #[must_use]
    pub(crate) fn of_scheduler(
        scheduler: &scheduler::SchedulerHandle,
        layout: &StoreLayout,
    ) -> Self {
        Self {
            dir: layout.store_dir.clone(),
            registry: scheduler.store().clone(),
        }
    }

    /// Returns the directory that paths are printed with.
    #[must_use]
    pub(crate) fn dir(&self) -> &StoreDir {
        &self.dir
    }

    /// Asks the registry.
    ///
    /// # Errors
    /// The registry says so, or has stopped.
    pub(crate) async fn ask<M, T>(&self, message: M) -> Result<T>
    where
        M: Message<Result = std::result::Result<T, registry::Error>> + Send + 'static,
        T: Send + 'static,
        StoreRegistry: Handler<M>,
        <StoreRegistry as Actor>::Context: ToEnvelope<StoreRegistry, M>,
    {
        let answer = self.registry.send(message).await;
        Ok(answer.map_err(|_| Failure::message("the store has stopped"))??)
    }

    /// Commits what is queued and ends the store's threads.
    pub(crate) async fn close(&self) {
        // A registry that is gone has nothing left to commit.
        let _gone = self.registry.send(StopRegistry).await;
    }
}

/// Says which store could not be opened, and how to name another.
pub(crate) fn explain(layout: &StoreLayout, failure: Failure) -> Failure {
    failure.advise(format!(
        "the store is '{}'; name another one with '--store ROOT'",
        layout.real_store_dir.display()
    ))
}
