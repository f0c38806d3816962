//! A cache that is down for a while, and downloads that nobody else could take over.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix::Recipient;
use tokio::sync::mpsc;

use super::servers::{Run, absent, ask, file, impatient};
use super::*;
use crate::testing::server::{Server, answer};
use crate::{FetchDelayed, Offer};

/// A cache on a server that fails as often as it was told to.
struct Failing {
    server: Server,
    n_failures: Arc<AtomicUsize>,
}

impl Failing {
    fn start() -> Self {
        let n_failures = Arc::new(AtomicUsize::new(0));
        let (left, root) = (Arc::clone(&n_failures), fixtures().join("cache-none"));
        let server = Server::start(move |request| {
            let fewer = |left: usize| left.checked_sub(1);
            match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer) {
                Ok(_) => answer(503, &[], b"down"),
                Err(_) => file(&root, request),
            }
        });
        Self { server, n_failures }
    }

    fn fail(&self, n_times: usize) {
        self.n_failures.store(n_times, Ordering::SeqCst);
    }
}

/// Whoever fetches: passes on that the cache is waited for.
struct Listener(mpsc::UnboundedSender<Arc<str>>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<FetchDelayed> for Listener {
    type Result = ();

    fn handle(&mut self, delayed: FetchDelayed, _: &mut Context<Self>) {
        self.0.send(delayed.cache).unwrap();
    }
}

fn listener() -> (Recipient<FetchDelayed>, mpsc::UnboundedReceiver<Arc<str>>) {
    let (sender, delays) = mpsc::unbounded_channel();
    (Listener(sender).start().recipient(), delays)
}

fn open(
    substituter: &Addr<Substituter>,
    offer: &Offer,
    delayed: Option<Recipient<FetchDelayed>>,
) -> actix::dev::Request<Substituter, FetchNar> {
    let offer = offer.clone();
    substituter.send(FetchNar {
        offer,
        progress: None,
        delayed,
    })
}

/// Starts with a cache that has offered a path and then failed somebody.
async fn after_a_failure(
    failing: &Failing,
    run: &Run,
    n_attempts: usize,
) -> (Addr<Substituter>, Offer) {
    let settings = Settings {
        download_attempts: n_attempts,
        // One failure of the server is one of the cache: nothing is tried twice in that time.
        cache_answer_timeout: Some(Duration::from_millis(200)),
        ..impatient(&[failing.server.url("")])
    };
    let substituter = run.start(&settings);
    let offers = ask(&substituter, &simple(), Freshness::Remembered).await;
    failing.fail(usize::MAX);
    let none = ask(&substituter, &absent(), Freshness::Fresh).await;
    assert!(none.offers.is_empty());
    (substituter, offers.offers[0].clone())
}

#[actix::test]
async fn downloads_wait_for_a_cache_that_comes_back_and_questions_do_not() {
    let (failing, run) = (Failing::start(), Run::new());
    let (substituter, offer) = after_a_failure(&failing, &run, 8).await;
    // Where somebody else can take over, it fails at once.
    let error = open(&substituter, &offer, None).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::LeftAlone { .. }), "{error}");
    let (recipient, mut delays) = listener();
    let waiting = (0..3).map(|_| open(&substituter, &offer, Some(recipient.clone())));
    let waiting = tokio::task::spawn_local(futures_util::future::join_all(waiting));
    for _ in 0..3 {
        let cache = delays.recv().await.unwrap();
        assert_eq!(*cache, failing.server.url(""));
    }
    assert!(!waiting.is_finished());
    let none = ask(&substituter, &absent(), Freshness::Fresh).await;
    assert!(none.offers.is_empty());
    // The next probe fails, and the one after it does not.
    failing.fail(1);
    for opened in waiting.await.unwrap() {
        let mut transfer = opened.unwrap().unwrap();
        let read = tokio::task::spawn_blocking(move || {
            let mut archive = Vec::new();
            transfer.contents.read_to_end(&mut archive).map(|_| archive)
        });
        let hash = Hash::digest(HashAlgorithm::Sha256, &read.await.unwrap().unwrap());
        assert_eq!(hash, offer.narinfo.info.nar_hash.to_hash());
    }
    let offers = ask(&substituter, &simple(), Freshness::Fresh).await;
    assert_eq!(offers.offers.len(), 1);
}

#[actix::test]
async fn a_cache_that_stays_away_is_waited_for_once() {
    let (failing, run) = (Failing::start(), Run::new());
    let (substituter, offer) = after_a_failure(&failing, &run, 3).await;
    let (recipient, mut delays) = listener();
    let n_before = failing.server.requests().len();
    let error = open(&substituter, &offer, Some(recipient.clone())).await;
    let error = error.unwrap().unwrap_err();
    assert!(matches!(error, Error::LeftAlone { .. }), "{error}");
    // As often as the settings have a download tried.
    assert_eq!(failing.server.requests().len() - n_before, 3);
    assert!(delays.recv().await.is_some());
    for _ in 0..100 {
        let error = open(&substituter, &offer, Some(recipient.clone())).await;
        assert!(matches!(error, Ok(Err(Error::LeftAlone { .. }))));
    }
    assert_eq!(failing.server.requests().len() - n_before, 3);
    drop(recipient);
    assert!(delays.recv().await.is_none());
}

#[actix::test]
async fn whoever_waits_for_a_cache_is_told_when_everything_ends() {
    let (failing, run) = (Failing::start(), Run::new());
    let (substituter, offer) = after_a_failure(&failing, &run, 3).await;
    let (recipient, mut delays) = listener();
    let waiting = tokio::task::spawn_local(open(&substituter, &offer, Some(recipient)));
    delays.recv().await.unwrap();
    substituter.send(StopSubstituter).await.unwrap();
    assert!(matches!(waiting.await.unwrap(), Ok(Err(Error::Stopped))));
}
