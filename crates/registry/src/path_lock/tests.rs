//! The protocol between programs, and what somebody may plant to break it.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::*;
use crate::messages::{AwaitLock, TryLockOutputs};
use crate::start::Registry;
use crate::testing::{Canary, TestStore, path, until_waiting};

/// Another process that holds a lock until its standard input ends.
struct Holder {
    child: Child,
}

impl Holder {
    fn new(lock: &Path) -> Self {
        // The shell's own descriptor: flock(1) is gone before anybody looks for the holder.
        let script = "exec 9>>\"$0\"; flock -x 9; echo locked; read line; :";
        let file = fs::File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock)
            .unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o600))
            .unwrap();
        let mut child = Command::new("sh")
            .args(["-c", script])
            .arg(lock)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "locked\n");
        Self { child }
    }

    fn release(mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

fn lock_file(store: &TestStore, path: &StorePath) -> PathBuf {
    store.layout().real_store_dir.join(format!("{path}.lock"))
}

async fn try_lock(registry: &Registry, paths: &[StorePath]) -> Result<LockAttempt, Error> {
    let paths = paths.iter().cloned().collect();
    registry.locks.send(TryLockOutputs { paths }).await.unwrap()
}

async fn lock(registry: &Registry, paths: &[StorePath]) -> OutputLocks {
    match try_lock(registry, paths).await.unwrap() {
        LockAttempt::Acquired(locks) => locks,
        LockAttempt::Busy { path, holder } => panic!("{path} is held by {holder:?}"),
    }
}

async fn expect_busy(registry: &Registry, wanted: &StorePath, wanted_holder: LockHolder) {
    match try_lock(registry, std::slice::from_ref(wanted))
        .await
        .unwrap()
    {
        LockAttempt::Acquired(_) => panic!("{wanted} is free"),
        LockAttempt::Busy { path, holder } => {
            assert_eq!((&path, holder), (wanted, wanted_holder));
        }
    }
}

#[actix::test]
async fn a_lock_file_is_private_and_gone_after() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let path = path('a', "x");
    let locks = lock(&registry, std::slice::from_ref(&path)).await;
    let metadata = fs::metadata(lock_file(&store, &path)).unwrap();
    assert_eq!(metadata.mode(), 0o100_600);
    let mut open = fs::File::open(lock_file(&store, &path)).unwrap();
    drop(locks);
    registry.locks_are_free().await;
    assert!(!lock_file(&store, &path).exists());
    // Whoever had it open sees the token of a stale lock.
    let mut token = String::new();
    open.read_to_string(&mut token).unwrap();
    assert_eq!(token, "d");
}

#[actix::test]
async fn all_locks_are_taken_or_none() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let (first, second) = (path('a', "x"), path('b', "x"));
    let held = lock(&registry, std::slice::from_ref(&second)).await;
    match try_lock(&registry, &[second.clone(), first.clone()])
        .await
        .unwrap()
    {
        LockAttempt::Acquired(_) => panic!("both were free"),
        LockAttempt::Busy { path, holder } => {
            assert_eq!((path, holder), (second.clone(), LockHolder::ThisProcess));
        }
    }
    registry.locks_are_free().await;
    assert!(!lock_file(&store, &first).exists());
    drop(held);
    registry.locks_are_free().await;
    drop(lock(&registry, &[first, second]).await);
}

#[actix::test]
async fn another_process_that_holds_a_lock_is_named() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let path = path('a', "x");
    let holder = Holder::new(&lock_file(&store, &path));
    let pid = holder.child.id();
    let text = fs::read_to_string("/proc/locks").unwrap();
    if text.is_empty() {
        return crate::testing::skip("/proc/locks is not readable here");
    }
    match try_lock(&registry, std::slice::from_ref(&path))
        .await
        .unwrap()
    {
        LockAttempt::Acquired(_) => panic!("the lock is free"),
        // The shell's child may be the one that asked for the lock.
        LockAttempt::Busy { holder, .. } => assert!(
            matches!(holder, LockHolder::Process(found) if found >= pid),
            "{holder:?}"
        ),
    }
    holder.release();
}

#[expect(clippy::disallowed_methods, reason = "it measures real time")]
#[actix::test]
async fn a_lock_released_by_another_process_wakes_its_waiter_at_once() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let path = path('a', "x");
    let mut delays = Vec::new();
    for _ in 0..10 {
        let mut holder = Holder::new(&lock_file(&store, &path));
        let waiting = registry.locks.send(AwaitLock { path: path.clone() });
        let waiting = actix::spawn(waiting);
        until_waiting(&lock_file(&store, &path)).await;
        let released = Instant::now();
        drop(holder.child.stdin.take());
        waiting.await.unwrap().unwrap().unwrap();
        delays.push(released.elapsed());
        holder.child.wait().unwrap();
    }
    delays.sort();
    assert!(delays[5] <= Duration::from_millis(20), "{delays:?}");
}

#[actix::test]
async fn many_waiters_share_a_thread_and_all_wake() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let path = path('a', "x");
    let holder = Holder::new(&lock_file(&store, &path));
    let waiting: Vec<_> = (0..50)
        .map(|_| actix::spawn(registry.locks.send(AwaitLock { path: path.clone() })))
        .collect();
    until_waiting(&lock_file(&store, &path)).await;
    let n_threads = fs::read_dir("/proc/self/task")
        .unwrap()
        .filter(|task| {
            let comm = task.as_ref().unwrap().path().join("comm");
            fs::read_to_string(comm).is_ok_and(|name| name == "registry-lock\n")
        })
        .count();
    // Other tests of this process may wait for locks of their own.
    assert!(n_threads < 20, "{n_threads}");
    // One of them no longer wants to know.
    waiting[7].abort();
    holder.release();
    for (idx, waiter) in waiting.into_iter().enumerate() {
        if idx != 7 {
            waiter.await.unwrap().unwrap().unwrap();
        }
    }
}

