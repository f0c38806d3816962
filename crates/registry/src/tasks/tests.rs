//! Adding texts and sources, discarding leftovers, and looking whether contents are good.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use store_model::HashAlgorithm;
use store_model::derivation::IngestionMethod;

use super::*;
use crate::messages::{
    DiscardInvalidPaths, QueryClosure, QueryGoodPaths, QueryPathFromHashPart, QueryPathInfo,
    QueryReferrers, QueryValidDerivers, QueryValidPaths, TryLockOutputs,
};
use crate::start::Registry;
use crate::testing::{Scratch, TestStore, fixtures, has_nix, path, until_waiting};

async fn text(
    registry: &Registry,
    name: &str,
    contents: &[u8],
    references: &[&StorePath],
) -> Result<StorePath, Error> {
    let request = AddText {
        name: name.to_owned(),
        contents: contents.to_owned(),
        references: references.iter().copied().cloned().collect(),
    };
    let added = registry.store.send(request).await.unwrap();
    added.map(|added| added.path)
}

async fn source(registry: &Registry, source: &Path, name: &str) -> Result<StorePath, Error> {
    add(
        registry,
        source,
        name,
        IngestionMethod::Recursive,
        HashAlgorithm::Sha256,
    )
    .await
}

async fn add(
    registry: &Registry,
    source: &Path,
    name: &str,
    method: IngestionMethod,
    algorithm: HashAlgorithm,
) -> Result<StorePath, Error> {
    let request = AddPath {
        source: source.to_owned(),
        name: name.to_owned(),
        method,
        algorithm,
    };
    let added = registry.store.send(request).await.unwrap();
    added.map(|added| added.path)
}

async fn info(registry: &Registry, path: &StorePath) -> PathInfo {
    let question = QueryPathInfo { path: path.clone() };
    registry
        .store
        .send(question)
        .await
        .unwrap()
        .unwrap()
        .unwrap()
}

