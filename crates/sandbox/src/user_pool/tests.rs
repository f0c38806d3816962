//! Real lock files, and other processes' stand-ins: a lock belongs to an open file, not a process.

use std::sync::mpsc;
use std::time::Duration;

use super::*;

const PATIENCE: Duration = Duration::from_secs(30);

fn pool(state_dir: &Path, n_users: u32) -> UserPool {
    let settings = Settings {
        // Far from what other tests of this machine lock.
        start_id: 2_000_000_000 + (std::process::id() % 1000) * 65_536,
        id_count: n_users * 65_536,
        ..Settings::default()
    };
    UserPool::open(state_dir, &settings).unwrap()
}

fn acquire(pool: &UserPool) -> BuildUser {
    pool.acquire(&Withdrawal::default(), || {}).unwrap()
}

/// Acquires on a thread; the first message says that it waits, the second which uid it got.
fn acquire_later(pool: &Arc<UserPool>, withdrawal: &Arc<Withdrawal>) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    let (pool, withdrawal) = (Arc::clone(pool), Arc::clone(withdrawal));
    thread::spawn(move || {
        let got = pool.acquire(&withdrawal, || sender.send("waits".to_owned()).unwrap());
        let said = match &got {
            Ok(user) => user.uid.to_string(),
            Err(error) => error.to_string(),
        };
        sender.send(said).unwrap();
    });
    receiver
}

#[test]
fn no_two_builds_have_one_user_and_a_released_one_is_given_on() {
    let state = tempfile::tempdir().unwrap();
    let pool = Arc::new(pool(state.path(), 2));
    let (first, second) = (acquire(&pool), acquire(&pool));
    assert_ne!(first.uid, second.uid);
    let waiting = acquire_later(&pool, &Arc::default());
    assert_eq!(waiting.recv_timeout(PATIENCE).unwrap(), "waits");
    assert!(waiting.try_recv().is_err());
    let uid = second.uid.to_string();
    drop(second);
    assert_eq!(waiting.recv_timeout(PATIENCE).unwrap(), uid);
}

#[test]
fn a_user_that_another_process_has_is_passed_over_and_waited_for() {
    let state = tempfile::tempdir().unwrap();
    let (ours, theirs) = (pool(state.path(), 2), pool(state.path(), 2));
    let taken = acquire(&theirs);
    let ours = Arc::new(ours);
    let own = acquire(&ours);
    assert_ne!(own.uid, taken.uid);
    let waiting = acquire_later(&ours, &Arc::default());
    assert_eq!(waiting.recv_timeout(PATIENCE).unwrap(), "waits");
    let uid = taken.uid.to_string();
    drop(taken);
    assert_eq!(waiting.recv_timeout(PATIENCE).unwrap(), uid);
}

#[test]
fn a_build_that_is_given_up_waits_no_longer() {
    let state = tempfile::tempdir().unwrap();
    let pool = Arc::new(pool(state.path(), 1));
    let only = acquire(&pool);
    let withdrawal = Arc::default();
    let waiting = acquire_later(&pool, &withdrawal);
    assert_eq!(waiting.recv_timeout(PATIENCE).unwrap(), "waits");
    pool.withdraw(&withdrawal);
    let said = waiting.recv_timeout(PATIENCE).unwrap();
    assert!(said.contains("given up"), "{said}");
    // Before it could even wait.
    let said = pool
        .acquire(&withdrawal, || panic!("it waits"))
        .unwrap_err();
    assert!(said.to_string().contains("given up"), "{said}");
    drop(only);
}

#[test]
fn many_builds_share_few_users_and_none_is_forgotten() {
    let state = tempfile::tempdir().unwrap();
    let pool = Arc::new(pool(state.path(), 3));
    let in_use: Arc<Mutex<BTreeSet<u32>>> = Arc::default();
    let builds: Vec<_> = (0..30)
        .map(|_| {
            let (pool, in_use) = (Arc::clone(&pool), Arc::clone(&in_use));
            thread::spawn(move || {
                for _ in 0..20 {
                    let user = acquire(&pool);
                    assert!(in_use.lock().unwrap().insert(user.uid));
                    thread::yield_now();
                    assert!(in_use.lock().unwrap().remove(&user.uid));
                }
            })
        })
        .collect();
    for build in builds {
        build.join().unwrap();
    }
}

#[test]
fn without_the_group_users_come_from_the_range() {
    let state = tempfile::tempdir().unwrap();
    let settings = Settings {
        build_users_group: "no-such-group".to_owned(),
        ..Settings::default()
    };
    let pool = UserPool::open(state.path(), &settings).unwrap();
    assert_eq!(pool.origin, Origin::Range);
    assert_eq!(pool.accounts.len(), 128);
    assert_eq!(pool.accounts[1].uid, settings.start_id + 65_536);
    assert!(state.path().join("userpool2").is_dir());
}
