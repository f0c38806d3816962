//! Asks one cache: everything about it that waits.
//!
//! It runs on the substituter's own threads and knows no actor; what it hears goes back to the
//! cache's actor, which decides.

use std::fmt;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use actix::Recipient;
use bytes::Bytes;
use store_model::StorePath;
use store_model::narinfo::{CacheInfo, MAX_FILE_BYTES, NarInfo, RelativeUrl};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::error::chain;
use crate::messages::{FetchProgressed, Freshness};
use crate::narinfo_cache::{FileKey, NarInfoCache, Remembered, UnixTime};
use crate::read_ahead::{self, read_ahead};
use crate::transfer::unwrap_archive;
use crate::transport::{self, Cause, OpenRequest, Transport, TransportError};
use crate::trust::{Signatures, Trust};

/// The machine's clocks, or a test's.
#[derive(Clone)]
pub(crate) struct Clocks {
    /// How much time has passed since the substituter started; no clock that can be set.
    pub(crate) passed: Arc<dyn Fn() -> Duration + Send + Sync>,
    /// By which answers of earlier runs grow old.
    pub(crate) unix: Arc<dyn Fn() -> UnixTime + Send + Sync>,
}

impl fmt::Debug for Clocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clocks")
    }
}

/// What is needed to ask one cache.
#[derive(Debug)]
pub(crate) struct Client {
    /// The cache as messages name it.
    pub(crate) name: Arc<str>,
    pub(crate) transport: Box<dyn Transport>,
    pub(crate) trust: Arc<Trust>,
    /// Whether this cache's paths need a signature.
    pub(crate) signatures: Signatures,
    pub(crate) answer_timeout: Option<Duration>,
    /// How often a cache that does not answer is asked for a download (`download-attempts`).
    pub(crate) n_attempts: usize,
    /// Where its answers are remembered; `None` for a cache that is quicker than that.
    pub(crate) memory: Option<NarInfoCache>,
    /// Tells the time.
    pub(crate) clocks: Clocks,
    /// One permit for each question at once.
    pub(crate) questions: Arc<Semaphore>,
    /// One permit for each download at once. Not those of the questions: a download can wait for its
    /// reader, who may wait for the answer to a question.
    pub(crate) transfers: Arc<Semaphore>,
    /// Set while the cache is left alone, so that questions that still queue for a permit end.
    pub(crate) is_left_alone: AtomicBool,
}

/// A question without an answer.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    /// When it was asked.
    pub(crate) asked_at: Duration,
    /// What happened, to be told.
    pub(crate) reason: String,
    /// How long the cache wants to be left alone, if it said so.
    pub(crate) retry_after: Option<Duration>,
}

/// What was heard about a path.
#[derive(Debug)]
pub(crate) enum Heard {
    /// It was remembered that the cache has it, or does not.
    Remembered(Option<Arc<NarInfo>>),
    /// The cache has it and is to be believed.
    Offered(Arc<NarInfo>),
    /// The cache does not have it.
    Absent,
    /// The cache has it and is not to be believed, because of this.
    Refused(String),
    /// The cache said something that makes no sense.
    Broken(String),
    /// The cache cannot be reached, or does not answer.
    NoAnswer(NoAnswer),
    /// It was not asked any more.
    LeftAlone,
}

/// What was heard of the cache itself.
#[derive(Debug)]
pub(crate) enum InfoHeard {
    /// It was remembered that it can be asked.
    Remembered(CacheInfo),
    /// It can be asked.
    Usable(CacheInfo),
    /// It is no cache for this store, because of this.
    Unusable(String),
    /// The cache cannot be reached, or does not answer.
    NoAnswer(NoAnswer),
}

/// An archive that comes.
pub(crate) struct Opened {
    /// Without its compression.
    pub(crate) contents: Box<dyn Read + Send>,
    /// Where its tree lies, if on this machine.
    pub(crate) objects: Option<OwnedFd>,
}

/// What came of reading a small file.
enum SmallFile {
    Contents(Bytes),
    Absent,
    Broken(String),
    NoAnswer(NoAnswer),
}

/// Largest log that is read. It is kept in memory, and nobody has signed it.
const MAX_LOG_BYTES: usize = 64 << 20;

/// What a cache says of itself.
pub(crate) const INFO_FILE: &str = "nix-cache-info";

/// Returns the name of the file that describes a path.
pub(crate) fn narinfo_file(path: &StorePath) -> String {
    format!("{}.narinfo", path.hash_part())
}

