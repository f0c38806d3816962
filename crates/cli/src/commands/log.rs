//! `log`: prints what a builder wrote.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::iter;
use std::path::{Path, PathBuf};

use actix::Addr;
use bzip2::read::MultiBzDecoder;
use registry::{QueryPathInfo, QueryValidDerivers};
use store_model::{Settings, StorePath};
use substituter::{FoundLog, QueryLog, Substituter};

use crate::args::LogArguments;
use crate::commands::Session;
use crate::failure::{Failure, Result};
use crate::output::Output;
use crate::store::Store;
use crate::target::Finder;

/// Prints the raw bytes of each log, in turn; what is not here is asked of the caches.
pub(super) async fn log(
    store: &Store,
    session: &Session,
    finder: &Finder<'_>,
    settings: &Settings,
    arguments: &LogArguments,
    output: &mut Output,
) -> Result<()> {
    let mut caches = None;
    for word in &arguments.paths {
        let path = finder.store_path(word)?;
        let derivations = derivations_of(store, &path).await?;
        let mut found = None;
        for drv_path in &derivations {
            found = open_log(&finder.layout.log_dir, drv_path)?;
            if found.is_some() {
                break;
            }
        }
        if let Some((file, mut log)) = found {
            copy(&mut *log, output, &file)?;
            continue;
        }
        let substituter = match caches.take() {
            Some(started) => started,
            None => session.substituter(store.dir().clone(), settings)?,
        };
        // First by the cache's own word of who made it, as Nix does.
        let candidates = iter::once(&path).chain(derivations.iter().filter(|drv| **drv != path));
        let found = ask_caches(&substituter, candidates.cloned()).await?;
        caches = Some(substituter);
        let printed = store.dir().print(&path);
        let Some(log) = found else {
            return Err(Failure::message(format!("there is no log of '{printed}'")));
        };
        tracing::info!("the log of '{printed}' is from '{}'", log.cache_name);
        output
            .write_all(&log.contents)
            .map_err(|error| Failure::stdout(&error))?;
    }
    Ok(())
}

/// Returns the first log that a cache has of any of these paths.
async fn ask_caches(
    substituter: &Addr<Substituter>,
    paths: impl Iterator<Item = StorePath>,
) -> Result<Option<FoundLog>> {
    for path in paths {
        let answer = substituter.send(QueryLog { path }).await;
        let answer = answer.map_err(|_| Failure::message("the substituter has stopped"))?;
        let found = answer.map_err(Failure::new)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Returns the derivations that may have made a path; a derivation stands for itself.
async fn derivations_of(store: &Store, path: &StorePath) -> Result<Vec<StorePath>> {
    if path.is_derivation() {
        return Ok(vec![path.clone()]);
    }
    let info = store.ask(QueryPathInfo { path: path.clone() }).await?;
    let mut derivers: Vec<_> = info.and_then(|info| info.deriver).into_iter().collect();
    let others = store.ask(QueryValidDerivers { path: path.clone() }).await?;
    derivers.extend(others);
    Ok(derivers)
}

/// Opens the log of a derivation, compressed or not; `None` if there is none.
fn open_log(log_dir: &Path, drv_path: &StorePath) -> Result<Option<(PathBuf, Box<dyn Read>)>> {
    let (directory, rest) = drv_path.base_name().split_at(2);
    let plain = log_dir.join("drvs").join(directory).join(rest);
    let mut compressed = plain.clone().into_os_string();
    compressed.push(".bz2");
    let compressed = PathBuf::from(compressed);
    if let Some(file) = open(&compressed)? {
        return Ok(Some((compressed, Box::new(MultiBzDecoder::new(file)))));
    }
    Ok(open(&plain)?.map(|file| (plain, Box::new(file) as Box<dyn Read>)))
}

fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Failure::file("opening the log", path, error)),
    }
}

/// Copies in pieces, so that a failing end can be told from another.
fn copy(log: &mut dyn Read, output: &mut Output, file: &Path) -> Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let n_read = match log.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n_read) => n_read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Failure::file("reading the log", file, error)),
        };
        output
            .write_all(&buffer[..n_read])
            .map_err(|error| Failure::stdout(&error))?;
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    fn read(log_dir: &Path, base_name: &str) -> Option<String> {
        let (_, mut log) = open_log(log_dir, &base_name.parse().unwrap()).unwrap()?;
        let mut text = String::new();
        log.read_to_string(&mut text).unwrap();
        Some(text)
    }

    #[test]
    fn a_log_is_found_compressed_or_plain() {
        let dir = tempfile::tempdir().unwrap();
        let drvs = dir.path().join("drvs/y9");
        std::fs::create_dir_all(&drvs).unwrap();
        let drv = "y9l3yib9djbzl56n3397rf7b63ciki14-top.drv";
        assert_eq!(read(dir.path(), drv), None);
        std::fs::write(drvs.join(&drv[2..]), "plain\n").unwrap();
        assert_eq!(read(dir.path(), drv).as_deref(), Some("plain\n"));
        let mut packed = Vec::new();
        // Two streams behind one another, as a log that was appended to has.
        for part in ["packed ", "twice\n"] {
            let level = bzip2::Compression::default();
            let mut encoder = bzip2::write::BzEncoder::new(&mut packed, level);
            encoder.write_all(part.as_bytes()).unwrap();
            encoder.finish().unwrap();
        }
        std::fs::write(drvs.join(format!("{}.bz2", &drv[2..])), packed).unwrap();
        assert_eq!(read(dir.path(), drv).as_deref(), Some("packed twice\n"));
    }
}
