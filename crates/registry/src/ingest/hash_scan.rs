//! Reading a tree once: its archive's hash and size, the paths that it mentions, and the hash that
//! a fixed output promised, all from the same bytes, while metadata is made canonical.

use std::collections::BTreeSet;
use std::ffi::CStr;
use std::io::{self, Write};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::Path;

use bstr::{BStr, ByteSlice as _};
use rustix::fs::Advice;
use store_model::derivation::IngestionMethod;
use store_model::hash::Hasher;
use store_model::hash_rewrite::{HashRewriter, SelfModuloHasher};
use store_model::nar::{
    self, FileHeader, NarDigest, NarHasher, NarVisitor as _, NarWriter, WriteError,
};
use store_model::{Hash, HashAlgorithm, StorePath};

use super::canonical::Canonical;
use crate::tree::{self, Here, Visitor};
use crate::writer::ContentSync;
use crate::{CancelFlag, Error};

/// How much of a file is read at once: the processor's second-level cache holds it.
const READ_BYTES: usize = 256 << 10;

/// From this size on the kernel is told that a file is read from end to end.
const LARGE_BYTES: u64 = 1 << 20;

/// From this size on a file is brought to the disk by the thread that hashes it, so that the sync
/// that many registrations share has little left to do for it.
pub(super) const SYNCED_ALONE_BYTES: u64 = 8 << 20;

/// A buffer that a thread keeps, because clearing one for each file would cost more than reading it.
#[derive(Debug)]
pub(crate) struct ReadBuffer(pub(super) Vec<u8>);

impl ReadBuffer {
    pub(crate) fn new() -> Self {
        Self(vec![0; READ_BYTES])
    }
}

/// What to do with metadata.
pub(crate) enum Metadata<'a> {
    /// Check it and make it canonical.
    Set(&'a mut Canonical, ContentSync),
    /// Leave it as it is: the object is valid already.
    Keep,
}

/// What else to hash, beside the archive's SHA-256.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ContentHash<'a> {
    pub(crate) method: IngestionMethod,
    pub(crate) algorithm: HashAlgorithm,
    /// The object's own path, mentions of which count as nothing: it may follow from the hash.
    pub(crate) own_path: Option<&'a StorePath>,
    /// Paths whose mentions are hashed as if they were mentions of others.
    pub(crate) redirected: &'a [(StorePath, StorePath)],
}

/// What a tree has turned out to be.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) nar: NarDigest,
    /// Present if it was asked for, and if the tree is such that it can be computed.
    pub(crate) content_hash: Option<Hash>,
}

/// Reads the tree `name` in `parent`. `path` is for messages.
///
/// # Errors
/// Something cannot be read or serialised, its metadata is not what it must be, or it was cancelled:
/// then part of the tree has canonical metadata.
pub(crate) fn read_tree(
    parent: BorrowedFd<'_>,
    name: &CStr,
    path: &Path,
    question: Question<'_>,
    buffer: &mut ReadBuffer,
) -> Result<Contents, Error> {
    let is_flat = |content: &ContentHash<'_>| content.method != IngestionMethod::Recursive;
    let hasher = question
        .content_hash
        .map(|content| (is_flat(&content), ContentHasher::new(content)));
    let (flat, recursive) = match hasher {
        Some((true, hasher)) => (Some(hasher), None),
        Some((false, hasher)) => (None, Some(hasher)),
        None => (None, None),
    };
    let sink = Sink {
        nar: NarHasher::new(question.candidates.iter().cloned()),
        recursive,
    };
    let mut reader = TreeReader {
        archive: NarWriter::new(sink),
        flat,
        metadata: question.metadata,
        cancel: question.cancel,
        root: path,
        buffer,
        target: Vec::new(),
    };
    tree::walk(parent, name, path, &mut reader)?;
    let TreeReader { archive, flat, .. } = reader;
    let (sink, summary) = archive
        .finish()
        .map_err(|error| unarchivable(path, error))?;
    if summary.max_depth > nar::PORTABLE_DEPTH {
        tracing::warn!(
            "'{}' is nested {} directories deep; today's Nix reads no more than {}",
            path.display(),
            summary.max_depth,
            nar::PORTABLE_DEPTH
        );
    }
    let content_hash = flat
        .or(sink.recursive)
        .map(ContentHasher::finish)
        .transpose()
        .map_err(|error| Error::file("hashing", path, error))?;
    Ok(Contents {
        nar: sink.nar.finish(),
        content_hash,
    })
}

/// What to find out about a tree.
pub(crate) struct Question<'a> {
    pub(crate) metadata: Metadata<'a>,
    /// Paths whose mention is a reference.
    pub(crate) candidates: &'a BTreeSet<StorePath>,
    pub(crate) content_hash: Option<ContentHash<'a>>,
    /// Looked at before each file, link and directory, and between the pieces of a file.
    pub(crate) cancel: &'a CancelFlag,
}

/// What makes the hash of contents.
pub(super) enum ContentHasher {
    Plain(Hasher),
    ModuloSelf(SelfModuloHasher),
    Redirected(HashRewriter<SelfModuloHasher>),
}

