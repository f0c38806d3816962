//! When to ask a server again, and when it is too slow. Time and chance are arguments.

use std::time::Duration;

use reqwest::header::{DATE, HeaderMap, HeaderName, RETRY_AFTER};
use store_model::backoff;

use super::HttpError;

/// How long one file is waited for in all, between attempts, because a server said so. One that wants
/// more is better left alone for that long than waited for.
const MAX_WAIT: Duration = Duration::from_mins(1);

/// As many bytes as have to come after a failure for it to be forgotten: a large file on a bad line
/// arrives, but a server that gives a byte and hangs up is not asked for ever.
const FORGIVING_BYTES: u64 = 1 << 20;

/// How often in a row a host may refuse or break connections before it counts as down: with the waits
/// in between that is a second, or two after a transfer broke off.
const MAX_REFUSALS: usize = 3;

/// How often a server was asked for a file.
#[derive(Debug)]
pub(super) struct Attempts {
    n_max: usize,
    n_failed: usize,
    n_refused: usize,
    waited: Duration,
    n_bytes: u64,
    has_begun: bool,
}

impl Attempts {
    /// Begins; `n_max` of 0 asks once too.
    pub(super) fn new(n_max: usize) -> Self {
        Self {
            n_max,
            n_failed: 0,
            n_refused: 0,
            waited: Duration::ZERO,
            n_bytes: 0,
            has_begun: false,
        }
    }

    /// Hears that so many bytes came.
    pub(super) fn progressed(&mut self, n_bytes: usize) {
        self.has_begun = true;
        self.n_bytes = self.n_bytes.saturating_add(n_bytes as u64);
        if self.n_bytes >= FORGIVING_BYTES {
            self.n_failed = 0;
            self.waited = Duration::ZERO;
        }
    }

    /// Returns how long to wait before the next attempt; `None` if there is to be none.
    pub(super) fn wait_after(&mut self, error: &HttpError, random: u64) -> Option<Duration> {
        self.n_failed += 1;
        self.n_bytes = 0;
        self.n_refused = if let HttpError::Connect(_) = error {
            self.n_refused + 1
        } else {
            0
        };
        if self.n_failed >= self.n_max || !error.is_passing() || self.is_dead(error) {
            return None;
        }
        let delay = backoff::delay(self.n_failed, random);
        let delay = error.retry_after().map_or(delay, |after| after.max(delay));
        self.waited = self.waited.saturating_add(delay);
        (self.waited <= MAX_WAIT).then_some(delay)
    }

    /// Returns whether asking again would cost more than it may bring.
    fn is_dead(&self, error: &HttpError) -> bool {
        let timed_out = matches!(
            error,
            HttpError::ConnectTimedOut { .. } | HttpError::Stalled { .. }
        );
        // Whoever does not answer at all has cost a whole time-out already.
        (timed_out && !self.has_begun) || self.n_refused >= MAX_REFUSALS
    }
}

/// Finds out whether a server keeps sending, as Nix does: silence for a whole while is a stall, and so
/// is less than a byte for each second of it.
#[derive(Debug)]
pub(super) struct Pace {
    limit: Option<Duration>,
    waited: Duration,
    n_bytes: u64,
}

impl Pace {
    /// Begins; without a limit nothing is too slow.
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self {
            limit,
            waited: Duration::ZERO,
            n_bytes: 0,
        }
    }

    /// Hears how long was waited for how many bytes, which is less than the limit.
    ///
    /// # Errors
    /// It was too slow.
    pub(super) fn received(&mut self, waited: Duration, n_bytes: usize) -> Result<(), HttpError> {
        let Some(limit) = self.limit else {
            return Ok(());
        };
        self.waited = self.waited.saturating_add(waited);
        self.n_bytes = self.n_bytes.saturating_add(n_bytes as u64);
        if self.waited < limit {
            return Ok(());
        }
        if self.n_bytes < self.waited.as_secs() {
            return Err(HttpError::Stalled { limit });
        }
        *self = Self::new(self.limit);
        Ok(())
    }
}

/// Reads when a server wants to be asked again: after seconds, or at a time by its own clock.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name: HeaderName| headers.get(name)?.to_str().ok().map(str::trim);
    let after = text(RETRY_AFTER)?;
    if let Ok(seconds) = after.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let seconds = seconds_of_date(after)?.checked_sub(seconds_of_date(text(DATE)?)?)?;
    Some(Duration::from_secs(seconds))
}

