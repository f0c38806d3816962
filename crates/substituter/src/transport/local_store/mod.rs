//! Another store of this machine, read as if it were a cache.
//!
//! ```text
//! nix-cache-info     which paths it is for, and that it comes before caches      made here
//! HASH.narinfo       what its database says of a path                            `database`
//! nar/PATH.nar       the tree, as an archive                                     `archive`
//! log/NAME.drv       what a builder wrote
//! ```
//!
//! Whoever may write to that store may have put anything there (SECURITY N01): every name is looked
//! up below a descriptor and no symbolic link is followed, and what its database says is judged as
//! any cache's word is. Nothing is ever written there, not even a lock.

mod archive;
mod database;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use bzip2::read::MultiBzDecoder;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use store_model::narinfo::{CacheInfo, RelativeUrl};
use store_model::{StoreDir, StorePath};

use self::archive::Archive;
use self::database::{DatabaseError, OtherDatabase};
use super::file::open_beneath;
use super::{Cause, OpenRequest, Transport, TransportError};
use crate::address::StorePlace;

/// The priority of a store that its user gives none, as with Nix: nothing is nearer.
const PRIORITY: u32 = 0;

/// Reads another store.
#[derive(Debug, Clone)]
pub(crate) struct LocalStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: Arc<str>,
    root: PathBuf,
    store_dir: StoreDir,
    objects: Anchor,
    logs: Anchor,
    database: OtherDatabase,
}

/// A directory that its user has named, and where below it something is.
#[derive(Debug, Clone)]
struct Anchor {
    /// May be reached through links.
    named: PathBuf,
    /// May not.
    below: &'static str,
}

impl Anchor {
    /// Returns what the user has named, or else what follows from the store's root.
    fn new(named: Option<&PathBuf>, root: &Path, below: &'static str) -> Self {
        match named {
            Some(named) => Self {
                named: named.clone(),
                below: "",
            },
            None => Self {
                named: root.to_owned(),
                below,
            },
        }
    }

    /// Returns the path of something below, for messages.
    fn path(&self, name: &str) -> PathBuf {
        self.named.join(self.below).join(name)
    }

    /// Opens something below; the directory is opened anew each time, since it may come and go.
    fn open(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        let directory = OFlags::PATH | OFlags::DIRECTORY;
        let root = rustix::fs::open(&self.named, directory | OFlags::CLOEXEC, Mode::empty())?;
        let parts = [self.below, name];
        let parts: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        if parts.is_empty() {
            return Ok(root);
        }
        open_beneath(&root, &parts.join("/"), flags)
    }
}

/// What somebody may ask for.
enum Wanted<'a> {
    Info,
    NarInfo(&'a str),
    Archive(StorePath),
    Log(StorePath),
    Nothing,
}

impl<'a> Wanted<'a> {
    fn of(file: &'a RelativeUrl) -> Self {
        let file = file.as_str();
        let inner =
            |prefix, suffix| -> Option<&'a str> { file.strip_prefix(prefix)?.strip_suffix(suffix) };
        if file == "nix-cache-info" {
            return Self::Info;
        }
        if let Some(Ok(path)) = inner("nar/", ".nar").map(str::parse) {
            return Self::Archive(path);
        }
        if let Some(Ok(path)) = inner("log/", "").map(str::parse) {
            return Self::Log(path);
        }
        match inner("", ".narinfo") {
            Some(hash_part) if !hash_part.contains('/') => Self::NarInfo(hash_part),
            Some(_) | None => Self::Nothing,
        }
    }
}

impl LocalStore {
    /// Takes where the store is; nothing is opened yet. `store_dir` is what our own paths are named
    /// by, and its too unless its user says otherwise.
    pub(crate) fn new(name: Arc<str>, place: &StorePlace, store_dir: &StoreDir) -> Self {
        let root = place.root.as_deref().unwrap_or(Path::new("/"));
        let state = Anchor::new(place.state.as_ref(), root, "nix/var/nix");
        let inner = Inner {
            name,
            root: root.to_owned(),
            store_dir: place.store_dir.as_ref().unwrap_or(store_dir).clone(),
            objects: Anchor::new(place.real.as_ref(), root, "nix/store"),
            logs: Anchor::new(place.log.as_ref(), root, "nix/var/log/nix"),
            database: OtherDatabase::new(state),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Does what waits for a disk on a thread of its own.
    async fn run<T: Send + 'static>(
        &self,
        file: &RelativeUrl,
        work: impl FnOnce(&Inner, &RelativeUrl) -> Result<T, TransportError> + Send + 'static,
    ) -> Result<T, TransportError> {
        let (inner, wanted) = (Arc::clone(&self.inner), file.clone());
        let done = tokio::task::spawn_blocking(move || work(&inner, &wanted)).await;
        done.unwrap_or_else(|lost| Err(self.inner.broken(file, io::Error::other(lost).into())))
    }
}

impl Inner {
    fn read_small(
        &self,
        file: &RelativeUrl,
        max_bytes: usize,
    ) -> Result<Option<Bytes>, TransportError> {
        let contents: Option<Vec<u8>> = match Wanted::of(file) {
            Wanted::Info => {
                let checked = self.database.check();
                checked.map_err(|error| match self.mistaken_cache() {
                    Some(reason) => self.broken(file, reason.into()),
                    None => self.database_failed(file, error),
                })?;
                Some(self.info().to_string().into_bytes())
            }
            Wanted::NarInfo(hash_part) => {
                let found = self.database.narinfo(&self.store_dir, hash_part);
                found
                    .map_err(|error| self.database_failed(file, error))?
                    .map(|narinfo| narinfo.print(&self.store_dir).into_bytes())
            }
            Wanted::Log(drv_path) => {
                let read = self.read_log(&drv_path, max_bytes);
                read.map_err(|error| self.broken(file, error.into()))?
            }
            Wanted::Archive(_) | Wanted::Nothing => None,
        };
        if contents.as_ref().is_some_and(|text| text.len() > max_bytes) {
            let reason = format!("it has more than {max_bytes} bytes");
            return Err(self.broken(file, reason.into()));
        }
        Ok(contents.map(Bytes::from))
    }

