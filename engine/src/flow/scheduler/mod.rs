//! Runs tasks in the order that their dependencies allow, on whatever threads call [`Scheduler::progress`].
//!
//! ```text
//!                 schedule                met, and the delay is over      progress        complete
//!   Created ------------------> Scheduled ---------------------------> Queued -----> Running ----> Ending --> Ended
//!                                  |  ^                                    |                          |        |
//!                                  |  '------------------------------------|------- restart ----------+--------'
//!                                  '-- a condition is broken, or cancel ---'------------------------->'
//! ```
//! A task runs its preparation callbacks in the order in which they were added, then its body. It ends when it is
//! [completed](Task::complete), by its body or from outside. Then its completion callbacks run, the last one first. A
//! callback that restarts its task keeps the remaining ones from running: the task has not ended.
//!
//! What always holds:
//! - No callback and no body runs while the flow's lock is held: each may use every method here.
//! - Nothing recurses. What is completed inside a callback ends when that callback has returned, on the same thread.
//! - Every task that is scheduled ends once for each life, and its completion callbacks run once then, whether it
//!   succeeded, failed, was skipped or was cancelled.
//! - The first error is the result: of a preparation callback, a condition, the completion, a completion callback.
//! - A task that only a handle could move on is cancelled when its last handle is dropped: nothing waits for it for ever.
//!
//! A flow owns its tasks. A task that has ended is forgotten with its last handle.

mod builder;
mod state;
mod task;

pub use builder::TaskBuilder;

use super::graph::TaskKey;
use super::sync::Arc;
use crate::error::Error;
use state::{Entry, FlowClock, SchedulerState, Shared};
use std::sync::PoisonError;
use std::time::Duration;

/// Result of a task.
pub type TaskResult = Result<(), Error>;

/// What a task does. Returning does not end the task: [`Task::complete`] does.
pub type Body = Box<dyn FnMut(&Task) + Send>;
/// Called before the body; an error completes the task with it.
pub type PrepareCallback = Box<dyn FnMut(&Task) -> TaskResult + Send>;
/// Called with the result at the end of each life of a task; an error becomes the result of a task without one.
pub type CompletionCallback = Box<dyn FnMut(&Task, &TaskResult) -> TaskResult + Send>;
/// Called when a task that runs is cancelled: its owner should complete it soon.
pub type CancelCallback = Box<dyn FnMut(&Task) + Send>;
/// Called each time a scheduler becomes idle.
pub type IdleCallback = Box<dyn FnMut() + Send>;
/// Called once with the result of a task that has ended.
type EndedCallback = Box<dyn FnOnce(&TaskResult) + Send>;
/// Wakes a thread that waits for what happens in a flow. Must not use the flow.
pub(super) type Waker = Arc<dyn Fn() + Send + Sync>;

/// Schedulers whose tasks may depend on one another. Clones are the same flow.
#[derive(Clone, Debug, Default)]
pub struct Flow(Arc<Shared>);

/// Runs tasks of a flow. Clones are the same scheduler.
///
/// ```
/// use blockhaul_engine::flow::graph::Condition;
/// use blockhaul_engine::flow::scheduler::Flow;
/// use std::sync::mpsc::channel;
///
/// let scheduler = Flow::default().scheduler();
/// let (said, heard) = channel();
/// let (first, second) = (said.clone(), said);
/// let copy = scheduler.task().run(move || { first.send("copied").unwrap(); Ok(()) }).build();
/// let verify = scheduler.task().run(move || { second.send("verified").unwrap(); Ok(()) });
/// let verify = verify.after(&copy, Condition::Success).build();
///
/// verify.schedule();
/// copy.schedule();
/// scheduler.progress();
/// assert_eq!(heard.try_iter().collect::<Vec<_>>(), ["copied", "verified"]);
/// assert_eq!(verify.result(), Some(Ok(())));
/// ```
#[derive(Clone, Debug)]
pub struct Scheduler {
    flow: Flow,
    index: usize,
}

/// Handle of a task. Clones are the same task.
pub struct Task {
    flow: Flow,
    key: TaskKey,
}

/// State of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// It was built, and not scheduled.
    Created,
    /// It waits for conditions or for its delay.
    Scheduled,
    /// It runs at the next call of [`Scheduler::progress`].
    Queued,
    /// Its preparation callbacks or its body run, or it is to be completed from outside.
    Running,
    /// It has a result. Its completion callbacks run, or conditions that were added while it ran are undecided.
    Ending,
    /// It has ended.
    Ended,
}

