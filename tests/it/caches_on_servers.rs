//! Caches on servers that are far away, dead, slow, lying, or break off: each costs seconds and never the
//! build (SECURITY N09, F55, F57).

use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use it::cache_server::{CacheServer, Files};
use it::measure::now;
use it::web::Answer;
use it::{BinaryCache, Invocation, Pair, Profile, TestStore, requirement};

/// Three derivations in a row, each of which counts its builds. One output does not fit into a packet.
const CHAIN: &str = "let
    low = mk \"low\" \"echo low >> /signals/runs; head -c 3000000 /dev/zero > $out\" { };
    middle = mk \"middle\" \"echo middle >> /signals/runs; echo ${low} > $out\" { };
in mk \"top\" \"echo top >> /signals/runs; echo ${middle} > $out\" { }";

/// A cache that Nix has filled, and two stores that may use it.
struct Scene {
    cache: BinaryCache,
    pair: Pair,
    drv: String,
    _origin: TestStore,
}

impl Scene {
    fn new() -> Option<Self> {
        if !requirement::genuine_nix() {
            return None;
        }
        let origin = TestStore::new();
        origin.signals().tally("runs");
        let drv = origin.instantiate_one(CHAIN);
        let built = origin.realise_with_signals(&drv).succeed();
        let cache = BinaryCache::beside(&origin);
        cache.fill(&origin, built.output_lines());
        let pair = Pair::of(Profile::native());
        pair.tally();
        assert_eq!(drv, pair.instantiate(CHAIN));
        Some(Self {
            cache,
            pair,
            drv,
            _origin: origin,
        })
    }

    /// Serves the cache.
    fn serve(&self) -> CacheServer {
        CacheServer::start(self.cache.dir())
    }

    /// Prepares goalctl asking these caches.
    fn asking(&self, caches: &[&str]) -> Invocation {
        self.pair
            .goalctl(&self.drv)
            .option("substituters", caches.join(" "))
            .option("trusted-public-keys", self.cache.public_key())
            .option("connect-timeout", "2")
            .option("cache-answer-timeout", "2")
    }

    /// Fails unless goalctl has fetched everything and built nothing.
    #[track_caller]
    fn assert_fetched(&self) {
        assert_eq!(self.pair.n_runs().1, 0);
        self.pair.assert_sound();
    }
}

/// Returns the address of a server that is not there.
fn nobody() -> String {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port is free");
    let address = listener.local_addr().expect("it has an address");
    format!("http://{address}")
}

#[test]
fn a_cache_on_a_server_that_is_far_away_has_everything_over_few_connections() {
    let Some(scene) = Scene::new() else { return };
    let server = scene.serve();
    server.delay(Duration::from_millis(20));
    let fetched = scene.asking(&[&server.url()]).succeed();
    fetched.expect_error(&server.url());
    scene.assert_fetched();
    // Each path is asked for once and fetched once.
    assert_eq!(server.n_requests(&Files::Nars), 3);
    assert_eq!(server.n_requests(&Files::Narinfos), 3);
    assert_eq!(server.n_requests(&Files::Info), 1);
    assert!(server.web().n_connections() < 7);
}

#[test]
fn dead_silent_lying_and_welcoming_caches_before_a_good_one_cost_seconds_and_no_build() {
    let Some(scene) = Scene::new() else { return };
    let [silent, welcoming, lying, failing, good] = [(); 5].map(|()| scene.serve());
    silent.play(Files::All, |_| Answer::silence());
    welcoming.play(Files::All, |_| Answer::welcome_page());
    let hash = "sha256:0000000000000000000000000000000000000000000000000000";
    lying.play(Files::Narinfos, move |asked| {
        asked.honest().with_field("NarHash", hash)
    });
    failing.play(Files::All, |_| Answer::busy(503, Duration::from_hours(1)));
    let caches = [
        &nobody(),
        &silent.url(),
        &welcoming.url(),
        &lying.url(),
        &failing.url(),
        &good.url(),
    ];
    let begun = now();
    let fetched = scene.asking(&caches.map(String::as_str)).succeed();
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(10), "{took:?}");
    scene.assert_fetched();
    // Those that do not answer are named once, whatever they are asked for.
    for cache in &caches[..5] {
        fetched.expect_error(cache);
    }
    for cache in [caches[0], caches[1], caches[2], caches[4]] {
        let n_told = fetched.error().matches(cache.as_str()).count();
        // Once as the cache, once as the file that it did not give.
        assert!(n_told <= 2, "{n_told} {cache}: {}", fetched.error());
    }
    assert_eq!(silent.web().requests().len(), 1);
}

#[test]
fn an_archive_that_breaks_off_or_stalls_is_taken_up_where_it_was() {
    let Some(scene) = Scene::new() else { return };
    let server = scene.serve();
    server.play(Files::Nars, |asked| match asked.request.n_before {
        0 => asked.honest().hanging_up_after(50),
        1 => asked.honest().stalling_after(30),
        2 => Answer::error(502),
        _ => asked.honest(),
    });
    let patience = ("stalled-download-timeout", "1");
    let asking = scene.asking(&[&server.url()]);
    asking.option(patience.0, patience.1).succeed();
    scene.assert_fetched();
    let requests = server.web().requests();
    let resumed = requests
        .iter()
        .filter(|request| request.headers.contains_key("range"));
    assert_eq!(resumed.count(), 3 * 3);
}

