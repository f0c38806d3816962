//! In which order caches are believed, and when one is left alone: pure.
//!
//! ```text
//!            no answer, while nothing else came either
//!   asked ───────────────────────────────────────────────────► left alone ◄──────────┐
//!     ▲                                                            │ its time is over │ it fails
//!     └──────────────── the probe succeeds ──── being probed ◄─────┘                  │
//!                                                     └─────────────────────────────────┘
//! ```
//!
//! No question waits for a probe: while it is out the cache still counts as not having anything. A
//! build that does without a cache for some seconds loses what the cache could have saved it; one that
//! waits for a dead cache at every path loses without end.

use std::time::Duration;

use store_model::narinfo::CacheInfo;

/// How long a cache is left alone at first.
const FIRST_PAUSE: Duration = Duration::from_secs(10);

/// How long it is left alone at most, also if it asks for more itself (`Retry-After`).
const LONGEST_PAUSE: Duration = Duration::from_mins(10);

/// After how many offers that were not kept, or answers that make no sense, a cache is left alone.
const MAX_BAD_OFFERS: u32 = 5;

/// The place of a cache among all, the smaller the better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    priority: u32,
    position: usize,
}

impl Rank {
    /// Returns the rank of the cache at `position` in the settings; what the user says counts for
    /// more than what the cache says.
    pub(crate) fn new(position: usize, by_user: Option<u32>, by_cache: Option<u32>) -> Self {
        Self {
            priority: by_user.or(by_cache).unwrap_or(CacheInfo::DEFAULT_PRIORITY),
            position,
        }
    }
}

/// Whether a cache may be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leave {
    /// It may.
    Ask,
    /// It may not.
    Skip,
    /// It may not, but whoever is told this must find out whether it answers again, and report that.
    Probe,
}

/// How a cache failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It could not be reached, or did not answer in time, or said that it cannot.
    NoAnswer {
        /// When it was asked.
        asked_at: Duration,
        /// How long it wants to be left alone.
        retry_after: Option<Duration>,
    },
    /// What it offered or answered was not what it should be.
    BadOffer,
}

/// What is to be done about a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The cache is otherwise well: it may be asked again.
    Tolerated,
    /// It is left alone from now on, for this long; to be told.
    LeftAlone(Duration),
    /// It is left alone already, or still; that was told.
    StillLeftAlone,
}

/// The health of one cache. All times are since some fixed moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Breaker {
    state: State,
    /// How often it was left alone since it was last well.
    n_pauses: u32,
    n_bad_offers: u32,
    last_success: Option<Duration>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    #[default]
    Asked,
    LeftAlone {
        until: Duration,
    },
    Probed,
}

impl Breaker {
    /// Returns whether the cache may be asked now.
    pub(crate) fn allows(&mut self, now: Duration) -> Leave {
        match self.state {
            State::Asked => Leave::Ask,
            State::LeftAlone { until } if now >= until => {
                self.state = State::Probed;
                Leave::Probe
            }
            State::LeftAlone { .. } | State::Probed => Leave::Skip,
        }
    }

    /// Returns whether the cache is left alone.
    pub(crate) fn is_open(&self) -> bool {
        self.state != State::Asked
    }

    /// Takes note of an answer, whatever it said, to a question that was no probe.
    pub(crate) fn succeeded(&mut self, now: Duration) {
        self.last_success = Some(now);
        if self.state == State::Asked {
            self.n_pauses = 0;
        }
    }

    /// Takes note of an answer to a probe. That the cache says something of itself does not make it
    /// well, so its next pause would still be a longer one.
    pub(crate) fn probe_succeeded(&mut self, now: Duration) {
        self.last_success = Some(now);
        self.n_bad_offers = 0;
        self.state = State::Asked;
    }

