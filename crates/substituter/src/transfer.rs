//! An archive on its way: counts and hashes what comes, and takes the compression off it.

use std::io::{self, Read};
use std::time::Duration;

use actix::Recipient;
use store_model::Hash;
use store_model::hash::Hasher;
use store_model::narinfo::{Compression, NarInfo};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;

use crate::decompress::decompress;
use crate::messages::FetchProgressed;

/// How often somebody is told of progress: as often as an eye can follow.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);

/// Returns the archive of `narinfo`, of which `compressed` are the bytes as the cache has them.
///
/// # Errors
/// There is no memory for a decoder.
pub(crate) fn unwrap_archive(
    narinfo: &NarInfo,
    address: String,
    compressed: Box<dyn Read + Send>,
    progress: Option<Recipient<FetchProgressed>>,
    permit: OwnedSemaphorePermit,
) -> io::Result<Box<dyn Read + Send>> {
    // Of what is not compressed its reader checks the very same hash.
    let is_checked_later = |hash: &Hash| {
        narinfo.compression == Compression::None && *hash == narinfo.info.nar_hash.to_hash()
    };
    let counted = Counted {
        compressed,
        n_bytes: 0,
        n_expected: narinfo.file_size_bytes,
        hash: narinfo
            .file_hash
            .filter(|hash| !is_checked_later(hash))
            .map(|expected| (Hasher::new(expected.algorithm()), expected)),
        progress: progress.map(|recipient| Progress {
            recipient,
            told_at: None,
        }),
        is_at_end: false,
    };
    let contents = decompress(narinfo.compression, counted)?;
    Ok(Box::new(Named {
        contents,
        address,
        _permit: permit,
    }))
}

/// The bytes as the cache has them: neither more than the narinfo says, nor fewer, nor others. None of
/// that is signed; a cache that contradicts itself is found out here and not by what it breaks.
struct Counted {
    compressed: Box<dyn Read + Send>,
    n_bytes: u64,
    n_expected: Option<u64>,
    /// Taken when it was compared.
    hash: Option<(Hasher, Hash)>,
    progress: Option<Progress>,
    is_at_end: bool,
}

struct Progress {
    recipient: Recipient<FetchProgressed>,
    told_at: Option<Instant>,
}

impl Counted {
    /// Takes note of some bytes.
    fn count(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.n_bytes += bytes.len() as u64;
        if let Some(n_expected) = self.n_expected
            && self.n_bytes > n_expected
        {
            return Err(invalid(format!(
                "it has more than the {n_expected} bytes that its narinfo promises"
            )));
        }
        if let Some((hasher, _)) = &mut self.hash {
            hasher.update(bytes);
        }
        self.tell(PROGRESS_INTERVAL);
        Ok(())
    }

    /// Checks that what came is all, once.
    fn finish(&mut self) -> io::Result<()> {
        if self.is_at_end {
            return Ok(());
        }
        self.is_at_end = true;
        self.tell(Duration::ZERO);
        if let Some(n_expected) = self.n_expected
            && self.n_bytes != n_expected
        {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "it ends after {} of the {n_expected} bytes that its narinfo promises",
                    self.n_bytes
                ),
            ));
        }
        match self
            .hash
            .take()
            .map(|(hasher, expected)| (hasher.finish(), expected))
        {
            Some((found, expected)) if found != expected => Err(invalid(format!(
                "its hash is '{found}' and not '{expected}', which its narinfo promises"
            ))),
            _ => Ok(()),
        }
    }

    /// Tells how far it is, unless that was told a moment ago.
    fn tell(&mut self, interval: Duration) {
        let Some(progress) = &mut self.progress else {
            return;
        };
        let now = Instant::now();
        if progress
            .told_at
            .is_none_or(|told_at| now.duration_since(told_at) >= interval)
        {
            progress.told_at = Some(now);
            progress.recipient.do_send(FetchProgressed {
                n_bytes: self.n_bytes,
                n_expected: self.n_expected,
            });
        }
    }
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One byte more than there should be tells that there are more; a cache that sends for ever
        // is not listened to.
        let n_left = self.n_expected.map_or(u64::MAX, |n| {
            n.saturating_sub(self.n_bytes).saturating_add(1)
        });
        let n_most = usize::try_from(n_left).map_or(buffer.len(), |n| n.min(buffer.len()));
        let n_read = self.compressed.read(&mut buffer[..n_most])?;
        if n_read > 0 {
            self.count(&buffer[..n_read])?;
        } else if !buffer.is_empty() {
            self.finish()?;
        }
        Ok(n_read)
    }
}

