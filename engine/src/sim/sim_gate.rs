//! Closes and opens a gate at random, also in the middle of a worker's turn.

use crate::ring::Instant;
use crate::write_gate::WriteGate;
use std::sync::Arc;
use std::time::Duration;

/// A simulated gate. Starts open.
#[derive(Debug)]
pub(crate) struct SimGate {
    pub gate: Arc<WriteGate>,
    /// Time for which the gate closes in the middle of a worker's next turn.
    amidst: Option<Duration>,
    /// Time at which a closed gate opens.
    pub opens_at: Option<Instant>,
}

impl SimGate {
    pub(crate) fn new() -> Self {
        let gate = WriteGate::closed();
        gate.open_until(Duration::MAX);
        Self { gate: Arc::new(gate), amidst: None, opens_at: None }
    }

    /// Closes the gate now, or in the middle of a worker's next turn (`amidst`), after the worker has found it open.
    pub(crate) fn shut(&mut self, now: Instant, time: Duration, amidst: bool) {
        if amidst {
            self.amidst = Some(time);
            return;
        }
        self.gate.close();
        self.opens_at = Some(now + time);
    }

    /// Notes that a worker is in the middle of its turn.
    pub(crate) fn pass_by(&mut self, now: Instant) {
        if let Some(time) = self.amidst.take() {
            self.shut(now, time, false);
        }
    }

    /// Opens the gate when that is due; returns whether it did.
    pub(crate) fn look(&mut self, now: Instant) -> bool {
        let is_due = self.opens_at.is_some_and(|at| at <= now);
        if is_due {
            self.gate.open_until(Duration::MAX);
            self.opens_at = None;
        }
        is_due
    }
}