impl Flow {
    /// Makes a flow whose delays go by another clock than the host's: `source` returns the time since some moment.
    #[must_use]
    pub fn with_clock(source: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        let clock = FlowClock { source: Some(Box::new(source)), ..FlowClock::default() };
        Self(Arc::new(Shared { clock, ..Shared::default() }))
    }

    /// Adds a scheduler to the flow.
    #[must_use]
    pub fn scheduler(&self) -> Scheduler {
        let mut state = self.0.lock();
        state.schedulers.push(SchedulerState::default());
        Scheduler { flow: self.clone(), index: state.schedulers.len() - 1 }
    }

    /// Has `waker` called whenever a task has become ready or has ended.
    pub(super) fn wake_by(&self, waker: Waker) {
        self.0.wakers.lock().unwrap_or_else(PoisonError::into_inner).push(waker);
    }
}

impl Scheduler {
    /// Returns the flow of the scheduler.
    #[must_use]
    pub fn flow(&self) -> &Flow {
        &self.flow
    }

    /// Begins a task of this scheduler.
    pub fn task(&self) -> TaskBuilder {
        let entry = Entry {
            scheduler: self.index,
            phase: Phase::Created,
            life: 0,
            handles: 0,
            delay: Duration::ZERO,
            sleeper: None,
            result: Ok(()),
            is_busy: false,
            is_due: false,
            is_cancelled: false,
            is_skipped: false,
            waits_to_end: false,
            body: None,
            prepare: Vec::new(),
            completed: Vec::new(),
            cancelled: Vec::new(),
            ended: Vec::new(),
        };
        TaskBuilder { flow: self.flow.clone(), entry, conditions: Vec::new(), predecessors: Vec::new() }
    }

    /// Runs what is ready until nothing is, what becomes ready meanwhile included. Returns the number of tasks that it
    /// has started. Several threads may do so at once.
    pub fn progress(&self) -> usize {
        let mut started = 0;
        while let Some(task) = self.next() {
            task.start();
            started += 1;
        }
        started
    }

    /// Tells whether every task that was scheduled here has ended.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.flow.0.lock().schedulers[self.index].live == 0
    }

    /// Returns how long the next sleeper still sleeps.
    #[must_use]
    pub fn next_wake(&self) -> Option<Duration> {
        let wake = *self.flow.0.lock().schedulers[self.index].sleepers.first_key_value()?.0;
        Some(wake.0.saturating_sub(self.flow.0.clock.now()))
    }

    /// Adds a callback for each time that the last task that was scheduled here has ended.
    pub fn idle(&self, callback: impl FnMut() + Send + 'static) {
        self.flow.0.lock().schedulers[self.index].idle.push(Box::new(callback));
    }

    /// Cancels every task of this scheduler, and every task that is scheduled here from now on. See [`Task::cancel`].
    pub fn cancel(&self) {
        let tasks = {
            let mut state = self.flow.0.lock();
            state.schedulers[self.index].is_cancelled = true;
            let keys: Vec<_> = state.graph.keys().collect();
            let here = |key: &TaskKey| state.entry_ref(*key).is_some_and(|entry| entry.scheduler == self.index);
            keys.into_iter().filter(here).collect::<Vec<_>>()
        };
        tasks.into_iter().filter_map(|key| self.flow.handle(key)).for_each(|task| task.cancel());
    }

    /// Takes the next task that may start: its preparation begins.
    fn next(&self) -> Option<Task> {
        let now = self.flow.0.clock.now();
        let mut state = self.flow.0.lock();
        state.wake(self.index, now);
        loop {
            let (key, life) = state.schedulers[self.index].ready.pop_front()?;
            let Some(entry) = state.entry(key) else { continue };
            if entry.phase != Phase::Queued || entry.life != life {
                continue;
            }
            if entry.is_busy {
                entry.is_due = true;
                continue;
            }
            (entry.phase, entry.is_busy) = (Phase::Running, true);
            entry.handles += 1;
            drop(state);
            return Some(Task { flow: self.flow.clone(), key });
        }
    }
}

impl Flow {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Returns a handle of a task, if it is still known.
    fn handle(&self, key: TaskKey) -> Option<Task> {
        self.0.lock().entry(key)?.handles += 1;
        Some(Task { flow: self.clone(), key })
    }
}

impl Flow {
    fn end_all(&self, tasks: Vec<TaskKey>) {
        tasks.into_iter().filter_map(|key| self.handle(key)).for_each(Task::end);
    }
}
