//! Waiting for a cache that gave no answer, for downloads that nobody else could take over.
//!
//! Questions never wait: they count such a cache as not having anything (`policy`). A download whose
//! path was promised by this cache alone fails its goal instead, and an outage of some seconds would
//! fail all of them. So they wait together for one probe after another, further and further apart, as
//! often as a download is tried by itself. Once that was in vain nobody waits again before the cache
//! has answered somebody: a thousand paths of a dead cache cost that time once.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::prelude::*;
use store_model::backoff;
use tokio::sync::oneshot;

use super::BinaryCache;
use super::binary_cache::random;
use crate::client::InfoHeard;
use crate::messages::Freshness;

/// The longest that a cache may want to be left alone (`Retry-After`) and still be waited for.
const LONGEST_WISH: Duration = Duration::from_mins(1);

/// Who waits for the cache.
#[derive(Debug, Default)]
pub(super) struct Vigil {
    /// Told whether it answers again.
    waiting: Vec<oneshot::Sender<bool>>,
    n_probes: usize,
    /// Whether all that was in vain.
    is_given_up: bool,
    /// Until when the cache wants to be left alone.
    not_before: Duration,
}

impl Vigil {
    /// Returns whether nobody waits before the cache has answered somebody.
    pub(super) fn is_given_up(&self) -> bool {
        self.is_given_up
    }

    /// Takes note that the cache wants to be left alone for a while.
    pub(super) fn put_off(&mut self, until: Duration) {
        self.not_before = until;
    }
}

/// Sent by the task that asked whether the cache answers again.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct ProbeAnswered(InfoHeard);

impl BinaryCache {
    /// Returns what tells whether the cache answers again.
    pub(super) fn await_answer(&mut self, ctx: &mut Context<Self>) -> oneshot::Receiver<bool> {
        let (reply, answers) = oneshot::channel();
        self.vigil.waiting.push(reply);
        if self.vigil.waiting.len() == 1 {
            tracing::warn!("waiting for '{}', which gives no answer", self.client.name);
            self.probe_later(ctx);
        }
        answers
    }

    /// Tells those who wait how it ended.
    pub(super) fn end_vigil(&mut self, answers: bool) {
        for waiting in self.vigil.waiting.drain(..) {
            // A cancelled goal does not wait.
            let _gone = waiting.send(answers);
        }
        self.vigil.n_probes = 0;
        self.vigil.is_given_up = !answers;
    }

    /// Asks once more in a while, if it is worth it.
    fn probe_later(&mut self, ctx: &mut Context<Self>) {
        self.vigil.n_probes += 1;
        let wish = self.vigil.not_before.saturating_sub(self.now());
        if self.vigil.n_probes > self.client.n_attempts.max(1) || wish > LONGEST_WISH {
            self.end_vigil(false);
            return;
        }
        let delay = backoff::delay(self.vigil.n_probes, random()).max(wish);
        let (client, cache) = (Arc::clone(&self.client), ctx.address());
        self.runtime.spawn(async move {
            tokio::time::sleep(delay).await;
            cache.do_send(ProbeAnswered(client.ask_info(Freshness::Fresh).await));
        });
    }
}

impl Handler<ProbeAnswered> for BinaryCache {
    type Result = ();

    fn handle(&mut self, ProbeAnswered(heard): ProbeAnswered, ctx: &mut Context<Self>) {
        if self.vigil.waiting.is_empty() {
            // Somebody else has heard from it meanwhile.
            return;
        }
        match heard {
            InfoHeard::Usable(_) => {
                self.breaker.probe_succeeded(self.now());
                self.client.is_left_alone.store(false, Ordering::Relaxed);
                self.end_vigil(true);
            }
            InfoHeard::NoAnswer(why) => {
                if let Some(wish) = why.retry_after {
                    self.vigil.put_off(self.now() + wish);
                }
                // That it is left alone is known, and for how long: these probes do not count.
                self.probe_later(ctx);
            }
            InfoHeard::Remembered(_) | InfoHeard::Unusable(_) => self.end_vigil(false),
        }
    }
}