#[test]
fn an_archive_that_one_cache_does_not_give_is_fetched_from_the_next() {
    type Play = fn(Answer) -> Answer;
    let plays: [(&str, Play); 6] = [
        ("gone", |_| Answer::error(410)),
        ("busy", |_| Answer::busy(429, Duration::from_hours(1))),
        ("a page", |_| Answer::welcome_page()),
        ("short", |honest| {
            honest.map_body(|mut body| {
                body.pop();
                body
            })
        }),
        ("damaged", |honest| {
            honest.map_body(|mut body| {
                if let Some(byte) = body.last_mut() {
                    *byte ^= 1;
                }
                body
            })
        }),
        ("endless", Answer::endless),
    ];
    for (name, play) in plays {
        let Some(scene) = Scene::new() else { return };
        let [bad, good] = [(); 2].map(|()| scene.serve());
        bad.play(Files::Nars, move |asked| play(asked.whole()));
        let begun = now();
        scene.asking(&[&bad.url(), &good.url()]).succeed();
        let took = begun.elapsed();
        assert!(took < Duration::from_secs(20), "{name}: {took:?}");
        scene.assert_fetched();
    }
}

#[test]
fn a_closure_that_no_server_gives_is_an_error_without_passwords_or_a_build() {
    let Some(scene) = Scene::new() else { return };
    let server = scene.serve();
    server.play(Files::Nars, |asked| asked.whole().hanging_up_after(10));
    let address = server.url().replace("://", "://me:hidden@");
    let failed = scene.asking(&[&address]).run();
    failed.expect_status(1).expect_error(&server.url());
    let told = failed.output() + &failed.error();
    assert!(!told.contains("hidden"), "{told}");
    assert_eq!(scene.pair.n_runs().1, 0);
    it::debris::assert_clean(&scene.pair.by_goalctl);
    let is_told = |request: &it::web::Request| request.headers.contains_key("authorization");
    assert!(server.web().requests().iter().all(is_told));

    scene
        .asking(&[&address])
        .option("fallback", "true")
        .succeed();
    assert_eq!(scene.pair.n_runs().1, 3);
    scene.pair.assert_sound();
}

/// What a server has done that goes down with the first archive that it is asked for.
#[derive(Default)]
struct Downfall {
    /// The archive that it never gives.
    victim: Option<String>,
    n_probes_failed: usize,
}

#[test]
fn a_short_outage_of_the_only_cache_is_waited_for() {
    const N_DOWN: usize = 2;
    if !requirement::genuine_nix() {
        return;
    }
    let origin = TestStore::new();
    let drvs = origin.instantiate(
        "map (name: mk name \"echo ${name} > $out\" { }) [ \"one\" \"two\" \"three\" ]",
    );
    let built = origin.nix_store(["--realise"]).args(&drvs).succeed();
    let paths = built.output_lines();
    let cache = BinaryCache::beside(&origin);
    cache.fill(&origin, &paths);
    for fallback in ["false", "true"] {
        let store = TestStore::new();
        let server = CacheServer::start(cache.dir());
        let downfall = Arc::<Mutex<Downfall>>::default();
        let state = Arc::clone(&downfall);
        server.play(Files::Nars, move |asked| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            let path = asked.request.path.clone();
            if *state.victim.get_or_insert(path.clone()) == path {
                Answer::error(503)
            } else {
                asked.honest()
            }
        });
        let state = Arc::clone(&downfall);
        server.play(Files::Info, move |asked| {
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            if state.victim.is_none() || state.n_probes_failed == N_DOWN {
                return asked.honest();
            }
            state.n_probes_failed += 1;
            Answer::error(503)
        });
        let ensure = |flag: &str| {
            store
                .goalctl(["ensure", flag])
                .args(&paths)
                .option("substituters", server.url())
                .option("trusted-public-keys", cache.public_key())
                .option("max-substitution-jobs", "1")
                .option("download-attempts", "4")
                .option("fallback", fallback)
        };
        // Has every answer remembered: one that came during the first download would speak for the
        // server.
        ensure("--dry-run").succeed();
        // One after the other: the second begins when the first one's failure has been noticed.
        let fetched = ensure("--keep-going").run();
        fetched.expect_status(1);
        let told = format!("waiting for '{}', which gives no answer", server.url());
        let n_told = fetched.error().matches(&told).count();
        let n_valid = paths
            .iter()
            .filter(|path| store.real(path).exists())
            .count();
        if fallback == "true" {
            // Nobody waits where something else can be done.
            assert_eq!((n_told, n_valid), (0, 0), "{fetched}");
        } else {
            assert_eq!((n_told, n_valid), (1, 2), "{fetched}");
        }
        it::debris::assert_clean(&store);
    }
}
