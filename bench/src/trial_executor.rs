//! Defines the steps of a trial, which the executors of scenarios carry out.
//!
//! [`trial_loop`](crate::trial_loop) decides which target runs when and what counts. An executor performs single steps:
//! the real ones start processes, the one in tests records its calls.

use crate::interrupt::Stopped;
use crate::results::{ThroughputPoint, WindowPoint};
use crate::target::Target;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::fmt;
use std::io;

/// Carries out the steps of a trial, in the order of the methods.
pub(crate) trait TrialExecutor {
    /// Restores the state before each trial: destination absent or blank, caches cold. Not timed.
    ///
    /// # Errors
    /// The state could not be restored.
    fn reset(&mut self, target: &Target) -> Result<(), Failure>;

    /// Runs the target and measures it.
    ///
    /// # Errors
    /// The target failed.
    fn run(&mut self, target: &Target) -> Result<Measurement, Failure>;

    /// Verifies what the target wrote. Not timed.
    ///
    /// # Errors
    /// [`Failure::WrongBytes`], or the verification itself failed.
    fn verify(&mut self, target: &Target) -> Result<(), Failure>;

    /// Counts the system calls of an additional trial that is not timed; `None` where they cannot be counted from
    /// outside.
    ///
    /// # Errors
    /// The trial failed.
    fn count_calls(&mut self, _target: &Target) -> Result<Option<u64>, Failure> {
        Ok(None)
    }
}

/// Reason why a trial does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The run was interrupted.
    Stopped,
    /// The trial failed, with the reason.
    Failed(String),
    /// The trial succeeded but wrote wrong bytes, with the place.
    WrongBytes(String),
}

impl Failure {
    /// Wraps an I/O error of the harness.
    pub(crate) fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        Self::Failed(format!("{what}: {error}"))
    }
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// Measurements of one trial.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measurement {
    pub wall_seconds: f64,
    pub user_seconds: f64,
    pub system_seconds: f64,
    /// An estimate: other processes use the kernel's workers as well.
    pub kernel_worker_seconds: f64,
    pub peak_rss_bytes: Option<u64>,
    /// As counted by the target itself.
    pub system_calls: Option<u64>,
    /// Volume bytes copied or skipped.
    pub bytes: u64,
    /// In the unit of the scenario's metric, unless that is a rate, a time or CPU.
    pub value: Option<f64>,
    /// In microseconds, by operation.
    pub latency: BTreeMap<String, Histogram<u64>>,
    pub timeline: Vec<ThroughputPoint>,
    pub window: Vec<WindowPoint>,
    /// Other numbers, by names that end in their unit.
    pub other_metrics: BTreeMap<String, f64>,
}
