//! Opening a store and starting the actors that serve it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::num::NonZero;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use actix::{Actor as _, Addr};
use store_model::Settings;
use store_model::settings::StoreLayout;
use store_model::signature::{SecretKey, key_file_warning};
use tokio::sync::watch;

use crate::actors::{LockKeeper, StoreRegistry};
use crate::db::connection::{SchemaGuard, prepare};
use crate::db::{Database, DatabaseOptions};
use crate::derivations::Derivations;
use crate::ingest::{FileSharing, GoodPaths, Ingest, ReadBuffer, Trash};
use crate::layout::Layout;
use crate::path_lock::PathLocker;
use crate::roots::TempRoots;
use crate::services::{Pools, Queues};
use crate::staging::{Staging, remove_debris};
use crate::workers::WorkerPool;
use crate::writer::{ContentSync, Writer};
use crate::{CancelFlag, Error};

/// How many threads answer questions: they mostly wait for each other's page cache, not for the
/// processor.
const N_READERS: usize = 3;

/// Most threads that unpack archives: beyond it no link and no disk gets any faster.
const MAX_RESTORERS: usize = 64;

/// The stack of each of them. Trees are kept off it, so this is what decompressors need, several
/// times over.
const RESTORER_STACK_BYTES: usize = 512 << 10;

/// A store that is open, and who to ask about it.
#[derive(Debug, Clone)]
pub struct Registry {
    /// What is valid.
    pub store: Addr<StoreRegistry>,
    /// Who writes.
    pub locks: Addr<LockKeeper>,
}

/// Opens a store, cleans up after dead processes, and starts its actors on this thread's actix
/// system.
///
/// # Errors
/// A directory, the database or a secret key cannot be used; the error says which and why.
pub fn start(layout: StoreLayout, settings: &Settings) -> Result<Registry, Error> {
    start_with(layout, settings, DatabaseOptions::from_settings(settings))
}

/// Starts with other patience.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_with(
    layout: StoreLayout,
    settings: &Settings,
    options: DatabaseOptions,
) -> Result<Registry, Error> {
    let layout = Arc::new(Layout::open(layout, settings)?);
    let guard = prepare(&layout, options)?;
    let locking = WorkerPool::start("locking", vec![()])?;
    let locking_queue = locking.queue().downgrade();
    let locker = PathLocker::new(Arc::clone(&layout), locking_queue.clone());
    let (queues, pools) = start_threads(&layout, settings, options, guard, (&locker, locking))?;
    Ok(Registry {
        store: StoreRegistry::new(queues, pools).start(),
        locks: LockKeeper::new(locker, locking_queue).start(),
    })
}

fn start_threads(
    layout: &Arc<Layout>,
    settings: &Settings,
    options: DatabaseOptions,
    guard: SchemaGuard,
    (locker, locking): (&PathLocker, WorkerPool<()>),
) -> Result<(Queues, Pools), Error> {
    let secret_keys = read_secret_keys(&settings.secret_key_files)?;
    let content_sync = if settings.fsync_store_paths {
        ContentSync::Durable
    } else {
        ContentSync::Relaxed
    };
    let writer = Writer::start(
        Arc::clone(layout),
        Database::open(layout, options)?,
        content_sync,
    )?;
    let deletion = WorkerPool::start("deletion", vec![()])?;
    let mut roots = TempRoots::open(Arc::clone(layout))?;
    let staging = Arc::new(Staging::open(Arc::clone(layout), &mut roots)?);
    let trash = Trash {
        staging,
        queue: deletion.queue(),
    };
    let debris = (Arc::clone(layout), locker.clone());
    trash.queue.try_submit(move |()| {
        let (layout, locker) = debris;
        if let Err(error) = remove_debris(&layout).and_then(|()| locker.remove_stale()) {
            tracing::warn!("{error}");
        }
    });
    let good_paths = GoodPaths::default();
    let given_up = CancelFlag::default();
    let readers = (0..N_READERS)
        .map(|_| Database::open_reader(layout, options))
        .collect::<Result<_, _>>()?;
    let readers = WorkerPool::start("reader", readers)?;
    let new_ingest = |_| Ingest {
        layout: Arc::clone(layout),
        commits: writer.queue(),
        trash: trash.clone(),
        good_paths: good_paths.clone(),
        content_sync,
        readers: readers.queue(),
        secret_keys: Arc::clone(&secret_keys),
        sharing: if settings.auto_optimise_store {
            FileSharing::Linked
        } else {
            FileSharing::None
        },
        unshareable: BTreeSet::new(),
        buffer: ReadBuffer::new(),
        stopping: given_up.clone(),
    };
    let ingest = (0..n_cores()).map(new_ingest).collect();
    let restore = (0..n_restorers(settings)).map(new_ingest).collect();
    let derivations = Derivations::new(Arc::clone(layout), Database::open_reader(layout, options)?);
    let (running, stopping) = watch::channel(());
    let pools = Pools {
        readers,
        derivations: WorkerPool::start("derivation", vec![derivations])?,
        ingest: WorkerPool::start("ingest", ingest)?,
        restore: WorkerPool::start_with_stack("restore", RESTORER_STACK_BYTES, restore)?,
        writer,
        locking,
        deletion,
        roots: WorkerPool::start("roots", vec![roots])?,
        guard,
        running,
        given_up,
    };
    let queues = Queues {
        layout: Arc::clone(layout),
        locker: locker.clone(),
        good_paths,
        readers: pools.readers.queue(),
        derivations: pools.derivations.queue(),
        ingest: pools.ingest.queue(),
        restore: pools.restore.queue(),
        roots: pools.roots.queue(),
        trash,
        realisations: options.realisations,
        stopping,
    };
    Ok((queues, pools))
}

/// Reads the keys that sign outputs.
///
/// # Errors
/// A file cannot be read, or holds no secret key.
fn read_secret_keys(files: &BTreeSet<PathBuf>) -> Result<Arc<[SecretKey]>, Error> {
    files.iter().map(|path| read_secret_key(path)).collect()
}

/// Reads a key, and warns if others can as well (SECURITY N05).
fn read_secret_key(path: &Path) -> Result<SecretKey, Error> {
    let failed = |source| Error::ReadSecretKey {
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let mode = file.metadata().map_err(failed)?.permissions().mode();
    if let Some(warning) = key_file_warning(path, mode) {
        tracing::warn!("{warning}");
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed)?;
    text.parse().map_err(|source| Error::SecretKey {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

/// Returns how many archives are unpacked at once: each may be kept waiting by its source.
fn n_restorers(settings: &Settings) -> usize {
    settings.max_substitution_jobs.clamp(1, MAX_RESTORERS)
}

fn n_cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZero::get)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
