//! Archives of every kind, good and evil, and what is left of them.

mod addresses;
mod evil;
mod sharing;

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Cursor, Read, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use store_model::nar::{NarVisitor as _, NarWriter};
use store_model::{NarHash, Settings};

use super::*;
use crate::messages::{QueryGoodPaths, QueryPathInfo, QueryValidDerivers};
use crate::testing::{AwaitCleanUp, Canary, TestStore, fixtures, has_nix, path};
use crate::{CancelFlag, Registry};

/// What is promised of an archive, at a path that does not follow from it.
fn promise(archive: &[u8]) -> PathInfo {
    PathInfo {
        path: path('a', "restored"),
        nar_hash: Hash::digest(HashAlgorithm::Sha256, archive)
            .try_into()
            .unwrap(),
        nar_size_bytes: u64::try_from(archive.len()).unwrap(),
        references: BTreeSet::new(),
        deriver: None,
        registration_time: 5,
        ultimate: true,
        signatures: BTreeSet::new(),
        content_address: None,
    }
}

fn request(promised: PathInfo, archive: &[u8]) -> RestoreNar {
    RestoreNar {
        promised,
        contents: Box::new(Cursor::new(archive.to_vec())),
        objects: None,
        cancel: CancelFlag::default(),
    }
}

async fn restore(
    registry: &Registry,
    promised: PathInfo,
    archive: &[u8],
) -> Result<RestoredPath, RestoreError> {
    let request = request(promised, archive);
    registry.store.send(request).await.unwrap()
}

async fn register(
    registry: &Registry,
    restored: RestoredPath,
    occupied: Occupied,
) -> Result<(), Error> {
    let request = RegisterRestored { restored, occupied };
    registry.store.send(request).await.unwrap()
}

async fn add(registry: &Registry, promised: PathInfo, archive: &[u8]) {
    let restored = restore(registry, promised, archive).await.unwrap();
    register(registry, restored, Occupied::Refused)
        .await
        .unwrap();
}

async fn info(registry: &Registry, path: &StorePath) -> Option<PathInfo> {
    let question = QueryPathInfo { path: path.clone() };
    registry.store.send(question).await.unwrap().unwrap()
}

