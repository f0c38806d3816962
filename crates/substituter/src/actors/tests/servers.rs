//! Caches on servers that answer, answer late, answer nonsense, or do not answer.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use super::*;
use crate::client::Clocks;
use crate::start::start_with as start_with_clocks;
use crate::testing::server::{Request, Server, Step, answer};

/// Serves a fixture cache.
fn serve(cache: &str) -> Server {
    let root = fixtures().join(cache);
    Server::start(move |request| file(&root, request))
}

pub(super) fn file(root: &Path, request: &Request) -> Vec<Step> {
    match fs::read(root.join(request.target.trim_start_matches('/'))) {
        Ok(contents) => answer(200, &[], &contents),
        Err(_) => answer(404, &[], b"no"),
    }
}

/// A run of the program: where it remembers, and clocks that can be moved on.
pub(super) struct Run {
    memory: TempDir,
    passed: Arc<AtomicU64>,
    unix: Arc<AtomicI64>,
}

impl Run {
    pub(super) fn new() -> Self {
        Self {
            memory: tempfile::tempdir().unwrap(),
            passed: Arc::new(AtomicU64::new(0)),
            unix: Arc::new(AtomicI64::new(1_800_000_000)),
        }
    }

    pub(super) fn start(&self, settings: &Settings) -> Addr<Substituter> {
        let (passed, unix) = (Arc::clone(&self.passed), Arc::clone(&self.unix));
        // Each look at the clock takes a while, so that what is later has a later time.
        let clocks = Clocks {
            passed: Arc::new(move || Duration::from_millis(passed.fetch_add(1, Ordering::SeqCst))),
            unix: Arc::new(move || unix.load(Ordering::SeqCst)),
        };
        let memory = self.memory.path().to_owned();
        start_with_clocks(
            settings,
            StoreDir::default(),
            Some(memory),
            &|_| None,
            &clocks,
        )
        .unwrap()
    }

    fn let_pass(&self, time: Duration) {
        let n_ms = u64::try_from(time.as_millis()).unwrap();
        self.passed.fetch_add(n_ms, Ordering::SeqCst);
    }
}

pub(super) fn impatient(caches: &[String]) -> Settings {
    Settings {
        cache_answer_timeout: Some(Duration::from_millis(300)),
        connect_timeout: Some(Duration::from_secs(5)),
        ..settings(caches)
    }
}

pub(super) async fn ask(
    substituter: &Addr<Substituter>,
    path: &StorePath,
    freshness: Freshness,
) -> Offers {
    let path = path.clone();
    let question = QueryOffers { path, freshness };
    substituter.send(question).await.unwrap().unwrap()
}

async fn fetch(substituter: &Addr<Substituter>, offer: &crate::Offer) -> Result<Vec<u8>, String> {
    let request = FetchNar {
        offer: offer.clone(),
        progress: None,
        delayed: None,
    };
    let transfer = substituter.send(request).await.unwrap();
    let mut transfer = transfer.map_err(|error| crate::error::chain(&error))?;
    let read = tokio::task::spawn_blocking(move || {
        let mut archive = Vec::new();
        let outcome = transfer.contents.read_to_end(&mut archive);
        outcome.map(|_| archive)
    });
    let read = read.await.unwrap();
    read.map_err(|error| crate::error::chain(error.get_ref().unwrap()))
}

pub(super) fn absent() -> StorePath {
    "00000000000000000000000000000000-absent".parse().unwrap()
}

fn targets(server: &Server) -> Vec<String> {
    let requests = server.requests();
    requests.into_iter().map(|request| request.target).collect()
}

#[actix::test]
async fn a_server_is_a_cache_like_a_directory() {
    let server = serve("cache-xz");
    let run = Run::new();
    let substituter = run.start(&settings(&[server.url("")]));
    for narinfo in contents(&fixtures().join("cache-xz")) {
        let offers = ask(&substituter, &narinfo.info.path, Freshness::Fresh).await;
        let archive = fetch(&substituter, &offers.offers[0]).await.unwrap();
        let hash = Hash::digest(HashAlgorithm::Sha256, &archive);
        assert_eq!(hash, narinfo.info.nar_hash.to_hash());
    }
    substituter.send(StopSubstituter).await.unwrap();
}

