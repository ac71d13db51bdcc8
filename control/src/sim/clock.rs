//! Simulates a node's clocks: the boot-time clock follows the simulation's time, the wall clock may jump.

use crate::clock::Clock;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::Instant;

/// Time of the wall clock at the start of a simulation, in milliseconds since 1970.
const EPOCH_MS: i64 = 1_800_000_000_000;

/// Clock of a node. Clones are the same clock.
#[derive(Clone, Debug)]
pub(super) struct SimClock {
    start: Instant,
    /// Boot time at the start of the simulation.
    uptime: Duration,
    speed: f64,
    skew_ms: Arc<AtomicI64>,
}

impl SimClock {
    pub(super) fn new(uptime: Duration) -> Self {
        Self { start: Instant::now(), uptime, speed: 1.0, skew_ms: Arc::default() }
    }

    /// Returns the clock with a boot time that runs `speed` times as fast.
    pub(super) fn at_speed(&self, speed: f64) -> Self {
        Self { speed, ..self.clone() }
    }

    /// Sets the offset of the wall clock from the right time.
    pub(super) fn jump(&self, skew_ms: i64) {
        self.skew_ms.store(skew_ms, Relaxed);
    }
}

impl Clock for SimClock {
    fn boot_time(&self) -> Duration {
        self.uptime + self.start.elapsed().mul_f64(self.speed)
    }

    fn unix_ms(&self) -> u64 {
        let since = i64::try_from(self.start.elapsed().as_millis()).unwrap_or(i64::MAX);
        u64::try_from(EPOCH_MS + since + self.skew_ms.load(Relaxed)).unwrap_or(0)
    }
}
