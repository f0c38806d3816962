//! Hash, size and references of an archive in one pass.

use std::collections::BTreeSet;
use std::io::{self, Write};

use crate::hash::Hasher;
use crate::ref_scan::RefScanner;
use crate::{HashAlgorithm, NarHash, StorePath};

/// How much is hashed before it is scanned: small enough to be still in the processor's cache.
const BLOCK_LEN: usize = 32 * 1024;

/// A sink for an archive, usually of a [`NarWriter`](super::NarWriter) or a [`Tee`](super::Tee).
#[derive(Debug)]
pub struct NarHasher {
    sha256: Hasher,
    size_bytes: u64,
    scanner: RefScanner,
}

/// What [`NarHasher`] found out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NarDigest {
    /// SHA-256 of the archive.
    pub nar_hash: NarHash,
    /// Length of the archive.
    pub nar_size_bytes: u64,
    /// Those of the candidates that the archive mentions.
    pub references: BTreeSet<StorePath>,
}

impl NarHasher {
    /// Hashes, and looks for references to `candidates`; with none, nothing is scanned.
    pub fn new(candidates: impl IntoIterator<Item = StorePath>) -> Self {
        Self {
            sha256: Hasher::new(HashAlgorithm::Sha256),
            size_bytes: 0,
            scanner: RefScanner::new(candidates),
        }
    }

    /// Returns how many bytes were written so far, so that too long an archive can be stopped.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        for block in bytes.chunks(BLOCK_LEN) {
            self.sha256.update(block);
            self.scanner.scan(block);
        }
        // A usize is never wider than 64 bits.
        self.size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
    }

    /// Returns the findings.
    #[must_use]
    pub fn finish(self) -> NarDigest {
        let mut digest = [0; 32];
        digest.copy_from_slice(self.sha256.finish().as_bytes());
        NarDigest {
            nar_hash: NarHash::from_sha256(digest),
            nar_size_bytes: self.size_bytes,
            references: self.scanner.found(),
        }
    }
}

impl Write for NarHasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
