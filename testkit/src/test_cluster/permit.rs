//! Limits how many clusters run at once: a cluster is several processes, and an overloaded host causes timeouts.

use std::sync::{Condvar, Mutex, PoisonError};

/// Several clusters fit a small host, as a cluster mostly waits for timeouts.
const CLUSTERS_MAX: usize = 3;

static CLUSTERS: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// Permission to run a cluster, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit(());

impl Permit {
    /// Waits for a permit.
    pub(super) fn take() -> Self {
        let clusters = CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut clusters =
            FREED.wait_while(clusters, |clusters| *clusters >= CLUSTERS_MAX).unwrap_or_else(PoisonError::into_inner);
        *clusters += 1;
        Self(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *CLUSTERS.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
