//! Caches that Nix 2.8 wrote, and caches that somebody broke.

mod outages;
mod reports;
mod servers;
mod uploads;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use actix::{Actor, Addr, Context, Handler};
use store_model::narinfo::{Compression, NarInfo};
use store_model::{Hash, HashAlgorithm, Settings, StoreDir, StorePath};
use tempfile::TempDir;

use crate::testing::fixtures;
use crate::{
    AwaitEnd, Error, FetchNar, FetchProgressed, ForcePanic, Freshness, NarTransfer, Offers,
    QueryOffers, ReportBadOffer, StopSubstituter, Substituter, start,
};

const CACHES: [(&str, Compression); 6] = [
    ("cache-none", Compression::None),
    ("cache-xz", Compression::Xz),
    ("cache-bzip2", Compression::Bzip2),
    ("cache-gzip", Compression::Gzip),
    ("cache-zstd", Compression::Zstd),
    ("cache-br", Compression::Brotli),
];

/// Settings with these caches, which trust the fixtures' key.
fn settings(caches: &[String]) -> Settings {
    let key = fs::read_to_string(fixtures().join("keys/TEST-ONLY.pub")).unwrap();
    Settings {
        substituters: caches.to_vec(),
        trusted_public_keys: vec![key],
        ..Settings::default()
    }
}

fn start_with(settings: &Settings) -> Addr<Substituter> {
    let memory = fixtures().join("no-such-directory");
    start(settings, StoreDir::default(), Some(memory), &|_| None).unwrap()
}

fn start_caches(caches: &[&Path]) -> Addr<Substituter> {
    let caches: Vec<String> = caches
        .iter()
        .map(|path| format!("file://{}", path.display()))
        .collect();
    start_with(&settings(&caches))
}

async fn query(substituter: &Addr<Substituter>, path: &StorePath) -> Offers {
    substituter
        .send(QueryOffers {
            path: path.clone(),
            freshness: Freshness::Remembered,
        })
        .await
        .unwrap()
        .unwrap()
}

/// The names of the caches that offer a path, best first.
async fn offering(substituter: &Addr<Substituter>, path: &StorePath) -> Vec<String> {
    let offers = query(substituter, path).await.offers;
    let name = |text: &str| text.rsplit('/').next().unwrap().to_owned();
    offers.iter().map(|offer| name(&offer.cache_name)).collect()
}

/// What a cache has.
fn contents(cache: &Path) -> Vec<NarInfo> {
    let mut narinfos: Vec<NarInfo> = fs::read_dir(cache)
        .unwrap()
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|suffix| suffix == "narinfo"))
        .map(|path| NarInfo::parse(&fs::read(path).unwrap(), &StoreDir::default()).unwrap())
        .collect();
    narinfos.sort_by(|a, b| a.info.path.cmp(&b.info.path));
    narinfos
}

fn simple() -> StorePath {
    "hwc82vi2zdq3kvazxc8hl80s1j5d4j2p-simple".parse().unwrap()
}

/// A copy of a fixture cache, to be broken.
struct Copy {
    _dir: TempDir,
    path: PathBuf,
}

impl Copy {
    fn of(cache: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(cache);
        for folder in ["", "nar"] {
            let (from, to) = (fixtures().join(cache).join(folder), path.join(folder));
            fs::create_dir_all(&to).unwrap();
            for file in fs::read_dir(from).unwrap().map(Result::unwrap) {
                if file.file_type().unwrap().is_file() {
                    // Without the mode: the vectors may be read-only.
                    fs::write(to.join(file.file_name()), fs::read(file.path()).unwrap()).unwrap();
                }
            }
        }
        Self { _dir: dir, path }
    }

    fn narinfo_file(&self, path: &StorePath) -> PathBuf {
        self.path.join(format!("{}.narinfo", path.hash_part()))
    }

