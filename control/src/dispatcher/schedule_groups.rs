//! Stores the members of the groups that schedules make, and seals the groups.
//!
//! ```text
//! multi: instant decided, group created --> members read --> members stored, each after those that it waits for --> seal
//! ```
//! What always holds: nothing is remembered that a leader could lose. What is missing of a group is found out from the group,
//! its members and its schedule as they are stored; the names of the members and the instant of the group are always the
//! same. So whichever leader comes goes on, and no step happens twice. While a group of it is not sealed, a schedule keeps
//! its template.

use super::Dispatcher;
use super::cluster_state::ClusterState;
use super::decision::Decision;
use super::event::Event;
use super::now::Now;
use super::schedules::{MembersRead, ScheduleEntry};
use crate::model::state_machine::TaskEvent;
use crate::model::{Actor, DesiredState, Failure, MemberTemplate, ScheduleName, Submission, TaskId, TaskRecord};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::sync::Arc;
use std::time::Duration;

/// Members of one group that are being stored at once.
const MEMBERS_AT_ONCE: usize = 16;
/// Wait before what could not be stored is tried again.
const STORE_RETRY: Duration = Duration::from_secs(1);
/// Wait before members are read again that could not be read.
const READ_RETRY: Duration = Duration::from_secs(5);

/// Returns the schedule that completes a group without a seal.
fn completing<'a>(cluster: &'a ClusterState, group: &TaskRecord) -> Option<&'a ScheduleEntry> {
    let entry = cluster.schedules.get(group.schedule.as_ref()?)?;
    let is_last = entry.record.last_task.as_ref() == Some(&group.id);
    (is_last && entry.record.template.spec.is_same_work(&group.spec)).then_some(entry)
}

/// Decides about a group without a seal that is not being cancelled; `None`: no schedule completes it.
pub(crate) fn decide_unsealed(cluster: &ClusterState, group: &TaskRecord, now: Now) -> Option<Decision> {
    let schedule = completing(cluster, group)?;
    let wanted = group.spec.kind().group()?.members as usize;
    let transition = |events| Some(Decision::Transition { task: group.id.clone(), events });
    if cluster.groups.get(&group.id).map_or(0, |members| members.ids().len()) == wanted {
        return transition(vec![TaskEvent::Sealed]);
    }
    let wake_at = |at| Some(Decision::WakeAt(group.id.clone(), at));
    match &schedule.members {
        MembersRead::Failed(until) if *until > now.boot => wake_at(*until),
        MembersRead::Unread | MembersRead::Failed(_) => Some(Decision::ReadMembers(schedule.record.name.clone())),
        MembersRead::Reading => wake_at(now.boot + READ_RETRY),
        MembersRead::Read(members) => match missing_members(cluster, schedule, group, members) {
            Ok(missing) if missing.is_empty() => wake_at(now.boot + STORE_RETRY),
            Ok(missing) => Some(Decision::StoreMembers(group.id.clone(), missing)),
            // It can never be completed: what is stored of it is cancelled.
            Err(error) => transition(vec![TaskEvent::MemberFailed(Failure::from(&error)), TaskEvent::SealMissed]),
        },
    }
}

/// Returns the next members to store: those that wait for stored ones only.
fn missing_members(
    cluster: &ClusterState,
    schedule: &ScheduleEntry,
    group: &TaskRecord,
    members: &[MemberTemplate],
) -> Result<Vec<Submission>, Error> {
    let is_member = |record: &TaskRecord| {
        record.group.as_ref().is_some_and(|own| own.group == group.id && own.created_ms == group.created_ms)
    };
    let (mut missing, mut underway) = (Vec::new(), 0);
    for member in members {
        if underway + missing.len() >= MEMBERS_AT_ONCE {
            break;
        }
        let id = member.task_id(&group.id)?;
        match cluster.tasks.get(&id) {
            Some(entry) if is_member(&entry.record) => {}
            Some(_) => {
                let message = format!("{id} is to be a member of {}, and another task has that ID", group.id);
                return Err(Error::new(Code::Exists, Side::Caller, Operation::Write, message));
            }
            None if cluster.groups.get(&group.id).is_some_and(|known| known.is_announced(&id)) => underway += 1,
            None => {
                if member.predecessors(&group.id).all(|id| cluster.tasks.get(&id).is_some()) {
                    missing.push(member);
                }
            }
        }
    }
    schedule.record.members(missing, &group.id, schedule.record.last_fired_ms.unwrap_or(group.created_ms))
}

