//! What is in a store: the rows of its database, and what lies on the disk.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use crate::store::TestStore;

/// Every valid path of a store, with all that is known about it and all that lies there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// By full path.
    pub objects: BTreeMap<String, ValidObject>,
}

/// One valid path. The time of its registration is the only thing left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ValidObject {
    /// `sha256:` and the hash of its NAR in base 16.
    pub nar_hash: String,
    /// Size of its NAR in bytes.
    pub nar_size_bytes: i64,
    /// The derivation that made it.
    pub deriver: Option<String>,
    /// Whether it was built here.
    pub is_ultimate: bool,
    /// Signatures.
    pub signatures: Option<String>,
    /// Content address.
    pub content_address: Option<String>,
    /// What it refers to.
    pub references: BTreeSet<String>,
    /// Outputs that the database ascribes to it, by name.
    pub outputs: BTreeMap<String, String>,
    /// Every file of it, by path inside it.
    pub files: BTreeMap<String, FileFacts>,
}

/// What `lstat` says of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileFacts {
    /// Type and permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Size in bytes; 0 for directories, where it is the file system's own affair.
    pub size_bytes: u64,
    /// Time of modification in seconds and nanoseconds.
    pub modified: (i64, i64),
    /// Target of a link.
    pub target: Option<String>,
}

impl Snapshot {
    /// Reads a store.
    #[must_use]
    pub fn of(store: &TestStore) -> Self {
        let database = open(&store.database());
        let objects = valid_objects(&database)
            .into_iter()
            .map(|(path, mut object)| {
                object.files = walk(&store.real(&path));
                (path, object)
            })
            .collect();
        Self { objects }
    }

    /// Returns the full paths of the objects that are no derivations.
    pub fn outputs(&self) -> impl Iterator<Item = (&String, &ValidObject)> {
        self.objects
            .iter()
            .filter(|(path, _)| Path::new(path).extension().is_none_or(|end| end != "drv"))
    }

    /// Fails unless both stores hold the same, naming the first objects that differ.
    ///
    /// # Panics
    ///
    /// If they differ.
    #[track_caller]
    pub fn assert_same_as(&self, other: &Self) {
        let names = |snapshot: &Self| snapshot.objects.keys().cloned().collect::<BTreeSet<_>>();
        let first_only: Vec<_> = names(self).difference(&names(other)).cloned().collect();
        let others_only: Vec<_> = names(other).difference(&names(self)).cloned().collect();
        assert!(
            first_only.is_empty() && others_only.is_empty(),
            "valid only in the first store: {first_only:#?}\nvalid only in the second: {others_only:#?}"
        );
        for (path, object) in &self.objects {
            assert_eq!(Some(object), other.objects.get(path), "{path}");
        }
    }
}

/// Opens a store's database for reading.
#[must_use]
pub fn open(database: &Path) -> Connection {
    // Not read-only: the first reader of a WAL may have to make its index.
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    Connection::open_with_flags(database, flags)
        .unwrap_or_else(|error| panic!("{}: {error}", database.display()))
}

fn valid_objects(database: &Connection) -> BTreeMap<String, ValidObject> {
    let mut objects = BTreeMap::new();
    let mut query = database
        .prepare("select path, hash, narSize, deriver, ultimate, sigs, ca from ValidPaths")
        .expect("the database has Nix's tables");
    let rows = query
        .query_map([], |row| {
            let object = ValidObject {
                nar_hash: row.get(1)?,
                nar_size_bytes: row.get(2)?,
                deriver: row.get(3)?,
                is_ultimate: row.get::<_, Option<bool>>(4)?.unwrap_or(false),
                signatures: row.get(5)?,
                content_address: row.get(6)?,
                references: BTreeSet::new(),
                outputs: BTreeMap::new(),
                files: BTreeMap::new(),
            };
            Ok((row.get::<_, String>(0)?, object))
        })
        .expect("valid paths can be read");
    for row in rows {
        let (path, object) = row.expect("a valid path has these columns");
        objects.insert(path, object);
    }
    for (referrer, reference) in pairs(database, REFERENCES) {
        let object: &mut ValidObject = objects.get_mut(&referrer).expect("a referrer is valid");
        object.references.insert(reference);
    }
    for (output, path) in pairs(database, DERIVATION_OUTPUTS) {
        let (drv, name) = output.split_once('!').expect("the query joins with !");
        let object = objects.get_mut(drv).expect("a derivation is valid");
        object.outputs.insert(name.to_owned(), path);
    }
    objects
}

const REFERENCES: &str = "select a.path, b.path from Refs \
     join ValidPaths a on a.id = referrer join ValidPaths b on b.id = reference";

const DERIVATION_OUTPUTS: &str = "select v.path || '!' || o.id, o.path \
     from DerivationOutputs o join ValidPaths v on v.id = o.drv";

fn pairs(database: &Connection, query: &str) -> Vec<(String, String)> {
    database
        .prepare(query)
        .expect("the database has Nix's tables")
        .query_map([], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("pairs can be read")
        .collect::<Result<_, _>>()
        .expect("a pair is two texts")
}

/// Returns what `lstat` says of everything at and below `top`, by path relative to it.
#[must_use]
pub fn walk(top: &Path) -> BTreeMap<String, FileFacts> {
    let mut files = BTreeMap::new();
    let mut remaining = vec![top.to_owned()];
    while let Some(path) = remaining.pop() {
        let facts = path
            .symlink_metadata()
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let kind = facts.file_type();
        if kind.is_dir() {
            let entries = std::fs::read_dir(&path).expect("a directory of a store can be read");
            remaining.extend(entries.map(|entry| entry.expect("an entry can be read").path()));
        }
        let target = kind
            .is_symlink()
            .then(|| std::fs::read_link(&path).expect("a link has a target"));
        let name = path.strip_prefix(top).expect("everything is below the top");
        files.insert(
            name.to_string_lossy().into_owned(),
            FileFacts {
                mode: facts.mode(),
                owner: (facts.uid(), facts.gid()),
                size_bytes: if kind.is_dir() { 0 } else { facts.size() },
                modified: (facts.mtime(), facts.mtime_nsec()),
                target: target.map(|target| target.to_string_lossy().into_owned()),
            },
        );
    }
    files
}
