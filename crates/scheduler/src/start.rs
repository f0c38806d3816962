//! Starting a scheduler: the only place that names the concrete actors of the services.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use actix::prelude::*;
use bstr::ByteSlice as _;
use registry::{LockKeeper, StopRegistry, StoreRegistry};
use sandbox::{HostEnvironment, SandboxSupervisor, StopSandbox};
use store_model::settings::StoreLayout;
use store_model::{Settings, StoreDir};
use substituter::{StopSubstituter, Substituter};
use tokio::sync::watch;

use crate::Error;
use crate::actors::{Scheduler, slot_counts};
use crate::goal::derivation::Substitution;
use crate::handle::SchedulerHandle;
use crate::hook::Hooks;
use crate::messages::PanickingActor;
use crate::ports::{Ports, Upward};

/// What a scheduler works on.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where the store is.
    pub layout: StoreLayout,
    /// Settings of the machine; `max_jobs` is the number of build slots. Each request has settings
    /// of its own besides.
    pub settings: Arc<Settings>,
    /// Variables of the program's environment that fixed-output builders may ask for with
    /// `impureEnvVars`; `post-build-hook` has all of them.
    pub host_environment: HostEnvironment,
    /// Where the answers of caches are remembered for the next run; `None` if nowhere.
    pub cache_dir: Option<PathBuf>,
    /// What `post-build-hook` finds in `NIX_CONFIG`, so that its Nix has the same settings.
    pub nix_config: String,
}

/// The actors that goals talk to.
#[derive(Debug, Clone)]
pub(crate) struct Services {
    pub(crate) store_dir: StoreDir,
    pub(crate) store: Addr<StoreRegistry>,
    pub(crate) locks: Addr<LockKeeper>,
    pub(crate) sandbox: Addr<SandboxSupervisor>,
    pub(crate) substituter: Addr<Substituter>,
    hooks: Hooks,
    has_caches: bool,
}

impl Services {
    fn start(config: &Config) -> Result<Self, Error> {
        let registry =
            registry::start(config.layout.clone(), &config.settings).map_err(Error::OpenStore)?;
        let environment = config.host_environment.clone();
        let sandbox = sandbox::start(config.layout.clone(), &config.settings, environment)
            .map_err(Error::StartSandbox)?;
        let substituter = substituter::start(
            &config.settings,
            config.layout.store_dir.clone(),
            config.cache_dir.clone(),
            &|name| variable(&config.host_environment, name),
        )
        .map_err(Error::StartSubstituter)?;
        Ok(Self {
            store_dir: config.layout.store_dir.clone(),
            store: registry.store,
            locks: registry.locks,
            sandbox,
            substituter,
            hooks: Hooks::new(config),
            has_caches: !config.settings.substituters.is_empty(),
        })
    }

    /// Returns whether goals of a request with these settings ask caches.
    pub(crate) fn substitution(&self, settings: &Settings) -> Substitution {
        match (self.has_caches && settings.substitute, settings.fallback) {
            (false, _) => Substitution::Off,
            (true, false) => Substitution::Strict,
            (true, true) => Substitution::WithFallback,
        }
    }

    pub(crate) fn ports(&self, upward: Upward) -> Ports {
        Ports {
            store_dir: self.store_dir.clone(),
            add_temp_roots: self.store.clone().recipient(),
            query_derivation: self.store.clone().recipient(),
            query_valid_paths: self.store.clone().recipient(),
            query_path_info: self.store.clone().recipient(),
            query_good_paths: self.store.clone().recipient(),
            query_valid_derivers: self.store.clone().recipient(),
            query_closure: self.store.clone().recipient(),
            query_graphs: self.store.clone().recipient(),
            discard_invalid_paths: self.store.clone().recipient(),
            register_outputs: self.store.clone().recipient(),
            register_by_contents: self.store.clone().recipient(),
            register_floating_outputs: self.store.clone().recipient(),
            query_realisations: self.store.clone().recipient(),
            note_realisations: self.store.clone().recipient(),
            adopt_realisations: self.store.clone().recipient(),
            add_text: self.store.clone().recipient(),
            compare_outputs: self.store.clone().recipient(),
            restore_nar: self.store.clone().recipient(),
            register_restored: self.store.clone().recipient(),
            query_offers: self.substituter.clone().recipient(),
            fetch_nar: self.substituter.clone().recipient(),
            report_bad_offer: self.substituter.clone().recipient(),
            try_lock_outputs: self.locks.clone().recipient(),
            await_lock: self.locks.clone().recipient(),
            start_build: self.sandbox.clone().recipient(),
            cancel_build: self.sandbox.clone().recipient(),
            dispose_build: self.sandbox.clone().recipient(),
            hooks: self.hooks.clone(),
            upward,
            n_builds: AtomicU64::new(0),
        }
    }

