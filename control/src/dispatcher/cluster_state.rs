//! Holds and indexes all that the leader knows. Observations are applied here; [`decide()`](super::decide()) reads.
//!
//! What always holds: the indexes agree with the records. A record is replaced only by a newer one. Every task that is
//! not terminal is due at some time, is in the queue, is blocked by a claim, waits for another task, or has a write or
//! call under way.

use super::dependencies::is_settled;
use super::fleet::Fleet;
use super::groups::{GroupMembers, Groups};
use super::level::CenterLevel;
use super::now::Now;
use super::queue::{Queue, QueueClass};
use super::schedules::Schedules;
use super::settings::StoredSettings;
use super::tasks::{AssignReply, TaskEntry, TaskRuntime, Tasks, UndrainedAttempt, creation_order};
use crate::coord::Zxid;
use crate::model::{Dependency, Holder, NodeId, Progress, Registration, Submission, TaskId, TaskRecord, TaskState};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Time after which a task that waits for a condition is tried again in any case.
const CONDITION_CHECK: Duration = Duration::from_secs(10);

/// Progress of fencing a lost runner with the fence program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum FenceProgress {
    /// The program runs.
    Running,
    /// The program exited with 0.
    Done,
    /// The program failed, and will be run again.
    Failed {
        /// Backoff until the program is run again.
        backoff: super::backoff::Backoff,
        /// Its message.
        why: String,
    },
}

/// Everything that the leader knows.
#[derive(Debug, Default)]
pub(crate) struct ClusterState {
    pub(crate) tasks: Tasks,
    pub(crate) fleet: Fleet,
    pub(crate) queue: Queue,
    /// Task that has each claim, or is being assigned with it.
    pub(crate) claimed: BTreeMap<String, TaskId>,
    /// Lost runners that the fence program has been started for.
    pub(crate) fences: BTreeMap<(NodeId, String), FenceProgress>,
    /// Boot time at which each draining node is next asked to return its tasks.
    pub(crate) interrupts: BTreeMap<NodeId, Duration>,
    /// Tasks that wait for others before their first attempt, by the tasks that they depend on; and tasks that are about to
    /// be stored.
    dependents: BTreeMap<TaskId, BTreeSet<TaskId>>,
    /// Members of groups.
    pub(crate) groups: Groups,
    pub(crate) schedules: Schedules,
    pub(crate) settings: StoredSettings,
    /// Level of the center; `None`: it has none, as in tests.
    pub(crate) level: Option<CenterLevel>,
    /// Boot time at which it may be tried again to raise the level.
    pub(crate) raise_level_at: Duration,
    /// Tasks that write each volume and are not settled, by the volume's name.
    writers: BTreeMap<String, BTreeSet<TaskId>>,
    /// Claims of tasks that are being assigned.
    reserved: BTreeMap<TaskId, Vec<String>>,
    /// Number of observations of records.
    observed: u64,
    /// How many of them there had been when the last read of the runners has begun.
    runners_read_after: u64,
    due: BTreeSet<(Duration, TaskId)>,
    due_at: BTreeMap<TaskId, Duration>,
}

impl ClusterState {
    /// Applies a record as it was read or written, with the transaction that created its node, if known. Returns
    /// `false` if the known record is as new or newer.
    pub(crate) fn observe(&mut self, record: TaskRecord, version: i32, created: Option<Zxid>, now: Now) -> bool {
        let id = record.id.clone();
        if let Some(before) = self.tasks.get(&id) {
            let is_same_node = created.is_none() || before.created.is_none() || before.created == created;
            if is_same_node && version <= before.version {
                if let Some(created) = created {
                    let aged = self.tasks.set_created(&id, created);
                    self.rerank(&aged);
                }
                return false;
            }
        }
        self.unqueue(&id);
        let before = self.tasks.remove(&id);
        if let Some(before) = &before {
            self.unindex(&before.record, now.boot);
        }
        let freed: Vec<String> = before.as_ref().map(|before| before.record.claims.clone()).unwrap_or_default();
        let is_replaced = before.as_ref().is_some_and(|before| before.record.created_ms != record.created_ms);
        let group = record.group.as_ref().map(|member| member.group.clone());
        let needed: Vec<TaskId> = record.after.iter().map(|dependency| dependency.task.clone()).collect();
        let waits = is_waiting(&record);
        let mut entry = updated_entry(before, Arc::new(record), version, created, now.boot);
        self.observed += 1;
        entry.runtime.observed = self.observed;
        self.index(&entry, now.boot);
        let aged = self.tasks.insert(entry);
        self.rerank(&aged);
        self.free(freed.iter(), now.boot);
        self.make_due(&id, now.boot);
        if is_replaced || self.tasks.get(&id).is_some_and(|entry| entry.record.state.is_terminal()) {
            self.wake_dependents(&id, now.boot);
        }
        if !waits {
            // They may be purged by now.
            needed.iter().for_each(|predecessor| self.make_due(predecessor, now.boot));
        }
        if let Some(group) = group {
            self.make_due(&group, now.boot);
            self.offer_places(&group, now.boot);
        }
        self.wake_members(&id, now.boot);
        if let Some(settled) = self.tasks.get(&id).map(|entry| entry.record.clone()).filter(|record| is_settled(record))
        {
            self.wake_readers(&settled, now.boot);
        }
        true
    }

