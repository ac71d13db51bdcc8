//! Provides the two clocks of the task center behind one trait, so that a simulation can replace both.
//!
//! Leases and delays use the boot-time clock, which counts the time that a machine is suspended and never jumps. The
//! wall clock only labels records for people.

use std::time::Duration;

/// Source of time.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// Returns the time since the node was booted, time asleep included.
    fn boot_time(&self) -> Duration;
    /// Returns milliseconds since 1970-01-01 UTC. May jump.
    fn unix_ms(&self) -> u64;
}

/// Offset of a node's wall clock from its peers' clocks: as the leader measured it, corrected by changes of the clock
/// since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffset {
    told_ms: i64,
    /// Wall clock minus boot-time clock at the measurement: changes only when the wall clock is set.
    epoch_ms: i64,
}

impl ClockOffset {
    /// Creates an offset: the clock is ahead by `told_ms` now.
    #[must_use]
    pub fn told(told_ms: i64, clock: &dyn Clock) -> Self {
        Self { told_ms, epoch_ms: epoch_ms(clock) }
    }

    /// Returns by how many milliseconds the clock is ahead.
    #[must_use]
    pub fn ms(&self, clock: &dyn Clock) -> i64 {
        self.told_ms.saturating_add(epoch_ms(clock).saturating_sub(self.epoch_ms))
    }
}

fn epoch_ms(clock: &dyn Clock) -> i64 {
    let boot_ms = i64::try_from(clock.boot_time().as_millis()).unwrap_or(i64::MAX);
    i64::try_from(clock.unix_ms()).unwrap_or(i64::MAX).saturating_sub(boot_ms)
}

/// The clocks of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct HostClock;

impl Clock for HostClock {
    fn boot_time(&self) -> Duration {
        use nix::time::{ClockId, clock_gettime};
        clock_gettime(ClockId::CLOCK_BOOTTIME).expect("Linux has had this clock since 2.6.39").into()
    }

    fn unix_ms(&self) -> u64 {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Test clock that follows tokio's time.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct TestClock(tokio::time::Instant, std::sync::atomic::AtomicU64);

#[cfg(test)]
impl TestClock {
    /// Returns the clock of a node that has been up for a while.
    pub(crate) fn start() -> Self {
        Self(tokio::time::Instant::now(), std::sync::atomic::AtomicU64::new(0))
    }

    /// Moves the wall clock ahead by `ahead_ms` from now on.
    pub(crate) fn jump(&self, ahead_ms: u64) {
        self.1.store(ahead_ms, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(test)]
impl Clock for TestClock {
    fn boot_time(&self) -> Duration {
        Duration::from_secs(1000) + self.0.elapsed()
    }

    fn unix_ms(&self) -> u64 {
        let ahead_ms = self.1.load(std::sync::atomic::Ordering::Relaxed);
        1_700_000_000_000 + ahead_ms + u64::try_from(self.0.elapsed().as_millis()).expect("tests are short")
    }
}
