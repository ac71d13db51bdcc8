//! Counts the rounds of the loops that feed the watchdog.
//!
//! A timer of its own would only show that timers work. So each loop that matters counts its rounds, and the watchdog
//! is fed only when every loop has completed a round since the last time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;
use tokio::time::sleep;

/// Time between two rounds of an idle loop: a fraction of any watchdog's timeout.
const ROUND: Duration = Duration::from_secs(1);

/// Counts the rounds of one loop. Clones share the count.
#[derive(Clone, Debug, Default)]
pub struct LivenessCounter(Arc<AtomicU64>);

impl LivenessCounter {
    /// Counts one round.
    pub fn beat(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// Counts rounds for an idle loop, while `is_idle`: that shows that the future around it is polled.
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

/// Watches several loops.
#[derive(Debug)]
pub(crate) struct LivenessCounters(Vec<(LivenessCounter, u64)>);

impl LivenessCounters {
    pub(crate) fn of(liveness: impl IntoIterator<Item = LivenessCounter>) -> Self {
        Self(liveness.into_iter().map(|liveness| (liveness, 0)).collect())
    }

    /// Tells whether all loops have completed a round since this was last true.
    pub(crate) fn have_all_advanced(&mut self) -> bool {
        if self.0.iter().any(|(liveness, seen)| liveness.count() == *seen) {
            return false;
        }
        self.0.iter_mut().for_each(|(liveness, seen)| *seen = liveness.count());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_loop_that_stands_still_is_enough() {
        let (a, b) = (LivenessCounter::default(), LivenessCounter::default());
        let mut liveness = LivenessCounters::of([a.clone(), b.clone()]);
        assert!(!liveness.have_all_advanced());
        a.beat();
        assert!(!liveness.have_all_advanced());
        b.beat();
        assert!(liveness.have_all_advanced() && !liveness.have_all_advanced());
        (0..5).for_each(|_| a.beat());
        assert!(!liveness.have_all_advanced());
        b.beat();
        assert!(liveness.have_all_advanced());
    }
}
