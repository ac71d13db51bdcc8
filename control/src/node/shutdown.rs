//! Requests a stop of the process: from any thread or role, at any time, any number of times.

use std::sync::Arc;
use tokio::sync::watch;

/// Kind of stop that was requested of a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stop {
    /// Not at all.
    #[default]
    No,
    /// In good order: everything is given back.
    Drained,
    /// At once: as a crash would, but for the exit code.
    Fast,
}

/// Asks one server to stop. Clones ask the same one.
#[derive(Clone, Debug)]
pub struct StopHandle(Arc<watch::Sender<Stop>>);

impl Default for StopHandle {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Stop::No)))
    }
}

impl StopHandle {
    /// Of a server that is to be: what is asked before there is one is heard by it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks; never waits. Asking again for no more than was asked for changes nothing.
    pub fn stop(&self, how: Stop) {
        self.0.send_if_modified(|asked| {
            let is_more = how > *asked;
            *asked = how.max(*asked);
            is_more
        });
    }

    /// What has been asked for so far.
    #[must_use]
    pub fn asked(&self) -> Stop {
        *self.0.borrow()
    }

    /// Waits until that much is asked for.
    pub async fn wait_for(&self, how: Stop) {
        // The sender lives as long as self: it cannot fail.
        let _ = self.0.subscribe().wait_for(|asked| *asked >= how).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stop_only_ever_gets_more_urgent() {
        let stopper = StopHandle::new();
        let mut seen = stopper.0.subscribe();
        stopper.stop(Stop::No);
        assert!(!seen.has_changed().unwrap());
        stopper.clone().stop(Stop::Drained);
        stopper.wait_for(Stop::Drained).await;
        seen.mark_unchanged();
        stopper.stop(Stop::Drained);
        assert!(!seen.has_changed().unwrap());
        stopper.stop(Stop::Fast);
        stopper.stop(Stop::Drained);
        assert_eq!(stopper.asked(), Stop::Fast);
    }

    #[test]
    fn any_thread_may_ask_at_once() {
        let stopper = StopHandle::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| stopper.stop(Stop::Drained));
            }
        });
        assert_eq!(stopper.asked(), Stop::Drained);
    }
}
