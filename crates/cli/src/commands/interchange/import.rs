//! `import`: what `export` wrote, into the store.
//!
//! The path of an archive is said behind it, so each is put aside first: small ones in memory, others
//! in a file without a name on the store's disk. A thread reads the stream and is a few paths ahead
//! of the store, which takes many at once: they share one sync of the disk.

use std::collections::BTreeMap;
use std::io::{self, BufReader, Seek as _};
use std::path::{Path, PathBuf};

use futures_util::future::join_all;
use registry::{CancelFlag, RestoreNar};
use store_model::export::{ReadError, Reader};
use store_model::settings::StoreLayout;
use store_model::{PathInfo, StoreDir, StorePath};
use tempfile::SpooledTempFile;
use tokio::sync::mpsc;

use crate::commands::nar::{self, BUFFER_LEN};
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::store::Store;

/// Archives up to this size, in bytes, are put aside in memory.
const MEMORY_BYTES: usize = 64 * 1024;

/// Most paths that are on their way into the store at once.
const MAX_BATCH: usize = 64;

/// Adds each path of the stream that is not valid, and prints all of them in their order.
pub(super) async fn import(store: &Store, layout: &StoreLayout, output: &mut Output) -> Result<()> {
    let (sender, archives) = mpsc::channel(1);
    let (store_dir, aside) = (store.dir().clone(), layout.state_dir.clone());
    nar::start_thread(move || {
        let end = read_stream(store_dir, &aside, &sender).map(|()| None);
        // Where adding has failed, nobody asks how the stream went on.
        let _unheard = sender.blocking_send(end);
    })?;
    for path in add_all(store, archives).await? {
        output.line(store.dir().print(&path))?;
    }
    Ok(())
}

/// Adds what comes until the end. What came before a stream broke off is added all the same, and
/// stays.
async fn add_all(
    store: &Store,
    mut archives: mpsc::Receiver<Result<Option<Archive>>>,
) -> Result<Vec<StorePath>> {
    let mut imported = Vec::new();
    let mut batch = Batch::default();
    loop {
        let next = archives
            .recv()
            .await
            .unwrap_or_else(|| Err(Failure::message("the thread that reads the stream is gone")));
        let Ok(Some(archive)) = next else {
            batch.settle(store).await?;
            return next.map(|_end| imported);
        };
        if !batch.takes(&archive.info) {
            std::mem::take(&mut batch).settle(store).await?;
        }
        imported.push(archive.info.path.clone());
        batch.archives.insert(archive.info.path.clone(), archive);
    }
}

/// An archive that was put aside.
struct Archive {
    info: PathInfo,
    aside: SpooledTempFile,
}

/// Paths that do not refer to each other.
#[derive(Default)]
struct Batch {
    archives: BTreeMap<StorePath, Archive>,
}

impl Batch {
    /// Returns whether a path may join.
    fn takes(&self, info: &PathInfo) -> bool {
        self.archives.len() < MAX_BATCH
            && !self.archives.contains_key(&info.path)
            && !info
                .references
                .iter()
                .any(|reference| self.archives.contains_key(reference))
    }

    /// Adds all of them.
    async fn settle(self, store: &Store) -> Result<()> {
        let adding = self.archives.into_values().map(|archive| {
            store.add_nar(RestoreNar {
                promised: archive.info,
                contents: Box::new(archive.aside),
                objects: None,
                cancel: CancelFlag::default(),
            })
        });
        join_all(adding).await.into_iter().collect()
    }
}

fn read_stream(
    store_dir: StoreDir,
    aside_dir: &Path,
    archives: &mpsc::Sender<Result<Option<Archive>>>,
) -> Result<()> {
    let stdin = nar::stdin().map_err(|error| stdin_failed(&error))?;
    let mut reader = Reader::new(BufReader::with_capacity(BUFFER_LEN, stdin), store_dir);
    loop {
        let mut aside = tempfile::spooled_tempfile_in(MEMORY_BYTES, aside_dir);
        let info = match reader.next(&mut aside) {
            Ok(Some(info)) => info,
            Ok(None) => return Ok(()),
            Err(ReadError::Source(error)) => return Err(stdin_failed(&error)),
            Err(ReadError::Copy(error)) => return Err(aside_failed(aside_dir, error)),
            Err(error @ ReadError::Malformed(_)) => return Err(Failure::new(error)),
        };
        aside
            .rewind()
            .map_err(|error| aside_failed(aside_dir, error))?;
        let archive = Archive { info, aside };
        if archives.blocking_send(Ok(Some(archive))).is_err() {
            // Adding them has failed, which is told by whoever did that.
            return Ok(());
        }
    }
}

fn stdin_failed(error: &io::Error) -> Failure {
    Failure::message(format!("reading standard input: {error}"))
}

fn aside_failed(dir: &Path, error: io::Error) -> Failure {
    Failure::file("putting an archive aside in", &PathBuf::from(dir), error)
}