    /// Replaces text in a path's narinfo.
    fn edit(&self, path: &StorePath, old: &str, new: &str) {
        let file = self.narinfo_file(path);
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.contains(old), "{text}");
        fs::write(file, text.replace(old, new)).unwrap();
    }

    fn write_info(&self, text: &str) {
        fs::write(self.path.join("nix-cache-info"), text).unwrap();
    }
}

/// Remembers what it is told.
#[derive(Default)]
struct Listener(Arc<Mutex<Vec<FetchProgressed>>>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<FetchProgressed> for Listener {
    type Result = ();

    fn handle(&mut self, progress: FetchProgressed, _: &mut Context<Self>) {
        self.0.lock().unwrap().push(progress);
    }
}

#[actix::test]
async fn every_path_is_fetched_from_every_kind_of_cache() {
    for (name, compression) in CACHES {
        let cache = fixtures().join(name);
        let substituter = start_caches(&[&cache]);
        let narinfos = contents(&cache);
        assert!(narinfos.len() >= 27);
        for narinfo in narinfos {
            let offers = query(&substituter, &narinfo.info.path).await.offers;
            assert_eq!(offers.len(), 1, "{name} {}", narinfo.info.path);
            assert_eq!(*offers[0].narinfo, narinfo);
            assert_eq!(narinfo.compression, compression);
            let told = Listener::default();
            let progress = Arc::clone(&told.0);
            let listener = told.start();
            let mut transfer = substituter
                .send(FetchNar {
                    offer: offers[0].clone(),
                    progress: Some(listener.clone().recipient()),
                    delayed: None,
                })
                .await
                .unwrap()
                .unwrap();
            let archive = tokio::task::spawn_blocking(move || {
                let mut archive = Vec::new();
                transfer.contents.read_to_end(&mut archive).unwrap();
                archive
            })
            .await
            .unwrap();
            let hash = Hash::digest(HashAlgorithm::Sha256, &archive);
            assert_eq!(hash, narinfo.info.nar_hash.to_hash());
            assert_eq!(archive.len() as u64, narinfo.info.nar_size_bytes);
            // Answered after whatever was said before.
            listener
                .send(FetchProgressed {
                    n_bytes: 0,
                    n_expected: None,
                })
                .await
                .unwrap();
            let progress = progress.lock().unwrap();
            let last = progress[progress.len() - 2];
            assert_eq!(Some(last.n_bytes), narinfo.file_size_bytes);
            assert_eq!(last.n_expected, narinfo.file_size_bytes);
        }
        substituter.send(StopSubstituter).await.unwrap();
    }
}

#[actix::test]
async fn caches_are_offered_in_order_of_priority() {
    let [own, by_url, last] = ["cache-none", "cache-xz", "cache-br"].map(Copy::of);
    own.write_info("StoreDir: /nix/store\nPriority: 30\n");
    by_url.write_info("StoreDir: /nix/store\nPriority: 90\n");
    let caches = [
        format!("file://{}", last.path.display()),
        format!("file://{}", own.path.display()),
        format!("file://{}?priority=10", by_url.path.display()),
        "s3://not-supported".to_owned(),
        "nonsense".to_owned(),
    ];
    let substituter = start_with(&settings(&caches));
    // What a cache says of itself is known before its first offer.
    let names = offering(&substituter, &simple()).await;
    assert_eq!(names, ["cache-xz", "cache-none", "cache-br"]);
}

#[actix::test]
async fn a_path_that_nobody_has_is_offered_by_nobody() {
    let substituter = start_caches(&[&fixtures().join("cache-xz")]);
    let absent: StorePath = "00000000000000000000000000000000-absent".parse().unwrap();
    let offers = query(&substituter, &absent).await;
    assert_eq!((offers.offers.len(), offers.n_refused), (0, 0));
    let without = start_with(&settings(&[]));
    assert!(query(&without, &simple()).await.offers.is_empty());
    let off = Settings {
        substitute: false,
        ..settings(&[format!("file://{}", fixtures().join("cache-xz").display())])
    };
    assert!(query(&start_with(&off), &simple()).await.offers.is_empty());
}

#[actix::test]
async fn bad_caches_do_not_stand_in_the_way_of_a_good_one() {
    let [
        unsigned,
        spoofed,
        elsewhere,
        html,
        foreign,
        infoless,
        linked,
    ] = ["cache-none"; 7].map(Copy::of);
    unsigned.edit(&simple(), "Sig: nix28", "Sig: other");
    fs::copy(
        unsigned.narinfo_file(
            &"qhjih1x4zg0rh6sxr8znl5y7mnww6qfa-name-order"
                .parse()
                .unwrap(),
        ),
        spoofed.narinfo_file(&simple()),
    )
    .unwrap();
    elsewhere.edit(&simple(), "URL: nar/", "URL: file:///etc/");
    fs::write(html.narinfo_file(&simple()), "<html>welcome</html>\n").unwrap();
    foreign.write_info("StoreDir: /gnu/store\n");
    fs::remove_file(infoless.path.join("nix-cache-info")).unwrap();
    let file = linked.narinfo_file(&simple());
    fs::rename(&file, linked.path.join("real")).unwrap();
    std::os::unix::fs::symlink("real", &file).unwrap();
    let good = fixtures().join("cache-zstd");
    let substituter = start_caches(&[
        Path::new("/no/such/cache"),
        &unsigned.path,
        &spoofed.path,
        &elsewhere.path,
        &html.path,
        &foreign.path,
        &infoless.path,
        &linked.path,
        &good,
    ]);
    let offers = query(&substituter, &simple()).await;
    let names: Vec<&str> = offers.offers.iter().map(|o| &*o.cache_name).collect();
    assert_eq!(names, [format!("file://{}", good.display())]);
    assert_eq!(offers.n_refused, 5);
}

#[actix::test]
async fn a_trusted_cache_needs_no_signatures_and_a_key_that_is_not_trusted_does_not_count() {
    let cache = fixtures().join("cache-none");
    let mut untrusting = settings(&[format!("file://{}", cache.display())]);
    untrusting.trusted_public_keys.clear();
    let substituter = start_with(&untrusting);
    let offers = query(&substituter, &simple()).await;
    assert_eq!((offers.offers.len(), offers.n_refused), (0, 1));

    let trusted = Settings {
        substituters: vec![format!("file://{}?trusted=1", cache.display())],
        ..untrusting.clone()
    };
    assert_eq!(offering(&start_with(&trusted), &simple()).await.len(), 1);

    let lenient = Settings {
        require_sigs: false,
        ..untrusting.clone()
    };
    assert_eq!(offering(&start_with(&lenient), &simple()).await.len(), 1);

    untrusting.trusted_public_keys = vec!["key:AAAA".to_owned()];
    let refused = start(&untrusting, StoreDir::default(), None, &|_| None);
    assert!(matches!(refused, Err(Error::PublicKey { .. })));
}

#[actix::test]
async fn an_archive_that_is_not_there_is_told_with_path_and_cache() {
    let cache = Copy::of("cache-xz");
    fs::remove_dir_all(cache.path.join("nar")).unwrap();
    let substituter = start_caches(&[&cache.path]);
    let offer = query(&substituter, &simple()).await.offers.remove(0);
    let request = FetchNar {
        offer: offer.clone(),
        progress: None,
        delayed: None,
    };
    let error = substituter.send(request).await.unwrap().unwrap_err();
    let told = crate::error::chain(&error);
    assert!(
        told.contains("'/nix/store/hwc82vi2zdq3kvazxc8hl80s1j5d4j2p-simple'"),
        "{told}"
    );
    assert!(told.contains(&*offer.cache_name), "{told}");
    assert!(told.contains("is not there"), "{told}");
}

#[actix::test]
async fn a_cache_that_does_not_keep_its_word_is_left_alone() {
    let bad = Copy::of("cache-xz");
    let good = fixtures().join("cache-br");
    let substituter = start_caches(&[&bad.path, &good]);
    let offers = query(&substituter, &simple()).await.offers;
    assert_eq!(offers.len(), 2);
    for _ in 0..5 {
        substituter.do_send(ReportBadOffer {
            offer: offers[0].clone(),
        });
    }
    assert_eq!(offering(&substituter, &simple()).await, ["cache-br"]);
    let request = FetchNar {
        offer: offers[0].clone(),
        progress: None,
        delayed: None,
    };
    let error = substituter.send(request).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::LeftAlone { .. }), "{error}");
}

