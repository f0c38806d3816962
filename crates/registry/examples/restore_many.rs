//! Measures how fast many small archives are unpacked and become valid, durably.
//!
//! ```text
//! cargo run --release -p registry --example restore_many -- DIRECTORY [N_PATHS [N_FILES]]
//! ```
//!
//! `DIRECTORY` is empty or missing; the store is left in it. On ext4, where creating files in a
//! churned block group costs ten times what it costs elsewhere, give it the attribute `T` first.

use std::error::Error;
use std::io::{self, Cursor, Write as _};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bstr::BStr;
use nix::sys::resource::{UsageWho, getrusage};
use registry::{CancelFlag, Occupied, RegisterRestored, Registry, RestoreNar, StopRegistry};
use store_model::nar::{FileHeader, NarVisitor as _, NarWriter, WriteError};
use store_model::settings::StoreLayout;
use store_model::{Hash, HashAlgorithm, PathInfo, Settings};
use tokio::time::Instant;

/// How many paths are on their way at once.
const N_AT_ONCE: usize = 64;

#[actix::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let root = PathBuf::from(args.next().ok_or("no directory is named")?);
    let mut count = |default| match args.next() {
        None => Ok(default),
        Some(arg) => arg.to_string_lossy().parse::<u32>(),
    };
    let (n_paths, n_files) = (count(1_000)?, count(4)?);
    let archives = (0..n_paths)
        .map(|idx| archive(idx, n_files))
        .collect::<Result<Vec<_>, _>>()?;
    let registry = registry::start(StoreLayout::under_root(&root), &Settings::default())?;
    let (began, before) = (Instant::now(), computed()?);
    let archives = Mutex::new(archives.into_iter());
    let next = || {
        let mut archives = archives.lock().unwrap_or_else(PoisonError::into_inner);
        archives.next()
    };
    let lane = async || {
        while let Some((promised, archive)) = next() {
            bring(&registry, promised, archive).await?;
        }
        Ok::<_, io::Error>(())
    };
    futures_util::future::try_join_all((0..N_AT_ONCE).map(|_| lane())).await?;
    let (wall, cpu) = (began.elapsed(), computed()?.saturating_sub(before));
    registry.store.send(StopRegistry).await?;
    writeln!(
        io::stdout(),
        "{n_paths} paths of {n_files} files: {:.0} paths/s, {} µs and {} µs of computing each",
        f64::from(n_paths) / wall.as_secs_f64(),
        (wall / n_paths).as_micros(),
        (cpu / n_paths).as_micros()
    )?;
    Ok(())
}

/// Unpacks an archive, and has it registered.
async fn bring(registry: &Registry, promised: PathInfo, archive: Vec<u8>) -> io::Result<()> {
    let request = RestoreNar {
        promised,
        contents: Box::new(Cursor::new(archive)),
        objects: None,
        cancel: CancelFlag::default(),
    };
    let restored = registry.store.send(request).await;
    let request = RegisterRestored {
        restored: restored
            .map_err(io::Error::other)?
            .map_err(io::Error::other)?,
        occupied: Occupied::Refused,
    };
    let registered = registry.store.send(request).await;
    registered
        .map_err(io::Error::other)?
        .map_err(io::Error::other)
}

/// Makes a directory of small files; no two of these archives are equal.
fn archive(idx: u32, n_files: u32) -> Result<(PathInfo, Vec<u8>), Box<dyn Error>> {
    let mut writer = NarWriter::new(Vec::new());
    fill(&mut writer, idx, n_files)?;
    let (archive, summary) = writer.finish()?;
    let hash = Hash::digest(HashAlgorithm::Sha256, &archive);
    let info = PathInfo {
        path: format!("{}-small-{idx}", &hash.to_base32()[..32]).parse()?,
        nar_hash: hash.try_into()?,
        nar_size_bytes: summary.size_bytes,
        references: [].into(),
        deriver: None,
        registration_time: 0,
        ultimate: false,
        signatures: [].into(),
        content_address: None,
    };
    Ok((info, archive))
}

fn fill(writer: &mut NarWriter<Vec<u8>>, idx: u32, n_files: u32) -> Result<(), WriteError> {
    writer.enter_directory(None)?;
    for file_idx in 0..n_files {
        let contents = format!("file {file_idx} of path {idx}\n").repeat(40);
        let header = FileHeader {
            is_executable: file_idx == 0,
            size_bytes: contents.len() as u64,
        };
        let name = format!("file-{file_idx:04}");
        writer.begin_file(Some(BStr::new(&name)), header)?;
        writer.file_contents(contents.as_bytes())?;
        writer.end_file()?;
    }
    writer.leave_directory()
}

/// Returns how long the processors have worked for this process.
fn computed() -> io::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let micros = |time: nix::sys::time::TimeVal| {
        use nix::sys::time::TimeValLike as _;
        Duration::from_micros(time.num_microseconds().unsigned_abs())
    };
    Ok(micros(usage.user_time()) + micros(usage.system_time()))
}
