//! What each command does. A command takes its arguments and a [`Session`], and returns how it
//! ended; only `main` ends the process.

use actix::Addr;
use store_model::settings::{Assignment, Configuration, StoreLayout};
use store_model::{Settings, StoreDir};
use substituter::Substituter;
use tokio::time::Instant;

use crate::args::{
    Command, ConfigAction, GlobalArguments, InterchangeCommand, NarAction, PingArguments,
    RealisationAction, StoreAction, StoreArguments,
};
use crate::configure::{read_files, typed_options};
use crate::environment::Environment;
use crate::failure::{Failure, Result};
use crate::interrupt::Interrupts;
use crate::locate::{SystemStore, locate};
use crate::machine;
use crate::output::{Output, warn};
use crate::render::Style;
use crate::render::diagnostics::Diagnostics;
use crate::store::Store;
use crate::target::Finder;

mod add;
mod build;
mod config;
mod copy;
mod graph;
mod instantiate;
mod interchange;
mod log;
mod nar;
mod out_link;
mod path_info;
mod ping;
mod plan;
mod query;
mod realisation;
mod show;
mod simulate;

/// What every command may look at.
#[derive(Debug)]
pub(crate) struct Session {
    /// The process's environment, as it was at the start.
    pub(crate) environment: Environment,
    /// What standard error can show.
    pub(crate) style: Style,
    /// Where the program's warnings go.
    pub(crate) diagnostics: Diagnostics,
    /// The flags that hold for every command.
    pub(crate) global: GlobalArguments,
    /// The words after every `--option`.
    pub(crate) typed_options: Vec<String>,
}

impl Session {
    /// Finds the store.
    fn layout(&self) -> Result<StoreLayout> {
        locate(
            self.global.store.as_deref(),
            &self.environment,
            SystemStore::of_this_machine(),
        )
    }

    /// Reads the configuration's files, and warns of what they say in vain.
    fn configuration_files(&self) -> Result<Configuration> {
        let configuration = read_files(&self.environment, machine::default_settings())?;
        for warning in configuration.warnings() {
            warn(self.style, warning);
        }
        Ok(configuration)
    }

    /// Puts what was typed over the rest of the configuration.
    fn with_typed(
        &self,
        mut configuration: Configuration,
        flags: &[Assignment],
    ) -> Result<Configuration> {
        for assignment in typed_options(&self.typed_options).iter().chain(flags) {
            configuration.assign(assignment)?;
        }
        Ok(configuration)
    }

    /// Returns the settings of a command that has no flags of its own for them.
    fn settings(&self) -> Result<Settings> {
        let configuration = self.with_typed(self.configuration_files()?, &[])?;
        Ok(configuration.finish()?)
    }

    /// Starts what asks caches, for a command without a scheduler.
    fn substituter(&self, store_dir: StoreDir, settings: &Settings) -> Result<Addr<Substituter>> {
        let variables = |name: &str| self.environment.get(name)?.to_str().map(str::to_owned);
        let cache_dir = self.environment.cache_dir();
        substituter::start(settings, store_dir, cache_dir, &variables).map_err(Failure::new)
    }

    /// Returns a finder for words of the command line.
    fn finder<'a>(&'a self, layout: &'a StoreLayout) -> Finder<'a> {
        Finder {
            layout,
            environment: &self.environment,
        }
    }
}

/// Performs a command.
///
/// # Errors
/// The command did not do what it was asked.
pub(crate) async fn perform(
    session: &Session,
    command: Command,
    interrupts: &mut Interrupts,
) -> Result<()> {
    let mut output = Output::new();
    match command {
        Command::Build(arguments) => {
            return build::build(session, &arguments, interrupts, &mut output).await;
        }
        Command::Ensure(arguments) => {
            let arguments = arguments.into();
            return build::build(session, &arguments, interrupts, &mut output).await;
        }
        Command::Repair(arguments) => {
            let arguments = arguments.into();
            return build::build(session, &arguments, interrupts, &mut output).await;
        }
        Command::Copy(arguments) => {
            return copy::copy(session, arguments, interrupts, &mut output).await;
        }
        Command::Config(arguments) => {
            let ConfigAction::Show { names, json, .. } = arguments.action;
            config::show(session, &names, json, &mut output)?;
        }
        Command::Store(StoreArguments {
            action: StoreAction::Ping(PingArguments { url: Some(url), .. }),
        }) => {
            let pinged = ping::cache(session, &url, &mut output);
            interrupts.unless(pinged).await?;
        }
        Command::Simulate(arguments) => simulate::simulate(&arguments, &mut output)?,
        Command::Nar(arguments) => match arguments.action {
            NarAction::Dump { path } => nar::dump(path, interrupts).await?,
            NarAction::Restore { path } => nar::restore(path, interrupts).await?,
            NarAction::Hash { path, json } => {
                nar::hash(path, json, interrupts, &mut output).await?;
            }
        },
        Command::Interchange(InterchangeCommand::Key(arguments)) => {
            interchange::make_key(arguments.action, interrupts, &mut output).await?;
        }
        Command::Interchange(_)
        | Command::Add(_)
        | Command::Instantiate(_)
        | Command::Show(_)
        | Command::PathInfo(_)
        | Command::Query(_)
        | Command::Realisation(_)
        | Command::Log(_)
        | Command::Store(_) => {
            perform_on_store(session, command, interrupts, &mut output).await?;
        }
    }
    output.flush()
}

/// Performs a command that asks the registry.
async fn perform_on_store(
    session: &Session,
    command: Command,
    interrupts: &mut Interrupts,
    output: &mut Output,
) -> Result<()> {
    let layout = session.layout()?;
    let settings = session.settings()?;
    let begun = Instant::now();
    let store = Store::open(&layout, &settings)?;
    let finder = session.finder(&layout);
    let work = async {
        match command {
            Command::Add(arguments) => add::add(&store, session, &arguments, output).await,
            Command::Instantiate(arguments) => {
                instantiate::instantiate(&store, &finder, &settings, &arguments, output).await
            }
            Command::Show(arguments) => {
                show::show(&store, &finder, &settings, &arguments, output).await
            }
            Command::PathInfo(arguments) => {
                path_info::path_info(&store, &finder, &arguments, output).await
            }
            Command::Query(arguments) => query::query(&store, &finder, &arguments, output).await,
            Command::Realisation(arguments) => {
                let RealisationAction::Info(arguments) = &arguments.action;
                realisation::info(&store, &finder, &settings, arguments, output).await
            }
            Command::Log(arguments) => {
                log::log(&store, session, &finder, &settings, &arguments, output).await
            }
            Command::Store(_) => ping::own_store(&layout, &settings, begun, output),
            Command::Interchange(command) => {
                interchange::perform(&store, session, &finder, command, output).await
            }
            // `perform` sends no other command here.
            Command::Build(_)
            | Command::Ensure(_)
            | Command::Repair(_)
            | Command::Copy(_)
            | Command::Nar(_)
            | Command::Config(_)
            | Command::Simulate(_) => Ok(()),
        }
    };
    let done = interrupts.unless(work).await;
    match &done {
        Err(failure) if let Some(signal) = failure.signal() => {
            interrupts.clean_up(signal, store.close()).await;
        }
        Ok(()) | Err(_) => store.close().await,
    }
    done
}
