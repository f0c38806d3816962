//! The small derivations, which cover every feature that Nix 2.8 has.

use std::collections::HashMap;
use std::sync::Arc;

use store_model::{Derivation, Error, HashModuloCache, StoreDir, StorePath};

use crate::fixtures;

/// Parses files by name; fails on the first that does not print as it was.
pub(crate) fn parse_all(
    files: impl IntoIterator<Item = (String, Vec<u8>)>,
) -> HashMap<StorePath, Arc<Derivation>> {
    let store_dir = StoreDir::default();
    files
        .into_iter()
        .map(|(file_name, contents)| {
            let path: StorePath = file_name.parse().expect("a file is named as a store path");
            let name = path
                .name()
                .strip_suffix(".drv")
                .expect("a derivation's suffix");
            let derivation = Derivation::parse(&contents, name, &store_dir)
                .unwrap_or_else(|error| panic!("{file_name}: {error}"));
            assert!(
                derivation.to_aterm(&store_dir) == contents,
                "{file_name} prints differently"
            );
            let computed = derivation.derivation_path(&store_dir);
            assert_eq!(computed, Ok(path.clone()), "the path of the file itself");
            (path, Arc::new(derivation))
        })
        .collect()
}

/// Checks every output path of a closed set of derivations.
pub(crate) fn check_all(derivations: &HashMap<StorePath, Arc<Derivation>>) {
    let mut hashes = HashModuloCache::new(StoreDir::default());
    let mut load =
        |path: &StorePath| -> Result<Arc<Derivation>, Error> { Ok(Arc::clone(&derivations[path])) };
    for (path, derivation) in derivations {
        hashes
            .check_output_paths(derivation, &mut load)
            .unwrap_or_else(|error| panic!("{path}: {error}"));
    }
}

#[test]
fn every_derivation_prints_as_it_was_and_names_the_outputs_that_follow_from_it() {
    for directory in ["nix-2.8/drv", "nix-2.8/ca/drv", "nix-2.8/ca/drv-resolved"] {
        let derivations = parse_all(fixtures::files(directory, ".drv"));
        check_all(&derivations);
    }
}

#[test]
fn output_paths_that_were_taken_out_are_filled_in_again() {
    for directory in ["nix-2.8/drv", "nix-2.8/ca/drv"] {
        let derivations = parse_all(fixtures::files(directory, ".drv"));
        let mut hashes = HashModuloCache::new(StoreDir::default());
        let mut load = |path: &StorePath| -> Result<Arc<Derivation>, Error> {
            Ok(Arc::clone(&derivations[path]))
        };
        for derivation in derivations.values() {
            let mut emptied = Derivation::clone(derivation);
            for (name, output) in &mut emptied.outputs {
                emptied.env.insert(name.as_str().into(), "elsewhere".into());
                if matches!(output, store_model::DerivationOutput::InputAddressed(_)) {
                    *output = store_model::DerivationOutput::Deferred;
                }
            }
            hashes
                .fill_output_paths(&mut emptied, &mut load)
                .expect("the inputs are known");
            assert_eq!(emptied, **derivation);
        }
    }
}
