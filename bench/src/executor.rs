//! The seam between the method and the work: what a scenario lets be done with a target, step by step.
//!
//! [`run_trials`](crate::trial_loop) decides who runs when and what counts; an executor only does one step of one trial. The
//! real ones start processes over volumes, the one in tests keeps a list of what it was asked.

use crate::interrupt::Stopped;
use crate::results::{ThroughputPoint, WindowPoint};
use crate::target::Target;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::fmt;
use std::io;

/// Does the steps of a trial, in the order of the methods.
pub(crate) trait Executor {
    /// Puts the scene back to where every trial begins: destination absent or blank, caches cold. Not timed.
    ///
    /// # Errors
    /// The scene could not be set.
    fn reset(&mut self, target: &Target) -> Result<(), Failure>;

    /// Lets the target do the work, and measures it.
    ///
    /// # Errors
    /// It did not succeed.
    fn run(&mut self, target: &Target) -> Result<Measurement, Failure>;

    /// Compares what it has made with what it should have made. Not timed.
    ///
    /// # Errors
    /// [`Failure::WrongBytes`], or the comparison itself failed.
    fn verify(&mut self, target: &Target) -> Result<(), Failure>;

    /// System calls of one more trial that is not timed; `None` where they cannot be counted from outside.
    ///
    /// # Errors
    /// That trial did not succeed.
    fn count_calls(&mut self, _target: &Target) -> Result<Option<u64>, Failure> {
        Ok(None)
    }
}

/// Why a trial does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The run is being stopped: nobody's fault.
    Stopped,
    /// It ended badly, in words.
    Failed(String),
    /// It ended well over wrong bytes, in words.
    WrongBytes(String),
}

impl Failure {
    /// A failed call of ours.
    pub(crate) fn io(what: impl fmt::Display, error: &io::Error) -> Self {
        Self::Failed(format!("{what}: {error}"))
    }
}

impl From<Stopped> for Failure {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

/// What one trial took.
#[derive(Clone, Debug, Default)]
pub(crate) struct Measurement {
    pub wall_seconds: f64,
    pub user_seconds: f64,
    pub system_seconds: f64,
    /// An estimate: others use the kernel's workers too.
    pub kernel_worker_seconds: f64,
    pub peak_rss_bytes: Option<u64>,
    /// As the target itself counted them.
    pub system_calls: Option<u64>,
    /// Volume bytes moved or passed over.
    pub bytes: u64,
    /// In the unit of the scenario's metric, where that is neither a rate, a time nor CPU.
    pub value: Option<f64>,
    /// In microseconds, by operation.
    pub latency: BTreeMap<String, Histogram<u64>>,
    pub timeline: Vec<ThroughputPoint>,
    pub window: Vec<WindowPoint>,
    /// Anything else that was seen, by name with the unit in it.
    pub other_metrics: BTreeMap<String, f64>,
}
