//! Hands rounds to a worker, wakes it and asks it to stop, from any thread.

use crate::job::round::{Round, lock};
use std::sync::atomic::{AtomicBool, Ordering::Release};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;

/// Where rounds are handed to a worker.
#[derive(Debug, Default)]
pub(crate) struct Inbox {
    pub(super) rounds: Mutex<Vec<Arc<Round>>>,
    pub(super) pending: AtomicBool,
    pub(super) stop: AtomicBool,
    pub(super) thread: OnceLock<Thread>,
}

impl Inbox {
    pub(crate) fn serve(&self, round: Arc<Round>) {
        lock(&self.rounds).push(round);
        self.pending.store(true, Release);
        self.wake();
    }

    /// The worker ends when its last round does.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Release);
        self.wake();
    }

    /// Wakes the worker if nothing of its own would.
    pub(crate) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}
