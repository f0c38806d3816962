//! Reading on a thread of its own: what takes the compression off a large archive goes on while its
//! reader hashes and writes what has come so far.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, channel};

use tokio::runtime::Handle;

/// From which size on an archive is worth a thread, in bytes.
pub(crate) const MIN_BYTES: u64 = 1 << 20;

/// How many pieces are on their way at most: the one that is read, the one that is taken, and some
/// between them, since neither side is always as quick as the other.
const N_PIECES: usize = 4;

/// How large each of them is: small enough that all of them stay in a processor's cache.
const PIECE_BYTES: usize = 128 << 10;

/// The other end of a thread that reads.
#[derive(Debug)]
struct ReadAhead {
    /// What was read. The thread ends with an empty piece or an error.
    full: Receiver<io::Result<Piece>>,
    /// Where pieces that were taken are filled again. Closing it ends the thread.
    empty: Sender<Box<[u8]>>,
    /// What is being taken.
    piece: Option<Piece>,
    is_at_end: bool,
}

/// Some bytes of the archive.
#[derive(Debug)]
struct Piece {
    buffer: Box<[u8]>,
    n_taken: usize,
    n_filled: usize,
}

/// Starts to read; what it returns gives the same bytes and the same error.
///
/// When that is dropped the thread ends with the read that it is in, which whoever ends the transfer
/// ends.
pub(crate) fn read_ahead(
    runtime: &Handle,
    reader: impl Read + Send + 'static,
) -> impl Read + Send + 'static {
    let (filled, full) = channel();
    let (empty, emptied) = channel();
    for _ in 0..N_PIECES {
        // The other end is below.
        let _is_open = empty.send(vec![0; PIECE_BYTES].into_boxed_slice());
    }
    runtime.spawn_blocking(move || pump(reader, &filled, &emptied));
    ReadAhead {
        full,
        empty,
        piece: None,
        is_at_end: false,
    }
}

fn pump(mut reader: impl Read, filled: &Sender<io::Result<Piece>>, emptied: &Receiver<Box<[u8]>>) {
    while let Ok(mut buffer) = emptied.recv() {
        let read = loop {
            match reader.read(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        let is_last = !matches!(read, Ok(1..));
        let piece = read.map(|n_filled| Piece {
            buffer,
            n_taken: 0,
            n_filled,
        });
        if filled.send(piece).is_err() || is_last {
            return;
        }
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_at_end || buffer.is_empty() {
            return Ok(0);
        }
        let mut piece = match self.piece.take() {
            Some(piece) => piece,
            None => self.full.recv().unwrap_or_else(|_| {
                // Without an end, what came may be no more than a part.
                Err(io::Error::other("the thread that reads it is gone"))
            })?,
        };
        let left = &piece.buffer[piece.n_taken..piece.n_filled];
        let n_read = left.len().min(buffer.len());
        buffer[..n_read].copy_from_slice(&left[..n_read]);
        piece.n_taken += n_read;
        self.is_at_end = n_read == 0;
        if piece.n_taken < piece.n_filled {
            self.piece = Some(piece);
        } else {
            // At the end nobody wants it.
            let _unwanted = self.empty.send(piece.buffer);
        }
        Ok(n_read)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// Gives one byte, then does what is said.
    struct Then(Option<Box<dyn FnOnce() -> io::Result<usize> + Send>>, bool);

    impl Read for Then {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if !std::mem::replace(&mut self.1, true) {
                buffer[0] = 1;
                return Ok(1);
            }
            self.0.take().map_or(Ok(0), |act| act())
        }
    }

    fn then(act: impl FnOnce() -> io::Result<usize> + Send + 'static) -> Then {
        Then(Some(Box::new(act)), false)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_read_ahead_is_the_same() {
        for n_bytes in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 9 * PIECE_BYTES + 7] {
            let bytes: Vec<u8> = (0..=250).cycle().take(n_bytes).collect();
            let mut reader = read_ahead(&Handle::current(), Cursor::new(bytes.clone()));
            let mut found = Vec::new();
            // In parts that do not fit into a piece.
            let mut part = [0; 1000];
            while let n_read @ 1.. = reader.read(&mut part).unwrap() {
                found.extend_from_slice(&part[..n_read]);
            }
            assert_eq!(found, bytes);
            assert_eq!(reader.read(&mut part).unwrap(), 0);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_error_is_passed_on_after_what_came_before_it() {
        let broken = then(|| Err(io::Error::new(io::ErrorKind::TimedOut, "stalled")));
        let mut reader = read_ahead(&Handle::current(), broken);
        let mut part = [0; 10];
        assert_eq!(reader.read(&mut part).unwrap(), 1);
        let error = reader.read(&mut part).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(reader.read(&mut part).is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_reader_that_panics_is_no_end_of_the_archive() {
        let mut reader = read_ahead(&Handle::current(), then(|| panic!("on purpose")));
        let mut part = [0; 10];
        assert_eq!(reader.read(&mut part).unwrap(), 1);
        assert!(reader.read(&mut part).is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_thread_ends_when_nobody_reads_any_more() {
        struct Watched {
            _alive: Sender<()>,
        }
        impl Read for Watched {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                Ok(buffer.len())
            }
        }
        let (alive, ended) = channel();
        let mut reader = read_ahead(&Handle::current(), Watched { _alive: alive });
        reader.read_exact(&mut [0; 10]).unwrap();
        drop(reader);
        // Its sender goes with the thread.
        assert!(ended.recv().is_err());
    }
}
