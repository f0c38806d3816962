//! Paths that goalctl puts into caches and fetches from them by name, beside genuine Nix (SPEC E7, F4).

mod kills;
mod servers;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use it::graph::LayeredGraph;
use it::{BinaryCache, Finished, Invocation, TestStore, damage, debris, requirement};
use nix::sys::signal::Signal;
use store_model::narinfo::NarInfo;
use store_model::{Hash, HashAlgorithm, StoreDir};

/// Compressions with the level that a test has time for.
const COMPRESSIONS: [(&str, &str); 6] = [
    ("none", ""),
    ("xz", ""),
    ("bzip2", ""),
    ("gzip", ""),
    ("zstd", ""),
    ("br", "&compression-level=4"),
];

/// A store with something to copy, and a cache with a key.
struct Scene {
    origin: TestStore,
    cache: BinaryCache,
    /// What needs most comes first.
    paths: Vec<String>,
}

impl Scene {
    /// Builds an expression; every one of its outputs is to be copied.
    fn of(expression: &str) -> Option<Self> {
        if !requirement::genuine_nix() {
            return None;
        }
        let origin = TestStore::new();
        let drvs = origin.instantiate(expression);
        let built = origin.nix_store(["--realise"]).args(&drvs).succeed();
        let mut paths = built.output_lines();
        paths.reverse();
        let cache = BinaryCache::beside(&origin);
        Some(Self {
            origin,
            cache,
            paths,
        })
    }

    /// Twelve folders in three layers.
    fn new() -> Option<Self> {
        let graph = LayeredGraph {
            n_layers: 3,
            width: 4,
            n_inputs: 2,
            seed: 12,
        };
        Self::of(&graph.expression(""))
    }

    /// Returns the address of the cache with its key and further parameters.
    fn to(&self, parameters: &str) -> String {
        let key = self.cache.secret_key().display();
        format!("{}?secret-key={key}{parameters}", self.cache.url())
    }

    /// Prepares a copy of everything to an address.
    fn copy_to(&self, address: &str) -> Invocation {
        let copy = self.origin.goalctl(["copy", "--to", address]);
        copy.args(&self.paths)
    }

    /// Prepares a copy of everything from an address into another store.
    fn copy_from(&self, address: &str, store: &TestStore) -> Invocation {
        let copy = store.goalctl(["copy", "--from", address]);
        copy.option("trusted-public-keys", self.cache.public_key())
            .args(&self.paths)
    }

    /// Has genuine Nix fetch everything from a cache whose key it trusts, into a store of its own.
    #[track_caller]
    fn assert_nix_fetches_from(&self, address: &str) {
        let store = TestStore::new();
        store
            .nix_store(["--realise"])
            .args(&self.paths)
            .option("substituters", address)
            .option("trusted-public-keys", self.cache.public_key())
            .option("require-sigs", "true")
            .succeed();
        debris::assert_verifies(&store);
    }
}

/// Returns the files of a cache with their modes and contents.
fn files(cache: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    let mut files = BTreeMap::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for listed in fs::read_dir(cache.join(&folder)).expect("the cache is ours") {
            let listed = listed.expect("the cache is ours");
            let name = folder.join(listed.file_name());
            let facts = listed.metadata().expect("the cache is ours");
            let contents = if facts.is_dir() {
                folders.push(name.clone());
                Vec::new()
            } else {
                fs::read(listed.path()).expect("the cache is ours")
            };
            let name = name.to_str().expect("names in caches are text");
            files.insert(name.to_owned(), (facts.mode(), contents));
        }
    }
    files
}

/// Fails unless everything that a cache announces is there, and whole; returns how many paths that are.
#[track_caller]
fn assert_whole(cache: &Path) -> usize {
    let files = files(cache);
    let narinfos = files.iter().filter(|(name, _)| has_kind(name, "narinfo"));
    let narinfos: Vec<NarInfo> = narinfos
        .map(|(_, (_, text))| NarInfo::parse(text, &StoreDir::default()).expect("it is whole"))
        .collect();
    let paths: BTreeSet<_> = narinfos.iter().map(|narinfo| &narinfo.info.path).collect();
    for narinfo in &narinfos {
        let (_, archive) = files.get(&narinfo.url).expect("its archive is there");
        let size_bytes = u64::try_from(archive.len()).expect("it is in memory");
        assert_eq!(narinfo.file_size_bytes, Some(size_bytes));
        let hash = Hash::digest(HashAlgorithm::Sha256, archive);
        assert_eq!(narinfo.file_hash, Some(hash));
        for reference in &narinfo.info.references {
            assert!(paths.contains(reference), "{reference} is not there");
        }
    }
    paths.len()
}

