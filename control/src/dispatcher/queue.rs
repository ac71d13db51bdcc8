//! Queues tasks that could run if a runner had a free slot, and tasks that wait for a destination that another task
//! claims.

use crate::coord::Zxid;
use crate::model::{KindName, Labels, NodeId, TaskId, TaskRecord};
use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds of waiting that count as much as one step of priority.
const STEP_MS: i64 = 60_000;

/// Position in the queue; lower goes first. Waiting a minute counts as much as one step of priority for every task, so
/// that positions change only when clocks turn out to differ.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    /// Milliseconds since 1970 at the start of its wait, less [`STEP_MS`] for each step of priority.
    place: i64,
    /// Transaction that created the task: breaks ties.
    created: Zxid,
    /// The task.
    pub(crate) task: TaskId,
}

impl Rank {
    /// Returns the rank of a task that waits since `since_ms`.
    pub(crate) fn new(task: TaskId, created: Zxid, priority: u8, since_ms: u64) -> Self {
        let since = i64::try_from(since_ms).unwrap_or(i64::MAX);
        Self { place: since.saturating_sub(STEP_MS * i64::from(priority)), created, task }
    }
}

/// What the ready tasks of one queue have in common: if no node has a slot for one of them, none has for the others.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QueueClass {
    /// The only node that can run them; `None`: any.
    pub(crate) node: Option<NodeId>,
    kind: KindName,
    /// Labels that their node must have.
    require: Labels,
}

impl QueueClass {
    /// Returns the class of a task that can run on `node`, or on any.
    pub(crate) fn new(record: &TaskRecord, node: Option<NodeId>) -> Self {
        Self { node, kind: KindName::from(&record.spec), require: record.placement.require.clone() }
    }
}

/// Ready tasks by class, each in the order of their ranks.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Ready tasks.
    pub(crate) classes: BTreeMap<QueueClass, BTreeSet<Rank>>,
    places: BTreeMap<TaskId, (QueueClass, Rank)>,
    /// Blocked tasks, by the claim of another task that they wait for.
    blocked: BTreeMap<String, BTreeSet<TaskId>>,
}

impl Queue {
    /// Adds a ready task.
    pub(crate) fn push(&mut self, rank: Rank, class: QueueClass) {
        self.remove(&rank.task);
        self.classes.entry(class.clone()).or_default().insert(rank.clone());
        self.places.insert(rank.task.clone(), (class, rank));
    }

    /// Returns the class of a ready task.
    pub(crate) fn class(&self, id: &TaskId) -> Option<&QueueClass> {
        self.places.get(id).map(|(class, _)| class)
    }

    /// Removes a task that is no longer ready.
    pub(crate) fn remove(&mut self, id: &TaskId) {
        let Some((class, rank)) = self.places.remove(id) else { return };
        if let Some(ranks) = self.classes.get_mut(&class) {
            ranks.remove(&rank);
            if ranks.is_empty() {
                self.classes.remove(&class);
            }
        }
    }

    /// Blocks a task until that claim is free.
    pub(crate) fn block(&mut self, id: &TaskId, claim: &str) {
        self.remove(id);
        self.blocked.entry(claim.to_owned()).or_default().insert(id.clone());
    }

    /// Unblocks a task.
    pub(crate) fn unblock(&mut self, id: &TaskId, claim: &str) {
        if let Some(waiting) = self.blocked.get_mut(claim) {
            waiting.remove(id);
            if waiting.is_empty() {
                self.blocked.remove(claim);
            }
        }
    }

    /// Returns the first tasks that wait for a claim, at most `count`.
    pub(crate) fn first_blocked(&self, claim: &str, count: usize) -> Vec<TaskId> {
        self.blocked.get(claim).into_iter().flatten().take(count).cloned().collect()
    }

    /// Removes and returns the tasks that waited for a claim.
    pub(crate) fn take_blocked(&mut self, claim: &str) -> BTreeSet<TaskId> {
        self.blocked.remove(claim).unwrap_or_default()
    }
}