#[actix::test]
async fn a_lock_of_this_process_wakes_its_waiter_from_any_thread() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let path = path('a', "x");
    let held = lock(&registry, std::slice::from_ref(&path)).await;
    expect_busy(&registry, &path, LockHolder::ThisProcess).await;
    let waiting = actix::spawn(registry.locks.send(AwaitLock { path: path.clone() }));
    tokio::task::yield_now().await;
    std::thread::spawn(move || drop(held)).join().unwrap();
    waiting.await.unwrap().unwrap().unwrap();
    drop(lock(&registry, &[path]).await);
}

#[actix::test]
async fn a_free_lock_is_not_waited_for() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let path = path('a', "x");
    registry
        .locks
        .send(AwaitLock { path: path.clone() })
        .await
        .unwrap()
        .unwrap();
    assert!(!lock_file(&store, &path).exists());
}

#[actix::test]
async fn a_stale_lock_file_that_nobody_removed_is_replaced() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let path = path('a', "x");
    fs::write(lock_file(&store, &path), "d").unwrap();
    let locks = lock(&registry, std::slice::from_ref(&path)).await;
    assert_eq!(fs::metadata(lock_file(&store, &path)).unwrap().len(), 0);
    drop(locks);
}

#[actix::test]
async fn a_planted_link_is_refused_and_its_target_not_written_to() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let path = path('a', "x");
    let canary = Canary::new(store.root.join("canary"));
    symlink(canary.path(), lock_file(&store, &path)).unwrap();
    let refused = try_lock(&registry, std::slice::from_ref(&path)).await;
    assert!(
        matches!(
            refused,
            Err(Error::BadLockFile {
                problem: "is a symbolic link",
                ..
            })
        ),
        "{refused:?}"
    );
    let waiting = registry.locks.send(AwaitLock { path }).await.unwrap();
    assert!(waiting.is_err());
    canary.check();
}

#[actix::test]
async fn a_planted_hard_link_is_never_written_to() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let path = path('a', "x");
    let canary = Canary::new(store.root.join("canary"));
    let empty = store.root.join("empty");
    fs::write(&empty, "").unwrap();
    for target in [canary.path(), &empty] {
        fs::hard_link(target, lock_file(&store, &path)).unwrap();
        drop(lock(&registry, std::slice::from_ref(&path)).await);
        registry.locks_are_free().await;
    }
    canary.check();
    assert_eq!(fs::read(&empty).unwrap(), b"");
}

#[actix::test]
async fn a_planted_pipe_directory_or_locked_away_file_neither_hangs_nor_crashes() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let pipe = path('a', "x");
    let mode = Mode::RUSR | Mode::WUSR;
    rustix::fs::mknodat(
        rustix::fs::CWD,
        lock_file(&store, &pipe),
        FileType::Fifo,
        mode,
        0,
    )
    .unwrap();
    let dir = path('b', "x");
    fs::create_dir(lock_file(&store, &dir)).unwrap();
    for path in [pipe, dir] {
        let refused = try_lock(&registry, std::slice::from_ref(&path)).await;
        assert!(
            matches!(refused, Err(Error::BadLockFile { .. })),
            "{refused:?}"
        );
        assert!(
            registry
                .locks
                .send(AwaitLock { path })
                .await
                .unwrap()
                .is_err()
        );
    }
    let closed = path('c', "x");
    fs::write(lock_file(&store, &closed), "").unwrap();
    let mode = fs::Permissions::from_mode(0o000);
    fs::set_permissions(lock_file(&store, &closed), mode).unwrap();
    // Root may open it; anybody else is told why not.
    let locked = try_lock(&registry, &[closed]).await;
    assert_eq!(locked.is_ok(), rustix::process::geteuid().is_root());
}

#[actix::test]
async fn a_planted_lock_of_another_user_is_refused() {
    if !crate::testing::is_root("a_planted_lock_of_another_user_is_refused") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let path = path('a', "x");
    let file = lock_file(&store, &path);
    fs::write(&file, "").unwrap();
    std::os::unix::fs::chown(&file, Some(crate::testing::BUILDER_UID), None).unwrap();
    let refused = try_lock(&registry, &[path]).await;
    assert!(
        matches!(refused, Err(Error::BadLockFile { .. })),
        "{refused:?}"
    );
}

#[test]
fn the_holder_is_found_by_device_and_inode() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let stat = rustix::fs::fstat(&file).unwrap();
    let id = format!(
        "{:02x}:{:02x}:{}",
        rustix::fs::major(stat.st_dev),
        rustix::fs::minor(stat.st_dev),
        stat.st_ino
    );
    let mut text = Vec::new();
    writeln!(text, "1: POSIX  ADVISORY  WRITE 11 {id} 0 EOF").unwrap();
    writeln!(text, "2: FLOCK  ADVISORY  WRITE 22 00:01:1 0 EOF").unwrap();
    writeln!(text, "2: -> FLOCK  ADVISORY  WRITE 33 {id} 0 EOF").unwrap();
    writeln!(text, "3: FLOCK  ADVISORY  WRITE 44 {id} 0 EOF").unwrap();
    let text = String::from_utf8(text).unwrap();
    assert_eq!(find_holder(&text, &stat), Some(44));
    assert_eq!(find_holder("", &stat), None);
}