/// Returns whether the name of a file ends in a dot and `kind`.
fn has_kind(name: &str, kind: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|found| found == kind)
}

/// Fails if a cache has anything that no path and no reader of it needs.
#[track_caller]
fn assert_tidy(cache: &Path) {
    let files = files(cache);
    let text = |name: &str| String::from_utf8_lossy(&files[name].1).into_owned();
    let narinfos = files.keys().filter(|name| has_kind(name, "narinfo"));
    let archives: BTreeSet<String> = narinfos
        .flat_map(|name| {
            let text = text(name);
            let urls = text.lines().filter_map(|line| line.strip_prefix("URL: "));
            urls.map(str::to_owned).collect::<Vec<_>>()
        })
        .collect();
    for name in files.keys() {
        let is_known = ["nix-cache-info", "nar", "log", "realisations"].contains(&name.as_str())
            || ["narinfo", "ls"].iter().any(|kind| has_kind(name, kind))
            || archives.contains(name);
        assert!(is_known, "{name}");
    }
}

#[test]
fn nix_fetches_what_goalctl_has_put_into_a_cache_in_every_compression() {
    for (compression, level) in COMPRESSIONS {
        let Some(scene) = Scene::new() else { return };
        let address = scene.to(&format!("&compression={compression}{level}"));
        let copied = scene.copy_to(&address).succeed();
        copied.expect_error("copied 12 paths to ");
        assert_eq!(assert_whole(scene.cache.dir()), 12);
        assert_tidy(scene.cache.dir());
        scene.assert_nix_fetches_from(&scene.cache.url());
    }
}

/// Paths of every kind: links, executables, names that have to be quoted, references to oneself.
const ODD: &str = r#"let
    low = mk "low" "mkdir -p $out/bin $out/empty; echo exit > $out/bin/run; chmod +x $out/bin/run; ln -s run $out/bin/link; echo $out > $out/self; touch \"$out/a \\\"b\\\" \\\\c\"" { };
in [ low (mk "high" "echo ${low} > $out; seq 20000 >> $out" { }) (mk "link" "ln -s ${low}/bin/run $out" { }) ]"#;

#[test]
fn a_cache_is_byte_for_byte_the_one_that_nix_writes() {
    let Some(scene) = Scene::of(ODD) else { return };
    for (compression, level) in COMPRESSIONS {
        let by_nix = BinaryCache::beside(&scene.origin);
        let by_goalctl = BinaryCache::beside(&scene.origin);
        let key = by_nix.secret_key().display();
        let parameters = format!("&write-nar-listing=1&compression={compression}");
        by_nix.fill_with(&scene.origin, &parameters, &scene.paths);
        let address = format!("{}?secret-key={key}{parameters}{level}", by_goalctl.url());
        scene.copy_to(&address).succeed();
        let (mut theirs, mut ours) = (files(by_nix.dir()), files(by_goalctl.dir()));
        // The clock is in what Nix compresses by gzip, and its brotli is at a level that takes long.
        if ["gzip", "br"].contains(&compression) {
            theirs = without_archives(theirs);
            ours = without_archives(ours);
        }
        let names = |files: &BTreeMap<_, _>| files.keys().cloned().collect::<Vec<String>>();
        assert_eq!(names(&theirs), names(&ours), "{compression}");
        for (name, contents) in theirs {
            assert!(ours[&name] == contents, "{compression}: {name}");
        }
    }
}

/// Leaves out the archives, and what follows from their bytes.
fn without_archives(files: BTreeMap<String, (u32, Vec<u8>)>) -> BTreeMap<String, (u32, Vec<u8>)> {
    let files = files.into_iter();
    let kept = files.filter(|(name, _)| !name.starts_with("nar/"));
    kept.map(|(name, (mode, contents))| {
        let text = String::from_utf8_lossy(&contents).into_owned();
        let is_kept = |line: &&str| {
            let of_archive = ["URL: ", "FileHash: ", "FileSize: "];
            !of_archive.iter().any(|field| line.starts_with(field))
        };
        let lines: String = text.split_inclusive('\n').filter(is_kept).collect();
        (name, (mode, lines.into_bytes()))
    })
    .collect()
}

