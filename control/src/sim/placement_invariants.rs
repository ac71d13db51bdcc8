//! Checks the invariants of tasks that stay apart from others, from the committed records alone.

use super::invariants::{InvariantChecker, ObservedState};
use crate::model::{PlacementRules, Registration, TaskId, TaskRecord};

/// Keys of tasks that stay apart.
const KEYS: u8 = 4;

impl InvariantChecker {
    /// Checks a write that assigns a task: no other task with its key has the node.
    pub(super) fn check_apart(&self, observed: &ObservedState, after: &TaskRecord) {
        let (Some(_), Some(node)) = (&after.placement.apart_from, after.node()) else { return };
        self.result.count("tasks kept apart");
        let other = observed.records().find(|other| is_apart(other, after) && other.node() == Some(node));
        self.result.expect(other.is_none(), || {
            let other = other.map(|other| &other.id);
            format!("{} was given to {node}, which has {other:?} with the same key", after.id)
        });
    }
}

impl ObservedState {
    /// Tells whether a node has a task from which another one stays apart.
    pub(super) fn keeps_apart(&self, there: &Registration, record: &TaskRecord) -> bool {
        self.records().any(|other| is_apart(other, record) && other.node() == Some(&there.node))
    }
}

fn is_apart(one: &TaskRecord, other: &TaskRecord) -> bool {
    one.id != other.id && one.placement.apart_from.is_some() && one.placement.apart_from == other.placement.apart_from
}

/// Returns rules for one task in four. They depend on its name alone, so that the other choices of a seed stay as they are.
pub(super) fn rules_of(id: &TaskId) -> PlacementRules {
    let hash = blake3::hash(id.as_str().as_bytes());
    let [which, key, ..] = hash.as_bytes();
    PlacementRules { apart_from: (which % 4 == 0).then(|| format!("key {}", key % KEYS)), ..PlacementRules::default() }
}
