//! Holds every task that the leader knows, as last read or written, and what only this leader knows of it.

use super::age::{Ages, Creation, UNKNOWN};
use super::backoff::Backoff;
use super::now::Now;
use super::queue::Rank;
use crate::coord::Zxid;
use crate::model::state_machine::RETRY_REST_MAX;
use crate::model::{Epoch, Holder, NodeId, Progress, TaskId, TaskRecord, TaskState};
use crate::peers::StartStage;
use blockhaul_engine::error::Code;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use strum::VariantArray;

/// Task as the leader knows it.
#[derive(Debug)]
pub(crate) struct TaskEntry {
    /// Record as it is in the store, as far as is known.
    pub(crate) record: Arc<TaskRecord>,
    /// Version of that record's node.
    pub(crate) version: i32,
    /// Transaction that created the node, once it is known: tells tasks apart that have used the same id.
    pub(crate) created: Option<Zxid>,
    /// Epoch of the holder's grant, if this leader has made or read it.
    pub(crate) grant: Option<Epoch>,
    /// Telemetry of the holder.
    pub(crate) live: Option<Progress>,
    /// State of the task that only this leader keeps.
    pub(crate) runtime: TaskRuntime,
}

impl TaskEntry {
    /// Returns the telemetry of its holder, unless the record is newer.
    pub(crate) fn telemetry(&self) -> Option<Progress> {
        self.live.filter(|live| self.record.holder.is_some() && live.issued >= self.record.progress.issued)
    }

    /// Returns the end of a failed task's backoff, if it is not over. The record's time is of its runner's wall clock:
    /// if that clock is ahead of this node's, the backoff is still bounded.
    pub(crate) fn backoff_until(&self, now: Now) -> Option<Duration> {
        let bound = self.runtime.since + RETRY_REST_MAX;
        let until = now.at_unix(self.record.not_before_ms).min(bound);
        (self.record.not_before_ms > now.unix_ms && until > now.boot).then_some(until)
    }
}

/// State of a task that only one leader keeps; the next leader starts without it.
#[derive(Clone, Debug, Default)]
pub(crate) struct TaskRuntime {
    /// Whether a write of the record is under way: no other one may start.
    pub(crate) is_busy: bool,
    /// Whether a call about the task is under way.
    pub(crate) is_calling: bool,
    /// Boot time at which this state with this holder was first seen.
    pub(crate) since: Duration,
    /// Number of the observation of its record, of all records.
    pub(crate) observed: u64,
    /// Last answer of its runner about the assignment, while the task has not begun.
    pub(crate) assign_reply: AssignReply,
    /// Last start stage that the task's runner has reported.
    pub(crate) start_stage: Option<StartStage>,
    /// Earliest time of the next query or notification.
    pub(crate) next_call: Duration,
    /// Whether its holder should read the record, and has not been notified.
    pub(crate) needs_notification: bool,
    /// Backoffs of the runners that have refused the task.
    pub(crate) backoffs: BTreeMap<NodeId, Backoff>,
    /// Ended attempts that may still write.
    pub(crate) undrained: Vec<UndrainedAttempt>,
    /// Runner that is to get the task, and the identities of the destination, as that runner has resolved them.
    pub(crate) resolved: Option<(Holder, Vec<String>)>,
    /// Claim of another task that blocks this one.
    pub(crate) blocked_by: Option<String>,
    /// Earliest time of the next write, after one that failed.
    pub(crate) next_write: Duration,
    /// Failure of the last write, until a write succeeds.
    pub(crate) write_failure: Option<WriteFailure>,
}

/// Failure of a write of a task's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WriteFailure {
    /// Message of the coordination service.
    pub(crate) why: String,
    /// Boot time at which the failure was logged last.
    pub(crate) at: Duration,
}

/// Grant of an ended attempt that may still write, and since when this leader knows of its end.
pub(crate) type UndrainedAttempt = (Option<Epoch>, Duration);

/// Last answer of a task's runner.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum AssignReply {
    /// The runner was not called yet.
    #[default]
    NotCalled,
    /// The runner did not answer: it may or may not have the task.
    NoAnswer,
    /// The runner has the task.
    Accepted,
    /// The runner does not have the task and will not accept it.
    Refused {
        /// Error code.
        code: Code,
        /// Reason as text.
        why: String,
    },
}

