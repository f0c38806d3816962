//! Files that no builder may ever change, and that no error may ever change for it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use crate::snapshot::Snapshot;
use crate::store::TestStore;

/// What a secret file says, to be looked for where it should not be.
pub const SECRET: &str = "CANARY-4b1d-do-not-copy";

/// A secret outside the store, a file of the store's state, and every path that was valid before.
#[derive(Debug)]
pub struct Canary {
    files: Vec<(PathBuf, Facts)>,
    valid_before: Snapshot,
}

#[derive(Debug, PartialEq, Eq)]
struct Facts {
    contents: Vec<u8>,
    mode: u32,
    owner: (u32, u32),
    inode: u64,
    n_links: u64,
    modified: (i64, i64),
}

impl Canary {
    /// Writes the secrets, both readable by their owner alone, and remembers the store.
    #[must_use]
    pub fn plant(store: &TestStore) -> Self {
        let files = [Self::secret(store), store.state().join("canary")]
            .into_iter()
            .map(|path| {
                std::fs::write(&path, SECRET).expect("a canary can be written");
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
                    .expect("one's own file can be closed");
                let facts = Facts::of(&path);
                (path, facts)
            })
            .collect();
        Self {
            files,
            valid_before: Snapshot::of(store),
        }
    }

    /// Returns where the secret outside the store lies.
    #[must_use]
    pub fn secret(store: &TestStore) -> PathBuf {
        store.dir().join("canary")
    }

    /// Fails if any of it has changed, or if the secret has come into the store.
    ///
    /// # Panics
    ///
    /// If so.
    #[track_caller]
    pub fn assert_untouched(&self, store: &TestStore) {
        for (path, before) in &self.files {
            assert_eq!(&Facts::of(path), before, "canary {}", path.display());
        }
        let now = Snapshot::of(store);
        for (path, before) in &self.valid_before.objects {
            assert_eq!(now.objects.get(path), Some(before), "{path} has changed");
        }
        assert_holds_no_secret(&store.objects());
    }
}

impl Facts {
    fn of(path: &Path) -> Self {
        let facts = path.symlink_metadata().expect("a canary stays where it is");
        Self {
            contents: std::fs::read(path).expect("a canary can be read"),
            mode: facts.mode(),
            owner: (facts.uid(), facts.gid()),
            inode: facts.ino(),
            n_links: facts.nlink(),
            modified: (facts.mtime(), facts.mtime_nsec()),
        }
    }
}

fn assert_holds_no_secret(top: &Path) {
    let mut remaining = vec![top.to_owned()];
    while let Some(path) = remaining.pop() {
        let kind = path
            .symlink_metadata()
            .expect("an object can be looked at")
            .file_type();
        if kind.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a directory of a store can be read");
            remaining.extend(entries.map(|entry| entry.expect("an entry can be read").path()));
        } else if kind.is_file() {
            let contents = std::fs::read(&path).expect("a file of a store can be read");
            let is_secret = contents
                .windows(SECRET.len())
                .any(|window| window == SECRET.as_bytes());
            assert!(!is_secret, "{} holds the secret", path.display());
        }
    }
}
