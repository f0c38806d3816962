//! Content-addressed derivations: resolving, realisation ids, and paths that follow from contents.

use std::collections::{BTreeSet, HashMap};
use std::io::Write as _;
use std::sync::Arc;

use serde_json::Value;
use store_model::content_address::References;
use store_model::hash_rewrite::{HashRewriter, SelfModuloHasher};
use store_model::{
    ContentAddress, Derivation, Error, Hash, HashAlgorithm, HashModuloCache, OutputName, StoreDir,
    StorePath,
};

use crate::derivations::parse_all;
use crate::fixtures;

fn read(relative: &str) -> String {
    std::fs::read_to_string(fixtures::fixture(relative)).expect("a fixture can be read")
}

fn ca_derivations() -> HashMap<StorePath, Arc<Derivation>> {
    parse_all(fixtures::files("nix-2.8/ca/drv", ".drv"))
}

#[test]
fn derivations_resolve_to_those_that_nix_wrote_while_building() {
    let store_dir = StoreDir::default();
    let built: HashMap<(StorePath, OutputName), StorePath> = read("nix-2.8/ca/outputs.tsv")
        .lines()
        .map(|line| {
            let fields: Vec<&str> = line.split('\t').collect();
            let drv_path = fields[1].parse().expect("a derivation");
            let name = fields[2].parse().expect("an output");
            (
                (drv_path, name),
                store_dir.parse(fields[3]).expect("a path"),
            )
        })
        .collect();
    let derivations = ca_derivations();
    let resolved_files = parse_all(fixtures::files("nix-2.8/ca/drv-resolved", ".drv"));
    let mut n_checked = 0;
    for line in read("nix-2.8/ca/resolved.tsv").lines() {
        let (from, to) = line.split_once('\t').expect("two paths");
        let parse = |text| store_dir.parse(text).expect("a path of Nix");
        let (from, to): (StorePath, StorePath) = (parse(from), parse(to));
        let resolved = derivations[&from]
            .resolve(&store_dir, |input, name| {
                built.get(&(input.clone(), name.clone())).cloned()
            })
            .expect("all inputs are known");
        assert_eq!(resolved, *resolved_files[&to]);
        n_checked += 1;
    }
    assert_eq!(n_checked, 7);
}

#[test]
fn realisations_are_known_by_the_masked_hash_modulo() {
    let derivations = ca_derivations();
    let mut hashes = HashModuloCache::new(StoreDir::default());
    let mut load =
        |path: &StorePath| -> Result<Arc<Derivation>, Error> { Ok(Arc::clone(&derivations[path])) };
    let mut ids = BTreeSet::new();
    for derivation in derivations.values() {
        hashes
            .hash_inputs(derivation, &mut load)
            .expect("all inputs are known");
        let masked = hashes
            .hash_masked(derivation)
            .expect("all inputs are known");
        for (name, hash) in &masked.outputs {
            ids.insert(format!("sha256:{}!{name}", hash.to_base16()));
        }
    }
    let realisations: Vec<Value> =
        serde_json::from_str(&read("nix-2.8/ca/realisations.json")).expect("Nix's own JSON");
    assert!(!realisations.is_empty());
    for realisation in &realisations {
        let id = realisation["id"].as_str().expect("an id");
        assert!(ids.contains(id), "{id}");
    }
}

/// Returns what Nix recorded of each path.
fn path_infos(relative: &str) -> Vec<Value> {
    serde_json::from_str(&read(relative)).expect("Nix's own JSON")
}

#[test]
fn the_path_of_everything_content_addressed_follows_from_its_address() {
    let store_dir = StoreDir::default();
    let mut n_checked = 0;
    for relative in ["nix-2.8/path-info.json", "nix-2.8/ca/path-info.json"] {
        for info in path_infos(relative) {
            let Some(text) = info["ca"].as_str() else {
                continue;
            };
            let parse = |value: &Value| {
                let text = value.as_str().expect("a path is a string");
                store_dir.parse(text).expect("a path of Nix")
            };
            let path = parse(&info["path"]);
            let mut references = References::default();
            for reference in info["references"].as_array().expect("a list") {
                let reference = parse(reference);
                if reference == path {
                    references.to_self = true;
                } else {
                    references.others.insert(reference);
                }
            }
            let address: ContentAddress = text.parse().expect("an address of Nix");
            assert_eq!(address.to_string(), text);
            // A fixed output may refer to others without its path telling.
            let is_sha256 = address.hash.algorithm() == HashAlgorithm::Sha256;
            if !is_sha256 || text.starts_with("fixed:sha256") {
                references = References::default();
            }
            let made = store_dir.make_content_addressed_path(&address, path.name(), &references);
            assert_eq!(made, Ok(path), "{text}");
            n_checked += 1;
        }
    }
    assert!(n_checked > 100, "only {n_checked} addresses");
}

#[test]
fn an_output_that_mentions_itself_is_hashed_modulo_that() {
    let path: StorePath = "rrh9cpwck5pwmw4xkq5iwv03isd0szri-ca-floating-self"
        .parse()
        .expect("a path");
    let archive = std::fs::read(fixtures::fixture("nix-2.8/ca/nar").join(format!("{path}.nar")))
        .expect("a fixture");
    let infos = path_infos("nix-2.8/ca/path-info.json");
    let printed = StoreDir::default().print(&path);
    let info = infos
        .iter()
        .find(|info| info["path"].as_str() == Some(&printed))
        .expect("Nix recorded the path");
    let address: ContentAddress = info["ca"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .expect("an address");

    let modulo = |archive: &[u8], own_path: &StorePath| -> Hash {
        let mut hasher = SelfModuloHasher::new(HashAlgorithm::Sha256, own_path);
        for piece in archive.chunks(13) {
            hasher.write_all(piece).expect("hashing cannot fail");
        }
        hasher.finish()
    };
    assert_eq!(modulo(&archive, &path), address.hash);

    // As it was while it was built, under a provisional path.
    let provisional: StorePath = "00000000000000000000000000000000-ca-floating-self"
        .parse()
        .expect("a path");
    let mut rewriter = HashRewriter::new(Vec::new(), [(&path, &provisional)]);
    rewriter.write_all(&archive).expect("memory does not fail");
    let (built, n_replaced) = rewriter.finish().expect("memory does not fail");
    assert!(n_replaced > 0);
    assert_eq!(modulo(&built, &provisional), address.hash);
}
