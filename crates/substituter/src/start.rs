//! Reading which caches there are, and starting the actors that ask them.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{SystemTime, UNIX_EPOCH};

use actix::{Actor as _, Addr};
use store_model::{PublicKey, PublicKeys, Settings, StoreDir};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::Error;
use crate::actors::{BinaryCache, Cache, Substituter};
use crate::address::{CacheAddress, Place};
use crate::client::{Client, Clocks};
use crate::narinfo_cache::{Lifetimes, NarInfoCache, UnixTime};
use crate::runtime::Engine;
use crate::transport::Connector;
use crate::trust::{Signatures, Trust};

/// Starts the actors that ask the caches of the settings, on this thread's actix system. No cache is
/// asked anything before somebody wants a path.
///
/// `store_dir` is the directory that paths are named by, `cache_dir` one of the user's own where
/// answers are remembered, if anywhere, and `environment` the variables that name proxies and
/// certificates. A cache that cannot be asked at all is a warning.
///
/// # Errors
/// A key is malformed, or the kernel refuses a thread.
pub fn start(
    settings: &Settings,
    store_dir: StoreDir,
    cache_dir: Option<PathBuf>,
    environment: &dyn Fn(&str) -> Option<String>,
) -> Result<Addr<Substituter>, Error> {
    start_with(settings, store_dir, cache_dir, environment, &clocks())
}

/// Finds out whether a word could stand in `substituters`.
///
/// # Errors
/// It could not; the text says why, without passwords.
pub fn check_address(text: &str) -> Result<(), String> {
    let parsed = CacheAddress::parse(text);
    parsed.map(drop).map_err(|reason| {
        let shown = crate::address::without_secrets(text);
        format!("'{shown}' is not the address of a cache: {reason}")
    })
}

/// Starts with other clocks.
///
/// # Errors
/// As [`start`].
pub(crate) fn start_with(
    settings: &Settings,
    store_dir: StoreDir,
    cache_dir: Option<PathBuf>,
    environment: &dyn Fn(&str) -> Option<String>,
    clocks: &Clocks,
) -> Result<Addr<Substituter>, Error> {
    let trust = Arc::new(read_trust(settings, store_dir)?);
    let addresses = if settings.substitute {
        read_addresses(&settings.substituters)
    } else {
        Vec::new()
    };
    if addresses.is_empty() {
        return Ok(Substituter::new(Vec::new(), None, None).start());
    }
    let mut engine = Engine::start()?;
    let is_remote = |address: &CacheAddress| matches!(address.place, Place::Server(_));
    let memory = if let Some(cache_dir) = cache_dir
        && addresses.iter().any(is_remote)
    {
        let lifetimes = Lifetimes::from_settings(settings);
        let (memory, thread) = NarInfoCache::start(cache_dir, lifetimes, (clocks.unix)())?;
        engine.keep(thread);
        Some(memory)
    } else {
        None
    };
    let connector = Connector::new(settings, environment, &trust.store_dir);
    let mut caches = Vec::new();
    for address in addresses {
        let name = Arc::clone(&address.name);
        for parameter in &address.unknown {
            tracing::warn!("'{name}' has a parameter that means nothing here: '{parameter}'");
        }
        let signatures = if address.is_trusted {
            Signatures::Optional
        } else {
            Signatures::Needed
        };
        let client = Arc::new(Client {
            name: Arc::clone(&name),
            transport: connector.connect(&address),
            trust: Arc::clone(&trust),
            signatures,
            answer_timeout: settings.cache_answer_timeout,
            n_attempts: settings.download_attempts,
            // A directory is asked as quickly as the memory, as with Nix.
            memory: memory.clone().filter(|_| is_remote(&address)),
            clocks: clocks.clone(),
            questions: permits(settings.http_connections),
            transfers: permits(settings.http_connections),
            is_left_alone: AtomicBool::new(false),
        });
        let cache = BinaryCache::new(client, engine.handle(), caches.len(), address.priority);
        caches.push(Cache {
            name,
            address: cache.start(),
        });
    }
    Ok(Substituter::new(caches, settings.cache_answer_timeout, Some(engine)).start())
}

/// Returns the machine's own clocks.
fn clocks() -> Clocks {
    let started_at = Instant::now();
    Clocks {
        passed: Arc::new(move || started_at.elapsed()),
        unix: Arc::new(unix_time),
    }
}

/// Returns the seconds since 1970.
fn unix_time() -> UnixTime {
    #[expect(
        clippy::disallowed_methods,
        reason = "answers outlive the process, and so any clock but the machine's"
    )]
    let now = SystemTime::now();
    now.duration_since(UNIX_EPOCH)
        .map_or(0, |age| i64::try_from(age.as_secs()).unwrap_or(i64::MAX))
}

/// Returns as many permits as there may be connections; 0 means any number.
fn permits(n_connections: usize) -> Arc<Semaphore> {
    let n_permits = match n_connections {
        0 => Semaphore::MAX_PERMITS,
        n => n.min(Semaphore::MAX_PERMITS),
    };
    Arc::new(Semaphore::new(n_permits))
}

fn read_trust(settings: &Settings, store_dir: StoreDir) -> Result<Trust, Error> {
    let keys = settings
        .trusted_public_keys
        .iter()
        .map(|key| key.parse::<PublicKey>())
        .collect::<Result<PublicKeys, _>>()
        .map_err(|source| Error::PublicKey {
            source: Box::new(source),
        })?;
    Ok(Trust {
        store_dir,
        keys,
        signatures: if settings.require_sigs {
            Signatures::Needed
        } else {
            Signatures::Optional
        },
    })
}

/// Reads the addresses of caches, each once.
fn read_addresses(texts: &[String]) -> Vec<CacheAddress> {
    let mut names = BTreeSet::new();
    let mut addresses = Vec::new();
    for text in texts {
        match CacheAddress::parse(text) {
            Ok(address) if names.insert(Arc::clone(&address.name)) => addresses.push(address),
            Ok(_) => {}
            Err(reason) => {
                let shown = crate::address::without_secrets(text);
                tracing::warn!("'{shown}' in 'substituters' is not used: {reason}");
            }
        }
    }
    addresses
}
