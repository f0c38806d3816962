//! What a build made again is compared with, and what stays of it.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::*;
use crate::Registry;
use crate::messages::{DiscardInvalidPaths, QueryPathInfo, RegisterOutputs};
use crate::testing::{Scratch, TestStore, has_nix, path};

fn out() -> StorePath {
    path('a', "out")
}

/// Leaves what a build does whose only output has a file with these contents.
fn build(store: &TestStore, contents: &str) -> Scratch {
    let mut scratch = Scratch::new(store);
    let out = scratch.output("out", &out());
    fs::create_dir(&out).unwrap();
    fs::write(out.join("same"), "same").unwrap();
    fs::write(out.join("file"), contents).unwrap();
    scratch.hand_over();
    scratch
}

fn made(store: &TestStore, contents: &str) -> RegisterOutputs {
    build(store, contents).request()
}

async fn compare(
    registry: &Registry,
    candidate: RegisterOutputs,
    with: Comparand,
    differing: DifferingOutputs,
) -> Compared {
    let request = CompareOutputs {
        candidate,
        with,
        differing,
    };
    registry.store.send(request).await.unwrap().unwrap()
}

/// Returns a store in which the output is valid with these contents.
async fn store_with(contents: &str) -> (TestStore, Registry) {
    let store = TestStore::new();
    let registry = store.start();
    registry.register(made(&store, contents)).await.unwrap();
    (store, registry)
}

async fn info(registry: &Registry) -> PathInfo {
    let question = QueryPathInfo { path: out() };
    let info = registry.store.send(question).await.unwrap().unwrap();
    info.unwrap()
}

fn check_path(store: &TestStore) -> PathBuf {
    let mut path = store.real_path(&out()).into_os_string();
    path.push(".check");
    path.into()
}

fn read(dir: &Path) -> String {
    fs::read_to_string(dir.join("file")).unwrap()
}

#[actix::test]
async fn an_output_made_again_as_it_was_is_ultimate_from_then_on() {
    let (store, registry) = store_with("x").await;
    let database = rusqlite::Connection::open(store.database()).unwrap();
    let forget = "update ValidPaths set ultimate = null, registrationTime = 7";
    assert_eq!(database.execute(forget, []).unwrap(), 1);
    let before = info(&registry).await;
    let candidate = made(&store, "x");
    let compared = compare(
        &registry,
        candidate,
        Comparand::Valid,
        DifferingOutputs::Keep,
    )
    .await;
    assert_eq!(compared.differences, []);
    let wanted = PathInfo {
        ultimate: true,
        ..before
    };
    assert_eq!(info(&registry).await, wanted);
    assert_eq!(read(&store.real_path(&out())), "x");
    assert!(!check_path(&store).exists());
    registry.stop().await;
}

#[actix::test]
async fn an_output_made_otherwise_is_described_and_kept_beside_the_valid_one() {
    let (store, registry) = store_with("one").await;
    let before = info(&registry).await;
    // What an older check left is replaced.
    fs::create_dir(check_path(&store)).unwrap();
    fs::write(check_path(&store).join("old"), "old").unwrap();
    let candidate = made(&store, "other");
    let compared = compare(
        &registry,
        candidate,
        Comparand::Valid,
        DifferingOutputs::Keep,
    )
    .await;
    let [difference] = compared.differences.as_slice() else {
        panic!("{compared:?}");
    };
    assert_eq!(difference.output, store.real_path(&out()));
    assert_eq!(difference.kept_at, Some(check_path(&store)));
    assert_eq!(
        difference.summary,
        "\"file\": 3 bytes in the earlier build, 5 in the later one, differing from offset 1 on"
    );
    assert_eq!(read(&store.real_path(&out())), "one");
    assert_eq!(info(&registry).await, before);
    assert_eq!(read(&check_path(&store)), "other");
    assert!(!check_path(&store).join("old").exists());
    for (name, mode) in [("", 0o555), ("file", 0o444)] {
        let metadata = fs::metadata(check_path(&store).join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o7777, mode, "{name}");
        assert_eq!(metadata.mtime(), 1, "{name}");
        assert_eq!(metadata.uid(), rustix::process::geteuid().as_raw());
    }
    registry.stop().await;
    if has_nix("the check's leftovers are garbage to Nix") {
        store.nix_store(&["--verify", "--check-contents"]);
    }
}