#[test]
fn what_a_cache_has_is_not_copied_again_and_what_it_is_stays() {
    let Some(scene) = Scene::new() else { return };
    let address = scene.to("&compression=none&priority=7&want-mass-query=1");
    let (first, rest) = scene.paths.split_first().expect("there are twelve");
    scene
        .origin
        .goalctl(["copy", "--to", &address, first])
        .succeed();
    let n_before = assert_whole(scene.cache.dir());
    assert!(n_before > 1 && n_before < 12, "{n_before}");
    let before = files(scene.cache.dir());
    let info = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 7\n";
    assert_eq!(before["nix-cache-info"].1, info.as_bytes());
    let other = scene.to("&compression=none&priority=8");
    let copied = scene.origin.goalctl(["copy", "--to", &other]).args(rest);
    copied
        .succeed()
        .expect_error(&format!("copied {} paths", 12 - n_before));
    assert_eq!(assert_whole(scene.cache.dir()), 12);
    let after = files(scene.cache.dir());
    for (name, contents) in before {
        assert_eq!(after[&name], contents, "{name}");
    }
    let again = scene.copy_to(&other).succeed();
    again.expect_error("copied 0 paths");
    again.expect_error("12 were there");
    assert_eq!(files(scene.cache.dir()), after);
}

#[test]
fn a_corrupt_path_is_named_and_the_rest_is_copied() {
    let Some(scene) = Scene::new() else { return };
    // Nobody refers to what was built last.
    let (corrupt, rest) = scene.paths.split_first().expect("there are twelve");
    damage::flip_a_bit(&scene.origin.real(corrupt));
    let copied = scene.copy_to(&scene.to("&compression=none")).run();
    copied.expect_status(1);
    copied.expect_error(&format!("path '{corrupt}' is corrupt: its hash is sha256-"));
    copied.expect_error("copied 11 paths");
    copied.expect_error("1 were not copied");
    assert_eq!(assert_whole(scene.cache.dir()), 11);
    assert_tidy(scene.cache.dir());
    assert!(!scene.cache.narinfo(corrupt).exists());
    assert!(rest.iter().all(|path| scene.cache.narinfo(path).exists()));
}

#[test]
fn what_refers_to_a_corrupt_path_is_not_copied_either() {
    let Some(scene) = Scene::of(ODD) else { return };
    let is_low = |path: &&String| path.ends_with("-low");
    let low = scene.paths.iter().find(is_low).expect("it was built");
    damage::flip_a_bit(&scene.origin.real(low).join("self"));
    let copied = scene.copy_to(&scene.to("&compression=none")).run();
    copied.expect_status(1);
    copied.expect_error(&format!("path '{low}' is corrupt"));
    copied.expect_error(&format!("refers to '{low}', which '"));
    copied.expect_error("3 were not copied");
    assert_eq!(assert_whole(scene.cache.dir()), 0);
}

#[test]
fn without_its_closure_a_path_is_copied_only_where_the_closure_is() {
    let Some(scene) = Scene::of(ODD) else { return };
    let address = scene.to("&compression=none");
    let named = |name: &str| {
        let mut paths = scene.paths.iter();
        paths
            .find(|path| path.ends_with(name))
            .expect("it was built")
    };
    let copy = |path: &str| {
        let copy = ["copy", "--no-recursive", "--to", &address, path];
        scene.origin.goalctl(copy).run()
    };
    let refused = copy(named("-high"));
    refused.expect_status(1);
    let reason = format!("refers to '{}', which '", named("-low"));
    refused.expect_error(&reason);
    assert_eq!(assert_whole(scene.cache.dir()), 0);
    copy(named("-low")).expect_status(0);
    copy(named("-high")).expect_status(0);
    assert_eq!(assert_whole(scene.cache.dir()), 2);
}

#[test]
fn paths_are_copied_from_a_cache_of_nix_and_from_no_other() {
    let Some(scene) = Scene::new() else { return };
    scene
        .cache
        .fill_with(&scene.origin, "&compression=zstd", &scene.paths);
    let store = TestStore::new();
    let copied = scene
        .copy_from(&scene.cache.url(), &store)
        // Neither what the settings say of caches nor that nobody is to be asked counts.
        .option("substituters", "file:///no-such-cache")
        .succeed();
    let told = format!("from '{}'...", scene.cache.url());
    assert_eq!(copied.error().matches(&told).count(), 12, "{copied}");
    assert!(!copied.error().contains("no-such-cache"), "{copied}");
    assert_eq!(copied.output(), "");
    debris::assert_clean(&store);
    debris::assert_verifies(&store);
    scene.cache.remove(&scene.paths[0]);
    let store = TestStore::new();
    let copied = scene.copy_from(&scene.cache.url(), &store).run();
    copied.expect_status(1);
    copied.expect_error(&scene.paths[0]);
    let objects = it::snapshot::Snapshot::of(&store).objects;
    assert_eq!(objects.len(), 11, "{copied}");
}