/// All tasks, by id and by state.
#[derive(Debug, Default)]
pub(crate) struct Tasks {
    entries: BTreeMap<TaskId, TaskEntry>,
    by_state: [BTreeSet<TaskId>; TaskState::VARIANTS.len()],
    /// Ended tasks, in the order of their submissions.
    ended: BTreeSet<Creation>,
    /// Start of the wait of each task that has not ended.
    ages: Ages,
    /// Records that cannot be decoded, by path, and why.
    pub(crate) undecodable: BTreeMap<String, String>,
}

impl Tasks {
    pub(crate) fn get(&self, id: &TaskId) -> Option<&TaskEntry> {
        self.entries.get(id)
    }

    pub(crate) fn get_mut(&mut self, id: &TaskId) -> Option<&mut TaskEntry> {
        self.entries.get_mut(id)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &TaskId> {
        self.entries.keys()
    }

    /// Returns tasks from `after` on in the order of their ids, all or of one state.
    pub(crate) fn page(
        &self,
        state: Option<TaskState>,
        after: Option<&TaskId>,
    ) -> Box<dyn Iterator<Item = &TaskEntry> + '_> {
        use std::ops::Bound::{Excluded, Unbounded};
        let range = (after.map_or(Unbounded, Excluded), Unbounded);
        match state {
            None => Box::new(self.entries.range::<TaskId, _>(range).map(|(_, entry)| entry)),
            Some(state) => Box::new(self.of(state).range::<TaskId, _>(range).filter_map(|id| self.entries.get(id))),
        }
    }

    /// Returns the ids of the tasks in a state.
    pub(crate) fn of(&self, state: TaskState) -> &BTreeSet<TaskId> {
        &self.by_state[position(state)]
    }

    /// Returns the ended tasks, the first submitted first.
    pub(crate) fn ended(&self) -> impl ExactSizeIterator<Item = &TaskId> {
        self.ended.iter().map(|(_, id)| id)
    }

    /// Sets the transaction that created a task's node. Returns tasks whose positions in the queue have changed.
    pub(crate) fn set_created(&mut self, id: &TaskId, created: Zxid) -> Vec<TaskId> {
        let Some(entry) = self.entries.get_mut(id).filter(|entry| entry.created.is_none()) else { return Vec::new() };
        let before = creation_order(entry);
        entry.created = Some(created);
        let now = creation_order(entry);
        if self.ended.remove(&before) {
            self.ended.insert(now);
            return Vec::new();
        }
        self.ages.remove(&before);
        let mut aged = self.ages.insert(now, entry.record.created_ms);
        aged.push(id.clone());
        aged
    }

    /// Returns the position in the queue of a task that has not ended.
    pub(crate) fn rank(&self, id: &TaskId) -> Option<Rank> {
        let entry = self.entries.get(id)?;
        let creation = creation_order(entry);
        let since_ms = self.ages.since(&creation)?;
        Some(Rank::new(id.clone(), creation.0, entry.record.priority, since_ms))
    }

    /// Returns the ids of the tasks that a runner may change.
    pub(crate) fn held(&self) -> impl Iterator<Item = &TaskId> {
        TaskState::VARIANTS.iter().copied().filter(|state| state.is_held()).flat_map(|state| self.of(state))
    }

    /// Adds an entry; one of the same id was removed before. Returns tasks whose positions in the queue have changed.
    pub(crate) fn insert(&mut self, entry: TaskEntry) -> Vec<TaskId> {
        let id = entry.record.id.clone();
        self.by_state[position(entry.record.state)].insert(id.clone());
        let aged = if entry.record.state.is_terminal() {
            self.ended.insert(creation_order(&entry));
            Vec::new()
        } else {
            self.ages.insert(creation_order(&entry), entry.record.created_ms)
        };
        let before = self.entries.insert(id, entry);
        assert!(before.is_none(), "the index of its state would keep it");
        aged
    }

    pub(crate) fn remove(&mut self, id: &TaskId) -> Option<TaskEntry> {
        let entry = self.entries.remove(id)?;
        self.by_state[position(entry.record.state)].remove(id);
        let creation = creation_order(&entry);
        self.ended.remove(&creation);
        self.ages.remove(&creation);
        Some(entry)
    }
}

/// Returns the order of an entry. A node whose creation is unknown counts as new.
pub(crate) fn creation_order(entry: &TaskEntry) -> Creation {
    (entry.created.unwrap_or(UNKNOWN), entry.record.id.clone())
}

fn position(state: TaskState) -> usize {
    TaskState::VARIANTS.iter().position(|each| *each == state).unwrap_or_default()
}
