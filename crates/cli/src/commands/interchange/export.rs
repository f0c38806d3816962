//! `export`: paths with their contents, byte for byte what `nix-store --export` writes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use registry::AddTempRoots;
use store_model::export::{references_first, write_begin, write_end, write_info};
use store_model::nar::{NarHasher, NarWriter};
use store_model::{PathInfo, StoreDir, StorePath};

use crate::commands::nar::{self, BUFFER_LEN};
use crate::commands::query::path_info;
use crate::failure::{Failure, Result};
use crate::store::Store;
use crate::target::Finder;

/// Writes each path once, and what it refers to before it if that was asked for as well.
pub(super) async fn export(store: &Store, finder: &Finder<'_>, words: &[String]) -> Result<()> {
    let words = words.iter();
    let paths: BTreeSet<StorePath> = words
        .map(|word| finder.store_path(word))
        .collect::<Result<_>>()?;
    let roots = AddTempRoots {
        paths: paths.iter().cloned().collect(),
    };
    let _kept = store.ask(roots).await?;
    let mut infos = BTreeMap::new();
    for path in paths {
        let info = path_info(store, &path).await?;
        infos.insert(path, info);
    }
    let real_store_dir = &finder.layout.real_store_dir;
    let ordered = references_first(&infos)
        .into_iter()
        .map(|info| (info.clone(), real_store_dir.join(info.path.base_name())))
        .collect();
    let store_dir = store.dir().clone();
    nar::on_thread(move || write_stream(ordered, &store_dir)).await
}

fn write_stream(paths: Vec<(PathInfo, PathBuf)>, store_dir: &StoreDir) -> Result<()> {
    let failed = |error: io::Error| Failure::stdout(&error);
    // Not through `io::stdout`, whose lock another thread holds and whose buffer works by line.
    let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(failed)?;
    let mut stdout = BufWriter::with_capacity(BUFFER_LEN, File::from(stdout));
    for (info, place) in paths {
        write_begin(&mut stdout).map_err(failed)?;
        let sink = Hashed {
            hasher: NarHasher::new([]),
            stdout: &mut stdout,
        };
        let (sink, _) = nar::archive(&place, NarWriter::new(sink))?;
        let got = sink.hasher.finish().nar_hash;
        if got != info.nar_hash {
            // Whoever reads the stream finds it to be cut off here.
            return Err(Failure::message(format!(
                "path '{}' is corrupt: its hash is {} and should be {}",
                store_dir.print(&info.path),
                got.to_hash().to_sri(),
                info.nar_hash.to_hash().to_sri()
            ))
            .advise("'goalctl repair' builds it again, if its derivation is there"));
        }
        write_info(&mut stdout, &info, store_dir).map_err(failed)?;
    }
    write_end(&mut stdout).map_err(failed)?;
    stdout.flush().map_err(failed)
}

/// Hashes what goes to standard output: what has changed on the disk must not spread.
struct Hashed<'a> {
    hasher: NarHasher,
    stdout: &'a mut BufWriter<File>,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.hasher.update(bytes);
        self.stdout.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stdout.flush()
    }
}
