//! Derivations as goals get them: read, parsed, and checked against their own paths.
//!
//! A derivation's outputs follow from its inputs' texts, so checking one reads the graph below it.
//! Each text is read once and each hash computed once, whoever asks: a graph costs linear time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::CStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use store_model::derivation::HashModuloCache;
use store_model::derivation::reference_graphs::graph_outputs;
use store_model::{Derivation, DrvOutput, Hash, HashAlgorithm, OutputName, StorePath};

use crate::Error;
use crate::db::{Database, query};
use crate::ingest::Staged;
use crate::layout::Layout;
use crate::staging::c_name;

/// Longest derivation that is read: the largest in the wild have 2 MB.
const MAX_BYTES: u64 = 64 << 20;

/// How many parsed derivations each of two generations holds: a Linux distribution's 30,000 fit.
const GENERATION_LEN: usize = 16_384;

/// The derivations of a store, with a connection to ask whether they are valid.
#[derive(Debug)]
pub(crate) struct Derivations {
    layout: Arc<Layout>,
    database: Database,
    parsed: Generations,
    hashes: HashModuloCache,
}

/// A cache that forgets what has not been asked for lately.
#[derive(Debug, Default)]
struct Generations {
    young: HashMap<StorePath, Parsed>,
    old: HashMap<StorePath, Parsed>,
}

/// A derivation whose own path is right.
#[derive(Debug, Clone)]
struct Parsed {
    derivation: Arc<Derivation>,
    /// Whether its output paths are known to be right, too.
    is_checked: bool,
}

impl Derivations {
    pub(crate) fn new(layout: Arc<Layout>, database: Database) -> Self {
        let hashes = HashModuloCache::new(layout.paths.store_dir.clone());
        Self {
            layout,
            database,
            parsed: Generations::default(),
            hashes,
        }
    }

    /// Returns a valid derivation, parsed and checked.
    ///
    /// # Errors
    /// It is not valid, is no derivation, or claims paths that are not its own (SECURITY V04).
    pub(crate) fn get(&mut self, path: &StorePath) -> Result<Arc<Derivation>, Error> {
        if query::valid_paths(&self.database, vec![path.clone()])?.is_empty() {
            return Err(Error::InvalidPath {
                path: self.layout.print(path),
            });
        }
        let derivation = match self.parsed.get(path) {
            Some(parsed) if parsed.is_checked => return Ok(parsed.derivation),
            Some(parsed) => parsed.derivation,
            None => Arc::new(read(&self.layout, path)?),
        };
        check(
            &mut self.hashes,
            &mut self.parsed,
            &self.layout,
            path,
            &derivation,
        )?;
        self.parsed.insert(
            path.clone(),
            Parsed {
                derivation: Arc::clone(&derivation),
                is_checked: true,
            },
        );
        Ok(derivation)
    }

    /// Returns the outputs of a valid derivation, for a graph of references.
    ///
    /// # Errors
    /// As [`Derivations::get`]; an output has no path before it is built.
    pub(crate) fn graph_outputs(&mut self, path: &StorePath) -> Result<BTreeSet<StorePath>, Error> {
        let derivation = self.get(path)?;
        graph_outputs(&derivation).map_err(|source| Error::Derivation {
            path: self.layout.print(path),
            source: Box::new(source),
        })
    }

    /// Returns as what each output of a derivation is remembered. It need not be in the store, but
    /// its inputs must be.
    ///
    /// # Errors
    /// An input cannot be read, or the derivation is malformed.
    pub(crate) fn output_ids(
        &mut self,
        derivation: &Derivation,
    ) -> Result<BTreeMap<OutputName, DrvOutput>, Error> {
        let (parsed, layout) = (&mut self.parsed, &self.layout);
        let masked = self
            .hashes
            .hash_inputs(derivation, &mut |input| load(parsed, layout, input))
            .and_then(|()| Ok(self.hashes.hash_masked(derivation)?))
            .map_err(|error| error.of(|| derivation.name.clone()))?;
        let id = |(name, drv_hash): (OutputName, Hash)| {
            let output_name = name.clone();
            let id = DrvOutput {
                drv_hash,
                output_name,
            };
            (name, id)
        };
        Ok(masked.outputs.into_iter().map(id).collect())
    }

    /// Returns as what the outputs of a derivation's inputs are remembered, those that it uses.
    ///
    /// # Errors
    /// As [`Derivations::get`].
    pub(crate) fn input_ids(
        &mut self,
        derivation: &Derivation,
    ) -> Result<BTreeSet<DrvOutput>, Error> {
        let mut ids = BTreeSet::new();
        for (input, names) in &derivation.input_derivations {
            let input = self.get(input)?;
            let of_input = self.output_ids(&input)?;
            ids.extend(names.iter().filter_map(|name| of_input.get(name).cloned()));
        }
        Ok(ids)
    }

    /// Checks a derivation that is about to become valid; its inputs are.
    ///
    /// # Errors
    /// It is no derivation, or claims paths that are not its own (SECURITY V04).
    pub(crate) fn check_new(
        &mut self,
        path: &StorePath,
        text: &[u8],
    ) -> Result<Arc<Derivation>, Error> {
        self.check_parsed(path, parse(&self.layout, path, text)?)
    }

    /// The same of one that lies in our own directory.
    ///
    /// # Errors
    /// It cannot be read, is no derivation, or claims paths that are not its own (SECURITY V04).
    pub(crate) fn check_staged(
        &mut self,
        path: &StorePath,
        staged: &Staged,
    ) -> Result<Arc<Derivation>, Error> {
        let derivation = parse_staged(&self.layout, path, staged)?;
        self.check_parsed(path, derivation)
    }

