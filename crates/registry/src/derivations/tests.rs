//! Real derivations, hostile ones, and graphs that would take for ever if anything were done twice.

use std::collections::BTreeSet;
use std::fs;

use store_model::derivation::DerivationOutput;
use store_model::{NarHash, OutputName, PathInfo, Settings};

use super::*;
use crate::db::DatabaseOptions;
use crate::db::connection::prepare;
use crate::db::write::{Registration, register_valid};
use crate::messages::AddText;
use crate::testing::{TestStore, fixtures};

struct Bench {
    store: TestStore,
    layout: Arc<Layout>,
    database: Database,
}

impl Bench {
    fn new() -> Self {
        let store = TestStore::new();
        let settings = Settings::default();
        let options = DatabaseOptions::from_settings(&settings);
        let layout = Arc::new(Layout::open(store.layout(), &settings).unwrap());
        drop(prepare(&layout, options).unwrap());
        let database = Database::open(&layout, options).unwrap();
        Self {
            store,
            layout,
            database,
        }
    }

    /// Puts a text into the store and makes it valid, whatever it says.
    fn plant(&self, path: &StorePath, text: &[u8]) {
        fs::write(self.store.real_path(path), text).unwrap();
        let hash = NarHash::try_from(Hash::digest(HashAlgorithm::Sha256, text)).unwrap();
        let info = PathInfo {
            path: path.clone(),
            nar_hash: hash,
            nar_size_bytes: 1,
            references: BTreeSet::new(),
            deriver: None,
            registration_time: 1,
            ultimate: false,
            signatures: BTreeSet::new(),
            content_address: None,
        };
        let registration = Registration {
            info,
            derivation_outputs: Vec::new(),
        };
        register_valid(&self.database, &[registration]).unwrap();
    }

    fn derivations(self) -> (Derivations, TestStore) {
        (Derivations::new(self.layout, self.database), self.store)
    }
}

/// Makes a derivation with correct outputs; returns its path and text.
fn make(
    name: &str,
    inputs: &[StorePath],
    hashes: &mut HashModuloCache,
) -> (StorePath, Vec<u8>, Arc<Derivation>) {
    let out = OutputName::default();
    let mut derivation = Derivation {
        name: name.to_owned(),
        outputs: [(out.clone(), DerivationOutput::Deferred)].into(),
        input_derivations: inputs
            .iter()
            .map(|input| (input.clone(), [out.clone()].into()))
            .collect(),
        input_sources: BTreeSet::new(),
        system: "x86_64-linux".into(),
        builder: "/bin/sh".into(),
        args: Vec::new(),
        env: std::collections::BTreeMap::new(),
    };
    derivation.fill_output_paths(hashes).unwrap();
    let store_dir = hashes.store_dir().clone();
    let text = derivation.to_aterm(&store_dir);
    let path = derivation.derivation_path(&store_dir).unwrap();
    let derivation = Arc::new(derivation);
    let mut load = |_: &StorePath| -> Result<Arc<Derivation>, store_model::Error> {
        panic!("all inputs are known")
    };
    hashes.hash(&path, &derivation, &mut load).unwrap();
    (path, text, derivation)
}

#[test]
fn every_derivation_that_nix_instantiated_is_accepted() {
    let Some(fixtures) = fixtures() else { return };
    let bench = Bench::new();
    let mut paths = Vec::new();
    for listed in fs::read_dir(fixtures.join("drv")).unwrap() {
        let file = listed.unwrap().path();
        let path: StorePath = file.file_name().unwrap().to_str().unwrap().parse().unwrap();
        bench.plant(&path, &fs::read(file).unwrap());
        paths.push(path);
    }
    let (mut derivations, _store) = bench.derivations();
    for path in &paths {
        derivations.get(path).unwrap();
    }
    assert!(paths.len() > 100);
}