    /// Says so if there is a cache where a store should be: nothing but the address tells them apart.
    fn mistaken_cache(&self) -> Option<String> {
        let root = self.root.display();
        let is_cache = self.root.join("nix-cache-info").is_file();
        is_cache
            .then(|| format!("there is a cache in '{root}' and no store; it is 'file://{root}'"))
    }

    /// Returns what the store would say of itself if it were a cache.
    fn info(&self) -> CacheInfo {
        CacheInfo {
            store_dir: Some(self.store_dir.clone()),
            want_mass_query: true,
            priority: Some(PRIORITY),
        }
    }

    /// Reads a log, at most one byte more than `max_bytes`; `None` if there is none.
    fn read_log(&self, drv_path: &StorePath, max_bytes: usize) -> io::Result<Option<Vec<u8>>> {
        let (directory, rest) = drv_path.base_name().split_at(2);
        let plain = format!("drvs/{directory}/{rest}");
        let limit = u64::try_from(max_bytes)
            .unwrap_or(u64::MAX)
            .saturating_add(1);
        let mut contents = Vec::new();
        if let Some(file) = self.open_log(&format!("{plain}.bz2"))? {
            MultiBzDecoder::new(file)
                .take(limit)
                .read_to_end(&mut contents)?;
        } else if let Some(file) = self.open_log(&plain)? {
            file.take(limit).read_to_end(&mut contents)?;
        } else {
            return Ok(None);
        }
        Ok(Some(contents))
    }

    fn open_log(&self, name: &str) -> io::Result<Option<File>> {
        // Without waiting, as it may be a pipe that nobody writes to.
        let opened = match self.logs.open(name, OFlags::RDONLY | OFlags::NONBLOCK) {
            Ok(opened) => opened,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        match FileType::from_raw_mode(rustix::fs::fstat(&opened)?.st_mode) {
            FileType::RegularFile => Ok(Some(opened.into())),
            FileType::Directory
            | FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => Err(io::Error::other("it is no file")),
        }
    }

    fn open_objects(&self, file: &RelativeUrl) -> Result<OwnedFd, TransportError> {
        let opened = self.objects.open("", OFlags::PATH | OFlags::DIRECTORY);
        opened.map_err(|errno| TransportError::NoAnswer {
            address: self.address(file),
            retry_after: None,
            source: io::Error::from(errno).into(),
        })
    }

    fn open_archive(
        &self,
        file: &RelativeUrl,
        request: OpenRequest,
    ) -> Result<Archive, TransportError> {
        let missing = || TransportError::Missing {
            address: self.address(file),
        };
        let Wanted::Archive(path) = Wanted::of(file) else {
            return Err(missing());
        };
        let objects = self.open_objects(file)?;
        match Archive::begin(
            objects,
            &path,
            self.objects.path(path.base_name()),
            request.ended,
        ) {
            Ok(archive) => Ok(archive),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(missing()),
            Err(error) => Err(self.broken(file, error.into())),
        }
    }

    /// A database that cannot be asked is a cache that does not answer; one that says what makes no
    /// sense is another matter.
    fn database_failed(&self, file: &RelativeUrl, error: DatabaseError) -> TransportError {
        match error {
            DatabaseError::Row { .. } => self.broken(file, error.into()),
            DatabaseError::File { .. }
            | DatabaseError::NoFile { .. }
            | DatabaseError::Unreadable { .. }
            | DatabaseError::Sqlite { .. } => TransportError::NoAnswer {
                address: self.name.to_string(),
                retry_after: None,
                source: error.into(),
            },
        }
    }

    fn broken(&self, file: &RelativeUrl, source: Cause) -> TransportError {
        TransportError::Broken {
            address: self.address(file),
            source,
        }
    }

    fn address(&self, file: &RelativeUrl) -> String {
        match Wanted::of(file) {
            Wanted::Archive(path) => self.objects.path(path.base_name()).display().to_string(),
            Wanted::Info | Wanted::NarInfo(_) | Wanted::Log(_) | Wanted::Nothing => {
                format!("{file} of {}", self.name)
            }
        }
    }
}

impl Transport for LocalStore {
    fn read_small<'a>(
        &'a self,
        file: &'a RelativeUrl,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Option<Bytes>, TransportError>> {
        self.run(file, move |inner, file| inner.read_small(file, max_bytes))
            .boxed()
    }

    fn open<'a>(
        &'a self,
        file: &'a RelativeUrl,
        request: OpenRequest,
    ) -> BoxFuture<'a, Result<Box<dyn Read + Send>, TransportError>> {
        self.run(file, move |inner, file| {
            let archive = inner.open_archive(file, request)?;
            Ok(Box::new(archive) as Box<dyn Read + Send>)
        })
        .boxed()
    }

    fn objects(&self) -> BoxFuture<'_, Option<OwnedFd>> {
        let inner = Arc::clone(&self.inner);
        let open = move || {
            inner
                .objects
                .open("", OFlags::PATH | OFlags::DIRECTORY)
                .ok()
        };
        let opened = tokio::task::spawn_blocking(open);
        opened.map(|opened| opened.ok().flatten()).boxed()
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests;
