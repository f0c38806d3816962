//! `instantiate`: writes the derivations of a `goals.toml` into the store.

use std::path::Path;

use serde_json::{Map, Value, json};
use store_model::Settings;

use crate::args::InstantiateArguments;
use crate::failure::{Failure, Result};
use crate::goals_toml::{Goals, Instantiated};
use crate::output::Output;
use crate::store::Store;
use crate::target::{Finder, Target};

/// Instantiates each file in turn, and prints the paths of the derivations.
pub(super) async fn instantiate(
    store: &Store,
    finder: &Finder<'_>,
    settings: &Settings,
    arguments: &InstantiateArguments,
    output: &mut Output,
) -> Result<()> {
    let mut all = Vec::new();
    for word in &arguments.files {
        let Some(Target::Goals { file, goal, .. }) = finder.goals(word)? else {
            return Err(Failure::message(format!("'{word}' is no goals.toml")));
        };
        for (goal, made) in instantiate_file(store, &file, goal.as_deref(), settings).await? {
            if arguments.json {
                all.push(to_json(&goal, &made, store));
            } else {
                output.line(store.dir().print(&made.drv_path))?;
            }
        }
    }
    if arguments.json {
        output.json(&Value::Array(all))?;
    }
    Ok(())
}

/// Instantiates one goal of a file, or all.
pub(super) async fn instantiate_file(
    store: &Store,
    file: &Path,
    goal: Option<&str>,
    settings: &Settings,
) -> Result<Vec<(String, Instantiated)>> {
    let goals = Goals::read(file, goal).map_err(Failure::new)?;
    goals.instantiate(store, settings).await
}

fn to_json(goal: &str, made: &Instantiated, store: &Store) -> Value {
    let outputs: Map<String, Value> = made
        .outputs
        .iter()
        .map(|(name, path)| {
            (
                name.to_string(),
                json!(path.as_ref().map(|path| store.dir().print(path))),
            )
        })
        .collect();
    json!({
        "goal": goal,
        "drvPath": store.dir().print(&made.drv_path),
        "outputs": outputs,
    })
}
