//! `show`: derivations as JSON, as `nix show-derivation` 2.8 prints them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;

use registry::QueryDerivation;
use store_model::derivation::json::derivations_to_json;
use store_model::{Settings, StorePath};

use super::instantiate::instantiate_file;
use super::query::path_info;
use crate::args::ShowArguments;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::store::Store;
use crate::target::{Finder, Target};

/// Prints one object with a member for each derivation, in order of path.
pub(super) async fn show(
    store: &Store,
    finder: &Finder<'_>,
    settings: &Settings,
    arguments: &ShowArguments,
    output: &mut Output,
) -> Result<()> {
    let mut pending = Vec::new();
    for word in &arguments.paths {
        match finder.target(word)? {
            Target::Outputs { drv_path, .. } => pending.push(drv_path),
            Target::Path(path) => pending.push(deriver(store, &path).await?),
            Target::Goals { file, goal, .. } => {
                let made = instantiate_file(store, &file, goal.as_deref(), settings).await?;
                pending.extend(made.into_iter().map(|(_, made)| made.drv_path));
            }
        }
    }
    let mut seen = BTreeSet::new();
    let mut shown = BTreeMap::new();
    while let Some(drv_path) = pending.pop() {
        if !seen.insert(drv_path.clone()) {
            continue;
        }
        let message = QueryDerivation {
            drv_path: drv_path.clone(),
        };
        let derivation = store.ask(message).await?;
        if arguments.recursive {
            pending.extend(derivation.input_derivations.keys().cloned());
        }
        shown.insert(drv_path, derivation);
    }
    let shown = shown.iter().map(|(path, derivation)| (path, &**derivation));
    output
        .write_all(&derivations_to_json(shown, store.dir()))
        .map_err(|error| Failure::stdout(&error))
}

async fn deriver(store: &Store, path: &StorePath) -> Result<StorePath> {
    path_info(store, path).await?.deriver.ok_or_else(|| {
        Failure::message(format!(
            "'{}' is not a derivation, and nobody knows which one made it",
            store.dir().print(path)
        ))
    })
}
