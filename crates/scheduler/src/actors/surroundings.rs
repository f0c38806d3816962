//! What a goal finds out for its builder before it asks for a slot: the store objects that the
//! builder may see, and the graphs of references that it is handed.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use registry::{QueryClosure, QueryGraphs, QueryValidPaths};
use store_model::derivation::reference_graphs::{GraphInfos, ReferenceGraphs};
use store_model::{Derivation, Settings, StoreDir, StorePath};

use crate::error::chain;
use crate::goal::Status;
use crate::goal::derivation::Event;
use crate::ports::Ports;

/// What surrounds a builder, as far as the store has it.
#[derive(Debug, Default)]
pub(super) struct Surroundings {
    /// The closure of the inputs: what the outputs may refer to.
    pub(super) input_closure: Arc<BTreeSet<StorePath>>,
    /// What the builder may see: that, and what the user shows to every builder.
    pub(super) visible_paths: Arc<BTreeSet<StorePath>>,
    /// The graphs of `exportReferencesGraph`.
    pub(super) graphs: Arc<GraphInfos>,
}

/// Asks for a builder's surroundings; `roots` are the outputs and sources that its derivation
/// wants. A failure is the event that the goal's machine gets for it.
pub(super) async fn query_surroundings(
    ports: Arc<Ports>,
    derivation: Arc<Derivation>,
    settings: Arc<Settings>,
    roots: BTreeSet<StorePath>,
) -> Result<Surroundings, Event> {
    let closure = ports.query_closure.send(QueryClosure { roots }).await;
    let input_closure = Arc::new(answered(closure)?);
    let graphs = query_graphs(&ports, &derivation, &input_closure).await?;
    let shown = query_shown(&ports, &settings).await?;
    // An output that is being made again must not be there already, whoever shows it.
    let is_output = |path: &StorePath| derivation.known_outputs().any(|(_, output)| output == path);
    let visible_paths = if shown.is_subset(&input_closure) {
        Arc::clone(&input_closure)
    } else {
        let all = input_closure.union(&shown);
        Arc::new(all.filter(|path| !is_output(path)).cloned().collect())
    };
    Ok(Surroundings {
        input_closure,
        visible_paths,
        graphs: Arc::new(graphs),
    })
}

/// Asks for the graphs that a derivation wants, in one question.
async fn query_graphs(
    ports: &Ports,
    derivation: &Derivation,
    input_closure: &BTreeSet<StorePath>,
) -> Result<GraphInfos, Event> {
    let rejected = |error: store_model::Error| {
        // As Nix has it, an attribute of the wrong type is not a rejection of the derivation.
        let is_rejection = matches!(error, store_model::Error::InvalidDerivation { .. });
        refused(
            if is_rejection {
                Status::InputRejected
            } else {
                Status::MiscFailure
            },
            &error,
        )
    };
    let attributes = derivation.attributes().map_err(rejected)?;
    let graphs = ReferenceGraphs::read(&attributes, &ports.store_dir).map_err(rejected)?;
    if graphs.roots.is_empty() {
        return Ok(GraphInfos::new());
    }
    graphs
        .check_inputs(derivation, input_closure)
        .map_err(rejected)?;
    match ports.query_graphs.send(QueryGraphs { graphs }).await {
        Ok(answer) => answer.map_err(|error| refused(Status::MiscFailure, &error)),
        Err(error) => answered(Err(error)),
    }
}

/// Asks for the closure of the store objects among `sandbox-paths`. What is not valid is a path of
/// the host like any other.
async fn query_shown(ports: &Ports, settings: &Settings) -> Result<BTreeSet<StorePath>, Event> {
    let paths = shown_objects(settings, &ports.store_dir);
    if paths.is_empty() {
        return Ok(BTreeSet::new());
    }
    let valid = ports
        .query_valid_paths
        .send(QueryValidPaths { paths })
        .await;
    let roots = answered(valid)?;
    answered(ports.query_closure.send(QueryClosure { roots }).await)
}

fn shown_objects(settings: &Settings, store_dir: &StoreDir) -> Vec<StorePath> {
    let sources = settings.sandbox_paths.iter().map(|path| &path.source);
    sources
        .filter_map(|source| store_dir.parse_inside(source.as_os_str().as_bytes()).ok())
        .collect()
}

fn refused(status: Status, error: &dyn std::error::Error) -> Event {
    Event::SurroundingsRefused {
        status,
        message: chain(error),
    }
}

/// Makes one failure of a question's two.
fn answered<T>(
    answer: Result<Result<T, registry::Error>, actix::MailboxError>,
) -> Result<T, Event> {
    let failed = |error: &dyn std::error::Error| Event::ServiceFailed {
        message: chain(error),
    };
    answer
        .map_err(|error| failed(&error))?
        .map_err(|error| failed(&error))
}