/// Reads a date like `Sun, 06 Nov 1994 08:49:37 GMT`; returns the seconds since 1970.
fn seconds_of_date(text: &str) -> Option<u64> {
    const MONTHS: &str = "JanFebMarAprMayJunJulAugSepOctNovDec";
    let (_, date) = text.split_once(", ")?;
    let words: Vec<&str> = date.split(' ').collect();
    let [day, month, year, time, "GMT"] = words.as_slice() else {
        return None;
    };
    let number = |text: &str| text.parse::<u64>().ok();
    let month = MONTHS
        .find(month)
        .filter(|at| at % 3 == 0 && month.len() == 3)? as u64
        / 3
        + 1;
    let (day, year) = (number(day)?, number(year)?);
    let mut clock = time.splitn(3, ':').map(number);
    let [hours, minutes, seconds] = [clock.next()??, clock.next()??, clock.next()??];
    let is_sane = (1970..10_000).contains(&year)
        && (1..=31).contains(&day)
        && hours < 24
        && minutes < 60
        && seconds <= 60;
    if !is_sane {
        return None;
    }
    // Years that begin in March have their odd day at the end.
    let (year, month) = if month < 3 {
        (year - 1, month + 9)
    } else {
        (year, month - 3)
    };
    let days = year * 365 + year / 4 - year / 100 + year / 400 + (month * 153 + 2) / 5 + day - 1;
    // So many days lie between March of the year 0 and 1970.
    let days = days.checked_sub(719_468)?;
    Some(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::super::error::Reason;
    use super::*;

    fn busy(retry_after: Option<u64>) -> HttpError {
        HttpError::Status {
            status: 503,
            reason: None,
            retry_after: retry_after.map(Duration::from_secs),
        }
    }

    #[test]
    fn a_server_is_asked_so_often_and_no_more() {
        let mut attempts = Attempts::new(3);
        let first = attempts.wait_after(&busy(None), 0).unwrap();
        let second = attempts.wait_after(&busy(None), 0).unwrap();
        assert!(first < second, "{first:?} {second:?}");
        assert_eq!(attempts.wait_after(&busy(None), 0), None);
        assert_eq!(Attempts::new(0).wait_after(&busy(None), 0), None);
        let missing = HttpError::Missing { status: 404 };
        assert_eq!(Attempts::new(3).wait_after(&missing, 0), None);
    }

    #[test]
    fn a_server_says_when_to_come_back_but_not_for_ever() {
        let mut attempts = Attempts::new(9);
        let wait = Duration::from_secs(25);
        assert_eq!(attempts.wait_after(&busy(Some(25)), 0), Some(wait));
        assert_eq!(attempts.wait_after(&busy(Some(25)), 0), Some(wait));
        assert_eq!(attempts.wait_after(&busy(Some(25)), 0), None);
        assert_eq!(Attempts::new(9).wait_after(&busy(Some(3600)), 0), None);
        // At once is too soon for those who all ask.
        assert!(Attempts::new(9).wait_after(&busy(Some(0)), 0) > Some(Duration::ZERO));
    }

    #[test]
    fn a_host_that_does_not_answer_costs_one_time_out() {
        let limit = Duration::from_secs(5);
        for dead in [
            HttpError::ConnectTimedOut { limit },
            HttpError::Stalled { limit },
        ] {
            assert_eq!(Attempts::new(5).wait_after(&dead, 0), None);
            // One that went away in the midst of a file may come back.
            let mut attempts = Attempts::new(5);
            attempts.progressed(1);
            assert!(attempts.wait_after(&dead, 0).is_some());
        }
    }

    #[test]
    fn a_host_that_refuses_connections_is_down_after_a_second() {
        let refused = HttpError::Connect(Reason::new("refused"));
        let mut attempts = Attempts::new(9);
        attempts.progressed(1);
        let waits = std::iter::from_fn(|| attempts.wait_after(&refused, u64::MAX));
        assert!(waits.sum::<Duration>() < Duration::from_millis(1200));
        // Refusals that something else comes between are counted anew.
        let mut attempts = Attempts::new(9);
        for error in [&refused, &refused, &busy(None), &refused, &refused] {
            assert!(attempts.wait_after(error, 0).is_some());
        }
    }

    #[test]
    fn only_a_megabyte_makes_a_failure_forgotten() {
        let mut attempts = Attempts::new(2);
        assert!(attempts.wait_after(&busy(None), 0).is_some());
        attempts.progressed(1 << 19);
        attempts.progressed(1 << 19);
        assert!(attempts.wait_after(&busy(None), 0).is_some());
        attempts.progressed(1);
        assert!(attempts.wait_after(&busy(None), 0).is_none());
    }

    #[test]
    fn a_byte_now_and_then_is_a_stall() {
        let limit = Some(Duration::from_mins(5));
        let mut drip = Pace::new(limit);
        let wait = Duration::from_secs(10);
        let n_good = (0..100)
            .take_while(|_| drip.received(wait, 1).is_ok())
            .count();
        assert_eq!(n_good, 29);
        let mut slow = Pace::new(limit);
        assert!((0..100).all(|_| slow.received(wait, 10).is_ok()));
        let mut unlimited = Pace::new(None);
        assert!(unlimited.received(Duration::from_hours(9), 1).is_ok());
    }

    #[test]
    fn a_time_to_come_back_is_read_in_seconds_or_by_the_servers_clock() {
        let date = "Sun, 06 Nov 1994 08:49:37 GMT";
        assert_eq!(seconds_of_date(date), Some(784_111_777));
        assert_eq!(seconds_of_date("Thu, 01 Jan 1970 00:00:00 GMT"), Some(0));
        assert_eq!(
            seconds_of_date("Thu, 29 Feb 2024 23:59:59 GMT"),
            Some(1_709_251_199)
        );
        let read = |after: &'static str, date: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, after.parse().unwrap());
            if let Some(date) = date {
                headers.insert(DATE, date.parse().unwrap());
            }
            retry_after(&headers).map(|wait| wait.as_secs())
        };
        assert_eq!(read("120", None), Some(120));
        let later = "Sun, 06 Nov 1994 08:50:07 GMT";
        assert_eq!(read(later, Some(date)), Some(30));
        assert_eq!(read(date, Some(later)), None);
        assert_eq!(read(later, None), None);
        for nonsense in [
            "soon",
            "-1",
            "Sun, 06 Xyz 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 25:00:00 GMT",
            "Sun, 06 Nov 0000 08:49:37 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
            "Sun, 6",
        ] {
            assert_eq!(read(nonsense, Some(date)), None, "{nonsense}");
        }
    }
}
