//! How long to wait before a server is asked again.

use std::time::Duration;

/// How long is waited before the second request, as with Nix.
const FIRST_DELAY: Duration = Duration::from_millis(250);

/// Returns how long to wait after the attempt of this number, counted from 1. The random number keeps
/// those who failed together from coming back together.
#[must_use]
pub fn delay(n_attempts: usize, random: u64) -> Duration {
    let n_doublings = i32::try_from(n_attempts.saturating_sub(1)).unwrap_or(i32::MAX);
    // Ten doublings are four minutes; nobody waits for longer.
    let factor = (f64::from(n_doublings.min(10)) + jitter(random)).exp2();
    FIRST_DELAY.mul_f64(factor)
}

/// Returns a number from 0 to a half.
fn jitter(random: u64) -> f64 {
    f64::from(u32::try_from(random >> 32).unwrap_or(0)) / f64::from(u32::MAX) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_wait_is_about_twice_the_one_before() {
        assert_eq!(delay(1, 0), Duration::from_millis(250));
        assert_eq!(delay(3, 0), Duration::from_secs(1));
        let longest = delay(4, u64::MAX);
        assert!(longest > Duration::from_secs(2) && longest < Duration::from_secs(3));
        assert!(delay(usize::MAX, u64::MAX) < Duration::from_mins(7));
    }

    #[test]
    fn those_who_failed_together_come_back_up_to_half_a_doubling_apart() {
        assert!(jitter(0).abs() < f64::EPSILON);
        assert!((jitter(u64::MAX) - 0.5).abs() < f64::EPSILON);
        assert!(delay(2, 1 << 62) < delay(2, 1 << 63));
    }
}
