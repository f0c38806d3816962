//! One stream of bytes, however often the server has to be asked for it.
//!
//! When a transfer breaks off, the server is asked for the rest. One that sends the whole file again
//! is read from its beginning, and what is here already is passed over; should it be another file by
//! then, the output's hash tells.

use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read, Write};
use std::time::{Duration, Instant};

use store_model::backoff;
use ureq::http::{HeaderMap, StatusCode, header};

use super::exchange::{Answer, Client, From};
use super::url::{Scheme, Url};
use super::{PIECE_LEN, TransferError};
use crate::say;

/// A file that is being downloaded.
pub(super) struct Download<'a> {
    client: &'a Client<'a>,
    url: Url,
    source: Source,
    /// How many bytes have been read.
    position: u64,
    /// How many there are, as far as the server says.
    length: Option<u64>,
    /// What the server calls this version of the file.
    version: Option<String>,
    n_attempts: usize,
    progress: Progress<'a>,
}

enum Source {
    File(File),
    Server(Box<dyn Read>),
    /// The server has to be asked, for the first time or again.
    None,
}

impl<'a> Download<'a> {
    /// Asks for a file until its first bytes are about to come.
    ///
    /// # Errors
    /// Nobody gives it.
    pub(super) fn open(
        client: &'a Client<'a>,
        url: Url,
        log: &'a mut dyn Write,
    ) -> Result<Self, TransferError> {
        let source = match url.scheme {
            Scheme::File => Source::File(open_file(&url)?),
            Scheme::Http | Scheme::Https => Source::None,
        };
        let mut download = Self {
            client,
            url,
            source,
            position: 0,
            length: None,
            version: None,
            n_attempts: 0,
            progress: Progress {
                log,
                interval: client.provisions.progress_interval,
                last: now(),
            },
        };
        while let Source::None = download.source {
            if let Err(error) = download.connect() {
                download.wait_after(error)?;
            }
        }
        Ok(download)
    }

    /// Asks the server for what is not here yet.
    fn connect(&mut self) -> Result<(), TransferError> {
        self.n_attempts += 1;
        let from = From {
            position: self.position,
            version: self.version.as_deref(),
        };
        let Answer {
            status,
            headers,
            body,
        } = self.client.get(&self.url, from)?;
        let length = body.content_length();
        let mut body = body.into_reader();
        if status == StatusCode::PARTIAL_CONTENT {
            if range_start(&headers) != Some(self.position) {
                return Err(TransferError::Misbehaved {
                    what: "sent another part of the file than it was asked for",
                });
            }
        } else {
            self.length = length;
            self.version = version(&headers);
            pass_over(&mut body, self.position)?;
        }
        self.source = Source::Server(Box::new(body));
        Ok(())
    }

    /// Waits before the next request, longer each time.
    ///
    /// # Errors
    /// That one would be as useless: the error that it was.
    fn wait_after(&mut self, error: TransferError) -> Result<(), TransferError> {
        self.source = Source::None;
        if !error.is_passing() || self.n_attempts >= self.client.provisions.n_attempts {
            return Err(error);
        }
        // Each has keys of its own from the kernel.
        let random = RandomState::new().hash_one(());
        let delay = backoff::delay(self.n_attempts, random);
        let (url, millis, position) = (&self.url, delay.as_millis(), self.position);
        let reason = super::chain(&error);
        let place = match position {
            0 => String::new(),
            position => format!(" from offset {position}"),
        };
        say(
            self.progress.log,
            format_args!(
                "warning: unable to download '{url}': {reason}; retrying{place} in {millis} ms"
            ),
        );
        std::thread::sleep(delay);
        Ok(())
    }

