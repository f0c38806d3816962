//! Opening the database: checks that it is whole and ours, and the pragmas of each connection.

use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, Transaction, TransactionBehavior};
use rustix::fs::{FallocateFlags, FlockOperation};
use rustix::io::Errno;
use store_model::settings::MetadataSync;
use store_model::{Settings, StoreDir};

use super::schema::{self, SchemaFile};
use crate::Error;
use crate::layout::Layout;

/// 3.51.3: the first release without the write-ahead log's reset race, which loses commits.
const NEEDED_SQLITE: i32 = 3_051_003;

/// Room that is given back when the disk is full, so that garbage can still be collected.
const RESERVED_BYTES: u64 = 8 << 20;

/// Largest database that is read through at every start; 20 ms at most. Beyond it each query still
/// checks the pages that it touches.
const CHECKED_BYTES: u64 = 32 << 20;

/// Pages of log after which it is folded into the database: 16 MB. Nix waits for 160 MB, which
/// saves syncs but makes the one that folds them stall everybody for seconds.
const CHECKPOINT_PAGES: u32 = 4_000;

/// After how long a new database is tried again that somebody else is just making, too.
const NEW_DATABASE_PAUSE: Duration = Duration::from_millis(2);

/// How long we wait for another writer before we say so.
const BUSY_WARNING_AFTER: Duration = Duration::from_secs(1);

/// How connections behave.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DatabaseOptions {
    /// How durable a commit is.
    pub(crate) metadata_sync: MetadataSync,
    /// How long to wait for another program that keeps the database locked.
    pub(crate) busy_limit: Duration,
    /// Whether realisations are kept.
    pub(crate) realisations: Realisations,
}

/// Whether a store remembers which outputs of which derivations its paths are (`ca-derivations`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Realisations {
    /// It does, and its database has the tables for it.
    Kept,
    /// It does not.
    Absent,
}

impl DatabaseOptions {
    /// Takes what the user chose; waits for an hour, as Nix does.
    pub(crate) fn from_settings(settings: &Settings) -> Self {
        Self {
            metadata_sync: settings.metadata_sync,
            busy_limit: Duration::from_hours(1),
            realisations: if settings.has_ca_derivations() {
                Realisations::Kept
            } else {
                Realisations::Absent
            },
        }
    }
}

/// One connection, and what is needed to speak about it.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) connection: Connection,
    pub(crate) path: PathBuf,
    pub(crate) store_dir: StoreDir,
    busy_limit: Duration,
}

/// Keeps other programs from changing the schema, and holds room on the disk.
#[derive(Debug)]
pub(crate) struct SchemaGuard {
    _big_lock: OwnedFd,
}

/// Checks the database, making a new one in a new store, and keeps its schema as it is.
///
/// # Errors
/// The database is corrupt, missing, of another version, or cannot be reached.
pub(crate) fn prepare(layout: &Layout, options: DatabaseOptions) -> Result<SchemaGuard, Error> {
    let found = rusqlite::version_number();
    if found < NEEDED_SQLITE {
        return Err(Error::OldSqlite {
            found,
            needed: NEEDED_SQLITE,
        });
    }
    let dir = layout.state("db");
    reserve_room(&dir.join("reserved"))?;
    let guard = SchemaGuard {
        _big_lock: lock_schema(&dir.join("big-lock"))?,
    };
    let schema_file = dir.join("schema");
    let path = database_path(layout);
    let n_bytes = fs::metadata(&path).map_or(0, |metadata| metadata.len());
    match schema::read_schema_file(&schema_file)? {
        SchemaFile::Current if n_bytes > 0 => {
            let database = Database::open(layout, options)?;
            database.check_whole(n_bytes)?;
            schema::check(&database.connection, &path)?;
        }
        SchemaFile::Current => {
            schema::check_new_store(layout, &path)?;
            return Err(Error::DatabaseCorrupt {
                path,
                reason: "it is empty or missing, but its schema file is there".to_owned(),
            });
        }
        SchemaFile::Empty if n_bytes > 0 => {
            return Err(Error::DatabaseCorrupt {
                path: schema_file,
                reason: "the schema file is empty".to_owned(),
            });
        }
        SchemaFile::Absent | SchemaFile::Empty => {
            if n_bytes == 0 {
                schema::check_new_store(layout, &path)?;
            }
            let mut database = Database::open(layout, options)?;
            database.check_whole(n_bytes)?;
            schema::create(&mut database.connection, &path)?;
            drop(database);
            schema::write_schema_file(&schema_file)?;
        }
    }
    if options.realisations == Realisations::Kept {
        let mut database = Database::open(layout, options)?;
        let version_file = dir.join("ca-schema");
        schema::provide_realisations(&mut database.connection, &path, &version_file)?;
    }
    Ok(guard)
}

impl Database {
    /// Opens one connection.
    ///
    /// # Errors
    /// The file cannot be opened or is no database.
    pub(crate) fn open(layout: &Layout, options: DatabaseOptions) -> Result<Self, Error> {
        let path = database_path(layout);
        let failed = |source| Error::database("opening", &path, source);
        let connection = Connection::open_with_flags(
            &path,
            OpenFlags::SQLITE_OPEN_READ_WRITE
                | OpenFlags::SQLITE_OPEN_CREATE
                | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )
        .map_err(failed)?;
        connection
            .busy_timeout(options.busy_limit)
            .map_err(failed)?;
        keep_log(&connection, options.busy_limit).map_err(failed)?;
        configure(&connection, options.metadata_sync).map_err(failed)?;
        Ok(Self {
            connection,
            store_dir: layout.paths.store_dir.clone(),
            busy_limit: options.busy_limit,
            path,
        })
    }

