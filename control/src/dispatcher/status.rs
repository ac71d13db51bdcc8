//! Reports the state of the leader.

use crate::model::{Drain, Epoch, Leader, NodeId, Progress, Registration, TaskState};
use std::collections::VecDeque;
use std::time::Duration;

/// Number of samples of a latency.
const SAMPLES: usize = 512;

/// Status of the center.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    /// The leader: this node.
    pub leader: Leader,
    /// Epoch of its term.
    pub epoch: Epoch,
    /// Tasks in each state, in the order of [`TaskState::ALL`].
    pub tasks: Vec<(TaskState, usize)>,
    /// Paths of records that cannot be decoded, and why: they are left alone.
    pub undecodable: Vec<(String, String)>,
    /// Number of registered runners.
    pub runners: usize,
    /// Restarts of the processes of all registered nodes together.
    pub restarts: u64,
    /// Progress of all running tasks together.
    pub running: RunningTotals,
    /// Latency of the last writes to the store.
    pub store: Latency,
    /// Time from a task's submission (or return) to its assignment, of the last ones.
    pub queue_wait: Latency,
    /// Time from the decision to assign a task to the runner's acceptance, of the last ones.
    pub assignment: Latency,
    /// Number of tasks assigned in this term.
    pub assignments: u64,
}

/// Runner and what the leader knows of it.
#[derive(Clone, Debug)]
pub(crate) struct RunnerSummary {
    /// Registration; `None`: the node drains and is not registered.
    pub registration: Option<Registration>,
    /// Node of the runner.
    pub node: NodeId,
    /// Number of tasks that it holds.
    pub tasks: usize,
    /// Drain record, if there is one.
    pub drain: Option<Drain>,
    /// Milliseconds by which its wall clock is ahead of its peers', once it was measured.
    pub clock_offset_ms: Option<i64>,
}

/// Progress of several tasks together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunningTotals {
    /// Sizes of their sources, in bytes.
    pub planned_bytes: u64,
    /// Durable bytes.
    pub durable_bytes: u64,
    /// Their rates together.
    pub rate_bytes_per_second: u64,
}

impl RunningTotals {
    /// Returns the totals with one more task.
    pub(crate) fn plus(self, progress: &Progress) -> Self {
        Self {
            planned_bytes: self.planned_bytes.saturating_add(progress.planned),
            durable_bytes: self.durable_bytes.saturating_add(progress.durable),
            rate_bytes_per_second: self.rate_bytes_per_second.saturating_add(progress.rate_bytes_per_second),
        }
    }
}

/// Distribution of the last durations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Latency {
    /// Half were at most this long.
    pub p50: Duration,
    /// 99 of 100 were at most this long.
    pub p99: Duration,
    /// The longest.
    pub max: Duration,
}

/// Last durations of something.
#[derive(Debug, Default)]
pub(crate) struct Samples(VecDeque<Duration>);

impl Samples {
    pub(crate) fn add(&mut self, duration: Duration) {
        if self.0.len() == SAMPLES {
            self.0.pop_front();
        }
        self.0.push_back(duration);
    }

    pub(crate) fn latency(&self) -> Latency {
        let mut sorted: Vec<Duration> = self.0.iter().copied().collect();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)));
        let at = |percent| at(percent).copied().unwrap_or_default();
        Latency { p50: at(50), p99: at(99), max: at(100) }
    }
}
