//! `path-info`: what the store knows about paths; as JSON, what `nix path-info --json` 2.8 prints.

use std::collections::BTreeSet;

use registry::{QueryAllValidPaths, QueryClosure};
use serde_json::{Map, Value, json};
use store_model::{PathInfo, StoreDir, StorePath};

use super::query::path_info as valid_path_info;
use crate::args::PathInfoArguments;
use crate::failure::Result;
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
    let mut array = Vec::new();
    for path in &paths {
        let info = valid_path_info(store, path).await?;
        if arguments.json {
            array.push(to_json(&info, store.dir()));
        } else {
            output.line(store.dir().print(path))?;
        }
    }
    if arguments.json {
        output.json(&Value::Array(array))?;
    }
    Ok(())
}

/// Keys stand in the order of the alphabet, and only those that say something, as in Nix.
fn to_json(info: &PathInfo, dir: &StoreDir) -> Value {
    let mut object = Map::new();
    let mut put = |name: &str, value: Value| object.insert(name.to_owned(), value);
    if let Some(address) = &info.content_address {
        put("ca", json!(address.to_string()));
    }
    if let Some(deriver) = &info.deriver {
        put("deriver", json!(dir.print(deriver)));
    }
    put("narHash", json!(info.nar_hash.to_hash().to_sri()));
    put("narSize", json!(info.nar_size_bytes));
    put("path", json!(dir.print(&info.path)));
    let references = info.references.iter().map(|path| dir.print(path));
    put("references", json!(references.collect::<Vec<_>>()));
    if info.registration_time != 0 {
        put("registrationTime", json!(info.registration_time));
    }
    if !info.signatures.is_empty() {
        put("signatures", json!(info.signatures));
    }
    if info.ultimate {
        put("ultimate", json!(true));
    }
    Value::Object(object)
}