#[test]
fn what_nobody_has_signed_is_copied_from_a_cache_only_where_that_is_wanted() {
    let Some(scene) = Scene::new() else { return };
    let address = format!("{}?compression=none", scene.cache.url());
    scene.copy_to(&address).succeed();
    let store = TestStore::new();
    let refused = scene.copy_from(&scene.cache.url(), &store).run();
    refused.expect_status(1);
    refused.expect_error(&scene.paths[0]);
    assert!(it::snapshot::Snapshot::of(&store).objects.is_empty());
    let copied = scene.copy_from(&scene.cache.url(), &store);
    copied.arg("--no-check-sigs").succeed();
    assert_eq!(it::snapshot::Snapshot::of(&store).objects.len(), 12);
    debris::assert_verifies(&store);
}

#[test]
fn an_address_that_makes_no_sense_is_refused_before_anything_is_written() {
    let Some(scene) = Scene::new() else { return };
    let refused = |address: &str, reason: &str| {
        let refused: Finished = scene.copy_to(address).run();
        refused.expect_status(1);
        refused.expect_error(reason);
    };
    refused(&scene.to("&compression=lz4"), "no compression 'lz4'");
    refused(&scene.to("&compression-level=11"), "levels from 0 to 9");
    refused("s3://bucket", "caches of the kind 's3' are not supported");
    refused("/cache", "'file://' and the directory");
    let address = format!("{}?secret-key=/no/such/key", scene.cache.url());
    refused(&address, "reading secret key file '/no/such/key'");
    assert!(!scene.cache.dir().exists());
    let told = scene.copy_to(&scene.to("&compresion=xz")).succeed();
    told.expect_error("has a parameter that means nothing here: 'compresion'");
    fs::write(
        scene.cache.dir().join("nix-cache-info"),
        "StoreDir: /gnu/store\n",
    )
    .expect("the cache is ours");
    refused(
        &scene.to(""),
        "its paths are for '/gnu/store', not for '/nix/store'",
    );
    for (words, reason) in [
        (&["copy"][..], "--to <URL>|--from <URL>"),
        (&["copy", "--to", "a", "--from", "b"], "cannot be used with"),
        (
            &["copy", "--from", "file:///a file:///b"],
            "is not the address",
        ),
    ] {
        let store = &scene.origin;
        let finished = store.goalctl(words).args(&scene.paths).run();
        finished.expect_status(1).expect_error(reason);
    }
}

#[test]
fn an_interrupt_ends_a_copy_and_leaves_whole_paths() {
    let Some(scene) = Scene::of(r#"mk "large" "dd if=/dev/urandom of=$out bs=1M count=60" { }"#)
    else {
        return;
    };
    for (signal, status) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143)] {
        let mut copy = scene.copy_to(&scene.to("&compression-level=9")).start();
        copy.await_line(|line| line.starts_with("copying path "));
        copy.signal(signal);
        copy.finish().expect_status(status);
        assert_eq!(assert_whole(scene.cache.dir()), 0);
        assert_tidy(scene.cache.dir());
    }
}

#[test]
fn events_of_a_copy_are_told_as_json() {
    let Some(scene) = Scene::new() else { return };
    let address = scene.to("&compression=none");
    let copied = scene.copy_to(&address).arg("--json").succeed();
    let lines = copied.output_lines();
    let events: Vec<serde_json::Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).expect("each line is JSON"))
        .collect();
    let n_events = |name| events.iter().filter(|event| event["event"] == name).count();
    assert_eq!((n_events("copying"), n_events("copied")), (12, 12));
    assert!(
        events
            .iter()
            .all(|event| event["to"].is_null() || event["to"] == scene.cache.url())
    );
    let report = events.last().expect("there is a report");
    assert_eq!(report["event"], "report");
    assert_eq!(
        (&report["copied"], &report["failed"]),
        (&12.into(), &0.into())
    );
    assert_eq!(report["narSize"], report["fileSize"]);
}
