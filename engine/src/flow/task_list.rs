//! Treats several tasks as one: schedules, cancels, and has them depend on others, together.

use super::graph::{Condition, DependError};
use super::scheduler::Task;

/// Tasks of one flow, in the order in which they were added.
///
/// ```
/// use blockhaul_engine::flow::graph::Condition;
/// use blockhaul_engine::flow::scheduler::Flow;
/// use blockhaul_engine::flow::task_list::TaskList;
///
/// let scheduler = Flow::default().scheduler();
/// let freeze = scheduler.task().run(|| Ok(())).build();
/// let copies: TaskList = (0..4).map(|_| scheduler.task().run(|| Ok(())).build()).collect();
/// copies.depend(&freeze, Condition::Success).unwrap();
/// copies.schedule();
/// assert_eq!(scheduler.progress(), 0);
/// freeze.schedule();
/// assert_eq!(scheduler.progress(), 5);
/// ```
#[derive(Clone, Debug, Default)]
pub struct TaskList(Vec<Task>);

impl TaskList {
    /// Adds a task.
    pub fn push(&mut self, task: Task) {
        self.0.push(task);
    }

    /// Returns the tasks.
    #[must_use]
    pub fn tasks(&self) -> &[Task] {
        &self.0
    }

    /// Schedules those that are not scheduled. Returns how many that were.
    pub fn schedule(&self) -> usize {
        self.0.iter().filter(|task| task.schedule()).count()
    }

    /// Cancels those that have not ended, the last one first: none starts because an earlier one was cancelled.
    pub fn abort(&self) {
        self.0.iter().rev().for_each(Task::cancel);
    }

    /// Has all of them wait for another task.
    ///
    /// # Errors
    /// That of the first task that cannot; those before it wait.
    pub fn depend(&self, on: &Task, condition: Condition) -> Result<(), DependError> {
        self.0.iter().try_for_each(|task| task.depend(on, condition))
    }
}

impl FromIterator<Task> for TaskList {
    fn from_iter<I: IntoIterator<Item = Task>>(tasks: I) -> Self {
        Self(tasks.into_iter().collect())
    }
}
