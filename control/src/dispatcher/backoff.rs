//! Computes the waits before a runner is tried again.

use std::time::Duration;

/// Backoff of a runner, doubling from 1 s to 30 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backoff {
    /// Boot time at which the backoff ends.
    pub(crate) until: Duration,
    wait: Duration,
}

impl Backoff {
    /// Returns the next, longer backoff, which starts at `now`.
    pub(crate) fn again(self, now: Duration) -> Self {
        let wait = (self.wait * 2).clamp(Duration::from_secs(1), Duration::from_secs(30));
        Self { until: now + wait, wait }
    }
}
