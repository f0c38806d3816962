//! Remembers on the disk what caches on servers said.
//!
//! Not in `~/.cache/nix/binary-cache-v6.sqlite`, which Nix keeps for the same purpose: Nix writes
//! there what was signed by anybody, some fields only and by a schema of its own version, and two
//! programs that delete one another's rows or files would fail in ways that nobody could explain.
//! Here whole files are kept as they came and are judged anew each time, so what changes in the
//! settings counts at once.
//!
//! One thread does all of it. What waits for it is taken together: all that is to be written in one
//! transaction, then all that is asked. Losing the file costs some questions, so what cannot be read
//! is made anew, and what cannot be written is left.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension as _, TransactionBehavior, params};
use store_model::Settings;
use tokio::sync::{mpsc, oneshot};

use crate::Error;

/// The file's name in the directory that is handed in.
const FILE_NAME: &str = "binary-cache.sqlite";

/// What a cache says of itself; every other file is a narinfo.
const INFO_FILE: &str = "nix-cache-info";

/// Raised whenever the schema changes; a file with another number is made anew.
const SCHEMA_VERSION: i64 = 1;

const SCHEMA: &str = "
    create table Files (
        cache    text not null,
        file     text not null,
        contents text,
        notedAt  integer not null,
        primary key (cache, file)
    ) strict, without rowid;
    create table LastCleaning (
        at       integer not null
    ) strict;
    insert into LastCleaning values (0);
    pragma user_version = 1;
";

/// How many tables that are.
const N_TABLES: i64 = 2;

/// How many seconds pass between looking for what is too old, which reads all there is.
const CLEANING_INTERVAL: i64 = 24 * 60 * 60;

/// How long another process that writes is waited for.
const BUSY_LIMIT: Duration = Duration::from_secs(5);

/// Most that is taken together: the first of them waits for the last.
const MAX_BATCH: usize = 1000;

/// Seconds since 1970.
pub(crate) type UnixTime = i64;

/// For how long answers are good.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lifetimes {
    positive: Duration,
    negative: Duration,
    info: Duration,
}

impl Lifetimes {
    /// Takes what the user chose.
    pub(crate) fn from_settings(settings: &Settings) -> Self {
        Self {
            positive: settings.narinfo_cache_positive_ttl,
            negative: settings.narinfo_cache_negative_ttl,
            info: settings.narinfo_cache_meta_ttl,
        }
    }

    /// Returns whether what was noted at one time is still good at another. What was noted in the
    /// future is not: the clock was wrong then or is now.
    fn is_good(
        self,
        file: &str,
        remembered: &Remembered,
        noted_at: UnixTime,
        now: UnixTime,
    ) -> bool {
        let lifetime = match remembered {
            _ if file == INFO_FILE => self.info,
            Remembered::Contents(_) => self.positive,
            Remembered::Absent => self.negative,
        };
        now.checked_sub(noted_at)
            .and_then(|age| u64::try_from(age).ok())
            .is_some_and(|age| age < lifetime.as_secs())
    }

    fn longest(self) -> Duration {
        self.positive.max(self.negative).max(self.info)
    }
}

/// What a cache once said of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Remembered {
    /// It has this.
    Contents(String),
    /// It does not have it.
    Absent,
}

/// A file of a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FileKey {
    /// The cache's address without name, password and parameters.
    pub(crate) cache: Arc<str>,
    /// The file's name in the cache.
    pub(crate) file: String,
}

#[derive(Debug)]
enum Request {
    Recall {
        key: FileKey,
        now: UnixTime,
        reply: oneshot::Sender<Option<Remembered>>,
    },
    Note {
        key: FileKey,
        remembered: Remembered,
        now: UnixTime,
    },
    Forget {
        key: FileKey,
    },
}

/// The way to the thread that remembers. It ends when the last of these is dropped.
#[derive(Debug, Clone)]
pub(crate) struct NarInfoCache {
    requests: mpsc::UnboundedSender<Request>,
}

