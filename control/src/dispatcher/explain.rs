//! Describes tasks to clients: the record, the holder's telemetry, and the reason why a task is not running.

use super::cluster_state::{ClusterState, FenceProgress, held_claim};
use super::dependencies::waiting_reason;
use super::groups::{GroupDemand, GroupMembers, demand_reason, group_demand, group_reason};
use super::held_places::lack_reason;
use super::now::Now;
use super::tasks::{AssignReply, TaskEntry};
use super::unplaced::{ObstacleCounts, failed_nodes, unplaced_reason};
use super::windows::WindowState;
use crate::model::{DesiredState, FenceMethod, Progress, TaskRecord, TaskState};
use crate::peers::StartStage;
use crate::timestamp::Timestamp;
use std::sync::Arc;
use std::time::Duration;

/// Time after which a runner that has not begun needs a reason that clients see. Beginning takes milliseconds where
/// volumes and servers answer.
const SLOW: Duration = Duration::from_secs(5);

/// Returns the record with the newest progress, and with a reason while the task does not run.
pub(crate) fn describe(cluster: &ClusterState, entry: &TaskEntry, now: Now) -> Arc<TaskRecord> {
    describe_among(cluster, entry, now, &mut ObstacleCounts::default())
}

/// As [`describe`], for one of several tasks that are described at once.
pub(crate) fn describe_among(
    cluster: &ClusterState,
    entry: &TaskEntry,
    now: Now,
    counts: &mut ObstacleCounts,
) -> Arc<TaskRecord> {
    let record = &entry.record;
    let live = entry.telemetry();
    let is_held = entry.runtime.next_write > now.boot || entry.runtime.is_busy;
    let write_failure = entry.runtime.write_failure.as_ref().filter(|_| is_held && !record.state.is_terminal());
    let write_failure = write_failure.map(|write_failure| format!("record cannot be written: {}", write_failure.why));
    let group = record.spec.kind().group().filter(|_| !record.state.is_terminal());
    let reason = write_failure.or_else(|| match record.state {
        _ if group.is_some() => group.map(|spec| group_reason(cluster, record, spec)),
        TaskState::Pending => pending_reason(cluster, entry, now, counts),
        TaskState::Paused => WindowState::of(record, now).and_then(|window| window.reason(record)),
        TaskState::Assigned | TaskState::Cancelling if !record.has_begun() => not_begun_reason(entry, now),
        TaskState::Lost => lost_reason(cluster, record),
        _ => None,
    });
    if live.is_none() && reason.is_none() && !record.is_group() && record.group.is_none() {
        return record.clone();
    }
    let mut shown = (**record).clone();
    shown.desired_state = shown_desire(cluster, record);
    if let Some(state) = &mut shown.members {
        let members = cluster.groups.get(&record.id);
        state.counts = members.map(GroupMembers::counts).unwrap_or_default();
        shown.progress = members.map(|members| total_progress(cluster, members)).unwrap_or_default();
    }
    if let Some(live) = live {
        shown.progress = live;
    }
    if let Some(reason) = reason {
        shown.reason = if shown.reason.is_empty() { reason } else { format!("{reason} ({})", shown.reason) };
    }
    Arc::new(shown)
}

/// Returns what is wanted of a task: the stronger one of what its client and its group want.
fn shown_desire(cluster: &ClusterState, record: &TaskRecord) -> DesiredState {
    let by_group = match group_demand(cluster, record) {
        GroupDemand::Pause => DesiredState::Pause,
        GroupDemand::Cancel => DesiredState::Cancel,
        GroupDemand::Run | GroupDemand::AwaitSeal | GroupDemand::Orphaned => DesiredState::Run,
    };
    if record.state.is_terminal() { record.desired() } else { record.desired().max(by_group) }
}

/// Returns the progress of all members together. The time that is left is that of the whole at the present rate.
fn total_progress(cluster: &ClusterState, members: &GroupMembers) -> Progress {
    let of = |id| cluster.tasks.get(id).map(|entry| entry.telemetry().unwrap_or(entry.record.progress));
    let mut total = members.ids().iter().filter_map(of).fold(Progress::default(), |total, one| Progress {
        planned: total.planned + one.planned,
        issued: total.issued + one.issued,
        written: total.written + one.written,
        durable: total.durable + one.durable,
        verified: total.verified + one.verified,
        rate_bytes_per_second: total.rate_bytes_per_second + one.rate_bytes_per_second,
        eta_seconds: None,
    });
    let rate = total.rate_bytes_per_second;
    #[allow(clippy::cast_precision_loss, reason = "an estimate")]
    let left = (rate > 0).then(|| total.planned.saturating_sub(total.written) as f64 / rate as f64);
    total.eta_seconds = left;
    total
}

