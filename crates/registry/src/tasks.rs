//! What takes more than one step: each step is a job for a thread, and between them nothing waits
//! but a future.

use std::collections::BTreeSet;

use store_model::derivation::reference_graphs::{GraphInfos, ReferenceGraphs};
use store_model::{Derivation, OutputName, PathInfo, StorePath};
use tokio::sync::oneshot;

use crate::Error;
use crate::db::query;
use crate::ingest::{FoundOutput, NewText};
use crate::messages::{
    AddPath, AddText, Added, Comparand, CompareOutputs, Compared, ContentAddressed, LockAttempt,
    Occupied, OutputLocks, RegisterError, RegisterOutputs, RootsLease,
};
use crate::services::Queues;

/// Registers a build's outputs.
pub(crate) async fn register_outputs(
    queues: Queues,
    request: RegisterOutputs,
) -> Result<Vec<PathInfo>, RegisterError> {
    let earlier = match request.occupied {
        Occupied::Refused => Vec::new(),
        Occupied::Repaired => known_outputs(&queues, &request).await?,
    };
    let (reply, answer) = oneshot::channel();
    queues
        .ingest
        .submit(move |ingest| ingest.register_outputs(&request, &earlier, reply))
        .await?;
    let refusal = match answer.await {
        Ok(Ok(infos)) => return Ok(infos),
        Ok(Err(refusal)) => refusal,
        Err(_) => return Err(lost().into()),
    };
    if let Some(found) = refusal.found
        && let Err(error) = register_found(&queues, *found).await
    {
        // That the promise was broken is the news.
        tracing::warn!("keeping an output with other contents than promised: {error}");
    }
    Err(refusal.error)
}

/// Reads what the database knows of a build's outputs, as far as they are valid.
async fn known_outputs(queues: &Queues, request: &RegisterOutputs) -> Result<Vec<PathInfo>, Error> {
    let outputs = request.outputs.iter();
    let paths: Vec<StorePath> = outputs.map(|output| output.path.clone()).collect();
    let infos = queues
        .read(move |database| {
            let infos = paths.iter().map(|path| query::path_info(database, path));
            infos.collect::<Result<Vec<_>, _>>()
        })
        .await?;
    Ok(infos.into_iter().flatten().collect())
}

/// Registers an output at the path that its contents have.
pub(crate) async fn register_by_contents(
    queues: Queues,
    request: RegisterOutputs,
) -> Result<ContentAddressed, RegisterError> {
    let promised: BTreeSet<StorePath> = request
        .outputs
        .iter()
        .map(|output| output.path.clone())
        .collect();
    let found = queues
        .ingest
        .run(move |ingest| Ok::<_, Error>(ingest.find_by_contents(&request)))
        .await??;
    let info = found.info.clone();
    let path = info.path.clone();
    if promised.contains(&path) {
        // The goal holds its lock, and its root too.
        if !is_valid(&queues, &path).await? {
            add_found(&queues, found).await?;
        }
        let roots = queues.lend_roots(vec![path]).await?;
        return Ok(ContentAddressed { info, roots });
    }
    let wanted = BTreeSet::from([path.clone()]);
    let (roots, attempt) = try_lock_rooted(&queues, &wanted).await?;
    // A valid path may be locked by whoever likes.
    if is_valid(&queues, &path).await? {
        return Ok(ContentAddressed { info, roots });
    }
    let LockAttempt::Acquired(_locks) = attempt else {
        // The goal holds a lock already, so it may not wait for another.
        let path = queues.layout.print(&path);
        return Err(Error::Locked { path }.into());
    };
    add_found(&queues, found).await?;
    Ok(ContentAddressed { info, roots })
}

async fn add_found(queues: &Queues, found: FoundOutput) -> Result<(), Error> {
    let (reply, answer) = oneshot::channel();
    queues
        .ingest
        .submit(move |ingest| ingest.add_found(found, reply))
        .await?;
    answer.await.unwrap_or_else(|_| Err(lost()))
}

