//! `add`: copies files into the store.

use std::path::Path;

use registry::AddPath;
use serde_json::json;
use store_model::store_path::{DERIVATION_SUFFIX, check_name};
use store_model::{Derivation, HashAlgorithm, IngestionMethod, StorePath};

use super::Session;
use crate::args::AddArguments;
use crate::failure::{Failure, Result};
use crate::goals_toml::add_text;
use crate::output::Output;
use crate::store::Store;

/// Adds each file in turn, and prints where it is in the store.
pub(super) async fn add(
    store: &Store,
    session: &Session,
    arguments: &AddArguments,
    output: &mut Output,
) -> Result<()> {
    if arguments.name.is_some() && arguments.files.len() > 1 {
        return Err(Failure::message(
            "'--name' names one file, and there are several",
        ));
    }
    let algorithm: HashAlgorithm = arguments.hash.parse()?;
    let mut added = Vec::new();
    for file in &arguments.files {
        let file = session.environment.absolute(file);
        let name = match &arguments.name {
            Some(name) => name.clone(),
            None => file_name(&file)?,
        };
        let path = if name.ends_with(DERIVATION_SUFFIX) {
            add_derivation(store, &file, &name).await?
        } else {
            check_name(&name)?;
            let message = AddPath {
                source: file,
                name,
                method: if arguments.flat {
                    IngestionMethod::Flat
                } else {
                    IngestionMethod::Recursive
                },
                algorithm,
            };
            store.add(message).await?
        };
        if arguments.json {
            added.push(json!(store.dir().print(&path)));
        } else {
            output.line(store.dir().print(&path))?;
        }
    }
    if arguments.json {
        output.json(&json!(added))?;
    }
    Ok(())
}

fn file_name(file: &Path) -> Result<String> {
    let name = file.file_name().and_then(|name| name.to_str());
    name.map(str::to_owned).ok_or_else(|| {
        Failure::message(format!("'{}' has no name for the store", file.display()))
            .advise("give it one with '--name'")
    })
}

/// Adds a `.drv` file as the derivation that it holds, so that what it refers to is known.
async fn add_derivation(store: &Store, file: &Path, name: &str) -> Result<StorePath> {
    let bytes = std::fs::read(file).map_err(|error| Failure::file("reading", file, error))?;
    // A file that was copied out of a store still has its hash part, which it must get again.
    let expected: Option<StorePath> = name.parse().ok();
    let name = expected.as_ref().map_or(name, StorePath::name);
    let name = name.strip_suffix(DERIVATION_SUFFIX).unwrap_or(name);
    let derivation = Derivation::parse(&bytes, name, store.dir())
        .map_err(|error| Failure::message(format!("'{}': {error}", file.display())))?;
    let path = derivation.derivation_path(store.dir())?;
    if let Some(expected) = expected.filter(|expected| *expected != path) {
        return Err(Failure::message(format!(
            "'{}' is not the derivation that its name says: its path would be '{}'",
            file.display(),
            store.dir().print(&path)
        ))
        .advise(format!(
            "if it was changed on purpose, add it with '--name {}'",
            expected.name()
        )));
    }
    store.add(add_text(&derivation, store.dir())).await
}
