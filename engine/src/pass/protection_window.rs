//! Sizes the bytes in flight so that other readers of the same devices keep their latency.
//!
//! A pure controller in the manner of LEDBAT and Kyber. It compares the p90 of small probe reads with a target. It
//! grows the window by at most two blocks a tick, in proportion to the room left, doubles it while the device is idle
//! (slow start), and cuts it at once on a breach, in proportion to the breach but by no more than 30 %. It steers for
//! 90 % of the target, as the samples scatter. Many devices answer at once up to their limit and then queue for
//! milliseconds, so the controller remembers where the last breach was and comes near it ten times more slowly. Without
//! samples it holds. The floor keeps the copy going however busy the device is.

use std::time::Duration;

/// Set point, as a part of the target.
const SETPOINT: f64 = 0.9;
/// The largest cut on a breach.
const CUT: f64 = 0.7;
/// Blocks added a tick where there is all the room.
const GAIN: f64 = 2.0;
/// Blocks added a tick near the window of the last breach.
const GAIN_NEAR: f64 = 0.2;
/// Start of the near range, as a part of that window.
const NEAR: f64 = 0.8;
/// Slow start ends when the latency reaches this part of the target.
const SLOW_START_UNTIL: f64 = 0.5;

/// Bounds the bytes in flight of one job.
#[derive(Debug)]
pub(crate) struct ProtectionWindow {
    target: Duration,
    block: f64,
    floor: f64,
    cap: f64,
    window: f64,
    slow_start: bool,
    /// The window of the last breach.
    ceiling: f64,
}

impl ProtectionWindow {
    /// Creates a window that keeps the p90 under `target` with blocks of `block_bytes`, and never exceeds `cap_bytes`.
    pub(crate) fn new(target: Duration, block_bytes: u32, cap_bytes: u64) -> Self {
        let block = f64::from(block_bytes);
        #[allow(clippy::cast_precision_loss, reason = "windows are far below 2^52 bytes")]
        let cap = (cap_bytes as f64).max(block);
        Self {
            target,
            block,
            floor: block,
            cap,
            window: (2.0 * block).min(cap),
            slow_start: true,
            ceiling: f64::INFINITY,
        }
    }

    /// Returns the window in bytes: at least one block.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between one block and the cap")]
    pub(crate) fn bytes(&self) -> u64 {
        self.window as u64
    }

    /// Takes the p90 of the probes since the last tick; `None` if there were none.
    pub(crate) fn tick(&mut self, p90: Option<Duration>) {
        let Some(p90) = p90 else { return };
        let load = p90.as_secs_f64() / (SETPOINT * self.target.as_secs_f64()).max(1e-9);
        self.slow_start &= load < SLOW_START_UNTIL;
        let gain = if self.window < NEAR * self.ceiling { GAIN } else { GAIN_NEAR };
        self.window = if load > 1.0 {
            self.ceiling = self.window;
            self.window * (1.0 / load).max(CUT)
        } else if self.slow_start {
            self.window * 2.0
        } else {
            self.window + gain * self.block * (1.0 - load)
        }
        .clamp(self.floor, self.cap);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BLOCK: u32 = 256 << 10;
    const TARGET: Duration = Duration::from_micros(400);

    /// A device whose probe latency grows with the bytes in flight.
    fn device(window: u64) -> Duration {
        Duration::from_micros(100 + window * 60 / u64::from(BLOCK))
    }

    #[test]
    fn the_window_settles_just_below_the_target() {
        let mut controller = ProtectionWindow::new(TARGET, BLOCK, 64 << 20);
        let mut breaches = 0;
        for tick in 0..500 {
            let p90 = device(controller.bytes());
            controller.tick(Some(p90));
            breaches += u32::from(tick > 50 && p90 > TARGET);
        }
        assert!(device(controller.bytes()) > TARGET / 2, "the window is used");
        assert!(breaches <= 45, "{breaches} of 450 ticks were over the target");
    }

    #[test]
    fn an_idle_device_gets_the_full_window_within_ten_ticks() {
        let mut controller = ProtectionWindow::new(TARGET, BLOCK, 16 << 20);
        (0..10).for_each(|_| controller.tick(Some(Duration::from_micros(90))));
        assert_eq!(controller.bytes(), 16 << 20);
    }

    proptest! {
        #[test]
        fn the_window_stays_between_one_block_and_the_cap(
            latencies in prop::collection::vec(prop::option::of(0_u64..10_000_000), 0..200),
            cap in 0_u64..(64 << 20),
        ) {
            let mut controller = ProtectionWindow::new(TARGET, BLOCK, cap);
            for latency in latencies {
                let before = controller.bytes();
                controller.tick(latency.map(Duration::from_micros));
                prop_assert!(controller.bytes() >= u64::from(BLOCK) && controller.bytes() <= cap.max(u64::from(BLOCK)));
                prop_assert!(latency.is_some() || controller.bytes() == before);
            }
        }
    }
}
