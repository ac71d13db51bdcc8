//! Hands passes to a worker, wakes it and asks it to stop, from any thread.

use crate::pass::state::PassState;
use crate::sync::lock;
use std::sync::atomic::{AtomicBool, Ordering::Release};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::Thread;

/// Queue of passes for a worker.
#[derive(Debug, Default)]
pub(crate) struct WorkerInbox {
    pub(super) passes: Mutex<Vec<Arc<PassState>>>,
    pub(super) pending: AtomicBool,
    pub(super) stop: AtomicBool,
    pub(super) thread: OnceLock<Thread>,
}

impl WorkerInbox {
    pub(crate) fn serve(&self, pass: Arc<PassState>) {
        lock(&self.passes).push(pass);
        self.pending.store(true, Release);
        self.wake();
    }

    /// Requests the end of the worker after its last pass.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Release);
        self.wake();
    }

    /// Wakes the worker if it sleeps.
    pub(crate) fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}
