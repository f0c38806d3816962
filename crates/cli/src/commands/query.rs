//! `query`: questions about the graph of paths, answered as `nix-store --query` answers them.

use std::collections::BTreeSet;

use registry::{QueryClosure, QueryDerivation, QueryPathInfo, QueryReferrers};
use serde_json::{Map, Value, json};
use store_model::{PathInfo, StorePath};

use super::graph::{References, references_first, tree};
use crate::args::{QueryArguments, Question};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::store::Store;
use crate::target::Finder;

/// What Nix prints where nobody knows.
const UNKNOWN_DERIVER: &str = "unknown-deriver";

/// Answers one question about all paths.
pub(super) async fn query(
    store: &Store,
    finder: &Finder<'_>,
    arguments: &QueryArguments,
    output: &mut Output,
) -> Result<()> {
    let paths = arguments
        .paths
        .iter()
        .map(|word| finder.store_path(word))
        .collect::<Result<Vec<_>>>()?;
    let question = &arguments.question;
    if asks_for_set(question) && !arguments.json {
        // Nix gives one answer to all paths together, in the order of the graph.
        let mut answer = BTreeSet::new();
        for path in &paths {
            answer.extend(set(store, question, path).await?);
        }
        let references = references_of(store, &answer).await?;
        return print_paths(references_first(&answer, &references), store, output);
    }
    let mut answers = Map::new();
    for path in &paths {
        let value = answer(store, question, path, arguments.json, output).await?;
        answers.insert(store.dir().print(path), value);
    }
    if arguments.json {
        output.json(&Value::Object(answers))?;
    }
    Ok(())
}

fn asks_for_set(question: &Question) -> bool {
    question.references || question.referrers || question.requisites
}

async fn set(store: &Store, question: &Question, path: &StorePath) -> Result<BTreeSet<StorePath>> {
    if question.references {
        return Ok(path_info(store, path).await?.references);
    }
    let path = path.clone();
    if question.referrers {
        path_info(store, &path).await?;
        return store.ask(QueryReferrers { path }).await;
    }
    let roots = BTreeSet::from([path]);
    store.ask(QueryClosure { roots }).await
}

/// Answers about one path: prints it, or returns it as JSON.
async fn answer(
    store: &Store,
    question: &Question,
    path: &StorePath,
    json: bool,
    output: &mut Output,
) -> Result<Value> {
    if asks_for_set(question) {
        let found = set(store, question, path).await?;
        return Ok(json!(
            found
                .iter()
                .map(|path| store.dir().print(path))
                .collect::<Vec<_>>()
        ));
    }
    if question.tree {
        return answer_tree(store, path, json, output).await;
    }
    let (line, value) = if question.outputs {
        let outputs = outputs(store, path).await?;
        if !json {
            return print_paths(outputs.into_iter().map(|(_, path)| path), store, output)
                .map(|()| Value::Null);
        }
        let named = outputs
            .into_iter()
            .map(|(name, path)| (name, json!(store.dir().print(&path))));
        (String::new(), Value::Object(named.collect()))
    } else {
        let info = path_info(store, path).await?;
        if question.hash {
            let hash = info.nar_hash.to_hash();
            (hash.to_string(), json!(hash.to_sri()))
        } else if question.size {
            (info.nar_size_bytes.to_string(), json!(info.nar_size_bytes))
        } else {
            let deriver = info.deriver.map(|deriver| store.dir().print(&deriver));
            let value = json!(deriver);
            (deriver.unwrap_or_else(|| UNKNOWN_DERIVER.to_owned()), value)
        }
    };
    if !json {
        output.line(line)?;
    }
    Ok(value)
}

async fn answer_tree(
    store: &Store,
    path: &StorePath,
    json: bool,
    output: &mut Output,
) -> Result<Value> {
    let roots = BTreeSet::from([path.clone()]);
    let closure = store.ask(QueryClosure { roots }).await?;
    let references = references_of(store, &closure).await?;
    if json {
        let print = |path: &StorePath| store.dir().print(path);
        let edges = references.iter().map(|(path, references)| {
            (
                print(path),
                json!(references.iter().map(print).collect::<Vec<_>>()),
            )
        });
        return Ok(Value::Object(edges.collect()));
    }
    for line in tree(path, &references, |path| store.dir().print(path)) {
        output.line(line)?;
    }
    Ok(Value::Null)
}

/// Returns the outputs of a derivation by name.
async fn outputs(store: &Store, path: &StorePath) -> Result<Vec<(String, StorePath)>> {
    if !path.is_derivation() {
        return Err(Failure::message(format!(
            "'{}' is not a derivation, so it has no outputs",
            store.dir().print(path)
        )));
    }
    let drv_path = path.clone();
    let derivation = store.ask(QueryDerivation { drv_path }).await?;
    let n_outputs = derivation.outputs.len();
    let known = store.output_paths(derivation).await?;
    if known.len() < n_outputs {
        return Err(Failure::message(format!(
            "'{}' has outputs whose paths are not known before they are built",
            store.dir().print(path)
        )));
    }
    let mut outputs: Vec<_> = known
        .into_iter()
        .map(|(name, path)| (name.to_string(), path))
        .collect();
    // Nix lists them in the order of their paths.
    outputs.sort_by(|left, right| left.1.cmp(&right.1));
    Ok(outputs)
}

fn print_paths(
    paths: impl IntoIterator<Item = StorePath>,
    store: &Store,
    output: &mut Output,
) -> Result<()> {
    for path in paths {
        output.line(store.dir().print(&path))?;
    }
    Ok(())
}

/// Returns what is known about a valid path.
pub(super) async fn path_info(store: &Store, path: &StorePath) -> Result<PathInfo> {
    let info = store.ask(QueryPathInfo { path: path.clone() }).await?;
    info.ok_or_else(|| Failure::message(format!("path '{}' is not valid", store.dir().print(path))))
}

async fn references_of(store: &Store, paths: &BTreeSet<StorePath>) -> Result<References> {
    let mut references = References::new();
    for path in paths {
        let info = path_info(store, path).await?;
        references.insert(path.clone(), info.references);
    }
    Ok(references)
}
