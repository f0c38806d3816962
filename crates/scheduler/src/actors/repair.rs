//! What goals that repair ask the registry: which paths are corrupt or missing, and which derivation
//! makes them.

use std::collections::BTreeSet;
use std::sync::Arc;

use actix::{MailboxError, Recipient};
use registry::{
    QueryClosure, QueryDerivation, QueryGoodPaths, QueryPathInfo, QueryValidDerivers,
    QueryValidPaths,
};
use store_model::{DerivationKind, PathInfo, StorePath};

use crate::error::chain;
use crate::goal::derivation::{BrokenPath, Event};
use crate::ports::Ports;

/// Whether a path can be made again by the derivation that the database says made it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// It can.
    Rebuild,
    /// The derivation is not in the store.
    DeriverIsGone,
    /// The path is none of its outputs, such as one of a fixed output that was something else.
    DeriverMakesOthers,
}

/// Makes one failure of a question's two.
pub(crate) fn answered<T>(
    answer: Result<Result<T, registry::Error>, MailboxError>,
) -> Result<T, String> {
    answer
        .map_err(|error| chain(&error))?
        .map_err(|error| chain(&error))
}

/// Finds out whether a path's deriver can make it again.
pub(crate) async fn remedy(
    query_valid_paths: &Recipient<QueryValidPaths>,
    query_derivation: &Recipient<QueryDerivation>,
    path: &StorePath,
    deriver: StorePath,
) -> Result<Remedy, String> {
    let paths = vec![deriver.clone()];
    let valid = query_valid_paths.send(QueryValidPaths { paths }).await;
    if answered(valid)?.is_empty() {
        return Ok(Remedy::DeriverIsGone);
    }
    let drv_path = deriver;
    let derivation = query_derivation.send(QueryDerivation { drv_path });
    let derivation = answered(derivation.await)?;
    // What floats has no path that its derivation could say.
    let floats = matches!(derivation.kind(), Ok(DerivationKind::Floating));
    let makes_it = floats || derivation.known_outputs().any(|(_, output)| output == path);
    Ok(if makes_it {
        Remedy::Rebuild
    } else {
        Remedy::DeriverMakesOthers
    })
}

/// Asks which of these paths are valid and have the contents that the database says.
pub(super) async fn query_good_paths(
    ports: &Ports,
    paths: Vec<StorePath>,
) -> Result<BTreeSet<StorePath>, String> {
    answered(ports.query_good_paths.send(QueryGoodPaths { paths }).await)
}

/// Looks at everything below outputs, which are good themselves, and finds the derivations that make
/// what is broken among those that the goal's own needs; `drv_path` is `None` where that is not in
/// the store.
pub(super) async fn examine_closure(
    ports: Arc<Ports>,
    drv_path: Option<StorePath>,
    outputs: BTreeSet<StorePath>,
    own_outputs: Vec<StorePath>,
) -> Result<Event, String> {
    let roots = outputs;
    let closure = answered(ports.query_closure.send(QueryClosure { roots }).await)?;
    let below: Vec<StorePath> = closure
        .into_iter()
        .filter(|path| !own_outputs.contains(path))
        .collect();
    let good = query_good_paths(&ports, below.clone()).await?;
    let broken: Vec<StorePath> = below
        .into_iter()
        .filter(|path| !good.contains(path))
        .collect();
    if broken.is_empty() {
        return Ok(Event::ClosureExamined { broken: vec![] });
    }
    let roots = drv_path.into_iter().collect();
    let needed = answered(ports.query_closure.send(QueryClosure { roots }).await)?;
    let mut found = Vec::new();
    for path in broken {
        let question = QueryValidDerivers { path: path.clone() };
        let derivers = answered(ports.query_valid_derivers.send(question).await)?;
        // Of several any would do; Nix takes the last.
        let deriver = match derivers.intersection(&needed).last() {
            Some(deriver) => Some(deriver.clone()),
            None => floating_deriver(&ports, &path).await?,
        };
        found.push(BrokenPath {
            printed_path: ports.store_dir.print(&path),
            path,
            deriver,
        });
    }
    Ok(Event::ClosureExamined { broken: found })
}

/// Finds the derivation of a floating output: what it was resolved to, which is among nobody's
/// inputs.
async fn floating_deriver(ports: &Ports, path: &StorePath) -> Result<Option<StorePath>, String> {
    let question = QueryPathInfo { path: path.clone() };
    let info = answered(ports.query_path_info.send(question).await)?;
    let is_floating = |info: &PathInfo| info.content_address.is_some();
    let Some(deriver) = info.filter(is_floating).and_then(|info| info.deriver) else {
        return Ok(None);
    };
    let (valid, derivation) = (&ports.query_valid_paths, &ports.query_derivation);
    let remedy = remedy(valid, derivation, path, deriver.clone()).await?;
    Ok((remedy == Remedy::Rebuild).then_some(deriver))
}
