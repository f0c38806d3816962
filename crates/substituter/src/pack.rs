//! Turns a path into the archive that a cache keeps, in one pass:
//!
//! ```text
//! contents ─► archive ─┬─► hash, compared with the database's
//!                      ├─► listing, if one is wanted
//!                      └─► compressed ─┬─► hash
//!                                      └─► a file that nobody else sees
//! ```
//!
//! It runs on a thread that may block. Nothing here grows with the archive but the listing.

use std::fs::File;
use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use store_model::hash::Hasher;
use store_model::nar::{ListingWriter, NarHasher, NarWriter, WriteError};
use store_model::narinfo::Compression;
use store_model::{Hash, HashAlgorithm, PathInfo};

use crate::compress::{Compressor, Method};
use crate::destination::Listings;
use crate::messages::{ContentsError, TellContents};
use crate::transport::Spool;

/// The archive of a path.
#[derive(Debug)]
pub(crate) struct Packed {
    /// The compressed archive.
    pub(crate) spool: Spool,
    pub(crate) file_hash: Hash,
    pub(crate) file_size_bytes: u64,
    pub(crate) listing: Option<Vec<u8>>,
}

/// Why there is no archive.
#[derive(Debug)]
pub(crate) enum PackError {
    /// The path cannot be read.
    Contents(Box<dyn std::error::Error + Send + Sync>),
    /// It is not what it should be.
    Corrupt {
        /// The hash of its archive.
        got: Hash,
    },
    /// The compressed archive cannot be written.
    Spool(io::Error),
    /// Nobody wants it any more.
    GivenUp,
}

/// How a path is packed.
#[derive(Debug, Clone)]
pub(crate) struct Packing {
    pub(crate) method: Method,
    pub(crate) listings: Listings,
    /// Raised when nobody wants any archive any more.
    pub(crate) is_given_up: Arc<AtomicBool>,
}

impl Packing {
    /// Packs what `contents` tells into `spool`, which is empty.
    ///
    /// # Errors
    /// Any [`PackError`].
    pub(crate) fn pack(
        &self,
        info: &PathInfo,
        contents: TellContents,
        spool: Spool,
    ) -> Result<Packed, PackError> {
        let sink = SpoolSink::new(spool, self.method.compression);
        let ends = Ends {
            archive: NarHasher::new([]),
            compressor: Compressor::new(self.method, sink).map_err(PackError::Spool)?,
            is_given_up: Arc::clone(&self.is_given_up),
        };
        let writer = NarWriter::new(ends);
        let (ends, listing) = match self.listings {
            Listings::Unwanted => {
                let mut writer = writer;
                contents(&mut writer).map_err(|error| self.explain(error))?;
                let finished = writer.finish();
                (
                    finished.map_err(|error| self.explain(error.into()))?.0,
                    None,
                )
            }
            Listings::Written => {
                let mut writer = ListingWriter::new(writer);
                contents(&mut writer).map_err(|error| self.explain(error))?;
                let finished = writer.finish();
                let (ends, _, listing) = finished.map_err(|error| self.explain(error.into()))?;
                (ends, Some(listing))
            }
        };
        let archive = ends.archive.finish();
        let sink = ends.compressor.finish().map_err(PackError::Spool)?;
        if archive.nar_hash != info.nar_hash || archive.nar_size_bytes != info.nar_size_bytes {
            return Err(PackError::Corrupt {
                got: archive.nar_hash.to_hash(),
            });
        }
        let (spool, hash, file_size_bytes) = sink.finish()?;
        Ok(Packed {
            spool,
            file_hash: hash.unwrap_or_else(|| archive.nar_hash.to_hash()),
            file_size_bytes,
            listing,
        })
    }

    fn explain(&self, error: ContentsError) -> PackError {
        match error {
            // The only writer that fails before the file does is one that was told to.
            ContentsError::Archive(WriteError::Sink(_))
                if self.is_given_up.load(Ordering::Relaxed) =>
            {
                PackError::GivenUp
            }
            ContentsError::Archive(WriteError::Sink(error)) => PackError::Spool(error),
            ContentsError::Archive(WriteError::Refused(error)) => PackError::Contents(error.into()),
            ContentsError::Unreadable(error) => PackError::Contents(error),
        }
    }
}

/// Where the archive goes as it is.
struct Ends {
    archive: NarHasher,
    compressor: Compressor<SpoolSink>,
    is_given_up: Arc<AtomicBool>,
}

impl Write for Ends {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.is_given_up.load(Ordering::Relaxed) {
            return Err(io::Error::other("given up"));
        }
        self.archive.update(bytes);
        self.compressor.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.compressor.flush()
    }
}

/// Where the compressed archive goes.
struct SpoolSink {
    spool: Spool,
    /// `None` if it is the archive itself, which is hashed already.
    hasher: Option<Hasher>,
    n_bytes: u64,
    /// Not every encoder tells whether its last bytes were written.
    failure: Option<io::Error>,
}

impl SpoolSink {
    fn new(spool: Spool, compression: Compression) -> Self {
        Self {
            spool,
            hasher: (compression != Compression::None).then(|| Hasher::new(HashAlgorithm::Sha256)),
            n_bytes: 0,
            failure: None,
        }
    }

    fn finish(self) -> Result<(Spool, Option<Hash>, u64), PackError> {
        match self.failure {
            Some(failure) => Err(PackError::Spool(failure)),
            None => Ok((self.spool, self.hasher.map(Hasher::finish), self.n_bytes)),
        }
    }
}

impl Write for SpoolSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut file: &File = self.spool.file();
        if let Err(error) = file.write_all(bytes) {
            self.failure = Some(io::Error::new(error.kind(), error.to_string()));
            return Err(error);
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        // A usize is never wider than 64 bits.
        self.n_bytes = self.n_bytes.saturating_add(bytes.len() as u64);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
