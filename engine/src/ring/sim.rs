//! Implements the ring in simulations: operations act on a simulated world, at the times of its clock.
//!
//! The ring never waits: the driver of the worker advances the clock and calls again.

use super::{Completion, Instant, Op, Ring, Token};
use crate::sim::world::SharedWorld;
use std::io;
use std::time::Duration;

/// A ring of one simulated worker.
#[derive(Debug)]
pub(crate) struct SimRing {
    world: SharedWorld,
    /// Number of the ring in the world.
    pub(crate) index: usize,
    slots: usize,
    in_flight: usize,
}

impl SimRing {
    /// Creates a ring for at most `slots` operations in flight.
    pub(crate) fn new(world: &SharedWorld, slots: usize) -> Self {
        let index = world.lock().add_ring();
        Self { world: world.clone(), index, slots, in_flight: 0 }
    }
}

impl Ring for SimRing {
    fn push(&mut self, token: Token, op: Op) {
        assert!(self.in_flight < self.slots, "more operations in flight than the ring was made for");
        self.in_flight += 1;
        self.world.lock().push(self.index, token, op);
    }

    fn submit_and_wait(&mut self, _want: usize, _limit: Duration) -> io::Result<()> {
        self.world.lock().submit(self.index);
        Ok(())
    }

    fn reap(&mut self) -> Option<Completion> {
        let completion = self.world.lock().reap(self.index)?;
        self.in_flight -= 1;
        Some(completion)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn tolerate_late(&mut self, _unanswered: usize) {}

    fn now(&self) -> Instant {
        self.world.lock().now
    }

    fn syscalls(&self) -> u64 {
        0
    }
}
