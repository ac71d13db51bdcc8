//! Locks a mutex of the engine, also if a test has poisoned it.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// No code panics while it holds one of these locks (release builds abort), so a poisoned lock is a test's doing.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
