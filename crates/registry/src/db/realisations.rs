//! Realisations: which path an output turned out to have, known by what was built.
//!
//! One row for each output, and one for each other realisation that its path refers to. A path that
//! goes takes its realisations with it.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::{OptionalExtension as _, params};
use store_model::{DrvOutput, OutputName, Realisation, StorePath};

use super::Database;
use super::write::path_id;
use crate::Error;

/// A realisation's row.
struct Row {
    id: i64,
    path: StorePath,
    signatures: BTreeSet<String>,
}

/// Returns the paths of those outputs that have one; all of them are valid.
///
/// # Errors
/// The database cannot be read, or has no tables of realisations.
pub(crate) fn realised(
    database: &Database,
    outputs: &BTreeMap<OutputName, DrvOutput>,
) -> Result<BTreeMap<OutputName, StorePath>, Error> {
    let _snapshot = database.begin_reading()?;
    let mut paths = BTreeMap::new();
    for (name, output) in outputs {
        if let Some(row) = find(database, output)? {
            paths.insert(name.clone(), row.path);
        }
    }
    Ok(paths)
}

/// Returns all that is recorded of these outputs, as far as they are known.
///
/// # Errors
/// As [`realised`].
pub(crate) fn infos(
    database: &Database,
    outputs: BTreeSet<DrvOutput>,
) -> Result<BTreeMap<DrvOutput, Realisation>, Error> {
    let _snapshot = database.begin_reading()?;
    let mut infos = BTreeMap::new();
    for id in outputs {
        let Some(row) = find(database, &id)? else {
            continue;
        };
        let mut dependent_realisations = BTreeMap::new();
        for dependency in dependencies(database, row.id)? {
            if let Some(row) = find(database, &dependency)? {
                dependent_realisations.insert(dependency, row.path);
            }
        }
        let info = Realisation {
            id: id.clone(),
            out_path: row.path,
            signatures: row.signatures,
            dependent_realisations,
        };
        infos.insert(id, info);
    }
    Ok(infos)
}

/// Returns these realisations, as far as they are known, and all that they were built with.
///
/// # Errors
/// As [`realised`].
pub(crate) fn closure(
    database: &Database,
    roots: BTreeSet<DrvOutput>,
) -> Result<BTreeMap<DrvOutput, StorePath>, Error> {
    let _snapshot = database.begin_reading()?;
    let mut closure = BTreeMap::new();
    let mut frontier: Vec<DrvOutput> = roots.into_iter().collect();
    while let Some(output) = frontier.pop() {
        if closure.contains_key(&output) {
            continue;
        }
        if let Some(row) = find(database, &output)? {
            frontier.extend(dependencies(database, row.id)?);
            closure.insert(output, row.path);
        }
    }
    Ok(closure)
}

/// Records realisations, inside the transaction that the caller has begun. What is recorded already
/// gets the signatures that it lacks.
///
/// # Errors
/// An output is recorded with another path: that one stays. Or a path is not valid, or a dependency
/// not known.
pub(crate) fn register(database: &Database, realisations: &[Realisation]) -> Result<(), Error> {
    realisations
        .iter()
        .try_for_each(|realisation| register_one(database, realisation))
}

fn register_one(database: &Database, realisation: &Realisation) -> Result<(), Error> {
    let print = |path: &StorePath| database.store_dir.print(path);
    let id = match find(database, &realisation.id)? {
        Some(known) if known.path == realisation.out_path => {
            let signatures = known.signatures.union(&realisation.signatures);
            update_signatures(database, known.id, signatures)?;
            known.id
        }
        Some(known) => {
            return Err(Error::RealisationConflict {
                output: realisation.id.to_string(),
                known: print(&known.path),
                new: print(&realisation.out_path),
            });
        }
        None => insert(database, realisation)?,
    };
    for (dependency, path) in &realisation.dependent_realisations {
        let known = find(database, dependency)?.filter(|row| row.path == *path);
        let Some(known) = known else {
            return Err(Error::UnknownRealisation {
                output: realisation.id.to_string(),
                dependency: dependency.to_string(),
            });
        };
        add_dependency(database, id, known.id)?;
    }
    Ok(())
}

