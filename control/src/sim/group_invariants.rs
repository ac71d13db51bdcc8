//! Checks the invariants of groups: what their specification says, from the committed records alone.

use super::invariants::{InvariantChecker, ObservedState};
use crate::model::{DesiredState, GroupTask, TaskId, TaskRecord, TaskState};
use std::time::Duration;

/// Longest time that a write of the leader is under way.
const IN_FLIGHT_MAX: Duration = Duration::from_secs(30);

impl InvariantChecker {
    /// Checks a write of a member that starts it: its group is sealed, wants it to run, and has a place for it.
    pub(super) fn check_member_start(&self, observed: &ObservedState, before: &TaskRecord, after: &TaskRecord) {
        let Some(member) = &after.group else { return };
        let id = &after.id;
        let (was, is) = (before.group.as_ref(), after.group.as_ref());
        let is_kept = was.is_some_and(|was| is.is_some_and(|is| was.group == is.group && was.clean_up == is.clean_up));
        self.result.expect(is_kept, || format!("{id}: its membership became {is:?}"));
        if !before.attempts.is_empty() || after.attempts.is_empty() {
            return;
        }
        self.result.count("members started");
        let Some((group, spec)) =
            observed.group(&member.group).filter(|(group, _)| group.created_ms == member.created_ms)
        else {
            return self.result.fail(format_args!("{id} started, and its group is gone"));
        };
        let is_sealed = group.members.as_ref().is_some_and(|state| state.sealed_ms.is_some());
        self.result.expect(is_sealed && !group.state.is_terminal(), || {
            format!("{id} started, and its group is {:?}: {:?}", group.state, group.members)
        });
        let spares = member.clean_up && !group.members.as_ref().is_some_and(|state| state.cancels_clean_up);
        let is_wanted = match group.desired_state {
            DesiredState::Cancel => spares,
            DesiredState::Pause => false,
            DesiredState::Run => true,
        };
        // An assignment may have been under way when the group's record was written.
        let is_known = observed.since_change(&group.id).is_some_and(|since| since > IN_FLIGHT_MAX);
        self.result.expect(is_wanted || !is_known, || {
            format!("{id} started, and its group is to {:?} for long", group.desired_state)
        });
        let running = observed.members(&group.id).filter(|other| other.id != *id && is_running(other)).count();
        let has_place = spec.parallel.is_none_or(|parallel| running < parallel as usize);
        self.result.expect(has_place, || format!("{id} started while {running} of {:?} members run", spec.parallel));
    }

    /// Checks a write of a group: it ends with its last member, as its members have ended.
    pub(super) fn check_group(&self, observed: &ObservedState, before: &TaskRecord, after: &TaskRecord) {
        let (Some(spec), Some(state)) = (after.spec.kind().group(), &after.members) else { return };
        let id = &after.id;
        let fail = |what: String| self.result.fail(format_args!("{id}: {what}"));
        if before.error.is_some() && after.error != before.error {
            fail(format!("its first failure became {:?}", after.error));
        }
        let sealed = |record: &TaskRecord| record.members.as_ref().and_then(|state| state.sealed_ms);
        if sealed(before).is_some() && sealed(after) != sealed(before) {
            fail(String::from("its seal was changed"));
        }
        let members = || observed.members(id);
        if after.schedule.is_some() && sealed(before).is_none() {
            if sealed(after).is_some() {
                self.result.count("groups of schedules sealed");
            } else if after.state != TaskState::Pending {
                fail(String::from("its schedule has not completed it"));
            }
        }
        if sealed(before).is_none() && sealed(after).is_some() && members().count() != spec.members as usize {
            fail(format!("was sealed with {} of {} members", members().count(), spec.members));
        }
        if before.state.is_terminal() || !after.state.is_terminal() {
            return;
        }
        self.result.count(match after.state {
            TaskState::Succeeded => "groups succeeded",
            TaskState::Failed => "groups failed",
            _ => "groups cancelled",
        });
        if let Some(open) = members().find(|member| !observed.is_settled(member)) {
            fail(format!("ended while {} is {:?}", open.id, open.state));
        }
        let any = |wanted: TaskState| members().any(|member| member.state == wanted);
        let is_complete = members().count() == spec.members as usize;
        let wanted = if any(TaskState::Failed) || (state.sealed_ms.is_some() && !is_complete) {
            TaskState::Failed
        } else if any(TaskState::Cancelled) || state.sealed_ms.is_none() {
            TaskState::Cancelled
        } else {
            TaskState::Succeeded
        };
        if after.state != wanted {
            fail(format!("ended as {:?}, and its members as {wanted:?}", after.state));
        }
    }
}

impl ObservedState {
    fn group(&self, id: &TaskId) -> Option<(&TaskRecord, &GroupTask)> {
        let record = self.record(id)?;
        Some((record, record.spec.kind().group()?))
    }

    fn members<'a>(&'a self, group: &'a TaskId) -> impl Iterator<Item = &'a TaskRecord> {
        self.records().filter(move |record| record.group.as_ref().is_some_and(|member| member.group == *group))
    }

    /// Tells whether a group waits for its client or for its members, or a member for its group.
    pub(super) fn waits_in_group(&self, record: &TaskRecord) -> bool {
        if let Some(state) = &record.members {
            return state.sealed_ms.is_none() || self.members(&record.id).any(|member| !self.is_settled(member));
        }
        let Some(member) = record.group.as_ref().filter(|_| record.attempts.is_empty()) else { return false };
        let Some((group, spec)) = self.group(&member.group) else { return false };
        let running = self.members(&group.id).filter(|other| is_running(other)).count();
        let is_full = spec.parallel.is_some_and(|parallel| running >= parallel as usize);
        matches!(group.state, TaskState::Pending | TaskState::Paused) || is_full
    }
}

fn is_running(record: &TaskRecord) -> bool {
    !record.state.is_terminal() && !record.attempts.is_empty()
}

/// Tells whether the specification allows a transition of a group. Only the leader writes its record.
pub(super) fn is_group_transition(before: TaskState, after: TaskState) -> bool {
    use TaskState::{Cancelled, Cancelling, Failed, Paused, Pending, Running, Succeeded};
    match before {
        Pending => matches!(after, Running | Paused | Cancelling),
        Running | Paused => matches!(after, Running | Paused | Cancelling | Succeeded | Failed | Cancelled),
        Cancelling => matches!(after, Succeeded | Failed | Cancelled),
        _ => false,
    }
}
