//! Holds the schedules as the leader knows them, and decides which of them take their next step. Pure.
//!
//! What always holds: an active schedule is in the index of instants as long as it has an instant left. A boot, the end
//! of its last task and a change by its client make it ready, so that it is asked for its next step at once.

use super::cluster_state::ClusterState;
use super::decision::{Budget, Decision};
use super::explain;
use super::now::Now;
use crate::model::schedule::{Facts, Predecessor, Step, Timer};
use crate::model::{MemberTemplate, NodeId, ScheduleName, ScheduleRecord, ScheduleState, TaskId, TaskRecord, TaskSpec};
use blockhaul_engine::error::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Wait before a schedule is tried again while there is no room for its task.
const FULL_RETRY: Duration = Duration::from_secs(1);

/// Schedule as it is stored, and what the leader keeps about it.
#[derive(Debug)]
pub(crate) struct ScheduleEntry {
    pub(crate) record: Arc<ScheduleRecord>,
    /// Version of its node.
    pub(crate) version: i32,
    pub(crate) timer: Timer,
    /// Instants a second, estimated.
    rate: f64,
    /// Why its last write has failed, if it has, or why its batch cannot be read.
    pub(crate) failure: Option<String>,
    /// Members of its batch.
    pub(crate) members: MembersRead,
}

/// How far the members of a schedule's batch are read. They are kept only while they are stored as tasks.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum MembersRead {
    /// Nobody has asked for them.
    #[default]
    Unread,
    /// They are being read.
    Reading,
    /// They could not be read, and are read again at this boot time.
    Failed(Duration),
    /// These.
    Read(Arc<Vec<MemberTemplate>>),
}

/// All schedules, by name and by what makes them due.
#[derive(Debug, Default)]
pub(crate) struct Schedules {
    entries: BTreeMap<ScheduleName, ScheduleEntry>,
    /// Next instant of each schedule, in milliseconds since 1970.
    instants: BTreeSet<(u64, ScheduleName)>,
    /// Schedules that may have a step to take, and the boot time from which they are asked.
    ready: BTreeMap<ScheduleName, Duration>,
    /// Schedules that a write is under way of.
    writing: BTreeSet<ScheduleName>,
    /// Schedules whose instants are the boots of a node.
    boots: BTreeMap<NodeId, BTreeSet<ScheduleName>>,
    /// Ended tasks of each schedule, in the order of their creation.
    ended: BTreeMap<ScheduleName, BTreeSet<(u64, TaskId)>>,
    /// Records that cannot be decoded, by path, and why.
    pub(crate) undecodable: BTreeMap<String, String>,
}

impl Schedules {
    pub(crate) fn get(&self, name: &ScheduleName) -> Option<&ScheduleEntry> {
        self.entries.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &ScheduleName) -> Option<&mut ScheduleEntry> {
        self.entries.get_mut(name)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the schedules after this one, in the order of their names.
    pub(crate) fn page(&self, after: Option<&ScheduleName>) -> impl Iterator<Item = &ScheduleEntry> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        self.entries.range::<ScheduleName, _>(range).map(|(_, entry)| entry)
    }

    /// Returns how often all schedules but this one fire together, in instants a second.
    pub(crate) fn rate_without(&self, name: &ScheduleName) -> f64 {
        let others = self.entries.values().filter(|entry| entry.record.name != *name);
        others.filter(|entry| entry.record.state != ScheduleState::Ended).map(|entry| entry.rate).sum()
    }

    /// Applies a record as it was read or written.
    ///
    /// # Errors
    /// Its trigger cannot be parsed: it may be of a later version.
    pub(crate) fn observe(&mut self, record: ScheduleRecord, version: i32, now: Now) -> Result<()> {
        let name = record.name.clone();
        // Parsed anew only if it has changed: that costs more than all the rest.
        let is_same = |entry: &&ScheduleEntry| {
            let known = &entry.record;
            (&known.trigger, &known.zone, known.created_ms) == (&record.trigger, &record.zone, record.created_ms)
        };
        let same = self.entries.get(&name).filter(is_same);
        let members = same.filter(|entry| entry.record.version == record.version).map(|entry| entry.members.clone());
        let known = same.map(|entry| (entry.timer.clone(), entry.rate));
        let (timer, rate) = match known {
            Some(known) => known,
            None => {
                let timer = record.timer()?;
                let rate = timer.rate(record.considered_ms);
                (timer, rate)
            }
        };
        self.forget(&name);
        if record.state == ScheduleState::Active {
            if let Some(node) = record.trigger.boots_of() {
                self.boots.entry(node.clone()).or_default().insert(name.clone());
            }
            if let Some(instant) = record.next_instant(&timer) {
                self.instants.insert((instant, name.clone()));
            }
            self.ready.insert(name.clone(), now.boot);
        }
        let record = Arc::new(record);
        let members = members.unwrap_or_default();
        self.entries.insert(name, ScheduleEntry { record, version, timer, rate, failure: None, members });
        Ok(())
    }

    /// Removes a schedule that is no longer in the store.
    pub(crate) fn forget(&mut self, name: &ScheduleName) {
        let Some(entry) = self.entries.remove(name) else { return };
        self.ready.remove(name);
        if let Some(instant) = entry.record.next_instant(&entry.timer) {
            self.instants.remove(&(instant, name.clone()));
        }
        if let Some(node) = entry.record.trigger.boots_of()
            && let Some(names) = self.boots.get_mut(node)
        {
            names.remove(name);
            if names.is_empty() {
                self.boots.remove(node);
            }
        }
    }

