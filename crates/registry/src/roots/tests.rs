//! Temporary roots as a garbage collector sees them, and roots that users keep.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use store_model::{Hash, HashAlgorithm, Settings};

use super::*;
use crate::messages::{AddIndirectRoot, AddTempRoots, AddText, Added};
use crate::staging;
use crate::start::Registry;
use crate::testing::{TestStore, has_nix, path, until_waiting};
use crate::workers::WorkerPool;

fn layout(store: &TestStore) -> Arc<Layout> {
    Arc::new(Layout::open(store.layout(), &Settings::default()).unwrap())
}

fn roots_files(store: &TestStore) -> Vec<PathBuf> {
    fs::read_dir(store.layout().state_dir.join("temproots"))
        .unwrap()
        .map(|listed| listed.unwrap().path())
        .collect()
}

/// Returns the file of this process.
fn roots_file(store: &TestStore) -> PathBuf {
    let pid = std::process::id();
    store.layout().state_dir.join(format!("temproots/{pid}"))
}

/// Returns the digits of the paths that a collector would read, in the file's order.
fn read(store: &TestStore) -> String {
    let text = fs::read_to_string(roots_file(store)).unwrap();
    let digit = |root: &str| {
        let root = root.strip_prefix("/nix/store/").unwrap();
        let digit = root.chars().next().unwrap();
        assert_eq!(root, path(digit, "x").to_string());
        digit
    };
    assert!(text.is_empty() || text.ends_with('\0'));
    text.split_terminator('\0')
        .filter(|root| !root.ends_with(staging::NAME))
        .map(digit)
        .collect()
}

/// Returns a queue that nobody works on: the test settles by itself.
fn no_queue() -> RootsQueue {
    let pool = WorkerPool::start("nobody", vec![]).unwrap();
    pool.queue().downgrade()
}

fn lend(roots: &mut TempRoots, digits: &str) -> RootsLease {
    let paths = digits.chars().map(|digit| path(digit, "x")).collect();
    roots.lend(paths, &no_queue()).unwrap()
}

/// Drops a lease and has that taken note of.
fn give_back(roots: &mut TempRoots, lease: RootsLease) {
    drop(lease);
    roots.settle(&no_queue());
}

#[test]
fn roots_are_written_once_under_a_lock_and_gone_after() {
    let store = TestStore::new();
    let mut roots = TempRoots::open(layout(&store)).unwrap();
    assert!(roots_files(&store).is_empty());
    let _leases = ["ab", "b", "cc"].map(|digits| lend(&mut roots, digits));
    assert_eq!(read(&store), "abc");
    let file = roots_file(&store);
    assert_eq!(fs::metadata(&file).unwrap().mode(), 0o100_600);
    let other = fs::File::open(&file).unwrap();
    let locked = rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(locked, Err(Errno::WOULDBLOCK));
    drop(roots);
    assert!(roots_files(&store).is_empty());
}

#[test]
fn what_nobody_has_a_lease_of_leaves_the_file_once_it_is_more_than_half() {
    let store = TestStore::new();
    let mut roots = TempRoots::open(layout(&store)).unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|digits| lend(&mut roots, digits));
    give_back(&mut roots, a);
    assert_eq!(read(&store), "abc");
    give_back(&mut roots, b);
    assert_eq!(read(&store), "c");
    let d = lend(&mut roots, "d");
    assert_eq!(read(&store), "cd");
    give_back(&mut roots, c);
    give_back(&mut roots, d);
    assert_eq!(read(&store), "");
    assert_eq!(roots_files(&store), [roots_file(&store)]);
}

#[test]
fn a_path_stays_until_everybody_has_given_it_back() {
    let store = TestStore::new();
    let mut roots = TempRoots::open(layout(&store)).unwrap();
    let mut first = lend(&mut roots, "ab");
    let second = lend(&mut roots, "b");
    first.absorb(lend(&mut roots, "c"));
    let copy = first.clone();
    give_back(&mut roots, first);
    assert_eq!(read(&store), "abc");
    give_back(&mut roots, copy);
    assert_eq!(read(&store), "b");
    give_back(&mut roots, second);
    assert_eq!(read(&store), "");
}

#[test]
fn an_idle_path_that_is_lent_again_is_neither_written_twice_nor_forgotten() {
    let store = TestStore::new();
    let mut roots = TempRoots::open(layout(&store)).unwrap();
    let _kept = lend(&mut roots, "ab");
    let c = lend(&mut roots, "c");
    give_back(&mut roots, c);
    let _again = lend(&mut roots, "c");
    assert_eq!(read(&store), "abc");
    // Were it still counted as idle, this would be more than half.
    let d = lend(&mut roots, "d");
    give_back(&mut roots, d);
    assert_eq!(read(&store), "abcd");
}