impl Client {
    /// Returns how much time has passed since the substituter started.
    pub(crate) fn now(&self) -> Duration {
        (self.clocks.passed)()
    }

    /// Asks the cache what it is.
    pub(crate) async fn ask_info(&self, freshness: Freshness) -> InfoHeard {
        if freshness == Freshness::Remembered
            && let Some(Remembered::Contents(text)) = self.recall(INFO_FILE).await
            && let Ok(info) = self.check_info(text.as_bytes())
        {
            return InfoHeard::Remembered(info);
        }
        match self.read_small(INFO_FILE).await {
            SmallFile::Contents(text) => match self.check_info(&text) {
                Ok(info) => {
                    self.note(INFO_FILE, Some(&text));
                    InfoHeard::Usable(info)
                }
                Err(reason) => InfoHeard::Unusable(reason),
            },
            SmallFile::Absent => {
                InfoHeard::Unusable(format!("it has no '{INFO_FILE}', so it is no cache"))
            }
            SmallFile::Broken(reason) => InfoHeard::Unusable(reason),
            SmallFile::NoAnswer(why) => InfoHeard::NoAnswer(why),
        }
    }

    /// Reads what a cache says of itself; the error says why it is no cache for this store.
    fn check_info(&self, text: &[u8]) -> Result<CacheInfo, String> {
        let info = CacheInfo::parse(text).map_err(|error| error.to_string())?;
        match &info.store_dir {
            Some(store_dir) if *store_dir != self.trust.store_dir => Err(format!(
                "its paths are for '{store_dir}', not for '{}'",
                self.trust.store_dir
            )),
            _ => Ok(info),
        }
    }

    /// Asks for a path.
    pub(crate) async fn ask_path(&self, path: &StorePath, freshness: Freshness) -> Heard {
        let file = narinfo_file(path);
        if freshness == Freshness::Remembered
            && let Some(heard) = self.recall_path(path, &file).await
        {
            return heard;
        }
        // The semaphore is never closed.
        let _permit = self.questions.acquire().await;
        if self.is_left_alone.load(Ordering::Relaxed) {
            return Heard::LeftAlone;
        }
        match self.read_small(&file).await {
            SmallFile::Contents(text) => {
                let heard = self.judge(path, &text);
                if matches!(heard, Heard::Offered(_)) {
                    self.note(&file, Some(&text));
                }
                heard
            }
            SmallFile::Absent => {
                self.note(&file, None);
                Heard::Absent
            }
            SmallFile::Broken(reason) => Heard::Broken(reason),
            SmallFile::NoAnswer(why) => Heard::NoAnswer(why),
        }
    }

    /// Decides what an answer about `path` is worth.
    fn judge(&self, path: &StorePath, text: &[u8]) -> Heard {
        let narinfo = match NarInfo::parse(text, &self.trust.store_dir) {
            Ok(narinfo) => narinfo,
            Err(error) => return Heard::Broken(error.to_string()),
        };
        match self.trust.judge(path, &narinfo, self.signatures) {
            Ok(()) => Heard::Offered(Arc::new(narinfo)),
            Err(refusal) => Heard::Refused(refusal.to_string()),
        }
    }

    /// Reads the log of a derivation, or of the derivation that made an output, by this cache's word;
    /// that is no reason to believe anything, so nobody has to have signed it.
    ///
    /// # Errors
    /// The cache gives no answer, or one that makes no sense.
    pub(crate) async fn read_log(&self, path: &StorePath) -> Result<Option<Bytes>, String> {
        let mut drv_path = path.clone();
        if !path.is_derivation() {
            let text = match self.read_small(&narinfo_file(path)).await {
                SmallFile::Contents(text) => text,
                SmallFile::Absent => return Ok(None),
                SmallFile::Broken(reason) | SmallFile::NoAnswer(NoAnswer { reason, .. }) => {
                    return Err(reason);
                }
            };
            let narinfo =
                NarInfo::parse(&text, &self.trust.store_dir).map_err(|error| error.to_string())?;
            match narinfo.info.deriver {
                Some(deriver) if narinfo.info.path == *path => drv_path = deriver,
                Some(_) | None => return Ok(None),
            }
        }
        let file = format!("log/{drv_path}").parse::<RelativeUrl>();
        let file = file.map_err(|error| error.to_string())?;
        // No limit of time for all of it: it may be large.
        match self.transport.read_small(&file, MAX_LOG_BYTES).await {
            Ok(log) => Ok(log),
            Err(TransportError::Missing { .. }) => Ok(None),
            Err(error) => Err(chain(&error)),
        }
    }

