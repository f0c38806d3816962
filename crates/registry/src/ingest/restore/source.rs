//! An archive that is on its way: hashed as it arrives, and stopped one byte beyond what was
//! promised.

use std::io::{self, BufRead, Read};

use store_model::Hash;
use store_model::nar::{NarDigest, NarHasher};

use crate::CancelFlag;
use crate::ingest::hash_scan::ContentHasher;

/// The bytes of one archive.
///
/// They are hashed in the pieces in which they arrive, before anybody looks at them: the archive
/// must end where they do, so there are none that would not count.
pub(super) struct Source<'a> {
    reader: Box<dyn Read + Send>,
    buffer: &'a mut [u8],
    /// What of the buffer has been taken, and how far it is filled.
    n_taken: usize,
    n_filled: usize,
    n_read: u64,
    limit_bytes: u64,
    cancels: [&'a CancelFlag; 2],
    nar: NarHasher,
    /// A hash of the archive with another algorithm, or modulo mentions of its own path.
    recursive: Option<ContentHasher>,
    failure: Option<Failure>,
}

/// Why no more is read.
#[derive(Debug)]
pub(super) enum Failure {
    /// There is more than was promised.
    TooLong,
    /// Nobody wants it any more.
    Cancelled,
    /// The reader's own.
    Reader(io::Error),
}

/// What the bytes have turned out to be.
pub(super) struct Digests {
    pub(super) nar: NarDigest,
    pub(super) recursive: Option<Hash>,
}

impl<'a> Source<'a> {
    /// Starts reading at most one byte more than `limit_bytes`.
    pub(super) fn new(
        reader: Box<dyn Read + Send>,
        limit_bytes: u64,
        buffer: &'a mut [u8],
        cancels: [&'a CancelFlag; 2],
        recursive: Option<ContentHasher>,
    ) -> Self {
        Self {
            reader,
            buffer,
            n_taken: 0,
            n_filled: 0,
            n_read: 0,
            limit_bytes,
            cancels,
            nar: NarHasher::new([]),
            recursive,
            failure: None,
        }
    }

    /// Returns why reading failed, once. A raised flag counts first: whoever raises it ends the
    /// reader too, which may look like anything.
    pub(super) fn take_failure(&mut self) -> Option<Failure> {
        if self.is_cancelled() {
            return Some(Failure::Cancelled);
        }
        self.failure.take()
    }

    /// Returns the hashes of all that was read.
    ///
    /// # Errors
    /// As [`ContentHasher::finish`].
    pub(super) fn finish(self) -> io::Result<Digests> {
        Ok(Digests {
            nar: self.nar.finish(),
            recursive: self.recursive.map(ContentHasher::finish).transpose()?,
        })
    }

    fn is_cancelled(&self) -> bool {
        self.cancels.iter().any(|flag| flag.is_raised())
    }

    fn fail(&mut self, failure: Failure) -> io::Error {
        self.failure = Some(failure);
        io::Error::other("see what failed")
    }

    /// Fills the empty buffer, or leaves it empty at the end.
    fn refill(&mut self) -> io::Result<()> {
        // One byte more tells that there is too much.
        let n_wanted = self.limit_bytes.saturating_add(1) - self.n_read;
        let n_wanted = usize::try_from(n_wanted).map_or(self.buffer.len(), |n_wanted| {
            n_wanted.min(self.buffer.len())
        });
        let n_read = loop {
            if self.is_cancelled() {
                return Err(self.fail(Failure::Cancelled));
            }
            match self.reader.read(&mut self.buffer[..n_wanted]) {
                Ok(n_read) => break n_read.min(n_wanted),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.fail(Failure::Reader(error))),
            }
        };
        // A usize is never wider than 64 bits.
        self.n_read += n_read as u64;
        if self.n_read > self.limit_bytes {
            return Err(self.fail(Failure::TooLong));
        }
        (self.n_taken, self.n_filled) = (0, n_read);
        self.nar.update(&self.buffer[..n_read]);
        if let Some(hasher) = &mut self.recursive {
            hasher.update(&self.buffer[..n_read])?;
        }
        Ok(())
    }
}

impl BufRead for Source<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.n_taken == self.n_filled {
            self.refill()?;
        }
        Ok(&self.buffer[self.n_taken..self.n_filled])
    }

    fn consume(&mut self, n_taken: usize) {
        self.n_taken = (self.n_taken + n_taken).min(self.n_filled);
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let n_taken = available.len().min(buffer.len());
        buffer[..n_taken].copy_from_slice(&available[..n_taken]);
        self.consume(n_taken);
        Ok(n_taken)
    }
}