#[actix::test]
async fn a_transfer_ends_with_its_guard_or_with_the_substituter() {
    // An archive without end, for whoever reads it: a terabyte of nothing.
    let cache = Copy::of("cache-none");
    let archive = cache.path.join(&contents(&cache.path)[0].url);
    let endless = fs::File::create(archive).unwrap();
    endless.set_len(1 << 40).unwrap();
    let path = contents(&cache.path)[0].info.path.clone();
    let text = fs::read_to_string(cache.narinfo_file(&path)).unwrap();
    let kept = |line: &&str| !line.starts_with("File");
    let text: Vec<&str> = text.lines().filter(kept).collect();
    fs::write(cache.narinfo_file(&path), text.join("\n") + "\n").unwrap();

    let substituter = start_caches(&[&cache.path]);
    let offer = query(&substituter, &path).await.offers.remove(0);
    for is_wanted in [false, true] {
        let request = FetchNar {
            offer: offer.clone(),
            progress: None,
            delayed: None,
        };
        let NarTransfer {
            mut contents,
            guard,
            ..
        } = substituter.send(request).await.unwrap().unwrap();
        let (begun, reading) = tokio::sync::oneshot::channel();
        let reader = tokio::task::spawn_blocking(move || {
            contents.read_exact(&mut [1]).unwrap();
            begun.send(()).unwrap();
            std::io::copy(&mut contents, &mut std::io::sink()).unwrap_err()
        });
        reading.await.unwrap();
        let guard = if is_wanted {
            substituter.send(StopSubstituter).await.unwrap();
            Some(guard)
        } else {
            drop(guard);
            None
        };
        let error = reader.await.unwrap();
        let told = crate::error::chain(error.get_ref().unwrap());
        assert!(told.contains("nobody wants"), "{told}");
        drop(guard);
    }
    let question = QueryOffers {
        path,
        freshness: Freshness::Fresh,
    };
    let answer = substituter.send(question).await.unwrap();
    assert!(matches!(answer, Err(Error::Stopped)));
}

#[actix::test]
async fn ten_thousand_questions_at_once_are_answered() {
    let cache = fixtures().join("cache-none");
    let substituter = start_caches(&[&cache, &fixtures().join("cache-xz")]);
    let narinfos = contents(&cache);
    let questions = (0..10_000_usize).map(|idx| {
        let path = match narinfos.get(idx % 100) {
            Some(narinfo) => narinfo.info.path.clone(),
            None => format!("{idx:032}-absent").parse().unwrap(),
        };
        substituter.send(QueryOffers {
            path,
            freshness: Freshness::Remembered,
        })
    });
    let answers = futures_util::future::join_all(questions).await;
    let n_offers: usize = answers
        .into_iter()
        .map(|answer| answer.unwrap().unwrap().offers.len())
        .sum();
    assert_eq!(n_offers, 100 * narinfos.len() * 2);
}

#[actix::test]
async fn the_end_of_the_actor_is_learnt_also_after_a_panic() {
    let substituter = start_caches(&[&fixtures().join("cache-none")]);
    let ended = substituter.send(AwaitEnd);
    assert_eq!(offering(&substituter, &simple()).await.len(), 1);
    substituter.do_send(ForcePanic);
    assert!(ended.await.is_err());
}