/// Returns what an archive is refused with.
async fn refusal(registry: &Registry, promised: PathInfo, archive: &[u8]) -> String {
    match restore(registry, promised, archive).await {
        Err(RestoreError::Broken(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

/// Fails if anything is in the store, or in our own directory.
async fn assert_nothing_left(store: &TestStore, registry: &Registry) {
    registry.store.send(AwaitCleanUp).await.unwrap().unwrap();
    assert_eq!(store.staged(), BTreeSet::new());
    assert_eq!(store.objects(), BTreeSet::new());
}

/// Returns the archive of one file.
fn file_nar(contents: &[u8], is_executable: bool) -> Vec<u8> {
    let mut writer = NarWriter::new(Vec::new());
    let header = nar::FileHeader {
        is_executable,
        size_bytes: u64::try_from(contents.len()).unwrap(),
    };
    writer.begin_file(None, header).unwrap();
    if !contents.is_empty() {
        writer.file_contents(contents).unwrap();
    }
    writer.end_file().unwrap();
    writer.finish().unwrap().0
}

/// Returns the encoding of strings, one after another: of an archive, well-formed or not.
fn strings(strings: &[&[u8]]) -> Vec<u8> {
    let mut encoded = Vec::new();
    for string in strings {
        encoded.extend(u64::try_from(string.len()).unwrap().to_le_bytes());
        encoded.extend(*string);
        encoded.resize(encoded.len().next_multiple_of(8), 0);
    }
    encoded
}

/// Returns the archive of a directory with these entries, each the strings of its node.
fn directory_nar(entries: &[(&[u8], &[&[u8]])]) -> Vec<u8> {
    let mut words: Vec<&[u8]> = vec![b"nix-archive-1", b"(", b"type", b"directory"];
    for (name, node) in entries {
        words.extend([&b"entry"[..], b"(", b"name", name, b"node"]);
        words.extend(*node);
        words.push(b")");
    }
    words.push(b")");
    strings(&words)
}

const FILE: &[&[u8]] = &[b"(", b"type", b"regular", b"contents", b"evil", b")"];
const EMPTY_DIR: &[&[u8]] = &[b"(", b"type", b"directory", b")"];

#[actix::test]
async fn every_archive_of_nix_is_dumped_by_nix_as_it_was() {
    let Some(fixtures) = fixtures() else { return };
    if !has_nix("every_archive_of_nix_is_dumped_by_nix_as_it_was") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start();
    let mut n_archives = 0;
    for listed in fs::read_dir(fixtures.join("nar")).unwrap() {
        let file = listed.unwrap().path();
        if file.extension().is_none_or(|extension| extension != "nar") {
            continue;
        }
        let archive = fs::read(&file).unwrap();
        let promised = promise(&archive);
        let object = store.real_path(&promised.path);
        add(&registry, promised, &archive).await;
        let mut dump = store.nix_store_command(&["--dump"]);
        let dumped = dump.arg(&object).output().unwrap();
        assert!(dumped.status.success(), "{}", file.display());
        assert!(dumped.stdout == archive, "{}", file.display());
        assert_canonical(&object);
        n_archives += 1;
    }
    assert!(n_archives > 50, "{n_archives}");
    assert_eq!(store.staged(), BTreeSet::new());
    registry.stop().await;
}

/// Fails if anything in a tree has other metadata than objects of a store have.
fn assert_canonical(object: &Path) {
    let metadata = fs::symlink_metadata(object).unwrap();
    assert_eq!(metadata.mtime(), 1, "{}", object.display());
    assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw());
    if metadata.is_symlink() {
        return;
    }
    let mode = metadata.mode() & 0o7777;
    assert!(matches!(mode, 0o444 | 0o555), "{}", object.display());
    if metadata.is_dir() {
        assert_eq!(mode, 0o555);
        for listed in fs::read_dir(object).unwrap() {
            assert_canonical(&listed.unwrap().path());
        }
    }
}

#[actix::test]
async fn nothing_has_a_name_in_the_store_before_it_is_registered_or_after_it_is_dropped() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let archive = file_nar(b"x", false);
    let restored = restore(&registry, promise(&archive), &archive).await;
    assert_eq!(store.objects(), BTreeSet::new());
    assert_eq!(store.staged().len(), 1);
    drop(restored);
    assert_nothing_left(&store, &registry).await;
    registry.stop().await;
}

#[actix::test]
async fn what_is_promised_is_what_the_row_says() {
    let store = TestStore::new();
    let registry = store.start();
    let archive = file_nar(b"other", false);
    let other = PathInfo {
        path: path('b', "other"),
        ..promise(&archive)
    };
    add(&registry, other.clone(), &archive).await;
    let archive = file_nar(b"refers", true);
    let promised = PathInfo {
        references: [other.path.clone(), path('a', "restored")].into(),
        deriver: Some(path('d', "maker.drv")),
        signatures: ["k-1:abcd".to_owned(), "k-2:efgh".to_owned()].into(),
        ..promise(&archive)
    };
    add(&registry, promised.clone(), &archive).await;
    let found = info(&registry, &promised.path).await.unwrap();
    assert!(found.registration_time > 1_600_000_000, "{found:?}");
    let expected = PathInfo {
        registration_time: found.registration_time,
        ultimate: false,
        ..promised
    };
    assert_eq!(found, expected);
    registry.stop().await;
}

#[actix::test]
async fn a_path_whose_reference_is_not_valid_is_not_and_the_error_names_both() {
    let store = TestStore::new();
    let registry = store.start();
    let archive = file_nar(b"x", false);
    let promised = PathInfo {
        references: [path('b', "missing")].into(),
        ..promise(&archive)
    };
    let restored = restore(&registry, promised, &archive).await.unwrap();
    let error = register(&registry, restored, Occupied::Refused)
        .await
        .unwrap_err();
    let Error::InvalidReference { path, reference } = &error else {
        panic!("{error:?}");
    };
    assert!(path.ends_with("-restored") && reference.ends_with("-missing"));
    assert_nothing_left(&store, &registry).await;
    registry.stop().await;
}

#[actix::test]
async fn what_lies_at_the_path_without_being_valid_makes_way() {
    let store = TestStore::new();
    let registry = store.start();
    let archive = file_nar(b"new", false);
    let promised = promise(&archive);
    fs::create_dir_all(store.real_path(&promised.path).join("left/over")).unwrap();
    add(&registry, promised.clone(), &archive).await;
    let object = store.real_path(&promised.path);
    assert_eq!(fs::read(object).unwrap(), b"new");
    registry.store.send(AwaitCleanUp).await.unwrap().unwrap();
    assert_eq!(store.staged(), BTreeSet::new());
    registry.stop().await;
}

#[actix::test]
async fn an_archive_that_is_not_what_was_promised_names_what_was_wanted_and_what_came() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let archive = file_nar(b"contents", false);
    let good = promise(&archive);
    let wrong = PathInfo {
        nar_hash: NarHash::from_sha256([7; 32]),
        ..good.clone()
    };
    let reason = refusal(&registry, wrong.clone(), &archive).await;
    for hash in [wrong.nar_hash, good.nar_hash] {
        assert!(reason.contains(&hash.to_hash().to_sri()), "{reason}");
    }
    let shorter = PathInfo {
        nar_size_bytes: good.nar_size_bytes - 1,
        ..good.clone()
    };
    let reason = refusal(&registry, shorter, &archive).await;
    let n_bytes = archive.len() - 1;
    assert!(
        reason.contains(&format!("larger than the {n_bytes} bytes")),
        "{reason}"
    );
    let longer = PathInfo {
        nar_size_bytes: good.nar_size_bytes + 1,
        ..good.clone()
    };
    let reason = refusal(&registry, longer.clone(), &archive).await;
    assert!(reason.contains("bytes where"), "{reason}");
    let trailing = [&archive[..], &[0]].concat();
    let reason = refusal(&registry, longer, &trailing).await;
    assert!(reason.contains("bytes follow the archive"), "{reason}");
    let reason = refusal(&registry, good.clone(), &archive[..archive.len() - 9]).await;
    assert!(reason.contains("ends too early"), "{reason}");
    assert_nothing_left(&store, &registry).await;
    registry.stop().await;
}

/// A source that counts how much was taken from it, and never ends.
struct Endless(std::sync::mpsc::Sender<usize>);

impl Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        buffer.fill(0);
        self.0.send(buffer.len()).unwrap();
        Ok(buffer.len())
    }
}

