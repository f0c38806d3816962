//! What is said of things that lie in the store, true and false.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use store_model::{Hash, HashAlgorithm, NarHash, PathInfo};

use super::*;
use crate::Registry;
use crate::messages::{AddSignatures, PresentPath, QueryPathInfo};
use crate::testing::{TestStore, path};

/// The archive of a file that says "x".
fn nar_of_x() -> (NarHash, u64) {
    let mut archive = Vec::new();
    for word in [
        &b"nix-archive-1"[..],
        b"(",
        b"type",
        b"regular",
        b"contents",
        b"x",
        b")",
    ] {
        archive.extend((word.len() as u64).to_le_bytes());
        archive.extend(word);
        archive.resize(archive.len().next_multiple_of(8), 0);
    }
    let hash = Hash::digest(HashAlgorithm::Sha256, &archive);
    (hash.try_into().unwrap(), archive.len() as u64)
}

/// Puts a file that says "x" at a path, as a careless program would.
fn plant(store: &TestStore, path: &StorePath) -> PresentPath {
    let file = store.real_path(path);
    // What was planted before may be read-only by now.
    if file.is_file() {
        fs::remove_file(&file).unwrap();
    }
    fs::write(&file, "x").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    PresentPath {
        path: path.clone(),
        nar: None,
        deriver: Some(crate::testing::path('d', "maker.drv")),
        references: BTreeSet::new(),
    }
}

async fn say(
    registry: &Registry,
    paths: Vec<PresentPath>,
    metadata: PresentMetadata,
    valid: ValidAlready,
) -> Result<(), Error> {
    let request = RegisterPresent {
        paths,
        metadata,
        valid,
    };
    registry.store.send(request).await.unwrap()
}

async fn info(registry: &Registry, path: &StorePath) -> Option<PathInfo> {
    let question = QueryPathInfo { path: path.clone() };
    registry.store.send(question).await.unwrap().unwrap()
}

#[actix::test]
async fn what_lies_there_is_made_canonical_and_read() {
    use PresentMetadata::MakeCanonical;
    let store = TestStore::new();
    let registry = store.start();
    let (one, two) = (path('a', "one"), path('b', "two"));
    let mut both = vec![plant(&store, &one), plant(&store, &two)];
    both[0].references = [one.clone(), two.clone()].into();
    both[1].nar = Some(nar_of_x());
    say(&registry, both, MakeCanonical, ValidAlready::Keep)
        .await
        .unwrap();
    for path in [&one, &two] {
        let found = info(&registry, path).await.unwrap();
        assert_eq!((found.nar_hash, found.nar_size_bytes), nar_of_x());
        assert!(found.deriver.is_some() && !found.ultimate);
        let metadata = fs::metadata(store.real_path(path)).unwrap();
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime()), (0o444, 1));
    }
    let found = info(&registry, &one).await.unwrap();
    assert_eq!(found.references, [one, two].into());
    registry.stop().await;
}

#[actix::test]
async fn what_is_not_as_it_is_said_to_be_or_not_there_makes_nothing_valid_and_takes_nothing_away() {
    use PresentMetadata::{MakeCanonical, Trust};
    let store = TestStore::new();
    let registry = store.start();
    let (good, other) = (path('a', "good"), path('b', "other"));
    let lie = PresentPath {
        nar: Some((NarHash::from_sha256([7; 32]), 120)),
        ..plant(&store, &other)
    };
    let both = vec![plant(&store, &good), lie.clone()];
    let error = say(&registry, both, MakeCanonical, ValidAlready::Keep)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::OtherContents { .. }), "{error:?}");
    let absent = PresentPath {
        path: path('c', "absent"),
        ..lie.clone()
    };
    for metadata in [MakeCanonical, Trust] {
        let both = vec![plant(&store, &good), absent.clone()];
        let error = say(&registry, both, metadata, ValidAlready::Keep)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error:?}");
    }
    let dangling = PresentPath {
        references: [path('f', "nowhere")].into(),
        ..plant(&store, &good)
    };
    let error = say(&registry, vec![dangling], Trust, ValidAlready::Keep)
        .await
        .unwrap_err();
    assert!(matches!(error, Error::InvalidReference { .. }), "{error:?}");
    for path in [&good, &other] {
        assert_eq!(info(&registry, path).await, None);
        assert_eq!(fs::read(store.real_path(path)).unwrap(), b"x");
    }
    registry.stop().await;
}

#[actix::test]
async fn who_is_trusted_is_believed_and_replaces_what_is_known_only_if_asked_to() {
    use PresentMetadata::Trust;
    let store = TestStore::new();
    let registry = store.start();
    let good = path('a', "good");
    let said = plant(&store, &good);
    say(&registry, vec![said.clone()], Trust, ValidAlready::Keep)
        .await
        .unwrap();
    assert_eq!(info(&registry, &good).await.unwrap().nar_hash, nar_of_x().0);
    let metadata = fs::metadata(store.real_path(&good)).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    let other = NarHash::from_sha256([7; 32]);
    let said = PresentPath {
        nar: Some((other, 8)),
        ..said
    };
    for (valid, expected) in [
        (ValidAlready::Keep, nar_of_x().0),
        (ValidAlready::Replace, other),
    ] {
        say(&registry, vec![said.clone()], Trust, valid)
            .await
            .unwrap();
        assert_eq!(info(&registry, &good).await.unwrap().nar_hash, expected);
    }
    registry.stop().await;
}

#[actix::test]
async fn signatures_are_added_to_those_that_are_there_or_not_at_all() {
    let store = TestStore::new();
    let registry = store.start();
    let good = path('a', "good");
    let said = plant(&store, &good);
    say(
        &registry,
        vec![said],
        PresentMetadata::Trust,
        ValidAlready::Keep,
    )
    .await
    .unwrap();
    let add = async |signed: &[(&StorePath, &str)]| {
        let signed = signed.iter();
        let signatures: BTreeMap<_, _> = signed
            .map(|(path, signature)| ((*path).clone(), [(*signature).to_owned()].into()))
            .collect();
        let request = AddSignatures { signatures };
        registry.store.send(request).await.unwrap()
    };
    add(&[(&good, "b-1:bb")]).await.unwrap();
    add(&[(&good, "a-1:aa")]).await.unwrap();
    add(&[(&good, "b-1:bb")]).await.unwrap();
    let error = add(&[(&good, "c-1:cc"), (&path('b', "none"), "c-1:cc")]).await;
    assert!(matches!(error, Err(Error::InvalidPath { .. })), "{error:?}");
    let expected = ["a-1:aa".to_owned(), "b-1:bb".to_owned()];
    let found = info(&registry, &good).await.unwrap();
    assert_eq!(found.signatures, expected.into());
    registry.stop().await;
}
