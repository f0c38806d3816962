//! Questions to the database. Each answers from one snapshot.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use rusqlite::{OptionalExtension as _, Row, params};
use store_model::{NarHash, PathInfo, StorePath};

use super::Database;
use super::write::path_id;
use crate::Error;

/// Returns what is known about a path; `None` if it is not valid.
///
/// # Errors
/// The database cannot be read, or holds something that is no path metadata.
pub(crate) fn path_info(database: &Database, path: &StorePath) -> Result<Option<PathInfo>, Error> {
    let _snapshot = database.begin_reading()?;
    info_of(database, path)
}

/// Returns what is known about a path, from the caller's snapshot.
fn info_of(database: &Database, path: &StorePath) -> Result<Option<PathInfo>, Error> {
    let found = database
        .connection
        .prepare_cached(
            "select id, hash, registrationTime, deriver, narSize, ultimate, sigs, ca \
             from ValidPaths where path = ?",
        )
        .and_then(|mut statement| {
            statement
                .query_row([database.store_dir.print(path)], |row| {
                    Ok((row.get::<_, i64>(0)?, PathRow::read(row)?))
                })
                .optional()
        })
        .map_err(|source| database.failed("querying a path", source))?;
    let Some((id, row)) = found else {
        return Ok(None);
    };
    let references = neighbours(database, Direction::References, id)?
        .into_iter()
        .map(|(_, reference)| reference)
        .collect();
    row.into_info(database, path, references).map(Some)
}

/// The columns of a row, unread.
struct PathRow {
    hash: String,
    registration_time: i64,
    deriver: Option<String>,
    nar_size: Option<i64>,
    ultimate: Option<i64>,
    signatures: Option<String>,
    content_address: Option<String>,
}

impl PathRow {
    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            hash: row.get(1)?,
            registration_time: row.get(2)?,
            deriver: row.get(3)?,
            nar_size: row.get(4)?,
            ultimate: row.get(5)?,
            signatures: row.get(6)?,
            content_address: row.get(7)?,
        })
    }

    fn into_info(
        self,
        database: &Database,
        path: &StorePath,
        references: BTreeSet<StorePath>,
    ) -> Result<PathInfo, Error> {
        let nar_hash: NarHash = self
            .hash
            .parse()
            .map_err(|error| malformed(database, &error))?;
        Ok(PathInfo {
            path: path.clone(),
            nar_hash,
            nar_size_bytes: self
                .nar_size
                .and_then(|size| u64::try_from(size).ok())
                .unwrap_or(0),
            references,
            deriver: self
                .deriver
                .filter(|deriver| !deriver.is_empty())
                .map(|deriver| parse(database, &deriver))
                .transpose()?,
            registration_time: self.registration_time,
            ultimate: self.ultimate == Some(1),
            signatures: self
                .signatures
                .iter()
                .flat_map(|signatures| signatures.split_whitespace())
                .map(str::to_owned)
                .collect(),
            content_address: self.content_address.filter(|address| !address.is_empty()),
        })
    }
}

/// Returns which of `paths` are valid.
///
/// # Errors
/// The database cannot be read.
pub(crate) fn valid_paths(
    database: &Database,
    paths: Vec<StorePath>,
) -> Result<BTreeSet<StorePath>, Error> {
    let _snapshot = database.begin_reading()?;
    let mut valid = BTreeSet::new();
    for path in paths {
        if path_id(database, &path)?.is_some() {
            valid.insert(path);
        }
    }
    Ok(valid)
}

/// Returns everything reachable from `roots` by references, themselves included.
///
/// # Errors
/// A root is not valid, or the database cannot be read.
pub(crate) fn closure(
    database: &Database,
    roots: BTreeSet<StorePath>,
) -> Result<BTreeSet<StorePath>, Error> {
    let _snapshot = database.begin_reading()?;
    let mut seen = HashSet::new();
    let mut frontier = Vec::new();
    for root in &roots {
        let id = path_id(database, root)?.ok_or_else(|| Error::InvalidPath {
            path: database.store_dir.print(root),
        })?;
        if seen.insert(id) {
            frontier.push(id);
        }
    }
    let mut closure = roots;
    while let Some(id) = frontier.pop() {
        for (reference_id, reference) in neighbours(database, Direction::References, id)? {
            if seen.insert(reference_id) {
                frontier.push(reference_id);
                closure.insert(reference);
            }
        }
    }
    Ok(closure)
}