#[actix::test]
async fn of_an_archive_that_never_ends_one_byte_more_than_promised_is_read() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let archive = file_nar(b"x", false);
    let (taken, counts) = std::sync::mpsc::channel();
    let head = Cursor::new(archive.clone());
    let request = RestoreNar {
        promised: promise(&archive),
        contents: Box::new(head.chain(Endless(taken))),
        objects: None,
        cancel: CancelFlag::default(),
    };
    let answer = registry.store.send(request).await.unwrap();
    assert!(matches!(answer, Err(RestoreError::Broken(_))), "{answer:?}");
    assert_eq!(counts.iter().sum::<usize>(), 1);
    assert_nothing_left(&store, &registry).await;
    registry.stop().await;
}

#[actix::test]
async fn a_tree_as_deep_as_is_allowed_is_made_and_goes_with_its_value() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let mut writer = NarWriter::new(Vec::new());
    writer.enter_directory(None).unwrap();
    for _ in 1..nar::MAX_DEPTH {
        writer.enter_directory(Some(b"d".into())).unwrap();
    }
    for _ in 0..nar::MAX_DEPTH {
        writer.leave_directory().unwrap();
    }
    let (archive, _) = writer.finish().unwrap();
    let restored = restore(&registry, promise(&archive), &archive).await;
    drop(restored.unwrap());
    assert_nothing_left(&store, &registry).await;
    registry.stop().await;
}

