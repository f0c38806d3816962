//! Writes one cache: everything about it that waits.
//!
//! It runs on the substituter's own threads and knows no actor. Which path is to be announced when is
//! decided by `publications`.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use store_model::narinfo::{CacheInfo, MAX_FILE_BYTES, NarInfo, RelativeUrl};
use store_model::{PathInfo, SecretKey, StoreDir, StorePath};
use tokio::sync::Semaphore;

use crate::client::{INFO_FILE, narinfo_file};
use crate::error::chain;
use crate::messages::{TellContents, UploadError, Uploaded};
use crate::pack::{PackError, Packed, Packing};
use crate::transport::{FileKind, Publication, Shelf, ShelfError, Transport, TransportError};

/// What is needed to write one cache.
#[derive(Debug)]
pub(crate) struct Uploader {
    /// The cache as messages name it.
    pub(crate) name: Arc<str>,
    pub(crate) store_dir: StoreDir,
    /// What the cache says of itself if it is made now.
    pub(crate) info: CacheInfo,
    pub(crate) packing: Packing,
    /// Signs what is copied.
    pub(crate) secret_key: Option<SecretKey>,
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) shelf: Box<dyn Shelf>,
    /// One permit for each request at once.
    pub(crate) requests: Semaphore,
    /// One permit for each path that is read and compressed at once.
    pub(crate) packers: Semaphore,
}

impl Uploader {
    /// Makes the cache if there is none; else looks whether it is one for this store.
    ///
    /// # Errors
    /// It is none, or cannot be asked or made.
    pub(crate) async fn prepare(&self) -> Result<(), UploadError> {
        let file = self.file(INFO_FILE)?;
        let unusable = |reason| UploadError::Unusable {
            cache: Arc::clone(&self.name),
            reason,
        };
        // A directory is asked only when there is one.
        self.shelf
            .prepare()
            .await
            .map_err(|error| self.unwritten(error))?;
        let Some(text) = self.read_small(&file).await? else {
            let contents = Bytes::from(self.info.to_string());
            let put = self.shelf.put(&file, contents, FileKind::Info).await;
            return put.map_err(|error| self.unwritten(error));
        };
        let info = CacheInfo::parse(&text).map_err(|error| unusable(error.to_string()))?;
        match info.store_dir {
            Some(store_dir) if store_dir != self.store_dir => Err(unusable(format!(
                "its paths are for '{store_dir}', not for '{}'",
                self.store_dir
            ))),
            _ => Ok(()),
        }
    }

    /// Returns those of some paths that the cache has.
    ///
    /// # Errors
    /// It cannot be asked.
    pub(crate) async fn present(
        &self,
        paths: BTreeSet<StorePath>,
    ) -> Result<BTreeSet<StorePath>, UploadError> {
        let mut answers: FuturesUnordered<_> = paths
            .into_iter()
            .map(|path| async move { Ok((self.has(&path).await?, path)) })
            .collect();
        let mut present = BTreeSet::new();
        while let Some(answer) = answers.next().await {
            let (is_present, path) = answer?;
            if is_present {
                present.insert(path);
            }
        }
        Ok(present)
    }

    async fn has(&self, path: &StorePath) -> Result<bool, UploadError> {
        let file = self.file(&narinfo_file(path))?;
        // The semaphore is never closed.
        let permit = self.requests.acquire().await;
        let text = self.read_small(&file).await?;
        drop(permit);
        let Some(text) = text else { return Ok(false) };
        let reason = match NarInfo::parse(&text, &self.store_dir) {
            Ok(narinfo) if narinfo.info.path == *path => return Ok(true),
            Ok(narinfo) => format!("it is about '{}'", narinfo.info.path),
            Err(error) => error.to_string(),
        };
        let cache = &self.name;
        tracing::warn!("'{cache}/{file}' says nothing of '{path}' and is replaced: {reason}");
        Ok(false)
    }

    /// Reads a path, compresses it, and sends as much of it as can be sent before it is announced.
    ///
    /// # Errors
    /// The path cannot be read or is corrupt, or the cache does not take it.
    pub(crate) async fn pack(
        self: Arc<Self>,
        info: PathInfo,
        contents: TellContents,
    ) -> Result<(Publication, Uploaded), UploadError> {
        let permit = self.packers.acquire().await;
        let uploader = Arc::clone(&self);
        let packing = tokio::task::spawn_blocking(move || uploader.pack_now(info, contents));
        let packed = packing.await;
        drop(permit);
        let (info, packed) = packed.map_err(|_| UploadError::Stopped)??;
        self.send(info, packed).await
    }

