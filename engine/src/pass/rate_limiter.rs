//! Limits the rate of a job: a token bucket shared by all cores, without a lock.
//!
//! Kept as one number, the _theoretical arrival time_ (GCRA): when the bytes admitted so far would have arrived at
//! exactly the limit. A block is admitted while that is at most one burst ahead of now. So a limit holds over any
//! interval longer than the burst plus one block, and a change takes effect with the next block.

use crate::limits::BURST;
use crate::ring::Instant;
use std::sync::atomic::{AtomicU64, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use std::time::Duration;

/// A rate limit that may change or be absent.
#[derive(Debug)]
pub(crate) struct RateLimiter {
    /// Bytes per second; 0 is no limit.
    rate: AtomicU64,
    /// Theoretical arrival time in ns of the rings' clock.
    arrival: AtomicU64,
}

impl RateLimiter {
    pub(crate) fn new(bytes_per_second: Option<u64>) -> Self {
        Self { rate: AtomicU64::new(rate(bytes_per_second)), arrival: AtomicU64::new(0) }
    }

    /// Sets the limit in bytes per second; `None` removes it.
    pub(crate) fn set(&self, bytes_per_second: Option<u64>) {
        self.rate.store(rate(bytes_per_second), Relaxed);
        // Bytes that were admitted under the old limit must not delay the new one.
        self.arrival.store(0, Release);
    }

    /// Admits `bytes`, or returns how long to wait before the next attempt.
    pub(crate) fn take(&self, bytes: u64, now: Instant) -> Result<(), Duration> {
        self.take_at(self.rate.load(Relaxed), bytes, now)
    }

    /// Takes an admission of `bytes` back: they are not moved now.
    pub(crate) fn give_back(&self, bytes: u64) {
        let rate = self.rate.load(Relaxed);
        if rate > 0 {
            // If the rate has changed since, the time has been reset or is slightly off.
            let _ =
                self.arrival.fetch_update(AcqRel, Acquire, |arrival| Some(arrival.saturating_sub(cost(bytes, rate))));
        }
    }

    /// Admits `bytes` at a rate that was read before. If the rate has changed since, the bytes are free: at the old
    /// rate they might delay the new one for days.
    fn take_at(&self, rate: u64, bytes: u64, now: Instant) -> Result<(), Duration> {
        if rate == 0 {
            return Ok(());
        }
        let cost = cost(bytes, rate);
        let (now, burst) = (as_nanos(now), as_nanos(BURST));
        let take = |arrival: u64| (arrival <= now.saturating_add(burst)).then(|| arrival.max(now).saturating_add(cost));
        // Acquires what `set` has released: either `set` overwrites this arrival, or its rate is seen below.
        match self.arrival.fetch_update(AcqRel, Acquire, take) {
            Ok(_) => {
                if self.rate.load(Relaxed) != rate {
                    self.arrival.store(0, Relaxed);
                }
                Ok(())
            }
            Err(arrival) => Err(Duration::from_nanos(arrival - now - burst)),
        }
    }
}

/// Returns the time that `bytes` take at a rate, in ns.
fn cost(bytes: u64, rate: u64) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000_000 / u128::from(rate)).unwrap_or(u64::MAX)
}

/// Returns the stored form of a limit. A limit of 0 would admit nothing: it is stored as the least limit, not as none.
fn rate(bytes_per_second: Option<u64>) -> u64 {
    bytes_per_second.map_or(0, |rate| rate.max(1))
}

fn as_nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bytes admitted in `seconds` by a caller that always asks, in blocks of `block`.
    fn admitted(limiter: &RateLimiter, block: u64, from: Instant, seconds: u64) -> u64 {
        let (mut now, mut bytes) = (from, 0);
        while now < from + Duration::from_secs(seconds) {
            match limiter.take(block, now) {
                Ok(()) => bytes += block,
                Err(wait) => now += wait.max(Duration::from_nanos(1)),
            }
        }
        bytes
    }

    #[test]
    fn the_limit_holds_over_seconds_within_three_percent() {
        for (rate, block) in [(200 << 20, 1 << 20), (10 << 20, 256 << 10), (1 << 30, 4096)] {
            let bytes = admitted(&RateLimiter::new(Some(rate)), block, Duration::from_secs(5), 4);
            let ideal = rate * 4;
            assert!(bytes.abs_diff(ideal) <= ideal * 3 / 100 + block, "{bytes} of {ideal}");
        }
    }

    #[test]
    fn what_is_given_back_delays_nothing() {
        let limiter = RateLimiter::new(Some(1 << 20));
        let now = Duration::from_secs(5);
        assert!(limiter.take(1 << 20, now).is_ok());
        assert!(limiter.take(1 << 20, now).is_err());
        limiter.give_back(1 << 20);
        assert!(limiter.take(1 << 20, now).is_ok());
    }

    #[test]
    fn a_limit_of_0_is_not_unlimited() {
        let limiter = RateLimiter::new(Some(0));
        assert!(limiter.take(1 << 20, Duration::ZERO).is_ok());
        assert!(limiter.take(1 << 20, Duration::from_secs(1)).is_err());
    }

    #[test]
    fn a_change_takes_effect_at_once_and_none_is_unlimited() {
        let limiter = RateLimiter::new(Some(1));
        assert!(limiter.take(1 << 20, Duration::ZERO).is_ok(), "the first block never waits");
        assert!(limiter.take(1 << 20, Duration::from_secs(1)).is_err());
        limiter.set(Some(1 << 30));
        assert!(limiter.take(1 << 20, Duration::from_secs(1)).is_ok());
        limiter.set(None);
        for _ in 0..1000 {
            assert!(limiter.take(1 << 30, Duration::from_secs(1)).is_ok());
        }
    }

    /// A worker reads the rate, the rate changes, and only then the worker takes its block.
    #[test]
    fn a_block_that_is_being_taken_does_not_delay_the_new_limit() {
        for new in [Some(1 << 30), Some(2), None] {
            let limiter = RateLimiter::new(Some(1));
            let seen = limiter.rate.load(Relaxed);
            limiter.set(new);
            assert!(limiter.take_at(seen, 1 << 20, Duration::ZERO).is_ok());
            assert!(limiter.take(1, Duration::ZERO).is_ok(), "{new:?}: the block at the old rate delays it");
        }
    }
}
