//! One cache: who waits for which of its answers, and how well it is.

use std::cmp;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::{
    Actor, ActorContext as _, AsyncContext as _, Context, Handler, Message, Recipient,
    ResponseFuture,
};
use store_model::StorePath;
use store_model::narinfo::{CacheInfo, NarInfo};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::vigil::Vigil;
use crate::Error;
use crate::client::{Client, Heard, InfoHeard, NoAnswer};
use crate::error::chain;
use crate::messages::{FetchDelayed, FetchProgressed, Freshness, NarTransfer, TransferGuard};
use crate::policy::{Breaker, Failure, Leave, Rank, Verdict};
use crate::transport::TransportError;

/// How many offers that are not believed are told one by one. A cache whose key is not trusted has as
/// many as paths.
const MAX_REFUSALS_TOLD: usize = 10;

/// Sent by the substituter: what does the cache say of a path?
#[derive(Debug, Message)]
#[rtype(result = "Result<Answer, Error>")]
pub(crate) struct AskCache {
    pub(crate) path: StorePath,
    pub(crate) freshness: Freshness,
}

/// Answer to [`AskCache`].
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// Where the cache stands among all.
    pub(crate) rank: Rank,
    pub(crate) word: Word,
}

/// What a cache says of a path.
#[derive(Debug, Clone)]
pub(crate) enum Word {
    /// It has it.
    Offer(Arc<NarInfo>),
    /// It does not have it, or gave no answer.
    None,
    /// It has it and is not to be believed.
    Refused,
}

/// Sent by the substituter: begins a download.
#[derive(Message)]
#[rtype(result = "Result<NarTransfer, Error>")]
pub(crate) struct OpenNar {
    pub(crate) narinfo: Arc<NarInfo>,
    pub(crate) progress: Option<Recipient<FetchProgressed>>,
    pub(crate) delayed: Option<Recipient<FetchDelayed>>,
}

/// Sent by the substituter: the cache did not keep its word about a path.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct CountBadOffer {
    pub(crate) path: StorePath,
}

/// Sent by the substituter: another cache has the path, and this one was waited for in vain.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct NoteLate {
    pub(crate) path: StorePath,
}

/// Sent by the substituter at the end: nobody is answered any more.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(crate) struct StopCache;

/// Sent by the task that asked what the cache is.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct InfoAnswered(InfoHeard);

/// Sent by the task that asked for a path.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct PathAnswered {
    question: Question,
    turn: Turn,
    heard: Heard,
}

/// Sent by the task that began a download.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct OpenEnded {
    path: StorePath,
    end: OpenEnd,
}

/// What the beginning of a download says of the cache.
#[derive(Debug)]
enum OpenEnd {
    Opened,
    Missing,
    NoAnswer(NoAnswer),
    /// Nothing.
    Broken,
}

/// What is asked for, once however many want to know.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    path: StorePath,
    freshness: Freshness,
}

/// Whether a question was asked before, and its answer came too late.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    First,
    Second,
}

/// What is known of the cache itself.
#[derive(Debug)]
enum Info {
    Unknown,
    /// Asked for; these wait for it.
    Asked(Vec<Question>),
    Known(CacheInfo),
    /// It is no cache for this store.
    Unusable,
}

/// One cache.
#[derive(Debug)]
pub(crate) struct BinaryCache {
    pub(super) client: Arc<Client>,
    pub(super) runtime: Handle,
    pub(super) position: usize,
    /// The priority that its user gives it.
    pub(super) priority: Option<u32>,
    info: Info,
    pub(super) breaker: Breaker,
    /// Downloads that wait until the cache answers again.
    pub(super) vigil: Vigil,
    askers: HashMap<Question, Vec<oneshot::Sender<Result<Answer, Error>>>>,
    n_refusals: usize,
    /// Whether it was told that somebody waited for this cache in vain.
    is_late_told: bool,
}

