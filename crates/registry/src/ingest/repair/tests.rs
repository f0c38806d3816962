//! What takes the place of what is corrupt, and what is known of it then.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use actix::{Context, Handler, Message, ResponseFuture};
use store_model::derivation::IngestionMethod;
use store_model::{Hash, HashAlgorithm};

use super::*;
use crate::messages::{
    LockAttempt, Occupied, QueryGoodPaths, QueryPathInfo, RegisterByContents, RegisterError,
    TryLockOutputs,
};
use crate::testing::{Scratch, TestStore, path};
use crate::{Registry, StoreRegistry};

fn out() -> StorePath {
    path('a', "out")
}

/// What a builder leaves whose output is a file with this text, which may mention other paths.
fn made(store: &TestStore, text: &str) -> RegisterOutputs {
    let mut scratch = Scratch::new(store);
    for letter in ['b', 'c'] {
        scratch.may_mention(&path(letter, "other"));
    }
    let file = scratch.output("out", &out());
    fs::create_dir(&file).unwrap();
    fs::write(file.join("file"), text).unwrap();
    scratch.finish()
}

fn repair(store: &TestStore, text: &str) -> RegisterOutputs {
    RegisterOutputs {
        occupied: Occupied::Repaired,
        ..made(store, text)
    }
}

/// Makes other paths valid, which an output may refer to.
async fn add_others(store: &TestStore, registry: &Registry) {
    for letter in ['b', 'c'] {
        let mut scratch = Scratch::new(store);
        let file = scratch.output("out", &path(letter, "other"));
        fs::write(file, "other").unwrap();
        registry.register(scratch.finish()).await.unwrap();
    }
}

async fn info(registry: &Registry) -> PathInfo {
    let question = QueryPathInfo { path: out() };
    let info = registry.store.send(question).await.unwrap().unwrap();
    info.unwrap()
}

async fn is_good(registry: &Registry) -> bool {
    let question = QueryGoodPaths { paths: vec![out()] };
    let good = registry.store.send(question).await.unwrap().unwrap();
    good.contains(&out())
}

fn read(store: &TestStore) -> String {
    fs::read_to_string(store.real_path(&out()).join("file")).unwrap()
}

/// Changes the contents behind the registry's back.
fn damage(store: &TestStore) {
    let dir = store.real_path(&out());
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(dir.join("file")).unwrap();
    fs::write(dir.join("file"), "damaged").unwrap();
}

#[actix::test]
async fn what_is_repaired_is_as_it_was_and_so_are_its_signatures() {
    let store = TestStore::new();
    let registry = store.start();
    add_others(&store, &registry).await;
    let text = format!("to {}", path('b', "other"));
    registry.register(made(&store, &text)).await.unwrap();
    registry.stop().await;
    let database = rusqlite::Connection::open(store.database()).unwrap();
    let sign = "update ValidPaths set sigs = 'cache:abcd', registrationTime = 7 where path like ?";
    assert_eq!(database.execute(sign, ["%-out"]).unwrap(), 1);
    damage(&store);
    let registry = store.start();
    let before = info(&registry).await;
    assert!(!is_good(&registry).await);
    registry.register(repair(&store, &text)).await.unwrap();
    assert!(is_good(&registry).await);
    assert_eq!(info(&registry).await, before);
    assert_eq!(read(&store), text);
    registry.stop().await;
    assert_eq!(store.staged(), BTreeSet::new());
}

#[actix::test]
async fn what_is_made_otherwise_refers_to_what_it_mentions_and_to_nothing_else() {
    let store = TestStore::new();
    let registry = store.start();
    add_others(&store, &registry).await;
    let text = |letter| format!("to {}", path(letter, "other"));
    registry.register(made(&store, &text('b'))).await.unwrap();
    registry.register(repair(&store, &text('c'))).await.unwrap();
    let info = info(&registry).await;
    assert_eq!(info.references, [path('c', "other")].into());
    assert_eq!(read(&store), text('c'));
    registry.stop().await;
}

