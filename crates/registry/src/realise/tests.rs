//! Outputs that get their paths when they are there, and what is remembered of them.

use std::fs;
use std::path::PathBuf;

use store_model::{Hash, HashAlgorithm, IngestionMethod, Settings};

use super::*;
use crate::messages::{
    NoteRealisations, OutputKind, QueryPathInfo, QueryValidPaths, TryLockOutputs,
};
use crate::start::Registry;
use crate::testing::{Canary, Scratch, TestStore, is_root, path};

fn start(store: &TestStore) -> Registry {
    let mut settings = Settings::default();
    settings
        .experimental_features
        .insert("ca-derivations".to_owned());
    store.start_with(&settings)
}

/// An output whose builder is told this path, to be hashed as an archive.
fn floating(scratch: &mut Scratch, name: &str, provisional: &StorePath) -> PathBuf {
    let kind = OutputKind::Floating {
        method: IngestionMethod::Recursive,
        algorithm: HashAlgorithm::Sha256,
    };
    scratch.of_kind(name, provisional, kind)
}

fn request(scratch: &Scratch) -> RegisterFloatingOutputs {
    RegisterFloatingOutputs {
        made: scratch.finish(),
        settled: BTreeMap::new(),
    }
}

async fn register(
    registry: &Registry,
    request: RegisterFloatingOutputs,
) -> Result<BTreeMap<OutputName, StorePath>, RegisterError> {
    let registered = registry.store.send(request).await.unwrap();
    registered.map(|registered| registered.outputs)
}

fn id(digit: u8) -> DrvOutput {
    DrvOutput {
        drv_hash: Hash::digest(HashAlgorithm::Sha256, &[digit]),
        output_name: OutputName::default(),
    }
}

fn name(name: &str) -> OutputName {
    name.parse().unwrap()
}

#[actix::test]
async fn outputs_that_mention_themselves_and_each_other_say_the_paths_that_there_are() {
    let store = TestStore::new();
    let registry = start(&store);
    let mut made = Vec::new();
    // Whatever path the builder was told, the same comes of it.
    for [first, second] in [['a', 'b'], ['c', 'd']] {
        let (out_path, dev_path) = (path(first, "x"), path(second, "x-dev"));
        let mut scratch = Scratch::new(&store);
        let out = floating(&mut scratch, "out", &out_path);
        let dev = floating(&mut scratch, "dev", &dev_path);
        fs::create_dir(&out).unwrap();
        fs::write(
            out.join("both"),
            format!("/nix/store/{out_path} /nix/store/{dev_path}"),
        )
        .unwrap();
        std::os::unix::fs::symlink(format!("/nix/store/{dev_path}/y"), out.join("link")).unwrap();
        fs::create_dir(out.join("sub")).unwrap();
        fs::write(out.join("sub").join(out_path.base_name()), "x").unwrap();
        fs::write(&dev, format!("{dev_path}")).unwrap();
        made.push(register(&registry, request(&scratch)).await.unwrap());
    }
    assert_eq!(made[0], made[1]);
    let (out, dev) = (&made[0][&name("out")], &made[0][&name("dev")]);
    let read = |path: PathBuf| fs::read_to_string(path).unwrap();
    let real_out = store.real_path(out);
    assert_eq!(
        read(real_out.join("both")),
        format!("/nix/store/{out} /nix/store/{dev}")
    );
    assert_eq!(read(store.real_path(dev)), dev.to_string());
    let target = fs::read_link(real_out.join("link")).unwrap();
    assert_eq!(target, PathBuf::from(format!("/nix/store/{dev}/y")));
    assert!(real_out.join("sub").join(out.base_name()).exists());
    let question = QueryPathInfo { path: out.clone() };
    let info = registry
        .store
        .send(question)
        .await
        .unwrap()
        .unwrap()
        .unwrap();
    assert_eq!(info.references, [out.clone(), dev.clone()].into());
    assert!(info.content_address.unwrap().starts_with("fixed:r:sha256:"));
    registry.locks_are_free().await;
    assert_eq!(store.objects().len(), 2);
    registry.stop().await;
    assert!(store.staged().is_empty());
}

#[actix::test]
async fn an_output_that_is_valid_already_is_mentioned_by_its_own_path() {
    let store = TestStore::new();
    let registry = start(&store);
    let (out_path, dev_path, valid) = (path('a', "x"), path('b', "x-dev"), path('c', "x-dev"));
    let mut scratch = Scratch::new(&store);
    let out = floating(&mut scratch, "out", &out_path);
    scratch.may_mention(&dev_path);
    fs::write(&out, format!("{dev_path}")).unwrap();
    // A path that is referred to must be valid.
    let mut before = Scratch::new(&store);
    fs::write(before.output("dev", &valid), "x").unwrap();
    registry.register(before.finish()).await.unwrap();
    let request = RegisterFloatingOutputs {
        settled: BTreeMap::from([(dev_path, valid.clone())]),
        ..request(&scratch)
    };
    let registered = register(&registry, request).await.unwrap();
    let contents = fs::read_to_string(store.real_path(&registered[&name("out")])).unwrap();
    assert_eq!(contents, valid.to_string());
    registry.stop().await;
}

