//! Where the files of a cache are put.
//!
//! A shelf knows neither narinfo nor compression. It promises that nobody sees a part of a file, and
//! no description of a path before the archive of it.

use std::fmt;
use std::fs::File;
use std::io;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use store_model::narinfo::RelativeUrl;

use super::Cause;
use super::directory::Staged;
use crate::publications::Grouping;

/// Where the files of one cache go. Futures are run by the substituter's own runtime.
pub(crate) trait Shelf: Send + Sync + fmt::Debug {
    /// Makes what has to be there before any file, and deletes what copies have left that were killed.
    fn prepare(&self) -> BoxFuture<'_, Result<(), ShelfError>>;

    /// Puts a small file that belongs to no path.
    fn put<'a>(
        &'a self,
        file: &'a RelativeUrl,
        contents: Bytes,
        kind: FileKind,
    ) -> BoxFuture<'a, Result<(), ShelfError>>;

    /// Makes an empty file for an archive, which is gone with the value. Blocks.
    ///
    /// # Errors
    /// It cannot be made.
    fn spool(&self) -> Result<Spool, ShelfError>;

    /// Does with an archive what can be done before the path is published. What is returned is left for
    /// then.
    fn advance<'a>(
        &'a self,
        file: &'a RelativeUrl,
        archive: Spool,
    ) -> BoxFuture<'a, Result<Option<Spool>, ShelfError>>;

    /// Puts paths into the cache, in their order: all of them, or an error if any could not be put.
    fn publish(&self, group: Vec<Publication>) -> BoxFuture<'_, Result<(), ShelfError>>;

    /// Returns how publications are to be handed in.
    fn grouping(&self) -> Grouping;

    /// Ends: makes sure that what was put survives a power cut, as far as that is in our hands, and
    /// deletes what has no name yet. Blocks.
    ///
    /// # Errors
    /// It may not.
    fn settle(&self) -> Result<(), ShelfError>;
}

/// The files of one path.
#[derive(Debug)]
pub(crate) struct Publication {
    /// What is left of the archive to be put.
    pub(crate) archive: Option<(RelativeUrl, Spool)>,
    pub(crate) listing: Option<(RelativeUrl, Bytes)>,
    pub(crate) narinfo: (RelativeUrl, Bytes),
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    /// `nix-cache-info`.
    Info,
    /// A narinfo.
    Narinfo,
    /// An archive.
    Archive,
    /// A listing.
    Listing,
}

impl FileKind {
    /// Returns what Nix says of such a file to a server.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Info => "text/x-nix-cache-info",
            Self::Narinfo => "text/x-nix-narinfo",
            Self::Archive => "application/x-nix-nar",
            Self::Listing => "application/json",
        }
    }
}

/// A file that nobody else sees, deleted with the value.
#[derive(Debug)]
pub(crate) enum Spool {
    /// It has no name.
    Unnamed(File),
    /// It lies where it can be given another name.
    Staged(Staged),
}

impl Spool {
    /// Returns the file.
    pub(crate) fn file(&self) -> &File {
        match self {
            Self::Unnamed(file) => file,
            Self::Staged(staged) => staged.file(),
        }
    }
}

/// A file was not put. `address` has neither name, password nor parameters.
#[derive(Debug, thiserror::Error)]
#[error("cannot write '{address}'")]
pub(crate) struct ShelfError {
    pub(crate) address: String,
    pub(crate) source: Cause,
}

impl ShelfError {
    /// Takes an error of the kernel.
    pub(crate) fn of(address: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self {
            address: address.into(),
            source: Box::new(source.into()),
        }
    }
}
