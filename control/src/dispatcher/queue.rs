//! Tasks that could run if a runner had room, and those that wait for another task's destination.

use crate::record::{NodeId, TaskId, TaskRecord};
use std::collections::{BTreeMap, BTreeSet};

/// Milliseconds of waiting that count as much as one step of priority.
const STEP_MS: i64 = 60_000;

/// A place in the queue; lower goes first. Priority grows by one a minute for everybody, so that places never change.
pub(crate) type Rank = (i64, TaskId);

/// The rank of a task.
pub(crate) fn rank(record: &TaskRecord) -> Rank {
    let created = i64::try_from(record.created_ms).unwrap_or(i64::MAX);
    (created.saturating_sub(STEP_MS * i64::from(record.priority)), record.id.clone())
}

/// Ready tasks by where they can run, each in the order of their ranks.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    /// On any runner.
    pub(crate) any: BTreeSet<Rank>,
    /// On one.
    pub(crate) pinned: BTreeMap<NodeId, BTreeSet<Rank>>,
    places: BTreeMap<TaskId, (Option<NodeId>, Rank)>,
    /// By the claim of another task that they wait for.
    blocked: BTreeMap<String, BTreeSet<TaskId>>,
}

impl Queue {
    /// A task becomes ready, on `node` or anywhere.
    pub(crate) fn push(&mut self, record: &TaskRecord, node: Option<NodeId>) {
        self.remove(&record.id);
        let rank = rank(record);
        match &node {
            None => self.any.insert(rank.clone()),
            Some(node) => self.pinned.entry(node.clone()).or_default().insert(rank.clone()),
        };
        self.places.insert(record.id.clone(), (node, rank));
    }

    /// A task is no longer ready.
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

    /// A task waits until that claim is free.
    pub(crate) fn block(&mut self, id: &TaskId, claim: &str) {
        self.remove(id);
        self.blocked.entry(claim.to_owned()).or_default().insert(id.clone());
    }

    /// A task waits no more.
    pub(crate) fn unblock(&mut self, id: &TaskId, claim: &str) {
        if let Some(waiting) = self.blocked.get_mut(claim) {
            waiting.remove(id);
            if waiting.is_empty() {
                self.blocked.remove(claim);
            }
        }
    }

    /// A claim is free: who waited for it.
    pub(crate) fn freed(&mut self, claim: &str) -> BTreeSet<TaskId> {
        self.blocked.remove(claim).unwrap_or_default()
    }
}
