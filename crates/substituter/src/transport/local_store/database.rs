//! The other store's database: read, never written, and not believed.
//!
//! `SQLite` as such would write beside a database that it only reads: it makes `-shm` and `-wal`, and
//! as root it gives the former away to the database's owner. So the file is opened as one that does
//! not change, which takes no lock and touches nothing else, and afterwards it is looked at again
//! whether that was true.
//!
//! ```text
//! no log beside it    in place ─► answer ─► still the same file? ─no─► once more
//! a log with commits  database, then log, copied to a directory of our own ─► answer
//! ```
//!
//! The copy is whole though somebody writes meanwhile. Whoever folds the log into the database writes
//! only what the log has, and the log keeps that until somebody begins it anew, which its header
//! tells. So if the header is the same before the database is copied and after the log was, the
//! copied log makes good whatever was torn in the copied database.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, OpenFlags, OptionalExtension as _, params};
use rustix::fs::{AtFlags, FileType, OFlags, Stat};
use rustix::io::Errno;
use store_model::narinfo::{Compression, MAX_FILE_BYTES, NarInfo};
use store_model::{PathInfo, StoreDir, StorePath};
use tempfile::TempDir;
use tokio::time::Instant;

use super::Anchor;
use crate::transport::file::open_beneath;

/// The database below the state directory.
const FILE: &str = "db/db.sqlite";

/// How often an answer is sought again that somebody who writes has disturbed. Each of them has
/// written at least once meanwhile, so nobody is that unlucky by chance.
const MAX_DISTURBANCES: usize = 16;

/// For how long a copy will do though there have been commits since: a store that is written all the
/// time would have its database copied for each question.
const COPY_LIFETIME: Duration = Duration::from_secs(5);

/// Largest database, with its log, that is copied. One of a million paths has half of that.
const MAX_COPIED_BYTES: u64 = 2 << 30;

/// What a write-ahead log begins with; a shorter one holds nothing.
const LOG_HEADER_BYTES: usize = 32;

/// Largest text that the database may make. Real ones have some thousand bytes.
const MAX_TEXT_BYTES: i32 = 1 << 20;

/// After how many steps of `SQLite`'s machine it is looked whether an answer takes too long.
const STEPS_PER_LOOK: i32 = 100_000;

/// How often that may be before one answer. A path with a thousand references takes some ten thousand
/// steps; a database can be made so that it takes for ever.
const MAX_LOOKS: u32 = 200;

/// The database of another store.
#[derive(Debug)]
pub(super) struct OtherDatabase {
    state: Anchor,
    opened: Mutex<Option<Opened>>,
}

/// A connection, and what it was opened on.
#[derive(Debug)]
struct Opened {
    connection: Connection,
    budget: Budget,
    stamp: Stamp,
    view: View,
}

#[derive(Debug, Clone, Copy)]
enum View {
    /// The store's own file.
    InPlace,
    /// A copy, made at this time.
    Copied(Instant),
}

/// What changes when the database does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    database: FileStamp,
    /// `None` if there is none, or an empty one.
    log: Option<FileStamp>,
}