#[actix::test]
async fn what_was_answered_in_one_run_is_not_asked_in_the_next() {
    let server = serve("cache-xz");
    let run = Run::new();
    let settings = settings(&[server.url("")]);
    for _ in 0..2 {
        let substituter = run.start(&settings);
        let offers = ask(&substituter, &simple(), Freshness::Remembered)
            .await
            .offers;
        assert_eq!(offers.len(), 1);
        assert!(
            ask(&substituter, &absent(), Freshness::Remembered)
                .await
                .offers
                .is_empty()
        );
        // Its thread writes what it has been told before it ends.
        substituter.send(StopSubstituter).await.unwrap();
    }
    let narinfo = format!("/{}.narinfo", simple().hash_part());
    let no_narinfo = format!("/{}.narinfo", absent().hash_part());
    assert_eq!(targets(&server), ["/nix-cache-info", &narinfo, &no_narinfo]);

    // An hour later it may have what it did not have.
    run.unix.fetch_add(3600, Ordering::SeqCst);
    let substituter = run.start(&settings);
    ask(&substituter, &simple(), Freshness::Remembered).await;
    ask(&substituter, &absent(), Freshness::Remembered).await;
    assert_eq!(targets(&server)[3..], [no_narinfo]);

    // Whoever wants to know exactly asks, and whoever was told wrongly is told anew.
    let offers = ask(&substituter, &simple(), Freshness::Fresh).await.offers;
    substituter.do_send(ReportBadOffer {
        offer: offers[0].clone(),
    });
    ask(&substituter, &simple(), Freshness::Remembered).await;
    assert_eq!(targets(&server)[4..], [narinfo.clone(), narinfo]);
}

#[actix::test]
async fn an_offer_whose_archive_is_gone_is_asked_for_again() {
    let root = fixtures().join("cache-xz");
    let server = Server::start(move |request| match request.target.as_str() {
        nar if nar.starts_with("/nar/") => answer(404, &[], b"collected"),
        _ => file(&root, request),
    });
    let run = Run::new();
    let substituter = run.start(&settings(&[server.url("")]));
    let offers = ask(&substituter, &simple(), Freshness::Remembered)
        .await
        .offers;
    let told = fetch(&substituter, &offers[0]).await.unwrap_err();
    assert!(told.contains("is not there"), "{told}");
    ask(&substituter, &simple(), Freshness::Remembered).await;
    let n_narinfos = targets(&server)
        .iter()
        .filter(|file| file.contains("narinfo"))
        .count();
    assert_eq!(n_narinfos, 2);
}

#[actix::test]
async fn only_what_is_believed_is_remembered() {
    let root = fixtures().join("cache-xz");
    let failing: StorePath = "11111111111111111111111111111111-failing".parse().unwrap();
    let is_failing = failing.hash_part().to_owned();
    let server = Server::start(move |request| {
        if request.target.contains(&is_failing) {
            return answer(500, &[], b"oops");
        }
        file(&root, request)
    });
    let run = Run::new();
    let mut untrusting = settings(&[server.url("")]);
    untrusting.trusted_public_keys.clear();
    untrusting.download_attempts = 1;
    let substituter = run.start(&untrusting);
    for path in [&simple(), &failing] {
        // Twice each, and a server that fails at one path is asked a second time.
        for _ in 0..2 {
            let offers = ask(&substituter, path, Freshness::Remembered).await;
            assert!(offers.offers.is_empty());
        }
    }
    let n_asked = |path: &StorePath| {
        let asked = targets(&server);
        asked
            .iter()
            .filter(|file| file.contains(path.hash_part()))
            .count()
    };
    assert_eq!(n_asked(&simple()), 2);
    assert!(n_asked(&failing) >= 1);
    substituter.send(StopSubstituter).await.unwrap();
    // The keys that are trusted now are.
    let substituter = run.start(&settings(&[server.url("")]));
    let offers = ask(&substituter, &simple(), Freshness::Remembered)
        .await
        .offers;
    assert_eq!(offers.len(), 1);
    assert_eq!(n_asked(&simple()), 3);
}

#[actix::test]
async fn keys_that_are_not_trusted_any_more_take_what_is_remembered_with_them() {
    let server = serve("cache-xz");
    let run = Run::new();
    let mut settings = settings(&[server.url("")]);
    let substituter = run.start(&settings);
    assert_eq!(
        ask(&substituter, &simple(), Freshness::Remembered)
            .await
            .offers
            .len(),
        1
    );
    substituter.send(StopSubstituter).await.unwrap();
    settings.trusted_public_keys.clear();
    let offers = ask(&run.start(&settings), &simple(), Freshness::Remembered).await;
    assert_eq!((offers.offers.len(), offers.n_refused), (0, 1));
}

#[actix::test]
async fn a_cache_that_never_answers_costs_one_wait_for_five_hundred_paths() {
    let silent = Server::start(|_| vec![Step::Stall]);
    let good = format!("file://{}", fixtures().join("cache-none").display());
    let run = Run::new();
    let substituter = run.start(&impatient(&[silent.url(""), good]));
    for path in contents(&fixtures().join("cache-none"))
        .iter()
        .map(|narinfo| &narinfo.info.path)
        .cycle()
        .take(500)
    {
        // One after the other, as along a chain.
        assert_eq!(offering(&substituter, path).await, ["cache-none"]);
    }
    assert_eq!(targets(&silent), ["/nix-cache-info"]);
}

