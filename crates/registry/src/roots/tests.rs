//! Temporary roots as a garbage collector sees them, and roots that users keep.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::os::unix::net::UnixListener;

use store_model::Settings;

use super::*;
use crate::messages::{AddIndirectRoot, AddTempRoots, AddText};
use crate::testing::{TestStore, has_nix, path};

fn layout(store: &TestStore) -> Arc<Layout> {
    Arc::new(Layout::open(store.layout(), &Settings::default()).unwrap())
}

fn roots_files(store: &TestStore) -> Vec<PathBuf> {
    fs::read_dir(store.layout().state_dir.join("temproots"))
        .unwrap()
        .map(|listed| listed.unwrap().path())
        .collect()
}

#[test]
fn roots_are_written_once_under_a_lock_and_gone_after() {
    let store = TestStore::new();
    let mut roots = TempRoots::open(layout(&store)).unwrap();
    assert!(roots_files(&store).is_empty());
    roots.add(vec![path('a', "x"), path('b', "x")]).unwrap();
    roots.add(vec![path('b', "x")]).unwrap();
    roots.add(vec![path('c', "x")]).unwrap();
    let file = store
        .layout()
        .state_dir
        .join(format!("temproots/{}", std::process::id()));
    let text = fs::read_to_string(&file).unwrap();
    let wanted: String = ['a', 'b', 'c']
        .map(|digit| format!("/nix/store/{}\0", path(digit, "x")))
        .concat();
    assert_eq!(text, wanted);
    assert_eq!(fs::metadata(&file).unwrap().mode(), 0o100_600);
    let other = fs::File::open(&file).unwrap();
    let locked = rustix::fs::flock(&other, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(locked, Err(Errno::WOULDBLOCK));
    drop(roots);
    assert!(roots_files(&store).is_empty());
}

#[test]
fn two_registries_of_one_process_keep_their_roots_apart() {
    let store = TestStore::new();
    let mut first = TempRoots::open(layout(&store)).unwrap();
    first.add(vec![path('a', "x")]).unwrap();
    let mut second = TempRoots::open(layout(&store)).unwrap();
    second.add(vec![path('b', "x")]).unwrap();
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
    roots.add(vec![path('a', "x"), path('b', "x")]).unwrap();
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
    let adding = std::thread::spawn(move || roots.add(vec![path('a', "x")]).map(|()| roots));
    drop(gc_lock);
    drop(adding.join().unwrap().unwrap());
}

#[actix::test]
async fn nix_collects_what_is_no_root_and_keeps_what_is() {
    if !has_nix("nix_collects_what_is_no_root_and_keeps_what_is") {
        return;
    }
    let store = TestStore::new();
    let registry = store.start();
    let mut paths = Vec::new();
    for name in ["linked", "temporary", "garbage"] {
        let request = AddText {
            name: name.to_owned(),
            contents: name.into(),
            references: std::collections::BTreeSet::new(),
        };
        paths.push(registry.store.send(request).await.unwrap().unwrap());
    }
    registry.stop().await;
    // Adding made each of them a temporary root of the registry that has stopped.
    let registry = store.start();
    let link = store.root.join("result");
    let request = AddIndirectRoot {
        link: link.clone(),
        target: paths[0].clone(),
    };
    registry.store.send(request).await.unwrap().unwrap();
    let request = AddTempRoots {
        paths: vec![paths[1].clone()],
    };
    registry.store.send(request).await.unwrap().unwrap();
    store.nix_store(&["--gc"]);
    let left = [&paths[0], &paths[1]].map(|path| path.base_name().to_owned());
    assert_eq!(store.objects(), left.into());
    assert_eq!(
        fs::read_link(&link).unwrap(),
        Path::new("/nix/store").join(paths[0].base_name())
    );
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