#[actix::test]
async fn the_lock_on_the_path_is_waited_for_until_nobody_wants_it_any_more() {
    let store = TestStore::new();
    let registry = start(&store);
    // All builders share a directory, so nothing is asked before all have ended.
    let made = |digit| {
        let mut scratch = Scratch::new(&store);
        fs::write(floating(&mut scratch, "out", &path(digit, "x")), "x").unwrap();
        request(&scratch)
    };
    let first = register(&registry, made('a')).await.unwrap();
    let paths: BTreeSet<StorePath> = first.values().cloned().collect();
    let [early, given_up, patient] = ['b', 'c', 'd'].map(made);
    let attempt = registry.locks.send(TryLockOutputs { paths }).await.unwrap();
    let LockAttempt::Acquired(locks) = attempt.unwrap() else {
        panic!("nobody else has it");
    };
    early.made.cancel.raise();
    let answer = register(&registry, early).await;
    assert!(
        matches!(answer, Err(RegisterError::Cancelled)),
        "{answer:?}"
    );

    let cancel = given_up.made.cancel.clone();
    let given_up = actix::spawn(registry.store.send(given_up));
    let patient = actix::spawn(registry.store.send(patient));
    actix::spawn(async move { cancel.raise() }).await.unwrap();
    let answer = given_up.await.unwrap().unwrap();
    assert!(
        matches!(answer, Err(RegisterError::Cancelled)),
        "{answer:?}"
    );
    drop(locks);
    let registered = patient.await.unwrap().unwrap().unwrap();
    assert_eq!(registered.outputs, first);
    registry.stop().await;
}

#[actix::test]
async fn an_output_that_is_realised_by_another_path_keeps_it_and_what_was_valid_stays() {
    let store = TestStore::new();
    let registry = start(&store);
    let register_as = async |contents: &str, digit: u8| {
        let mut scratch = Scratch::new(&store);
        fs::write(floating(&mut scratch, "out", &path('a', "x")), contents).unwrap();
        let mut request = request(&scratch);
        request.made.realises = BTreeMap::from([(OutputName::default(), id(digit))]);
        register(&registry, request).await
    };
    let one = register_as("one", 1).await.unwrap();
    let two = register_as("two", 2).await.unwrap();
    // The same again is the same.
    assert_eq!(register_as("one", 1).await.unwrap(), one);
    registry.locks_are_free().await;
    let objects = store.objects();
    for contents in ["two", "three"] {
        let answer = register_as(contents, 1).await;
        let Err(RegisterError::Store(error)) = answer else {
            panic!("not refused: {answer:?}");
        };
        assert!(
            matches!(error, Error::RealisationConflict { .. }),
            "{error}"
        );
        registry.locks_are_free().await;
        assert_eq!(store.objects(), objects);
    }
    let paths: Vec<StorePath> = one.values().chain(two.values()).cloned().collect();
    let question = QueryValidPaths { paths };
    assert_eq!(
        registry.store.send(question).await.unwrap().unwrap().len(),
        2
    );
    registry.stop().await;
}

#[actix::test]
async fn what_is_not_valid_or_not_kept_is_not_remembered() {
    let store = TestStore::new();
    let registry = start(&store);
    let note = |registry: &Registry| {
        let outputs = BTreeMap::from([(id(1), path('a', "x"))]);
        registry.store.send(NoteRealisations { outputs })
    };
    let error = note(&registry).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::InvalidPath { .. }), "{error}");
    registry.stop().await;
    let without = store.start();
    let error = note(&without).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::NoRealisations), "{error}");
    without.stop().await;
}

#[actix::test]
async fn an_output_that_changes_with_its_own_path_has_none() {
    // The order of names is part of what is hashed. One of these comes before the path's own name
    // or after it, wherever that begins.
    let store = TestStore::new();
    let registry = start(&store);
    let provisional = path('0', "x");
    let mut scratch = Scratch::new(&store);
    let out = floating(&mut scratch, "out", &provisional);
    fs::create_dir(&out).unwrap();
    fs::write(out.join(provisional.base_name()), "own").unwrap();
    // Between a hash part of zeros and any other.
    fs::write(out.join("00000000000000000000000000000001"), "x").unwrap();
    let answer = register(&registry, request(&scratch)).await;
    let Err(RegisterError::Rejected(message)) = answer else {
        panic!("not rejected: {answer:?}");
    };
    assert!(
        message.contains("another one once it mentions"),
        "{message}"
    );
    assert!(store.objects().is_empty());
    registry.stop().await;
}

#[actix::test]
async fn a_hard_link_to_a_secret_is_not_rewritten_into_a_floating_output() {
    // A file of one's own is no secret from one's own builders.
    if !is_root("a_hard_link_to_a_secret_is_not_rewritten_into_a_floating_output") {
        return;
    }
    let store = TestStore::new();
    let registry = start(&store);
    let canary = Canary::new(store.root.join("canary"));
    let provisional = path('a', "x");
    let mut scratch = Scratch::new(&store);
    let out = floating(&mut scratch, "out", &provisional);
    fs::create_dir(&out).unwrap();
    fs::write(out.join("self"), provisional.to_string()).unwrap();
    scratch.hand_over();
    fs::hard_link(canary.path(), out.join("secret")).unwrap();
    let request = RegisterFloatingOutputs {
        made: scratch.request(),
        settled: BTreeMap::new(),
    };
    let answer = register(&registry, request).await;
    assert!(
        matches!(answer, Err(RegisterError::Rejected(_))),
        "{answer:?}"
    );
    canary.check();
    registry.stop().await;
    assert!(store.objects().is_empty());
    assert!(store.staged().is_empty());
}
