//! Limits how many cells run at once: a cell is several processes, and an overloaded host causes timeouts.

use std::sync::{Condvar, Mutex, PoisonError};

/// Several cells fit a small host, as a cell mostly waits for timeouts.
const CELLS_MAX: usize = 3;

static CELLS: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// Permission to run a cell, until it is dropped.
#[derive(Debug)]
pub(super) struct Permit(());

impl Permit {
    /// Waits for a permit.
    pub(super) fn take() -> Self {
        let cells = CELLS.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cells = FREED.wait_while(cells, |cells| *cells >= CELLS_MAX).unwrap_or_else(PoisonError::into_inner);
        *cells += 1;
        Self(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        *CELLS.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
