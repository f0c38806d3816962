//! The one place where a path becomes valid.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{SystemTime, UNIX_EPOCH};

use rusqlite::{OptionalExtension as _, params};
use store_model::{OutputName, PathInfo, StorePath};

use super::Database;
use crate::Error;
use crate::cycle::find_cycle;

/// What is written for one path.
#[derive(Debug, Clone)]
pub(crate) struct Registration {
    /// Its row and its references. A registration time of 0 means now.
    pub(crate) info: PathInfo,
    /// Of a derivation, the outputs whose paths are known.
    pub(crate) derivation_outputs: Vec<(OutputName, StorePath)>,
}

/// Makes all of `registrations` valid, inside the transaction that the caller has begun.
///
/// This is the only function that does. Contents and names must be on the disk by now.
///
/// # Errors
/// A reference is neither valid nor among them, they refer to each other in a circle, or the
/// database refuses.
pub(crate) fn register_valid(
    database: &Database,
    registrations: &[Registration],
) -> Result<(), Error> {
    let now = unix_time();
    let ids: Vec<i64> = registrations
        .iter()
        .map(|registration| write_row(database, registration, now))
        .collect::<Result<_, _>>()?;
    for (registration, id) in registrations.iter().zip(&ids) {
        write_references(database, &registration.info, *id)?;
    }
    refuse_cycles(database, registrations)
}

fn write_row(database: &Database, registration: &Registration, now: i64) -> Result<i64, Error> {
    let failed = |source| database.failed("registering a path", source);
    let info = &registration.info;
    let nar_size = i64::try_from(info.nar_size_bytes).unwrap_or(i64::MAX);
    let signatures = info
        .signatures
        .iter()
        .cloned()
        .collect::<Vec<_>>()
        .join(" ");
    // What was repaired may mention other paths than before.
    database
        .connection
        .prepare_cached(
            "delete from Refs where referrer = \
             (select id from ValidPaths where path = ?1 and hash != ?2)",
        )
        .and_then(|mut statement| {
            let path = database.store_dir.print(&info.path);
            statement.execute(params![path, info.nar_hash.to_database()])
        })
        .map_err(failed)?;
    let id: i64 = database
        .connection
        .prepare_cached(
            // A path that became valid meanwhile keeps its number, its age and its deriver.
            "insert into ValidPaths \
             (path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca) \
             values (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) \
             on conflict (path) do update set \
             hash = ?2, narSize = ?5, ultimate = ?6, sigs = ?7, ca = ?8 returning id",
        )
        .map_err(failed)?
        .query_row(
            params![
                database.store_dir.print(&info.path),
                info.nar_hash.to_database(),
                if info.registration_time == 0 {
                    now
                } else {
                    info.registration_time
                },
                info.deriver
                    .as_ref()
                    .map(|deriver| database.store_dir.print(deriver)),
                (nar_size != 0).then_some(nar_size),
                info.ultimate.then_some(1),
                (!signatures.is_empty()).then_some(signatures),
                info.content_address,
            ],
            |row| row.get(0),
        )
        .map_err(failed)?;
    for (name, path) in &registration.derivation_outputs {
        database
            .connection
            .prepare_cached(
                "insert or replace into DerivationOutputs (drv, id, path) values (?, ?, ?)",
            )
            .and_then(|mut statement| {
                statement.execute(params![id, name.as_str(), database.store_dir.print(path)])
            })
            .map_err(|source| database.failed("registering an output", source))?;
    }
    Ok(id)
}

fn write_references(database: &Database, info: &PathInfo, id: i64) -> Result<(), Error> {
    let failed = |source| database.failed("registering a reference", source);
    for reference in &info.references {
        let reference_id =
            path_id(database, reference)?.ok_or_else(|| Error::InvalidReference {
                path: database.store_dir.print(&info.path),
                reference: database.store_dir.print(reference),
            })?;
        database
            .connection
            .prepare_cached("insert or replace into Refs (referrer, reference) values (?, ?)")
            .and_then(|mut statement| statement.execute([id, reference_id]))
            .map_err(failed)?;
    }
    Ok(())
}

/// Adds signatures to those of valid paths, inside the transaction that the caller has begun.
///
/// # Errors
/// A path is not valid, or the database refuses.
pub(crate) fn add_signatures(
    database: &Database,
    signatures: &BTreeMap<StorePath, BTreeSet<String>>,
) -> Result<(), Error> {
    let failed = |source| database.failed("adding signatures", source);
    for (path, new) in signatures {
        let id = path_id(database, path)?.ok_or_else(|| Error::InvalidPath {
            path: database.store_dir.print(path),
        })?;
        let known: Option<String> = database
            .connection
            .prepare_cached("select sigs from ValidPaths where id = ?")
            .and_then(|mut statement| statement.query_row([id], |row| row.get(0)))
            .map_err(failed)?;
        let mut all: BTreeSet<&str> = new.iter().map(String::as_str).collect();
        all.extend(known.iter().flat_map(|known| known.split_whitespace()));
        let all: Vec<&str> = all.into_iter().collect();
        database
            .connection
            .prepare_cached("update ValidPaths set sigs = ?2 where id = ?1")
            .and_then(|mut statement| statement.execute(params![id, all.join(" ")]))
            .map_err(failed)?;
    }
    Ok(())
}

/// Returns the row number of a valid path.
///
/// # Errors
/// The database cannot be read.
pub(super) fn path_id(database: &Database, path: &StorePath) -> Result<Option<i64>, Error> {
    database
        .connection
        .prepare_cached("select id from ValidPaths where path = ?")
        .and_then(|mut statement| {
            statement
                .query_row([database.store_dir.print(path)], |row| row.get(0))
                .optional()
        })
        .map_err(|source| database.failed("looking up a path", source))
}

/// Refuses paths that refer to each other in a circle; to itself a path may refer.
fn refuse_cycles(database: &Database, registrations: &[Registration]) -> Result<(), Error> {
    let graph = registrations
        .iter()
        .map(|registration| (&registration.info.path, &registration.info.references))
        .map(|(path, references)| (path, references.iter().collect()))
        .collect();
    match find_cycle(&graph) {
        None => Ok(()),
        Some((path, referrer)) => Err(Error::ReferenceCycle {
            path: database.store_dir.print(path),
            referrer: database.store_dir.print(referrer),
        }),
    }
}

/// Returns the seconds since 1970.
#[expect(
    clippy::disallowed_methods,
    reason = "the row says when the path was registered"
)]
pub(crate) fn unix_time() -> i64 {
    // A clock before 1970 gives an odd age, and harms nothing else.
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
}
