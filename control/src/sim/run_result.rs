//! Holds the result of a run: the first violation and, for a single seed, the events that led to it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often what was seen.
pub(super) type Counts = BTreeMap<&'static str, u64>;

/// Shared by everything that judges. The first failure counts: what follows it may be its consequence.
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

    /// Something happened. Folded into the digest by which two runs of a seed are compared.
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

    /// Something happened that must not.
    pub(super) fn fail(&self, what: impl Display) {
        self.note(format_args!("VIOLATION: {what}"));
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert_with(|| format!("at {:.3} s: {what}", self.start.elapsed().as_secs_f64()));
        self.failed.notify_one();
    }

    /// A fault of this kind has met somebody.
    pub(super) fn struck(&self, kind: &'static str) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default() += 1;
    }

    /// How many there were of each kind.
    pub(super) fn faults(&self) -> Counts {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Something has happened to a task or a volume that shows what a run has reached.
    pub(super) fn count(&self, what: &'static str) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    /// How often what happened.
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

    /// Of everything that was noted.
    pub(super) fn digest(&self) -> u64 {
        *self.digest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
