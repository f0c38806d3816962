//! A binary cache that no store was ever copied to: as many paths as a test wants, each a small text
//! file, with whatever references it says.

use std::fs;
use std::path::{Path, PathBuf};

use crate::archive::{Archive, Node};
use crate::invocation::Invocation;
use crate::publication::Publication;
use crate::store::TestStore;

/// Which paths the path with a number refers to, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// Each refers to the one before.
    Chain,
    /// The last refers to all others, which refer to nothing.
    Star,
}

/// A cache below a store's surroundings. Its paths are nobody's outputs and are not signed.
#[derive(Debug)]
pub struct HandmadeCache {
    dir: PathBuf,
    n_paths: usize,
}

impl HandmadeCache {
    /// Writes a cache of paths that refer to one another in some shape.
    #[must_use]
    pub fn beside(store: &TestStore, shape: Shape, n_paths: usize) -> Self {
        let dir = store.dir().join("handmade");
        let nars = dir.join("nar");
        fs::create_dir_all(&nars).expect("the store's surroundings are ours");
        fs::write(dir.join("nix-cache-info"), "StoreDir: /nix/store\n")
            .expect("a fresh file can be written");
        for idx in 0..n_paths {
            let published = Publication {
                path: path(idx),
                archive: Archive::of(&Node::file(text(idx))).into_bytes(),
                references: shape.references(idx, n_paths).map(path).collect(),
                deriver: None,
            };
            let write = |file: &str, contents: &[u8]| {
                fs::write(dir.join(file), contents).expect("a fresh file can be written");
            };
            write(&published.url(), &published.archive);
            let narinfo = published.narinfo().to_string();
            write(&published.narinfo_file(), narinfo.as_bytes());
        }
        Self { dir, n_paths }
    }

    /// Returns the directory that is the cache.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns the path whose closure is everything.
    #[must_use]
    pub fn top(&self) -> String {
        path(self.n_paths - 1)
    }

    /// Forgets the path that refers to nothing and that, in a chain, all others need; returns it.
    #[must_use]
    pub fn remove_first(&self) -> String {
        let narinfo = self.dir.join(format!("{:032}.narinfo", 0));
        fs::remove_file(narinfo).expect("the cache has the path");
        path(0)
    }

    /// Has a program ask this cache, and believe it.
    #[must_use]
    pub fn used_by(&self, invocation: Invocation) -> Invocation {
        invocation
            .option("substituters", format!("file://{}", self.dir.display()))
            .option("require-sigs", "false")
    }

    /// Fails unless a store has every path, with its own contents, valid, and nothing else.
    ///
    /// # Panics
    ///
    /// If a path is missing, or another is there.
    pub fn assert_fetched(&self, store: &TestStore) {
        let database = crate::snapshot::open(&store.database());
        let n_valid: i64 = database
            .query_row("select count(*) from ValidPaths", [], |row| row.get(0))
            .expect("the database has Nix's tables");
        assert_eq!(usize::try_from(n_valid), Ok(self.n_paths));
        for idx in 0..self.n_paths {
            let found = fs::read_to_string(store.real(&path(idx)));
            assert_eq!(found.ok(), Some(text(idx)), "{}", path(idx));
        }
    }
}

impl Shape {
    fn references(self, idx: usize, n_paths: usize) -> std::ops::Range<usize> {
        match self {
            Self::Chain => idx.saturating_sub(1)..idx,
            Self::Star if idx + 1 == n_paths => 0..idx,
            Self::Star => 0..0,
        }
    }
}

fn text(idx: usize) -> String {
    format!("the text of {idx}\n")
}

fn base_name(idx: usize) -> String {
    format!("{idx:032}-text")
}

fn path(idx: usize) -> String {
    format!("/nix/store/{}", base_name(idx))
}
