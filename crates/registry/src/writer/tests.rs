//! Batches: one sync and one transaction for many, and the fate of the bad ones among them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::mpsc::{Receiver, channel};

use rusqlite::Connection;
use store_model::{Hash, HashAlgorithm, NarHash, PathInfo, Settings, StorePath};

use super::*;
use crate::db::connection::prepare;
use crate::db::{DatabaseOptions, query};
use crate::testing::{TestStore, path};

struct Bench {
    store: TestStore,
    layout: Arc<Layout>,
    writer: Writer,
}

impl Bench {
    fn new() -> Self {
        let store = TestStore::new();
        let settings = Settings::default();
        let options = DatabaseOptions::from_settings(&settings);
        let layout = Arc::new(Layout::open(store.layout(), &settings).unwrap());
        drop(prepare(&layout, options).unwrap());
        let database = Database::open(&layout, options).unwrap();
        let writer = Writer::start(Arc::clone(&layout), database, ContentSync::Durable).unwrap();
        Self {
            store,
            layout,
            writer,
        }
    }

    fn reader(&self) -> Database {
        let options = DatabaseOptions::from_settings(&Settings::default());
        Database::open_reader(&self.layout, options).unwrap()
    }

    /// Queues a commit; returns where its outcome will arrive.
    fn submit(&self, registrations: Vec<Registration>) -> Receiver<Result<(), Error>> {
        for registration in &registrations {
            std::fs::write(self.store.real_path(&registration.info.path), "x").unwrap();
        }
        let (reply, outcome) = channel();
        self.writer.queue().submit_blocking(Commit {
            registrations,
            realisations: Vec::new(),
            signatures: BTreeMap::new(),
            done: Box::new(move |outcome| reply.send(outcome).unwrap()),
        });
        outcome
    }

    fn valid(&self) -> BTreeSet<StorePath> {
        query::all_valid_paths(&self.reader()).unwrap()
    }
}

fn registration(path: StorePath, references: &[StorePath]) -> Registration {
    let hash = Hash::digest(HashAlgorithm::Sha256, path.base_name().as_bytes());
    Registration {
        info: PathInfo {
            path,
            nar_hash: NarHash::try_from(hash).unwrap(),
            nar_size_bytes: 120,
            references: references.iter().cloned().collect(),
            deriver: None,
            registration_time: 0,
            ultimate: false,
            signatures: BTreeSet::new(),
            content_address: None,
        },
        derivation_outputs: Vec::new(),
    }
}

#[test]
fn registrations_that_wait_share_one_transaction() {
    let bench = Bench::new();
    // While another program writes, everything has to wait.
    let other = Connection::open(bench.store.database()).unwrap();
    other.execute_batch("begin immediate").unwrap();
    let outcomes: Vec<_> = (0..100)
        .map(|idx| bench.submit(vec![registration(path('a', &format!("p{idx}")), &[])]))
        .collect();
    other.execute_batch("rollback").unwrap();
    for outcome in outcomes {
        outcome.recv().unwrap().unwrap();
    }
    assert_eq!(bench.valid().len(), 100);
    // The first may have been on its way alone.
    let n_batches = bench.writer.queue().n_batches();
    assert!(n_batches <= 2, "{n_batches}");
    bench.writer.join();
}

fn commit() -> Commit {
    Commit {
        registrations: Vec::new(),
        realisations: Vec::new(),
        signatures: BTreeMap::new(),
        done: Box::new(|_| {}),
    }
}

#[test]
fn a_batch_waits_for_what_is_announced_while_there_is_patience_and_room() {
    let (commits, receiver) = mpsc::sync_channel(MAX_BATCH + 1);
    let a_day = Duration::from_hours(24);
    let n_announced = AtomicUsize::new(1);
    let n_gathered = |patience| gather(commit(), &receiver, patience, &n_announced).len();
    commits.send(commit()).unwrap();
    // What waits is taken without patience, too.
    assert_eq!(n_gathered(Duration::ZERO), 2);
    assert_eq!(n_gathered(Duration::ZERO), 1);
    for _ in 0..=MAX_BATCH {
        commits.send(commit()).unwrap();
    }
    assert_eq!(n_gathered(a_day), MAX_BATCH);
    n_announced.store(0, Ordering::Relaxed);
    // Two were left, and nobody is on the way.
    assert_eq!(n_gathered(a_day), 3);
    n_announced.store(1, Ordering::Relaxed);
    let sender = std::thread::spawn(move || commits.send(commit()).unwrap());
    // The sender is gone with its last commit, or it would be waited for a day.
    assert_eq!(n_gathered(a_day), 2);
    sender.join().unwrap();
}

#[test]
fn only_a_flood_waits_for_more_and_twice_as_long_as_the_disk_took_at_most() {
    let took = Duration::from_millis(7);
    assert_eq!(patience(1, took), Duration::ZERO);
    assert_eq!(patience(FLOOD, took), took * 2);
    assert_eq!(patience(MAX_BATCH, MAX_GATHERING * 9), MAX_GATHERING);
}

