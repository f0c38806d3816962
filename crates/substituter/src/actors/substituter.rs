//! All caches: asks them at once, and puts what they say in order.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, Addr, Context, Handler, ResponseFuture};
use futures_util::StreamExt as _;
use futures_util::future::OptionFuture;
use futures_util::stream::FuturesUnordered;
use store_model::StorePath;
use tokio::time::{Instant, sleep_until};

use super::BinaryCache;
use super::binary_cache::{AskCache, CountBadOffer, NoteLate, OpenNar, StopCache, Word};
use crate::Error;
use crate::messages::{
    CacheIdx, FetchNar, Freshness, NarTransfer, Offer, Offers, QueryOffers, ReportBadOffer,
    StopSubstituter,
};
use crate::runtime::Engine;

/// Speaks to all caches.
#[derive(Debug)]
pub struct Substituter {
    pub(super) caches: Vec<Cache>,
    /// How long an offer waits for other caches to be heard.
    patience: Option<Duration>,
    /// `None` without caches, or once stopped.
    engine: Option<Engine>,
    is_stopped: bool,
}

/// One of the caches, in the order of the settings.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    pub(crate) name: Arc<str>,
    pub(crate) address: Addr<BinaryCache>,
}

impl Substituter {
    pub(crate) fn new(
        caches: Vec<Cache>,
        patience: Option<Duration>,
        engine: Option<Engine>,
    ) -> Self {
        Self {
            caches,
            patience,
            engine,
            is_stopped: false,
        }
    }
}

/// Asks all caches for one path.
///
/// Each cache limits by itself how long it is waited for; once one has the path, all the others
/// together have `patience`.
async fn query(
    caches: Vec<Cache>,
    path: StorePath,
    freshness: Freshness,
    patience: Option<Duration>,
) -> Result<Offers, Error> {
    let mut answers: FuturesUnordered<_> = caches
        .iter()
        .enumerate()
        .map(|(cache_idx, cache)| {
            let question = AskCache {
                path: path.clone(),
                freshness,
            };
            let answer = cache.address.send(question);
            async move { (cache_idx, answer.await) }
        })
        .collect();
    let mut offers = Vec::new();
    let mut n_refused = 0;
    let mut deadline = None;
    let mut unheard: BTreeSet<usize> = (0..caches.len()).collect();
    loop {
        let late = OptionFuture::from(deadline.map(sleep_until));
        let next = tokio::select! {
            next = answers.next() => next,
            Some(()) = late => None,
        };
        let Some((cache_idx, answer)) = next else {
            break;
        };
        unheard.remove(&cache_idx);
        // An actor that is gone has no word.
        let Ok(answer) = answer else { continue };
        let answer = answer?;
        match answer.word {
            Word::Offer(narinfo) => {
                let cache_name = Arc::clone(&caches[cache_idx].name);
                let cache = CacheIdx(cache_idx);
                offers.push((
                    answer.rank,
                    Offer {
                        cache,
                        cache_name,
                        narinfo,
                    },
                ));
                if deadline.is_none() {
                    deadline = patience.map(|patience| Instant::now() + patience);
                }
            }
            Word::Refused => n_refused += 1,
            Word::None => {}
        }
    }
    for cache_idx in unheard {
        let path = path.clone();
        caches[cache_idx].address.do_send(NoteLate { path });
    }
    offers.sort_by_key(|(rank, _)| *rank);
    Ok(Offers {
        offers: offers.into_iter().map(|(_, offer)| offer).collect(),
        n_refused,
    })
}

impl Actor for Substituter {
    type Context = Context<Self>;
}

impl Handler<QueryOffers> for Substituter {
    type Result = ResponseFuture<Result<Offers, Error>>;

    fn handle(&mut self, question: QueryOffers, _: &mut Context<Self>) -> Self::Result {
        if self.is_stopped {
            return Box::pin(async { Err(Error::Stopped) });
        }
        let caches = self.caches.clone();
        Box::pin(query(
            caches,
            question.path,
            question.freshness,
            self.patience,
        ))
    }
}

impl Handler<FetchNar> for Substituter {
    type Result = ResponseFuture<Result<NarTransfer, Error>>;

    fn handle(&mut self, request: FetchNar, _: &mut Context<Self>) -> Self::Result {
        let cache = self.caches.get(request.offer.cache.0).cloned();
        Box::pin(async move {
            let cache = cache.ok_or(Error::Stopped)?;
            let request = OpenNar {
                narinfo: request.offer.narinfo,
                progress: request.progress,
                delayed: request.delayed,
            };
            cache
                .address
                .send(request)
                .await
                .unwrap_or(Err(Error::Stopped))
        })
    }
}

impl Handler<ReportBadOffer> for Substituter {
    type Result = ();

    fn handle(&mut self, report: ReportBadOffer, _: &mut Context<Self>) {
        if let Some(cache) = self.caches.get(report.offer.cache.0) {
            cache.address.do_send(CountBadOffer {
                path: report.offer.narinfo.info.path.clone(),
            });
        }
    }
}

impl Handler<StopSubstituter> for Substituter {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: StopSubstituter, _: &mut Context<Self>) -> Self::Result {
        self.is_stopped = true;
        for cache in self.caches.drain(..) {
            cache.address.do_send(StopCache);
        }
        let stopped = self.engine.take().map(Engine::stop);
        Box::pin(async move {
            if let Some(stopped) = stopped {
                // Without an answer the threads are gone, or beyond our reach.
                let _ended = stopped.await;
            }
        })
    }
}
