//! Describes a task after a change, as far as those who follow all tasks see it.

use crate::model::{DesiredState, NodeId, ScheduleName, TaskId, TaskRecord, TaskState};

/// Task after a change, or as it was before it was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TaskChange {
    pub(crate) id: TaskId,
    /// Name of its kind, as `copy`.
    pub(crate) kind: &'static str,
    pub(crate) state: TaskState,
    pub(crate) desired_state: DesiredState,
    /// Reason as it is stored.
    pub(crate) reason: String,
    /// Node that has it, or had it last; of a waiting task, the only one that may run it.
    pub(crate) node: Option<NodeId>,
    /// Version of its record: one more with each write.
    pub(crate) version: i32,
    pub(crate) group: Option<TaskId>,
    pub(crate) schedule: Option<ScheduleName>,
    /// Whether its record is gone, or cannot be decoded any more.
    pub(crate) is_removed: bool,
}

impl TaskChange {
    /// Describes a stored record.
    #[must_use]
    pub(crate) fn of(record: &TaskRecord, version: i32) -> Self {
        let summary = record.spec.kind().summary();
        Self {
            id: record.id.clone(),
            kind: summary.kind,
            state: record.state,
            desired_state: record.desired(),
            reason: record.reason.clone(),
            node: record.shown_node().cloned().or(summary.node),
            version,
            group: record.group.as_ref().map(|member| member.group.clone()),
            schedule: record.schedule.clone(),
            is_removed: false,
        }
    }

    /// Describes a task whose record is gone by its last one.
    #[must_use]
    pub(crate) fn removed(last: &TaskRecord, version: i32) -> Self {
        Self { is_removed: true, ..Self::of(last, version) }
    }

    /// Returns the memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        let node = self.node.as_ref().map_or(0, |node| node.as_str().len());
        let group = self.group.as_ref().map_or(0, |group| group.as_str().len());
        let schedule = self.schedule.as_ref().map_or(0, |schedule| schedule.as_str().len());
        size_of::<Self>() + self.id.as_str().len() + self.reason.len() + node + group + schedule
    }
}

/// Tells whether two records of one task differ in nothing but its progress.
pub(crate) fn is_progress_only(before: &TaskRecord, after: &TaskRecord) -> bool {
    let TaskRecord {
        id,
        spec,
        after: dependencies,
        group,
        members,
        times,
        placement,
        windows,
        is_outside_windows,
        retry_of,
        submitted_times,
        schedule,
        notifies,
        order,
        is_notified,
        moving,
        is_overdue,
        state,
        desired_state,
        priority,
        max_attempts,
        failures,
        reason,
        not_before_ms,
        holder,
        epoch,
        claims,
        admitted,
        attempts,
        progress: _,
        map: _,
        durable_best: _,
        error,
        report,
        created_ms,
        updated_ms,
        transitions: _,
        op: _,
        unknown,
    } = before;
    (id, spec, dependencies, group, members) == (&after.id, &after.spec, &after.after, &after.group, &after.members)
        && (times, retry_of, submitted_times) == (&after.times, &after.retry_of, &after.submitted_times)
        && (placement, windows, is_outside_windows) == (&after.placement, &after.windows, &after.is_outside_windows)
        && (schedule, notifies, order, is_notified)
            == (&after.schedule, &after.notifies, &after.order, &after.is_notified)
        && (moving, is_overdue, state, desired_state)
            == (&after.moving, &after.is_overdue, &after.state, &after.desired_state)
        && (priority, max_attempts, failures) == (&after.priority, &after.max_attempts, &after.failures)
        && (reason, not_before_ms, holder, epoch) == (&after.reason, &after.not_before_ms, &after.holder, &after.epoch)
        && (claims, admitted, attempts) == (&after.claims, &after.admitted, &after.attempts)
        && (error, report, created_ms, updated_ms)
            == (&after.error, &after.report, &after.created_ms, &after.updated_ms)
        && *unknown == after.unknown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::state_machine::{Checkpoint, TaskEvent, next};
    use crate::model::{Epoch, Holder, Incarnation, NoopTask, Progress, Submission, TaskChanges, TaskSpec};

    fn running() -> TaskRecord {
        let spec = TaskSpec::Noop(NoopTask::new(1, None));
        let record = TaskRecord::new(Submission::new(TaskId::new("t").unwrap(), 0, 5, spec), 0);
        let to = Holder { node: NodeId::new("n1").unwrap(), incarnation: Incarnation(String::from("i")) };
        let given = next(&record, TaskEvent::Assigned { to, claims: vec![String::from("c")] }, 1).unwrap();
        next(&given, TaskEvent::Started { epoch: Epoch(3) }, 2).unwrap()
    }

    #[test]
    fn a_checkpoint_is_no_change_and_everything_else_is() {
        let before = running();
        let progress = Progress { planned: 9, durable: 5, ..Progress::default() };
        let checkpoint = Checkpoint { progress, ..Checkpoint::default() };
        let further = next(&before, TaskEvent::Checkpointed(checkpoint.clone()), 3).unwrap();
        assert_ne!(before, further);
        assert!(is_progress_only(&before, &further));
        let priority = TaskChanges { priority: Some(9), ..TaskChanges::default() };
        for event in [
            TaskEvent::ChangesRequested(priority),
            TaskEvent::CancelRequested,
            TaskEvent::Written(checkpoint.clone()),
            TaskEvent::Blocked { why: String::from("process 7 survives") },
            TaskEvent::Succeeded { checkpoint, report: None },
        ] {
            assert!(!is_progress_only(&before, &next(&before, event.clone(), 3).unwrap()), "{event:?}");
        }
    }

    #[test]
    fn a_change_says_what_a_list_says() {
        let change = TaskChange::of(&running(), 7);
        assert_eq!((change.kind, change.state, change.version), ("noop", TaskState::Running, 7));
        assert_eq!(change.node.as_ref().map(NodeId::as_str), Some("n1"));
        let gone = TaskChange::removed(&running(), 7);
        assert_eq!(TaskChange { is_removed: false, ..gone }, change);
    }
}