struct Panicking;

impl Read for Panicking {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("on purpose")
    }
}

struct Failing;

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("the link is down"))
    }
}

#[actix::test]
async fn a_reader_that_panics_or_fails_costs_its_own_archive_only() {
    let store = TestStore::new();
    let registry = store.start_with(&Settings {
        max_substitution_jobs: 1,
        ..Settings::default()
    });
    registry.store.send(AwaitCleanUp).await.unwrap().unwrap();
    let archive = file_nar(&[7; 100], false);
    let head = || Cursor::new(archive[..150].to_vec());
    let request = |contents| RestoreNar {
        promised: promise(&archive),
        contents,
        objects: None,
        cancel: CancelFlag::default(),
    };
    let panicking = request(Box::new(head().chain(Panicking)));
    let answer = registry.store.send(panicking).await.unwrap();
    let Err(RestoreError::Store(Error::WorkerLost { name: "restore" })) = answer else {
        panic!("{answer:?}");
    };
    let failing = request(Box::new(head().chain(Failing)));
    let answer = registry.store.send(failing).await.unwrap();
    let Err(RestoreError::Source { path, source }) = answer else {
        panic!("{answer:?}");
    };
    assert!(path.ends_with("-restored"));
    assert_eq!(source.to_string(), "the link is down");
    assert_nothing_left(&store, &registry).await;
    add(&registry, promise(&archive), &archive).await;
    registry.stop().await;
}

/// Tells when it is asked for the first time, and gives what comes through a pipe.
struct Watched(Option<tokio::sync::oneshot::Sender<()>>, io::PipeReader);

impl Read for Watched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_read = self.1.read(buffer);
        if let Some(reading) = self.0.take() {
            reading.send(()).unwrap();
        }
        n_read
    }
}

#[actix::test]
async fn a_restore_whose_reader_blocks_is_cancelled_when_the_reader_is_ended() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let archive = file_nar(&[7; 4096], false);
    let (reader, mut writer) = io::pipe().unwrap();
    writer.write_all(&archive[..2000]).unwrap();
    let (begun, reading) = tokio::sync::oneshot::channel();
    let cancel = CancelFlag::default();
    let request = RestoreNar {
        promised: promise(&archive),
        contents: Box::new(Watched(Some(begun), reader)),
        objects: None,
        cancel: cancel.clone(),
    };
    let restoring = actix::spawn(registry.store.send(request));
    reading.await.unwrap();
    // What else is wanted is not kept waiting.
    let small = file_nar(b"x", false);
    let other = PathInfo {
        path: path('b', "other"),
        ..promise(&small)
    };
    drop(restore(&registry, other, &small).await.unwrap());
    cancel.raise();
    drop(writer);
    let answer = restoring.await.unwrap().unwrap();
    assert!(matches!(answer, Err(RestoreError::Cancelled)), "{answer:?}");
    assert_nothing_left(&store, &registry).await;
    registry.stop().await;
}