/// Registers an output at the path that its contents have, unless somebody else is about to.
async fn register_found(queues: &Queues, found: FoundOutput) -> Result<(), Error> {
    let path = found.info.path.clone();
    // The goal holds a lock already, so it may not wait for another.
    let (_lease, attempt) = try_lock_rooted(queues, &BTreeSet::from([path.clone()])).await?;
    let LockAttempt::Acquired(_locks) = attempt else {
        tracing::debug!("'{path}' is locked by somebody else");
        return Ok(());
    };
    if is_valid(queues, &path).await? {
        return Ok(());
    }
    add_found(queues, found).await
}

/// Compares a build's outputs with those of an earlier one.
pub(crate) async fn compare_outputs(
    queues: Queues,
    request: CompareOutputs,
) -> Result<Compared, RegisterError> {
    let valid = match request.with {
        Comparand::Valid => known_outputs(&queues, &request.candidate).await?,
        Comparand::Nothing | Comparand::Round(_) => Vec::new(),
    };
    let (reply, answer) = oneshot::channel();
    queues
        .ingest
        .submit(move |ingest| ingest.compare_outputs(request, &valid, reply))
        .await?;
    answer.await.unwrap_or_else(|_| Err(lost().into()))
}

/// Adds a text.
pub(crate) async fn add_text(queues: Queues, request: AddText) -> Result<Added, Error> {
    let text = queues
        .ingest
        .run(move |ingest| {
            let AddText {
                name,
                contents,
                references,
            } = request;
            NewText::new(&ingest.layout, &name, contents, references)
        })
        .await?;
    let path = text.path.clone();
    let (locks, roots) = lock_invalid(&queues, &path).await?;
    if locks.is_none() {
        return Ok(Added { path, roots });
    }
    let text = if path.is_derivation() {
        check_derivation(&queues, text).await?
    } else {
        text
    };
    let (reply, answer) = oneshot::channel();
    queues
        .ingest
        .submit(move |ingest| ingest.add_text(text, reply))
        .await?;
    answer.await.unwrap_or_else(|_| Err(lost()))?;
    Ok(Added { path, roots })
}

/// Checks a derivation before it becomes valid, and finds its outputs.
async fn check_derivation(queues: &Queues, text: NewText) -> Result<NewText, Error> {
    // Its inputs are about to be read, so they are looked up first, not only when it is registered.
    require_references(queues, &text.path, &text.references).await?;
    queues
        .derivations
        .run(move |derivations| {
            let mut text = text;
            let derivation = derivations.check_new(&text.path, &text.contents)?;
            text.derivation_outputs = known_outputs_of(&derivation);
            Ok(text)
        })
        .await
}

/// Fails unless all references of a path are valid.
pub(crate) async fn require_references(
    queues: &Queues,
    path: &StorePath,
    references: &BTreeSet<StorePath>,
) -> Result<(), Error> {
    let wanted: Vec<StorePath> = references.iter().cloned().collect();
    let valid = queues
        .read(move |database| query::valid_paths(database, wanted))
        .await?;
    match references.difference(&valid).next() {
        None => Ok(()),
        Some(missing) => Err(Error::InvalidReference {
            path: queues.layout.print(path),
            reference: queues.layout.print(missing),
        }),
    }
}

/// Returns the outputs of a derivation whose paths are known.
pub(crate) fn known_outputs_of(derivation: &Derivation) -> Vec<(OutputName, StorePath)> {
    derivation
        .known_outputs()
        .map(|(name, path)| (name.clone(), path.clone()))
        .collect()
}

/// Adds a file or a tree.
pub(crate) async fn add_path(queues: Queues, request: AddPath) -> Result<Added, Error> {
    let source = queues
        .ingest
        .run(move |ingest| ingest.copy_source(&request))
        .await?;
    let path = source.path.clone();
    let (locks, roots) = lock_invalid(&queues, &path).await?;
    if locks.is_none() {
        return Ok(Added { path, roots });
    }
    let (reply, answer) = oneshot::channel();
    queues
        .ingest
        .submit(move |ingest| ingest.add_source(source, reply))
        .await?;
    answer.await.unwrap_or_else(|_| Err(lost()))?;
    Ok(Added { path, roots })
}

