//! Making valid what lies in the store already, because somebody says what it is.

use store_model::StorePath;
use tokio::sync::oneshot;

use crate::Error;
use crate::db::query;
use crate::db::write::Registration;
use crate::messages::{PresentMetadata, RegisterPresent, ValidAlready};
use crate::services::Queues;
use crate::tasks::{known_outputs_of, lost};

/// Registers paths whose contents are there.
pub(crate) async fn register_present(
    queues: Queues,
    request: RegisterPresent,
) -> Result<(), Error> {
    let RegisterPresent {
        mut paths,
        metadata,
        valid,
    } = request;
    let named: Vec<StorePath> = paths.iter().map(|present| present.path.clone()).collect();
    let _roots = queues.lend_roots(named.clone()).await?;
    if valid == ValidAlready::Keep {
        let known = queues
            .read(move |database| query::valid_paths(database, named))
            .await?;
        paths.retain(|present| !known.contains(&present.path));
    }
    // All are queued before the first is awaited, so every thread has something to read.
    let mut answers = Vec::with_capacity(paths.len());
    for present in paths {
        let (reply, answer) = oneshot::channel();
        queues
            .ingest
            .submit(move |ingest| {
                let described = match metadata {
                    PresentMetadata::MakeCanonical => ingest.read_present(present),
                    PresentMetadata::Trust => ingest.trust_present(present),
                };
                let _listener_gone = reply.send(described);
            })
            .await?;
        answers.push(answer);
    }
    let mut registrations = Vec::with_capacity(answers.len());
    for answer in answers {
        registrations.push(Registration {
            info: answer.await.unwrap_or_else(|_| Err(lost()))?,
            derivation_outputs: Vec::new(),
        });
    }
    let registrations = check_derivations(&queues, registrations).await?;
    let (reply, answer) = oneshot::channel();
    queues
        .ingest
        .submit(move |ingest| ingest.register_present(registrations, reply))
        .await?;
    answer.await.unwrap_or_else(|_| Err(lost()))
}

/// Checks the derivations among the paths, and finds their outputs.
async fn check_derivations(
    queues: &Queues,
    registrations: Vec<Registration>,
) -> Result<Vec<Registration>, Error> {
    queues
        .derivations
        .run(move |derivations| {
            let mut registrations = registrations;
            for registration in &mut registrations {
                let path = &registration.info.path;
                if path.is_derivation() {
                    let derivation = derivations.check_present(path)?;
                    registration.derivation_outputs = known_outputs_of(&derivation);
                }
            }
            Ok(registrations)
        })
        .await
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