/// Explains why the group of a schedule cannot be completed now.
pub(crate) fn schedule_failure<'a>(cluster: &'a ClusterState, group: &TaskRecord) -> Option<&'a str> {
    completing(cluster, group)?.failure.as_deref()
}

/// Tells whether the last group of a schedule needs the template of the schedule to be completed.
pub(crate) fn needs_template(cluster: &ClusterState, name: &ScheduleName) -> bool {
    let last = cluster.schedules.get(name).and_then(|entry| entry.record.last_task.as_ref());
    last.and_then(|id| cluster.tasks.get(id)).is_some_and(|entry| {
        let group = &entry.record;
        let is_unsealed = group.members.as_ref().is_some_and(|state| state.sealed_ms.is_none());
        let is_wanted = !group.state.is_terminal() && group.desired_state != DesiredState::Cancel;
        is_unsealed && is_wanted && completing(cluster, group).is_some()
    })
}

impl Dispatcher {
    /// Starts to read the members of a schedule's batch.
    pub(crate) fn read_members(&mut self, name: &ScheduleName) {
        let Some(entry) = self.cluster.schedules.get_mut(name) else { return };
        entry.members = MembersRead::Reading;
        let (version, parts) = (entry.record.version, entry.record.parts);
        let (writer, schedule) = (self.writer.clone(), name.clone());
        crate::async_spawn::spawn_into(&mut self.jobs, async move {
            let read = writer.read_members(&schedule, parts).await;
            Event::MembersRead { schedule, version, read }
        });
    }

    /// Applies the members of a schedule's batch as they were read.
    pub(crate) fn apply_members_read(
        &mut self,
        name: &ScheduleName,
        version: u32,
        read: Result<Vec<MemberTemplate>, String>,
    ) {
        let now = self.clock.boot_time();
        let Some(entry) = self.cluster.schedules.get_mut(name) else { return };
        if entry.record.version != version {
            return;
        }
        entry.members = match read {
            Ok(members) => {
                entry.failure = None;
                MembersRead::Read(Arc::new(members))
            }
            Err(why) => {
                tracing::error!(schedule = %name, why, "cannot read the batch of a schedule");
                entry.failure = Some(format!("its batch cannot be read: {why}"));
                MembersRead::Failed(now + READ_RETRY)
            }
        };
        if let Some(group) = entry.record.last_task.clone() {
            self.cluster.make_due(&group, now);
        }
    }

    /// Starts to store members of a group that a schedule has made. Those that cannot be stored are tried again.
    pub(crate) fn store_members(&mut self, group: &TaskId, members: Vec<Submission>, now: Now) {
        self.cluster.clear_due(group);
        for member in members {
            let (id, (reply, mut answer)) = (member.id.clone(), tokio::sync::oneshot::channel());
            self.submit(member, Actor::Dispatcher, reply);
            if let Ok(Err(error)) = answer.try_recv() {
                tracing::warn!(task = %id, %error, "cannot store a member of a schedule's group");
            }
        }
        self.cluster.make_due(group, now.boot + STORE_RETRY);
    }

    /// Forgets the members of a batch whose group is complete.
    pub(crate) fn drop_members(&mut self, group: &TaskId) {
        let schedule = self.cluster.tasks.get(group).and_then(|entry| entry.record.schedule.clone());
        if let Some(entry) = schedule.and_then(|name| self.cluster.schedules.get_mut(&name)) {
            entry.members = MembersRead::Unread;
        }
    }
}