/// Takes the lock on a path that is not valid, `None` if it is, and keeps it from the collector.
///
/// Waiting is left to the lock's own thread: a builder may hold it for hours.
pub(crate) async fn lock_invalid(
    queues: &Queues,
    path: &StorePath,
) -> Result<(Option<OutputLocks>, RootsLease), Error> {
    let wanted = BTreeSet::from([path.clone()]);
    loop {
        let (lease, attempt) = try_lock_rooted(queues, &wanted).await?;
        // Asked after the attempt: whoever had the lock until now may have made the path valid.
        // And a valid path is not waited for, whatever its lock is held for.
        match (is_valid(queues, path).await?, attempt) {
            (true, _) => return Ok((None, lease)),
            (false, LockAttempt::Acquired(locks)) => return Ok((Some(locks), lease)),
            (false, LockAttempt::Busy { path, .. }) => queues.wait_for_lock(&path).await?,
        }
    }
}

/// Keeps paths from the collector, and tries their locks.
pub(crate) async fn try_lock_rooted(
    queues: &Queues,
    paths: &BTreeSet<StorePath>,
) -> Result<(RootsLease, LockAttempt), Error> {
    let locker = queues.locker.clone();
    let wanted = paths.clone();
    let queue = queues.roots.downgrade();
    queues
        .roots
        .run(move |roots| {
            let lease = roots.lend(wanted.iter().cloned().collect(), &queue)?;
            Ok((lease, locker.try_lock(wanted)?))
        })
        .await
}

async fn is_valid(queues: &Queues, path: &StorePath) -> Result<bool, Error> {
    let path = path.clone();
    let valid = queues
        .read(move |database| query::valid_paths(database, vec![path]))
        .await?;
    Ok(!valid.is_empty())
}

/// Finds which paths are valid and have the contents that they should.
pub(crate) async fn good_paths(
    queues: Queues,
    paths: Vec<StorePath>,
) -> Result<BTreeSet<StorePath>, Error> {
    let (known, unknown): (Vec<_>, Vec<_>) = paths
        .into_iter()
        .partition(|path| queues.good_paths.get(path).is_some());
    let infos = queues
        .read(move |database| {
            unknown
                .iter()
                .map(|path| query::path_info(database, path))
                .collect::<Result<Vec<_>, _>>()
        })
        .await?;
    let mut good: BTreeSet<StorePath> = known
        .into_iter()
        .filter(|path| queues.good_paths.get(path) == Some(true))
        .collect();
    // All are queued before the first is awaited, so every thread has something to read.
    let mut answers = Vec::new();
    for info in infos.into_iter().flatten() {
        let (reply, answer) = oneshot::channel();
        let path = info.path.clone();
        queues
            .ingest
            .submit(move |ingest| {
                let _listener_gone = reply.send(ingest.is_good(&info.path, info.nar_hash));
            })
            .await?;
        answers.push((path, answer));
    }
    for (path, answer) in answers {
        if answer.await.map_err(|_| lost())? {
            good.insert(path);
        }
    }
    Ok(good)
}

/// Collects the paths of each graph, with what is known of them.
pub(crate) async fn graphs(queues: Queues, graphs: ReferenceGraphs) -> Result<GraphInfos, Error> {
    let mut collected = GraphInfos::new();
    for (name, mut roots) in graphs.roots {
        let asked_for = roots.clone();
        let closure = queues
            .read(move |database| query::closure(database, asked_for))
            .await?;
        let of_derivations = queues
            .derivations
            .run(move |derivations| {
                let mut outputs = BTreeSet::new();
                for path in closure.iter().filter(|path| path.is_derivation()) {
                    outputs.extend(derivations.graph_outputs(path)?);
                }
                Ok::<_, Error>(outputs)
            })
            .await?;
        roots.extend(of_derivations);
        let infos = queues
            .read(move |database| query::closure_infos(database, roots))
            .await?;
        collected.insert(name, infos);
    }
    Ok(collected)
}

/// Removes what lies at invalid paths.
pub(crate) async fn discard_invalid(queues: Queues, paths: Vec<StorePath>) -> Result<(), Error> {
    let trash = queues.trash.clone();
    queues
        .read(move |database| {
            let valid = query::valid_paths(database, paths.clone())?;
            paths
                .iter()
                .filter(|path| !valid.contains(*path))
                .try_for_each(|path| trash.discard(path))
        })
        .await
}

pub(crate) fn lost() -> Error {
    Error::WorkerLost { name: "ingest" }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
