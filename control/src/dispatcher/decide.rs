//! Decides what the leader does next, as a pure function of the cluster state and the time.
//!
//! Only tasks that are due and the heads of the queue are considered, so that a decision costs the same with ten tasks
//! as with fifty thousand. Enacting a decision changes the cluster state, so that it is not made twice. `decide` is
//! called until it returns nothing.

use super::cluster_state::{ClusterState, FenceProgress, reading_claim};
use super::decision::{Budget, Decision};
use super::dependencies::{self, DependencyStatus};
use super::groups;
use super::level::decide_level;
use super::now::Now;
use super::place;
use super::schedules::decide_schedules;
use super::settings::awaits_notification;
use super::tasks::{AssignReply, TaskEntry};
use super::windows::WindowState;
use crate::model::state_machine::{Checkpoint, FenceProof, TaskEvent};
use crate::model::{Attempt, DesiredState, Failure, FenceMethod, TaskId, TaskRecord, TaskState};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::time::Duration;

/// Time between two calls to a runner that has not answered, or has not yet applied its task's record.
pub(crate) const CALL_EVERY: Duration = Duration::from_secs(1);
/// Time between two queries of a runner that has accepted a task and not begun it.
pub(crate) const QUERY_EVERY: Duration = Duration::from_secs(5);

/// Longest time between two checks whether an ended task's retention has passed.
const RETENTION_CHECK_MAX: Duration = Duration::from_secs(60 * 60);
/// Time between two of these checks while no other node's clock is known.
const RETENTION_CHECK: Duration = Duration::from_secs(10);

/// Longest time between two looks at the wall clock for a start or a deadline: clocks may be set meanwhile.
const CLOCK_CHECK_MAX: Duration = Duration::from_secs(60);

/// Time between two checks whether a predecessor that has ended is settled: its node may have come back.
const SETTLED_CHECK: Duration = Duration::from_secs(5);

/// Longest time between two checks whether a failed task's backoff is over.
const BACKOFF_CHECK_MAX: Duration = Duration::from_secs(10);

/// Times and bounds of decisions, as in [`Config`](super::Config).
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecisionLimits {
    pub(crate) retention: Duration,
    pub(crate) quiet_after: Duration,
    pub(crate) hold_off: Duration,
    pub(crate) answer_within: Duration,
    pub(crate) tasks_max: usize,
    pub(crate) ended_max: usize,
}

/// Returns what to do now, within the budget of writes and calls.
pub(crate) fn decide(cluster: &ClusterState, limits: &DecisionLimits, now: Now, budget: Budget) -> Vec<Decision> {
    let mut decisions = Vec::new();
    let mut budget = budget;
    for (node, at) in &cluster.interrupts {
        if *at <= now.boot && budget.spend_call() {
            decisions.push(Decision::Interrupt(node.clone()));
        }
    }
    if let Some(decision) = decide_level(cluster, now).filter(|decision| budget.spend(decision)) {
        decisions.push(decision);
    }
    for id in cluster.due(now.boot) {
        let Some(entry) = cluster.tasks.get(id) else { continue };
        let decision = decide_task(cluster, entry, limits, now);
        if !budget.spend(&decision) {
            break;
        }
        decisions.push(decision);
    }
    purge_surplus(cluster, limits, now, &mut budget, &mut decisions);
    decide_schedules(cluster, limits.tasks_max, now, &mut budget, &mut decisions);
    place::assign_ready(cluster, now, &mut budget, &mut decisions);
    decisions
}

/// Purges ended tasks, the first submitted first, while there are more than `tasks_max` tasks, or more than `ended_max` of
/// them have ended.
fn purge_surplus(
    cluster: &ClusterState,
    limits: &DecisionLimits,
    now: Now,
    budget: &mut Budget,
    decisions: &mut Vec<Decision>,
) {
    let tasks = &cluster.tasks;
    let over = tasks.len().saturating_sub(limits.tasks_max);
    let surplus = over.max(tasks.ended().len().saturating_sub(limits.ended_max));
    if surplus == 0 {
        return;
    }
    let may_go = |id: &&TaskId| {
        cluster.tasks.get(id).is_some_and(|entry| entry.record.claims.is_empty()) && !cluster.is_needed(id)
    };
    for id in cluster.tasks.ended().filter(may_go).take(surplus) {
        let is_free = |entry: &TaskEntry| !entry.runtime.is_busy && entry.runtime.next_write <= now.boot;
        let decision = Decision::Purge(id.clone());
        if cluster.tasks.get(id).is_some_and(is_free) && !decisions.contains(&decision) {
            if !budget.spend(&decision) {
                return;
            }
            decisions.push(decision);
        }
    }
}

