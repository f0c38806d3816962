//! What goals ask the registry and the lock keeper: functions that know no actor, so that the answer can
//! only become an event. And what they warn of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use registry::{
    AddTempRoots, AwaitLock, DiscardInvalidPaths, NoteRealisations, OutputKind, QueryDerivation,
    QueryRealisations, QueryValidPaths, RealisedOutputs, RegisterError, RegisterOutputs,
    RootsLease, ScratchOutput,
};
use store_model::derivation::output_checks::OutputChecks;
use store_model::{Derivation, DerivationOutput, DrvOutput, OutputName, StorePath};

use super::repair::query_good_paths;
use crate::error::chain;
use crate::goal::derivation::Event;
use crate::goal::recipe::output_checks;
use crate::goal::{BuildMode, Status};
use crate::ports::Ports;

/// Returns the outputs of these names as the registry wants them described; `paths` are where the
/// builder has put them.
pub(super) fn scratch_outputs(
    derivation: &Derivation,
    names: &BTreeSet<OutputName>,
    paths: &BTreeMap<OutputName, StorePath>,
) -> Vec<ScratchOutput> {
    derivation
        .outputs
        .iter()
        .filter(|(name, _)| names.contains(*name))
        .filter_map(|(name, output)| {
            Some(ScratchOutput {
                name: name.clone(),
                path: paths.get(name)?.clone(),
                kind: match output {
                    DerivationOutput::InputAddressed(_) => OutputKind::InputAddressed,
                    DerivationOutput::Fixed { method, hash, .. } => OutputKind::Fixed {
                        method: *method,
                        hash: *hash,
                    },
                    DerivationOutput::Floating { method, algorithm } => OutputKind::Floating {
                        method: *method,
                        algorithm: *algorithm,
                    },
                    // What is deferred is resolved, and never built itself.
                    DerivationOutput::Deferred => return None,
                },
            })
        })
        .collect()
}

/// Keeps paths from the garbage collector.
pub(super) async fn lend_roots(ports: &Ports, paths: Vec<StorePath>) -> Result<RootsLease, String> {
    let lent = ports.add_temp_roots.send(AddTempRoots { paths }).await;
    lent.map_err(|error| chain(&error))?
        .map_err(|error| chain(&error))
}

/// Why a derivation was not loaded.
pub(super) enum NotLoaded {
    /// It is not in the store; if somebody brings it, this keeps it there.
    Missing(RootsLease),
    /// The registry failed, or the derivation is not to be trusted.
    Failed(String),
}

/// Returns a derivation, and what keeps it in the store. One that was given need not be there, but
/// collectors know by its path whose the directories of its build are.
pub(super) async fn load_derivation(
    ports: Arc<Ports>,
    drv_path: StorePath,
    given: Option<Arc<Derivation>>,
) -> Result<(Arc<Derivation>, RootsLease), NotLoaded> {
    let roots = lend_roots(&ports, vec![drv_path.clone()]).await;
    let roots = roots.map_err(NotLoaded::Failed)?;
    if let Some(derivation) = given {
        return Ok((derivation, roots));
    }
    let read = ports.query_derivation.send(QueryDerivation { drv_path });
    match read.await {
        Ok(Ok(derivation)) => Ok((derivation, roots)),
        Ok(Err(registry::Error::InvalidPath { .. })) => Err(NotLoaded::Missing(roots)),
        Ok(Err(error)) => Err(NotLoaded::Failed(chain(&error))),
        Err(error) => Err(NotLoaded::Failed(chain(&error))),
    }
}

/// What is asked of a derivation's outputs.
pub(super) struct OutputsQuestion {
    pub(super) derivation: Arc<Derivation>,
    /// In a repair contents are read, too.
    pub(super) mode: BuildMode,
    /// Paths that are to be kept first.
    pub(super) to_keep: Vec<StorePath>,
    /// Whether the store has the feature `ca-derivations`.
    pub(super) has_realisations: bool,
}

/// What is found of a derivation's outputs.
pub(super) struct FoundOutputs {
    /// As what they are remembered; empty without the feature `ca-derivations`.
    pub(super) ids: BTreeMap<OutputName, DrvOutput>,
    /// Paths of outputs that the derivation does not say.
    pub(super) learnt: BTreeMap<OutputName, StorePath>,
    /// Those that are not valid, or have no path yet; in a repair also those that are corrupt.
    pub(super) invalid: BTreeSet<OutputName>,
    /// Keeps those whose paths are known, unless they are kept already.
    pub(super) roots: RootsLease,
}

