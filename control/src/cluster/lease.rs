//! Computes from committed renewals how long a runner may submit writes to destinations that other nodes reach.
//!
//! A session expires by the servers' clocks. A runner without a connection has to stop writing before that, by its own
//! clock. The runner knows when it _sent_ a write that was committed: the service has heard from the runner at that
//! time or later.
//!
//! ```text
//!  sent            gate closes                 lease ends        earliest end of the session
//!   |----- writes may be submitted -----|-- drain ---|-- margin --|
//!   0                                  6.0          8.5         10.0     seconds, of a session of 10 s
//! ```
//! Between the first two, the answers to submitted writes come in. At the end of the lease every write that is still in
//! flight is cut off. The margin covers the servers' clock ticks and the delay with which they report to each other
//! that a session is alive.
//!
//! What always holds: `sent <= gate <= end < sent + session`, and neither `gate` nor `end` moves back while the lease
//! is held.

use std::time::Duration;

/// Time between two renewals, for a session of 10 s or more.
const RENEW_EVERY: Duration = Duration::from_millis(1500);
/// Time for submitted writes to complete, for a session of 10 s or more.
const DRAIN: Duration = Duration::from_millis(2500);
/// Time from the end of the lease to the earliest end of the session: one and a half ticks of the servers. Half a tick
/// was measured.
const MARGIN: Duration = Duration::from_millis(1500);
/// Session timeout that the times above are for. Shorter sessions get proportionate times.
const SESSION: Duration = Duration::from_secs(10);

/// Times of a lease, from the session's negotiated timeout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LeaseTiming {
    /// Time between two renewals.
    pub renew_every: Duration,
    /// Time after sending a renewal in which writes may be submitted.
    pub gate: Duration,
    /// Time after sending a renewal for which the lease is held.
    pub end: Duration,
}

impl From<Duration> for LeaseTiming {
    /// Returns the timing for a session with this timeout.
    fn from(session: Duration) -> Self {
        let share = |whole: Duration| match session < SESSION {
            true => whole * u32::try_from(session.as_millis()).unwrap_or(u32::MAX) / 10_000,
            false => whole,
        };
        let end = session.saturating_sub(share(MARGIN));
        Self { renew_every: share(RENEW_EVERY), gate: end.saturating_sub(share(DRAIN)), end }
    }
}

/// Lease, which only committed renewals extend. Times are of the boot-time clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    timing: LeaseTiming,
    sent: Option<Duration>,
}

impl Lease {
    /// Creates a lease that was never renewed.
    #[must_use]
    pub(crate) fn new(timing: LeaseTiming) -> Self {
        Self { timing, sent: None }
    }

    /// Extends the lease after the commit of a renewal that was sent at `sent`. Changes nothing if a renewal sent later
    /// was committed before.
    pub(crate) fn committed(&mut self, sent: Duration) {
        self.sent = self.sent.max(Some(sent));
    }

    /// Returns the time until which writes may be submitted; `None` before the first renewal.
    #[must_use]
    pub(crate) fn gate(&self) -> Option<Duration> {
        Some(self.sent?.saturating_add(self.timing.gate))
    }

    /// Returns the end of the lease; `None` before the first renewal.
    #[must_use]
    pub(crate) fn end(&self) -> Option<Duration> {
        Some(self.sent?.saturating_add(self.timing.end))
    }

    /// Tells whether writes may be submitted at `now`.
    #[must_use]
    pub(crate) fn is_open(&self, now: Duration) -> bool {
        self.gate().is_some_and(|gate| now < gate)
    }

    /// Returns the time left at `now`; zero before the first renewal and after the end.
    #[must_use]
    pub(crate) fn left(&self, now: Duration) -> Duration {
        self.end().map_or(Duration::ZERO, |end| end.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_session_of_ten_seconds_has_the_measured_timing() {
        let timing = LeaseTiming::from(Duration::from_secs(10));
        let expected = [1500, 6000, 8500].map(Duration::from_millis);
        assert_eq!([timing.renew_every, timing.gate, timing.end], expected);
        let timing = LeaseTiming::from(Duration::from_secs(20));
        assert_eq!((timing.gate, timing.end), (Duration::from_secs(16), Duration::from_millis(18_500)));
    }

    #[test]
    fn nothing_may_be_written_before_the_first_renewal() {
        let lease = Lease::new(LeaseTiming::from(Duration::from_secs(10)));
        assert!(!lease.is_open(Duration::ZERO));
        assert_eq!((lease.gate(), lease.end(), lease.left(Duration::ZERO)), (None, None, Duration::ZERO));
    }

    proptest! {
        #[test]
        fn the_gate_closes_in_time_for_the_drain_and_the_lease_ends_before_the_session(millis in 0_u64..100_000) {
            let session = Duration::from_millis(millis);
            let timing = LeaseTiming::from(session);
            prop_assert!(timing.gate <= timing.end && timing.end <= session);
            if millis >= 10_000 {
                prop_assert_eq!((timing.end - timing.gate, session - timing.end), (DRAIN, MARGIN));
            } else if millis >= 100 {
                let tolerance = Duration::from_micros(1);
                prop_assert!(session - timing.end + tolerance >= session * 3 / 20);
                prop_assert!(timing.end - timing.gate + tolerance >= session / 4);
            }
            prop_assert!(timing.renew_every * 4 <= timing.gate + Duration::from_micros(1), "four tries before the gate closes");
        }

        #[test]
        fn the_latest_renewal_counts_in_any_order_of_answers(
            sent in proptest::collection::vec(0_u64..1_000_000, 1..20),
            millis in 1000_u64..20_000,
            ahead in 0_u64..30_000,
        ) {
            let session = Duration::from_millis(millis);
            let mut lease = Lease::new(LeaseTiming::from(session));
            let mut before = (None, None);
            for &at in &sent {
                lease.committed(Duration::from_millis(at));
                prop_assert!(lease.gate() >= before.0 && lease.end() >= before.1, "neither moves back");
                before = (lease.gate(), lease.end());
            }
            let last = Duration::from_millis(*sent.iter().max().unwrap());
            let now = last + Duration::from_millis(ahead);
            prop_assert_eq!(lease.is_open(now), now - last < LeaseTiming::from(session).gate);
            prop_assert!(!lease.is_open(now) || lease.left(now) > Duration::ZERO);
            prop_assert!(lease.left(now) == Duration::ZERO || now < last + session);
        }
    }
}
