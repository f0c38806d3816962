//! What a derivation goal asks the registry: functions that know no actor, so that the answer can
//! only become an event.

use std::collections::BTreeSet;
use std::sync::Arc;

use registry::{
    AddTempRoots, QueryDerivation, QueryValidPaths, RegisterError, RegisterOutputs, ScratchOutput,
};
use store_model::{Derivation, DerivationOutput, OutputName, StorePath};

use crate::error::chain;
use crate::goal::Status;
use crate::goal::derivation::Event;
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

pub(super) async fn load_derivation(
    ports: Arc<Ports>,
    drv_path: StorePath,
    given: Option<Arc<Derivation>>,
) -> Result<Arc<Derivation>, String> {
    if let Some(derivation) = given {
        return Ok(derivation);
    }
    let paths = vec![drv_path.clone()];
    let rooted = ports.add_temp_roots.send(AddTempRoots { paths }).await;
    rooted
        .map_err(|error| chain(&error))?
        .map_err(|error| chain(&error))?;
    let read = ports.query_derivation.send(QueryDerivation { drv_path });
    read.await
        .map_err(|error| chain(&error))?
        .map_err(|error| chain(&error))
}

pub(super) async fn query_outputs(
    ports: Arc<Ports>,
    outputs: Vec<(OutputName, StorePath)>,
    needs_roots: bool,
) -> Result<Event, String> {
    let paths: Vec<StorePath> = outputs.iter().map(|(_, path)| path.clone()).collect();
    if needs_roots {
        let roots = AddTempRoots {
            paths: paths.clone(),
        };
        ports
            .add_temp_roots
            .send(roots)
            .await
            .map_err(|error| chain(&error))?
            .map_err(|error| chain(&error))?;
    }
    let valid = ports
        .query_valid_paths
        .send(QueryValidPaths { paths })
        .await
        .map_err(|error| chain(&error))?
        .map_err(|error| chain(&error))?;
    Ok(Event::OutputsQueried {
        invalid: outputs
            .into_iter()
            .filter(|(_, path)| !valid.contains(path))
            .map(|(name, _)| name)
            .collect(),
    })
}

pub(super) async fn register_outputs(
    ports: Arc<Ports>,
    register: RegisterOutputs,
) -> Result<Event, String> {
    let refused = |status, error: &RegisterError| Event::OutputsRefused {
        status,
        message: chain(error),
    };
    match ports.register_outputs.send(register).await {
        Ok(Ok(_)) => Ok(Event::OutputsRegistered),
        Ok(Err(error @ RegisterError::Rejected(_))) => Ok(refused(Status::OutputRejected, &error)),
        Ok(Err(error @ RegisterError::HashMismatch { .. })) => {
            Ok(refused(Status::HashMismatch, &error))
        }
        Ok(Err(RegisterError::Cancelled)) => Ok(Event::RegistrationCancelled),
        Ok(Err(error @ RegisterError::Store(_))) => Ok(refused(Status::MiscFailure, &error)),
        Err(error) => Err(chain(&error)),
    }
}