/// Returns everything reachable from `roots` by references, themselves included, with what is
/// known about it.
///
/// # Errors
/// A root is not valid, or the database cannot be read.
pub(crate) fn closure_infos(
    database: &Database,
    roots: BTreeSet<StorePath>,
) -> Result<BTreeMap<StorePath, PathInfo>, Error> {
    let _snapshot = database.begin_reading()?;
    let mut infos = BTreeMap::new();
    let mut frontier: Vec<StorePath> = roots.into_iter().collect();
    while let Some(path) = frontier.pop() {
        if infos.contains_key(&path) {
            continue;
        }
        let info = info_of(database, &path)?.ok_or_else(|| Error::InvalidPath {
            path: database.store_dir.print(&path),
        })?;
        frontier.extend(info.references.iter().cloned());
        infos.insert(path, info);
    }
    Ok(infos)
}

/// Returns which valid paths refer to `path`.
///
/// # Errors
/// `path` is not valid, or the database cannot be read.
pub(crate) fn referrers(
    database: &Database,
    path: &StorePath,
) -> Result<BTreeSet<StorePath>, Error> {
    let _snapshot = database.begin_reading()?;
    let id = path_id(database, path)?.ok_or_else(|| Error::InvalidPath {
        path: database.store_dir.print(path),
    })?;
    Ok(neighbours(database, Direction::Referrers, id)?
        .into_iter()
        .map(|(_, referrer)| referrer)
        .collect())
}

/// Returns which valid derivations have `path` as an output.
///
/// # Errors
/// The database cannot be read.
pub(crate) fn valid_derivers(
    database: &Database,
    path: &StorePath,
) -> Result<BTreeSet<StorePath>, Error> {
    let sql = "select v.path from DerivationOutputs d join ValidPaths v on d.drv = v.id \
               where d.path = ?";
    paths_of(database, sql, Some(database.store_dir.print(path)))
}

/// Returns every valid path.
///
/// # Errors
/// The database cannot be read.
pub(crate) fn all_valid_paths(database: &Database) -> Result<BTreeSet<StorePath>, Error> {
    paths_of(database, "select path from ValidPaths", None)
}

/// Returns the valid path whose name begins with `hash_part`.
///
/// # Errors
/// The database cannot be read.
pub(crate) fn path_from_hash_part(
    database: &Database,
    hash_part: &str,
) -> Result<Option<StorePath>, Error> {
    let prefix = format!("{}/{hash_part}-", database.store_dir);
    let next: Option<String> = database
        .connection
        .prepare_cached("select path from ValidPaths where path >= ? order by path limit 1")
        .and_then(|mut statement| {
            statement
                .query_row(params![prefix], |row| row.get(0))
                .optional()
        })
        .map_err(|source| database.failed("querying a hash part", source))?;
    next.filter(|path| path.starts_with(&prefix))
        .map(|path| parse(database, &path))
        .transpose()
}

/// Along which way of the graph to look.
#[derive(Clone, Copy)]
enum Direction {
    References,
    Referrers,
}

fn neighbours(
    database: &Database,
    direction: Direction,
    id: i64,
) -> Result<Vec<(i64, StorePath)>, Error> {
    let sql = match direction {
        Direction::References => {
            "select v.id, v.path from Refs r join ValidPaths v on v.id = r.reference \
             where r.referrer = ?"
        }
        Direction::Referrers => {
            "select v.id, v.path from Refs r join ValidPaths v on v.id = r.referrer \
             where r.reference = ?"
        }
    };
    let failed = |source| database.failed("querying references", source);
    let mut statement = database.connection.prepare_cached(sql).map_err(failed)?;
    let mut rows = statement.query([id]).map_err(failed)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let text: String = row.get(1).map_err(failed)?;
        found.push((row.get(0).map_err(failed)?, parse(database, &text)?));
    }
    Ok(found)
}

fn paths_of(
    database: &Database,
    sql: &'static str,
    parameter: Option<String>,
) -> Result<BTreeSet<StorePath>, Error> {
    let failed = |source| database.failed("querying paths", source);
    let mut statement = database.connection.prepare_cached(sql).map_err(failed)?;
    let mut rows = statement
        .query(rusqlite::params_from_iter(parameter))
        .map_err(failed)?;
    let mut found = BTreeSet::new();
    while let Some(row) = rows.next().map_err(failed)? {
        let text: String = row.get(0).map_err(failed)?;
        found.insert(parse(database, &text)?);
    }
    Ok(found)
}

fn parse(database: &Database, path: &str) -> Result<StorePath, Error> {
    database
        .store_dir
        .parse(path)
        .map_err(|error| malformed(database, &error))
}

fn malformed(database: &Database, error: &store_model::Error) -> Error {
    Error::DatabaseCorrupt {
        path: database.path.clone(),
        reason: error.to_string(),
    }
}
