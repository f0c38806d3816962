//! `path-info`: what the store knows about paths; as JSON, what `nix path-info --json` 2.8 prints.

use std::collections::BTreeSet;
use std::io::Write as _;

use registry::{QueryAllValidPaths, QueryClosure};
use store_model::StorePath;
use store_model::path_info_json::{PathInfoJson, path_infos_to_json};

use super::query::path_info as valid_path_info;
use crate::args::PathInfoArguments;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::store::Store;
use crate::target::Finder;

/// Prints each path, in order of name.
pub(super) async fn path_info(
    store: &Store,
    finder: &Finder<'_>,
    arguments: &PathInfoArguments,
    output: &mut Output,
) -> Result<()> {
    let mut paths: BTreeSet<StorePath> = if arguments.all {
        store.ask(QueryAllValidPaths).await?
    } else {
        arguments
            .paths
            .iter()
            .map(|word| finder.store_path(word))
            .collect::<Result<_>>()?
    };
    if arguments.recursive {
        paths = store.ask(QueryClosure { roots: paths }).await?;
    }
    let mut infos = Vec::new();
    for path in &paths {
        let info = valid_path_info(store, path).await?;
        if arguments.json {
            infos.push(info);
        } else {
            output.line(store.dir().print(path))?;
        }
    }
    if !arguments.json {
        return Ok(());
    }
    let json = infos.iter().map(|info| PathInfoJson {
        path: &info.path,
        info: Some(info),
        closure_size_bytes: None,
    });
    let mut text = path_infos_to_json(json, store.dir());
    text.push(b'\n');
    output
        .write_all(&text)
        .map_err(|error| Failure::stdout(&error))
}
