//! Reading where to copy to, and starting the actor that does.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread::available_parallelism;

use actix::{Actor as _, Addr};
use store_model::{SecretKey, Settings, StoreDir};
use tokio::sync::Semaphore;

use crate::actors::CacheWriter;
use crate::address::without_secrets;
use crate::compress::Workers;
use crate::destination::Destination;
use crate::messages::UploadError;
use crate::pack::Packing;
use crate::runtime::Engine;
use crate::transport::Connector;
use crate::upload::Uploader;

/// Starts the actor that writes the cache at `address`, on this thread's actix system. The cache is
/// neither asked nor written before [`PrepareCache`](crate::PrepareCache).
///
/// `store_dir` is the directory that paths are named by, `spool_dir` one where archives for servers
/// wait until they are sent, and `environment` the variables that name proxies and certificates.
///
/// # Errors
/// The address or its parameters make no sense, the key cannot be read, or the kernel refuses a thread.
pub fn start_writer(
    address: &str,
    settings: &Settings,
    store_dir: StoreDir,
    spool_dir: PathBuf,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Addr<CacheWriter>, UploadError> {
    let refused = |reason| UploadError::Address {
        address: without_secrets(address),
        reason,
    };
    let destination = Destination::parse(address).map_err(refused)?;
    let name = Arc::clone(&destination.address.name);
    for parameter in &destination.address.unknown {
        tracing::warn!("'{name}' has a parameter that means nothing here: '{parameter}'");
    }
    for warning in &destination.warnings {
        tracing::warn!("'{name}': {warning}");
    }
    let secret_key = destination.secret_key_file.as_deref().map(read_key);
    let secret_key = secret_key.transpose()?;
    let engine = Engine::start().map_err(|error| match error {
        crate::Error::StartThreads { source } => UploadError::StartThreads { source },
        crate::Error::Stopped
        | crate::Error::PublicKey { .. }
        | crate::Error::LeftAlone { .. }
        | crate::Error::Download { .. } => UploadError::Stopped,
    })?;
    // Nobody else has the answer to what this cache has, so it is waited for.
    let settings = Settings {
        cache_answer_timeout: None,
        ..settings.clone()
    };
    let connector = Connector::new(&settings, environment, &store_dir);
    let uploader = Uploader {
        name,
        info: destination.to_info(&store_dir),
        store_dir,
        packing: Packing {
            method: destination.method,
            listings: destination.listings,
            is_given_up: Arc::new(AtomicBool::new(false)),
        },
        secret_key,
        transport: connector.connect(&destination.address),
        shelf: connector
            .shelf(&destination.address, spool_dir)
            .map_err(refused)?,
        requests: Semaphore::new(match settings.http_connections {
            0 => Semaphore::MAX_PERMITS,
            n => n.min(Semaphore::MAX_PERMITS),
        }),
        packers: Semaphore::new(match destination.method.workers {
            Workers::One => available_parallelism().map_or(1, NonZero::get),
            // One path takes all cores, and memory for each.
            Workers::OneForEachCore => 1,
        }),
    };
    Ok(CacheWriter::new(uploader, engine).start())
}

fn read_key(file: &Path) -> Result<SecretKey, UploadError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| UploadError::SecretKey {
        path: file.to_owned(),
        source,
    };
    let text = std::fs::read_to_string(file).map_err(|error| failed(Box::new(error)))?;
    text.parse()
        .map_err(|error: store_model::Error| failed(Box::new(error)))
}
