//! Trees of another store, taken without their archives. Directories and links are made anew on every
//! file system; that contents are shared is shown by the end-to-end tests, which look for one that can.

use std::os::fd::OwnedFd;
use std::os::unix::fs::symlink;

use store_model::nar::Tree;
use tempfile::TempDir;

use super::*;
use crate::messages::ForgetContents;

/// A store's directory with one tree of directories and links in it, at the promised path.
struct Objects {
    dir: TempDir,
    promised: PathInfo,
    archive: Vec<u8>,
}

impl Objects {
    fn new() -> Self {
        let tree = Tree::directory([
            ("empty", Tree::directory::<&str>([])),
            ("link", Tree::symlink("empty")),
        ]);
        let archive = tree.to_nar().unwrap();
        let promised = promise(&archive);
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join(promised.path.base_name());
        fs::create_dir_all(root.join("empty")).unwrap();
        symlink("empty", root.join("link")).unwrap();
        Self {
            dir,
            promised,
            archive,
        }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join(self.promised.path.base_name())
    }

    fn open(&self) -> OwnedFd {
        fs::File::open(self.dir.path()).unwrap().into()
    }

    /// Restores what is promised, with `contents` as its archive.
    async fn restore(
        &self,
        registry: &Registry,
        contents: impl Read + Send + 'static,
    ) -> Result<RestoredPath, RestoreError> {
        let request = RestoreNar {
            promised: self.promised.clone(),
            contents: Box::new(contents),
            objects: Some(self.open()),
            cancel: CancelFlag::default(),
        };
        registry.store.send(request).await.unwrap()
    }
}

/// An archive that must not be read.
struct Unreadable;

impl Read for Unreadable {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("it was read"))
    }
}

#[actix::test]
async fn a_tree_is_made_anew_without_its_archive_and_with_metadata_of_its_own() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let objects = Objects::new();
    let restored = objects.restore(&registry, Unreadable).await.unwrap();
    register(&registry, restored, Occupied::Refused)
        .await
        .unwrap();
    let path = &objects.promised.path;
    let question = QueryGoodPaths {
        paths: vec![path.clone()],
    };
    // It has to be read to be found good.
    registry.store.do_send(ForgetContents);
    let good = registry.store.send(question).await.unwrap().unwrap();
    assert!(good.contains(path));
    let facts = fs::metadata(store.real_path(path).join("empty")).unwrap();
    assert_eq!((facts.mode() & 0o7777, facts.mtime()), (0o555, 1));
    registry.stop().await;
}

#[actix::test]
async fn a_tree_that_is_not_what_was_promised_is_refused_and_leaves_nothing() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let objects = Objects::new();
    fs::remove_file(objects.root().join("link")).unwrap();
    symlink("other", objects.root().join("link")).unwrap();
    match objects.restore(&registry, Unreadable).await {
        Err(RestoreError::Broken(reason)) => assert!(reason.contains("hash mismatch"), "{reason}"),
        other => panic!("{other:?}"),
    }
    assert_nothing_left(&store, &registry).await;
    registry.stop().await;
}

#[actix::test]
async fn where_the_tree_is_too_large_or_not_there_the_archive_decides() {
    let store = TestStore::new();
    let registry = store.start_and_settle().await;
    let large = Objects::new();
    for name in 0..100 {
        fs::create_dir(large.root().join(name.to_string())).unwrap();
    }
    let missing = Objects::new();
    fs::rename(missing.root(), missing.dir.path().join("elsewhere")).unwrap();
    for objects in [large, missing] {
        let failed = objects.restore(&registry, Unreadable).await;
        assert!(matches!(failed, Err(RestoreError::Source { .. })));
        assert_nothing_left(&store, &registry).await;
        let archive = Cursor::new(objects.archive.clone());
        drop(objects.restore(&registry, archive).await.unwrap());
    }
    registry.stop().await;
}