/// Changes what is valid behind the registry's back.
fn damage(object: &Path) {
    fs::set_permissions(object, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(object, "damaged").unwrap();
}

/// A thread that looks at a path all the time.
struct Watch {
    is_over: std::sync::Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Watch {
    fn over(object: &Path) -> Self {
        let is_over = std::sync::Arc::new(AtomicBool::new(false));
        let (object, until) = (object.to_owned(), std::sync::Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while !until.load(Ordering::Acquire) {
                fs::symlink_metadata(&object).unwrap();
            }
        });
        Self { is_over, thread }
    }

    /// Ends it; fails if it ever saw nothing at the path.
    fn end(self) {
        self.is_over.store(true, Ordering::Release);
        self.thread.join().unwrap();
    }
}

#[actix::test]
async fn what_is_repaired_is_never_missing_and_keeps_its_signatures() {
    let store = TestStore::new();
    let registry = store.start();
    let archive = file_nar(b"good", false);
    let promised = PathInfo {
        signatures: ["k-1:abcd".to_owned()].into(),
        ..promise(&archive)
    };
    add(&registry, promised.clone(), &archive).await;
    let object = store.real_path(&promised.path);
    let again = PathInfo {
        signatures: ["k-2:efgh".to_owned()].into(),
        ..promised.clone()
    };
    let watch = Watch::over(&object);
    for _ in 0..20 {
        damage(&object);
        let restored = restore(&registry, again.clone(), &archive).await.unwrap();
        register(&registry, restored, Occupied::Repaired)
            .await
            .unwrap();
        assert_eq!(fs::read(&object).unwrap(), b"good");
    }
    watch.end();
    let question = QueryGoodPaths {
        paths: vec![promised.path.clone()],
    };
    let good = registry.store.send(question).await.unwrap().unwrap();
    assert!(good.contains(&promised.path));
    let found = info(&registry, &promised.path).await.unwrap();
    let both = ["k-1:abcd".to_owned(), "k-2:efgh".to_owned()];
    assert_eq!(found.signatures, both.into());
    registry.stop().await;
    assert_eq!(store.staged(), BTreeSet::new());
}

#[actix::test]
async fn equal_files_are_shared_where_that_is_wanted() {
    let store = TestStore::new();
    let registry = store.start_with(&Settings {
        auto_optimise_store: true,
        ..Settings::default()
    });
    let archive = directory_nar(&[(b"a", FILE), (b"b", FILE)]);
    let promised = promise(&archive);
    add(&registry, promised.clone(), &archive).await;
    let object = store.real_path(&promised.path);
    let inode = |name| fs::metadata(object.join(name)).unwrap().ino();
    assert_eq!(inode("a"), inode("b"));
    assert_canonical(&object);
    registry.stop().await;
}

#[actix::test]
async fn a_derivation_is_checked_before_it_is_valid_and_its_outputs_are_recorded() {
    let Some(fixtures) = fixtures() else { return };
    let store = TestStore::new();
    let registry = store.start();
    let mut drvs: Vec<_> = fs::read_dir(fixtures.join("drv"))
        .unwrap()
        .map(|listed| listed.unwrap().path())
        .collect();
    drvs.sort();
    let mut n_added = 0;
    for file in drvs {
        let text = fs::read(&file).unwrap();
        let drv: StorePath = file.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let name = drv.name().strip_suffix(".drv").unwrap();
        let store_dir = store_model::StoreDir::default();
        let derivation = store_model::Derivation::parse(&text, name, &store_dir).unwrap();
        if !derivation.input_derivations.is_empty() || !derivation.input_sources.is_empty() {
            continue;
        }
        let archive = file_nar(&text, false);
        let promised = PathInfo {
            path: drv.clone(),
            ..promise(&archive)
        };
        add(&registry, promised, &archive).await;
        for (_, output) in derivation.known_outputs() {
            let question = QueryValidDerivers {
                path: output.clone(),
            };
            let derivers = registry.store.send(question).await.unwrap().unwrap();
            assert!(derivers.contains(&drv));
        }
        n_added += 1;
    }
    assert!(n_added > 2, "{n_added}");
    registry.stop().await;
}

#[actix::test]
async fn a_derivation_at_the_path_of_another_is_refused() {
    let store = TestStore::new();
    let registry = store.start();
    let text = br#"Derive([("out","/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x","","")],[],[],"x","b",[],[("out","/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-x")])"#;
    let archive = file_nar(text, false);
    let promised = PathInfo {
        path: path('a', "x.drv"),
        ..promise(&archive)
    };
    let error = restore(&registry, promised, &archive).await.unwrap_err();
    // The fault of whoever sent it: another may send the right one.
    assert!(matches!(error, RestoreError::Broken(_)), "{error:?}");
    assert!(error.to_string().contains("has the contents of"), "{error}");
    assert_nothing_left(&store, &registry).await;
    registry.stop().await;
}
