//! Floating outputs and realisations: what takes several steps, as in `tasks`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use store_model::{Derivation, DrvOutput, OutputName, Realisation, StorePath};
use tokio::sync::oneshot;

use crate::db::connection::Realisations;
use crate::db::{query, realisations};
use crate::ingest::Present;
use crate::messages::{
    AdoptRealisations, LockAttempt, Occupied, OutputLocks, RealisedOutputs, RegisterError,
    RegisterFloatingOutputs, RegisteredFloating, RootsLease,
};
use crate::services::Queues;
use crate::tasks::{good_paths, lost, try_lock_rooted};
use crate::{CancelFlag, Error};

/// Registers outputs whose paths follow from their contents.
pub(crate) async fn register_floating(
    queues: Queues,
    request: RegisterFloatingOutputs,
) -> Result<RegisteredFloating, RegisterError> {
    let request = Arc::new(request);
    let settling = Arc::clone(&request);
    let outputs = queues
        .ingest
        .run(move |ingest| ingest.settle_outputs(&settling))
        .await?;
    let paths: BTreeSet<StorePath> = outputs.iter().map(|it| it.info.path.clone()).collect();
    let (locks, roots) = lock(&queues, &paths, &request.made.cancel).await?;
    let valid = queues
        .read(move |database| query::valid_paths(database, paths.into_iter().collect()))
        .await?;
    let broken = match request.made.occupied {
        Occupied::Refused => BTreeSet::new(),
        Occupied::Repaired => {
            let good = good_paths(queues.clone(), valid.iter().cloned().collect()).await?;
            valid.difference(&good).cloned().collect()
        }
    };
    let present = Present { valid, broken };
    let (reply, answer) = oneshot::channel();
    queues
        .ingest
        .submit(move |ingest| ingest.register_settled(&request.made, outputs, &present, reply))
        .await?;
    let outputs = answer.await.unwrap_or_else(|_| Err(lost().into()))?;
    drop(locks);
    Ok(RegisteredFloating { outputs, roots })
}

/// Takes the locks on all paths, and keeps them from the collector.
///
/// None is held while another is waited for. Whoever has one makes the very same object: another
/// goal that registers it, for moments; or the builder of a fixed output.
async fn lock(
    queues: &Queues,
    paths: &BTreeSet<StorePath>,
    cancel: &CancelFlag,
) -> Result<(OutputLocks, RootsLease), Error> {
    loop {
        let (lease, attempt) = try_lock_rooted(queues, paths).await?;
        match attempt {
            LockAttempt::Acquired(locks) => return Ok((locks, lease)),
            LockAttempt::Busy { path, .. } => tokio::select! {
                freed = queues.wait_for_lock(&path) => freed?,
                () = cancel.raised() => return Err(Error::Cancelled),
            },
        }
    }
}

/// Finds which outputs of a derivation are realised.
pub(crate) async fn realised_outputs(
    queues: Queues,
    derivation: Arc<Derivation>,
) -> Result<RealisedOutputs, Error> {
    check_kept(&queues)?;
    let ids = queues
        .derivations
        .run(move |derivations| derivations.output_ids(&derivation))
        .await?;
    let outputs = ids.clone();
    let paths = queues
        .read(move |database| realisations::realised(database, &outputs))
        .await?;
    Ok(RealisedOutputs { ids, paths })
}

/// Finds all that is remembered of outputs.
pub(crate) async fn realisation_infos(
    queues: Queues,
    outputs: BTreeSet<DrvOutput>,
) -> Result<BTreeMap<DrvOutput, Realisation>, Error> {
    check_kept(&queues)?;
    queues
        .read(move |database| realisations::infos(database, outputs))
        .await
}

/// Remembers outputs that were made without the feature. Nobody vouches for them.
pub(crate) async fn note(
    queues: Queues,
    outputs: BTreeMap<DrvOutput, StorePath>,
) -> Result<(), Error> {
    check_kept(&queues)?;
    let realisations = outputs.into_iter().map(|(id, out_path)| Realisation {
        id,
        out_path,
        signatures: BTreeSet::new(),
        dependent_realisations: BTreeMap::new(),
    });
    record(&queues, realisations.collect()).await
}

/// Remembers outputs of a derivation that was resolved.
pub(crate) async fn adopt(queues: Queues, request: AdoptRealisations) -> Result<(), Error> {
    check_kept(&queues)?;
    let AdoptRealisations {
        derivation,
        outputs,
    } = request;
    let (ids, inputs) = queues
        .derivations
        .run(move |derivations| {
            let ids = derivations.output_ids(&derivation)?;
            // What a fixed output is does not depend on how it was made.
            let inputs = if derivation.is_fixed_output() {
                BTreeSet::new()
            } else {
                derivations.input_ids(&derivation)?
            };
            Ok::<_, Error>((ids, inputs))
        })
        .await?;
    let mut realisations = queues
        .read(move |database| {
            let inputs = realisations::closure(database, inputs)?;
            let adopt = |(name, path): (OutputName, StorePath)| {
                let id = ids.get(&name)?;
                let info = query::path_info(database, &path).transpose()?;
                Some(info.map(|info| {
                    Realisation {
                        id: id.clone(),
                        out_path: path,
                        signatures: BTreeSet::new(),
                        dependent_realisations: inputs
                            .iter()
                            .filter(|(_, path)| info.references.contains(*path))
                            .map(|(id, path)| (id.clone(), path.clone()))
                            .collect(),
                    }
                }))
            };
            outputs
                .into_iter()
                .filter_map(adopt)
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;
    let signed = queues
        .ingest
        .run(move |ingest| {
            for realisation in &mut realisations {
                ingest.sign_realisation(realisation);
            }
            Ok::<_, Error>(realisations)
        })
        .await?;
    record(&queues, signed).await
}

async fn record(queues: &Queues, realisations: Vec<Realisation>) -> Result<(), Error> {
    let (reply, answer) = oneshot::channel();
    queues
        .ingest
        .submit(move |ingest| ingest.record(realisations, reply))
        .await?;
    answer.await.unwrap_or_else(|_| Err(lost()))
}

/// Refuses to look for realisations where the database has no tables for them.
fn check_kept(queues: &Queues) -> Result<(), Error> {
    match queues.realisations {
        Realisations::Kept => Ok(()),
        Realisations::Absent => Err(Error::NoRealisations),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