impl BinaryCache {
    /// Makes the actor of the cache at `position` in the settings.
    pub(crate) fn new(
        client: Arc<Client>,
        runtime: Handle,
        position: usize,
        priority: Option<u32>,
    ) -> Self {
        Self {
            client,
            runtime,
            position,
            priority,
            info: Info::Unknown,
            breaker: Breaker::default(),
            vigil: Vigil::default(),
            askers: HashMap::new(),
            n_refusals: 0,
            is_late_told: false,
        }
    }

    /// Asks a question that nobody has asked yet, or says why not.
    fn begin(&mut self, question: Question, ctx: &mut Context<Self>) {
        match (self.breaker.allows(self.now()), &mut self.info) {
            (_, Info::Unusable) | (Leave::Skip, _) => self.answer(&question, Word::None),
            (Leave::Probe, _) => {
                self.ask_info(Freshness::Fresh, ctx);
                self.answer(&question, Word::None);
            }
            (Leave::Ask, Info::Asked(waiting)) => waiting.push(question),
            (Leave::Ask, Info::Unknown) => {
                self.info = Info::Asked(vec![question]);
                self.ask_info(Freshness::Remembered, ctx);
            }
            (Leave::Ask, Info::Known(_)) => self.ask(question, Turn::First, ctx),
        }
    }

    fn ask_info(&self, freshness: Freshness, ctx: &Context<Self>) {
        let (client, cache) = (Arc::clone(&self.client), ctx.address());
        self.runtime.spawn(async move {
            cache.do_send(InfoAnswered(client.ask_info(freshness).await));
        });
    }

    fn ask(&self, question: Question, turn: Turn, ctx: &Context<Self>) {
        let (client, cache) = (Arc::clone(&self.client), ctx.address());
        self.runtime.spawn(async move {
            let heard = client.ask_path(&question.path, question.freshness).await;
            cache.do_send(PathAnswered {
                question,
                turn,
                heard,
            });
        });
    }

    /// Tells all who asked a question.
    fn answer(&mut self, question: &Question, word: Word) {
        let by_cache = match &self.info {
            Info::Known(info) => info.priority,
            Info::Unknown | Info::Asked(_) | Info::Unusable => None,
        };
        let answer = Answer {
            rank: Rank::new(self.position, self.priority, by_cache),
            word,
        };
        for asker in self.askers.remove(question).unwrap_or_default() {
            // The asker may be gone: a cancelled goal does not wait.
            let _asker_gone = asker.send(Ok(answer.clone()));
        }
    }

    /// Takes note of a failure, which is told if the cache is left alone because of it.
    fn fail(&mut self, failure: Failure, reason: &str) -> Verdict {
        let chance = random() >> 32;
        let jitter = f64::from(u32::try_from(chance).unwrap_or_default()) / f64::from(u32::MAX);
        let verdict = self.breaker.failed(failure, self.now(), jitter);
        if let Verdict::LeftAlone(pause) = verdict {
            tracing::warn!(
                "'{}' is left alone for {} seconds: {reason}",
                self.client.name,
                pause.as_secs()
            );
        }
        self.client
            .is_left_alone
            .store(self.breaker.is_open(), Ordering::Relaxed);
        verdict
    }

    /// Takes note of a question without an answer.
    fn miss(&mut self, why: &NoAnswer) -> Verdict {
        if let Some(wish) = why.retry_after {
            self.vigil.put_off(self.now() + wish);
        }
        let failure = Failure::NoAnswer {
            asked_at: why.asked_at,
            retry_after: why.retry_after,
        };
        self.fail(failure, &why.reason)
    }

    fn refuse(&mut self, path: &StorePath, reason: &str) {
        self.n_refusals += 1;
        let path = self.client.trust.store_dir.print(path);
        let cache = &self.client.name;
        match self.n_refusals.cmp(&(MAX_REFUSALS_TOLD + 1)) {
            cmp::Ordering::Less => {
                tracing::warn!("not taking '{path}' from '{cache}': {reason}");
            }
            cmp::Ordering::Equal => {
                tracing::warn!("what else is not taken from '{cache}' is not told");
            }
            cmp::Ordering::Greater => {}
        }
    }

