//! Computes the waits between retries: each is twice as long as the one before, up to a bound.

use std::time::Duration;

/// Waits that double with each failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExponentialBackoff {
    /// Wait after the first failure.
    pub first: Duration,
    /// Longest wait.
    pub max: Duration,
}

impl ExponentialBackoff {
    /// Returns the wait after so many failures in a row: zero after none.
    #[must_use]
    pub fn wait(self, failures: u32) -> Duration {
        match failures.checked_sub(1) {
            None => Duration::ZERO,
            Some(doublings) => self.first.saturating_mul(2_u32.saturating_pow(doublings)).min(self.max),
        }
    }

    /// Returns the same wait, plus or minus up to a quarter, so that many waiters do not retry at once. `random` is a
    /// number from 0 to 1.
    #[must_use]
    pub fn jittered(self, failures: u32, random: f64) -> Duration {
        self.wait(failures).mul_f64(0.75 + random.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: ExponentialBackoff =
        ExponentialBackoff { first: Duration::from_millis(100), max: Duration::from_secs(2) };

    #[test]
    fn waits_double_up_to_the_bound() {
        let waits = [0, 1, 2, 5, 6, u32::MAX].map(|failures| BACKOFF.wait(failures).as_millis());
        assert_eq!(waits, [0, 100, 200, 1600, 2000, 2000]);
    }

    #[test]
    fn jitter_moves_a_wait_by_a_quarter_at_most() {
        let waits = [0.0, 0.5, 1.0].map(|random| BACKOFF.jittered(2, random).as_millis());
        assert_eq!(waits, [150, 200, 250]);
        assert_eq!(BACKOFF.jittered(0, 1.0), Duration::ZERO);
    }
}
