//! Writes a cache in a directory.
//!
//! Files are made in a directory of ours inside the cache, synced together, and only then given their
//! names: archives first, then listings, then the narinfos, references before what refers to them. So
//! a cache is whole at every moment, also after a power cut.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use store_model::narinfo::RelativeUrl;

use super::shelf::{FileKind, Publication, Shelf, ShelfError, Spool};
use super::staging::Staging;
use crate::publications::Grouping;

/// The folders that Nix makes in a cache.
const FOLDERS: [&str; 3] = ["nar", "realisations", "log"];

/// The folder of archives.
const ARCHIVES: &str = "nar";

/// So few files are synced one by one. More of them share one sync of the whole file system, which
/// costs as much as three, but also waits for what others have written.
const FEW_FILES: usize = 4;

/// A cache in a directory of this machine.
#[derive(Debug, Clone)]
pub(crate) struct DirectoryShelf {
    root: Arc<Path>,
    /// Made when the cache is prepared.
    staging: Arc<OnceLock<Arc<Staging>>>,
}

/// A file in our own directory, deleted with the value unless it got another name.
#[derive(Debug)]
pub(crate) struct Staged {
    staging: Arc<Staging>,
    name: String,
    file: File,
    is_placed: bool,
}

impl Staged {
    fn make(staging: &Arc<Staging>) -> Result<Self, ShelfError> {
        let name = staging.fresh_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        // As the user's mask has it: others may be meant to read the cache.
        let mode = Mode::from_raw_mode(0o666);
        let opened = rustix::fs::openat(staging.dir(), &name, flags, mode);
        let file = opened.map_err(|errno| ShelfError::of(staging.address(&name), errno))?;
        Ok(Self {
            staging: Arc::clone(staging),
            name,
            file: file.into(),
            is_placed: false,
        })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    fn write(&mut self, contents: &[u8]) -> Result<(), ShelfError> {
        let written = self.file.write_all(contents);
        written.map_err(|error| ShelfError::of(self.staging.address(&self.name), error))
    }

    fn sync(&self) -> Result<(), ShelfError> {
        let synced = rustix::fs::fsync(&self.file);
        synced.map_err(|errno| ShelfError::of(self.staging.address(&self.name), errno))
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if !self.is_placed {
            self.staging.delete(&self.name);
        }
    }
}

impl DirectoryShelf {
    /// Names the directory, which need not be there yet.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self {
            root: root.into(),
            staging: Arc::default(),
        }
    }

    fn address(&self, file: &str) -> String {
        format!("file://{}", self.root.join(file).display())
    }

    fn staging(&self) -> Result<&Arc<Staging>, ShelfError> {
        let staging = self.staging.get();
        staging.ok_or_else(|| ShelfError::of(self.address(""), io::Error::other("not prepared")))
    }

    fn prepare_now(&self) -> Result<(), ShelfError> {
        for folder in FOLDERS {
            let path = self.root.join(folder);
            fs::create_dir_all(path)
                .map_err(|error| ShelfError::of(self.address(folder), error))?;
        }
        let staging =
            Staging::open(&self.root).map_err(|errno| ShelfError::of(self.address(""), errno))?;
        // A second preparation keeps what the first one made.
        let _kept = self.staging.set(Arc::new(staging));
        Ok(())
    }

    /// Opens a folder of the cache, which must be one and not a link to one: whoever may write to the
    /// cache must not decide what else is written.
    fn open_folder(&self, folder: &str) -> Result<File, ShelfError> {
        let (path, no_link) = match folder {
            "" => (self.root.to_path_buf(), OFlags::empty()),
            folder => (self.root.join(folder), OFlags::NOFOLLOW),
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | no_link;
        let opened = rustix::fs::openat(CWD, path, flags, Mode::empty());
        opened
            .map(File::from)
            .map_err(|errno| ShelfError::of(self.address(folder), errno))
    }

    /// Puts small files beside the archives, and gives all of them their names when they are durable.
    fn publish_now(&self, group: Vec<Publication>) -> Result<(), ShelfError> {
        let staging = self.staging()?;
        let (mut archives, mut listings, mut narinfos) = (Vec::new(), Vec::new(), Vec::new());
        let stage = |contents: &[u8]| {
            let mut staged = Staged::make(staging)?;
            staged.write(contents)?;
            Ok(staged)
        };
        for publication in group {
            if let Some((file, Spool::Staged(staged))) = publication.archive {
                archives.push((file, staged));
            }
            if let Some((file, contents)) = publication.listing {
                listings.push((file, stage(&contents)?));
            }
            let (file, contents) = publication.narinfo;
            narinfos.push((file, stage(&contents)?));
        }
        let files = [&archives, &listings, &narinfos];
        sync(staging, files.into_iter().flatten().map(|(_, file)| file))?;
        let root = self.open_folder("")?;
        if !archives.is_empty() {
            let folder = self.open_folder(ARCHIVES)?;
            for (file, staged) in archives {
                let name = file.as_str().strip_prefix("nar/");
                let name = name.unwrap_or(file.as_str());
                self.place(staged, &folder, name, &file)?;
            }
            // Not every file system keeps the order of names in several folders.
            let synced = rustix::fs::fsync(&folder);
            synced.map_err(|errno| ShelfError::of(self.address(ARCHIVES), errno))?;
        }
        for (file, staged) in listings.into_iter().chain(narinfos) {
            self.place(staged, &root, file.as_str(), &file)?;
        }
        Ok(())
    }

    /// Gives a file its name; one that has the name already is replaced.
    fn place(
        &self,
        mut staged: Staged,
        folder: &File,
        name: &str,
        file: &RelativeUrl,
    ) -> Result<(), ShelfError> {
        let placed = rustix::fs::renameat(staged.staging.dir(), &staged.name, folder, name);
        placed.map_err(|errno| ShelfError::of(self.address(file.as_str()), errno))?;
        staged.is_placed = true;
        Ok(())
    }

    fn put_now(&self, file: &RelativeUrl, contents: &[u8]) -> Result<(), ShelfError> {
        let mut staged = Staged::make(self.staging()?)?;
        staged.write(contents)?;
        staged.sync()?;
        let root = self.open_folder("")?;
        self.place(staged, &root, file.as_str(), file)
    }

    /// Does what waits for a disk on a thread of its own.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, ShelfError> + Send + 'static,
    ) -> Result<T, ShelfError> {
        let cache = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&cache)).await;
        done.unwrap_or_else(|lost| Err(ShelfError::of(self.address(""), io::Error::other(lost))))
    }
}

