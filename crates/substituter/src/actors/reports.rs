//! What commands ask for, that no goal needs: logs, and how well the caches are.

use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use bytes::Bytes;
use futures_util::future::join_all;
use store_model::StorePath;
use store_model::narinfo::CacheInfo;
use tokio::sync::oneshot;

use super::{BinaryCache, Substituter};
use crate::Error;
use crate::client::InfoHeard;
use crate::messages::{CacheReport, FoundLog, Freshness, PingCaches, QueryLog};
use crate::policy::Rank;
use crate::trust::Signatures;

/// Sent by the substituter: what is the cache?
#[derive(Debug, Message)]
#[rtype(result = "Result<Report, Error>")]
pub(super) struct AskReport {
    freshness: Freshness,
}

/// Answer to [`AskReport`].
#[derive(Debug)]
pub(super) struct Report {
    rank: Rank,
    info: Result<CacheInfo, String>,
    took: Duration,
    needs_signatures: bool,
}

/// Sent by the substituter: what did a builder write?
#[derive(Debug, Message)]
#[rtype(result = "Result<Result<Option<Bytes>, String>, Error>")]
pub(super) struct AskLog {
    path: StorePath,
}

impl Handler<AskReport> for BinaryCache {
    type Result = ResponseFuture<Result<Report, Error>>;

    fn handle(&mut self, asked: AskReport, _: &mut Context<Self>) -> Self::Result {
        let client = Arc::clone(&self.client);
        let (position, priority) = (self.position, self.priority);
        let (reply, answer) = oneshot::channel();
        self.runtime.spawn(async move {
            let begun = client.now();
            let info = match client.ask_info(asked.freshness).await {
                InfoHeard::Remembered(info) | InfoHeard::Usable(info) => Ok(info),
                InfoHeard::Unusable(reason) => Err(reason),
                InfoHeard::NoAnswer(why) => Err(why.reason),
            };
            let by_cache = info.as_ref().ok().and_then(|info| info.priority);
            let needed = [client.signatures, client.trust.signatures];
            let _asker_gone = reply.send(Report {
                rank: Rank::new(position, priority, by_cache),
                took: client.now().saturating_sub(begun),
                needs_signatures: needed == [Signatures::Needed; 2],
                info,
            });
        });
        Box::pin(async move { answer.await.map_err(|_| Error::Stopped) })
    }
}

impl Handler<AskLog> for BinaryCache {
    type Result = ResponseFuture<Result<Result<Option<Bytes>, String>, Error>>;

    fn handle(&mut self, asked: AskLog, _: &mut Context<Self>) -> Self::Result {
        let client = Arc::clone(&self.client);
        let (reply, answer) = oneshot::channel();
        self.runtime.spawn(async move {
            let _asker_gone = reply.send(client.read_log(&asked.path).await);
        });
        Box::pin(async move { answer.await.map_err(|_| Error::Stopped) })
    }
}

impl Handler<PingCaches> for Substituter {
    type Result = ResponseFuture<Result<Vec<CacheReport>, Error>>;

    fn handle(&mut self, _: PingCaches, _: &mut Context<Self>) -> Self::Result {
        let reports = self.ask_all(Freshness::Fresh);
        Box::pin(async move {
            let reports = reports.await?;
            let told = reports.into_iter().map(|(cache, report)| CacheReport {
                cache_name: cache.name,
                info: report.info,
                took: report.took,
                needs_signatures: report.needs_signatures,
            });
            Ok(told.collect())
        })
    }
}

impl Handler<QueryLog> for Substituter {
    type Result = ResponseFuture<Result<Option<FoundLog>, Error>>;

    fn handle(&mut self, asked: QueryLog, _: &mut Context<Self>) -> Self::Result {
        let reports = self.ask_all(Freshness::Remembered);
        Box::pin(async move {
            let mut caches = reports.await?;
            caches.sort_by_key(|(_, report)| report.rank);
            for (cache, report) in caches {
                let question = AskLog {
                    path: asked.path.clone(),
                };
                let answer = match report.info {
                    Ok(_) => cache.address.send(question).await,
                    Err(reason) => Ok(Ok(Err(reason))),
                };
                match answer.unwrap_or(Err(Error::Stopped))? {
                    Ok(Some(contents)) => {
                        return Ok(Some(FoundLog {
                            cache_name: cache.name,
                            contents,
                        }));
                    }
                    Ok(None) => {}
                    Err(reason) => tracing::warn!("no log from '{}': {reason}", cache.name),
                }
            }
            Ok(None)
        })
    }
}

impl Substituter {
    /// Asks all caches at once what they are; in the order of the settings.
    fn ask_all(
        &self,
        freshness: Freshness,
    ) -> impl Future<Output = Result<Vec<(super::Cache, Report)>, Error>> + use<> {
        let caches = self.caches.clone();
        let answers = caches.into_iter().map(move |cache| async move {
            let report = cache.address.send(AskReport { freshness }).await;
            Ok((cache, report.unwrap_or(Err(Error::Stopped))?))
        });
        let answers = join_all(answers);
        async move { answers.await.into_iter().collect() }
    }
}
