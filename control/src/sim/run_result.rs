//! Holds the result of a run: the first violation and, for a single seed, the events that led to it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Number of events by kind.
pub(super) type Counts = BTreeMap<&'static str, u64>;

/// Result that all checkers share. Only the first failure is kept: later ones may be its consequences.
#[derive(Clone, Debug)]
pub(super) struct RunResult {
    start: Instant,
    trace: bool,
    failure: Arc<Mutex<Option<String>>>,
    failed: Arc<Notify>,
    digest: Arc<Mutex<u64>>,
    faults: Arc<Mutex<Counts>>,
    events: Arc<Mutex<Counts>>,
}

impl RunResult {
    pub(super) fn new(trace: bool) -> Self {
        Self {
            start: Instant::now(),
            trace,
            failure: Arc::default(),
            failed: Arc::default(),
            digest: Arc::default(),
            faults: Arc::default(),
            events: Arc::default(),
        }
    }

    /// Records an event: adds it to the digest, by which two runs of a seed are compared, and prints it when tracing.
    pub(super) fn note(&self, what: impl Display) {
        let line = format!("{:9.3} {what}", self.start.elapsed().as_secs_f64());
        let mut digest = self.digest.lock().unwrap_or_else(PoisonError::into_inner);
        for byte in line.bytes() {
            *digest = (*digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        drop(digest);
        if self.trace {
            println!("{line}");
        }
    }

    /// Records a violation.
    pub(super) fn fail(&self, what: impl Display) {
        self.note(format_args!("VIOLATION: {what}"));
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| format!("at {:.3} s: {what}", self.start.elapsed().as_secs_f64()));
        self.failed.notify_one();
    }

    /// Counts a fault of this kind that had an effect.
    pub(super) fn count_fault(&self, kind: &'static str) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
    }

    /// Returns the number of faults by kind.
    pub(super) fn faults(&self) -> Counts {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Counts an event of a task or a volume that shows what a run has reached.
    pub(super) fn count(&self, what: &'static str) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    /// Returns the number of events by kind.
    pub(super) fn events(&self) -> Counts {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Fails unless `holds`.
    pub(super) fn expect(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(what());
        }
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits for the first failure.
    pub(super) async fn failed(&self) {
        self.failed.notified().await;
    }

    /// Returns the digest of all events.
    pub(super) fn digest(&self) -> u64 {
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
