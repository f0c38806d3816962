//! What goals ask the registry and the lock keeper: functions that know no actor, so that the answer can
//! only become an event. And what they warn of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use registry::{
    AddTempRoots, AwaitLock, DiscardInvalidPaths, QueryDerivation, QueryValidPaths, RegisterError,
    RegisterOutputs, RootsLease, ScratchOutput,
};
use store_model::derivation::output_checks::OutputChecks;
use store_model::{Derivation, DerivationOutput, OutputName, StorePath};

use super::repair::query_broken_outputs;
use crate::error::chain;
use crate::goal::derivation::Event;
use crate::goal::recipe::output_checks;
use crate::goal::{BuildMode, Status};
use crate::ports::Ports;

/// Returns the outputs of these names as the registry wants them described.
pub(super) fn scratch_outputs(
    derivation: &Derivation,
    names: &BTreeSet<OutputName>,
) -> Vec<ScratchOutput> {
    derivation
        .outputs
        .iter()
        .filter(|(name, _)| names.contains(*name))
        .filter_map(|(name, output)| {
            Some(ScratchOutput {
                name: name.clone(),
                path: output.path()?.clone(),
                fixed: match output {
                    DerivationOutput::Fixed { method, hash, .. } => Some((*method, *hash)),
                    DerivationOutput::InputAddressed(_)
                    | DerivationOutput::Floating { .. }
                    | DerivationOutput::Deferred => None,
                },
            })
        })
        .collect()
}

/// Returns the outputs of other names, as far as their paths are known.
pub(super) fn other_outputs(
    derivation: &Derivation,
    names: &BTreeSet<OutputName>,
) -> BTreeMap<OutputName, StorePath> {
    derivation
        .known_outputs()
        .filter(|(name, _)| !names.contains(*name))
        .map(|(name, path)| (name.clone(), path.clone()))
        .collect()
}

/// Keeps paths from the garbage collector.
pub(super) async fn lend_roots(ports: &Ports, paths: Vec<StorePath>) -> Result<RootsLease, String> {
    let lent = ports.add_temp_roots.send(AddTempRoots { paths }).await;
    lent.map_err(|error| chain(&error))?
        .map_err(|error| chain(&error))
}

/// Returns a derivation, and what keeps it in the store. One that was given need not be there, but
/// collectors know by its path whose the directories of its build are.
pub(super) async fn load_derivation(
    ports: Arc<Ports>,
    drv_path: StorePath,
    given: Option<Arc<Derivation>>,
) -> Result<(Arc<Derivation>, RootsLease), String> {
    let roots = lend_roots(&ports, vec![drv_path.clone()]).await?;
    if let Some(derivation) = given {
        return Ok((derivation, roots));
    }
    let read = ports.query_derivation.send(QueryDerivation { drv_path });
    let derivation = read
        .await
        .map_err(|error| chain(&error))?
        .map_err(|error| chain(&error))?;
    Ok((derivation, roots))
}

/// Asks which outputs are invalid, or in a repair which are corrupt or missing; returns what keeps
/// those paths that are to be kept first.
pub(super) async fn query_outputs(
    ports: Arc<Ports>,
    mode: BuildMode,
    outputs: Vec<(OutputName, StorePath)>,
    to_keep: Vec<StorePath>,
) -> Result<(Event, RootsLease), String> {
    let paths: Vec<StorePath> = outputs.iter().map(|(_, path)| path.clone()).collect();
    let roots = if to_keep.is_empty() {
        RootsLease::default()
    } else {
        lend_roots(&ports, to_keep).await?
    };
    if mode == BuildMode::Repair {
        let event = query_broken_outputs(&ports, outputs).await?;
        return Ok((event, roots));
    }
    let valid = ports
        .query_valid_paths
        .send(QueryValidPaths { paths })
        .await
        .map_err(|error| chain(&error))?
        .map_err(|error| chain(&error))?;
    let invalid = outputs
        .into_iter()
        .filter(|(_, path)| !valid.contains(path))
        .map(|(name, _)| name)
        .collect();
    Ok((Event::OutputsQueried { invalid }, roots))
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