#[test]
fn a_bad_registration_fails_alone() {
    let bench = Bench::new();
    let other = Connection::open(bench.store.database()).unwrap();
    other.execute_batch("begin immediate").unwrap();
    let missing = path('c', "missing");
    let good = bench.submit(vec![registration(path('a', "good"), &[])]);
    let bad = bench.submit(vec![
        registration(path('b', "half"), &[]),
        registration(path('b', "bad"), &[missing]),
    ]);
    let later = bench.submit(vec![registration(path('d', "later"), &[path('a', "good")])]);
    other.execute_batch("rollback").unwrap();
    good.recv().unwrap().unwrap();
    let error = bad.recv().unwrap().unwrap_err();
    assert!(matches!(error, Error::InvalidReference { .. }), "{error}");
    later.recv().unwrap().unwrap();
    let expected = BTreeSet::from([path('a', "good"), path('d', "later")]);
    assert_eq!(bench.valid(), expected);
    bench.writer.join();
}

#[test]
fn paths_of_one_commit_may_refer_to_each_other_but_not_in_a_circle() {
    let bench = Bench::new();
    let (a, b) = (path('a', "a"), path('b', "b"));
    let chain = bench.submit(vec![
        registration(a.clone(), &[a.clone(), b.clone()]),
        registration(b.clone(), &[]),
    ]);
    chain.recv().unwrap().unwrap();
    let (c, d) = (path('c', "c"), path('d', "d"));
    let circle = bench.submit(vec![
        registration(c.clone(), std::slice::from_ref(&d)),
        registration(d, &[c]),
    ]);
    let error = circle.recv().unwrap().unwrap_err();
    assert!(matches!(error, Error::ReferenceCycle { .. }), "{error}");
    assert_eq!(bench.valid(), BTreeSet::from([a, b]));
    bench.writer.join();
}

#[test]
fn the_values_are_spelt_as_nix_spells_them() {
    let bench = Bench::new();
    let mut first = registration(path('a', "a"), &[]);
    first.info.ultimate = true;
    first.info.signatures = ["k:2".to_owned(), "k:1".to_owned()].into();
    first.info.deriver = Some(path('d', "a.drv"));
    first.info.registration_time = 1_700_000_000;
    bench.submit(vec![first.clone()]).recv().unwrap().unwrap();
    let bare = registration(path('b', "b"), &[]);
    bench.submit(vec![bare]).recv().unwrap().unwrap();
    let dump = |name: &str| -> Vec<Option<String>> {
        let columns = "path hash registrationTime deriver narSize ultimate sigs ca";
        let reader = bench.reader();
        columns
            .split(' ')
            .map(|column| {
                let sql =
                    format!("select cast({column} as text) from ValidPaths where path like ?");
                let pattern = format!("%{name}");
                reader
                    .connection
                    .query_row(&sql, [pattern], |row| row.get(0))
                    .unwrap()
            })
            .collect()
    };
    let some = |text: &str| Some(text.to_owned());
    assert_eq!(
        dump("-a"),
        [
            some("/nix/store/aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa-a"),
            Some(first.info.nar_hash.to_database()),
            some("1700000000"),
            some("/nix/store/dddddddddddddddddddddddddddddddd-a.drv"),
            some("120"),
            some("1"),
            some("k:1 k:2"),
            None,
        ]
    );
    let bare = dump("-b");
    assert_eq!(bare[5..], [None, None, None]);
    assert_eq!(bare[3], None);
    assert!(bare[2].as_ref().unwrap().parse::<i64>().unwrap() > 1_700_000_000);
    bench.writer.join();
}

#[test]
fn a_panic_in_an_answer_is_not_the_writers_end() {
    let bench = Bench::new();
    bench.writer.queue().submit_blocking(Commit {
        registrations: vec![registration(path('a', "a"), &[])],
        realisations: Vec::new(),
        signatures: BTreeMap::new(),
        done: Box::new(|_| panic!("on purpose")),
    });
    let next = bench.submit(vec![registration(path('b', "b"), &[])]);
    next.recv().unwrap().unwrap();
    bench.writer.join();
}

#[test]
fn a_database_that_breaks_fails_the_whole_batch_and_nothing_is_half_registered() {
    let bench = Bench::new();
    let other = Connection::open(bench.store.database()).unwrap();
    other.execute_batch("drop table Refs").unwrap();
    let outcome = bench.submit(vec![
        registration(path('a', "a"), &[]),
        registration(path('b', "b"), &[path('a', "a")]),
    ]);
    outcome.recv().unwrap().unwrap_err();
    assert_eq!(bench.valid(), BTreeSet::new());
    bench.writer.join();
}
