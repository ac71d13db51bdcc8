//! Says until when a job may submit writes.
//!
//! The right to write a destination may expire, like a lease that is not renewed. So a gate holds a point in time,
//! which the owner of the right extends. The clock is `CLOCK_BOOTTIME`, which includes the time while the host is
//! suspended: a host that was suspended past the end of its right finds the gate closed when it resumes.
//!
//! A check costs one atomic load and one read of the clock, without a system call. It is made immediately before each
//! batch of operations is submitted: submitted operations cannot be recalled.

use nix::time::{ClockId, clock_gettime};
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};
use std::time::Duration;

/// A gate, shared by the owner of the right to write and the jobs behind it.
#[derive(Debug, Default)]
pub struct WriteGate(AtomicU64);

impl WriteGate {
    /// A gate that is closed.
    #[must_use]
    pub fn closed() -> Self {
        Self::default()
    }

    /// Opens it until that time, in `CLOCK_BOOTTIME` since boot; replaces what was set before, be it later or earlier.
    /// [`Duration::MAX`] holds it open for ever, a time in the past closes it.
    pub fn open_until(&self, boottime: Duration) {
        self.0.store(u64::try_from(boottime.as_nanos()).unwrap_or(u64::MAX), Release);
    }

    /// Closes it at once, until it is opened again.
    pub fn close(&self) {
        self.0.store(0, Release);
    }

    /// Returns whether writes may be submitted now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        match self.0.load(Acquire) {
            0 => false,
            until => Self::now() < Duration::from_nanos(until),
        }
    }

    /// Returns whether writes may be submitted at that time, of `CLOCK_BOOTTIME` or of a simulation's clock.
    #[must_use]
    pub fn is_open_at(&self, boottime: Duration) -> bool {
        boottime < Duration::from_nanos(self.0.load(Acquire))
    }

    /// The time that gates go by: since the host was started, sleep included.
    #[must_use]
    pub fn now() -> Duration {
        // Every Linux that has rings has this clock; without it no gate would ever open.
        clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::MAX, Duration::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_is_open_until_its_time_and_no_longer() {
        let gate = WriteGate::closed();
        assert!(!gate.is_open());
        gate.open_until(WriteGate::now() + Duration::from_secs(3600));
        assert!(gate.is_open());
        gate.open_until(WriteGate::now());
        assert!(!gate.is_open(), "its time has come");
        gate.open_until(Duration::from_secs(5));
        assert!(gate.is_open_at(Duration::from_millis(4999)) && !gate.is_open_at(Duration::from_secs(5)));
        gate.open_until(Duration::MAX);
        assert!(gate.is_open());
        gate.close();
        assert!(!gate.is_open());
    }

    #[test]
    fn the_clock_of_a_gate_advances() {
        let before = WriteGate::now();
        while WriteGate::now() == before {}
        assert!(WriteGate::now() > before && before > Duration::ZERO);
    }
}