    /// Returns futures that resolve to a service's name when it is gone.
    pub(crate) fn ends(&self) -> Vec<End> {
        let store = self.store.send(registry::AwaitEnd);
        let locks = self.locks.send(registry::AwaitEnd);
        let sandbox = self.sandbox.send(sandbox::AwaitEnd);
        let substituter = self.substituter.send(substituter::AwaitEnd);
        // None of them is ever answered: the question ends when the actor does.
        vec![
            named("the store registry", store),
            named("the lock keeper", locks),
            named("the sandbox supervisor", sandbox),
            named("the substituter", substituter),
        ]
    }

    /// Has contents read again that were found to be good before.
    pub(crate) fn forget_contents(&self) {
        self.store.do_send(registry::ForgetContents);
    }

    pub(crate) fn force_panic(&self, actor: PanickingActor) {
        match actor {
            PanickingActor::StoreRegistry => self.store.do_send(registry::ForcePanic),
            PanickingActor::LockKeeper => self.locks.do_send(registry::ForcePanic),
            PanickingActor::SandboxSupervisor => self.sandbox.do_send(sandbox::ForcePanic {
                actor: sandbox::PanickingActor::Supervisor,
            }),
            PanickingActor::BuilderSessions => self.sandbox.do_send(sandbox::ForcePanic {
                actor: sandbox::PanickingActor::Sessions,
            }),
            PanickingActor::Substituter => self.substituter.do_send(substituter::ForcePanic),
            PanickingActor::Scheduler
            | PanickingActor::DerivationGoals
            | PanickingActor::SubstitutionGoals => {}
        }
    }

    /// Stops the services, builders first: registering what they made needs the registry.
    pub(crate) async fn stop(&self) {
        // A service that is gone has nothing left to stop.
        let _gone = self.sandbox.send(StopSandbox).await;
        let _gone = self.substituter.send(StopSubstituter).await;
        let _gone = self.store.send(StopRegistry).await;
    }
}

/// Returns a variable of the program's environment that is text.
fn variable(environment: &HostEnvironment, name: &str) -> Option<String> {
    let value = environment.get(name.as_bytes().as_bstr())?;
    value.to_str().ok().map(str::to_owned)
}

/// A future that resolves to a service's name when the service is gone.
type End = Pin<Box<dyn Future<Output = &'static str>>>;

fn named(service: &'static str, question: impl Future + 'static) -> End {
    Box::pin(async move {
        question.await;
        service
    })
}

impl Scheduler {
    /// Starts a scheduler on a thread and an actix system of its own.
    ///
    /// # Errors
    /// The store cannot be opened, the sandbox supervisor cannot be started, or there is no thread
    /// to be had.
    pub fn start(config: Config) -> Result<SchedulerHandle, Error> {
        let (report, reported) = std::sync::mpsc::channel();
        let (alive, ended) = watch::channel(());
        std::thread::Builder::new()
            .name("scheduler".to_owned())
            .spawn(move || {
                // Dropped when the thread ends, which is how the handle learns of it.
                let _alive = alive;
                let system = System::new();
                let started = system.block_on(async {
                    let services = Services::start(&config)?;
                    let n_slots = slot_counts(&config.settings);
                    let scheduler = Actor::start(Self::new(services.clone(), n_slots));
                    Ok::<_, Error>((scheduler, services))
                });
                let is_running = started.is_ok();
                // The other end waits for exactly this.
                let _sent = report.send(started);
                if is_running && let Err(error) = system.run() {
                    tracing::error!("the scheduler's thread failed: {error}");
                }
            })
            .map_err(Error::StartThread)?;
        let (scheduler, services) = reported.recv().map_err(|_| Error::Stopped)??;
        Ok(SchedulerHandle::new(scheduler, services, ended))
    }
}
