//! Paths that follow from their contents, or do not.

use super::*;

/// Names a path after contents, as `references` have it.
fn addressed(archive: &[u8], address: ContentAddress, references: &References) -> PathInfo {
    let store_dir = store_model::StoreDir::default();
    let path = store_dir
        .make_content_addressed_path(&address, "addressed", references)
        .unwrap();
    let mut all = references.others.clone();
    if references.to_self {
        all.insert(path.clone());
    }
    PathInfo {
        path,
        references: all,
        content_address: Some(address.to_string()),
        ..promise(archive)
    }
}

#[actix::test]
async fn what_follows_from_its_contents_must_have_those_contents() {
    let store = TestStore::new();
    let registry = store.start();
    let none = References::default();
    let (archive, evil) = (file_nar(b"good", false), file_nar(b"evil", false));
    let mut kinds = vec![(IngestionMethod::Text, HashAlgorithm::Sha256)];
    for algorithm in HashAlgorithm::ALL {
        kinds.push((IngestionMethod::Flat, algorithm));
        kinds.push((IngestionMethod::Recursive, algorithm));
    }
    for (method, algorithm) in kinds {
        let hashed = if method == IngestionMethod::Recursive {
            &archive[..]
        } else {
            b"good"
        };
        let hash = Hash::digest(algorithm, hashed);
        let address = ContentAddress { method, hash };
        let good = addressed(&archive, address, &none);
        let lie = PathInfo {
            nar_hash: promise(&evil).nar_hash,
            ..good.clone()
        };
        let reason = refusal(&registry, lie, &evil).await;
        assert!(reason.contains("content address mismatch"), "{reason}");
        assert!(reason.contains(&hash.to_sri()), "{reason}");
        add(&registry, good.clone(), &archive).await;
        let found = info(&registry, &good.path).await.unwrap();
        assert_eq!(found.content_address, good.content_address);
    }
    registry.stop().await;
}

#[actix::test]
async fn a_path_that_its_address_does_not_give_is_refused_before_anything_is_read() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let archive = file_nar(b"good", false);
    let none = References::default();
    let hash = promise(&archive).nar_hash.to_hash();
    let recursive = ContentAddress {
        method: IngestionMethod::Recursive,
        hash,
    };
    let good = addressed(&archive, recursive, &none);
    let elsewhere = PathInfo {
        path: path('a', "addressed"),
        ..good.clone()
    };
    let other_references = PathInfo {
        references: [path('b', "other")].into(),
        ..good.clone()
    };
    let malformed = PathInfo {
        content_address: Some("fixed:r:sha256:xyz".to_owned()),
        ..good.clone()
    };
    let flat = ContentAddress {
        method: IngestionMethod::Flat,
        hash: Hash::digest(HashAlgorithm::Sha256, b"good"),
    };
    let with_references = PathInfo {
        references: [path('b', "other")].into(),
        ..addressed(&archive, flat, &none)
    };
    for promised in [elsewhere, other_references, malformed, with_references] {
        let request = RestoreNar {
            promised,
            contents: Box::new(Panicking),
            objects: None,
            cancel: CancelFlag::default(),
        };
        let answer = registry.store.send(request).await.unwrap();
        assert!(matches!(answer, Err(RestoreError::Broken(_))), "{answer:?}");
    }
    let tree = directory_nar(&[(b"a", FILE)]);
    let executable = file_nar(b"good", true);
    for archive in [tree, executable] {
        let promised = PathInfo {
            content_address: Some(flat.to_string()),
            path: addressed(&archive, flat, &none).path,
            ..promise(&archive)
        };
        let reason = refusal(&registry, promised, &archive).await;
        assert!(reason.contains("a single file"), "{reason}");
    }
    assert_nothing_left(&store, &registry).await;
    registry.stop().await;
}

/// Returns what genuine Nix says of its content-addressed paths whose archives there are.
fn genuine_addresses() -> Option<Vec<(PathInfo, Vec<u8>)>> {
    let dir = fixtures()?.join("ca");
    let text = fs::read_to_string(dir.join("path-info.json")).unwrap();
    let infos: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
    let parse = |path: &serde_json::Value| -> StorePath {
        let path = path.as_str().unwrap();
        store_model::StoreDir::default().parse(path).unwrap()
    };
    let addressed = infos.iter().filter_map(|info| {
        let path = parse(&info["path"]);
        let archive = fs::read(dir.join(format!("nar/{path}.nar"))).ok()?;
        let promised = PathInfo {
            path,
            references: info["references"].as_array()?.iter().map(parse).collect(),
            content_address: Some(info["ca"].as_str()?.to_owned()),
            ..promise(&archive)
        };
        Some((promised, archive))
    });
    Some(addressed.collect())
}

#[actix::test]
async fn a_path_that_mentions_itself_is_hashed_as_if_it_did_not() {
    let Some(genuine) = genuine_addresses() else {
        return;
    };
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let mut n_selfish = 0;
    for (promised, archive) in genuine {
        drop(
            restore(&registry, promised.clone(), &archive)
                .await
                .unwrap(),
        );
        if !promised.references.contains(&promised.path) {
            continue;
        }
        n_selfish += 1;
        // As long, and a path of its own is mentioned as well, but not this one.
        let hash_part = promised.path.hash_part().as_bytes();
        let mention = bstr::ByteSlice::find(&archive[..], hash_part).unwrap();
        let mut evil = archive.clone();
        evil[mention] = if evil[mention] == b'0' { b'1' } else { b'0' };
        let lie = PathInfo {
            nar_hash: promise(&evil).nar_hash,
            ..promised.clone()
        };
        let reason = refusal(&registry, lie, &evil).await;
        assert!(reason.contains("content address mismatch"), "{reason}");
        // Who leaves the reference out promises another path.
        let mut silent = promised.clone();
        silent.references.remove(&promised.path);
        let reason = refusal(&registry, silent, &archive).await;
        assert!(reason.contains("is that of"), "{reason}");
    }
    assert!(n_selfish > 0);
    assert_nothing_left(&store, &registry).await;
    registry.stop().await;
}