    /// Notes that a write of a schedule, which may be new, is under way.
    pub(crate) fn begin_write(&mut self, name: &ScheduleName) {
        self.ready.remove(name);
        self.writing.insert(name.clone());
    }

    /// Notes that the write is over.
    pub(crate) fn end_write(&mut self, name: &ScheduleName) {
        self.writing.remove(name);
    }

    /// Tells whether a write of a schedule is under way.
    pub(crate) fn is_being_written(&self, name: &ScheduleName) -> bool {
        self.writing.contains(name)
    }

    /// Makes an active schedule ready at `at`.
    pub(crate) fn make_ready(&mut self, name: &ScheduleName, at: Duration) {
        if self.entries.get(name).is_some_and(|entry| entry.record.state == ScheduleState::Active) {
            self.ready.insert(name.clone(), at);
        }
    }

    /// Notes that a schedule has no step to take.
    pub(crate) fn set_idle(&mut self, name: &ScheduleName) {
        self.ready.remove(name);
    }

    /// Makes the schedules ready whose instants are the boots of this node.
    pub(crate) fn observe_node(&mut self, node: &NodeId, now: Duration) {
        for name in self.boots.get(node).cloned().unwrap_or_default() {
            self.make_ready(&name, now);
        }
    }

    /// Adds a task to the indexes. Returns a task of the same schedule that is not kept any longer.
    pub(crate) fn index(&mut self, task: &TaskRecord, now: Duration) -> Option<TaskId> {
        let name = task.schedule.as_ref().filter(|_| task.state.is_terminal())?;
        self.make_ready(name, now);
        let ended = self.ended.entry(name.clone()).or_default();
        ended.insert((task.created_ms, task.id.clone()));
        let is_full = self.entries.get(name).is_some_and(|entry| ended.len() > keep(entry));
        ended.first().filter(|_| is_full).map(|(_, id)| id.clone())
    }

    /// Removes a task from the indexes.
    pub(crate) fn unindex(&mut self, task: &TaskRecord, now: Duration) {
        let Some(name) = &task.schedule else { return };
        self.make_ready(name, now);
        if let Some(ended) = self.ended.get_mut(name) {
            ended.remove(&(task.created_ms, task.id.clone()));
            if ended.is_empty() {
                self.ended.remove(name);
            }
        }
    }

    /// Tells whether so many later tasks of the same schedule have ended that this one is not kept.
    pub(crate) fn is_surplus(&self, task: &TaskRecord) -> bool {
        let Some(name) = &task.schedule else { return false };
        let (Some(entry), Some(ended)) = (self.entries.get(name), self.ended.get(name)) else { return false };
        let own = (task.created_ms, task.id.clone());
        ended.range(own..).count() > keep(entry)
    }

    /// Returns the schedules that may have a step to take.
    fn due(&self, now: Now) -> BTreeSet<&ScheduleName> {
        let instants = self.instants.iter().take_while(|(at_ms, _)| *at_ms <= now.unix_ms).map(|(_, name)| name);
        let ready = self.ready.iter().filter(|(_, at)| **at <= now.boot).map(|(name, _)| name);
        let is_free = |name: &&ScheduleName| {
            let waits = self.ready.get(*name).is_some_and(|at| *at > now.boot);
            !waits && !self.writing.contains(*name)
        };
        instants.chain(ready).filter(is_free).collect()
    }

    /// Returns the boot time of the next step, as far as it is known.
    pub(crate) fn next_due(&self, now: Now) -> Option<Duration> {
        let instant = self.instants.first().map(|(at_ms, _)| now.at_unix(*at_ms));
        [instant, self.ready.values().min().copied()].into_iter().flatten().min()
    }
}

fn keep(entry: &ScheduleEntry) -> usize {
    entry.record.keep as usize
}

/// Decides the next steps of the schedules. None is taken while this leader's clock may be wrong.
pub(crate) fn decide_schedules(
    cluster: &ClusterState,
    tasks_max: usize,
    now: Now,
    budget: &mut Budget,
    decisions: &mut Vec<Decision>,
) {
    if !now.is_clock_right {
        return;
    }
    let live = cluster.tasks.len() - cluster.tasks.ended().len();
    for name in cluster.schedules.due(now) {
        let Some(entry) = cluster.schedules.get(name) else { continue };
        let decision = match entry.record.next_step(&entry.timer, &facts(cluster, &entry.record, now)) {
            None => Decision::ScheduleIdle(name.clone()),
            Some(Step::Fire(_, task)) if live + member_count(&task.spec) >= tasks_max => {
                Decision::ScheduleWakeAt(name.clone(), now.boot + FULL_RETRY)
            }
            Some(step) => Decision::Schedule(name.clone(), step),
        };
        if !budget.spend(&decision) {
            return;
        }
        decisions.push(decision);
    }
}

/// Returns the number of members of a task that is a group.
fn member_count(spec: &TaskSpec) -> usize {
    spec.kind().group().map_or(0, |group| group.members as usize)
}

/// Returns what a schedule sees when it decides.
pub(crate) fn facts(cluster: &ClusterState, record: &ScheduleRecord, now: Now) -> Facts {
    let registration = record.trigger.boots_of().and_then(|node| cluster.fleet.get(node));
    let last = record.last_task.as_ref().and_then(|id| cluster.tasks.get(id));
    let predecessor = last.filter(|entry| !entry.record.state.is_terminal()).map(|entry| Predecessor {
        id: entry.record.id.clone(),
        state: entry.record.state,
        reason: explain::describe(cluster, entry, now).reason.clone(),
    });
    Facts { now_ms: now.unix_ms, boot: registration.map(|there| there.boot_id.clone()), predecessor }
}
