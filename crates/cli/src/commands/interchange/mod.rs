//! What goes from one store to another: paths with their contents, what is known of paths, and
//! signatures.

mod database;
mod export;
mod import;
mod key;

use super::Session;
use crate::args::InterchangeCommand;
use crate::failure::Result;
use crate::output::Output;
use crate::store::Store;
use crate::target::Finder;

pub(super) use self::key::make as make_key;

/// Performs a command that works on a store.
pub(super) async fn perform(
    store: &Store,
    session: &Session,
    finder: &Finder<'_>,
    command: InterchangeCommand,
    output: &mut Output,
) -> Result<()> {
    match command {
        InterchangeCommand::Export(arguments) => {
            export::export(store, finder, &arguments.paths).await
        }
        InterchangeCommand::Import(_) => import::import(store, finder.layout, output).await,
        InterchangeCommand::DumpDb(arguments) => {
            database::dump(store, finder, &arguments.paths, output).await
        }
        InterchangeCommand::LoadDb(_) => database::load(store).await,
        InterchangeCommand::RegisterValidity(arguments) => {
            database::register(store, &arguments).await
        }
        InterchangeCommand::Sign(arguments) => key::sign(store, session, finder, &arguments).await,
        // It needs no store, so it does not come here.
        InterchangeCommand::Key(_) => Ok(()),
    }
}