/// Waits until the contents of some files would survive a power cut.
fn sync<'a>(
    staging: &Staging,
    files: impl Iterator<Item = &'a Staged> + Clone,
) -> Result<(), ShelfError> {
    if files.clone().count() <= FEW_FILES {
        return files.into_iter().try_for_each(Staged::sync);
    }
    let synced = rustix::fs::syncfs(staging.dir().as_fd());
    synced.map_err(|errno| ShelfError::of(staging.address(""), errno))
}

impl Shelf for DirectoryShelf {
    fn prepare(&self) -> BoxFuture<'_, Result<(), ShelfError>> {
        self.run(Self::prepare_now).boxed()
    }

    fn put<'a>(
        &'a self,
        file: &'a RelativeUrl,
        contents: Bytes,
        _kind: FileKind,
    ) -> BoxFuture<'a, Result<(), ShelfError>> {
        let file = file.clone();
        self.run(move |shelf| shelf.put_now(&file, &contents))
            .boxed()
    }

    fn spool(&self) -> Result<Spool, ShelfError> {
        Staged::make(self.staging()?).map(Spool::Staged)
    }

    fn advance<'a>(
        &'a self,
        _file: &'a RelativeUrl,
        archive: Spool,
    ) -> BoxFuture<'a, Result<Option<Spool>, ShelfError>> {
        // It is synced and named with others.
        std::future::ready(Ok(Some(archive))).boxed()
    }

    fn publish(&self, group: Vec<Publication>) -> BoxFuture<'_, Result<(), ShelfError>> {
        self.run(move |shelf| shelf.publish_now(group)).boxed()
    }

    fn grouping(&self) -> Grouping {
        Grouping::Together
    }

    fn settle(&self) -> Result<(), ShelfError> {
        // What was never prepared has nothing to lose.
        let Some(staging) = self.staging.get() else {
            return Ok(());
        };
        // Not when the last one who may write has ended, which may be after the process.
        staging.remove();
        let synced = rustix::fs::fsync(self.open_folder("")?);
        match synced {
            // Some network file systems have nothing to sync about a directory.
            Ok(()) | Err(Errno::INVAL) => Ok(()),
            Err(errno) => Err(ShelfError::of(self.address(""), errno)),
        }
    }
}
