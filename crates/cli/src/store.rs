//! The store, for questions that need no goal.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use actix::Addr;
use actix::dev::ToEnvelope;
use actix::prelude::*;
use registry::{
    AddNar, Added, QueryRealisations, RestoreNar, RootsLease, StopRegistry, StoreRegistry,
};
use store_model::settings::StoreLayout;
use store_model::{Derivation, OutputName, Settings, StoreDir, StorePath};

use crate::failure::{Failure, Result};

/// An open store.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    dir: StoreDir,
    registry: Addr<StoreRegistry>,
    /// Keeps what was added from the garbage collector while there is a copy of this store.
    added: Rc<RefCell<RootsLease>>,
}

impl Store {
    /// Opens a store, making it if there is none. Runs within an actix system.
    ///
    /// # Errors
    /// The store cannot be opened.
    pub(crate) fn open(layout: &StoreLayout, settings: &Settings) -> Result<Self> {
        // Nothing is built here, so nothing is signed, and whoever only asks need not be able to
        // read the keys.
        let settings = Settings {
            secret_key_files: BTreeSet::new(),
            ..settings.clone()
        };
        let services = registry::start(layout.clone(), &settings)
            .map_err(|error| explain(layout, Failure::new(error)))?;
        Ok(Self {
            dir: layout.store_dir.clone(),
            registry: services.store,
            added: Rc::default(),
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
            added: Rc::default(),
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

    /// Returns the outputs of a derivation whose paths are known: those that it says, and those that
    /// are realised.
    ///
    /// # Errors
    /// It has outputs that only the feature `ca-derivations` could know of, and that is off.
    pub(crate) async fn output_paths(
        &self,
        derivation: Arc<Derivation>,
    ) -> Result<BTreeMap<OutputName, StorePath>> {
        let said = derivation.known_outputs();
        let mut paths: BTreeMap<_, _> = said
            .map(|(name, path)| (name.clone(), path.clone()))
            .collect();
        if paths.len() < derivation.outputs.len() {
            paths.extend(self.ask(QueryRealisations { derivation }).await?.paths);
        }
        Ok(paths)
    }

    /// Has the registry add something, and keeps it; returns where it is.
    ///
    /// # Errors
    /// As [`ask`](Self::ask).
    pub(crate) async fn add<M>(&self, message: M) -> Result<StorePath>
    where
        M: Message<Result = std::result::Result<Added, registry::Error>> + Send + 'static,
        StoreRegistry: Handler<M>,
        <StoreRegistry as Actor>::Context: ToEnvelope<StoreRegistry, M>,
    {
        let Added { path, roots } = self.ask(message).await?;
        self.added.borrow_mut().absorb(roots);
        Ok(path)
    }

    /// Has the registry add what an archive holds, and keeps it.
    ///
    /// # Errors
    /// The archive is not what was promised, cannot be read, or the store fails.
    pub(crate) async fn add_nar(&self, nar: RestoreNar) -> Result<()> {
        let answer = self.registry.send(AddNar { nar }).await;
        let answer = answer.map_err(|_| Failure::message("the store has stopped"))?;
        let Added { roots, .. } = answer.map_err(Failure::new)?;
        self.added.borrow_mut().absorb(roots);
        Ok(())
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