/// Asks where outputs are, and which are invalid.
pub(super) async fn query_outputs(
    ports: Arc<Ports>,
    question: OutputsQuestion,
) -> Result<FoundOutputs, String> {
    let OutputsQuestion {
        derivation,
        mode,
        mut to_keep,
        has_realisations,
    } = question;
    let said = derivation.known_outputs();
    let mut outputs: BTreeMap<OutputName, StorePath> = said
        .map(|(name, path)| (name.clone(), path.clone()))
        .collect();
    let RealisedOutputs { ids, paths } = if has_realisations {
        query_realisations(&ports, Arc::clone(&derivation)).await?
    } else {
        RealisedOutputs::default()
    };
    let mut learnt = paths.clone();
    learnt.retain(|name, path| outputs.get(name) != Some(path));
    to_keep.extend(learnt.values().cloned());
    let roots = if to_keep.is_empty() {
        RootsLease::default()
    } else {
        lend_roots(&ports, to_keep).await?
    };
    outputs.extend(learnt.clone());
    let valid = present_paths(&ports, mode, outputs.values().cloned().collect()).await?;
    outputs.retain(|_, path| valid.contains(path));
    let forgotten = outputs
        .iter()
        .filter(|(name, _)| !paths.contains_key(*name));
    let forgotten: BTreeMap<DrvOutput, StorePath> = forgotten
        .filter_map(|(name, path)| Some((ids.get(name)?.clone(), path.clone())))
        .collect();
    if !forgotten.is_empty() {
        note_realisations(&ports, forgotten).await?;
    }
    let names = derivation.outputs.keys();
    let invalid = names
        .filter(|name| !outputs.contains_key(*name))
        .cloned()
        .collect();
    Ok(FoundOutputs {
        ids,
        learnt,
        invalid,
        roots,
    })
}

/// Asks which paths are valid, and in a repair also whether they are what the database says.
async fn present_paths(
    ports: &Ports,
    mode: BuildMode,
    paths: Vec<StorePath>,
) -> Result<BTreeSet<StorePath>, String> {
    if mode == BuildMode::Repair {
        return query_good_paths(ports, paths).await;
    }
    let valid = ports.query_valid_paths.send(QueryValidPaths { paths });
    let valid = valid.await.map_err(|error| chain(&error))?;
    valid.map_err(|error| chain(&error))
}

async fn query_realisations(
    ports: &Ports,
    derivation: Arc<Derivation>,
) -> Result<RealisedOutputs, String> {
    let question = ports
        .query_realisations
        .send(QueryRealisations { derivation });
    let answer = question.await.map_err(|error| chain(&error))?;
    answer.map_err(|error| chain(&error))
}

async fn note_realisations(
    ports: &Ports,
    outputs: BTreeMap<DrvOutput, StorePath>,
) -> Result<(), String> {
    let noted = ports.note_realisations.send(NoteRealisations { outputs });
    let answer = noted.await.map_err(|error| chain(&error))?;
    answer.map_err(|error| chain(&error))
}

pub(super) async fn await_lock(ports: Arc<Ports>, path: StorePath) -> Result<Event, String> {
    match ports.await_lock.send(AwaitLock { path }).await {
        Ok(Ok(())) => Ok(Event::LockFreed),
        Ok(Err(error)) => Err(chain(&error)),
        Err(error) => Err(chain(&error)),
    }
}

pub(super) async fn discard_invalid_paths(
    ports: Arc<Ports>,
    paths: Vec<StorePath>,
) -> Result<Event, String> {
    let discard = DiscardInvalidPaths { paths };
    match ports.discard_invalid_paths.send(discard).await {
        Ok(Ok(())) => Ok(Event::InvalidPathsDiscarded),
        Ok(Err(error)) => Err(chain(&error)),
        Err(error) => Err(chain(&error)),
    }
}

pub(super) async fn register_outputs(
    ports: Arc<Ports>,
    register: RegisterOutputs,
) -> Result<Event, String> {
    match ports.register_outputs.send(register).await {
        Ok(Ok(_)) => Ok(Event::OutputsRegistered),
        Ok(Err(error)) => Ok(refusal(&error)),
        Err(error) => Err(chain(&error)),
    }
}

/// Says why outputs are not wanted, or that nobody wanted to know any more.
pub(super) fn refusal(error: &RegisterError) -> Event {
    let status = match error {
        RegisterError::Rejected(_) => Status::OutputRejected,
        RegisterError::HashMismatch { .. } => Status::HashMismatch,
        RegisterError::Cancelled => return Event::RegistrationCancelled,
        RegisterError::Store(_) => Status::MiscFailure,
    };
    Event::OutputsRefused {
        status,
        message: chain(error),
    }
}

/// Warns of checks that a derivation asks for where they have no effect.
pub(super) fn warn_of_ignored_checks(derivation: &Derivation) {
    // Whoever builds has read them before.
    for ignored in output_checks(derivation)
        .iter()
        .flat_map(OutputChecks::ignored_attributes)
    {
        tracing::warn!("{ignored}");
    }
}
