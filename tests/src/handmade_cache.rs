//! A binary cache that no store was ever copied to: as many paths as a test wants, each a small text
//! file, with whatever references it says.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use crate::invocation::Invocation;
use crate::requirement;
use crate::store::TestStore;

/// How many files one program is given to hash: the kernel limits what a command line holds.
const N_HASHED_AT_ONCE: usize = 1_000;

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
        let archives: Vec<PathBuf> = (0..n_paths)
            .map(|idx| nars.join(format!("{idx}.nar")))
            .collect();
        let mut sizes = Vec::new();
        for (idx, file) in archives.iter().enumerate() {
            let archive = archive_of(&text(idx));
            sizes.push(archive.len());
            fs::write(file, archive).expect("a fresh file can be written");
        }
        let hashes = hashes(store, &archives);
        for (idx, (hash, size)) in hashes.iter().zip(&sizes).enumerate() {
            let references: Vec<String> = shape.references(idx, n_paths).map(base_name).collect();
            let narinfo = format!(
                "StorePath: {}\nURL: nar/{idx}.nar\nCompression: none\nNarHash: sha256:{hash}\n\
                 NarSize: {size}\nReferences: {}\n",
                path(idx),
                references.join(" ")
            );
            fs::write(dir.join(format!("{idx:032}.narinfo")), narinfo)
                .expect("a fresh file can be written");
        }
        Self { dir, n_paths }
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

/// Returns the archive of a plain file that is not executable.
fn archive_of(text: &str) -> Vec<u8> {
    let words = [
        "nix-archive-1",
        "(",
        "type",
        "regular",
        "contents",
        text,
        ")",
    ];
    let mut archive = Vec::new();
    for word in words {
        let size = u64::try_from(word.len()).expect("a length fits");
        archive.extend(size.to_le_bytes());
        archive.extend(word.as_bytes());
        archive.resize(archive.len().next_multiple_of(8), 0);
    }
    archive
}

/// Has genuine Nix hash files; returns the hashes in its base-32.
fn hashes(store: &TestStore, files: &[PathBuf]) -> Vec<String> {
    let nix_hash = requirement::find_program("nix-hash").expect("it comes with Nix");
    let of_some = |files: &[PathBuf]| {
        let files = files.iter().map(OsString::from);
        let hashing = store.program(&nix_hash);
        let hashing = hashing.args(["--flat", "--type", "sha256", "--base32"]);
        hashing.args(files).succeed().output_lines()
    };
    files.chunks(N_HASHED_AT_ONCE).flat_map(of_some).collect()
}