#[test]
fn a_derivation_that_is_not_valid_is_not_read() {
    let bench = Bench::new();
    let mut hashes = HashModuloCache::new(bench.layout.paths.store_dir.clone());
    let (path, text, _) = make("a", &[], &mut hashes);
    fs::write(bench.store.real_path(&path), text).unwrap();
    let (mut derivations, _store) = bench.derivations();
    let refused = derivations.get(&path);
    assert!(
        matches!(refused, Err(Error::InvalidPath { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_text_that_is_not_what_its_path_says_is_refused() {
    let bench = Bench::new();
    let mut hashes = HashModuloCache::new(bench.layout.paths.store_dir.clone());
    let (path, text, _) = make("a", &[], &mut hashes);
    let text = String::from_utf8(text)
        .unwrap()
        .replace("/bin/sh", "/bin/zz");
    bench.plant(&path, text.as_bytes());
    let (mut derivations, _store) = bench.derivations();
    let refused = derivations.get(&path);
    assert!(
        matches!(refused, Err(Error::DerivationPath { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_link_in_the_place_of_a_derivation_is_not_followed() {
    let bench = Bench::new();
    let mut hashes = HashModuloCache::new(bench.layout.paths.store_dir.clone());
    let (path, text, _) = make("a", &[], &mut hashes);
    bench.plant(&path, &text);
    let elsewhere = bench.store.root.join("elsewhere");
    fs::rename(bench.store.real_path(&path), &elsewhere).unwrap();
    std::os::unix::fs::symlink(&elsewhere, bench.store.real_path(&path)).unwrap();
    let (mut derivations, _store) = bench.derivations();
    let refused = derivations.get(&path);
    assert!(matches!(refused, Err(Error::File { .. })), "{refused:?}");
}

#[actix::test]
async fn a_derivation_that_claims_the_output_of_another_never_becomes_valid() {
    let store = TestStore::new();
    let registry = store.start();
    let mut hashes = HashModuloCache::new(store.layout().store_dir);
    let (_, victims, _) = make("victim", &[], &mut hashes);
    let (_, evil, _) = make("evil", &[], &mut hashes);
    let output = |text: &[u8]| {
        let text = String::from_utf8(text.to_owned()).unwrap();
        let start = text.find("/nix/store/").unwrap();
        text[start..start + 43].to_owned()
    };
    let (wanted, own) = (output(&victims), output(&evil));
    let forged = String::from_utf8(evil).unwrap().replace(&own, &wanted);
    let request = AddText {
        name: "evil.drv".to_owned(),
        contents: forged.into_bytes(),
        references: BTreeSet::new(),
    };
    let error = registry.store.send(request).await.unwrap().unwrap_err();
    let Error::Derivation { source, .. } = &error else {
        panic!("{error:?}");
    };
    assert!(
        matches!(**source, store_model::Error::IncorrectOutputPath { .. }),
        "{source}"
    );
    registry.stop().await;
    assert_eq!(store.objects(), BTreeSet::new());
}

#[test]
fn a_graph_with_more_ways_through_it_than_atoms_is_checked_at_once() {
    let bench = Bench::new();
    let mut hashes = HashModuloCache::new(bench.layout.paths.store_dir.clone());
    let mut inputs: Vec<StorePath> = Vec::new();
    for level in 0..60 {
        let mut made = Vec::new();
        for name in ["left", "right"] {
            let (path, text, _) = make(&format!("{name}-{level}"), &inputs, &mut hashes);
            bench.plant(&path, &text);
            made.push(path);
        }
        inputs = made;
    }
    let (mut derivations, store) = bench.derivations();
    let top = derivations.get(&inputs[0]).unwrap();
    assert_eq!(top.name, "left-59");
    // Everything below was read on the way, once: without the files it still is known.
    for path in top.input_derivations.keys() {
        fs::remove_file(store.real_path(path)).unwrap();
        derivations.get(path).unwrap();
    }
}

#[test]
fn a_cache_that_is_full_forgets_what_was_not_asked_for() {
    let mut hashes = HashModuloCache::new(store_model::StoreDir::default());
    let (_, _, derivation) = make("a", &[], &mut hashes);
    let parsed = Parsed {
        derivation,
        is_checked: true,
    };
    let mut cache = Generations::default();
    let path = |idx: usize| -> StorePath { crate::testing::path('a', &format!("p{idx}.drv")) };
    for idx in 0..3 * GENERATION_LEN {
        cache.insert(path(idx), parsed.clone());
        assert!(cache.get(&path(0)).is_some(), "{idx}");
    }
    assert!(cache.get(&path(1)).is_none());
    assert!(cache.young.len() + cache.old.len() <= 2 * GENERATION_LEN);
}