    /// Applies settings as they are stored.
    pub(crate) fn set_settings(&mut self, stored: StoredSettings, now: Duration) {
        self.fleet.set_policy(&stored.0);
        self.settings = stored;
        let lost: Vec<TaskId> = self.tasks.of(TaskState::Lost).iter().cloned().collect();
        lost.iter().for_each(|id| self.make_due(id, now));
    }

    /// Removes a task that is no longer in the store.
    pub(crate) fn forget(&mut self, id: &TaskId, now: Duration) {
        self.unqueue(id);
        self.unreserve(id, now);
        let Some(entry) = self.tasks.remove(id) else { return };
        self.unindex(&entry.record, now);
        self.clear_due(id);
        self.free(entry.record.claims.iter(), now);
        self.wake_dependents(id, now);
        entry.record.after.iter().for_each(|dependency| self.make_due(&dependency.task, now));
        if let Some(member) = &entry.record.group {
            self.make_due(&member.group, now);
            self.offer_places(&member.group, now);
        }
        self.wake_members(id, now);
        self.wake_readers(&entry.record, now);
    }

    /// Makes the members of a group due.
    fn wake_members(&mut self, group: &TaskId, now: Duration) {
        let Some(members) = self.groups.get(group) else { return };
        let ids: Vec<TaskId> = members.ids().iter().cloned().collect();
        ids.iter().for_each(|id| self.make_due(id, now));
    }

    /// Returns the number of further members of a group that may run; `None`: any.
    pub(crate) fn places_left(&self, group: &TaskId) -> Option<usize> {
        let parallel = self.tasks.get(group)?.record.spec.kind().group()?.parallel?;
        let running = self.groups.get(group).map_or(0, GroupMembers::running);
        Some((parallel as usize).saturating_sub(running))
    }

    /// Makes as many members due as may run now besides those that do.
    fn offer_places(&mut self, group: &TaskId, now: Duration) {
        let Some(left) = self.places_left(group) else { return };
        let waiting = self.queue.first_blocked(&places_claim(group), left);
        waiting.iter().for_each(|id| self.make_due(id, now));
    }

    /// Blocks a task until a condition holds. It is tried again later in any case: the members that could run in its place may
    /// have to wait for something else, and the order of two submissions may become known only later.
    pub(crate) fn await_condition(&mut self, id: &TaskId, condition: String, now: Duration) {
        self.block(id, condition);
        self.make_due(id, now + CONDITION_CHECK);
    }

    /// Releases the slot and the claims of a task that was to be assigned and has to wait instead, as for its group.
    pub(crate) fn release_resolved(&mut self, id: &TaskId, now: Duration) {
        let Some(entry) = self.tasks.get_mut(id) else { return };
        if !entry.runtime.is_busy && !entry.runtime.is_calling && entry.runtime.resolved.take().is_some() {
            self.unreserve(id, now);
        }
    }

    /// Notes that a task is about to be stored: the tasks that it depends on are kept, and its group does not end.
    pub(crate) fn announce(&mut self, submission: &Submission) {
        for (task, _) in &submission.after {
            self.dependents.entry(task.clone()).or_default().insert(submission.id.clone());
        }
        if let Some(group) = &submission.group {
            self.groups.announce(&group.id, &submission.id);
        }
    }

