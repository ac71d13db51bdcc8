//! Holds one registration's write lease, which its renewals extend.
//!
//! What always holds: the gate of a lease is open only until the time that the lease allows, and never again once the
//! lease has ended. Copies to destinations that other nodes reach run under one lease. They do not continue under a new
//! registration, as their tasks may have been assigned to other runners in between.

use crate::cluster::lease::Lease;
use crate::coord::Session;
use blockhaul_engine::write_gate::WriteGate;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Registration that exists, and the session that holds it.
#[derive(Clone, Debug)]
pub(super) struct ActiveRegistration {
    pub session: Arc<dyn Session>,
    /// Version of the registration's node.
    pub version: i32,
    pub write_lease: Arc<WriteLease>,
}

/// Write lease of a registration, with the gate of the copies that depend on it.
#[derive(Debug)]
pub(super) struct WriteLease {
    gate: Arc<WriteGate>,
    /// `None` once it has ended.
    lease: Mutex<Option<Lease>>,
}

impl ActiveRegistration {
    pub(super) fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.write_lease, &other.write_lease) && self.version == other.version
    }
}

impl WriteLease {
    pub(super) fn new(lease: Lease) -> Self {
        let gate = Arc::new(WriteGate::closed());
        let write_lease = Self { gate, lease: Mutex::new(Some(lease)) };
        write_lease.apply(&lease);
        write_lease
    }

    /// Extends the lease: a write that was sent at `sent` is committed.
    pub(super) fn committed(&self, sent: Duration) {
        if let Some(lease) = &mut *self.lease() {
            lease.committed(sent);
            self.apply(lease);
        }
    }

    /// Closes the gate for good.
    pub(super) fn end(&self) {
        *self.lease() = None;
        self.gate.close();
    }

    pub(super) fn gate(&self) -> Arc<WriteGate> {
        Arc::clone(&self.gate)
    }

    /// Tells whether writes may be submitted at `now`.
    pub(super) fn is_open(&self, now: Duration) -> bool {
        self.lease().is_some_and(|lease| lease.is_open(now))
    }

    /// Returns the time left of the lease; zero when it has ended.
    pub(super) fn left(&self, now: Duration) -> Duration {
        self.lease().map_or(Duration::ZERO, |lease| lease.left(now))
    }

    fn apply(&self, lease: &Lease) {
        if let Some(until) = lease.gate() {
            self.gate.open_until(until);
        }
    }

    fn lease(&self) -> MutexGuard<'_, Option<Lease>> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::lease::LeaseTiming;

    #[test]
    fn the_gate_follows_the_lease_and_never_opens_again_after_the_end() {
        let write_lease = WriteLease::new(Lease::new(LeaseTiming::from(Duration::from_secs(10))));
        assert!(!write_lease.gate().is_open());
        let now = WriteGate::now();
        write_lease.committed(now);
        assert!(
            write_lease.gate().is_open()
                && write_lease.is_open(now)
                && !write_lease.is_open(now + Duration::from_secs(6))
        );
        assert_eq!(write_lease.left(now), Duration::from_millis(8500));
        write_lease.end();
        write_lease.committed(now + Duration::from_secs(100));
        assert!(!write_lease.gate().is_open() && !write_lease.is_open(now));
        assert_eq!(write_lease.left(now), Duration::ZERO);
    }
}
