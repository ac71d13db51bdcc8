//! Builds tasks.

use super::super::graph::{Condition, TaskKey};
use super::state::Entry;
use super::{Flow, Task, TaskResult};
use std::fmt;
use std::time::Duration;

/// Builds a task: see [`Scheduler::task`](super::Scheduler::task).
#[must_use = "a task that is not built never runs"]
pub struct TaskBuilder {
    pub(super) flow: Flow,
    pub(super) entry: Entry,
    pub(super) conditions: Vec<(TaskKey, Condition)>,
    /// Keeps the predecessors until the task depends on them.
    pub(super) predecessors: Vec<Task>,
}

impl fmt::Debug for TaskBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskBuilder").field("conditions", &self.conditions).finish_non_exhaustive()
    }
}

impl TaskBuilder {
    /// Sets what the task does. Without a body it is completed from outside once it is ready.
    pub fn body(mut self, body: impl FnMut(&Task) + Send + 'static) -> Self {
        self.entry.body = Some(Box::new(body));
        self
    }

    /// Sets a body that completes the task with what it returns.
    pub fn run(self, mut work: impl FnMut() -> TaskResult + Send + 'static) -> Self {
        self.body(move |task| _ = task.complete(work()))
    }

    /// Has the task wait for another one of the same flow. It is skipped with `EDependency` when the condition is
    /// broken: a task that is to run anyway takes [`Condition::End`].
    ///
    /// # Panics
    /// If the other task is of another flow.
    pub fn after(mut self, on: &Task, condition: Condition) -> Self {
        assert!(self.flow.is(&on.flow), "tasks of two flows cannot depend on each other");
        self.conditions.push((on.key, condition));
        self.predecessors.push(on.clone());
        self
    }

    /// Has the task wait so long after it was scheduled.
    pub fn delay(mut self, delay: Duration) -> Self {
        self.entry.delay = delay;
        self
    }

    /// Adds a callback before the body; they run in the order in which they were added.
    pub fn prepare(mut self, callback: impl FnMut(&Task) -> TaskResult + Send + 'static) -> Self {
        self.entry.prepare.push(Box::new(callback));
        self
    }

    /// Adds a callback at the task's end; they run in reverse order.
    pub fn completed(mut self, callback: impl FnMut(&Task, &TaskResult) -> TaskResult + Send + 'static) -> Self {
        self.entry.completed.push(Box::new(callback));
        self
    }

    /// Adds a callback for a cancel while the task runs.
    pub fn cancelled(mut self, callback: impl FnMut(&Task) + Send + 'static) -> Self {
        self.entry.cancelled.push(Box::new(callback));
        self
    }

    /// Makes the task. It does not run before it is scheduled.
    #[must_use]
    pub fn build(self) -> Task {
        let Self { flow, mut entry, conditions, predecessors } = self;
        entry.handles = 1;
        let mut state = flow.0.lock();
        // A task that is not scheduled reacts to its conditions when it is.
        let mut changes = Vec::new();
        let key = state.graph.insert(conditions, &mut changes);
        if state.entries.len() <= key.index() {
            state.entries.resize_with(key.index() + 1, || None);
        }
        state.entries[key.index()] = Some(entry);
        drop(state);
        drop(predecessors);
        Task { flow, key }
    }
}
