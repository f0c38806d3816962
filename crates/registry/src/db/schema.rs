//! Which schema a database has, and making a new one.
//!
//! The tables come first and the `schema` file last, so that a crash between leaves something that
//! the next start completes.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rusqlite::{Connection, TransactionBehavior};

use crate::Error;
use crate::layout::Layout;

/// The version that Nix 2.8 to 2.35 write.
const VERSION: u64 = 10;

/// The statements exactly as Nix's database has stored them.
const STATEMENTS: &str = include_str!("schema.sql");

/// The version of the tables of realisations that Nix 2.8 writes.
const REALISATIONS_VERSION: u64 = 3;

/// The statements of the tables of realisations, which only a store has that was opened with the
/// feature `ca-derivations`.
const REALISATIONS_STATEMENTS: &str = include_str!("realisations.sql");

/// What the `schema` file says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum SchemaFile {
    /// There is none: a new store, or a crash while making one.
    Absent,
    /// It is there but has nothing in it: a crash of a program that did not sync it.
    Empty,
    /// It names the version that we know.
    Current,
}

/// Reads the `schema` file.
///
/// # Errors
/// It names another version, or no version at all.
pub(super) fn read_schema_file(path: &Path) -> Result<SchemaFile, Error> {
    read_version_file(path, VERSION)
}

fn read_version_file(path: &Path, known: u64) -> Result<SchemaFile, Error> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SchemaFile::Absent),
        Err(error) => return Err(Error::file("reading", path, error)),
    };
    let text = String::from_utf8_lossy(&text);
    if text.trim().is_empty() {
        return Ok(SchemaFile::Empty);
    }
    let found = text.trim().parse().map_err(|_| Error::DatabaseCorrupt {
        path: path.to_owned(),
        reason: "the file does not hold a schema version".to_owned(),
    })?;
    let path = path.to_owned();
    match found {
        0 => Err(Error::DatabaseCorrupt {
            path,
            reason: "the file holds schema version 0".to_owned(),
        }),
        _ if found == known => Ok(SchemaFile::Current),
        _ if found < known => Err(Error::OlderSchema { path, found, known }),
        _ => Err(Error::NewerSchema { path, found, known }),
    }
}

/// Refuses to begin a database where an old one must have been lost.
///
/// # Errors
/// The store has objects though it has no database.
pub(super) fn check_new_store(layout: &Layout, database: &Path) -> Result<(), Error> {
    match layout.any_object()? {
        None => Ok(()),
        Some(object) => Err(Error::DatabaseMissing {
            path: database.to_owned(),
            store: layout.paths.real_store_dir.clone(),
            example: object.to_string(),
        }),
    }
}

/// Makes the tables of a new database, or finishes what a crash left.
///
/// # Errors
/// There are other tables, or they cannot be made.
pub(super) fn create(connection: &mut Connection, database: &Path) -> Result<(), Error> {
    let failed = |source| Error::database("making tables", database, source);
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed)?;
    if stored_statements(&transaction).map_err(failed)?.is_empty() {
        transaction.execute_batch(STATEMENTS).map_err(failed)?;
        return transaction.commit().map_err(failed);
    }
    drop(transaction);
    check(connection, database)
}

/// Sees to it that a database with Nix's tables has those of realisations, too. Makes them if this
/// is the first program on the store that has the feature.
///
/// Whoever changes tables that exist holds the schema's lock alone, which the caller shares.
///
/// # Errors
/// They are of another version, are others, or cannot be made.
pub(super) fn provide_realisations(
    connection: &mut Connection,
    database: &Path,
    version_file: &Path,
) -> Result<(), Error> {
    if read_version_file(version_file, REALISATIONS_VERSION)? == SchemaFile::Current {
        return check_statements(connection, database, REALISATIONS_STATEMENTS);
    }
    let failed = |source| Error::database("making tables of realisations", database, source);
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(failed)?;
    let found = stored_statements(&transaction).map_err(failed)?;
    if !found
        .iter()
        .any(|line| line.starts_with("create table realisations"))
    {
        transaction
            .execute_batch(REALISATIONS_STATEMENTS)
            .map_err(failed)?;
    }
    transaction.commit().map_err(failed)?;
    check_statements(connection, database, REALISATIONS_STATEMENTS)?;
    write_version_file(version_file, REALISATIONS_VERSION)
}

/// Checks that the tables are Nix's.
///
/// # Errors
/// One of them is absent or another.
pub(super) fn check(connection: &Connection, database: &Path) -> Result<(), Error> {
    check_statements(connection, database, STATEMENTS)
}

fn check_statements(
    connection: &Connection,
    database: &Path,
    statements: &str,
) -> Result<(), Error> {
    let found = stored_statements(connection)
        .map_err(|source| Error::database("reading tables", database, source))?;
    for wanted in statements.split_inclusive(";\n") {
        let wanted = wanted.trim_end_matches('\n').trim_end_matches(';');
        // The body of the trigger has a semicolon of its own.
        let head = wanted.lines().next().unwrap_or(wanted);
        if head.starts_with("CREATE") && !found.contains(&comparable(head)) {
            return Err(Error::DatabaseCorrupt {
                path: database.to_owned(),
                reason: format!("it does not have '{head}'"),
            });
        }
    }
    Ok(())
}

/// Writes the `schema` file so that a crash leaves all of it or none.
///
/// # Errors
/// It cannot be written or synced.
pub(super) fn write_schema_file(path: &Path) -> Result<(), Error> {
    write_version_file(path, VERSION)
}

fn write_version_file(path: &Path, version: u64) -> Result<(), Error> {
    let new = path.with_extension("new");
    let failed = |error| Error::file("writing", &new, error);
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o644)
        .open(&new)
        .map_err(failed)?;
    // Another program that opens the new store at the same moment writes the same file.
    rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|errno| Error::file("locking", &new, errno))?;
    if fs::read_to_string(path).is_ok_and(|text| text == version.to_string()) {
        // Usually the other one's, renamed; what is left of ours is empty.
        let _renamed = fs::remove_file(&new);
        return Ok(());
    }
    file.set_len(0).map_err(failed)?;
    write!(file, "{version}").map_err(failed)?;
    file.sync_all().map_err(failed)?;
    fs::rename(&new, path).map_err(|error| Error::file("renaming to", path, error))?;
    let dir = path.parent().unwrap_or(path);
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| Error::file("syncing", dir, error))
}

/// Returns the first line of each stored statement, in a form that ignores `if not exists`.
fn stored_statements(connection: &Connection) -> rusqlite::Result<BTreeSet<String>> {
    connection
        .prepare("select sql from sqlite_master where sql is not null")?
        .query_map([], |row| row.get::<_, String>(0))?
        .map(|sql| Ok(comparable(sql?.lines().next().unwrap_or_default())))
        .collect()
}

fn comparable(line: &str) -> String {
    line.split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
        .to_ascii_lowercase()
        .replace(" if not exists ", " ")
}
