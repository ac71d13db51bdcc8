//! Computes the waits before a runner is tried again.

use blockhaul_engine::backoff::ExponentialBackoff;
use std::time::Duration;

const WAITS: ExponentialBackoff = ExponentialBackoff { first: Duration::from_secs(1), max: Duration::from_secs(30) };

/// Backoff of a runner.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// Boot time at which the backoff ends.
    pub(crate) until: Duration,
    failures: u32,
}

impl Backoff {
    /// Returns the next, longer backoff, which starts at `now`.
    pub(crate) fn again(self, now: Duration) -> Self {
        let failures = self.failures.saturating_add(1);
        Self { until: now + WAITS.wait(failures), failures }
    }
}
