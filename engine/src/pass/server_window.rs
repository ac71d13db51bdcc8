//! Sizes the bytes in flight to and from servers: as much as keeps the path full, and no more.
//!
//! A server behind a long path needs many requests in flight. One on this host is served faster, and disturbed less, by
//! few, whose bytes are still in a cache when they are passed on. A path holds its rate times the latency of a block
//! without queueing, its _base_ (as in TCP Vegas). Twice that leaves room for jitter and lets the window find out
//! whether there is more. The base is the shortest time seen. As paths change, the base is discarded at intervals and
//! measured again with as little in flight as possible (as BBR does): with more, blocks queue, and a base that includes
//! queueing would let the window grow for ever. Does no I/O; updated once a tick.

use std::time::Duration;

/// Windows per path. Below one it would never be full, far above it everything only waits longer.
const GAIN: u64 = 2;
/// Initial window in floors: the first blocks do not queue, whatever the window.
const FLOORS_AT_FIRST: u64 = 4;
/// Ticks between two measurements of the base: ten seconds.
const PROBE_EVERY: u32 = 500;
/// Length of a probe in ticks: two per cent of a long path's rate for a moment, nothing on average.
const PROBE_TICKS: u32 = 2;

/// Base from which on a path is long: longer than the latency of a disk.
const LONG: Duration = Duration::from_millis(3);

/// The window of bytes in flight to servers.
#[derive(Debug)]
pub(crate) struct ServerWindow {
    floor: u64,
    bytes: u64,
    base: Option<Duration>,
    /// During a measurement of the base: the window to return to, and the shortest time so far.
    probe: Option<(u64, Option<Duration>)>,
    ticks: u32,
}

impl ServerWindow {
    /// Creates a window of at least `floor` bytes.
    pub(crate) fn new(floor: u64) -> Self {
        Self { floor, bytes: floor * FLOORS_AT_FIRST, base: None, probe: None, ticks: 0 }
    }

    /// Returns the window in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns whether a block takes so long without any queueing that the server is idle meanwhile: then more requests
    /// must be in flight than servers accept over one connection.
    pub(crate) fn is_long(&self) -> bool {
        self.base.is_some_and(|base| base >= LONG)
    }

    /// Updates the window: `moved` bytes were written in the last `elapsed`, and the quickest block took `quickest`.
    pub(crate) fn tick(&mut self, moved: u64, elapsed: Duration, quickest: Option<Duration>) {
        self.ticks += 1;
        let shorter = |one: Option<Duration>, other: Option<Duration>| [one, other].into_iter().flatten().min();
        if let Some((before, seen)) = self.probe {
            let seen = shorter(seen, quickest);
            self.probe = Some((before, seen));
            if self.ticks % PROBE_EVERY >= PROBE_TICKS {
                (self.bytes, self.probe) = (before, None);
                self.base = seen.or(self.base);
            }
            return;
        }
        self.base = shorter(self.base, quickest);
        if let Some(base) = self.base.filter(|_| moved > 0 && !elapsed.is_zero()) {
            let held = u128::from(moved) * base.as_nanos() / elapsed.as_nanos();
            let wanted = u64::try_from(held).unwrap_or(u64::MAX).saturating_mul(GAIN);
            // The window may double, but shrinks slowly, so that a moment with few answers does not reset it.
            self.bytes = wanted.clamp(self.bytes / 4 * 3, self.bytes.saturating_mul(2)).max(self.floor);
        }
        if self.ticks.is_multiple_of(PROBE_EVERY) {
            self.probe = Some((self.bytes, None));
            self.bytes = self.floor;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(20);
    const MIB: u64 = 1 << 20;

    /// A path that takes `latency` for a block and carries `rate` bytes a second at most.
    struct Path {
        latency: Duration,
        rate: u64,
    }

    impl Path {
        /// Bytes in a tick, and how long a block took. What is in flight beyond what the path holds waits.
        fn carry(&self, window: u64) -> (u64, Duration) {
            let carried = (window as f64 / self.latency.as_secs_f64()).min(self.rate as f64);
            let took = Duration::from_secs_f64(window as f64 / carried);
            ((carried * TICK.as_secs_f64()) as u64, took)
        }

        /// The windows of so many ticks.
        fn run(&self, sized: &mut ServerWindow, ticks: usize) -> Vec<u64> {
            let tick = |_| {
                let (moved, took) = self.carry(sized.bytes());
                sized.tick(moved, TICK, Some(took));
                sized.bytes()
            };
            (0..ticks).map(tick).collect()
        }
    }

    /// Measures the first block, which does not queue.
    fn begin(sized: &mut ServerWindow, path: &Path) {
        sized.tick(path.carry(sized.bytes()).0, TICK, Some(path.latency));
    }

    #[test]
    fn a_long_path_is_filled_within_a_few_ticks() {
        let path = Path { latency: Duration::from_millis(20), rate: 1 << 30 };
        let mut sized = ServerWindow::new(MIB);
        begin(&mut sized, &path);
        let window = *path.run(&mut sized, 6).last().unwrap();
        assert!((20 * MIB..=50 * MIB).contains(&window), "it holds 20.5 MiB, the window is {window}");
        assert!(sized.is_long());
    }

    #[test]
    fn a_short_path_stays_at_the_floor_and_never_runs_away() {
        let path = Path { latency: Duration::from_micros(100), rate: 2 << 30 };
        let mut sized = ServerWindow::new(MIB);
        begin(&mut sized, &path);
        assert_eq!(path.run(&mut sized, 100).last(), Some(&MIB));
        assert!(!sized.is_long());
        // Later bases contain the wait for the floor itself.
        assert!(path.run(&mut sized, 5000).iter().all(|&window| window <= 4 * MIB));
    }

    #[test]
    fn silence_holds_the_window() {
        let path = Path { latency: Duration::from_millis(20), rate: 1 << 30 };
        let mut sized = ServerWindow::new(MIB);
        let window = *path.run(&mut sized, 20).last().unwrap();
        sized.tick(0, TICK, None);
        assert_eq!(sized.bytes(), window);
    }

    #[test]
    fn a_change_of_the_path_is_detected() {
        let (long, short) = (
            Path { latency: Duration::from_millis(20), rate: 1 << 30 },
            Path { latency: Duration::from_micros(100), rate: 1 << 30 },
        );
        let mut sized = ServerWindow::new(MIB);
        begin(&mut sized, &short);
        assert_eq!(short.run(&mut sized, 100).last(), Some(&MIB));
        let found = long.run(&mut sized, 1000);
        assert!(*found.last().unwrap() >= 20 * MIB, "{found:?}");
        let found = short.run(&mut sized, 1000);
        assert!(*found.last().unwrap() <= 4 * MIB);
    }
}
