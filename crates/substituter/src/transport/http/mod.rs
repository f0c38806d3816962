//! Caches on the web.
//!
//! ```text
//! origin     where a cache is, and who may be told its password          pure
//! version    whether the rest of a file is the rest of the same file     pure
//! attempts   when to ask again, and when a server is too slow            pure
//! encoding   small files that a server encoded                           pure
//! client     the HTTP library, set up
//! exchange   one request with its redirects
//! small      a small file, wholly
//! transfer   a large file, as a stream
//! ```
//!
//! Certificates are always verified, though what is downloaded is verified by its signature: a server
//! that is not who it should be would be told passwords, and what somebody downloads.

mod attempts;
mod client;
mod encoding;
mod error;
mod exchange;
mod origin;
mod small;
#[cfg(test)]
mod tests;
mod transfer;
mod version;

use std::fmt;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use store_model::ProxyVariables;
use store_model::narinfo::RelativeUrl;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use self::error::HttpError;

use self::client::HasRoots;
use self::origin::Origin;
use self::transfer::Source;
use super::{OpenRequest, Transport, TransportError};

/// What requests need of the host, and the user's limits.
#[derive(Clone)]
pub(crate) struct Provisions {
    /// Certificates of those who vouch for servers, in PEM.
    pub(crate) certificates: Vec<u8>,
    /// Passwords for hosts, as in `~/.netrc`.
    pub(crate) netrc: Vec<u8>,
    /// The variables that name proxies.
    pub(crate) proxies: ProxyVariables,
    /// What servers are told after our name (`user-agent-suffix`); may be empty.
    pub(crate) user_agent_suffix: String,
    /// Whether servers may be spoken to over HTTP/2 (`http2`).
    pub(crate) http2: bool,
    /// How often a server is asked for a file at most (`download-attempts`).
    pub(crate) n_attempts: usize,
    /// How long making a connection may take (`connect-timeout`, or [`CONNECT_LIMIT`]).
    pub(crate) connect_limit: Duration,
    /// How long a server may be silent (`stalled-download-timeout`).
    pub(crate) stall_limit: Option<Duration>,
    /// How long a small file may take, all attempts together (`cache-answer-timeout`).
    pub(crate) answer_limit: Option<Duration>,
}

/// How long making a connection may take where the user does not say: as long as curl gives the slower
/// half of a host's addresses, and longer than any good server needs.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Without passwords.
impl fmt::Debug for Provisions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provisions")
            .field("http2", &self.http2)
            .field("n_attempts", &self.n_attempts)
            .field("connect_limit", &self.connect_limit)
            .field("stall_limit", &self.stall_limit)
            .field("answer_limit", &self.answer_limit)
            .finish_non_exhaustive()
    }
}

/// What all caches on the web share: connections, and how many requests may be under way.
pub(crate) struct Web {
    client: reqwest::Client,
    has_roots: HasRoots,
    netrc: Vec<u8>,
    n_attempts: usize,
    connect_limit: Duration,
    stall_limit: Option<Duration>,
    answer_limit: Option<Duration>,
    requests: Arc<Semaphore>,
}

impl Web {
    /// Prepares requests, of which as many are under way at once as `requests` has permits.
    ///
    /// # Errors
    /// A setting cannot be used.
    pub(crate) fn new(provisions: Provisions, requests: Arc<Semaphore>) -> Result<Self, HttpError> {
        let (client, has_roots) = client::set_up(&provisions)?;
        Ok(Self {
            client,
            has_roots,
            netrc: provisions.netrc,
            n_attempts: provisions.n_attempts,
            connect_limit: provisions.connect_limit,
            stall_limit: provisions.stall_limit,
            answer_limit: provisions.answer_limit,
            requests,
        })
    }

    /// Waits until a request may be made, which is under way until the permit is dropped.
    async fn turn(&self) -> Result<OwnedSemaphorePermit, HttpError> {
        let turn = Arc::clone(&self.requests).acquire_owned().await;
        turn.map_err(|_| HttpError::Ended)
    }
}

/// Without passwords.
impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web")
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}

/// A cache on the web.
pub(crate) struct HttpTransport {
    web: Arc<Web>,
    origin: Arc<Origin>,
}

impl HttpTransport {
    /// Takes the cache of an `http:` or `https:` address. Nobody is asked anything yet.
    ///
    /// # Errors
    /// The address is none.
    pub(crate) fn new(web: Arc<Web>, address: &str) -> Result<Self, HttpError> {
        let origin = Arc::new(Origin::new(address, &web.netrc)?);
        Ok(Self { web, origin })
    }
}

impl fmt::Debug for HttpTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("HttpTransport").field(&self.origin).finish()
    }
}

impl Transport for HttpTransport {
    fn read_small<'a>(
        &'a self,
        file: &'a RelativeUrl,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Option<Bytes>, TransportError>> {
        Box::pin(async move {
            let read = async {
                let url = self.origin.file(file)?;
                small::read(&self.web, &self.origin, &url, max_bytes).await
            };
            read.await
                .map_err(|error| error.at(self.origin.shown(file)))
        })
    }

    fn open<'a>(
        &'a self,
        file: &'a RelativeUrl,
        request: OpenRequest,
    ) -> BoxFuture<'a, Result<Box<dyn Read + Send>, TransportError>> {
        Box::pin(async move {
            let shown = self.origin.shown(file);
            let open = async {
                let source = Source {
                    web: Arc::clone(&self.web),
                    origin: Arc::clone(&self.origin),
                    url: self.origin.file(file)?,
                    shown: shown.clone(),
                };
                transfer::open(source, request.ended).await
            };
            match open.await {
                Ok(body) => Ok(Box::new(body) as Box<dyn Read + Send>),
                Err(error) => Err(error.at(shown)),
            }
        })
    }
}

/// Returns a number that nobody can tell beforehand.
fn random() -> u64 {
    // Each has keys of its own from the kernel.
    RandomState::new().hash_one(())
}