    fn read_source(&mut self, buffer: &mut [u8]) -> Result<usize, TransferError> {
        match &mut self.source {
            Source::File(file) => file.read(buffer).map_err(TransferError::File),
            Source::Server(body) => {
                let n_read = body.read(buffer).map_err(TransferError::from_io)?;
                if n_read == 0 && self.length.is_some_and(|length| self.position < length) {
                    return Err(TransferError::from_io(io::ErrorKind::UnexpectedEof.into()));
                }
                Ok(n_read)
            }
            Source::None => {
                self.connect()?;
                self.read_source(buffer)
            }
        }
    }
}

impl Read for Download<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.read_source(buffer) {
                Ok(n_read) => {
                    self.position = self.position.saturating_add(n_read as u64);
                    self.progress.tell(self.position, self.length);
                    return Ok(n_read);
                }
                Err(error) => self.wait_after(error).map_err(io::Error::other)?,
            }
        }
    }
}

/// Tells now and then how far a download is: a builder that says nothing for long may be killed for
/// it, and this one does something as long as bytes come.
struct Progress<'a> {
    log: &'a mut dyn Write,
    interval: Duration,
    last: Instant,
}

impl Progress<'_> {
    fn tell(&mut self, position: u64, length: Option<u64>) {
        if self.last.elapsed() < self.interval {
            return;
        }
        self.last = now();
        let mib = |n_bytes: u64| {
            format!(
                "{}.{} MiB",
                n_bytes >> 20,
                ((n_bytes % (1 << 20)) * 10) >> 20
            )
        };
        let whole = length.map_or_else(String::new, |length| format!(" of {}", mib(length)));
        say(
            self.log,
            format_args!("downloaded {}{whole}", mib(position)),
        );
    }
}

fn open_file(url: &Url) -> Result<File, TransferError> {
    let file = File::open(url.file_path()).map_err(TransferError::File)?;
    let facts = file.metadata().map_err(TransferError::File)?;
    if !facts.is_file() {
        let error = io::Error::other("it is not a regular file");
        return Err(TransferError::File(error));
    }
    Ok(file)
}

/// Reads what is here already.
fn pass_over(body: &mut impl Read, n_bytes: u64) -> Result<(), TransferError> {
    let mut piece = vec![0; PIECE_LEN];
    let mut n_left = n_bytes;
    while n_left > 0 {
        let n_wanted = usize::try_from(n_left).map_or(PIECE_LEN, |n_left| n_left.min(PIECE_LEN));
        match body
            .read(&mut piece[..n_wanted])
            .map_err(TransferError::from_io)?
        {
            0 => return Err(TransferError::from_io(io::ErrorKind::UnexpectedEof.into())),
            n_read => n_left -= n_read as u64,
        }
    }
    Ok(())
}

/// Returns where the part that a server sends begins.
fn range_start(headers: &HeaderMap) -> Option<u64> {
    let range = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    let (start, _) = range.strip_prefix("bytes ")?.split_once('-')?;
    start.trim().parse().ok()
}

/// Returns what a server calls exactly this version of a file.
fn version(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get(header::ETAG)?.to_str().ok()?;
    tag.starts_with('"').then(|| tag.to_owned())
}

#[expect(
    clippy::disallowed_methods,
    reason = "a builder's own process has no clock but the machine's"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_known_by_where_it_begins() {
        let start = |range: &'static str| {
            let value = header::HeaderValue::from_static(range);
            range_start(&HeaderMap::from_iter([(header::CONTENT_RANGE, value)]))
        };
        assert_eq!(start("bytes 5-9/10"), Some(5));
        assert_eq!(start("bytes 5-9/*"), Some(5));
        for other in ["", "bytes */10", "bytes -5", "items 5-9/10", "bytes"] {
            assert_eq!(start(other), None, "{other}");
        }
    }

    #[test]
    fn only_a_strong_tag_names_a_version() {
        let tag = |tag: &'static str| {
            let value = header::HeaderValue::from_static(tag);
            version(&HeaderMap::from_iter([(header::ETAG, value)]))
        };
        assert_eq!(tag("\"a\"").as_deref(), Some("\"a\""));
        assert_eq!(tag("W/\"a\""), None);
    }
}
