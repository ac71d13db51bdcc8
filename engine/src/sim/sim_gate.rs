//! Closes and opens a gate at random, also in the middle of a worker's turn.

use crate::gate::Gate;
use crate::ring::Instant;
use std::sync::Arc;
use std::time::Duration;

/// See the module's head. It starts open.
#[derive(Debug)]
pub(crate) struct SimGate {
    pub gate: Arc<Gate>,
    /// Closes for so long when a worker looks up next.
    amidst: Option<Duration>,
    /// While it is closed: when it opens.
    pub opens_at: Option<Instant>,
}

impl SimGate {
    pub(crate) fn new() -> Self {
        let gate = Gate::closed();
        gate.open_until(Duration::MAX);
        Self { gate: Arc::new(gate), amidst: None, opens_at: None }
    }

    /// Closes it now, or for whoever believes that it is still open.
    pub(crate) fn shut(&mut self, now: Instant, time: Duration, amidst: bool) {
        if amidst {
            self.amidst = Some(time);
            return;
        }
        self.gate.close();
        self.opens_at = Some(now + time);
    }

    /// A worker is in the middle of its turn.
    pub(crate) fn pass_by(&mut self, now: Instant) {
        if let Some(time) = self.amidst.take() {
            self.shut(now, time, false);
        }
    }

    /// Opens it when that is due; says whether it did.
    pub(crate) fn look(&mut self, now: Instant) -> bool {
        let is_due = self.opens_at.is_some_and(|at| at <= now);
        if is_due {
            self.gate.open_until(Duration::MAX);
            self.opens_at = None;
        }
        is_due
    }
}
