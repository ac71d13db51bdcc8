//! Whether the loops of a process still go round: what a watchdog is told.
//!
//! A timer of its own would say that timers work. Here each loop that matters counts its rounds, and a sign of life is
//! only given when all of them have gone round since the last one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::sleep;

/// Between two rounds of a loop that has nothing to do: a part of any watchdog's patience.
const ROUND: Duration = Duration::from_secs(1);

/// Counts the rounds of one loop. Clones count for the same one.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// The loop has gone round.
    pub fn beat(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Beats for a loop that has nothing to do, while `is_idle`: it shows that the future which it is a part of is polled.
    pub(crate) async fn idle(&self, is_idle: impl Fn() -> bool) {
        loop {
            if is_idle() {
                self.beat();
            }
            sleep(ROUND).await;
        }
    }

    fn count(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Looks at several loops.
#[derive(Debug)]
pub(crate) struct Pulses(Vec<(Pulse, u64)>);

impl Pulses {
    pub(crate) fn of(pulses: impl IntoIterator<Item = Pulse>) -> Self {
        Self(pulses.into_iter().map(|pulse| (pulse, 0)).collect())
    }

    /// Whether all have gone round since this was true last.
    pub(crate) fn have_beaten(&mut self) -> bool {
        if self.0.iter().any(|(pulse, seen)| pulse.count() == *seen) {
            return false;
        }
        self.0.iter_mut().for_each(|(pulse, seen)| *seen = pulse.count());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loop_that_stands_still_is_enough() {
        let (a, b) = (Pulse::default(), Pulse::default());
        let mut pulses = Pulses::of([a.clone(), b.clone()]);
        assert!(!pulses.have_beaten());
        a.beat();
        assert!(!pulses.have_beaten());
        b.beat();
        assert!(pulses.have_beaten() && !pulses.have_beaten());
        (0..5).for_each(|_| a.beat());
        assert!(!pulses.have_beaten());
        b.beat();
        assert!(pulses.have_beaten());
    }
}