#[actix::test]
async fn a_source_tree_gets_the_path_and_the_row_that_nix_gives_it() {
    if !has_nix("a_source_tree_gets_the_path_and_the_row_that_nix_gives_it") {
        return;
    }
    let (ours, theirs) = (TestStore::new(), TestStore::new());
    let tree = ours.root.join("tree");
    fs::create_dir_all(tree.join("sub/empty")).unwrap();
    fs::write(tree.join("sub/file"), "contents").unwrap();
    fs::write(tree.join("tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(tree.join("tool"), fs::Permissions::from_mode(0o750)).unwrap();
    symlink("../nowhere", tree.join("link")).unwrap();
    let registry = ours.start();
    let added = source(&registry, &tree, "tree").await.unwrap();
    assert_eq!(source(&registry, &tree, "tree").await.unwrap(), added);
    let told = theirs.nix_store(&["--add", tree.to_str().unwrap()]);
    assert_eq!(told.trim(), format!("/nix/store/{added}"));
    for store in [&ours, &theirs] {
        assert_eq!(store.objects(), [added.to_string()].into());
    }
    let row = |store: &TestStore| -> Vec<Option<String>> {
        let connection = rusqlite::Connection::open(store.database()).unwrap();
        let sql = "select hash, deriver, cast(narSize as text), cast(ultimate as text), sigs, ca \
                   from ValidPaths";
        let read = |row: &rusqlite::Row<'_>| (0..6).map(|idx| row.get(idx)).collect();
        connection.query_row(sql, [], read).unwrap()
    };
    assert_eq!(row(&ours), row(&theirs));
    registry.stop().await;
    ours.nix_store(&["--verify", "--check-contents"]);
    // What nix-store reads out of our store is the tree.
    let printed = format!("/nix/store/{added}");
    assert_eq!(
        ours.nix_store(&["-q", "--hash", &printed]),
        theirs.nix_store(&["-q", "--hash", &printed])
    );
}

#[actix::test]
async fn a_flat_file_gets_the_path_that_nix_gives_it_and_is_not_executable() {
    if !has_nix("a_flat_file_gets_the_path_that_nix_gives_it_and_is_not_executable") {
        return;
    }
    let (ours, theirs) = (TestStore::new(), TestStore::new());
    let file = ours.root.join("tool");
    fs::write(&file, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let registry = ours.start();
    for algorithm in HashAlgorithm::ALL {
        let method = IngestionMethod::Flat;
        let added = add(&registry, &file, "tool", method, algorithm)
            .await
            .unwrap();
        let file = file.to_str().unwrap();
        let told = theirs.nix_store(&["--add-fixed", algorithm.name(), file]);
        assert_eq!(told.trim(), format!("/nix/store/{added}"));
        let mode = fs::metadata(ours.real_path(&added)).unwrap().mode();
        assert_eq!(mode, 0o100_444);
    }
    registry.stop().await;
    ours.nix_store(&["--verify", "--check-contents"]);
}

#[actix::test]
async fn a_source_with_a_socket_is_refused_by_the_sockets_path() {
    let store = TestStore::new();
    let registry = store.start();
    let tree = store.root.join("tree");
    fs::create_dir_all(tree.join("a/b")).unwrap();
    drop(UnixListener::bind(tree.join("a/b/sock")).unwrap());
    let error = source(&registry, &tree, "tree").await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains("tree/a/b/sock' is a socket"), "{message}");
    registry.stop().await;
    assert_eq!(store.objects(), BTreeSet::new());
}

#[actix::test]
async fn a_name_that_no_store_path_may_have_is_refused() {
    let store = TestStore::new();
    let registry = store.start();
    let refused = text(&registry, "a b", b"x", &[]).await;
    assert!(matches!(refused, Err(Error::Name { .. })), "{refused:?}");
    let refused = source(&registry, Path::new("/etc/hostname"), ".hidden/../x").await;
    assert!(matches!(refused, Err(Error::Name { .. })), "{refused:?}");
    registry.stop().await;
}

#[actix::test]
async fn a_text_with_other_references_has_another_path() {
    let store = TestStore::new();
    let registry = store.start();
    let first = text(&registry, "a", b"same", &[]).await.unwrap();
    let second = text(&registry, "a", b"same", &[&first]).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(text(&registry, "a", b"same", &[]).await.unwrap(), first);
    let row = info(&registry, &second).await;
    assert_eq!(row.references, [first.clone()].into());
    assert!(row.content_address.unwrap().starts_with("text:sha256:"));
    let question = QueryReferrers {
        path: first.clone(),
    };
    let referrers = registry.store.send(question).await.unwrap().unwrap();
    assert_eq!(referrers, [second.clone()].into());
    let roots = [second.clone()].into();
    let closure = registry.store.send(QueryClosure { roots }).await.unwrap();
    assert_eq!(closure.unwrap(), [first, second.clone()].into());
    let hash_part = second.hash_part().to_owned();
    let found = registry.store.send(QueryPathFromHashPart { hash_part });
    assert_eq!(found.await.unwrap().unwrap(), Some(second));
    let stranger = text(&registry, "a", b"x", &[&path('c', "c")]).await;
    assert!(
        matches!(stranger, Err(Error::InvalidReference { .. })),
        "{stranger:?}"
    );
    let roots = [path('c', "c")].into();
    let closure = registry.store.send(QueryClosure { roots }).await.unwrap();
    assert!(matches!(closure, Err(Error::InvalidPath { .. })));
    registry.stop().await;
}

#[actix::test]
async fn derivations_are_registered_with_their_outputs_as_nix_does() {
    let Some(fixtures) = fixtures() else { return };
    let store = TestStore::new();
    let registry = store.start();
    let name = "kxfhmynp3yqb3qzdymks3f3gg7348flw-simple.drv";
    let contents = fs::read(fixtures.join("drv").join(name)).unwrap();
    let builder = path('0', "x");
    let wanted = text(&registry, "simple.drv", &contents, &[&builder]).await;
    // Its input is not there yet.
    assert!(
        matches!(wanted, Err(Error::InvalidReference { .. })),
        "{wanted:?}"
    );
    let drv = store_model::Derivation::parse(&contents, "simple", &store.layout().store_dir);
    let drv = drv.unwrap();
    // Its input is a source of the fixtures.
    let inputs: Vec<&StorePath> = drv.input_sources.iter().collect();
    assert!(drv.input_derivations.is_empty());
    let nar_source = fixtures.join("src/tinybuild");
    let tinybuild = source(&registry, &nar_source, "tinybuild").await.unwrap();
    assert_eq!(inputs, [&tinybuild]);
    let added = text(&registry, "simple.drv", &contents, &inputs)
        .await
        .unwrap();
    assert_eq!(added.to_string(), name);
    let out = drv.known_outputs().next().unwrap().1.clone();
    let question = QueryValidDerivers { path: out.clone() };
    let derivers = registry.store.send(question).await.unwrap().unwrap();
    assert_eq!(derivers, [added.clone()].into());
    registry.stop().await;
    if has_nix("derivations_are_registered_with_their_outputs_as_nix_does") {
        let printed = format!("/nix/store/{added}");
        let outputs = store.nix_store(&["-q", "--outputs", &printed]);
        assert_eq!(outputs.trim(), format!("/nix/store/{out}"));
    }
}

#[actix::test]
async fn leftovers_are_discarded_and_valid_paths_left_alone() {
    let store = TestStore::new();
    let registry = store.start();
    let valid = text(&registry, "valid", b"x", &[]).await.unwrap();
    let leftover = path('a', "leftover");
    let dir = store.real_path(&leftover);
    fs::create_dir_all(dir.join("sub")).unwrap();
    fs::set_permissions(dir.join("sub"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).unwrap();
    let paths = vec![valid.clone(), leftover, path('b', "absent")];
    let request = DiscardInvalidPaths { paths };
    registry.store.send(request).await.unwrap().unwrap();
    registry.locks_are_free().await;
    assert_eq!(store.objects(), [valid.to_string()].into());
    registry.stop().await;
    let left = fs::read_dir(store.layout().real_store_dir).unwrap().count();
    assert_eq!(left, 2, "the valid path and .links");
}

#[actix::test]
async fn contents_that_were_tampered_with_are_not_good() {
    let store = TestStore::new();
    let registry = store.start();
    let mut added = Vec::new();
    for name in ["kept", "changed", "deleted"] {
        added.push(text(&registry, name, name.as_bytes(), &[]).await.unwrap());
    }
    registry.stop().await;
    let changed = store.real_path(&added[1]);
    fs::remove_file(&changed).unwrap();
    fs::write(&changed, "chanGed").unwrap();
    fs::remove_file(store.real_path(&added[2])).unwrap();
    let registry = store.start();
    for _ in 0..2 {
        let mut paths = added.clone();
        paths.push(path('c', "invalid"));
        let good = registry.store.send(QueryGoodPaths { paths }).await.unwrap();
        assert_eq!(good.unwrap(), [added[0].clone()].into());
        // The second answer is remembered, not read: the file is whole again by then.
        fs::write(&changed, "changed").unwrap();
    }
    registry.stop().await;
}

#[actix::test]
async fn a_text_whose_lock_is_held_waits_and_others_do_not() {
    let store = TestStore::new();
    let registry = store.start();
    let probe = text(&registry, "probe", b"x", &[]).await.unwrap();
    // The path of the text is known before it is added.
    let hash = store_model::Hash::digest(HashAlgorithm::Sha256, b"held");
    let store_dir = store.layout().store_dir;
    let held = store_dir
        .make_text_path("held", &hash, &BTreeSet::new())
        .unwrap();
    let paths = [held.clone()].into();
    let locks = registry.locks.send(TryLockOutputs { paths }).await.unwrap();
    let other = store.start();
    let waiting = actix::spawn(async move { (text(&other, "held", b"held", &[]).await, other) });
    for idx in 0..20 {
        let name = format!("other{idx}");
        text(&registry, &name, b"x", &[&probe]).await.unwrap();
    }
    assert!(!waiting.is_finished());
    drop(locks);
    let (added, other) = waiting.await.unwrap();
    assert_eq!(added.unwrap(), held);
    other.stop().await;
    registry.stop().await;
}

#[actix::test]
async fn nix_waits_for_our_lock_and_we_for_nothing_that_is_valid() {
    if !has_nix("nix_waits_for_our_lock_and_we_for_nothing_that_is_valid") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let file = store.root.join("file");
    fs::write(&file, "contents").unwrap();
    let twin = TestStore::new();
    let added = twin.nix_store(&["--add", file.to_str().unwrap()]);
    let added = store.layout().store_dir.parse(added.trim()).unwrap();
    let paths = [added.clone()].into();
    let locks = registry.locks.send(TryLockOutputs { paths }).await.unwrap();
    let mut nix = std::process::Command::new("nix-store")
        .arg("--store")
        .arg(&store.root)
        .arg("--add")
        .arg(&file)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut lock = store.real_path(&added).into_os_string();
    lock.push(".lock");
    until_waiting(Path::new(&lock)).await;
    assert!(nix.try_wait().unwrap().is_none());
    drop(locks);
    assert!(nix.wait().unwrap().success());
    // What Nix has just made valid is valid for us at once, even while its lock is taken.
    let paths = [added.clone()].into();
    let _locks = registry.locks.send(TryLockOutputs { paths }).await.unwrap();
    assert_eq!(source(&registry, &file, "file").await.unwrap(), added);
    registry.stop().await;
}

#[actix::test]
async fn five_programs_add_the_same_things_to_one_store_at_once() {
    if !has_nix("five_programs_add_the_same_things_to_one_store_at_once") {
        return;
    }
    let store = TestStore::new();
    let files: Vec<_> = (0..20)
        .map(|idx| {
            let file = store.root.join(format!("file{idx}"));
            fs::write(&file, format!("contents {idx}")).unwrap();
            file
        })
        .collect();
    let registries: Vec<Registry> = (0..3).map(|_| store.start()).collect();
    let mut nixes: Vec<_> = (0..2)
        .map(|_| {
            std::process::Command::new("nix-store")
                .arg("--store")
                .arg(&store.root)
                .arg("--add")
                .args(&files)
                .stdout(std::process::Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    let mut adding = Vec::new();
    for file in &files {
        for registry in &registries {
            let (registry, file) = (registry.clone(), file.clone());
            let name = file.file_name().unwrap().to_str().unwrap().to_owned();
            adding.push(actix::spawn(async move {
                source(&registry, &file, &name).await.unwrap()
            }));
        }
    }
    let mut added = BTreeSet::new();
    for adding in adding {
        added.insert(adding.await.unwrap());
    }
    for nix in &mut nixes {
        assert!(nix.wait().unwrap().success());
    }
    assert_eq!(added.len(), files.len());
    for registry in registries {
        registry.stop().await;
    }
    store.nix_store(&["--verify", "--check-contents"]);
    let connection = rusqlite::Connection::open(store.database()).unwrap();
    let verdict = connection.query_row("pragma integrity_check", [], |row| row.get(0));
    assert_eq!(verdict, Ok("ok".to_owned()));
}

#[actix::test]
async fn a_registry_that_stops_does_not_wait_for_strangers_locks() {
    let store = TestStore::new();
    let registry = store.start();
    let hash = store_model::Hash::digest(HashAlgorithm::Sha256, b"held");
    let store_dir = store.layout().store_dir;
    let held = store_dir
        .make_text_path("held", &hash, &BTreeSet::new())
        .unwrap();
    let stranger = store.start();
    let paths = [held].into();
    let locks = stranger.locks.send(TryLockOutputs { paths }).await.unwrap();
    let asking = registry.clone();
    let waiting = actix::spawn(async move { text(&asking, "held", b"held", &[]).await });
    // The request is taken up before the stop, or refused after it.
    tokio::task::yield_now().await;
    registry.stop().await;
    assert!(matches!(waiting.await.unwrap(), Err(Error::Stopped)));
    let answer = registry.store.send(QueryValidPaths { paths: vec![] }).await;
    assert!(matches!(answer.unwrap(), Err(Error::Stopped)));
    drop(locks);
    stranger.stop().await;
}

#[expect(clippy::disallowed_methods, reason = "it measures real time")]
#[actix::test]
async fn a_large_output_delays_nobody_elses_answer() {
    let store = TestStore::new();
    let registry = store.start();
    let mut scratch = Scratch::new(&store);
    let out = scratch.output("out", &path('a', "large"));
    let file = fs::File::create(out).unwrap();
    file.set_len(256 << 20).unwrap();
    let request = scratch.finish();
    let registering = actix::spawn({
        let registry = registry.clone();
        async move { registry.register(request).await }
    });
    let mut n_answers = 0;
    let mut slowest = std::time::Duration::ZERO;
    while !registering.is_finished() {
        let asked = std::time::Instant::now();
        let paths = vec![path('b', "other")];
        registry
            .store
            .send(QueryValidPaths { paths })
            .await
            .unwrap()
            .unwrap();
        slowest = slowest.max(asked.elapsed());
        n_answers += 1;
    }
    registering.await.unwrap().unwrap();
    // The bound is generous: a loaded machine may not run us at all for a while.
    assert!(n_answers > 20, "{n_answers}");
    assert!(
        slowest < std::time::Duration::from_millis(500),
        "{slowest:?}"
    );
    registry.stop().await;
}