    /// The same of one that is at its path, valid or not.
    ///
    /// # Errors
    /// As [`check_staged`](Self::check_staged).
    pub(crate) fn check_present(&mut self, path: &StorePath) -> Result<Arc<Derivation>, Error> {
        let derivation = read(&self.layout, path)?;
        self.check_parsed(path, derivation)
    }

    fn check_parsed(
        &mut self,
        path: &StorePath,
        derivation: Derivation,
    ) -> Result<Arc<Derivation>, Error> {
        let derivation = Arc::new(derivation);
        check(
            &mut self.hashes,
            &mut self.parsed,
            &self.layout,
            path,
            &derivation,
        )?;
        Ok(derivation)
    }
}

/// Reads what lies in our own directory as the derivation that is to be at `path`. Whether its outputs
/// are its own is not checked: that takes its inputs.
///
/// # Errors
/// It cannot be read, is no derivation, or is another one.
pub(crate) fn parse_staged(
    layout: &Layout,
    path: &StorePath,
    staged: &Staged,
) -> Result<Derivation, Error> {
    read_at(layout, staged.place(), path)
}

fn check(
    hashes: &mut HashModuloCache,
    parsed: &mut Generations,
    layout: &Layout,
    path: &StorePath,
    derivation: &Derivation,
) -> Result<(), Error> {
    hashes
        .check_output_paths(derivation, &mut |input| load(parsed, layout, input))
        .map_err(|error| error.of(|| layout.print(path)))
}

/// Returns an input, whose own outputs nobody has looked at.
fn load(
    parsed: &mut Generations,
    layout: &Layout,
    input: &StorePath,
) -> Result<Arc<Derivation>, Loading> {
    if let Some(known) = parsed.get(input) {
        return Ok(known.derivation);
    }
    let derivation = Arc::new(read(layout, input).map_err(Loading::Read)?);
    parsed.insert(
        input.clone(),
        Parsed {
            derivation: Arc::clone(&derivation),
            is_checked: false,
        },
    );
    Ok(derivation)
}

/// Why a derivation could not be checked.
enum Loading {
    Read(Error),
    Check(store_model::Error),
}

impl Loading {
    /// Says of which derivation.
    fn of(self, path: impl FnOnce() -> String) -> Error {
        match self {
            Self::Read(error) => error,
            Self::Check(source) => Error::Derivation {
                path: path(),
                source: Box::new(source),
            },
        }
    }
}

impl From<store_model::Error> for Loading {
    fn from(error: store_model::Error) -> Self {
        Self::Check(error)
    }
}

impl Generations {
    fn get(&mut self, path: &StorePath) -> Option<Parsed> {
        if let Some(parsed) = self.young.get(path) {
            return Some(parsed.clone());
        }
        let parsed = self.old.remove(path)?;
        self.insert(path.clone(), parsed.clone());
        Some(parsed)
    }

    fn insert(&mut self, path: StorePath, parsed: Parsed) {
        if self.young.len() >= GENERATION_LEN {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(path, parsed);
    }
}

fn read(layout: &Layout, path: &StorePath) -> Result<Derivation, Error> {
    let name = c_name(path.base_name());
    read_at(layout, (layout.store.as_fd(), &name), path)
}

/// Reads the derivation that is, or is to be, at `path`, from where it lies.
fn read_at(
    layout: &Layout,
    (dir, name): (BorrowedFd<'_>, &CStr),
    path: &StorePath,
) -> Result<Derivation, Error> {
    let real_path = layout.real_path(path);
    let failed = |errno: Errno| Error::file("reading", &real_path, errno);
    let file: OwnedFd = rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK,
        Mode::empty(),
    )
    .map_err(failed)?;
    let stat = rustix::fs::fstat(&file).map_err(failed)?;
    let file_type = FileType::from_raw_mode(stat.st_mode);
    if file_type != FileType::RegularFile {
        return Err(Error::UnsupportedFile {
            path: real_path,
            kind: crate::tree::describe(file_type),
        });
    }
    if u64::try_from(stat.st_size).is_ok_and(|size| size > MAX_BYTES) {
        return Err(failed(Errno::FBIG));
    }
    let mut text = Vec::with_capacity(usize::try_from(stat.st_size).unwrap_or(0));
    File::from(file)
        .take(MAX_BYTES)
        .read_to_end(&mut text)
        .map_err(|error| Error::file("reading", &real_path, error))?;
    parse(layout, path, &text)
}

/// Parses a derivation's text, and checks that its path follows from it.
fn parse(layout: &Layout, path: &StorePath, text: &[u8]) -> Result<Derivation, Error> {
    let store_dir = &layout.paths.store_dir;
    let malformed = |source| Error::Derivation {
        path: layout.print(path),
        source: Box::new(source),
    };
    let name = path.name();
    let drv_name = name.strip_suffix(".drv").unwrap_or(name);
    let derivation = Derivation::parse(text, drv_name, store_dir).map_err(malformed)?;
    let references = derivation
        .input_sources
        .iter()
        .chain(derivation.input_derivations.keys())
        .cloned()
        .collect();
    let hash = Hash::digest(HashAlgorithm::Sha256, text);
    let expected = store_dir
        .make_text_path(name, &hash, &references)
        .map_err(malformed)?;
    if expected != *path {
        return Err(Error::DerivationPath {
            path: layout.print(path),
            expected: layout.print(&expected),
        });
    }
    Ok(derivation)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
