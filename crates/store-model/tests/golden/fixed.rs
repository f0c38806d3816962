//! Fixed outputs: what is hashed, by each method and algorithm.

use std::collections::BTreeSet;

use store_model::nar::Tree;
use store_model::{
    DerivationOutput, Hash, HashAlgorithm, HashModuloCache, IngestionMethod, StoreDir,
};

use crate::derivations::parse_all;
use crate::fixtures;

#[test]
fn the_contents_of_fixed_outputs_have_the_hashes_that_their_derivations_name() {
    let mut seen: BTreeSet<(IngestionMethod, HashAlgorithm)> = BTreeSet::new();
    for derivation in parse_all(fixtures::files("nix-2.8/drv", ".drv")).values() {
        for output in derivation.outputs.values() {
            let DerivationOutput::Fixed { method, hash, path } = output else {
                continue;
            };
            let file = fixtures::fixture("nix-2.8/nar").join(format!("{path}.nar"));
            // Those that are meant to fail have no archive.
            let Ok(archive) = std::fs::read(file) else {
                continue;
            };
            let found = match (method, Tree::parse(&archive)) {
                (IngestionMethod::Recursive, Ok(_)) => Hash::digest(hash.algorithm(), &archive),
                (
                    IngestionMethod::Flat | IngestionMethod::Text,
                    Ok(Tree::File {
                        contents,
                        is_executable: false,
                    }),
                ) => Hash::digest(hash.algorithm(), &contents),
                (_, other) => panic!("{path}: {other:?}"),
            };
            assert_eq!(found, *hash, "{path}");
            seen.insert((*method, hash.algorithm()));
        }
    }
    for algorithm in HashAlgorithm::ALL {
        for method in [IngestionMethod::Flat, IngestionMethod::Recursive] {
            assert!(
                seen.contains(&(method, algorithm)),
                "{method:?} {algorithm}"
            );
        }
    }
}

#[test]
fn a_text_is_hashed_as_a_file_and_addressed_with_its_references() {
    let store_dir = StoreDir::default();
    let drv = br#"Derive([("out","","text:sha256","")],[],[],"s","/b",[],[("out","/1rz4g4znpzjwh1xymhjpm42vipw92pr73vdgl6xs1hycac8kf2n9")])"#;
    let derivation =
        store_model::Derivation::parse(drv, "x", &store_dir).expect("a text may float");
    assert_eq!(derivation.to_aterm(&store_dir), drv);
    let mut hashes = HashModuloCache::new(store_dir);
    assert_eq!(derivation.check_output_paths(&mut hashes), Ok(()));
}