/// What changes when a file does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileStamp {
    device: u64,
    inode: u64,
    n_bytes: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Why the database gives no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum DatabaseError {
    /// Going on would ask a file that is not there.
    #[error("{operation} its database '{path}'")]
    File {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    /// Going on would follow a link out of the store, or wait for a pipe.
    #[error("its database '{path}' is {kind}")]
    NoFile { path: PathBuf, kind: &'static str },
    /// Going on would read half of a commit.
    #[error("its database '{path}' {reason}")]
    Unreadable { path: PathBuf, reason: &'static str },
    /// Going on would take what `SQLite` could not read for an answer.
    #[error("asking its database '{path}'")]
    Sqlite {
        path: PathBuf,
        source: rusqlite::Error,
    },
    /// Going on would describe a path by what is no description.
    #[error("its database '{path}' says of '{object}' {reason}")]
    Row {
        path: PathBuf,
        object: String,
        reason: String,
    },
}

impl OtherDatabase {
    /// Takes where the store's state is; nothing is opened yet.
    pub(super) fn new(state: Anchor) -> Self {
        Self {
            state,
            opened: Mutex::new(None),
        }
    }

    /// Finds out whether the database can be asked.
    ///
    /// # Errors
    /// It cannot.
    pub(super) fn check(&self) -> Result<(), DatabaseError> {
        self.ask(|connection| {
            let statement = "select count(*) from ValidPaths where id < 0";
            connection.query_row(statement, [], |_| Ok(()))
        })
    }

    /// Describes the path that begins with this hash, as its archive would be described; `None` if
    /// none is valid.
    ///
    /// # Errors
    /// The database cannot be asked, or says what makes no sense.
    pub(super) fn narinfo(
        &self,
        store_dir: &StoreDir,
        hash_part: &str,
    ) -> Result<Option<NarInfo>, DatabaseError> {
        let beginning = format!("{store_dir}/{hash_part}-");
        let row = self.ask(|connection| Row::find(connection, &beginning))?;
        let Some(row) = row else {
            return Ok(None);
        };
        let object = row.path.clone();
        let info = row.into_narinfo(store_dir);
        info.map(Some).map_err(|reason| DatabaseError::Row {
            path: self.path(),
            object: object
                .chars()
                .take(300)
                .flat_map(char::escape_debug)
                .collect(),
            reason,
        })
    }

    /// Asks until the answer is about one state of the database.
    fn ask<T>(
        &self,
        question: impl Fn(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, DatabaseError> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..MAX_DISTURBANCES {
            let stamp = self.look()?;
            let usable = opened.take().filter(|opened| opened.is_good_for(&stamp));
            let Some(current) =
                usable.map_or_else(|| self.open(stamp), |opened| Ok(Some(opened)))?
            else {
                continue;
            };
            current.budget.renew();
            let answer = question(&current.connection);
            let is_undisturbed = match current.view {
                View::InPlace => self.look()? == stamp,
                View::Copied(_) => true,
            };
            if is_undisturbed {
                *opened = Some(current);
                return answer.map_err(|source| self.sqlite(source));
            }
        }
        Err(self.unreadable("changes too quickly to be read"))
    }

    /// Looks at what changes when the database does.
    fn look(&self) -> Result<Stamp, DatabaseError> {
        let dir = self.dir()?;
        let beside = |suffix: &str| {
            let name = format!("db.sqlite{suffix}");
            let stat = rustix::fs::statat(&dir, &*name, AtFlags::SYMLINK_NOFOLLOW);
            match stat {
                Ok(stat) => self.stamp_of(&stat).map(Some),
                Err(Errno::NOENT) => Ok(None),
                Err(errno) => Err(self.failed("looking at", errno.into())),
            }
        };
        let database = beside("")?.ok_or_else(|| self.failed("opening", Errno::NOENT.into()))?;
        let is_filled = |stamp: &FileStamp| stamp.n_bytes > 0;
        if beside("-journal")?.is_some_and(|stamp| is_filled(&stamp)) {
            return Err(self.unreadable(
                "has a rollback journal, so somebody writes or has died while writing; whoever \
                 opens that store to write puts it in order",
            ));
        }
        Ok(Stamp {
            database,
            log: beside("-wal")?.filter(is_filled),
        })
    }

    fn stamp_of(&self, stat: &Stat) -> Result<FileStamp, DatabaseError> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                return Ok(FileStamp {
                    device: stat.st_dev,
                    inode: stat.st_ino,
                    n_bytes: stat.st_size,
                    modified: (
                        stat.st_mtime,
                        i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
                    ),
                    changed: (
                        stat.st_ctime,
                        i64::try_from(stat.st_ctime_nsec).unwrap_or(0),
                    ),
                });
            }
            FileType::Symlink => "a symbolic link",
            FileType::Directory
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => "no file",
        };
        let path = self.path();
        Err(DatabaseError::NoFile { path, kind })
    }

    fn dir(&self) -> Result<OwnedFd, DatabaseError> {
        self.state
            .open("db", OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|errno| self.failed("opening the directory of", errno.into()))
    }

    /// Opens the database as `stamp` saw it; `None` if it has changed since.
    fn open(&self, stamp: Stamp) -> Result<Option<Opened>, DatabaseError> {
        let dir = self.dir()?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let database = open_beneath(&dir, "db.sqlite", flags)
            .map_err(|errno| self.failed("opening", errno.into()))?;
        let stat = rustix::fs::fstat(&database);
        let stat = stat.map_err(|errno| self.failed("looking at", errno.into()))?;
        if self.stamp_of(&stat)? != stamp.database {
            return Ok(None);
        }
        let prepared = |connection, view| {
            let opened = Opened::prepare(connection, stamp, view);
            opened.map(Some).map_err(|source| self.sqlite(source))
        };
        let Some(log_stamp) = stamp.log else {
            return prepared(open_unchanging(&database), View::InPlace);
        };
        if stamp
            .database
            .n_bytes
            .saturating_add(log_stamp.n_bytes)
            .cast_unsigned()
            > MAX_COPIED_BYTES
        {
            return Err(self.unreadable(
                "is being written and too large to be copied; it can be read when nobody has it open",
            ));
        }
        let open_log = || Ok(open_beneath(&dir, "db.sqlite-wal", flags)?.into());
        let copied = Copied::make(File::from(database), open_log)
            .map_err(|error| self.failed("copying", error))?;
        let Some(copied) = copied else {
            return Ok(None);
        };
        prepared(copied.open(), View::Copied(Instant::now()))
    }

    fn path(&self) -> PathBuf {
        self.state.path(FILE)
    }

    fn failed(&self, operation: &'static str, source: io::Error) -> DatabaseError {
        let path = self.path();
        DatabaseError::File {
            operation,
            path,
            source,
        }
    }

    fn unreadable(&self, reason: &'static str) -> DatabaseError {
        let path = self.path();
        DatabaseError::Unreadable { path, reason }
    }

    fn sqlite(&self, source: rusqlite::Error) -> DatabaseError {
        let path = self.path();
        DatabaseError::Sqlite { path, source }
    }
}

impl Opened {
    /// Takes from whoever made the database the means to hold us up.
    fn prepare(
        connection: rusqlite::Result<Connection>,
        stamp: Stamp,
        view: View,
    ) -> rusqlite::Result<Self> {
        let mut connection = connection?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
        connection.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_TEXT_BYTES)?;
        let budget = Budget::default();
        let left = budget.clone();
        connection.progress_handler(STEPS_PER_LOOK, Some(move || left.is_spent()))?;
        connection.execute_batch("pragma cell_size_check = on; pragma mmap_size = 0;")?;
        Ok(Self {
            connection,
            budget,
            stamp,
            view,
        })
    }

    /// Returns whether it may answer a question that is asked now.
    fn is_good_for(&self, stamp: &Stamp) -> bool {
        self.stamp == *stamp
            || matches!(self.view, View::Copied(at) if at.elapsed() < COPY_LIFETIME)
    }
}