/// Decides about one task that is due.
fn decide_task(cluster: &ClusterState, entry: &TaskEntry, limits: &DecisionLimits, now: Now) -> Decision {
    let record = &entry.record;
    let id = || record.id.clone();
    if entry.runtime.is_busy {
        return Decision::Idle(id());
    }
    if entry.runtime.next_write > now.boot {
        return Decision::WakeAt(id(), entry.runtime.next_write);
    }
    if let Some(drained) = drained(cluster, entry, limits, now) {
        return drained;
    }
    if awaits_notification(&cluster.settings.0, record) {
        return Decision::NotifyFailure(id());
    }
    let deadline = deadline(record, now);
    if let Some(Deadline::Passed) = deadline {
        return Decision::Transition { task: id(), events: vec![TaskEvent::DeadlinePassed] };
    }
    let window = WindowState::of(record, now);
    if let Some(change) = window.and_then(|window| window.decide(record)) {
        return change;
    }
    let at_deadline = match deadline {
        Some(Deadline::At(at)) => Some(at),
        _ => None,
    };
    let again = [at_deadline, window.map(|window| window.look_again(now))].into_iter().flatten().min();
    match (decide_before_deadline(cluster, entry, limits, now), again) {
        (Decision::Idle(task), Some(at)) => Decision::WakeAt(task, at),
        (Decision::WakeAt(task, until), Some(at)) => Decision::WakeAt(task, until.min(at)),
        (decision, _) => decision,
    }
}

fn decide_before_deadline(cluster: &ClusterState, entry: &TaskEntry, limits: &DecisionLimits, now: Now) -> Decision {
    let record = &entry.record;
    let id = || record.id.clone();
    if let Some(spec) = record.spec.kind().group().filter(|_| !record.state.is_terminal()) {
        return groups::decide_group(cluster, entry, spec, now);
    }
    if let Some(demanded) = groups::decide_member(cluster, record, now) {
        return demanded;
    }
    let (decision, again) = match record.state {
        TaskState::Pending | TaskState::Paused if !record.after.is_empty() || record.retry_of.is_some() => {
            waiting(cluster, entry, now)
        }
        TaskState::Pending => (pending(cluster, entry, now), None),
        TaskState::Assigned => assigned(cluster, entry, limits, now),
        TaskState::Running | TaskState::Verifying => running(cluster, entry, now),
        TaskState::Cancelling if record.has_begun() => running(cluster, entry, now),
        TaskState::Cancelling => assigned(cluster, entry, limits, now),
        TaskState::Lost => lost(cluster, entry, limits, now),
        TaskState::Paused => (Decision::Idle(id()), None),
        TaskState::Succeeded | TaskState::Failed | TaskState::Cancelled | TaskState::Skipped => {
            (ended(cluster, record, limits, now), None)
        }
    };
    let Decision::Idle(_) = decision else { return decision };
    let drained_at = entry.runtime.undrained.iter().map(|(_, since)| *since + limits.quiet_after).min();
    let drained_at = drained_at.filter(|_| record.spec.kind().fence() == FenceMethod::Lease);
    match [again, drained_at].into_iter().flatten().min() {
        Some(at) => Decision::WakeAt(id(), at),
        None => decision,
    }
}

/// Marks ended attempts as drained whose last requests are over by now: under a lease after a time, and of an ended local
/// copy when its node runs another process, as the destination's lock is free only then. With other fences a proof of the
/// fence shows that.
fn drained(cluster: &ClusterState, entry: &TaskEntry, limits: &DecisionLimits, now: Now) -> Option<Decision> {
    let record = &entry.record;
    let is_over = |attempt: &Attempt| match record.spec.kind().fence() {
        FenceMethod::Lease => {
            let seen = entry.runtime.undrained.iter().find(|(grant, _)| *grant == attempt.epoch);
            seen.is_some_and(|(_, since)| *since + limits.quiet_after <= now.boot)
        }
        FenceMethod::Local => {
            let there = cluster.fleet.get(&attempt.runner.node);
            let is_back = there.is_some_and(|there| there.incarnation != attempt.runner.incarnation);
            record.state.is_terminal() && is_back
        }
        FenceMethod::Command | FenceMethod::Manual => false,
    };
    let is_over = |attempt: &Attempt| !attempt.quiet && attempt.ended_ms.is_some() && is_over(attempt);
    let over = record.attempts.iter().enumerate().filter(|(_, attempt)| is_over(attempt));
    let events: Vec<TaskEvent> = over.map(|(index, _)| TaskEvent::AttemptDrained { attempt: index }).collect();
    (!events.is_empty()).then(|| Decision::Transition { task: record.id.clone(), events })
}