#[test]
fn ten_thousand_paths_given_back_one_by_one_cost_a_few_rewritings() {
    let store = TestStore::new();
    let mut roots = TempRoots::open(layout(&store)).unwrap();
    let paths = (0..10_000).map(|number| path('a', &number.to_string()));
    let leases: Vec<RootsLease> = paths
        .map(|path| roots.lend(vec![path], &no_queue()).unwrap())
        .collect();
    let mut sizes = BTreeSet::new();
    for lease in leases {
        give_back(&mut roots, lease);
        sizes.insert(fs::metadata(roots_file(&store)).unwrap().len());
    }
    assert!(sizes.len() <= 16, "rewritten {} times", sizes.len());
    assert!(sizes.contains(&0));
}

#[test]
fn nothing_is_taken_out_while_a_collector_works() {
    let store = TestStore::new();
    let layout = layout(&store);
    let mut roots = TempRoots::open(Arc::clone(&layout)).unwrap();
    let a = lend(&mut roots, "a");
    let gc_lock = fs::File::create(layout.state("gc.lock")).unwrap();
    rustix::fs::flock(&gc_lock, FlockOperation::LockExclusive).unwrap();
    give_back(&mut roots, a);
    assert_eq!(read(&store), "a");
    drop(gc_lock);
    roots.settle(&no_queue());
    assert_eq!(read(&store), "");
}

#[actix::test]
async fn what_was_given_back_while_a_collector_worked_goes_when_it_has_ended() {
    let store = TestStore::new();
    let registry = store.start();
    let lease = root(&registry, vec![path('a', "x")]).await;
    let gc_lock = fs::File::create(store.layout().state_dir.join("gc.lock")).unwrap();
    rustix::fs::flock(&gc_lock, FlockOperation::LockExclusive).unwrap();
    drop(lease);
    // Nothing is asked of the registry any more: it waits by itself.
    until_waiting(&store.layout().state_dir.join("gc.lock")).await;
    assert_eq!(read(&store), "a");
    drop(gc_lock);
    while !read(&store).is_empty() {
        tokio::task::yield_now().await;
    }
    registry.stop().await;
}

#[test]
fn two_registries_of_one_process_keep_their_roots_apart() {
    let store = TestStore::new();
    let mut first = TempRoots::open(layout(&store)).unwrap();
    let _a = lend(&mut first, "a");
    let mut second = TempRoots::open(layout(&store)).unwrap();
    let _b = lend(&mut second, "b");
    assert_eq!(roots_files(&store).len(), 2);
    drop(first);
    assert_eq!(roots_files(&store).len(), 1);
}

#[test]
fn what_dead_processes_left_is_removed() {
    let store = TestStore::new();
    drop(TempRoots::open(layout(&store)).unwrap());
    let dir = store.layout().state_dir.join("temproots");
    fs::write(dir.join("99999999"), "/nix/store/x\0").unwrap();
    let alive = fs::File::create(dir.join("1")).unwrap();
    rustix::fs::flock(&alive, FlockOperation::LockExclusive).unwrap();
    drop(TempRoots::open(layout(&store)).unwrap());
    assert_eq!(roots_files(&store), [dir.join("1")]);
}

#[test]
fn a_collector_at_work_is_told_through_its_socket() {
    let store = TestStore::new();
    let layout = layout(&store);
    let mut roots = TempRoots::open(Arc::clone(&layout)).unwrap();
    fs::create_dir(layout.state("gc-socket")).unwrap();
    let listener = UnixListener::bind(layout.state("gc-socket/socket")).unwrap();
    let gc_lock = fs::File::create(layout.state("gc.lock")).unwrap();
    rustix::fs::flock(&gc_lock, FlockOperation::LockExclusive).unwrap();
    let collector = std::thread::spawn(move || {
        let (client, _) = listener.accept().unwrap();
        let mut told = Vec::new();
        let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
        for _ in 0..2 {
            told.push(lines.next().unwrap().unwrap());
            (&client).write_all(b"1").unwrap();
        }
        told
    });
    let _lease = lend(&mut roots, "ab");
    let told = collector.join().unwrap();
    let wanted = ['a', 'b'].map(|digit| format!("/nix/store/{}", path(digit, "x")));
    assert_eq!(told, wanted);
}

#[test]
fn a_collector_that_does_not_listen_is_waited_for() {
    let store = TestStore::new();
    let layout = layout(&store);
    let mut roots = TempRoots::open(Arc::clone(&layout)).unwrap();
    let gc_lock = fs::File::create(layout.state("gc.lock")).unwrap();
    rustix::fs::flock(&gc_lock, FlockOperation::LockExclusive).unwrap();
    let adding = std::thread::spawn(move || (lend(&mut roots, "a"), roots));
    drop(gc_lock);
    drop(adding.join().unwrap());
}

/// Makes paths temporary roots, and has everything that was given back before taken note of.
async fn root(registry: &Registry, paths: Vec<StorePath>) -> RootsLease {
    let request = AddTempRoots { paths };
    registry.store.send(request).await.unwrap().unwrap()
}

/// Adds a text for each name.
async fn add_texts(registry: &Registry, names: &[&str]) -> Vec<Added> {
    let mut added = Vec::new();
    for name in names {
        let request = AddText {
            name: (*name).to_owned(),
            contents: (*name).into(),
            references: BTreeSet::new(),
        };
        added.push(registry.store.send(request).await.unwrap().unwrap());
    }
    registry.locks_are_free().await;
    added
}