#[actix::test]
async fn a_server_that_is_down_or_fails_is_left_alone() {
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let down = format!("http://{}", port.local_addr().unwrap());
    drop(port);
    let failing = Server::start(|_| answer(503, &[("Retry-After", "3600")], b"later"));
    let good = format!("file://{}", fixtures().join("cache-none").display());
    let run = Run::new();
    let substituter = run.start(&impatient(&[down, failing.url(""), good]));
    for _ in 0..20 {
        assert_eq!(offering(&substituter, &simple()).await, ["cache-none"]);
    }
    assert_eq!(targets(&failing), ["/nix-cache-info"]);
}

#[actix::test]
async fn a_server_that_comes_back_is_found_by_a_probe_that_nobody_waits_for() {
    let root = fixtures().join("cache-xz");
    let is_well = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (well, (probed, mut probes)) =
        (Arc::clone(&is_well), tokio::sync::mpsc::unbounded_channel());
    let server = Server::start(move |request| {
        if !well.load(Ordering::SeqCst) {
            return vec![Step::Stall];
        }
        probed.send(request.target.clone()).unwrap();
        file(&root, request)
    });
    let run = Run::new();
    let substituter = run.start(&impatient(&[server.url("")]));
    assert!(offering(&substituter, &simple()).await.is_empty());
    is_well.store(true, Ordering::SeqCst);
    assert!(offering(&substituter, &simple()).await.is_empty());
    assert_eq!(targets(&server).len(), 1);

    run.let_pass(Duration::from_secs(13));
    // This one only makes somebody look.
    assert!(offering(&substituter, &simple()).await.is_empty());
    assert_eq!(probes.recv().await.unwrap(), "/nix-cache-info");
    // What the probe found is a message to the actor, which comes when it comes.
    let found = async {
        while offering(&substituter, &simple()).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), found)
        .await
        .unwrap();
    let offers = ask(&substituter, &simple(), Freshness::Fresh).await.offers;
    fetch(&substituter, &offers[0]).await.unwrap();
}

#[actix::test]
async fn a_welcome_page_instead_of_answers_is_no_cache_and_no_offer() {
    let page = Server::start(|_| answer(200, &[], b"<html>Please log in</html>"));
    let root = fixtures().join("cache-none");
    let half = Server::start(move |request| match request.target.as_str() {
        "/nix-cache-info" => file(&root, request),
        _ => answer(200, &[], b"<html>Please log in</html>"),
    });
    let run = Run::new();
    let substituter = run.start(&settings(&[page.url(""), half.url("")]));
    for _ in 0..7 {
        let offers = ask(&substituter, &simple(), Freshness::Remembered).await;
        assert!(offers.offers.is_empty());
    }
    assert_eq!(targets(&page).len(), 1);
    // After five answers that make no sense nobody asks any more.
    assert_eq!(targets(&half).len(), 1 + 5);
}

#[actix::test]
async fn one_question_that_many_ask_is_asked_once() {
    let server = serve("cache-xz");
    let run = Run::new();
    let substituter = run.start(&settings(&[server.url("")]));
    let path = simple();
    let questions = (0..1000).map(|_| ask(&substituter, &path, Freshness::Fresh));
    let answers = futures_util::future::join_all(questions).await;
    assert!(answers.iter().all(|offers| offers.offers.len() == 1));
    // What is asked after the answer is asked again; what is asked with it is not.
    let n_asked = targets(&server).len();
    assert!(n_asked < 100, "{n_asked}");
}

#[actix::test]
async fn a_password_is_in_no_error() {
    let server = Server::start(|request| match request.target.as_str() {
        "/nix-cache-info" => answer(200, &[], b"StoreDir: /nix/store\n"),
        narinfo if narinfo.ends_with(".narinfo") => answer(
            200,
            &[],
            &fs::read(fixtures().join("cache-xz").join(&narinfo[1..])).unwrap(),
        ),
        _ => answer(410, &[], b"gone"),
    });
    let run = Run::new();
    let address = server.url("").replace("://", "://user:secret@");
    let substituter = run.start(&settings(&[address]));
    let offers = ask(&substituter, &simple(), Freshness::Fresh).await.offers;
    assert!(!format!("{offers:?}").contains("secret"));
    let told = fetch(&substituter, &offers[0]).await.unwrap_err();
    assert!(
        told.contains("localhost") && !told.contains("secret"),
        "{told}"
    );
    assert!(server.requests()[0].headers.contains_key("authorization"));
}