    /// Opens one connection that cannot write.
    ///
    /// # Errors
    /// The file cannot be opened or is no database.
    pub(crate) fn open_reader(layout: &Layout, options: DatabaseOptions) -> Result<Self, Error> {
        let database = Self::open(layout, options)?;
        database
            .connection
            .pragma_update(None, "query_only", true)
            .map_err(|source| database.failed("opening", source))?;
        Ok(database)
    }

    /// Begins a transaction that may write, waiting for other programs' writers.
    ///
    /// Never deferred: a reader that turns into a writer can be refused after the fact.
    ///
    /// # Errors
    /// Another program keeps the database locked for too long.
    pub(crate) fn begin(&self) -> Result<Transaction<'_>, Error> {
        let begin = |patience| {
            self.connection.busy_timeout(patience)?;
            Transaction::new_unchecked(&self.connection, TransactionBehavior::Immediate)
        };
        let short = BUSY_WARNING_AFTER.min(self.busy_limit);
        let first = begin(short);
        let outcome = match &first {
            Err(error) if is_busy(error) && short < self.busy_limit => {
                tracing::warn!(
                    "waiting for another program that writes to '{}'",
                    self.path.display()
                );
                drop(first);
                begin(self.busy_limit.saturating_sub(short))
            }
            _ => first,
        };
        outcome.map_err(|source| {
            if is_busy(&source) {
                Error::DatabaseBusy {
                    path: self.path.clone(),
                    waited: self.busy_limit,
                }
            } else {
                self.failed("beginning a transaction", source)
            }
        })
    }

    /// Begins a transaction that only reads, so that its answers fit together.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(crate) fn begin_reading(&self) -> Result<Transaction<'_>, Error> {
        Transaction::new_unchecked(&self.connection, TransactionBehavior::Deferred)
            .map_err(|source| self.failed("beginning to read", source))
    }

    /// Says what the engine refused.
    pub(crate) fn failed(&self, operation: &'static str, source: rusqlite::Error) -> Error {
        Error::database(operation, &self.path, source)
    }

    /// Looks for damage in a database that is small enough.
    fn check_whole(&self, n_bytes: u64) -> Result<(), Error> {
        if n_bytes > CHECKED_BYTES {
            return Ok(());
        }
        let verdict: String = self
            .connection
            .query_row("pragma quick_check(1)", [], |row| row.get(0))
            .map_err(|source| self.failed("checking", source))?;
        if verdict == "ok" {
            return Ok(());
        }
        Err(Error::DatabaseCorrupt {
            path: self.path.clone(),
            reason: verdict,
        })
    }
}

/// Has writers append to a log, as Nix does.
///
/// Of two programs that open a new database at the same moment the engine turns one away at once, whatever
/// its patience: both hold what the other needs.
fn keep_log(connection: &Connection, busy_limit: Duration) -> rusqlite::Result<()> {
    let mut waited = Duration::ZERO;
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())) {
            Err(error) if is_busy(&error) && waited < busy_limit => {
                // Nobody is told when the other one is through, which takes it milliseconds.
                std::thread::sleep(NEW_DATABASE_PAUSE);
                waited += NEW_DATABASE_PAUSE;
            }
            outcome => return outcome,
        }
    }
}

fn configure(connection: &Connection, metadata_sync: MetadataSync) -> rusqlite::Result<()> {
    connection.pragma_update(None, "foreign_keys", true)?;
    // Values that come from elsewhere must not run code inside our queries.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    // Otherwise each new parameter has a statement planned anew, for this SQLite is built with
    // statistics that a plan could depend on. There are none in this database.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.pragma_update(
        None,
        "synchronous",
        match metadata_sync {
            MetadataSync::Durable => "full",
            MetadataSync::Relaxed => "normal",
        },
    )?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(())
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
    )
}

fn database_path(layout: &Layout) -> PathBuf {
    layout.state("db").join("db.sqlite")
}

/// Takes the lock that a program upgrading the schema holds alone.
fn lock_schema(path: &Path) -> Result<OwnedFd, Error> {
    let file = private_file(path)?;
    match rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockShared) {
        Ok(()) => return Ok(file.into()),
        Err(Errno::WOULDBLOCK) => {
            tracing::warn!("waiting for a program that upgrades the store's database");
        }
        Err(errno) => return Err(Error::file("locking", path, errno)),
    }
    rustix::fs::flock(file.as_fd(), FlockOperation::LockShared)
        .map_err(|errno| Error::file("locking", path, errno))?;
    Ok(file.into())
}

/// Makes the file that is deleted when the disk is full. Failing is no reason to stop.
fn reserve_room(path: &Path) -> Result<(), Error> {
    let size = fs::symlink_metadata(path).map_or(0, |metadata| metadata.len());
    if size == RESERVED_BYTES {
        return Ok(());
    }
    let file = private_file(path)?;
    match rustix::fs::fallocate(file.as_fd(), FallocateFlags::empty(), 0, RESERVED_BYTES) {
        Ok(()) => {}
        Err(errno) => tracing::debug!("no room reserved in '{}': {errno}", path.display()),
    }
    Ok(())
}

/// Opens a file that nobody else may open (SECURITY V05).
pub(crate) fn private_file(path: &Path) -> Result<File, Error> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
        .open(path)
        .map_err(|error| Error::file("opening", path, error))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
