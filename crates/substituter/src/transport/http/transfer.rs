//! A large file of a cache, as a stream that is taken up again where it broke off.
//!
//! ```text
//! server ──► task on the runtime ──► channel of pieces ──► reader on a thread that may block
//!             │ broke off: waits, asks for the rest
//!             └ ends when nobody wants the file: then the channel closes under the reader
//! ```

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use reqwest::header::HeaderMap;
use reqwest::{Response, Url};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::attempts::{Attempts, Pace};
use super::exchange::{self, Rest, encoding, unless_stalled};
use super::origin::Origin;
use super::version::{Contents, Version};
use super::{HttpError, Web, random};
use crate::transport::{OpenRequest, given_up};

/// How much of a file is here that its reader has not read, in all at most 1 MiB: as many pieces of
/// as many bytes. Over HTTP/2 pieces have 16 KiB.
const N_PIECES: usize = 16;
const MAX_PIECE_BYTES: usize = 64 << 10;

/// A file to be downloaded.
pub(super) struct Source {
    pub(super) web: Arc<Web>,
    pub(super) origin: Arc<Origin>,
    pub(super) url: Url,
    /// The address as messages name it.
    pub(super) shown: String,
}

/// Begins a transfer, which ends when the request is over or the reader is dropped.
///
/// # Errors
/// The server does not give the file, also not when it is asked again.
pub(super) async fn open(source: Source, request: OpenRequest) -> Result<Body, HttpError> {
    let OpenRequest { ended } = request;
    let (pieces, received) = mpsc::channel(N_PIECES);
    let (opened, head) = oneshot::channel();
    let shown = source.shown.clone();
    let transfer = Transfer {
        attempts: Attempts::new(source.web.n_attempts),
        source,
        pieces: pieces.clone(),
        opened: Some(opened),
        version: Version::default(),
        position: 0,
    };
    tokio::spawn(async move {
        tokio::select! {
            biased;
            // Nothing is ever sent: it ends by being dropped.
            _ = ended => {}
            () = pieces.closed() => {}
            () = transfer.run() => {}
        }
    });
    head.await.unwrap_or(Err(HttpError::Stopped))?;
    Ok(Body {
        pieces: received,
        piece: Bytes::new(),
        is_over: false,
        shown,
    })
}

/// What travels from the task to the reader.
#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    /// There is no more: not the same as a channel that closes.
    End,
    Failure(HttpError),
}

/// The task's state.
struct Transfer {
    source: Source,
    pieces: mpsc::Sender<Piece>,
    /// Waits to hear whether there is a file.
    opened: Option<oneshot::Sender<Result<(), HttpError>>>,
    attempts: Attempts,
    /// What the server called the contents of which the reader has the first bytes.
    version: Version,
    /// How many bytes the reader has, or will have.
    position: u64,
}

impl Transfer {
    async fn run(mut self) {
        while let Err(error) = self.attempt().await {
            let Some(delay) = self.attempts.wait_after(&error, random()) else {
                return self.tell(Piece::Failure(error)).await;
            };
            let shown = &self.source.shown;
            tracing::debug!("asking for '{shown}' again in {delay:?}: {error}");
            tokio::time::sleep(delay).await;
        }
        self.tell(Piece::End).await;
    }

    /// Asks for what the reader does not have, and passes it on.
    async fn attempt(&mut self) -> Result<(), HttpError> {
        let Source {
            web, origin, url, ..
        } = &self.source;
        let rest = (self.position > 0).then_some(Rest {
            position: self.position,
            version: &self.version,
        });
        let response = exchange::get(web, origin, url, rest).await?;
        if let Some(encoding) = encoding(&response) {
            return Err(HttpError::Encoded { encoding });
        }
        let n_known = self.judge(&response)?;
        if let Some(opened) = self.opened.take() {
            // Whoever does not listen any more has dropped the reader's end too.
            let _is_heard = opened.send(Ok(()));
        }
        self.pass_on(response, n_known).await
    }

    /// Returns how many bytes of an answer the reader has already.
    fn judge(&mut self, response: &Response) -> Result<u64, HttpError> {
        let headers: &HeaderMap = response.headers();
        if self.position == 0 {
            self.version = Version::of_whole(headers);
            return Ok(0);
        }
        match self
            .version
            .judge(self.position, response.status(), headers)?
        {
            Contents::Rest => Ok(0),
            Contents::Whole => Ok(self.position),
        }
    }

    async fn pass_on(&mut self, mut response: Response, n_known: u64) -> Result<(), HttpError> {
        let limit = self.source.web.stall_limit;
        let mut pace = Pace::new(limit);
        let mut n_known = n_known;
        loop {
            let begun = Instant::now();
            let chunk = unless_stalled(limit, response.chunk()).await?;
            let chunk = chunk.map_err(|error| HttpError::from_body(&error))?;
            let Some(mut chunk) = chunk else {
                return Ok(());
            };
            // Only the server's time counts, not the reader's.
            pace.received(begun.elapsed(), chunk.len())?;
            let n_passed_over =
                usize::try_from(n_known).map_or(chunk.len(), |n| n.min(chunk.len()));
            chunk.advance(n_passed_over);
            n_known -= n_passed_over as u64;
            self.attempts.progressed(chunk.len());
            while !chunk.is_empty() {
                let piece = chunk.split_to(chunk.len().min(MAX_PIECE_BYTES));
                self.position += piece.len() as u64;
                self.tell(Piece::Bytes(piece)).await;
            }
        }
    }

    async fn tell(&mut self, piece: Piece) {
        match (piece, self.opened.take()) {
            (Piece::Failure(error), Some(opened)) => {
                let _is_heard = opened.send(Err(error));
            }
            (piece, _) => {
                // If the reader is gone, this task is about to be.
                let _is_heard = self.pieces.send(piece).await;
            }
        }
    }
}

/// A file on its way, for a thread that may block.
pub(super) struct Body {
    pieces: mpsc::Receiver<Piece>,
    /// The rest of the piece that is being read.
    piece: Bytes,
    is_over: bool,
    shown: String,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.piece.is_empty() && !self.is_over {
            match self.pieces.blocking_recv() {
                Some(Piece::Bytes(piece)) => self.piece = piece,
                Some(Piece::End) => self.is_over = true,
                Some(Piece::Failure(error)) => return Err(self.failed(error)),
                // The task is gone; whoever reads on after an error gets here too.
                None => return Err(given_up()),
            }
        }
        let n_bytes = self.piece.len().min(buffer.len());
        self.piece.copy_to_slice(&mut buffer[..n_bytes]);
        Ok(n_bytes)
    }
}

impl Body {
    fn failed(&self, error: HttpError) -> io::Error {
        io::Error::other(error.at(self.shown.clone()))
    }
}
