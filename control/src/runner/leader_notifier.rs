//! Notifies the dispatcher of changed records and of the progress of copies.
//!
//! Both are hints. They never delay a copy, are merged while the dispatcher does not answer, and are dropped when it
//! stays away: it reads everything again when it comes back.

use super::context::RunnerContext;
use crate::model::{Progress, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Between two reports of progress: at most four a second.
const PROGRESS_EVERY: Duration = Duration::from_millis(250);
/// For a call that says nothing: the seam's own bound is 2 s.
const CALL_MAX: Duration = Duration::from_millis(2500);
/// After a call that was not answered.
const RETRY: Duration = Duration::from_millis(500);
/// Calls after which hints are given up.
const TRIES: u32 = 10;
/// Tasks in one call.
const TASKS_PER_CALL: usize = 256;

/// Tasks whose records have changed and whose dispatcher does not know yet.
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
    /// The record of a task has changed.
    pub(super) fn changed(&self, task: &TaskId) {
        let mut waiting = self.waiting();
        waiting.insert(task.clone());
        self.count.send_replace(waiting.len());
    }

    /// Waits until everything has been told, or given up.
    pub(super) async fn told(&self) {
        // The sender lives as long as this.
        let _ = self.count.subscribe().wait_for(|&count| count == 0).await;
    }

    /// Takes some to tell. They count as waiting until [`LeaderNotifier::recount`]; changed again meanwhile, they are told again.
    fn take(&self) -> Vec<TaskId> {
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

/// Tells the dispatcher about changed records, for as long as it is polled.
pub(super) async fn tell_changes(context: &RunnerContext) {
    let mut count = context.notifier.count.subscribe();
    let mut tries = 0;
    loop {
        let _ = count.wait_for(|&count| count > 0).await;
        let tasks = context.notifier.take();
        let is_told = matches!(timeout(CALL_MAX, context.seams.leader.changed(&tasks)).await, Ok(Ok(())));
        tries += 1;
        if is_told || tries == TRIES {
            tries = 0;
            context.notifier.recount();
        } else {
            tasks.iter().for_each(|task| context.notifier.changed(task));
            sleep(RETRY).await;
        }
    }
}

/// Tells the dispatcher where copies stand, for as long as it is polled.
pub(super) async fn tell_progress(context: &RunnerContext) {
    let mut told: BTreeMap<TaskId, Progress> = BTreeMap::new();
    let mut held = context.assignments.count();
    loop {
        let _ = held.wait_for(|&count| count > 0).await;
        let now: BTreeMap<_, _> = context
            .assignments
            .all()
            .iter()
            .filter_map(|attempt| Some((attempt.task().clone(), attempt.running()?.progress())))
            .collect();
        let fresh = |(task, progress): &(&TaskId, &Progress)| told.get(*task) != Some(*progress);
        let updates: Vec<_> = now.iter().filter(fresh).map(|(task, progress)| (task.clone(), *progress)).collect();
        for some in updates.chunks(TASKS_PER_CALL) {
            let _ = timeout(CALL_MAX, context.seams.leader.progress(some)).await;
        }
        told = now;
        sleep(PROGRESS_EVERY).await;
    }
}
