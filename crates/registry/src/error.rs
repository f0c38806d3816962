//! What can go wrong with a store on disk.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::ErrorCode;

/// A failure of the store: what was being done, and to what.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Going on would work on something that is not there.
    #[error("{operation} '{}'", path.display())]
    File {
        /// What was being done, such as "opening" or "renaming".
        operation: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Going on would use a database engine with known bugs in its write-ahead log.
    #[error("SQLite {found} is too old, {needed} or later is needed")]
    OldSqlite {
        /// Version number of the library that is linked.
        found: i32,
        /// The first version number that will do.
        needed: i32,
    },
    /// Going on would act on an answer that the database did not give.
    #[error("{operation} in database '{}'", path.display())]
    Database {
        /// What was being done, such as "querying references".
        operation: &'static str,
        /// The database file.
        path: PathBuf,
        /// The engine's answer.
        source: rusqlite::Error,
    },
    /// Going on would mix our rows with those of a writer who is still at it.
    #[error(
        "database '{}' is busy: another program kept it locked for {} s",
        path.display(),
        waited.as_secs()
    )]
    DatabaseBusy {
        /// The database file.
        path: PathBuf,
        /// How long we waited.
        waited: Duration,
    },
    /// Going on would trust, or overwrite, what is left of the store's memory.
    #[error("database '{}' is corrupt: {reason}", path.display())]
    DatabaseCorrupt {
        /// The offending file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Going on would forget every object that the store has.
    #[error(
        "database '{}' is missing though the store '{}' has objects such as '{example}'",
        path.display(),
        store.display()
    )]
    DatabaseMissing {
        /// Where the database should be.
        path: PathBuf,
        /// The store directory.
        store: PathBuf,
        /// One object in it.
        example: String,
    },
    /// Going on would write rows that a newer program reads differently.
    #[error("database schema version {found} is newer than {known}, in '{}'", path.display())]
    NewerSchema {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        found: u64,
        /// What this program writes.
        known: u64,
    },
    /// Going on would register outputs without the signatures that others trust them by.
    #[error("reading secret key file '{}' (option 'secret-key-files')", path.display())]
    ReadSecretKey {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Going on would register outputs without the signatures that others trust them by.
    #[error("secret key file '{}' (option 'secret-key-files')", path.display())]
    SecretKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it; the key itself is not shown.
        source: Box<store_model::Error>,
    },
    /// Going on would need tables that an old store does not have.
    #[error(
        "database schema version {found} is older than {known}, in '{}'; let Nix upgrade it first",
        path.display()
    )]
    OlderSchema {
        /// The file that says so.
        path: PathBuf,
        /// What it says.
        found: u64,
        /// What this program writes.
        known: u64,
    },
    /// Going on would use a path that may be half written.
    #[error("path '{path}' is not valid")]
    InvalidPath {
        /// Full path of the object.
        path: String,
    },
    /// Going on would make a path valid whose references are not (SPEC E2).
    #[error("cannot register '{path}': its reference '{reference}' is not valid")]
    InvalidReference {
        /// Full path of the object.
        path: String,
        /// Full path of what it refers to.
        reference: String,
    },
    /// Going on would look for realisations where none are kept.
    #[error("the store was opened without the experimental feature 'ca-derivations'")]
    NoRealisations,
    /// Going on would make two paths of one output, and dependents of both.
    #[error("'{output}' is realised by '{known}' here already, so it is not registered as '{new}'")]
    RealisationConflict {
        /// The output, as `HASH!NAME`.
        output: String,
        /// Full path of what is registered.
        known: String,
        /// Full path of what was to be.
        new: String,
    },
    /// Going on would record a dependency on an output that nobody can look up.
    #[error("cannot register '{output}': it depends on '{dependency}', which is not realised here")]
    UnknownRealisation {
        /// The output, as `HASH!NAME`.
        output: String,
        /// What it depends on.
        dependency: String,
    },
    /// Going on would call something valid that is not what it is said to be.
    #[error("hash mismatch in '{path}':\n  specified: {wanted}\n     got:    {got}")]
    OtherContents {
        /// Full path.
        path: String,
        /// Hash and size as they were said to be.
        wanted: String,
        /// What they are.
        got: String,
    },
    /// Going on would make paths that no order of registration or deletion suits.
    #[error("cycle detected in the references of '{path}' from '{referrer}'")]
    ReferenceCycle {
        /// Full path of one object of the cycle.
        path: String,
        /// Full path of another that refers to it.
        referrer: String,
    },
    /// Going on would replace an object that somebody may be using.
    #[error("'{}' exists already", path.display())]
    PathExists {
        /// Where something was to be put.
        path: PathBuf,
    },
    /// Going on would change what somebody else is working on, and waiting for them could last for
    /// ever: they may be waiting for us.
    #[error("path '{path}' is locked by somebody else, who may be making it")]
    Locked {
        /// The path.
        path: String,
    },
    /// Going on would lock, and later write to, something that is not a lock file (SECURITY X02).
    #[error("lock file '{}' {problem}", path.display())]
    BadLockFile {
        /// The lock file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// Going on would put something into the store that cannot be serialised.
    #[error("file '{}' is {kind}, which a store cannot hold", path.display())]
    UnsupportedFile {
        /// The file.
        path: PathBuf,
        /// Its type.
        kind: &'static str,
    },
    /// Going on would hand a file to the store that its builder only had a link to (SECURITY V07).
    #[error("invalid ownership on file '{}'", path.display())]
    ForeignOwner {
        /// The file.
        path: PathBuf,
    },
    /// Going on would leave a way to change a valid object from outside the store.
    #[error("file '{}' has a hard link outside the outputs of its build", path.display())]
    ForeignLink {
        /// The file.
        path: PathBuf,
    },
    /// Going on would register something whose serialisation nobody could read back.
    #[error("serialising '{}'", path.display())]
    Unarchivable {
        /// The root of the tree.
        path: PathBuf,
        /// What is wrong, and where in the tree.
        source: Box<store_model::Error>,
    },
    /// Going on would make an object that no reader accepts.
    #[error("'{}' is nested more than {limit} directories deep", path.display())]
    TooDeep {
        /// The first directory beyond the limit.
        path: PathBuf,
        /// Most directories below each other.
        limit: usize,
    },
    /// Going on would read, or delete, something else than what was looked at.
    #[error("'{}' was moved or replaced while it was in use", path.display())]
    Replaced {
        /// The file or directory.
        path: PathBuf,
    },
    /// Going on would name an object that Nix could not name.
    #[error("naming '{name}'")]
    Name {
        /// The name that was asked for.
        name: String,
        /// The rule that it breaks.
        source: Box<store_model::Error>,
    },
    /// Going on would build something else than the derivation's path promises (SECURITY V04).
    #[error("reading derivation '{path}'")]
    Derivation {
        /// Full path of the derivation.
        path: String,
        /// What is wrong with it.
        source: Box<store_model::Error>,
    },
    /// Going on would build from a text that is not the one its path was computed from.
    #[error("derivation '{path}' has the contents of '{expected}'")]
    DerivationPath {
        /// Full path of the derivation.
        path: String,
        /// The full path that follows from its contents.
        expected: String,
    },
    /// Going on would make a root that means something else in each working directory.
    #[error("garbage collector root '{}' is not an absolute path", path.display())]
    RelativeRoot {
        /// The link.
        path: PathBuf,
    },
    /// Going on would overwrite something that we did not make.
    #[error("cannot create symbolic link '{}': something else is there", path.display())]
    LinkOccupied {
        /// The link.
        path: PathBuf,
    },
    /// Going on would wait for an answer that nobody will give.
    #[error("the {name} thread failed; its messages say why")]
    WorkerLost {
        /// Which thread.
        name: &'static str,
    },
    /// Going on would tell one asker that all is well and another that it is not, about one sync
    /// and one transaction that they shared.
    #[error(transparent)]
    Shared(Arc<Error>),
    /// Going on would keep a processor and a disk busy for an answer that nobody wants.
    #[error("it was cancelled")]
    Cancelled,
    /// Going on would use a store that is being left.
    #[error("the registry has stopped")]
    Stopped,
    /// Going on would leave requests unanswered.
    #[error("starting the {name} thread")]
    StartThread {
        /// Which thread.
        name: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl Error {
    /// Says which operation failed on which file.
    pub(crate) fn file(
        operation: &'static str,
        path: impl AsRef<Path>,
        source: impl Into<io::Error>,
    ) -> Self {
        Self::File {
            operation,
            path: path.as_ref().to_owned(),
            source: source.into(),
        }
    }

    /// Says what the database engine refused, and whether that means a broken file.
    pub(crate) fn database(
        operation: &'static str,
        path: impl AsRef<Path>,
        source: rusqlite::Error,
    ) -> Self {
        let path = path.as_ref().to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::DatabaseCorrupt {
                path,
                reason: source.to_string(),
            },
            _ => Self::Database {
                operation,
                path,
                source,
            },
        }
    }
}