/// Opens a file that nobody changes while it is read, or else that is noticed.
fn open_unchanging(database: &OwnedFd) -> rusqlite::Result<Connection> {
    let address = format!("file:/proc/self/fd/{}?immutable=1", database.as_raw_fd());
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(address, flags)
}

/// How much work an answer may still be.
#[derive(Debug, Clone, Default)]
struct Budget(Arc<AtomicU32>);

impl Budget {
    fn renew(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Takes note of some more work; returns whether it is too much.
    fn is_spent(&self) -> bool {
        self.0.fetch_add(1, Ordering::Relaxed) >= MAX_LOOKS
    }
}

/// Copies of a database and of its log, in a directory that only we can enter.
#[derive(Debug)]
struct Copied {
    dir: TempDir,
}

impl Copied {
    /// Copies both; `None` if the log was begun anew meanwhile.
    ///
    /// # Errors
    /// The log cannot be opened, or there is no room for the copies.
    fn make(
        mut database: File,
        open_log: impl Fn() -> io::Result<File>,
    ) -> io::Result<Option<Self>> {
        let dir = tempfile::Builder::new().prefix("goalctl-").tempdir()?;
        let mut log = open_log()?;
        let before = log_header(&log)?;
        copy_limited(&mut database, &dir.path().join("db.sqlite"))?;
        copy_limited(&mut log, &dir.path().join("db.sqlite-wal"))?;
        // What has the name now is the log that counts.
        let after = log_header(&open_log()?)?;
        Ok((before == after).then_some(Self { dir }))
    }