fn invalid(reason: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

/// Says of each error where the bytes come from, and gives the connection back at the end.
struct Named {
    contents: Box<dyn Read + Send>,
    address: String,
    _permit: OwnedSemaphorePermit,
}

/// What went wrong while an archive came.
#[derive(Debug, thiserror::Error)]
#[error("reading '{address}'")]
struct ReadArchive {
    address: String,
    source: io::Error,
}

impl Read for Named {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.contents.read(buffer).map_err(|source| {
            let kind = source.kind();
            let address = self.address.clone();
            io::Error::new(kind, ReadArchive { address, source })
        })
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::Cursor;
    use std::sync::Arc;

    use store_model::{HashAlgorithm, StoreDir};
    use tokio::sync::Semaphore;

    use super::*;

    const NARINFO: &str = "\
StorePath: /nix/store/hwc82vi2zdq3kvazxc8hl80s1j5d4j2p-simple
URL: nar/x
Compression: none
NarHash: sha256:0l7ld9klw9k5l3zcfd8a4dsm9lmjvrym9nksqj3fpky72k7ndfnn
NarSize: 120
";

    /// Reads `sent` as the archive of a narinfo that promises `promised`.
    fn read(promised: &[u8], sent: &[u8]) -> io::Result<Vec<u8>> {
        let mut narinfo = NarInfo::parse(NARINFO.as_bytes(), &StoreDir::default()).unwrap();
        narinfo.file_size_bytes = Some(promised.len() as u64);
        narinfo.file_hash = Some(Hash::digest(HashAlgorithm::Sha256, promised));
        let permits = Arc::new(Semaphore::new(1));
        let permit = Arc::clone(&permits).try_acquire_owned().unwrap();
        let sent = Box::new(Cursor::new(sent.to_vec()));
        let mut contents = unwrap_archive(&narinfo, "file:///c/nar/x".into(), sent, None, permit)?;
        let mut archive = Vec::new();
        let outcome = contents.read_to_end(&mut archive);
        assert_eq!(permits.available_permits(), 0);
        drop(contents);
        assert_eq!(permits.available_permits(), 1);
        outcome.map(|_| archive)
    }

    /// An error with its causes, as it is told.
    fn told(error: &io::Error) -> String {
        let inner = error.get_ref().unwrap();
        format!("{inner}: {}", inner.source().unwrap())
    }

    #[test]
    fn what_was_promised_is_read() {
        for archive in [Vec::new(), vec![1], vec![7; 300_000]] {
            assert_eq!(read(&archive, &archive).unwrap(), archive);
        }
    }

    #[test]
    fn what_is_longer_or_shorter_or_else_than_promised_is_told_with_its_address() {
        for (sent, reason) in [
            (b"123".as_slice(), "ends after 3 of the 4 bytes"),
            (b"12345", "more than the 4 bytes"),
            (b"1235", "and not 'sha256:"),
        ] {
            let error = read(b"1234", sent).unwrap_err();
            assert!(told(&error).starts_with("reading 'file:///c/nar/x': it"));
            assert!(told(&error).contains(reason), "{}", told(&error));
        }
    }

    #[test]
    fn a_cache_that_sends_for_ever_is_not_listened_to() {
        let mut narinfo = NarInfo::parse(NARINFO.as_bytes(), &StoreDir::default()).unwrap();
        narinfo.file_size_bytes = Some(1000);
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        let endless = Box::new(io::repeat(7));
        let mut contents = unwrap_archive(&narinfo, String::new(), endless, None, permit).unwrap();
        let mut archive = Vec::new();
        assert!(contents.read_to_end(&mut archive).is_err());
        assert!(archive.len() <= 1001);
    }
}
