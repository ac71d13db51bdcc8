//! Limits how many cells run at once: a cell is a handful of processes, and a host short of time looks like a fault.

use std::sync::{Condvar, Mutex, PoisonError};

/// A cell is idle most of the time: it waits for something to time out.
const CELLS_MAX: usize = 3;

static CELLS: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

/// The right to have a cell.
#[derive(Debug)]
pub(crate) struct Permit(());

impl Permit {
    /// Waits for one.
    pub(crate) fn take() -> Self {
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