    /// Notes that a task that was announced is stored, or is not.
    pub(crate) fn retract(&mut self, submission: &Submission, now: Duration) {
        let Submission { id, after, group, .. } = submission;
        if let Some(group) = group {
            self.groups.retract(&group.id, id);
            self.make_due(&group.id, now);
        }
        let record = self.tasks.get(id).map(|entry| entry.record.clone()).filter(|record| is_waiting(record));
        for (task, _) in after {
            let is_named = record.as_ref().is_some_and(|record| record.after.iter().any(|kept| kept.task == *task));
            if !is_named {
                self.remove_dependent(task, id);
                self.make_due(task, now);
            }
        }
    }

    fn remove_dependent(&mut self, task: &TaskId, id: &TaskId) {
        if let Some(dependents) = self.dependents.get_mut(task) {
            dependents.remove(id);
            if dependents.is_empty() {
                self.dependents.remove(task);
            }
        }
    }

    /// Tells whether a task waits for this one, or is about to; or whether it is a group that has members, or the member of a
    /// group that has not ended.
    pub(crate) fn is_needed(&self, id: &TaskId) -> bool {
        self.dependents.contains_key(id) || self.groups.get(id).is_some() || self.is_member_of_live_group(id)
    }

    fn is_member_of_live_group(&self, id: &TaskId) -> bool {
        let group = self.tasks.get(id).and_then(|entry| self.group(&entry.record));
        group.is_some_and(|group| !group.state.is_terminal())
    }

    /// Returns the group of a member.
    pub(crate) fn group(&self, record: &TaskRecord) -> Option<&TaskRecord> {
        let member = record.group.as_ref()?;
        let entry = self.tasks.get(&member.group)?;
        (entry.record.created_ms == member.created_ms).then(|| &*entry.record)
    }

    /// Returns the records of the members of a group.
    pub(crate) fn members(&self, group: &TaskId) -> impl Iterator<Item = &TaskRecord> {
        let ids = self.groups.get(group).into_iter().flat_map(GroupMembers::ids);
        let records = ids.filter_map(|id| self.tasks.get(id)).map(|entry| &*entry.record);
        records.filter(|record| self.group(record).is_some())
    }

    /// Tells whether a task is being assigned.
    pub(crate) fn is_being_assigned(&self, id: &TaskId) -> bool {
        self.reserved.contains_key(id)
    }

    /// Returns a task outside of a group that has claimed the volume of this name, or is being assigned with it.
    pub(crate) fn claiming_writer(&self, volume: &str, group: &TaskId) -> Option<&TaskId> {
        let claims = |record: &TaskRecord| !record.claims.is_empty() || self.is_being_assigned(&record.id);
        let is_other = |record: &TaskRecord| record.group.as_ref().is_none_or(|member| member.group != *group);
        let of = |id: &TaskId| self.tasks.get(id).is_some_and(|entry| claims(&entry.record) && is_other(&entry.record));
        self.writers.get(volume)?.iter().find(|id| of(id))
    }

    /// Returns the tasks that wait for this one, or are about to.
    pub(crate) fn dependents(&self, id: &TaskId) -> impl Iterator<Item = &TaskId> {
        self.dependents.get(id).into_iter().flatten()
    }

    /// Makes the dependents of a task due that has ended, is gone, or is another one by now.
    fn wake_dependents(&mut self, id: &TaskId, now: Duration) {
        let dependents: Vec<TaskId> = self.dependents(id).cloned().collect();
        dependents.iter().for_each(|dependent| self.make_due(dependent, now));
    }

    fn index(&mut self, entry: &TaskEntry, now: Duration) {
        let record = &entry.record;
        self.fleet.note_ended(record);
        self.groups.index(record, now);
        let surplus = self.schedules.index(record, now);
        if let Some(volume) = written_volume(record) {
            self.writers.entry(volume).or_default().insert(record.id.clone());
        }
        if let Some(node) = record.node() {
            self.fleet.hold(node, &record.id, bytes(entry));
            self.fleet.quotas.add(node, record);
        }
        for claim in &record.claims {
            self.claimed.insert(claim.clone(), record.id.clone());
        }
        if is_waiting(record) {
            for Dependency { task, .. } in &record.after {
                self.dependents.entry(task.clone()).or_default().insert(record.id.clone());
            }
        }
        if let Some(surplus) = surplus {
            self.make_due(&surplus, now);
            // Of a group the members go first.
            self.wake_members(&surplus, now);
        }
    }