impl NarInfoCache {
    /// Starts the thread, which opens the database when it is first asked something. `now` is for
    /// deleting what is too old.
    ///
    /// # Errors
    /// The kernel refuses the thread.
    pub(crate) fn start(
        dir: PathBuf,
        lifetimes: Lifetimes,
        now: UnixTime,
    ) -> Result<(Self, JoinHandle<()>), Error> {
        // Without a bound: there is one request for each question that a goal waits for.
        let (requests, mut receiver) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new()
            .name("narinfo-cache".to_owned())
            .spawn(move || {
                if let Some(first) = receiver.blocking_recv() {
                    let mut keeper = Keeper::open(&dir, lifetimes);
                    keeper.clean(now);
                    keeper.serve(first, receiver);
                }
            })
            .map_err(|source| Error::StartThreads { source })?;
        Ok((Self { requests }, thread))
    }

    /// Returns what is remembered of a file, if that is still good.
    pub(crate) async fn recall(&self, key: FileKey, now: UnixTime) -> Option<Remembered> {
        let (reply, answer) = oneshot::channel();
        self.requests
            .send(Request::Recall { key, now, reply })
            .ok()?;
        answer.await.ok().flatten()
    }

    /// Remembers what a cache said.
    pub(crate) fn note(&self, key: FileKey, remembered: Remembered, now: UnixTime) {
        // Without its thread there is nobody to remember anything, which was told.
        let _thread_gone = self.requests.send(Request::Note {
            key,
            remembered,
            now,
        });
    }

    /// Forgets what a cache said. Whoever asks afterwards is not told it any more.
    pub(crate) fn forget(&self, key: FileKey) {
        let _thread_gone = self.requests.send(Request::Forget { key });
    }
}

/// The thread's own: the database, or none if it cannot be used.
struct Keeper {
    path: PathBuf,
    lifetimes: Lifetimes,
    connection: Option<Connection>,
}

impl Keeper {
    fn open(dir: &Path, lifetimes: Lifetimes) -> Self {
        let path = dir.join(FILE_NAME);
        let connection = make_private(dir, &path)
            .map_err(|error| error.to_string())
            .and_then(|()| connect_or_renew(&path))
            .map_err(|reason| give_up(&path, &reason))
            .ok();
        Self {
            path,
            lifetimes,
            connection,
        }
    }

    /// Attends to requests, of which `next` is the first, until nobody can make any.
    fn serve(&mut self, mut next: Request, mut requests: mpsc::UnboundedReceiver<Request>) {
        loop {
            let mut batch = vec![next];
            while batch.len() < MAX_BATCH
                && let Ok(request) = requests.try_recv()
            {
                batch.push(request);
            }
            self.attend(batch);
            match requests.blocking_recv() {
                Some(request) => next = request,
                None => return,
            }
        }
    }

    fn attend(&mut self, batch: Vec<Request>) {
        let (questions, changes): (Vec<_>, Vec<_>) = batch
            .into_iter()
            .partition(|request| matches!(request, Request::Recall { .. }));
        if !changes.is_empty() {
            self.with(|connection, _| write(connection, &changes));
        }
        // What was forgotten a moment ago must not be recalled, so questions come second.
        let mut answers = vec![None; questions.len()];
        self.with(|connection, lifetimes| read(connection, lifetimes, &questions, &mut answers));
        for (question, answer) in questions.into_iter().zip(answers) {
            if let Request::Recall { reply, .. } = question {
                // The asker may be gone: a cancelled goal does not wait.
                let _asker_gone = reply.send(answer);
            }
        }
    }

    /// Deletes what is too old for everybody, once a day.
    fn clean(&mut self, now: UnixTime) {
        self.with(|connection, lifetimes| {
            let last: UnixTime =
                connection.query_row("select at from LastCleaning", [], |row| row.get(0))?;
            // A clock that went back does not put it off for ever.
            if (0..CLEANING_INTERVAL).contains(&now.saturating_sub(last)) {
                return Ok(());
            }
            let longest = i64::try_from(lifetimes.longest().as_secs()).unwrap_or(i64::MAX);
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            transaction.execute(
                "delete from Files where notedAt < ? or notedAt > ?",
                params![now.saturating_sub(longest), now],
            )?;
            transaction.execute("update LastCleaning set at = ?", [now])?;
            transaction.commit()
        });
    }