/// Decides about a task that depends on others: it is skipped if a dependency is broken, and waits until all are met.
fn waiting(cluster: &ClusterState, entry: &TaskEntry, now: Now) -> (Decision, Option<Duration>) {
    let record = &entry.record;
    match dependencies::dependency_status(cluster, record) {
        DependencyStatus::Broken(error) => {
            let events = vec![TaskEvent::DependencyBroken(error)];
            (Decision::Transition { task: record.id.clone(), events }, None)
        }
        DependencyStatus::Waiting { may_settle } => idle(record, may_settle.then_some(now.boot + SETTLED_CHECK)),
        DependencyStatus::Met if record.state == TaskState::Pending => (pending(cluster, entry, now), None),
        DependencyStatus::Met => idle(record, None),
    }
}

/// Decides about a pending task: it is assigned once its destination is resolved, rejected, postponed, or queued.
fn pending(cluster: &ClusterState, entry: &TaskEntry, now: Now) -> Decision {
    let (record, runtime) = (&entry.record, &entry.runtime);
    let id = record.id.clone();
    if runtime.is_calling {
        return Decision::Idle(id);
    }
    if let Some((to, claims)) = &runtime.resolved
        && record.may_run_on(&to.node)
        && cluster
            .fleet
            .get(&to.node)
            .is_some_and(|registration| registration.incarnation == to.incarnation && !registration.stopping)
    {
        let assigned = TaskEvent::Assigned { to: to.clone(), claims: claims.clone() };
        return Decision::Transition { task: id, events: vec![assigned] };
    }
    if let AssignReply::Refused { code, why } = &runtime.assign_reply {
        return Decision::Transition { task: id, events: vec![TaskEvent::Rejected(failure(*code, why))] };
    }
    if let Some(until) = start_wait(record, now) {
        return Decision::WakeAt(id, until);
    }
    if let Some(window) = WindowState::of(record, now).filter(|window| !window.is_open) {
        return Decision::WakeAt(id, window.look_again(now));
    }
    if let Some(until) = entry.backoff_until(now) {
        // Checked more often than that, as the wall clock may be set meanwhile.
        return Decision::WakeAt(id, until.min(now.boot + BACKOFF_CHECK_MAX));
    }
    if record.is_unstarted()
        && let Some((volume, _)) = cluster.earlier_writer(entry)
    {
        return Decision::Await(id, reading_claim(&volume));
    }
    match record.only_node() {
        Err(error) => Decision::Transition { task: id, events: vec![TaskEvent::Rejected(Failure::from(&error))] },
        Ok(Some(node)) => match runtime.backoffs.get(&node) {
            Some(backoff) if backoff.until > now.boot => Decision::WakeAt(id, backoff.until),
            _ => Decision::Queue(id, Some(node)),
        },
        Ok(None) => Decision::Queue(id, None),
    }
}

