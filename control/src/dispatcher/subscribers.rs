//! Feeds what is stored to the clients that follow all tasks.
//!
//! The feed gets a change where the leader applies a stored record, so it has the order of the leader, and nothing that
//! was only intended. While the first records of a term are read it gets nothing: nobody follows then.

use super::Dispatcher;
use super::feed::{FeedReader, Snapshot, TaskChange, is_progress_only};
use crate::model::{TaskId, TaskRecord};
use std::sync::Arc;

impl Dispatcher {
    /// Notes that a task's record is not `before` any more, unless only its progress has changed.
    pub(crate) fn feed_change(&mut self, id: &TaskId, before: Option<&TaskRecord>) {
        let Some(entry) = self.cluster.tasks.get(id) else { return };
        if self.reads.is_loaded && !before.is_some_and(|before| is_progress_only(before, &entry.record)) {
            self.feed.push(TaskChange::of(&entry.record, entry.version));
        }
    }

    /// Notes that a task is about to be forgotten, as its record is gone or cannot be decoded any more.
    pub(crate) fn feed_removal(&mut self, id: &TaskId) {
        let Some(entry) = self.cluster.tasks.get(id).filter(|_| self.reads.is_loaded) else { return };
        self.feed.push(TaskChange::removed(&entry.record, entry.version));
    }

    /// Returns the changes of this term.
    pub(crate) fn reader(&self) -> FeedReader {
        self.feed.reader()
    }

    /// Returns all tasks. This is the only cost that grows with their number; it comes up when somebody begins to
    /// follow, or has fallen behind by half of the ring.
    pub(crate) fn snapshot(&mut self) -> Arc<Snapshot> {
        let tasks = &self.cluster.tasks;
        let all = || tasks.page(None, None).map(|entry| TaskChange::of(&entry.record, entry.version)).collect();
        self.feed.snapshot(all)
    }
}
