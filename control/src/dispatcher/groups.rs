//! Indexes the members of groups, and judges what a group wants of a member and when the group ends. Pure.
//!
//! Nothing is remembered besides the records: a new leader comes to the same judgement from the same records. A member
//! that has not started is never written to because of its group, except to end it: the group's own record counts.

use super::cluster_state::ClusterState;
use super::decide::start_wait;
use super::decision::Decision;
use super::dependencies::is_settled;
use super::held_places::lack_reason;
use super::now::Now;
use super::schedule_groups::{decide_unsealed, schedule_failure};
use super::tasks::TaskEntry;
use crate::batch::OnFailure;
use crate::coord::paths;
use crate::model::state_machine::TaskEvent;
use crate::model::{DesiredState, Failure, GroupTask, Membership, TaskId, TaskRecord, TaskState};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use strum::VariantArray;

/// Time after which a group is cancelled that is not sealed, and to which no member was added meanwhile.
const SEAL_WITHIN: Duration = Duration::from_secs(10 * 60);

/// Members of all groups, by the group's name.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    by_group: BTreeMap<TaskId, GroupMembers>,
    /// Groups that hold their place, are sealed and have not ended.
    holding: BTreeSet<TaskId>,
}

/// Members of one group that are stored.
#[derive(Debug, Default)]
pub(crate) struct GroupMembers {
    ids: BTreeSet<TaskId>,
    counts: [usize; TaskState::VARIANTS.len()],
    /// Number of members that have not ended, or of which a write may still land.
    unsettled: usize,
    failed: BTreeSet<TaskId>,
    /// Members that have started and not ended, and those that are being assigned.
    running: BTreeSet<TaskId>,
    /// Members that are about to be stored.
    announced: BTreeSet<TaskId>,
    /// Boot time at which this leader last saw a new member.
    added_at: Duration,
}

impl Groups {
    pub(crate) fn get(&self, group: &TaskId) -> Option<&GroupMembers> {
        self.by_group.get(group)
    }

    /// Returns the groups that hold their place, are sealed and have not ended.
    pub(crate) fn holding(&self) -> impl Iterator<Item = &TaskId> {
        self.holding.iter()
    }

    /// Tells whether a group holds its place, is sealed and has not ended.
    pub(crate) fn is_holding(&self, group: &TaskId) -> bool {
        self.holding.contains(group)
    }

    /// Adds the record of a group or of a member.
    pub(crate) fn index(&mut self, record: &TaskRecord, now: Duration) {
        if holds_place(record) {
            self.holding.insert(record.id.clone());
        }
        let Some(member) = &record.group else { return };
        let members = self.by_group.entry(member.group.clone()).or_default();
        if members.ids.insert(record.id.clone()) {
            members.added_at = now;
        }
        members.counts[record.state as usize] += 1;
        members.unsettled += usize::from(!is_settled(record));
        if record.state == TaskState::Failed {
            members.failed.insert(record.id.clone());
        }
        if is_running(record) {
            members.running.insert(record.id.clone());
        }
    }

    /// Removes the record of a group or of a member. A member that `is_reserved` is being assigned, and keeps its place.
    pub(crate) fn unindex(&mut self, record: &TaskRecord, is_reserved: bool) {
        if record.is_group() {
            self.holding.remove(&record.id);
        }
        let Some(member) = &record.group else { return };
        let Some(members) = self.by_group.get_mut(&member.group) else { return };
        members.ids.remove(&record.id);
        members.counts[record.state as usize] -= 1;
        members.unsettled -= usize::from(!is_settled(record));
        members.failed.remove(&record.id);
        if !is_reserved {
            members.running.remove(&record.id);
        }
        self.drop_empty(&member.group);
    }

    /// Notes that a member is about to be stored: its group does not end before.
    pub(crate) fn announce(&mut self, group: &TaskId, member: &TaskId) {
        self.by_group.entry(group.clone()).or_default().announced.insert(member.clone());
    }

    /// Notes that a member that was announced is stored, or is not.
    pub(crate) fn retract(&mut self, group: &TaskId, member: &TaskId) {
        if let Some(members) = self.by_group.get_mut(group) {
            members.announced.remove(member);
            self.drop_empty(group);
        }
    }

    fn drop_empty(&mut self, group: &TaskId) {
        let is_empty = |members: &GroupMembers| {
            members.ids.is_empty() && members.running.is_empty() && members.announced.is_empty()
        };
        if self.by_group.get(group).is_some_and(is_empty) {
            self.by_group.remove(group);
        }
    }

    /// Notes that a member is being assigned.
    pub(crate) fn reserve(&mut self, record: &TaskRecord) {
        if let Some(member) = &record.group {
            self.by_group.entry(member.group.clone()).or_default().running.insert(record.id.clone());
        }
    }

