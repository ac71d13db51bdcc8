//! Reports the state of the leader.

use crate::model::{Drain, Epoch, Leader, NodeId, Progress, Registration, ScheduleName, TaskId, TaskState};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::collections::BTreeMap;

/// Status of the center.
#[derive(Clone, Debug)]
pub(crate) struct Status {
    /// The leader: this node.
    pub leader: Leader,
    /// Epoch of its term.
    pub epoch: Epoch,
    /// Tasks in each state, in the order of a task's life.
    pub tasks: Vec<(TaskState, usize)>,
    /// Paths of records that cannot be decoded, and why: they are left alone.
    pub undecodable: Vec<(String, String)>,
    /// Number of registered runners.
    pub runners: usize,
    /// Level of the center, if it has one.
    pub level: Option<u32>,
    /// Restarts of the processes of all registered nodes together.
    pub restarts: u64,
    /// When a task of each schedule has succeeded last, in milliseconds since 1970, of the tasks that are kept.
    pub last_successes: BTreeMap<ScheduleName, u64>,
    /// Progress of all running tasks together.
    pub running: RunningTotals,
    /// Counters and latencies.
    pub metrics: DispatcherMetrics,
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
    /// Until when it is excluded, in milliseconds since 1970, and why.
    pub excluded: Option<(u64, String)>,
    /// Whether its registration cannot be decoded.
    pub is_unreadable: bool,
    /// Level that it announces; 0: it is not registered.
    pub level: u32,
    /// Since when it holds no task, in milliseconds since 1970, if that is known.
    pub idle_since_ms: Option<u64>,
    /// The task whose attempt has ended last on it, and when, in milliseconds since 1970.
    pub last_ended: Option<(TaskId, u64)>,
    /// Number of failures in a row that count for its exclusion.
    pub failures: usize,
    /// Addresses of processes of its name that are kept from registering.
    pub refused: Vec<String>,
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

/// Counters and latencies of all terms of this process. Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct DispatcherMetrics {
    /// Number of assigned tasks.
    pub assignments: Counter,
    /// Number of tasks that schedules have made.
    pub schedules_fired: Counter,
    /// Number of instants at which a schedule has made no task.
    pub schedules_skipped: Counter,
    /// Seconds of each write to the coordination service.
    pub store: Histogram,
    /// Seconds from each task's submission (or return) to its assignment.
    pub queue_wait: Histogram,
    /// Seconds from the decision to assign a task to the runner's acceptance.
    pub assignment: Histogram,
}

impl Default for DispatcherMetrics {
    /// Measures calls from 1 ms to 16 s, and waits from 10 ms to an hour.
    fn default() -> Self {
        let call = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        Self {
            assignments: Counter::default(),
            schedules_fired: Counter::default(),
            schedules_skipped: Counter::default(),
            store: call(),
            queue_wait: Histogram::new(exponential_buckets(0.01, 3.6, 11)),
            assignment: call(),
        }
    }
}