    /// Returns what is remembered about `path`, if that is still worth anything.
    async fn recall_path(&self, path: &StorePath, file: &str) -> Option<Heard> {
        let Remembered::Contents(text) = self.recall(file).await? else {
            return Some(Heard::Remembered(None));
        };
        // Keys may have been taken back since it was noted.
        if let Heard::Offered(narinfo) = self.judge(path, text.as_bytes()) {
            Some(Heard::Remembered(Some(narinfo)))
        } else {
            None
        }
    }

    async fn recall(&self, file: &str) -> Option<Remembered> {
        let memory = self.memory.as_ref()?;
        memory.recall(self.key(file), (self.clocks.unix)()).await
    }

    /// Remembers what the cache has as `file`; `None` if it does not have it.
    fn note(&self, file: &str, contents: Option<&[u8]>) {
        let Some(memory) = &self.memory else {
            return;
        };
        let remembered = match contents.map(std::str::from_utf8) {
            Some(Ok(text)) => Remembered::Contents(text.to_owned()),
            None => Remembered::Absent,
            // What has been understood is text.
            Some(Err(_)) => return,
        };
        memory.note(self.key(file), remembered, (self.clocks.unix)());
    }

    /// Forgets what the cache said about `path`.
    pub(crate) fn forget(&self, path: &StorePath) {
        if let Some(memory) = &self.memory {
            memory.forget(self.key(&narinfo_file(path)));
        }
    }

    fn key(&self, file: &str) -> FileKey {
        FileKey {
            cache: Arc::clone(&self.name),
            file: file.to_owned(),
        }
    }

    async fn read_small(&self, file: &str) -> SmallFile {
        let asked_at = self.now();
        let read = async {
            let file: RelativeUrl = file.parse().map_err(|error| TransportError::Broken {
                address: format!("{}/{file}", self.name),
                source: Box::new(error),
            })?;
            self.transport.read_small(&file, MAX_FILE_BYTES).await
        };
        let no_answer = |reason, retry_after| {
            SmallFile::NoAnswer(NoAnswer {
                asked_at,
                reason,
                retry_after,
            })
        };
        let answer = match self.answer_timeout {
            Some(patience) => {
                let Ok(answer) = timeout(patience, read).await else {
                    let reason = format!("no answer in {patience:?} ('cache-answer-timeout')");
                    return no_answer(reason, None);
                };
                answer
            }
            None => read.await,
        };
        match answer {
            Ok(Some(contents)) => SmallFile::Contents(contents),
            Ok(None) | Err(TransportError::Missing { .. }) => SmallFile::Absent,
            Err(error @ TransportError::Broken { .. }) => SmallFile::Broken(chain(&error)),
            Err(error @ TransportError::NoAnswer { retry_after, .. }) => {
                no_answer(chain(&error), retry_after)
            }
        }
    }

    /// Opens the archive of an offer; it ends when the other end of `wanted` closes.
    ///
    /// # Errors
    /// The archive is not there or does not come.
    pub(crate) async fn open(
        &self,
        narinfo: &NarInfo,
        progress: Option<Recipient<FetchProgressed>>,
        mut wanted: oneshot::Receiver<()>,
    ) -> Result<Opened, TransportError> {
        let address = format!("{}/{}", self.name, narinfo.url);
        let broken = |source: Cause| TransportError::Broken {
            address: address.clone(),
            source,
        };
        let url = narinfo
            .archive_url()
            .map_err(|error| broken(Box::new(error)))?;
        let (alive, ended) = oneshot::channel();
        let opening = async {
            let permit = Arc::clone(&self.transfers).acquire_owned().await;
            let permit = permit.map_err(|error| broken(Box::new(error)))?;
            let request = OpenRequest { ended };
            let compressed = self.transport.open(&url, request).await?;
            Ok((compressed, self.transport.objects().await, permit))
        };
        let (compressed, objects, permit) = tokio::select! {
            opened = opening => opened?,
            _ = &mut wanted => return Err(broken(transport::given_up().into())),
        };
        tokio::spawn(async move {
            let _unwanted = wanted.await;
            // This wakes a reader that waits. So does the end of the runtime, with this task.
            drop(alive);
        });
        let contents = unwrap_archive(narinfo, address.clone(), compressed, progress, permit)
            .map_err(|error: io::Error| broken(error.into()))?;
        let contents = if narinfo.info.nar_size_bytes < read_ahead::MIN_BYTES {
            contents
        } else {
            Box::new(read_ahead(&Handle::current(), contents))
        };
        Ok(Opened { contents, objects })
    }
}