    /// Opens the copy, and deletes the names of its files.
    fn open(self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(self.dir.path().join("db.sqlite"), flags)?;
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // Alone with it, SQLite keeps the log's index in memory.
        connection.execute_batch("pragma locking_mode = exclusive; pragma query_only = on;")?;
        connection.query_row("select count(*) from sqlite_schema", [], |_| Ok(()))?;
        Ok(connection)
    }
}

fn log_header(log: &File) -> io::Result<Option<[u8; LOG_HEADER_BYTES]>> {
    let mut header = [0; LOG_HEADER_BYTES];
    match log.read_exact_at(&mut header, 0) {
        Ok(()) => Ok(Some(header)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

/// Copies a file that may grow meanwhile.
fn copy_limited(from: &mut File, to: &std::path::Path) -> io::Result<()> {
    let mut to = File::create_new(to)?;
    io::copy(&mut from.take(MAX_COPIED_BYTES), &mut to)?;
    Ok(())
}

/// What a database says of a path, unread.
struct Row {
    path: String,
    hash: String,
    deriver: Option<String>,
    nar_size: Option<i64>,
    signatures: Option<String>,
    content_address: Option<String>,
    references: Vec<String>,
}

impl Row {
    /// Finds the first path that begins so.
    fn find(connection: &Connection, beginning: &str) -> rusqlite::Result<Option<Self>> {
        let _snapshot = connection.unchecked_transaction()?;
        let mut statement = connection.prepare_cached(
            "select path, hash, deriver, narSize, sigs, ca, id from ValidPaths \
             where path >= ? order by path limit 1",
        )?;
        let found = statement.query_row([beginning], |row| {
            let path = Self {
                path: row.get(0)?,
                hash: row.get(1)?,
                deriver: row.get(2)?,
                nar_size: row.get(3)?,
                signatures: row.get(4)?,
                content_address: row.get(5)?,
                references: Vec::new(),
            };
            Ok((path, row.get::<_, i64>(6)?))
        });
        let Some((mut found, id)) = found.optional()? else {
            return Ok(None);
        };
        if !found.path.starts_with(beginning) {
            return Ok(None);
        }
        let mut statement = connection.prepare_cached(
            "select path from Refs join ValidPaths on reference = id where referrer = ?",
        )?;
        let mut references = statement.query(params![id])?;
        let mut n_bytes = 0;
        // Beyond that it is no description, which is found out from what there is.
        while n_bytes <= MAX_FILE_BYTES
            && let Some(reference) = references.next()?
        {
            let reference: String = reference.get(0)?;
            n_bytes += reference.len();
            found.references.push(reference);
        }
        Ok(Some(found))
    }

    /// Reads the row; the error ends a sentence about what it says.
    fn into_narinfo(self, store_dir: &StoreDir) -> Result<NarInfo, String> {
        let parse = |text: &str| {
            store_dir
                .parse(text)
                .map_err(|error| format!("that {error}"))
        };
        let path = parse(&self.path)?;
        let nar_size = self.nar_size.and_then(|size| u64::try_from(size).ok());
        let Some(nar_size_bytes) = nar_size.filter(|size| *size > 0) else {
            return Err("no size".to_owned());
        };
        let deriver = self.deriver.filter(|deriver| !deriver.is_empty());
        let signatures = self.signatures.unwrap_or_default();
        let references = self.references.iter().map(|reference| parse(reference));
        let info = PathInfo {
            nar_hash: self
                .hash
                .parse()
                .map_err(|error: store_model::Error| format!("that {error}"))?,
            nar_size_bytes,
            references: references.collect::<Result<_, _>>()?,
            deriver: deriver.map(|deriver| parse(&deriver)).transpose()?,
            registration_time: 0,
            ultimate: false,
            signatures: signatures.split_whitespace().map(str::to_owned).collect(),
            content_address: self.content_address.filter(|address| !address.is_empty()),
            path,
        };
        Ok(NarInfo {
            url: archive_name(&info.path),
            compression: Compression::None,
            file_hash: None,
            file_size_bytes: Some(nar_size_bytes),
            info,
        })
    }
}

/// Returns what the archive of a path is called, which lies nowhere as a file.
fn archive_name(path: &StorePath) -> String {
    format!("nar/{path}.nar")
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::path::Path;

    use super::*;

    fn database(dir: &Path, schema: &str) -> OtherDatabase {
        std::fs::create_dir(dir.join("db")).unwrap();
        let database = Connection::open(dir.join(FILE)).unwrap();
        database.execute_batch(schema).unwrap();
        OtherDatabase::new(Anchor::new(Some(&dir.to_owned()), dir, ""))
    }

    #[test]
    fn an_answer_that_would_never_end_is_given_up_and_the_next_one_comes() {
        let dir = tempfile::tempdir().unwrap();
        let database = database(dir.path(), "create table ValidPaths (id)");
        let endless = "with recursive n(i) as (select 1 union all select i + 1 from n) \
                       select count(*) from n";
        let error = database.ask(|connection| connection.query_row(endless, [], |_| Ok(())));
        assert!(matches!(error, Err(DatabaseError::Sqlite { .. })));
        database.check().unwrap();
    }

    #[test]
    fn a_view_that_stands_for_the_table_and_huge_texts_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let database = database(
            dir.path(),
            "create view ValidPaths (id, path) as select 1, hex(zeroblob(100000000))",
        );
        assert!(database.check().is_err());
        let huge = "select length(hex(zeroblob(100000000)))";
        let error = database.ask(|connection| connection.query_row(huge, [], |_| Ok(())));
        assert!(matches!(error, Err(DatabaseError::Sqlite { .. })));
    }

    #[test]
    fn a_transaction_that_was_never_ended_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let database = database(dir.path(), "create table ValidPaths (id)");
        std::fs::write(dir.path().join("db/db.sqlite-journal"), "x").unwrap();
        let error = database.check().unwrap_err();
        assert!(error.to_string().contains("rollback journal"), "{error}");
    }
}