/// Explains why a pending task is not assigned; `None` if it is about to be.
fn pending_reason(cluster: &ClusterState, entry: &TaskEntry, now: Now, counts: &mut ObstacleCounts) -> Option<String> {
    let (record, runtime) = (&entry.record, &entry.runtime);
    if let Some(reason) = demand_reason(cluster, record) {
        return Some(reason);
    }
    let group_starts_ms = cluster.group(record).and_then(TaskRecord::starts_ms);
    if let Some(starts_ms) = record.starts_ms().max(group_starts_ms)
        && starts_ms > now.unix_ms
        && record.is_unstarted()
    {
        return Some(format!("starts at {}", Timestamp(starts_ms)));
    }
    if let Some(reason) = waiting_reason(cluster, record) {
        return Some(reason);
    }
    if let Some(reason) = WindowState::of(record, now).and_then(|window| window.reason(record)) {
        return Some(reason);
    }
    if let (Some(member), Some(0)) = (&record.group, places_left(cluster, record)) {
        return Some(format!("waiting for other members of {}: as many run as its batch allows", member.group));
    }
    if let Some(reason) = lack_reason(cluster, record) {
        return Some(reason);
    }
    if let Some((volume, writer)) = cluster.earlier_writer(entry).filter(|_| record.is_unstarted()) {
        return Some(format!("waiting for task {writer}, which writes {volume}"));
    }
    if let Some(claim) = &runtime.blocked_by {
        if let Some(group) = claim.strip_prefix(&held_claim("")) {
            return Some(format!("waiting for {group}, for which the destination is kept free"));
        }
        let owner = cluster.claimed.get(claim).map_or_else(|| String::from("another task"), |id| format!("task {id}"));
        return Some(format!("waiting for {owner}, which has claimed the destination"));
    }
    if let Some(until) = entry.backoff_until(now) {
        let seconds = (until - now.boot).as_millis().div_ceil(1000);
        let nodes = failed_nodes(cluster, record).map(|failed| format!("; {failed}")).unwrap_or_default();
        return Some(format!("retry in {seconds} s{nodes}"));
    }
    unplaced_reason(cluster, entry, now, counts)
}

/// Returns the number of further members of the task's group that may run, if there is a bound and it has not run yet.
fn places_left(cluster: &ClusterState, record: &TaskRecord) -> Option<usize> {
    let member = record.group.as_ref().filter(|_| record.is_unstarted())?;
    cluster.places_left(&member.group)
}

/// Explains why an assigned task has not begun. A runner that reports to have the task keeps it: a slow volume or
/// server would be slow on other nodes, too.
fn not_begun_reason(entry: &TaskEntry, now: Now) -> Option<String> {
    let (record, runtime) = (&entry.record, &entry.runtime);
    let node = record.node()?;
    let given = Duration::from_millis(now.unix_ms.saturating_sub(record.attempts.last()?.started_ms));
    if given < SLOW {
        return None;
    }
    let seconds = given.as_secs();
    let what = match (&runtime.assign_reply, runtime.start_stage) {
        (AssignReply::Refused { .. }, _) => return None,
        (AssignReply::Accepted, None) => "reports no reason",
        (_, None) => return Some(format!("assigned {seconds} s ago to {node}, which has not answered")),
        (_, Some(StartStage::Reading)) => "reading the task's record",
        (_, Some(StartStage::Leasing)) => "waiting for its lease to be renewed",
        (_, Some(StartStage::Opening)) => "opening the volumes, or waiting for the destination's lock",
        (_, Some(StartStage::Storing)) => "storing that it begins",
    };
    Some(format!("assigned {seconds} s ago to {node}, which has not begun to write: {what}"))
}

/// Explains what a lost task waits for, by its fence.
fn lost_reason(cluster: &ClusterState, record: &TaskRecord) -> Option<String> {
    let runner = &record.attempts.last()?.runner;
    let node = &runner.node;
    match record.spec.kind().fence() {
        FenceMethod::Local => Some(format!("waiting for {node} to come back: only it has the destination")),
        FenceMethod::Lease => Some(format!("waiting until the lease of {node} ends")),
        FenceMethod::Manual => {
            Some(format!("waiting for 'blockhaul fence {node} --confirm': confirm that the node is off"))
        }
        FenceMethod::Command => match cluster.fences.get(&(node.clone(), runner.incarnation.0.clone())) {
            Some(FenceProgress::Failed { why, .. }) => Some(format!("fencing {node} failed: {why}")),
            _ => Some(format!("waiting for the fence program to cut off {node}")),
        },
    }
}