    fn pack_now(
        &self,
        info: PathInfo,
        contents: TellContents,
    ) -> Result<(PathInfo, Packed), UploadError> {
        if self.packing.is_given_up.load(Ordering::Relaxed) {
            return Err(UploadError::Stopped);
        }
        let spool = self.shelf.spool().map_err(|error| self.unwritten(error))?;
        let packed = self.packing.pack(&info, contents, spool);
        let path = || self.store_dir.print(&info.path);
        match packed {
            Ok(packed) => Ok((info, packed)),
            Err(PackError::Contents(source)) => Err(UploadError::Read {
                path: path(),
                source,
            }),
            Err(PackError::Corrupt { got }) => Err(UploadError::Corrupt {
                path: path(),
                got: got.to_sri(),
                wanted: info.nar_hash.to_hash().to_sri(),
            }),
            Err(PackError::Spool(error)) => Err(UploadError::Write {
                cache: Arc::clone(&self.name),
                source: Arc::new(error),
            }),
            Err(PackError::GivenUp) => Err(UploadError::Stopped),
        }
    }

    async fn send(
        &self,
        info: PathInfo,
        packed: Packed,
    ) -> Result<(Publication, Uploaded), UploadError> {
        let uploaded = Uploaded {
            nar_size_bytes: info.nar_size_bytes,
            file_size_bytes: packed.file_size_bytes,
        };
        let compression = self.packing.method.compression;
        let (digest, suffix) = (packed.file_hash.to_base32(), compression.file_suffix());
        let url = format!("nar/{digest}.nar{suffix}");
        let archive_file = self.file(&url)?;
        let permit = self.requests.acquire().await;
        let rest = self.shelf.advance(&archive_file, packed.spool).await;
        drop(permit);
        let rest = rest.map_err(|error| self.unwritten(error))?;
        let narinfo_file = self.file(&narinfo_file(&info.path))?;
        let listing = match packed.listing {
            Some(listing) => {
                let file = self.file(&format!("{}.ls", info.path.hash_part()))?;
                Some((file, Bytes::from(listing)))
            }
            None => None,
        };
        let narinfo = NarInfo {
            info: self.signed(info),
            url,
            compression,
            file_hash: Some(packed.file_hash),
            file_size_bytes: Some(packed.file_size_bytes),
        };
        let publication = Publication {
            archive: rest.map(|rest| (archive_file, rest)),
            listing,
            narinfo: (narinfo_file, narinfo.print(&self.store_dir).into()),
        };
        Ok((publication, uploaded))
    }

    fn signed(&self, mut info: PathInfo) -> PathInfo {
        if let Some(key) = &self.secret_key {
            let signature = key.sign(&info.fingerprint(&self.store_dir));
            info.signatures.insert(signature);
        }
        info
    }

    /// Announces paths.
    ///
    /// # Errors
    /// Any of them may not be there.
    pub(crate) async fn publish(&self, group: Vec<Publication>) -> Result<(), Arc<ShelfError>> {
        let permit = self.requests.acquire().await;
        let published = self.shelf.publish(group).await;
        drop(permit);
        published.map_err(Arc::new)
    }

    /// Ends: makes sure that all of it would survive a power cut. Blocks.
    ///
    /// # Errors
    /// It may not.
    pub(crate) fn settle(&self) -> Result<(), UploadError> {
        self.shelf.settle().map_err(|error| self.unwritten(error))
    }

    async fn read_small(&self, file: &RelativeUrl) -> Result<Option<Bytes>, UploadError> {
        match self.transport.read_small(file, MAX_FILE_BYTES).await {
            Ok(contents) => Ok(contents),
            Err(TransportError::Missing { .. }) => Ok(None),
            Err(source) => Err(UploadError::Ask {
                cache: Arc::clone(&self.name),
                source: Box::new(source),
            }),
        }
    }

    fn file(&self, file: &str) -> Result<RelativeUrl, UploadError> {
        file.parse().map_err(|error: store_model::Error| {
            // No name that is made of hashes is refused.
            self.unwritten(ShelfError::of(file, io::Error::other(chain(&error))))
        })
    }

    fn unwritten(&self, error: ShelfError) -> UploadError {
        self.write_error(Arc::new(error))
    }

    /// Says which cache was not written.
    pub(crate) fn write_error(&self, source: Arc<ShelfError>) -> UploadError {
        UploadError::Write {
            cache: Arc::clone(&self.name),
            source,
        }
    }
}