    fn unindex(&mut self, record: &TaskRecord, now: Duration) {
        self.schedules.unindex(record, now);
        self.groups.unindex(record, self.reserved.contains_key(&record.id));
        if let Some(volume) = written_volume(record)
            && let Some(writers) = self.writers.get_mut(&volume)
        {
            writers.remove(&record.id);
            if writers.is_empty() {
                self.writers.remove(&volume);
            }
        }
        record.after.iter().for_each(|Dependency { task, .. }| self.remove_dependent(task, &record.id));
        if let Some(node) = record.node() {
            self.fleet.release(node, &record.id);
            self.fleet.quotas.remove(node, record);
        }
        for claim in &record.claims {
            if self.claimed.get(claim) == Some(&record.id) {
                self.claimed.remove(claim);
            }
        }
    }

    /// Returns a task that was submitted earlier and writes a volume that this one reads, if there is one that is not
    /// settled. As it is an earlier one, tasks cannot wait for each other in a circle.
    pub(crate) fn earlier_writer(&self, entry: &TaskEntry) -> Option<(String, &TaskId)> {
        let is_earlier = |writer: &&TaskId| {
            self.tasks.get(writer).is_some_and(|other| creation_order(other) < creation_order(entry))
        };
        entry.record.spec.kind().sources().ok()?.iter().find_map(|volume| {
            let volume = volume.key();
            let writer = self.writers.get(&volume)?.iter().find(is_earlier)?;
            Some((volume, writer))
        })
    }

    /// Makes the tasks due that wait to read the volume that this one wrote.
    fn wake_readers(&mut self, record: &TaskRecord, now: Duration) {
        if let Some(volume) = destination_key(record) {
            self.queue.take_blocked(&reading_claim(&volume)).iter().for_each(|id| self.make_due(id, now));
        }
    }