    pub(super) fn now(&self) -> Duration {
        self.client.now()
    }
}

/// Returns a random number. A hasher's own seed is all the chance that is needed here.
pub(super) fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}

impl Actor for BinaryCache {
    type Context = Context<Self>;
}

impl Handler<AskCache> for BinaryCache {
    type Result = ResponseFuture<Result<Answer, Error>>;

    fn handle(&mut self, asked: AskCache, ctx: &mut Context<Self>) -> Self::Result {
        let question = Question {
            path: asked.path,
            freshness: asked.freshness,
        };
        let (reply, answer) = oneshot::channel();
        let askers = self.askers.entry(question.clone()).or_default();
        askers.push(reply);
        if askers.len() == 1 {
            self.begin(question, ctx);
        }
        Box::pin(async move { answer.await.unwrap_or(Err(Error::Stopped)) })
    }
}

impl Handler<InfoAnswered> for BinaryCache {
    type Result = ();

    fn handle(&mut self, InfoAnswered(heard): InfoAnswered, ctx: &mut Context<Self>) {
        let (known, waiting) = match std::mem::replace(&mut self.info, Info::Unknown) {
            Info::Asked(waiting) => (Info::Unknown, waiting),
            // It was a probe.
            known @ (Info::Unknown | Info::Known(_) | Info::Unusable) => (known, Vec::new()),
        };
        self.info = match heard {
            InfoHeard::Remembered(info) => Info::Known(info),
            InfoHeard::Usable(info) => {
                self.breaker.probe_succeeded(self.now());
                self.client.is_left_alone.store(false, Ordering::Relaxed);
                self.end_vigil(true);
                Info::Known(info)
            }
            InfoHeard::Unusable(reason) => {
                tracing::warn!("'{}' is not used: {reason}", self.client.name);
                Info::Unusable
            }
            InfoHeard::NoAnswer(why) => {
                self.miss(&why);
                known
            }
        };
        for question in waiting {
            self.begin(question, ctx);
        }
    }
}

impl Handler<PathAnswered> for BinaryCache {
    type Result = ();

    fn handle(&mut self, answered: PathAnswered, ctx: &mut Context<Self>) {
        let PathAnswered {
            question,
            turn,
            heard,
        } = answered;
        let word = match heard {
            Heard::Remembered(Some(narinfo)) => Word::Offer(narinfo),
            Heard::Remembered(None) | Heard::LeftAlone => Word::None,
            Heard::Offered(narinfo) => {
                self.breaker.succeeded(self.now());
                Word::Offer(narinfo)
            }
            Heard::Absent => {
                self.breaker.succeeded(self.now());
                Word::None
            }
            Heard::Refused(reason) => {
                self.breaker.succeeded(self.now());
                self.refuse(&question.path, &reason);
                Word::Refused
            }
            Heard::Broken(reason) => {
                self.refuse(&question.path, &reason);
                self.fail(Failure::BadOffer, "too much of what it says makes no sense");
                Word::Refused
            }
            Heard::NoAnswer(why) => match (self.miss(&why), turn) {
                (Verdict::Tolerated, Turn::First) => {
                    self.ask(question, Turn::Second, ctx);
                    return;
                }
                (Verdict::Tolerated, Turn::Second) => {
                    self.refuse(&question.path, &why.reason);
                    Word::None
                }
                (Verdict::LeftAlone(_) | Verdict::StillLeftAlone, _) => Word::None,
            },
        };
        self.answer(&question, word);
    }
}

impl Handler<OpenNar> for BinaryCache {
    type Result = ResponseFuture<Result<NarTransfer, Error>>;

