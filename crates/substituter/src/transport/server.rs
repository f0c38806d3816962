//! A cache on a server, of which nothing is prepared before it is asked something.
//!
//! Certificates take milliseconds to read. A run in which everything is valid asks nobody and should
//! not spend them, and no actor should wait for them.

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use store_model::narinfo::RelativeUrl;
use tokio::sync::OnceCell;

use super::http::{HttpError, HttpTransport, Sources, Web};
use super::{OpenRequest, Transport, TransportError};

/// What all caches on servers share, above all connections.
#[derive(Debug)]
pub(super) struct SharedWeb {
    sources: Arc<Sources>,
    web: OnceCell<Arc<Web>>,
}

impl SharedWeb {
    /// Takes where to find what requests need.
    pub(super) fn new(sources: Sources) -> Self {
        Self {
            sources: Arc::new(sources),
            web: OnceCell::new(),
        }
    }

    async fn get(&self) -> Result<Arc<Web>, HttpError> {
        let prepare = async || {
            let sources = Arc::clone(&self.sources);
            let prepared = tokio::task::spawn_blocking(move || Web::new(sources.gather()));
            // The task is only lost when the runtime ends, and then nobody asks.
            prepared
                .await
                .unwrap_or(Err(HttpError::Unusable {
                    what: "the HTTP library",
                }))
                .map(Arc::new)
        };
        self.web.get_or_try_init(prepare).await.cloned()
    }
}

/// A cache on a server.
pub(super) struct ServerTransport {
    shared: Arc<SharedWeb>,
    /// With name and password, if there are any.
    url: String,
    /// Without.
    name: Arc<str>,
    transport: OnceCell<HttpTransport>,
}

impl ServerTransport {
    /// Takes the cache at `url`, which messages call `name`.
    pub(super) fn new(shared: Arc<SharedWeb>, url: String, name: Arc<str>) -> Self {
        Self {
            shared,
            url,
            name,
            transport: OnceCell::new(),
        }
    }

    pub(super) async fn get(&self) -> Result<&HttpTransport, TransportError> {
        let prepare = async || HttpTransport::new(self.shared.get().await?, &self.url);
        let prepared = self.transport.get_or_try_init(prepare).await;
        prepared.map_err(|error| error.at(self.name.to_string()))
    }

    /// Returns the address of a file, for messages.
    pub(super) fn shown(&self, file: &RelativeUrl) -> String {
        format!("{}/{file}", self.name)
    }
}

/// Without passwords.
impl fmt::Debug for ServerTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ServerTransport").field(&self.name).finish()
    }
}

impl Transport for ServerTransport {
    fn read_small<'a>(
        &'a self,
        file: &'a RelativeUrl,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Option<Bytes>, TransportError>> {
        Box::pin(async move { self.get().await?.read_small(file, max_bytes).await })
    }

    fn open<'a>(
        &'a self,
        file: &'a RelativeUrl,
        request: OpenRequest,
    ) -> BoxFuture<'a, Result<Box<dyn Read + Send>, TransportError>> {
        Box::pin(async move { self.get().await?.open(file, request).await })
    }
}