fn insert(database: &Database, realisation: &Realisation) -> Result<i64, Error> {
    let path = &realisation.out_path;
    let path_id = path_id(database, path)?.ok_or_else(|| Error::InvalidPath {
        path: database.store_dir.print(path),
    })?;
    database
        .connection
        .prepare_cached(
            "insert into Realisations (drvPath, outputName, outputPath, signatures) \
             values (?, ?, ?, ?) returning id",
        )
        .and_then(|mut statement| {
            statement.query_row(
                params![
                    realisation.id.hash_text(),
                    realisation.id.output_name.as_str(),
                    path_id,
                    join(&realisation.signatures),
                ],
                |row| row.get(0),
            )
        })
        .map_err(|source| database.failed("registering a realisation", source))
}

fn update_signatures<'a>(
    database: &Database,
    id: i64,
    signatures: impl IntoIterator<Item = &'a String>,
) -> Result<(), Error> {
    database
        .connection
        .prepare_cached("update Realisations set signatures = ? where id = ?")
        .and_then(|mut statement| statement.execute(params![join(signatures), id]))
        .map(drop)
        .map_err(|source| database.failed("signing a realisation", source))
}

fn add_dependency(database: &Database, referrer: i64, reference: i64) -> Result<(), Error> {
    // The table has no key that would keep a row from standing in it twice.
    database
        .connection
        .prepare_cached(
            "insert into RealisationsRefs (referrer, realisationReference) \
             select ?1, ?2 where not exists (select 1 from RealisationsRefs \
             where referrer = ?1 and realisationReference = ?2)",
        )
        .and_then(|mut statement| statement.execute([referrer, reference]))
        .map(drop)
        .map_err(|source| database.failed("registering a realisation's dependency", source))
}

fn find(database: &Database, output: &DrvOutput) -> Result<Option<Row>, Error> {
    let found = database
        .connection
        .prepare_cached(
            "select r.id, v.path, r.signatures from Realisations r \
             join ValidPaths v on v.id = r.outputPath where r.drvPath = ? and r.outputName = ?",
        )
        .and_then(|mut statement| {
            statement
                .query_row(
                    params![output.hash_text(), output.output_name.as_str()],
                    |row| {
                        let path: String = row.get(1)?;
                        let signatures: Option<String> = row.get(2)?;
                        Ok((row.get(0)?, path, signatures.unwrap_or_default()))
                    },
                )
                .optional()
        })
        .map_err(|source| database.failed("querying a realisation", source))?;
    let Some((id, path, signatures)) = found else {
        return Ok(None);
    };
    let path = database
        .store_dir
        .parse(&path)
        .map_err(|error| corrupt(database, &error))?;
    let signatures = signatures.split_whitespace().map(str::to_owned).collect();
    Ok(Some(Row {
        id,
        path,
        signatures,
    }))
}

fn dependencies(database: &Database, id: i64) -> Result<Vec<DrvOutput>, Error> {
    let failed = |source| database.failed("querying a realisation's dependencies", source);
    let mut statement = database
        .connection
        .prepare_cached(
            "select d.drvPath, d.outputName from RealisationsRefs r \
             join Realisations d on d.id = r.realisationReference where r.referrer = ?",
        )
        .map_err(failed)?;
    let rows = statement
        .query_map([id], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })
        .map_err(failed)?;
    let mut outputs = Vec::new();
    for row in rows {
        let (hash, name) = row.map_err(failed)?;
        let output = format!("{hash}!{name}");
        outputs.push(output.parse().map_err(|error| corrupt(database, &error))?);
    }
    Ok(outputs)
}

fn join<'a>(signatures: impl IntoIterator<Item = &'a String>) -> String {
    let signatures: Vec<&str> = signatures.into_iter().map(String::as_str).collect();
    signatures.join(" ")
}

fn corrupt(database: &Database, error: &store_model::Error) -> Error {
    Error::DatabaseCorrupt {
        path: database.path.clone(),
        reason: error.to_string(),
    }
}
