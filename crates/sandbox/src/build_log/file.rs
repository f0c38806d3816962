//! A builder's log on disk, where `nix log` finds it.
//!
//! It is written plainly while the builder runs, so that it can be followed, and compressed
//! afterwards, away from the builder's path.

use std::fs::{self, File};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bzip2::Compression;
use bzip2::write::BzEncoder;
use store_model::{Settings, StorePath};

/// How many characters of the derivation's base name make up the directory.
const DIRECTORY_LEN: usize = 2;

/// What bzip2 makes of nothing, at its best level.
const EMPTY_BZ2: &[u8] = b"BZh9\x17rE8P\x90\0\0\0\0";

/// What becomes of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keeping {
    Nothing,
    Plain,
    Compressed,
}

/// A log that is being written.
#[derive(Debug)]
pub(crate) struct LogFile {
    keeping: Keeping,
    /// Without a suffix.
    path: PathBuf,
    file: Option<File>,
}

impl LogFile {
    /// Prepares the log of a derivation; nothing is made before the first byte.
    pub(crate) fn new(log_dir: &Path, drv_path: &StorePath, settings: &Settings) -> Self {
        let (directory, rest) = drv_path.base_name().split_at(DIRECTORY_LEN);
        Self {
            keeping: match (settings.keep_log, settings.compress_log) {
                (false, _) => Keeping::Nothing,
                (true, false) => Keeping::Plain,
                (true, true) => Keeping::Compressed,
            },
            path: log_dir.join("drvs").join(directory).join(rest),
            file: None,
        }
    }

    /// Returns where the log will be in the end.
    pub(crate) fn final_path(&self) -> Option<PathBuf> {
        match self.keeping {
            Keeping::Nothing => None,
            Keeping::Plain => Some(self.path.clone()),
            Keeping::Compressed => Some(with_suffix(&self.path, ".bz2")),
        }
    }

    /// Appends.
    ///
    /// # Errors
    /// The disk is full, or the directory cannot be made.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.keeping == Keeping::Nothing {
            return Ok(());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(create(&self.path)?),
        };
        file.write_all(bytes)
    }

    /// Brings the log into the form that lasts. This may take a while.
    ///
    /// # Errors
    /// The compressed form cannot be written; the plain one then stays.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        let compressed_path = with_suffix(&self.path, ".bz2");
        match self.keeping {
            Keeping::Nothing => Ok(()),
            Keeping::Plain => {
                if self.file.is_none() {
                    self.file = Some(create(&self.path)?);
                }
                // Of an earlier run.
                remove_if_present(&compressed_path)
            }
            Keeping::Compressed => compress(self.file.as_ref(), &self.path, &compressed_path),
        }
    }
}

/// Replaces whatever log of an earlier run there is by a new file; one that is just being
/// compressed stays open elsewhere.
fn create(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    remove_if_present(path)?;
    File::options()
        .read(true)
        .append(true)
        .create_new(true)
        .mode(0o644)
        .open(path)
}

fn compress(plain: Option<&File>, path: &Path, compressed_path: &Path) -> io::Result<()> {
    let temporary = with_suffix(path, ".bz2.tmp");
    let mut compressed = create(&temporary)?;
    match plain {
        // Most builders say nothing, and a compressor takes 8 MB before the first byte.
        None => compressed.write_all(EMPTY_BZ2)?,
        Some(mut plain) => {
            plain.rewind()?;
            let level = compression_level(plain.metadata()?.len());
            let mut encoder = BzEncoder::new(compressed, level);
            io::copy(&mut plain, &mut encoder)?;
            encoder.finish()?;
        }
    }
    fs::rename(&temporary, compressed_path)?;
    // Not if it belongs to a later run by now; but a plain log that no run writes is an old one.
    let is_ours = match (plain, fs::metadata(path)) {
        (Some(plain), Ok(found)) => plain.metadata()?.ino() == found.ino(),
        _ => false,
    };
    if is_ours {
        remove_if_present(path)?;
    }
    Ok(())
}

/// The level is the block's size in 100 kB: a larger one than the log costs memory for nothing.
fn compression_level(n_bytes: u64) -> Compression {
    let n_blocks = n_bytes.div_ceil(100_000).clamp(1, 9);
    Compression::new(u32::try_from(n_blocks).unwrap_or(9))
}

fn remove_if_present(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