    /// Does something with the database, and makes that anew if it turns out to be broken.
    fn with(&mut self, work: impl FnOnce(&mut Connection, Lifetimes) -> rusqlite::Result<()>) {
        let Some(connection) = &mut self.connection else {
            return;
        };
        match work(connection, self.lifetimes) {
            Ok(()) => {}
            Err(error) if is_broken(&error) => {
                self.connection = None;
                self.connection = renew(&self.path, &error.to_string())
                    .map_err(|reason| give_up(&self.path, &reason))
                    .ok();
            }
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                tracing::debug!("'{}' is busy: {error}", self.path.display());
            }
            Err(error) => {
                self.connection = None;
                give_up(&self.path, &error.to_string());
            }
        }
    }
}

fn give_up(path: &Path, reason: &str) {
    tracing::warn!(
        "answers of caches are not remembered in '{}': {reason}",
        path.display()
    );
}

/// Makes the directory and the file, for nobody else to read: what somebody asks for is their own
/// affair.
fn make_private(dir: &Path, path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)?;
    Ok(())
}

fn connect_or_renew(path: &Path) -> Result<Connection, String> {
    match connect(path) {
        Ok(connection) => Ok(connection),
        Err(error) if is_broken(&error) => renew(path, &error.to_string()),
        Err(error) => Err(error.to_string()),
    }
}

/// Opens the database, with its table.
fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let mut connection = Connection::open(path)?;
    connection.busy_timeout(BUSY_LIMIT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    connection.pragma_update(None, "synchronous", "normal")?;
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let version: i64 = transaction.query_row("pragma user_version", [], |row| row.get(0))?;
    let n_tables: i64 =
        transaction.query_row("select count(*) from sqlite_schema", [], |row| row.get(0))?;
    match (version, n_tables) {
        (0, 0) => transaction.execute_batch(SCHEMA)?,
        (SCHEMA_VERSION, N_TABLES) => {}
        _ => return Err(not_ours()),
    }
    transaction.commit()?;
    Ok(connection)
}

/// Returns the error of a database that is sound, but another one.
fn not_ours() -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(
        rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_NOTADB),
        Some("it is of another version".to_owned()),
    )
}

fn is_broken(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt)
    )
}

/// Deletes the database and makes a new one.
fn renew(path: &Path, reason: &str) -> Result<Connection, String> {
    tracing::warn!(
        "'{}' cannot be used and is made anew: {reason}",
        path.display()
    );
    for suffix in ["", "-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        match fs::remove_file(&name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error.to_string());
            }
            Ok(()) | Err(_) => {}
        }
    }
    let dir = path.parent().unwrap_or(Path::new("/"));
    make_private(dir, path).map_err(|error| error.to_string())?;
    connect(path).map_err(|error| error.to_string())
}

fn write(connection: &mut Connection, changes: &[Request]) -> rusqlite::Result<()> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    {
        let mut note =
            transaction.prepare_cached("insert or replace into Files values (?, ?, ?, ?)")?;
        let mut forget =
            transaction.prepare_cached("delete from Files where cache = ? and file = ?")?;
        for change in changes {
            match change {
                Request::Note {
                    key,
                    remembered,
                    now,
                } => {
                    let contents = match remembered {
                        Remembered::Contents(text) => Some(text),
                        Remembered::Absent => None,
                    };
                    note.execute(params![&*key.cache, key.file, contents, now])?;
                }
                Request::Forget { key } => {
                    forget.execute(params![&*key.cache, key.file])?;
                }
                Request::Recall { .. } => {}
            }
        }
    }
    transaction.commit()
}

fn read(
    connection: &mut Connection,
    lifetimes: Lifetimes,
    questions: &[Request],
    answers: &mut [Option<Remembered>],
) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    {
        let mut recall = transaction
            .prepare_cached("select contents, notedAt from Files where cache = ? and file = ?")?;
        for (question, answer) in questions.iter().zip(answers) {
            let Request::Recall { key, now, .. } = question else {
                continue;
            };
            let row: Option<(Option<String>, UnixTime)> = recall
                .query_row(params![&*key.cache, key.file], |row| {
                    Ok((row.get(0)?, row.get(1)?))
                })
                .optional()?;
            *answer = row
                .map(|(contents, noted_at)| {
                    let remembered = contents.map_or(Remembered::Absent, Remembered::Contents);
                    (remembered, noted_at)
                })
                .filter(|(remembered, noted_at)| {
                    lifetimes.is_good(&key.file, remembered, *noted_at, *now)
                })
                .map(|(remembered, _)| remembered);
        }
    }
    transaction.commit()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
