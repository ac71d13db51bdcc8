//! Judges whether the tasks that a task waits for have ended as they have to. Pure.
//!
//! Only the present record of a predecessor counts, and only when the predecessor is settled: it has ended, and no write
//! of it can land any more. A condition that cannot be met any more is broken for good.

use super::cluster_state::ClusterState;
use crate::coord::paths;
use crate::model::{Attempt, Dependency, Failure, FenceMethod, TaskRecord};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use blockhaul_engine::flow::graph::Outcome;

/// Most tasks that a reason names.
const NAMED_MAX: usize = 3;

/// How the dependencies of a task stand.
#[derive(Debug)]
pub(crate) enum DependencyStatus {
    /// It may start.
    Met,
    /// One of them is not decided.
    Waiting {
        /// Whether one has ended and is not settled: that may change without a change of its record.
        may_settle: bool,
    },
    /// One of them cannot be met any more.
    Broken(Failure),
}

/// How one dependency stands.
enum Verdict {
    Met,
    Waiting,
    /// The predecessor has ended, and a write of it may still land.
    Unsettled,
    Broken(String),
}

/// Judges the dependencies of a task.
pub(crate) fn dependency_status(cluster: &ClusterState, record: &TaskRecord) -> DependencyStatus {
    if !record.is_unstarted() {
        return DependencyStatus::Met;
    }
    let (mut is_waiting, mut may_settle) = (false, false);
    for dependency in &record.after {
        match verdict(cluster, dependency) {
            Verdict::Met => {}
            Verdict::Waiting => is_waiting = true,
            Verdict::Unsettled => (is_waiting, may_settle) = (true, true),
            Verdict::Broken(why) => {
                let error = Error::new(Code::Dependency, Side::Caller, Operation::Start, why);
                return DependencyStatus::Broken(Failure::from(&error));
            }
        }
    }
    if unsettled_first_try(cluster, record).is_some() {
        (is_waiting, may_settle) = (true, true);
    }
    if is_waiting { DependencyStatus::Waiting { may_settle } } else { DependencyStatus::Met }
}

fn verdict(cluster: &ClusterState, dependency: &Dependency) -> Verdict {
    let Dependency { task, condition, .. } = dependency;
    let Some(predecessor) = predecessor(cluster, dependency) else {
        if is_undecodable(cluster, dependency) {
            return Verdict::Unsettled;
        }
        return Verdict::Broken(format!("it waits for task {task}, which is gone"));
    };
    let Some(outcome) = predecessor.outcome() else { return Verdict::Waiting };
    if !condition.is_met_by(Some(outcome)) {
        return Verdict::Broken(format!("it waits for the {condition} of task {task}, which {}", verb(outcome)));
    }
    if is_settled(predecessor) { Verdict::Met } else { Verdict::Unsettled }
}

/// Returns the record of a predecessor; `None` if it is gone, or another task has its name.
fn predecessor<'a>(cluster: &'a ClusterState, dependency: &Dependency) -> Option<&'a TaskRecord> {
    let entry = cluster.tasks.get(&dependency.task)?;
    (entry.record.created_ms == dependency.created_ms).then(|| &*entry.record)
}

/// Returns the task that this one tries again, as long as an attempt of it may still write.
fn unsettled_first_try<'a>(cluster: &'a ClusterState, record: &TaskRecord) -> Option<&'a TaskRecord> {
    let first = &cluster.tasks.get(record.retry_of.as_ref()?)?.record;
    (first.state.is_terminal() && !is_settled(first)).then_some(&**first)
}

/// Tells whether a task has ended and no write of it can land any more: it has no claims left, and each attempt has
/// drained.
pub(crate) fn is_settled(record: &TaskRecord) -> bool {
    record.state.is_terminal() && record.claims.is_empty() && record.is_quiet()
}

/// Tells whether a task's record is there and cannot be read: it may be of a later version.
fn is_undecodable(cluster: &ClusterState, dependency: &Dependency) -> bool {
    cluster.tasks.undecodable.contains_key(&paths::task(&dependency.task))
}

/// Says for whom a task waits, and how those stand; `None` if it waits for nobody.
pub(crate) fn waiting_reason(cluster: &ClusterState, record: &TaskRecord) -> Option<String> {
    if !record.is_unstarted() {
        return None;
    }
    let waits =
        |dependency: &&Dependency| matches!(verdict(cluster, dependency), Verdict::Waiting | Verdict::Unsettled);
    let open: Vec<&Dependency> = record.after.iter().filter(waits).collect();
    let described = |dependency: &&Dependency| {
        let task = &dependency.task;
        match predecessor(cluster, dependency) {
            Some(predecessor) if predecessor.state.is_terminal() => unsettled(predecessor),
            Some(predecessor) => format!("task {task}, which is {}", predecessor.state.as_str()),
            None => format!("task {task}, whose record cannot be decoded"),
        }
    };
    let mut named: Vec<String> = open.iter().take(NAMED_MAX).map(described).collect();
    named.extend(unsettled_first_try(cluster, record).map(unsettled));
    let more = open.len().saturating_sub(NAMED_MAX);
    let more = if more == 0 { String::new() } else { format!(", and {more} more") };
    (!named.is_empty()).then(|| format!("waiting for {}{more}", named.join("; ")))
}

/// Describes an ended task that is not settled.
fn unsettled(record: &TaskRecord) -> String {
    let attempt = record.attempts.iter().find(|attempt| !attempt.quiet);
    let node = attempt.map_or_else(String::new, |attempt| format!(" on {}", attempt.runner.node));
    let help = match (record.spec.kind().fence(), attempt) {
        (FenceMethod::Lease, _) | (_, None) => String::new(),
        (_, Some(Attempt { runner, .. })) => {
            format!(" (if the node is off: 'blockhaul fence {} --confirm')", runner.node)
        }
    };
    format!("task {}, an attempt of which{node} may still write{help}", record.id)
}

fn verb(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "succeeded",
        Outcome::Failed => "failed",
        Outcome::Cancelled => "was cancelled",
        Outcome::Skipped => "was skipped",
    }
}