    /// Notes that a member is not being assigned any more.
    pub(crate) fn unreserve(&mut self, record: &TaskRecord) {
        let Some(member) = &record.group else { return };
        if let Some(members) = self.by_group.get_mut(&member.group)
            && !is_running(record)
        {
            members.running.remove(&record.id);
            self.drop_empty(&member.group);
        }
    }
}

impl GroupMembers {
    /// Returns the names of the members.
    pub(crate) fn ids(&self) -> &BTreeSet<TaskId> {
        &self.ids
    }

    /// Returns the number of members in each state, without the states of none.
    pub(crate) fn counts(&self) -> Vec<(TaskState, usize)> {
        let counted = TaskState::VARIANTS.iter().map(|&state| (state, self.counts[state as usize]));
        counted.filter(|(_, count)| *count > 0).collect()
    }

    /// Tells whether a member is about to be stored.
    pub(crate) fn is_announced(&self, member: &TaskId) -> bool {
        self.announced.contains(member)
    }

    /// Returns the number of members that run.
    pub(crate) fn running(&self) -> usize {
        self.running.len()
    }
}

fn holds_place(record: &TaskRecord) -> bool {
    let is_sealed = record.members.as_ref().is_some_and(|state| state.sealed_ms.is_some());
    is_sealed && !record.state.is_terminal() && record.spec.kind().group().is_some_and(|group| group.hold)
}

fn is_running(record: &TaskRecord) -> bool {
    !record.state.is_terminal() && !record.is_unstarted()
}

/// What the group of a task wants of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GroupDemand {
    /// It may run; or it is in no group.
    Run,
    /// It must not start before all members are stored.
    AwaitSeal,
    /// It must not start, and pauses if its kind can.
    Pause,
    /// It is cancelled.
    Cancel,
    /// Its group is gone, or has ended without it.
    Orphaned,
}

/// Returns what the group of a task wants of it.
pub(crate) fn group_demand(cluster: &ClusterState, record: &TaskRecord) -> GroupDemand {
    let Some(member) = &record.group else { return GroupDemand::Run };
    let Some(group) = group_of(cluster, member) else {
        let is_unreadable = cluster.tasks.undecodable.contains_key(&paths::task(&member.group));
        return if is_unreadable { GroupDemand::AwaitSeal } else { GroupDemand::Orphaned };
    };
    let (Some(state), Some(spec)) = (&group.members, group.spec.kind().group()) else { return GroupDemand::Orphaned };
    let is_spared = member.clean_up && state.sealed_ms.is_some() && !state.cancels_clean_up;
    let has_failed =
        || group.error.is_some() || cluster.groups.get(&group.id).is_some_and(|all| !all.failed.is_empty());
    match group.desired_state {
        _ if group.state.is_terminal() => GroupDemand::Orphaned,
        DesiredState::Cancel if is_spared => GroupDemand::Run,
        DesiredState::Cancel => GroupDemand::Cancel,
        _ if state.sealed_ms.is_none() => GroupDemand::AwaitSeal,
        _ if !member.clean_up && spec.on_failure == OnFailure::Stop && has_failed() => GroupDemand::Cancel,
        DesiredState::Pause => GroupDemand::Pause,
        DesiredState::Run => GroupDemand::Run,
    }
}

/// Returns the group of a member; `None` if it is gone, or another task has its name.
fn group_of<'a>(cluster: &'a ClusterState, member: &Membership) -> Option<&'a TaskRecord> {
    let entry = cluster.tasks.get(&member.group)?;
    (entry.record.created_ms == member.created_ms).then(|| &*entry.record)
}

/// Decides what the group of a task demands, before anything else is decided about the task; `None`: nothing.
pub(crate) fn decide_member(cluster: &ClusterState, record: &TaskRecord, now: Now) -> Option<Decision> {
    let member = record.group.as_ref().filter(|_| !record.state.is_terminal())?;
    let demand = group_demand(cluster, record);
    let transition = |event| Some(Decision::Transition { task: record.id.clone(), events: vec![event] });
    let idle = || Some(Decision::Idle(record.id.clone()));
    if record.is_unstarted() {
        return match demand {
            GroupDemand::Run => {
                let until = group_of(cluster, member).and_then(|group| start_wait(group, now))?;
                Some(Decision::WakeAt(record.id.clone(), until))
            }
            GroupDemand::AwaitSeal | GroupDemand::Pause => idle(),
            GroupDemand::Cancel => transition(TaskEvent::GroupRequested(DesiredState::Cancel)),
            GroupDemand::Orphaned => {
                let why = format!("its group {} is gone", member.group);
                let error = Error::new(Code::Dependency, Side::Caller, Operation::Start, why);
                transition(TaskEvent::DependencyBroken(Failure::from(&error)))
            }
        };
    }
    let wanted = match demand {
        GroupDemand::Cancel => DesiredState::Cancel,
        GroupDemand::Pause if record.spec.kind().can_pause() => DesiredState::Pause,
        GroupDemand::Pause if record.state == TaskState::Pending => return idle(),
        // What runs without its group goes on to its end.
        GroupDemand::Run | GroupDemand::AwaitSeal | GroupDemand::Pause | GroupDemand::Orphaned => DesiredState::Run,
    };
    if member.desired_state == wanted { None } else { transition(TaskEvent::GroupRequested(wanted)) }
}

