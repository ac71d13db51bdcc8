//! Builds the picture that a client has of all tasks, as the documentation tells clients to; for tests.

use super::{Next, Snapshot, TaskChange};
use crate::model::{Position, TaskId};
use std::collections::BTreeMap;

/// What a client knows of all tasks.
#[derive(Debug, Default)]
pub(crate) struct Picture {
    pub(crate) tasks: BTreeMap<TaskId, TaskChange>,
    /// Position of the last change; `None`: nothing was received, or a part of a snapshot.
    pub(crate) position: Option<Position>,
    /// Number of snapshots so far.
    pub(crate) snapshots: usize,
}

impl Picture {
    /// Starts over with the first `received` tasks of a snapshot; all of them if there are no more.
    pub(crate) fn start_over(&mut self, snapshot: &Snapshot, position: Position, received: usize) {
        let known = snapshot.tasks.iter().take(received).map(|task| (task.id.clone(), task.clone()));
        self.tasks = known.collect();
        self.position = (received >= snapshot.tasks.len()).then_some(position);
        self.snapshots += 1;
    }

    /// Applies a change. Numbers must be consecutive.
    pub(crate) fn apply(&mut self, change: &TaskChange, position: Position) {
        let before = self.position.expect("changes follow a whole snapshot, or a position");
        assert_eq!((before.epoch, before.number + 1), (position.epoch, position.number), "{change:?}");
        self.position = Some(position);
        if change.is_removed {
            self.tasks.remove(&change.id);
        } else {
            self.tasks.insert(change.id.clone(), change.clone());
        }
    }

    /// Applies changes that a subscriber got. Returns `false` if it needs a snapshot, or gets nothing.
    pub(crate) fn apply_all(&mut self, next: &Next, epoch: crate::model::Epoch) -> bool {
        let Next::Changes(changes) = next else { return false };
        changes.iter().for_each(|(number, change)| self.apply(change, Position { epoch, number: *number }));
        true
    }
}
