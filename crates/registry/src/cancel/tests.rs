//! Work that nobody wants any more, at each point that it can have got to.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use store_model::derivation::IngestionMethod;
use store_model::{Hash, HashAlgorithm};

use super::*;
use crate::messages::{AddPath, QueryValidPaths, RegisterError};
use crate::testing::{AwaitCleanUp, Scratch, TestStore, path};

/// Takes minutes to hash, and no room on the disk.
const ENDLESS_BYTES: u64 = 64 << 30;

/// Takes seconds to copy, and would fit on the disk if nobody stopped it.
const LARGE_BYTES: u64 = 1 << 30;

fn make_sparse(path: &Path, n_bytes: u64) {
    fs::File::create(path).unwrap().set_len(n_bytes).unwrap();
}

/// Returns once a thread of this process is well into a file of this store: nothing else tells.
///
/// Which file depends on the file system, since some copy without reading.
async fn until_busy(store: &TestStore) {
    let root = fs::canonicalize(&store.root).unwrap();
    loop {
        for listed in fs::read_dir("/proc/self/fd").unwrap() {
            // Descriptors come and go while they are listed.
            let Ok(listed) = listed else { continue };
            let is_ours = fs::read_link(listed.path()).is_ok_and(|file| file.starts_with(&root));
            if is_ours && position(&listed.file_name()) >= 256 << 10 {
                return;
            }
        }
        tokio::task::yield_now().await;
    }
}

/// Returns how far a descriptor of this process has been read or written, in bytes.
fn position(descriptor: &OsStr) -> u64 {
    let facts = fs::read_to_string(Path::new("/proc/self/fdinfo").join(descriptor));
    facts
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("pos:")?.trim().parse().ok())
        .unwrap_or(0)
}

#[actix::test]
async fn an_output_that_is_being_hashed_is_given_up_and_left_to_its_builder() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let small = scratch.output("dev", &path('a', "out-dev"));
    fs::write(&small, "small").unwrap();
    let large = scratch.output("out", &path('b', "out"));
    make_sparse(&large, ENDLESS_BYTES);
    let request = scratch.finish();
    let cancel = request.cancel.clone();
    let registering = actix::spawn(registry.store.send(request));
    until_busy(&store).await;
    cancel.raise();
    let answer = registering.await.unwrap().unwrap();
    assert!(
        matches!(answer, Err(RegisterError::Cancelled)),
        "{answer:?}"
    );
    assert!(small.exists() && large.exists());
    assert_eq!(store.objects(), BTreeSet::new());
    registry.stop().await;
}

#[actix::test]
async fn an_output_that_is_being_copied_is_given_up_and_its_copy_removed() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let hash = Hash::digest(HashAlgorithm::Sha256, b"something else");
    let out = scratch.fixed(&path('a', "fixed"), IngestionMethod::Flat, hash);
    make_sparse(&out, LARGE_BYTES);
    let request = scratch.finish();
    let cancel = request.cancel.clone();
    let registering = actix::spawn(registry.store.send(request));
    until_busy(&store).await;
    cancel.raise();
    let answer = registering.await.unwrap().unwrap();
    // Copied to its end and hashed, it would have been a hash mismatch.
    assert!(
        matches!(answer, Err(RegisterError::Cancelled)),
        "{answer:?}"
    );
    registry.store.send(AwaitCleanUp).await.unwrap().unwrap();
    assert_eq!(store.staged(), BTreeSet::new());
    registry.stop().await;
    assert_eq!(store.objects(), BTreeSet::new());
}

#[actix::test]
async fn what_is_cancelled_before_its_turn_is_not_touched() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let out = scratch.output("out", &path('a', "out"));
    fs::write(&out, "made").unwrap();
    let request = scratch.finish();
    let before = fs::metadata(&out).unwrap().modified().unwrap();
    request.cancel.raise();
    let answer = registry.register(request).await;
    assert!(
        matches!(answer, Err(RegisterError::Cancelled)),
        "{answer:?}"
    );
    assert_eq!(fs::metadata(&out).unwrap().modified().unwrap(), before);
    registry.stop().await;
    assert_eq!(store.objects(), BTreeSet::new());
}

#[actix::test]
async fn what_the_writer_has_been_given_becomes_valid_all_the_same() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let out = path('a', "out");
    fs::write(scratch.output("out", &out), "made").unwrap();
    let request = scratch.finish();
    let cancel = request.cancel.clone();
    // The writer waits for whoever else writes to the database.
    let other = rusqlite::Connection::open(store.database()).unwrap();
    other.execute_batch("begin immediate").unwrap();
    let registering = actix::spawn(registry.store.send(request));
    while !store.real_path(&out).exists() {
        tokio::task::yield_now().await;
    }
    cancel.raise();
    other.execute_batch("rollback").unwrap();
    registering.await.unwrap().unwrap().unwrap();
    let question = QueryValidPaths {
        paths: vec![out.clone()],
    };
    let valid = registry.store.send(question).await.unwrap().unwrap();
    assert_eq!(valid, BTreeSet::from([out]));
    registry.stop().await;
}

#[actix::test]
async fn a_source_that_is_being_copied_when_the_registry_stops_is_given_up() {
    let store = TestStore::new();
    let registry = store.start();
    let source = store.root.join("source");
    make_sparse(&source, LARGE_BYTES);
    let adding = actix::spawn(registry.store.send(AddPath {
        source,
        name: "source".to_owned(),
        method: IngestionMethod::Recursive,
        algorithm: HashAlgorithm::Sha256,
    }));
    until_busy(&store).await;
    registry.stop().await;
    let answer = adding.await.unwrap().unwrap();
    assert!(matches!(answer, Err(Error::Cancelled)), "{answer:?}");
    assert_eq!(store.objects(), BTreeSet::new());
}