    /// Frees those of `claims` that no task has any more, and makes the tasks that waited for them due.
    fn free<'a>(&mut self, claims: impl Iterator<Item = &'a String>, now: Duration) {
        for claim in claims {
            if !self.claimed.contains_key(claim) {
                self.queue.take_blocked(claim).iter().for_each(|id| self.make_due(id, now));
            }
        }
    }

    /// Queues a ready task, to run on `node` or on any.
    pub(crate) fn enqueue(&mut self, id: &TaskId, node: Option<NodeId>) {
        if let (Some(rank), Some(entry)) = (self.tasks.rank(id), self.tasks.get(id)) {
            self.queue.push(rank, QueueClass::new(&entry.record, node));
        }
    }

    fn rerank(&mut self, ids: &[TaskId]) {
        for id in ids {
            if let Some(node) = self.queue.class(id).map(|class| class.node.clone()) {
                self.enqueue(id, node);
            }
        }
    }

    /// Removes a task from the queue and from the blocked tasks.
    pub(crate) fn unqueue(&mut self, id: &TaskId) {
        self.queue.remove(id);
        let blocked_by = self.tasks.get_mut(id).and_then(|entry| entry.runtime.blocked_by.take());
        if let Some(claim) = blocked_by {
            self.queue.unblock(id, &claim);
        }
    }

    /// Reserves claims and a slot for a task that is being assigned.
    pub(crate) fn reserve(&mut self, id: &TaskId, node: &NodeId, claims: &[String]) {
        for claim in claims {
            self.claimed.insert(claim.clone(), id.clone());
        }
        self.reserved.insert(id.clone(), claims.to_vec());
        if let Some(entry) = self.tasks.get(id) {
            self.fleet.reserve(node, &entry.record);
            self.groups.reserve(&entry.record);
        }
    }

    /// Releases a reservation, except for the claims that the task's record has.
    pub(crate) fn unreserve(&mut self, id: &TaskId, now: Duration) {
        let Some(claims) = self.reserved.remove(id) else { return };
        self.fleet.unreserve(id);
        if let Some(record) = self.tasks.get(id).map(|entry| entry.record.clone()) {
            self.groups.unreserve(&record);
            if let Some(member) = &record.group {
                self.offer_places(&member.group, now);
            }
        }
        let kept = self.tasks.get(id).map(|entry| entry.record.claims.clone()).unwrap_or_default();
        let gone: Vec<&String> = claims.iter().filter(|claim| !kept.contains(claim)).collect();
        for claim in &gone {
            if self.claimed.get(*claim) == Some(id) {
                self.claimed.remove(*claim);
            }
        }
        self.free(gone.into_iter(), now);
    }

    /// Blocks a task until a claim of another one is free.
    pub(crate) fn block(&mut self, id: &TaskId, claim: String) {
        self.clear_due(id);
        self.unqueue(id);
        let Some(entry) = self.tasks.get_mut(id) else { return };
        self.queue.block(id, &claim);
        entry.runtime.blocked_by = Some(claim);
    }

    /// Delays all writes of a task until `until`.
    pub(crate) fn delay_writes(&mut self, id: &TaskId, until: Duration) {
        self.clear_due(id);
        self.unqueue(id);
        if let Some(entry) = self.tasks.get_mut(id) {
            entry.runtime.next_write = until;
        }
        self.make_due(id, until);
    }

    /// Applies the level of the center as it was read.
    pub(crate) fn set_level(&mut self, level: Option<CenterLevel>) {
        self.fleet.set_level(level.as_ref().map(|level| level.meta.schema));
        self.level = level;
    }

    /// Notes the nodes whose registrations cannot be decoded: they are there.
    pub(crate) fn set_unreadable(&mut self, nodes: BTreeSet<NodeId>, now: Duration) {
        let before = self.fleet.set_unreadable(nodes.clone());
        for node in before.symmetric_difference(&nodes) {
            let tasks: Vec<TaskId> = self.fleet.tasks(node).cloned().collect();
            tasks.iter().for_each(|id| self.make_due(id, now));
        }
    }

    /// Returns the number of observations of records so far.
    pub(crate) fn observed(&self) -> u64 {
        self.observed
    }

    /// Tells whether the process of a task's holder is known to be gone: it was not registered when the runners were read, and
    /// that read has begun after the task's record was observed as it is. From an earlier read nothing follows: the process
    /// may have registered since, and have a lease.
    pub(crate) fn is_holder_gone(&self, entry: &TaskEntry) -> bool {
        let is_registered = entry.record.holder.as_ref().is_none_or(|holder| self.fleet.peer(holder).is_some());
        !is_registered && self.runners_read_after >= entry.runtime.observed
    }

    /// Applies the registrations as they were read after `observed` observations of records.
    pub(crate) fn observe_runners(&mut self, runners: BTreeMap<NodeId, Registration>, observed: u64, now: Duration) {
        self.runners_read_after = observed;
        let changed = self.fleet.replace(runners);
        let mut affected: BTreeSet<TaskId> = BTreeSet::new();
        for node in &changed {
            affected.extend(self.fleet.tasks(node).cloned());
            let is_interrupted = self.fleet.drains.get(node).is_some_and(|(drain, _)| drain.now);
            if is_interrupted && self.fleet.get(node).is_some() {
                self.interrupts.insert(node.clone(), now);
            }
            self.schedules.observe_node(node, now);
            if let Some(registration) = self.fleet.get(node) {
                self.fences.remove(&(node.clone(), registration.incarnation.0.clone()));
            }
        }
        if !changed.is_empty() {
            affected.extend(self.tasks.of(TaskState::Lost).iter().cloned());
            // An attempt that was lost may be known to be over by now.
            affected.extend(self.dependents.keys().cloned());
        }
        affected.iter().for_each(|id| self.make_due(id, now));
    }

    /// Applies telemetry of a task's holder. Returns `false` if the task has no holder.
    pub(crate) fn observe_progress(&mut self, id: &TaskId, progress: Progress) -> bool {
        let Some(entry) = self.tasks.get_mut(id) else { return false };
        let Some(node) = entry.record.node().cloned() else { return false };
        entry.live = Some(progress);
        let bytes = bytes(entry);
        self.fleet.hold(&node, id, bytes);
        true
    }

    /// Makes a task due at `at`, unless it is due earlier.
    pub(crate) fn make_due(&mut self, id: &TaskId, at: Duration) {
        if self.tasks.get(id).is_some() && self.due_at.get(id).is_none_or(|due| *due > at) {
            self.clear_due(id);
            self.due.insert((at, id.clone()));
            self.due_at.insert(id.clone(), at);
        }
    }

    /// Clears the due time of a task.
    pub(crate) fn clear_due(&mut self, id: &TaskId) {
        if let Some(due) = self.due_at.remove(id) {
            self.due.remove(&(due, id.clone()));
        }
    }

    /// Returns the tasks that are due, the longest due first.
    pub(crate) fn due(&self, now: Duration) -> impl Iterator<Item = &TaskId> {
        self.due.iter().take_while(move |(at, _)| *at <= now).map(|(_, id)| id)
    }

    /// Returns the time of the next decision.
    pub(crate) fn next_due(&self, now: Now) -> Option<Duration> {
        let task = self.due.first().map(|(at, _)| *at);
        let interrupt = self.interrupts.values().min().copied();
        let schedule = self.schedules.next_due(now);
        [task, self.fleet.next_backoff_end(), interrupt, schedule].into_iter().flatten().min()
    }

    /// Makes the lost tasks due whose last runner was `holder`.
    pub(crate) fn make_lost_due(&mut self, holder: &Holder, now: Duration) {
        self.lost_with(holder).iter().for_each(|id| self.make_due(id, now));
    }

    /// Clears the due times of the lost tasks whose last runner was `holder`.
    pub(crate) fn clear_lost_due(&mut self, holder: &Holder) {
        self.lost_with(holder).iter().for_each(|id| self.clear_due(id));
    }

    fn lost_with(&self, holder: &Holder) -> Vec<TaskId> {
        let of = |entry: &TaskEntry| entry.record.attempts.last().is_some_and(|attempt| attempt.runner == *holder);
        self.tasks.of(TaskState::Lost).iter().filter(|id| self.tasks.get(id).is_some_and(of)).cloned().collect()
    }
}

