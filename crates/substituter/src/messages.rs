//! Everything that can be said to this crate's actors, and what they answer.
//!
//! ```text
//! goal    QueryOffers      ─► substituter  ─► Offers, best first
//! goal    FetchNar         ─► substituter  ─► NarTransfer; FetchDelayed before, FetchProgressed while it is read
//! goal    ReportBadOffer   ─► substituter  what came was not what was offered
//! command QueryLog         ─► substituter  ─► FoundLog, if any cache has it
//! command PingCaches       ─► substituter  ─► a CacheReport for each
//!
//! copy    PrepareCache     ─► cache writer
//! copy    QueryPresent     ─► cache writer ─► those of the paths that need not be copied
//! copy    UploadPath       ─► cache writer ─► Uploaded, when the path can be fetched from the cache
//! copy    StopWriter       ─► cache writer
//! ```

use std::fmt;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use actix::{Message, Recipient};
use bytes::Bytes;
use store_model::StorePath;
use store_model::narinfo::{CacheInfo, NarInfo};

use crate::Error;

mod uploads;

pub use uploads::*;

/// Names one cache of a substituter, in the order of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheIdx(pub(crate) usize);

/// A cache's word that it has a path: signed by a trusted key, or not in need of that.
#[derive(Debug, Clone)]
pub struct Offer {
    /// Whose word it is.
    pub cache: CacheIdx,
    /// The cache as messages name it: its address without name, password and parameters.
    pub cache_name: Arc<str>,
    /// What it says.
    pub narinfo: Arc<NarInfo>,
}

/// Asked by path goals and planners: who has a path. All caches are asked at once; one that gives no
/// answer in time (`cache-answer-timeout`) counts as not having it, is left alone for a while, and that
/// is told once. Once one cache has offered the path, all the others together have that time too; a
/// cache that was waited for in vain then is named once.
///
/// What a cache offers that may not be believed is left out, with a warning that names cache and path.
#[derive(Debug, Message)]
#[rtype(result = "Result<Offers, Error>")]
pub struct QueryOffers {
    /// The path.
    pub path: StorePath,
    /// Whether answers of earlier runs will do.
    pub freshness: Freshness,
}

/// Whether an answer that was remembered will do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Freshness {
    /// For as long as the settings say.
    Remembered,
    /// The caches themselves are to be asked.
    Fresh,
}

/// Answer to [`QueryOffers`].
#[derive(Debug, Clone, Default)]
pub struct Offers {
    /// Best first; empty if nobody has the path.
    pub offers: Vec<Offer>,
    /// How many caches have it but may not be believed.
    pub n_refused: usize,
}

/// Sent by path goals: begins to download an archive, which is read by whoever gets the answer. A cache
/// sends as many at once as the settings allow connections; the next one waits until one of these is
/// dropped.
#[derive(Message)]
#[rtype(result = "Result<NarTransfer, Error>")]
pub struct FetchNar {
    /// What to download, from whom.
    pub offer: Offer,
    /// Told how far it is, a few times a second while there is something to tell.
    pub progress: Option<Recipient<FetchProgressed>>,
    /// Told if the cache is left alone just then. The download then waits until it answers again, for
    /// about as long as one is tried by itself. Where there is nobody to be told, because somebody else
    /// has the path or it is built, the download fails at once.
    pub delayed: Option<Recipient<FetchDelayed>>,
}

impl fmt::Debug for FetchNar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FetchNar")
            .field("offer", &self.offer)
            .finish_non_exhaustive()
    }
}

/// Answer to [`FetchNar`]: an archive on its way.
pub struct NarTransfer {
    /// The archive, decompressed. Reading blocks, until the time-outs of the settings at most, and
    /// fails with a message that names the archive's address in the cache. It is limited in memory,
    /// whatever the cache sends; its length and its hash are the reader's to check. That the compressed
    /// bytes are those that the cache promised is checked at their end.
    pub contents: Box<dyn Read + Send>,
    /// Where the cache is another store of this machine: the directory in which the tree itself lies
    /// under the path's name, so that its files can be shared. It can change at any time, and need not
    /// be what the archive says.
    pub objects: Option<OwnedFd>,
    /// Ends the transfer when dropped, also under a reader who waits.
    pub guard: TransferGuard,
}

impl fmt::Debug for NarTransfer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NarTransfer").finish_non_exhaustive()
    }
}

/// Keeps a transfer going; dropping it ends the transfer at once.
#[derive(Debug)]
pub struct TransferGuard {
    pub(crate) _alive: tokio::sync::oneshot::Sender<()>,
}

/// Sent to whoever fetches, while an archive is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct FetchProgressed {
    /// Bytes that have come, as they are compressed.
    pub n_bytes: u64,
    /// How many there will be, where the cache says so.
    pub n_expected: Option<u64>,
}

/// Sent to whoever fetches: the cache gave no answer lately and is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Message)]
#[rtype(result = "()")]
pub struct FetchDelayed {
    /// The cache, as messages name it.
    pub cache: Arc<str>,
}

/// Sent by `log`: what did a builder write? The caches are asked one after the other, the best first.
#[derive(Debug, Message)]
#[rtype(result = "Result<Option<FoundLog>, Error>")]
pub struct QueryLog {
    /// A derivation, or an output, of which the cache itself has to know the derivation.
    pub path: StorePath,
}

/// Answer to [`QueryLog`]. Nobody has signed any of it.
#[derive(Debug, Clone)]
pub struct FoundLog {
    /// Whose it is.
    pub cache_name: Arc<str>,
    /// The bytes, 64 MiB at most.
    pub contents: Bytes,
}

/// Sent by `store ping`: asks every cache what it is, past all that is remembered.
#[derive(Debug, Message)]
#[rtype(result = "Result<Vec<CacheReport>, Error>")]
pub struct PingCaches;

/// What became of a ping, in the order of the settings.
#[derive(Debug, Clone)]
pub struct CacheReport {
    /// The cache as messages name it.
    pub cache_name: Arc<str>,
    /// What it says of itself, or why it cannot be used.
    pub info: Result<CacheInfo, String>,
    /// How long the answer took.
    pub took: Duration,
    /// Whether its paths need a signature.
    pub needs_signatures: bool,
}

/// Sent by path goals: what came was not what was offered, or did not come. The offer is forgotten,
/// and it counts against the cache's health.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ReportBadOffer {
    /// The offer.
    pub offer: Offer,
}

/// Sent once at the end: ends all transfers, and answers when the threads are gone.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StopSubstituter;

/// Sent once by whoever must know when the actor is gone. Never answered: the question is dropped with
/// the actor, which a panic in it does too.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct AwaitEnd;

/// Sent by tests: panics in the actor that gets it, to show that nothing is left behind.
#[doc(hidden)]
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct ForcePanic;