fn names(kept: &[&Added]) -> BTreeSet<String> {
    kept.iter().map(|added| added.path.to_string()).collect()
}

#[actix::test]
async fn nix_collects_what_is_no_root_and_keeps_what_is() {
    if !has_nix("nix_collects_what_is_no_root_and_keeps_what_is") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start();
    let added = add_texts(&registry, &["linked", "temporary", "garbage"]).await;
    registry.stop().await;
    // Adding made each of them a temporary root of the registry that has stopped.
    let registry = store.start();
    let link = store.root.join("result");
    let request = AddIndirectRoot {
        link: link.clone(),
        target: added[0].path.clone(),
    };
    registry.store.send(request).await.unwrap().unwrap();
    let _lease = root(&registry, vec![added[1].path.clone()]).await;
    store.nix_store(&["--gc"]);
    assert_eq!(store.objects(), names(&[&added[0], &added[1]]));
    assert_eq!(
        fs::read_link(&link).unwrap(),
        Path::new("/nix/store").join(added[0].path.base_name())
    );
    registry.stop().await;
}

#[actix::test]
async fn nix_collects_what_was_given_back_though_the_registry_goes_on() {
    if !has_nix("nix_collects_what_was_given_back_though_the_registry_goes_on") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start();
    let mut added = add_texts(&registry, &["kept", "one", "two"]).await;
    store.nix_store(&["--gc"]);
    assert_eq!(store.objects(), names(&[&added[0], &added[1], &added[2]]));
    for returned in &mut added[1..] {
        returned.roots = RootsLease::default();
    }
    root(&registry, vec![]).await;
    store.nix_store(&["--gc"]);
    assert_eq!(store.objects(), names(&[&added[0]]));
    registry.stop().await;
}

#[actix::test]
async fn a_collection_leaves_the_registry_the_directory_that_it_works_in() {
    if !has_nix("a_collection_leaves_the_registry_the_directory_that_it_works_in") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start();
    let before = add_texts(&registry, &["before"]).await;
    // Rewritten meanwhile, the file still has it.
    drop(root(&registry, vec![path('a', "x"), path('b', "x")]).await);
    root(&registry, vec![]).await;
    store.nix_store(&["--gc"]);
    let after = add_texts(&registry, &["after"]).await;
    assert_eq!(store.objects(), names(&[&before[0], &after[0]]));
    registry.stop().await;
}

#[actix::test]
async fn nix_about_to_read_the_roots_finds_all_of_them_and_they_go_once_it_has_ended() {
    if !has_nix("nix_about_to_read_the_roots_finds_all_of_them_and_they_go_once_it_has_ended") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start();
    let mut added = add_texts(&registry, &["kept", "one", "two"]).await;
    let roots = fs::read(roots_file(&store)).unwrap();
    // Nix stops here when it has the lock and has not read the roots.
    let gate = store.root.join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut collector = store
        .nix_store_command(&["--gc"])
        .env("_NIX_TEST_GC_SYNC", &gate)
        .stderr(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let gate = fs::OpenOptions::new().write(true).open(&gate).unwrap();
    for returned in &mut added[1..] {
        returned.roots = RootsLease::default();
    }
    until_waiting(&store.layout().state_dir.join("gc.lock")).await;
    assert_eq!(fs::read(roots_file(&store)).unwrap(), roots);
    drop(gate);
    assert!(collector.wait().unwrap().success());
    assert_eq!(store.objects(), names(&[&added[0], &added[1], &added[2]]));
    while fs::read(roots_file(&store)).unwrap() == roots {
        tokio::task::yield_now().await;
    }
    store.nix_store(&["--gc"]);
    assert_eq!(store.objects(), names(&[&added[0]]));
    registry.stop().await;
}

#[test]
fn a_link_that_is_not_ours_is_left_alone() {
    let store = TestStore::new();
    let layout = layout(&store);
    let link = store.root.join("result");
    let add = |link: &Path| add_indirect_root(&layout, link, &path('a', "x"));
    fs::write(&link, "mine").unwrap();
    assert!(matches!(add(&link), Err(Error::LinkOccupied { .. })));
    fs::remove_file(&link).unwrap();
    symlink("/etc", &link).unwrap();
    assert!(matches!(add(&link), Err(Error::LinkOccupied { .. })));
    fs::remove_file(&link).unwrap();
    symlink(format!("/nix/store/{}", path('b', "x")), &link).unwrap();
    add(&link).unwrap();
    let relative = add(Path::new("result"));
    assert!(matches!(relative, Err(Error::RelativeRoot { .. })));
    // As Nix names it: the SHA-1 of the link's path.
    let digest = Hash::digest(HashAlgorithm::Sha1, link.as_os_str().as_encoded_bytes());
    let auto = layout.state("gcroots/auto").join(digest.to_base32());
    assert_eq!(fs::read_link(auto).unwrap(), link);
}