impl ContentHasher {
    /// Starts hashing nothing.
    pub(super) fn new(content: ContentHash<'_>) -> Self {
        let Some(own_path) = content.own_path else {
            return Self::Plain(Hasher::new(content.algorithm));
        };
        let hasher = SelfModuloHasher::new(content.algorithm, own_path);
        if content.redirected.is_empty() {
            return Self::ModuloSelf(hasher);
        }
        let pairs = content.redirected.iter().map(|(from, to)| (from, to));
        Self::Redirected(HashRewriter::new(hasher, pairs))
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// None that the world could cause: hashing goes through [`Write`].
    pub(super) fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(hasher) => {
                hasher.update(bytes);
                Ok(())
            }
            Self::ModuloSelf(hasher) => hasher.write_all(bytes),
            Self::Redirected(hasher) => hasher.write_all(bytes),
        }
    }

    /// Returns the hash.
    ///
    /// # Errors
    /// As [`update`](Self::update).
    pub(super) fn finish(self) -> io::Result<Hash> {
        Ok(match self {
            Self::Plain(hasher) => hasher.finish(),
            Self::ModuloSelf(hasher) => hasher.finish(),
            Self::Redirected(hasher) => hasher.finish()?.0.finish(),
        })
    }
}

/// Where the archive goes: nowhere but into hashes.
struct Sink {
    nar: NarHasher,
    recursive: Option<ContentHasher>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.nar.update(bytes);
        if let Some(hasher) = &mut self.recursive {
            hasher.update(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct TreeReader<'a> {
    archive: NarWriter<Sink>,
    flat: Option<ContentHasher>,
    metadata: Metadata<'a>,
    cancel: &'a CancelFlag,
    root: &'a Path,
    buffer: &'a mut ReadBuffer,
    target: Vec<u8>,
}

impl Visitor for TreeReader<'_> {
    type Error = Error;

    const MAX_DEPTH: usize = nar::MAX_DEPTH;

    const UNLOCK: bool = true;

    fn enter(&mut self, dir: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Error> {
        self.cancel.check()?;
        if let Metadata::Set(canonical, _) = &self.metadata {
            canonical.enter(dir, here)?;
        }
        self.archive
            .enter_directory(entry_name(here))
            .map_err(|error| unarchivable(self.root, error))
    }

    fn leave(&mut self, dir: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Error> {
        if let Metadata::Set(..) = &self.metadata {
            Canonical::leave(dir, here)?;
        }
        self.archive
            .leave_directory()
            .map_err(|error| unarchivable(self.root, error))
    }

    fn file(&mut self, here: &Here<'_>) -> Result<(), Error> {
        self.cancel.check()?;
        let Metadata::Set(canonical, _) = &mut self.metadata else {
            let file = here.open_file(Self::UNLOCK)?;
            return self.read_file(file.as_fd(), here);
        };
        let is_new = canonical.check(here)?;
        let file = here.open_file(Self::UNLOCK)?;
        canonical.set_file(&file, here, is_new)?;
        self.read_file(file.as_fd(), here)
    }

    fn link(&mut self, here: &Here<'_>) -> Result<(), Error> {
        self.cancel.check()?;
        if let Metadata::Set(canonical, _) = &mut self.metadata {
            let is_new = canonical.check(here)?;
            canonical.set_link(here, is_new)?;
        }
        self.read_link(here)
    }
}

impl TreeReader<'_> {
    fn read_file(&mut self, file: BorrowedFd<'_>, here: &Here<'_>) -> Result<(), Error> {
        let size_bytes = u64::try_from(here.stat.st_size).unwrap_or(0);
        if size_bytes >= LARGE_BYTES {
            // Advice: a file system that knows better may ignore it.
            let _ignored = rustix::fs::fadvise(file, 0, None, Advice::Sequential);
        }
        let header = FileHeader {
            is_executable: here.stat.st_mode & 0o100 != 0,
            size_bytes,
        };
        self.archive
            .begin_file(entry_name(here), header)
            .map_err(|error| unarchivable(self.root, error))?;
        let mut n_left = size_bytes;
        while n_left > 0 {
            self.cancel.check()?;
            let n_read =
                rustix::io::retry_on_intr(|| rustix::io::read(file, &mut self.buffer.0[..]))
                    .map_err(|errno| here.failed("reading", errno))?;
            // Whatever grows or shrinks meanwhile is refused by the archive's own count.
            if n_read == 0 {
                break;
            }
            let chunk = &self.buffer.0[..n_read];
            if let Some(hasher) = &mut self.flat {
                let hashed = hasher.update(chunk);
                hashed.map_err(|error| Error::file("hashing", self.root, error))?;
            }
            self.archive
                .file_contents(chunk)
                .map_err(|error| unarchivable(self.root, error))?;
            n_left = n_left.saturating_sub(u64::try_from(n_read).unwrap_or(u64::MAX));
        }
        self.archive
            .end_file()
            .map_err(|error| unarchivable(self.root, error))?;
        if size_bytes >= SYNCED_ALONE_BYTES
            && let Metadata::Set(_, ContentSync::Durable) = &self.metadata
        {
            // The kernel does not let itself be interrupted in this.
            self.cancel.check()?;
            rustix::fs::fdatasync(file).map_err(|errno| here.failed("syncing", errno))?;
        }
        Ok(())
    }

    fn read_link(&mut self, here: &Here<'_>) -> Result<(), Error> {
        let buffer = std::mem::take(&mut self.target);
        let target = rustix::fs::readlinkat(here.parent, here.name, buffer)
            .map_err(|errno| here.failed("reading link", errno))?
            .into_bytes();
        let told = self.archive.symlink(entry_name(here), target.as_bstr());
        self.target = target;
        told.map_err(|error| unarchivable(self.root, error))
    }
}

fn entry_name<'a>(here: &'a Here<'_>) -> Option<&'a BStr> {
    (here.depth > 0).then(|| here.name.to_bytes().as_bstr())
}

fn unarchivable(root: &Path, error: WriteError) -> Error {
    match error {
        WriteError::Refused(source) => Error::Unarchivable {
            path: root.to_owned(),
            source: Box::new(source),
        },
        WriteError::Sink(source) => Error::file("hashing", root, source),
    }
}