    /// Takes note of a failure. `jitter`, from 0 to 1, spreads the probes of many processes.
    pub(crate) fn failed(&mut self, failure: Failure, now: Duration, jitter: f64) -> Verdict {
        let asked_for = match failure {
            // Either one answer among many that come is missing, or nothing comes at all.
            Failure::NoAnswer { asked_at, .. }
                if self.state == State::Asked && self.last_success > Some(asked_at) =>
            {
                return Verdict::Tolerated;
            }
            Failure::BadOffer => {
                self.n_bad_offers += 1;
                if self.n_bad_offers < MAX_BAD_OFFERS {
                    return Verdict::Tolerated;
                }
                None
            }
            Failure::NoAnswer { retry_after, .. } => retry_after,
        };
        if matches!(self.state, State::LeftAlone { .. }) {
            return Verdict::StillLeftAlone;
        }
        let was_told = self.n_pauses > 0;
        let doubled = FIRST_PAUSE.saturating_mul(1 << self.n_pauses.min(10));
        let pause = doubled
            .mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 4.0)
            .max(asked_for.unwrap_or_default())
            .min(LONGEST_PAUSE);
        self.n_pauses = self.n_pauses.saturating_add(1);
        self.state = State::LeftAlone { until: now + pause };
        if was_told {
            Verdict::StillLeftAlone
        } else {
            Verdict::LeftAlone(pause)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asked at some time that is not before any success.
    const NO_ANSWER: Failure = Failure::NoAnswer {
        asked_at: Duration::MAX,
        retry_after: None,
    };

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn the_user_orders_caches_then_they_themselves_then_the_list() {
        let mut ranks = [
            ("fourth", Rank::new(0, None, None)),
            ("third", Rank::new(1, None, Some(41))),
            ("first", Rank::new(2, Some(1), Some(99))),
            ("fifth", Rank::new(3, None, Some(50))),
            ("second", Rank::new(4, None, Some(40))),
            ("last", Rank::new(5, Some(60), Some(1))),
        ];
        ranks.sort_by_key(|(_, rank)| *rank);
        assert_eq!(
            ranks.map(|(name, _)| name),
            ["first", "second", "third", "fourth", "fifth", "last"]
        );
    }

    #[test]
    fn a_cache_that_does_not_answer_is_left_alone_and_probed_once() {
        let mut breaker = Breaker::default();
        assert_eq!(breaker.allows(seconds(0)), Leave::Ask);
        assert_eq!(
            breaker.failed(NO_ANSWER, seconds(1), 0.0),
            Verdict::LeftAlone(seconds(10))
        );
        // Those who had asked already fail too, which is neither told nor counted.
        assert_eq!(
            breaker.failed(NO_ANSWER, seconds(2), 0.0),
            Verdict::StillLeftAlone
        );
        assert_eq!(breaker.allows(seconds(10)), Leave::Skip);
        assert_eq!(breaker.allows(seconds(11)), Leave::Probe);
        assert_eq!(breaker.allows(seconds(12)), Leave::Skip);
        breaker.probe_succeeded(seconds(13));
        assert_eq!(breaker.allows(seconds(13)), Leave::Ask);
    }

    #[test]
    fn pauses_grow_until_a_question_is_answered_and_are_told_once() {
        let mut breaker = Breaker::default();
        let mut now = seconds(0);
        let mut pauses = Vec::new();
        for turn in 0..9 {
            let verdict = breaker.failed(NO_ANSWER, now, 0.0);
            assert_eq!(verdict == Verdict::LeftAlone(seconds(10)), turn == 0);
            let State::LeftAlone { until } = breaker.state else {
                panic!("it is asked");
            };
            pauses.push(until.as_secs() - now.as_secs());
            now = until;
            assert_eq!(breaker.allows(now), Leave::Probe);
            if turn == 3 {
                breaker.probe_succeeded(now);
            }
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
        breaker.probe_succeeded(now);
        breaker.succeeded(now);
        assert_eq!(
            breaker.failed(NO_ANSWER, now, 1.0),
            Verdict::LeftAlone(Duration::from_millis(12_500))
        );
    }

    #[test]
    fn what_a_server_asks_for_is_honoured_up_to_a_bound() {
        for (asked_for, pause) in [(1, 10), (77, 77), (3600, 600)] {
            let retry_after = Some(seconds(asked_for));
            let failure = Failure::NoAnswer {
                asked_at: seconds(0),
                retry_after,
            };
            assert_eq!(
                Breaker::default().failed(failure, seconds(0), 0.0),
                Verdict::LeftAlone(seconds(pause))
            );
        }
    }

    #[test]
    fn one_answer_that_is_missing_among_many_does_not_cost_the_cache() {
        let mut breaker = Breaker::default();
        breaker.succeeded(seconds(3));
        let asked_at = |n| Failure::NoAnswer {
            asked_at: seconds(n),
            retry_after: None,
        };
        assert_eq!(
            breaker.failed(asked_at(2), seconds(7), 0.0),
            Verdict::Tolerated
        );
        assert!(!breaker.is_open());
        assert_eq!(
            breaker.failed(asked_at(4), seconds(9), 0.0),
            Verdict::LeftAlone(seconds(10))
        );
        assert!(breaker.is_open());
    }

    #[test]
    fn a_cache_that_answers_but_does_not_keep_its_word_is_left_alone() {
        let mut breaker = Breaker::default();
        for _ in 1..MAX_BAD_OFFERS {
            assert_eq!(
                breaker.failed(Failure::BadOffer, seconds(1), 0.0),
                Verdict::Tolerated
            );
            breaker.succeeded(seconds(1));
        }
        assert_eq!(
            breaker.failed(Failure::BadOffer, seconds(1), 0.0),
            Verdict::LeftAlone(seconds(10))
        );
    }

    #[test]
    fn a_probe_that_fails_leaves_the_cache_alone_though_an_earlier_answer_came_late() {
        let mut breaker = Breaker::default();
        breaker.failed(NO_ANSWER, seconds(1), 0.0);
        assert_eq!(breaker.allows(seconds(11)), Leave::Probe);
        breaker.succeeded(seconds(12));
        let probe = Failure::NoAnswer {
            asked_at: seconds(11),
            retry_after: None,
        };
        breaker.failed(probe, seconds(16), 0.0);
        assert_eq!(breaker.allows(seconds(17)), Leave::Skip);
        assert_eq!(breaker.allows(seconds(36)), Leave::Probe);
    }

    proptest! {
        #[test]
        fn whatever_happens_a_cache_is_asked_again(
            steps in proptest::collection::vec((0..6_u8, 0..400_u64, 0.0..1.0_f64), 1..80)
        ) {
            let mut breaker = Breaker::default();
            let mut now = seconds(0);
            // When a probe was sent whose answer is still to come.
            let mut probe = None;
            for (kind, wait, jitter) in steps {
                now += seconds(wait);
                match (kind, probe) {
                    (0, _) => match breaker.allows(now) {
                        Leave::Ask => prop_assert!(!breaker.is_open()),
                        Leave::Skip => prop_assert!(breaker.is_open()),
                        Leave::Probe => probe = Some(now),
                    },
                    (1, _) => breaker.succeeded(now),
                    (2, Some(_)) => {
                        breaker.probe_succeeded(now);
                        probe = None;
                        prop_assert!(!breaker.is_open());
                    }
                    (3, Some(asked_at)) => {
                        let failure = Failure::NoAnswer { asked_at, retry_after: None };
                        breaker.failed(failure, now, jitter);
                        probe = None;
                    }
                    (4, _) => {
                        breaker.failed(Failure::BadOffer, now, jitter);
                    }
                    _ => {
                        let asked_at = now.saturating_sub(seconds(wait / 2));
                        let failure = Failure::NoAnswer { asked_at, retry_after: None };
                        breaker.failed(failure, now, jitter);
                    }
                }
                // However long it is left alone, some time somebody is told to probe it, or a probe
                // is out already.
                let mut later = breaker.clone();
                let leave = later.allows(now + LONGEST_PAUSE);
                prop_assert!(leave != Leave::Skip || probe.is_some());
            }
        }
    }
}
