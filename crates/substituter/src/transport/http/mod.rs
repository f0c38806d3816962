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
//! put        a file that is sent
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
mod put;
mod small;
#[cfg(test)]
mod tests;
mod transfer;
mod version;

use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use store_model::narinfo::RelativeUrl;
use store_model::{ProxyVariables, Settings, certificates};

pub(crate) use self::error::HttpError;
pub(crate) use self::put::Contents;

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
    /// How long making a connection may take (`connect-timeout`).
    pub(crate) connect_limit: Duration,
    /// How long a server may be silent (`stalled-download-timeout`).
    pub(crate) stall_limit: Option<Duration>,
    /// How long is waited for a small file by whoever asks for it (`cache-answer-timeout`), so that no
    /// attempt is waited for that would be later.
    pub(crate) answer_limit: Option<Duration>,
}

/// How long making a connection may take where the user does not say: far longer than any good server
/// needs, and short enough to be waited for once.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// All certificates of a distribution take a fifth of a megabyte.
const MAX_FILE_BYTES: u64 = 16 << 20;

/// Where to find what requests need of the host.
#[derive(Debug)]
pub(crate) struct Sources {
    certificate_files: Vec<PathBuf>,
    proxies: ProxyVariables,
    settings: Settings,
}

impl Sources {
    /// Takes the settings, and the variables that name proxies and certificates. Nothing is read yet.
    pub(crate) fn new(settings: &Settings, environment: &dyn Fn(&str) -> Option<String>) -> Self {
        Self {
            certificate_files: certificates::files(settings.ssl_cert_file.as_deref(), environment),
            proxies: ProxyVariables::read(environment),
            settings: settings.clone(),
        }
    }

    /// Reads the files.
    pub(crate) fn gather(&self) -> Provisions {
        let settings = &self.settings;
        let certificates = self
            .certificate_files
            .iter()
            .find_map(|file| read_file(file));
        Provisions {
            // What cannot be read vouches for nobody; servers that need it are not asked, which is
            // told with the first of them.
            certificates: certificates.unwrap_or_default(),
            netrc: read_file(&settings.netrc_file).unwrap_or_default(),
            proxies: self.proxies.clone(),
            user_agent_suffix: settings.user_agent_suffix.clone(),
            http2: settings.http2,
            n_attempts: settings.download_attempts,
            connect_limit: settings.connect_timeout.unwrap_or(CONNECT_LIMIT),
            stall_limit: settings.stalled_download_timeout,
            answer_limit: settings.cache_answer_timeout,
        }
    }
}

/// Reads a file that need not be there.
fn read_file(path: &Path) -> Option<Vec<u8>> {
    let mut contents = Vec::new();
    let file = File::open(path).ok()?;
    file.take(MAX_FILE_BYTES).read_to_end(&mut contents).ok()?;
    Some(contents)
}

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

/// What all caches on the web share, above all connections.
pub(crate) struct Web {
    client: reqwest::Client,
    has_roots: HasRoots,
    netrc: Vec<u8>,
    n_attempts: usize,
    connect_limit: Duration,
    stall_limit: Option<Duration>,
    answer_limit: Option<Duration>,
}

impl Web {
    /// Prepares requests. Nobody is asked anything yet.
    ///
    /// # Errors
    /// A setting cannot be used.
    pub(crate) fn new(provisions: Provisions) -> Result<Self, HttpError> {
        let (client, has_roots) = client::set_up(&provisions)?;
        Ok(Self {
            client,
            has_roots,
            netrc: provisions.netrc,
            n_attempts: provisions.n_attempts,
            connect_limit: provisions.connect_limit,
            stall_limit: provisions.stall_limit,
            answer_limit: provisions.answer_limit,
        })
    }
}

/// Without passwords.
impl fmt::Debug for Web {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Web").finish_non_exhaustive()
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

    /// Puts a file into the cache; asks again where that may help.
    ///
    /// # Errors
    /// The server does not take it.
    pub(crate) async fn put(
        &self,
        file: &RelativeUrl,
        contents: &Contents,
        content_type: &'static str,
    ) -> Result<(), HttpError> {
        let url = self.origin.file(file)?;
        put::put(&self.web, &self.origin, &url, contents, content_type).await
    }

    /// Asks whether the cache has a file, without reading it.
    ///
    /// # Errors
    /// The server gives no answer.
    pub(crate) async fn has(&self, file: &RelativeUrl) -> Result<bool, HttpError> {
        let url = self.origin.file(file)?;
        put::has(&self.web, &self.origin, &url).await
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
                transfer::open(source, request).await
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
