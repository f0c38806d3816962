//! How the bytes of a cache come: as small files wholly, as large ones in a stream.
//!
//! A transport knows neither narinfo nor signatures. Whoever has one asks it from the substituter's
//! own runtime, never from an actor's thread.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use store_model::narinfo::RelativeUrl;
use store_model::{Settings, StoreDir};
use tokio::sync::oneshot;

use crate::address::{CacheAddress, Place};

mod directory;
mod file;
mod http;
mod local_store;
mod server;
mod server_shelf;
mod shelf;
mod staging;

pub(crate) use shelf::{FileKind, Publication, Shelf, ShelfError, Spool};

use directory::DirectoryShelf;
use file::FileTransport;
use http::Sources;
use local_store::LocalStore;
use server::{ServerTransport, SharedWeb};
use server_shelf::ServerShelf;

/// Where the bytes of one cache come from.
pub(crate) trait Transport: Send + Sync + fmt::Debug {
    /// Reads a small file wholly; `None` if the cache has no such file.
    ///
    /// # Errors
    /// [`TransportError::NoAnswer`] or [`TransportError::Broken`]; the latter also if the file has
    /// more than `max_bytes`.
    fn read_small<'a>(
        &'a self,
        file: &'a RelativeUrl,
        max_bytes: usize,
    ) -> BoxFuture<'a, Result<Option<Bytes>, TransportError>>;

    /// Opens a large file. The answer comes when the first bytes can be expected, so that a file that
    /// is not there is told here and not by the reader.
    ///
    /// # Errors
    /// Any [`TransportError`].
    fn open<'a>(
        &'a self,
        file: &'a RelativeUrl,
        request: OpenRequest,
    ) -> BoxFuture<'a, Result<Box<dyn Read + Send>, TransportError>>;

    /// Opens the directory in which the trees themselves lie that archives are made of, each under
    /// its path's name; `None` where archives are files.
    fn objects(&self) -> BoxFuture<'_, Option<OwnedFd>> {
        std::future::ready(None).boxed()
    }
}

/// How a large file is to be read.
#[derive(Debug)]
pub(crate) struct OpenRequest {
    /// Closed when nobody wants the file any more. The reader blocks its thread while it waits for
    /// bytes, and then ends with an error at once, also in the midst of waiting.
    pub(crate) ended: oneshot::Receiver<()>,
}

/// Makes transports.
pub(crate) struct Connector {
    shared: Arc<SharedWeb>,
    store_dir: StoreDir,
}

impl Connector {
    /// Takes the settings, the variables that name proxies and certificates, and what paths are named
    /// by.
    pub(crate) fn new(
        settings: &Settings,
        environment: &dyn Fn(&str) -> Option<String>,
        store_dir: &StoreDir,
    ) -> Self {
        Self {
            shared: Arc::new(SharedWeb::new(Sources::new(settings, environment))),
            store_dir: store_dir.clone(),
        }
    }

    /// Returns what reads the cache at `address`; nothing is asked or read yet.
    pub(crate) fn connect(&self, address: &CacheAddress) -> Box<dyn Transport> {
        match &address.place {
            Place::Directory(root) => Box::new(FileTransport::new(root.clone())),
            Place::Server(url) => Box::new(ServerTransport::new(
                Arc::clone(&self.shared),
                url.clone(),
                Arc::clone(&address.name),
            )),
            Place::Store(place) => Box::new(LocalStore::new(
                Arc::clone(&address.name),
                place,
                &self.store_dir,
            )),
        }
    }

    /// Returns what writes the cache at `address`; nothing is asked or written yet. `spool_dir` is
    /// where archives wait to be sent.
    ///
    /// # Errors
    /// It is no cache; the text says what to do instead.
    pub(crate) fn shelf(
        &self,
        address: &CacheAddress,
        spool_dir: PathBuf,
    ) -> Result<Box<dyn Shelf>, String> {
        match &address.place {
            Place::Directory(root) => Ok(Box::new(DirectoryShelf::new(root.clone()))),
            Place::Server(url) => {
                let (shared, name) = (Arc::clone(&self.shared), Arc::clone(&address.name));
                let server = ServerTransport::new(shared, url.clone(), name);
                Ok(Box::new(ServerShelf::new(server, spool_dir)))
            }
            Place::Store(_) => Err(
                "it is a store and no cache; 'goalctl --store ROOT copy --from ADDRESS' copies from \
                 one store into another"
                    .to_owned(),
            ),
        }
    }
}

/// What an error of a transport says of its cause.
pub(crate) type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why bytes did not come. `address` is for messages: it has neither name, password nor parameters.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransportError {
    /// Going on would wait for a file that the cache does not have (404, 410, 403). It says nothing
    /// against the cache.
    #[error("'{address}' is not there")]
    Missing {
        /// The file.
        address: String,
    },
    /// Going on would wait for somebody who does not answer: timed out, refused, 5xx, 429. Another
    /// attempt may go better.
    #[error("no answer from '{address}'")]
    NoAnswer {
        /// The file.
        address: String,
        /// How long to leave the cache alone, if it said so (`Retry-After`).
        retry_after: Option<Duration>,
        /// What happened.
        source: Cause,
    },
    /// Going on would take something else for the file. Another attempt would not go better.
    #[error("cannot read '{address}'")]
    Broken {
        /// The file.
        address: String,
        /// What happened.
        source: Cause,
    },
}

/// Returns what a reader says whose bytes nobody wants any more.
pub(crate) fn given_up() -> io::Error {
    // Not `Interrupted`, which readers take for a reason to try again.
    io::Error::new(
        io::ErrorKind::ConnectionAborted,
        "nobody wants the file any more",
    )
}