/// Decides about a group that has not ended: it keeps its first failure, and ends with its last member.
pub(crate) fn decide_group(cluster: &ClusterState, entry: &TaskEntry, spec: &GroupTask, now: Now) -> Decision {
    let record = &entry.record;
    let id = || record.id.clone();
    let transition = |event| Decision::Transition { task: id(), events: vec![event] };
    let none = GroupMembers::default();
    let members = cluster.groups.get(&record.id).unwrap_or(&none);
    let is_sealed = record.members.as_ref().is_some_and(|state| state.sealed_ms.is_some());
    if !is_sealed && record.desired_state != DesiredState::Cancel {
        let until = members.added_at.max(entry.runtime.since) + SEAL_WITHIN;
        if until <= now.boot {
            return transition(TaskEvent::SealMissed);
        }
        return match decide_unsealed(cluster, record, now) {
            Some(Decision::WakeAt(id, at)) => Decision::WakeAt(id, at.min(until)),
            Some(decision) => decision,
            None => Decision::WakeAt(id(), until),
        };
    }
    let missing = (spec.members as usize).saturating_sub(members.ids.len());
    if is_sealed && missing > 0 && has_undecodable(cluster, &record.id) {
        return Decision::Idle(id());
    }
    if record.error.is_none()
        && let Some(error) = first_failure(cluster, members).or_else(|| {
            (is_sealed && missing > 0).then(|| {
                let message = format!("the records of {missing} members are gone");
                Failure::from(&Error::new(Code::NotFound, Side::Coordination, Operation::Read, message))
            })
        })
    {
        return transition(TaskEvent::MemberFailed(error));
    }
    if members.unsettled > 0 || !members.announced.is_empty() {
        return Decision::Idle(id());
    }
    transition(TaskEvent::MembersEnded { is_cancelled: members.counts[TaskState::Cancelled as usize] > 0 })
}

/// Returns the error of the member that has failed first.
fn first_failure(cluster: &ClusterState, members: &GroupMembers) -> Option<Failure> {
    let failed = members.failed.iter().filter_map(|id| cluster.tasks.get(id)).map(|entry| &entry.record);
    let first = failed.min_by_key(|record| record.updated_ms)?;
    let error = first.error.clone().unwrap_or_else(|| {
        let what = "it has failed without saying why";
        Failure::from(&Error::internal(Operation::Start, what))
    });
    let message = format!("{}: {}", first.id, error.message);
    Some(error.with_message(&message))
}

/// Tells whether a record that cannot be decoded may be that of a member.
fn has_undecodable(cluster: &ClusterState, group: &TaskId) -> bool {
    let prefix = format!("{group}.");
    cluster.tasks.undecodable.keys().any(|path| path.rsplit('/').next().is_some_and(|name| name.starts_with(&prefix)))
}

/// Explains why a group keeps a member from starting; `None` if it does not.
pub(crate) fn demand_reason(cluster: &ClusterState, record: &TaskRecord) -> Option<String> {
    let group = &record.group.as_ref()?.group;
    match group_demand(cluster, record) {
        GroupDemand::AwaitSeal => Some(format!("waiting until all members of {group} are stored")),
        GroupDemand::Pause => Some(format!("{group} is paused")),
        GroupDemand::Run | GroupDemand::Cancel | GroupDemand::Orphaned => None,
    }
}

/// Explains what a group waits for that has not ended.
pub(crate) fn group_reason(cluster: &ClusterState, record: &TaskRecord, spec: &GroupTask) -> String {
    let none = GroupMembers::default();
    let members = cluster.groups.get(&record.id).unwrap_or(&none);
    let is_sealed = record.members.as_ref().is_some_and(|state| state.sealed_ms.is_some());
    if !is_sealed && record.desired_state != DesiredState::Cancel {
        let stored = format!("{} of {} members are stored", members.ids.len(), spec.members);
        return match schedule_failure(cluster, record) {
            Some(failure) => format!("{stored}; none starts before: {failure}"),
            None if record.schedule.is_some() => format!("{stored}; none starts before"),
            None => format!("{stored}: submit the batch again to store the rest; none starts before"),
        };
    }
    let states =
        members.counts().iter().map(|(state, count)| format!("{count} {}", state.as_str())).collect::<Vec<_>>();
    let failure = record.error.as_ref().map(|error| format!("; first failure: {error}")).unwrap_or_default();
    let lack = lack_reason(cluster, record).map(|lack| format!("; {lack}")).unwrap_or_default();
    format!("{} members: {}{failure}{lack}", spec.members, states.join(", "))
}
