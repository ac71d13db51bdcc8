//! What a run has come to: the first thing that must not happen, and, for one seed alone, the story that led there.

use std::fmt::Display;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;
use tokio::time::Instant;

/// Shared by everything that judges. The first failure counts: what follows it may be its consequence.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    start: Instant,
    trace: bool,
    failure: Arc<Mutex<Option<String>>>,
    failed: Arc<Notify>,
    digest: Arc<Mutex<u64>>,
}

impl Verdict {
    pub(super) fn new(trace: bool) -> Self {
        Self {
            start: Instant::now(),
            trace,
            failure: Arc::default(),
            failed: Arc::default(),
            digest: Arc::default(),
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
