//! Queues tasks that could run if a runner had a free slot, and tasks that wait for a destination that another task
//! claims.

use crate::coord::Zxid;
use crate::model::{NodeId, TaskId};
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

/// Ready tasks by where they can run, each in the order of their ranks.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// Tasks for any runner.
    pub(crate) any: BTreeSet<Rank>,
    /// Tasks for one node.
    pub(crate) pinned: BTreeMap<NodeId, BTreeSet<Rank>>,
    places: BTreeMap<TaskId, (Option<NodeId>, Rank)>,
    /// Blocked tasks, by the claim of another task that they wait for.
    blocked: BTreeMap<String, BTreeSet<TaskId>>,
}

impl Queue {
    /// Adds a ready task, for `node` or for any.
    pub(crate) fn push(&mut self, rank: Rank, node: Option<NodeId>) {
        self.remove(&rank.task);
        match &node {
            None => self.any.insert(rank.clone()),
            Some(node) => self.pinned.entry(node.clone()).or_default().insert(rank.clone()),
        };
        self.places.insert(rank.task.clone(), (node, rank));
    }

    /// Returns where a ready task can run.
    pub(crate) fn place(&self, id: &TaskId) -> Option<&Option<NodeId>> {
        self.places.get(id).map(|(node, _)| node)
    }

    /// Removes a task that is no longer ready.
    pub(crate) fn remove(&mut self, id: &TaskId) {
        match self.places.remove(id) {
            Some((None, rank)) => {
                self.any.remove(&rank);
            }
            Some((Some(node), rank)) => {
                if let Some(ranks) = self.pinned.get_mut(&node) {
                    ranks.remove(&rank);
                    if ranks.is_empty() {
                        self.pinned.remove(&node);
                    }
                }
            }
            None => {}
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