#[actix::test]
async fn a_repair_that_cannot_be_registered_leaves_an_object_and_the_row() {
    let store = TestStore::new();
    let registry = store.start();
    registry.register(made(&store, "x")).await.unwrap();
    damage(&store);
    let before = info(&registry).await;
    // Nobody has made this one valid.
    let text = format!("to {}", path('b', "other"));
    let refused = registry.register(repair(&store, &text)).await;
    assert!(matches!(
        refused,
        Err(RegisterError::Store(Error::InvalidReference { .. }))
    ));
    assert_eq!(info(&registry).await, before);
    assert_eq!(read(&store), text);
    registry.register(repair(&store, "x")).await.unwrap();
    assert_eq!(info(&registry).await, before);
    assert_eq!(read(&store), "x");
    registry.stop().await;
}

#[actix::test]
async fn a_valid_path_that_is_not_to_be_repaired_is_not_replaced() {
    let store = TestStore::new();
    let registry = store.start();
    registry.register(made(&store, "x")).await.unwrap();
    let refused = registry.register(made(&store, "y")).await;
    assert!(matches!(
        refused,
        Err(RegisterError::Store(Error::PathExists { .. }))
    ));
    assert_eq!(read(&store), "x");
    registry.stop().await;
}

/// Has a directory with such a file replace the output as on a file system that knows no exchange.
#[derive(Message)]
#[rtype(result = "Result<bool, Error>")]
struct ReplaceInTwoSteps(&'static str);

impl Handler<ReplaceInTwoSteps> for StoreRegistry {
    type Result = ResponseFuture<Result<bool, Error>>;

    fn handle(&mut self, replace: ReplaceInTwoSteps, _: &mut Context<Self>) -> Self::Result {
        self.run(|queues| async move {
            let replace = move |ingest: &mut Ingest| {
                let staged = Staged::new(ingest.trash.clone());
                let dir = ingest.trash.staging.path_of(&staged.name);
                fs::create_dir(&dir).unwrap();
                fs::write(dir.join("file"), replace.0).unwrap();
                fs::set_permissions(&dir, fs::Permissions::from_mode(0o555)).unwrap();
                let displaced = ingest.replace_in_two_steps(staged, out())?;
                Ok(displaced.is_some())
            };
            queues.ingest.run(replace).await
        })
    }
}

#[actix::test]
async fn without_an_exchange_the_old_object_is_put_aside_first() {
    let store = TestStore::new();
    let registry = store.start();
    let replace = async |text| {
        let replaced = registry.store.send(ReplaceInTwoSteps(text)).await;
        (replaced.unwrap().unwrap(), read(&store))
    };
    assert_eq!(replace("new").await, (false, "new".to_owned()));
    assert_eq!(replace("newer").await, (true, "newer".to_owned()));
    registry.stop().await;
    assert_eq!(store.staged(), BTreeSet::new());
}

/// What a builder leaves whose output was promised to be something else.
fn broken_promise(store: &TestStore) -> RegisterByContents {
    let mut scratch = Scratch::new(store);
    let hash = Hash::digest(HashAlgorithm::Sha256, b"promised");
    let file = scratch.fixed(&out(), IngestionMethod::Flat, hash);
    fs::write(file, "made").unwrap();
    RegisterByContents {
        candidate: scratch.finish(),
    }
}

#[actix::test]
async fn a_hashed_output_is_at_the_path_of_its_contents_and_does_not_wait_for_its_lock() {
    let store = TestStore::new();
    let registry = store.start();
    let found = registry.store.send(broken_promise(&store)).await.unwrap();
    let found = found.unwrap();
    assert_ne!(found.info.path, out());
    assert_eq!(found.roots.paths().collect::<Vec<_>>(), [&found.info.path]);
    let contents = fs::read_to_string(store.real_path(&found.info.path)).unwrap();
    assert_eq!(contents, "made");
    // Again, when it is valid and somebody has its lock.
    let paths = [found.info.path.clone()].into();
    let locked = registry.locks.send(TryLockOutputs { paths }).await.unwrap();
    assert!(matches!(locked, Ok(LockAttempt::Acquired(_))));
    let again = registry.store.send(broken_promise(&store)).await.unwrap();
    assert_eq!(again.unwrap().info.path, found.info.path);
    registry.stop().await;

    let other = TestStore::new();
    let registry = other.start();
    let paths = [found.info.path.clone()].into();
    let locked = registry.locks.send(TryLockOutputs { paths }).await.unwrap();
    let refused = registry.store.send(broken_promise(&other)).await.unwrap();
    assert!(matches!(
        refused,
        Err(RegisterError::Store(Error::Locked { .. }))
    ));
    drop(locked);
    registry.stop().await;
    assert_eq!(other.objects(), BTreeSet::new());
}
