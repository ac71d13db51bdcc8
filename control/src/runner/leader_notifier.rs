//! Notifies the dispatcher of changed records.
//!
//! Notifications are hints. They never delay a copy, and are merged while the dispatcher does not answer. After ten
//! calls without an answer they are dropped: a dispatcher reads all records of held tasks every 30 s anyway.

use crate::model::TaskId;
use crate::peers::LeaderClient;
use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Longest wait for a call: the seam's own bound is 2 s.
pub(super) const CALL_MAX: Duration = Duration::from_millis(2500);
/// Wait after a call that was not answered.
const RETRY: Duration = Duration::from_millis(500);
/// Number of calls after which hints are dropped.
const TRIES_MAX: u32 = 10;
/// Most tasks in one call.
pub(super) const TASKS_PER_CALL: usize = 256;

/// Queue of tasks whose records have changed since the dispatcher was notified.
#[derive(Debug)]
pub(super) struct LeaderNotifier {
    waiting: Mutex<BTreeSet<TaskId>>,
    count: watch::Sender<usize>,
}

impl Default for LeaderNotifier {
    fn default() -> Self {
        Self { waiting: Mutex::default(), count: watch::Sender::new(0) }
    }
}

impl LeaderNotifier {
    /// Adds a task whose record has changed.
    pub(super) fn changed(&self, task: &TaskId) {
        let mut waiting = self.waiting();
        waiting.insert(task.clone());
        self.count.send_replace(waiting.len());
    }

    /// Waits until every hint has been sent, or dropped.
    pub(super) async fn all_sent(&self) {
        // The sender lives as long as this.
        let _ = self.count.subscribe().wait_for(|&count| count == 0).await;
    }

    /// Takes the tasks of the next call out of the queue. They count as waiting until [`LeaderNotifier::recount`]. A
    /// task that changes meanwhile is queued again.
    fn take_batch(&self) -> Vec<TaskId> {
        let mut waiting = self.waiting();
        let tasks: Vec<_> = waiting.iter().take(TASKS_PER_CALL).cloned().collect();
        waiting.retain(|task| !tasks.contains(task));
        tasks
    }

    fn recount(&self) {
        self.count.send_replace(self.waiting().len());
    }

    fn waiting(&self) -> MutexGuard<'_, BTreeSet<TaskId>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Notifies the dispatcher of changed records, for as long as it is polled.
pub(super) async fn send_changes(notifier: &LeaderNotifier, leader: &dyn LeaderClient) {
    let mut count = notifier.count.subscribe();
    let mut tries = 0;
    loop {
        let _ = count.wait_for(|&count| count > 0).await;
        let tasks = notifier.take_batch();
        let is_answered = matches!(timeout(CALL_MAX, leader.changed(&tasks)).await, Ok(Ok(())));
        tries += 1;
        if is_answered || tries == TRIES_MAX {
            tries = 0;
            notifier.recount();
        } else {
            tasks.iter().for_each(|task| notifier.changed(task));
            sleep(RETRY).await;
        }
    }
}
