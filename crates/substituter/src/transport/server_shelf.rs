//! Writes a cache on a server, by PUT.
//!
//! Archives wait in files that have no name until they are sent: their name on the server is their
//! hash.

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use store_model::narinfo::RelativeUrl;

use super::Cause;
use super::http::{Contents, HttpError};
use super::server::ServerTransport;
use super::shelf::{FileKind, Publication, Shelf, ShelfError, Spool};
use crate::publications::Grouping;

/// A cache on a server.
pub(super) struct ServerShelf {
    server: ServerTransport,
    /// The directory of files without a name.
    spool_dir: PathBuf,
}

impl ServerShelf {
    pub(super) fn new(server: ServerTransport, spool_dir: PathBuf) -> Self {
        Self { server, spool_dir }
    }

    async fn send(
        &self,
        file: &RelativeUrl,
        contents: &Contents,
        kind: FileKind,
    ) -> Result<(), ShelfError> {
        let failed = |source: Cause| ShelfError {
            address: self.server.shown(file),
            source,
        };
        let http = self.server.get().await;
        let http = http.map_err(|error| failed(Box::new(error)))?;
        let sent = http.put(file, contents, kind.content_type()).await;
        sent.map_err(|error: HttpError| failed(Box::new(error)))
    }

    /// Returns whether the server has an archive already, under the hash that is its name.
    async fn has(&self, file: &RelativeUrl) -> Result<bool, ShelfError> {
        let failed = |source: Cause| ShelfError {
            address: self.server.shown(file),
            source,
        };
        let http = self.server.get().await;
        let http = http.map_err(|error| failed(Box::new(error)))?;
        let has = http.has(file).await;
        has.map_err(|error: HttpError| failed(Box::new(error)))
    }

    async fn send_archive(&self, file: &RelativeUrl, archive: Spool) -> Result<(), ShelfError> {
        if self.has(file).await? {
            return Ok(());
        }
        let Spool::Unnamed(contents) = archive else {
            return Ok(());
        };
        let n_bytes = contents.metadata();
        let n_bytes = n_bytes.map_err(|error| ShelfError::of(self.server.shown(file), error))?;
        let contents = Contents::File {
            file: Arc::new(contents),
            n_bytes: n_bytes.len(),
        };
        self.send(file, &contents, FileKind::Archive).await
    }
}

impl fmt::Debug for ServerShelf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerShelf").field(&self.server).finish()
    }
}

impl Shelf for ServerShelf {
    fn prepare(&self) -> BoxFuture<'_, Result<(), ShelfError>> {
        Box::pin(async { Ok(()) })
    }

    fn put<'a>(
        &'a self,
        file: &'a RelativeUrl,
        contents: Bytes,
        kind: FileKind,
    ) -> BoxFuture<'a, Result<(), ShelfError>> {
        Box::pin(async move { self.send(file, &Contents::Small(contents), kind).await })
    }

    fn spool(&self) -> Result<Spool, ShelfError> {
        let file: Result<File, _> = tempfile::tempfile_in(&self.spool_dir);
        file.map(Spool::Unnamed)
            .map_err(|error| ShelfError::of(self.spool_dir.display().to_string(), error))
    }

    fn advance<'a>(
        &'a self,
        file: &'a RelativeUrl,
        archive: Spool,
    ) -> BoxFuture<'a, Result<Option<Spool>, ShelfError>> {
        Box::pin(async move {
            self.send_archive(file, archive).await?;
            Ok(None)
        })
    }

    fn publish(&self, group: Vec<Publication>) -> BoxFuture<'_, Result<(), ShelfError>> {
        Box::pin(async move {
            for publication in group {
                if let Some((file, contents)) = publication.listing {
                    self.put(&file, contents, FileKind::Listing).await?;
                }
                let (file, contents) = publication.narinfo;
                self.put(&file, contents, FileKind::Narinfo).await?;
            }
            Ok(())
        })
    }

    fn grouping(&self) -> Grouping {
        Grouping::Singly
    }

    fn settle(&self) -> Result<(), ShelfError> {
        // A server has told that it has what it was sent.
        Ok(())
    }
}