/// Returns the name of the volume that a task writes, until the task is settled.
fn written_volume(record: &TaskRecord) -> Option<String> {
    if is_settled(record) { None } else { destination_key(record) }
}

/// Returns the name of the volume that a task writes, if it writes one.
pub(crate) fn destination_key(record: &TaskRecord) -> Option<String> {
    record.spec.kind().destination().ok().flatten().map(|volume| volume.key())
}

/// Returns the text under which tasks wait that read a volume, until nobody writes it any more.
pub(crate) fn reading_claim(volume: &str) -> String {
    format!("read:{volume}")
}

/// Returns the text under which tasks wait whose destination is kept free for a group.
pub(crate) fn held_claim(group: &str) -> String {
    format!("held:{group}")
}

/// Returns the text under which the members of a group wait that are kept from running by its bound.
pub(crate) fn places_claim(group: &TaskId) -> String {
    format!("group:{group}")
}

/// Tells whether a task's dependencies still count.
fn is_waiting(record: &TaskRecord) -> bool {
    !record.state.is_terminal() && record.is_unstarted()
}

fn bytes(entry: &TaskEntry) -> u64 {
    entry.live.unwrap_or(entry.record.progress).planned.max(entry.record.progress.planned)
}

/// Returns the entry with a newer record: runtime state of the old state is reset.
fn updated_entry(
    before: Option<TaskEntry>,
    record: Arc<TaskRecord>,
    version: i32,
    created: Option<Zxid>,
    now: Duration,
) -> TaskEntry {
    let Some(before) = before else {
        let runtime = TaskRuntime { since: now, undrained: undrained(&record, &[], now), ..TaskRuntime::default() };
        return TaskEntry { record, version, created, grant: None, live: None, runtime };
    };
    let old = &before.record;
    let attempt = |record: &TaskRecord| (record.attempts.len(), record.attempts.last().map(|last| last.started_ms));
    let is_same_holder = old.holder == record.holder && attempt(old) == attempt(&record);
    let mut runtime = before.runtime;
    runtime.undrained = undrained(&record, &runtime.undrained, now);
    if old.state != record.state || !is_same_holder {
        (runtime.since, runtime.assign_reply, runtime.next_call) = (now, AssignReply::NotCalled, Duration::ZERO);
        runtime.start_stage = None;
    }
    runtime.needs_notification &= is_same_holder;
    let (grant, live) = if is_same_holder { (before.grant, before.live) } else { (None, None) };
    TaskEntry { record, version, created: created.or(before.created), grant, live, runtime }
}

/// Returns when this leader first saw the end of each attempt that may still write; grants identify attempts.
fn undrained(record: &TaskRecord, seen: &[UndrainedAttempt], now: Duration) -> Vec<UndrainedAttempt> {
    let waiting = record.attempts.iter().filter(|attempt| !attempt.quiet && attempt.ended_ms.is_some());
    let since = |grant| seen.iter().find(|(known, _)| *known == grant).map_or(now, |(_, since)| *since);
    waiting.map(|attempt| (attempt.epoch, since(attempt.epoch))).collect()
}
