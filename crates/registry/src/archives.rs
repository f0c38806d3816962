//! Archives on their way into the store, step by step: between two steps nothing waits but a future.

use tokio::sync::oneshot;

use crate::Error;
use crate::db::query;
use crate::ingest::RestoredFacts;
use crate::messages::{Added, Occupied, RegisterRestored, RestoreError, RestoreNar, RestoredPath};
use crate::services::Queues;
use crate::tasks::{known_outputs_of, lock_invalid, lost, require_references};

/// Unpacks an archive in our own directory.
pub(crate) async fn restore(
    queues: Queues,
    request: RestoreNar,
) -> Result<RestoredPath, RestoreError> {
    queues
        .restore
        .run(move |ingest| ingest.restore(request))
        .await
}

/// Adds what an archive holds, unless it is there.
pub(crate) async fn add_nar(queues: Queues, request: RestoreNar) -> Result<Added, RestoreError> {
    let path = request.promised.path.clone();
    let (locks, roots) = lock_invalid(&queues, &path).await?;
    if locks.is_some() {
        let request = RegisterRestored {
            restored: restore(queues.clone(), request).await?,
            occupied: Occupied::Refused,
        };
        register_restored(queues, request).await?;
    }
    Ok(Added { path, roots })
}

/// Registers what was restored from an archive.
pub(crate) async fn register_restored(
    queues: Queues,
    request: RegisterRestored,
) -> Result<(), Error> {
    let mut request = request;
    let mut known = RestoredFacts::default();
    if request.restored.info.path.is_derivation() {
        let info = &request.restored.info;
        require_references(&queues, &info.path, &info.references).await?;
        (request, known.derivation_outputs) = queues
            .derivations
            .run(move |derivations| {
                let restored = &request.restored;
                let derivation = derivations.check_staged(&restored.info.path, &restored.staged)?;
                Ok::<_, Error>((request, known_outputs_of(&derivation)))
            })
            .await?;
    }
    if request.occupied == Occupied::Repaired {
        let path = request.restored.info.path.clone();
        let earlier = queues.read(move |database| query::path_info(database, &path));
        known.earlier = earlier.await?.into_iter().collect();
    }
    let (reply, answer) = oneshot::channel();
    queues
        .ingest
        .submit(move |ingest| ingest.add_restored(request, known, reply))
        .await?;
    answer.await.unwrap_or_else(|_| Err(lost()))
}