/// Decides about a task that its runner has not begun: calls the runner, and revokes a task that it does not have.
fn assigned(
    cluster: &ClusterState,
    entry: &TaskEntry,
    limits: &DecisionLimits,
    now: Now,
) -> (Decision, Option<Duration>) {
    let (record, runtime) = (&entry.record, &entry.runtime);
    let Some(holder) = &record.holder else { return idle(record, None) };
    let transition = |event| (Decision::Transition { task: record.id.clone(), events: vec![event] }, None);
    if cluster.fleet.is_unreadable(&holder.node) {
        return idle(record, None);
    }
    if cluster.fleet.peer(holder).is_none() {
        return holder_missing(cluster, entry);
    }
    if let AssignReply::Refused { code, why } = &runtime.assign_reply {
        let is_only = matches!(record.spec.kind().node(), Ok(Some(_)));
        if is_only && is_final(*code) && record.desired() == DesiredState::Run {
            return transition(failed(record, failure(*code, why)));
        }
        return transition(TaskEvent::Revoked { code: *code, why: format!("{}: {why}", holder.node) });
    }
    if runtime.assign_reply != AssignReply::Accepted && runtime.since + limits.answer_within <= now.boot {
        let why = format!("{} did not answer within {} s", holder.node, limits.answer_within.as_secs());
        return transition(TaskEvent::Revoked { code: Code::Unreachable, why });
    }
    if runtime.is_calling {
        return idle(record, Some(runtime.since + limits.answer_within));
    }
    if runtime.next_call > now.boot {
        return idle(record, Some(runtime.next_call));
    }
    let (id, holder) = (record.id.clone(), holder.clone());
    match runtime.assign_reply {
        AssignReply::NotCalled if record.state == TaskState::Assigned => (Decision::Assign(id, holder), None),
        AssignReply::Accepted if record.desired() != DesiredState::Run || record.is_leaving() => {
            (Decision::Notify(id, holder), None)
        }
        _ => (Decision::Query(id, holder), None),
    }
}

/// Decides about a task that has begun: notifies the runner until it has applied the record, and notes its loss.
fn running(cluster: &ClusterState, entry: &TaskEntry, now: Now) -> (Decision, Option<Duration>) {
    let (record, runtime) = (&entry.record, &entry.runtime);
    let Some(holder) = &record.holder else { return idle(record, None) };
    if cluster.fleet.is_unreadable(&holder.node) {
        return idle(record, None);
    }
    if cluster.fleet.peer(holder).is_none() {
        return holder_missing(cluster, entry);
    }
    let is_to_stop = record.desired() != DesiredState::Run || record.is_leaving();
    if !(is_to_stop || runtime.needs_notification) || runtime.is_calling {
        return idle(record, None);
    }
    if runtime.next_call > now.boot {
        return idle(record, Some(runtime.next_call));
    }
    (Decision::Notify(record.id.clone(), holder.clone()), None)
}

/// Decides about a task whose holder was not registered when the runners were read last.
fn holder_missing(cluster: &ClusterState, entry: &TaskEntry) -> (Decision, Option<Duration>) {
    let task = entry.record.id.clone();
    if cluster.is_holder_gone(entry) {
        return (Decision::Transition { task, events: vec![TaskEvent::RunnerLost] }, None);
    }
    (Decision::ReadRunners(task), None)
}

/// Decides about a task whose runner is lost: fences that runner as the task's fence demands.
fn lost(cluster: &ClusterState, entry: &TaskEntry, limits: &DecisionLimits, now: Now) -> (Decision, Option<Duration>) {
    let (record, runtime) = (&entry.record, &entry.runtime);
    let transition = |event| (Decision::Transition { task: record.id.clone(), events: vec![event] }, None);
    let Some(runner) = record.attempts.last().map(|attempt| &attempt.runner) else { return idle(record, None) };
    let registration = cluster.fleet.get(&runner.node);
    // Its node may come back, and is waited for as the center's settings say.
    let grace = runtime.since + Duration::from_millis(cluster.settings.0.lost_grace_ms);
    if registration.is_none() && grace > now.boot && record.desired() == DesiredState::Run {
        return idle(record, Some(grace));
    }
    match record.spec.kind().fence() {
        FenceMethod::Local => match registration {
            Some(registration) if registration.incarnation == runner.incarnation && record.holder.is_some() => {
                transition(TaskEvent::RunnerReturned)
            }
            Some(_) => transition(TaskEvent::Fenced(FenceProof::NodeBack)),
            None if record.desired() == DesiredState::Run => idle(record, None),
            None if runtime.since + limits.quiet_after <= now.boot => transition(TaskEvent::Fenced(FenceProof::Waited)),
            None => idle(record, Some(runtime.since + limits.quiet_after)),
        },
        FenceMethod::Lease if runtime.since + limits.hold_off <= now.boot => {
            transition(TaskEvent::Fenced(FenceProof::LeaseOver))
        }
        FenceMethod::Lease => idle(record, Some(runtime.since + limits.hold_off)),
        FenceMethod::Command => match cluster.fences.get(&(runner.node.clone(), runner.incarnation.0.clone())) {
            Some(FenceProgress::Done) => transition(TaskEvent::Fenced(FenceProof::Command)),
            Some(FenceProgress::Running) => idle(record, None),
            Some(FenceProgress::Failed { backoff, .. }) if backoff.until > now.boot => {
                idle(record, Some(backoff.until))
            }
            Some(FenceProgress::Failed { .. }) | None => (Decision::Fence(runner.clone()), None),
        },
        FenceMethod::Manual => idle(record, None),
    }
}