#[actix::test]
async fn without_keeping_nothing_is_left_of_an_output_that_differs() {
    let (store, registry) = store_with("one").await;
    let candidate = made(&store, "two");
    let compared = compare(
        &registry,
        candidate,
        Comparand::Valid,
        DifferingOutputs::Discard,
    )
    .await;
    assert_eq!(compared.differences.len(), 1);
    assert_eq!(compared.differences[0].kept_at, None);
    assert_eq!(
        store.objects(),
        BTreeSet::from([out().base_name().to_owned()])
    );
    registry.stop().await;
}

#[actix::test]
async fn a_valid_output_that_was_tampered_with_is_said_to_be() {
    let (store, registry) = store_with("one").await;
    let file = store.real_path(&out()).join("file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&file, "two").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o444)).unwrap();
    let candidate = made(&store, "two");
    let compared = compare(
        &registry,
        candidate,
        Comparand::Valid,
        DifferingOutputs::Discard,
    )
    .await;
    let summary = &compared.differences[0].summary;
    assert!(
        summary.contains("changed after it was registered"),
        "{summary}"
    );
    registry.stop().await;
}

#[actix::test]
async fn what_is_not_valid_cannot_be_checked() {
    let store = TestStore::new();
    let registry = store.start();
    let request = CompareOutputs {
        candidate: made(&store, "x"),
        with: Comparand::Valid,
        differing: DifferingOutputs::Keep,
    };
    let answer = registry.store.send(request).await.unwrap();
    assert!(matches!(
        answer,
        Err(RegisterError::Store(Error::InvalidPath { .. }))
    ));
    assert_eq!(store.objects(), BTreeSet::new());
    registry.stop().await;
}

#[actix::test]
async fn equal_rounds_are_one_that_can_be_registered() {
    let store = TestStore::new();
    let registry = store.start();
    let candidate = made(&store, "x");
    let first = compare(
        &registry,
        candidate,
        Comparand::Nothing,
        DifferingOutputs::Keep,
    )
    .await;
    assert_eq!(store.objects(), BTreeSet::new());
    assert_eq!(store.staged().len(), 1);
    let scratch = build(&store, "x");
    let second = compare(
        &registry,
        scratch.request(),
        Comparand::Round(first.round.unwrap()),
        DifferingOutputs::Keep,
    )
    .await;
    assert_eq!(second.differences, []);
    assert!(second.round.is_some());
    let register = RegisterOutputs {
        builder_uid: second.owner_uid,
        ..scratch.request()
    };
    registry.register(register).await.unwrap();
    assert_eq!(read(&store.real_path(&out())), "x");
    drop(second.round);
    registry.stop().await;
    assert_eq!(
        store.objects(),
        BTreeSet::from([out().base_name().to_owned()])
    );
}

#[actix::test]
async fn a_round_that_differs_is_shown_beside_the_earlier_one_and_can_be_discarded() {
    let store = TestStore::new();
    let registry = store.start();
    let candidate = made(&store, "one");
    let first = compare(
        &registry,
        candidate,
        Comparand::Nothing,
        DifferingOutputs::Show,
    )
    .await;
    let candidate = made(&store, "two");
    let second = compare(
        &registry,
        candidate,
        Comparand::Round(first.round.unwrap()),
        DifferingOutputs::Show,
    )
    .await;
    assert!(second.round.is_none());
    assert_eq!(
        second.differences[0].summary,
        "\"file\": 3 bytes that differ from offset 0 on"
    );
    assert_eq!(read(&check_path(&store)), "one");
    assert_eq!(read(&store.real_path(&out())), "two");
    let discard = DiscardInvalidPaths { paths: vec![out()] };
    registry.store.send(discard).await.unwrap().unwrap();
    assert!(!store.real_path(&out()).exists());
    registry.stop().await;
}

#[actix::test]
async fn a_comparison_that_nobody_wants_any_more_ends() {
    let (store, registry) = store_with("one").await;
    let candidate = made(&store, "two");
    candidate.cancel.raise();
    let request = CompareOutputs {
        candidate,
        with: Comparand::Valid,
        differing: DifferingOutputs::Keep,
    };
    let answer = registry.store.send(request).await.unwrap();
    assert!(matches!(answer, Err(RegisterError::Cancelled)));
    assert!(!check_path(&store).exists());
    registry.stop().await;
}