    fn handle(&mut self, asked: OpenNar, ctx: &mut Context<Self>) -> Self::Result {
        let name = Arc::clone(&self.client.name);
        if self.breaker.is_open() {
            let delayed = asked.delayed.as_ref();
            let Some(delayed) = delayed.filter(|_| !self.vigil.is_given_up()) else {
                return Box::pin(async { Err(Error::LeftAlone { cache: name }) });
            };
            delayed.do_send(FetchDelayed {
                cache: Arc::clone(&name),
            });
            let (answers, cache) = (self.await_answer(ctx), ctx.address());
            return Box::pin(async move {
                match answers.await {
                    Ok(true) => cache.send(asked).await.unwrap_or(Err(Error::Stopped)),
                    Ok(false) => Err(Error::LeftAlone { cache: name }),
                    Err(_) => Err(Error::Stopped),
                }
            });
        }
        let (client, cache) = (Arc::clone(&self.client), ctx.address());
        let path = asked.narinfo.info.path.clone();
        let printed_path = client.trust.store_dir.print(&path);
        let (alive, wanted) = oneshot::channel();
        let (reply, opened) = oneshot::channel();
        let asked_at = self.now();
        self.runtime.spawn(async move {
            let result = client.open(&asked.narinfo, asked.progress, wanted).await;
            let end = match &result {
                Ok(_) => OpenEnd::Opened,
                Err(error) => OpenEnd::of(error, asked_at),
            };
            cache.do_send(OpenEnded { path, end });
            // The asker may be gone: then this ends the transfer.
            let _asker_gone = reply.send(result);
        });
        Box::pin(async move {
            let opened =
                opened
                    .await
                    .map_err(|_| Error::Stopped)?
                    .map_err(|error| Error::Download {
                        path: printed_path,
                        cache: name,
                        source: Box::new(error),
                    })?;
            Ok(NarTransfer {
                contents: opened.contents,
                objects: opened.objects,
                guard: TransferGuard { _alive: alive },
            })
        })
    }
}

impl OpenEnd {
    fn of(error: &TransportError, asked_at: Duration) -> Self {
        match error {
            TransportError::Missing { .. } => Self::Missing,
            TransportError::NoAnswer { retry_after, .. } => Self::NoAnswer(NoAnswer {
                asked_at,
                reason: chain(error),
                retry_after: *retry_after,
            }),
            TransportError::Broken { .. } => Self::Broken,
        }
    }
}

impl Handler<OpenEnded> for BinaryCache {
    type Result = ();

    fn handle(&mut self, ended: OpenEnded, _: &mut Context<Self>) {
        match ended.end {
            OpenEnd::Opened => self.breaker.succeeded(self.now()),
            // The archive was deleted since the answer was noted.
            OpenEnd::Missing => self.client.forget(&ended.path),
            OpenEnd::NoAnswer(why) => {
                self.miss(&why);
            }
            OpenEnd::Broken => {}
        }
    }
}

impl Handler<CountBadOffer> for BinaryCache {
    type Result = ();

    fn handle(&mut self, bad: CountBadOffer, _: &mut Context<Self>) {
        tracing::debug!(
            "'{}' did not keep its word on '{}'",
            self.client.name,
            bad.path
        );
        self.client.forget(&bad.path);
        self.fail(
            Failure::BadOffer,
            "too much of what it offers is not what it says",
        );
    }
}

impl Handler<NoteLate> for BinaryCache {
    type Result = ();

    fn handle(&mut self, late: NoteLate, _: &mut Context<Self>) {
        // While it does not even say what it is, the end of that question tells.
        let is_told_elsewhere = self.breaker.is_open() || matches!(self.info, Info::Asked(_));
        if is_told_elsewhere || self.is_late_told {
            return;
        }
        self.is_late_told = true;
        tracing::warn!(
            "'{}' has not said in time whether it has '{}', which is taken from another",
            self.client.name,
            self.client.trust.store_dir.print(&late.path)
        );
    }
}

impl Handler<StopCache> for BinaryCache {
    type Result = ();

    fn handle(&mut self, _: StopCache, ctx: &mut Context<Self>) {
        // Whoever still waits is told by the end of their channels.
        self.askers.clear();
        self.vigil = Vigil::default();
        ctx.stop();
    }
}