/// Decides about an ended task: purges it once its retention has passed by every clock, and no other task needs it. A
/// member is kept as long as its group, which is purged last.
fn ended(cluster: &ClusterState, record: &TaskRecord, limits: &DecisionLimits, now: Now) -> Decision {
    // The node of an attempt that may still write may come back: then that attempt has drained.
    let waits_for_node = !record.is_quiet() && record.spec.kind().fence() == FenceMethod::Local;
    if !record.claims.is_empty() || cluster.is_needed(&record.id) {
        return if waits_for_node {
            Decision::WakeAt(record.id.clone(), now.boot + SETTLED_CHECK)
        } else {
            Decision::Idle(record.id.clone())
        };
    }
    let group = cluster.group(record).unwrap_or(record);
    if cluster.schedules.is_surplus(group) {
        return Decision::Purge(record.id.clone());
    }
    if group.members.as_ref().is_some_and(|members| members.is_removed) {
        return Decision::Purge(record.id.clone());
    }
    let retention_ms = u64::try_from(limits.retention.as_millis()).unwrap_or(u64::MAX);
    let end_ms = record.updated_ms.max(group.updated_ms).saturating_add(retention_ms);
    let left = match now.sure_ms {
        Some(sure_ms) if end_ms <= sure_ms => return Decision::Purge(record.id.clone()),
        // Clocks may be set right meanwhile.
        Some(sure_ms) => Duration::from_millis(end_ms - sure_ms).min(RETENTION_CHECK_MAX),
        None => RETENTION_CHECK,
    };
    let left = if waits_for_node { left.min(SETTLED_CHECK) } else { left };
    Decision::WakeAt(record.id.clone(), now.boot + left)
}

/// Deadline of a task that has not ended and is not being ended.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Deadline {
    /// It has passed by every clock.
    Passed,
    /// It is to be checked again at this boot time.
    At(Duration),
}

/// Returns the deadline of a task. A clock that runs ahead must not end a task early, so that all clocks count.
pub(crate) fn deadline(record: &TaskRecord, now: Now) -> Option<Deadline> {
    let ends_ms =
        record.ends_ms().filter(|_| !record.state.is_terminal() && record.desired_state != DesiredState::Cancel)?;
    let left = match now.sure_ms {
        Some(sure_ms) if ends_ms <= sure_ms => return Some(Deadline::Passed),
        Some(sure_ms) => Duration::from_millis(ends_ms - sure_ms).min(CLOCK_CHECK_MAX),
        None => RETENTION_CHECK,
    };
    Some(Deadline::At(now.boot + left))
}

/// Returns the boot time until which a task must not start because of what its client says, if it must not.
pub(crate) fn start_wait(record: &TaskRecord, now: Now) -> Option<Duration> {
    let starts_ms = record.starts_ms().filter(|starts_ms| *starts_ms > now.unix_ms && record.is_unstarted())?;
    Some(now.at_unix(starts_ms).min(now.boot + CLOCK_CHECK_MAX))
}

/// Does nothing, until `again` if that is known.
fn idle(record: &TaskRecord, again: Option<Duration>) -> (Decision, Option<Duration>) {
    (Decision::Idle(record.id.clone()), again)
}

/// Tells whether the same runner would refuse the task again, whenever it is asked.
pub(crate) fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::Permission
            | Code::NotFound
            | Code::BadRequest
            | Code::Unsupported
            | Code::SameVolume
            | Code::ReadOnly
            | Code::SizeMismatch
            | Code::Exists
    )
}

fn failure(code: Code, why: &str) -> Failure {
    Failure::from(&Error::new(code, Side::Caller, Operation::Open, why))
}

fn failed(record: &TaskRecord, error: Failure) -> TaskEvent {
    let checkpoint = Checkpoint { progress: record.progress, map: record.map.clone() };
    TaskEvent::Failed { error, retry_at_ms: 0, checkpoint, report: None }
}
