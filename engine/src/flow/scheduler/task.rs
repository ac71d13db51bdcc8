//! Moves a task on through its handle: schedules, completes, cancels and restarts it, and runs its callbacks.

use super::super::graph::{Condition, DependError, Outcome, Readiness};
use super::super::sync::{MutexGuard, thread_local};
use super::state::{FlowState, cancelled, dependency_failed};
use super::{Body, Phase, Task, TaskResult};
use crate::error::Code;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// Instant starts that may be nested on one thread; a deeper one is queued.
const INSTANT_MAX: u32 = 16;

/// Ends that are under way on this thread, in their order.
#[derive(Default)]
struct Endings {
    tasks: VecDeque<Task>,
    is_working: bool,
    /// Instant starts that are nested here.
    instant: u32,
}

thread_local! {
    static ENDINGS: RefCell<Endings> = RefCell::default();
}

fn endings<T>(work: impl FnOnce(&mut Endings) -> T) -> T {
    ENDINGS.with(|endings| work(&mut endings.borrow_mut()))
}

impl Task {
    /// Lets the task run once its conditions are met and its delay is over. Returns false if it was scheduled before.
    pub fn schedule(&self) -> bool {
        self.schedule_with(None)
    }

    /// As [`Task::schedule`], with this delay.
    pub fn schedule_after(&self, delay: Duration) -> bool {
        self.schedule_with(Some(delay))
    }

    /// As [`Task::schedule`]; a task that is ready runs before this returns. Starts that are nested too deeply are left
    /// to [`Scheduler::progress`](super::Scheduler::progress).
    pub fn schedule_now(&self) -> bool {
        if !self.schedule() {
            return false;
        }
        let depth = endings(|endings| {
            endings.instant += 1;
            endings.instant
        });
        let is_mine = depth <= INSTANT_MAX && {
            let mut state = self.flow.0.lock();
            let entry = state.entry(self.key).filter(|entry| entry.phase == Phase::Queued && !entry.is_busy);
            entry.map(|entry| (entry.phase, entry.is_busy) = (Phase::Running, true)).is_some()
        };
        if is_mine {
            self.start();
        }
        endings(|endings| endings.instant -= 1);
        true
    }

    /// Ends the task with this result once its body has returned and conditions that were added while it ran are
    /// decided. A task that has not started ends without starting. Returns false if it has a result already.
    pub fn complete(&self, result: TaskResult) -> bool {
        let mut state = self.flow.0.lock();
        let Some(entry) = state.entry(self.key) else { return false };
        if matches!(entry.phase, Phase::Ending | Phase::Ended) {
            return false;
        }
        let can_end = state.conclude(self.key, result);
        drop(state);
        if can_end {
            self.clone().end();
        }
        true
    }

    /// Cancels the task. One that has not started ends with `ECancelled`. One that runs is told by its callbacks and by
    /// [`Task::is_cancelled`], and ends when it is completed: what it does may not be over.
    pub fn cancel(&self) {
        let mut state = self.flow.0.lock();
        let Some(entry) = state.entry(self.key) else { return };
        match entry.phase {
            Phase::Created | Phase::Scheduled | Phase::Queued => {
                let can_end = state.conclude(self.key, Err(cancelled()));
                drop(state);
                if can_end {
                    self.clone().end();
                }
            }
            Phase::Running if !entry.is_cancelled => {
                entry.is_cancelled = true;
                let mut callbacks = std::mem::take(&mut entry.cancelled);
                drop(state);
                callbacks.iter_mut().for_each(|callback| callback(self));
                if let Some(entry) = self.flow.0.lock().entry(self.key) {
                    entry.cancelled = callbacks;
                }
            }
            Phase::Running | Phase::Ending | Phase::Ended => {}
        }
    }

    /// Lets a task that ends or has ended live again: it is scheduled with its delay. Returns false for any other task,
    /// and if its scheduler was cancelled.
    pub fn restart(&self) -> bool {
        self.restart_as(None, None)
    }

    /// As [`Task::restart`], with this delay.
    pub fn restart_after(&self, delay: Duration) -> bool {
        self.restart_as(Some(delay), None)
    }

    /// As [`Task::restart`], with this body.
    pub fn restart_with(&self, body: impl FnMut(&Self) + Send + 'static) -> bool {
        self.restart_as(None, Some(Box::new(body)))
    }

    /// Has the task wait for another one of the same flow. One that runs already ends only when the condition is
    /// decided, and fails if it is broken.
    ///
    /// # Errors
    /// See [`DependError`].
    ///
    /// # Panics
    /// If the other task is of another flow.
    pub fn depend(&self, on: &Self, condition: Condition) -> Result<(), DependError> {
        assert!(self.flow.is(&on.flow), "tasks of two flows cannot depend on each other");
        let mut changes = Vec::new();
        let mut state = self.flow.0.lock();
        state.graph.depend(self.key, on.key, condition, &mut changes)?;
        // One that was queued waits again.
        let is_waiting = state.graph.readiness(self.key) == Some(Readiness::Waiting);
        if let Some(entry) = state.entry(self.key).filter(|entry| entry.phase == Phase::Queued && is_waiting) {
            (entry.phase, entry.is_due) = (Phase::Scheduled, false);
        }
        let ends: Vec<_> = changes.into_iter().filter_map(|change| state.apply(change)).collect();
        drop(state);
        self.flow.end_all(ends);
        Ok(())
    }

    /// Returns the result of a task that has ended.
    #[must_use]
    pub fn result(&self) -> Option<TaskResult> {
        let state = self.flow.0.lock();
        state.entry_ref(self.key).filter(|entry| entry.phase == Phase::Ended).map(|entry| entry.result.clone())
    }

    /// Returns the state of the task.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.flow.0.lock().entry_ref(self.key).map_or(Phase::Ended, |entry| entry.phase)
    }

    /// Returns how often the task was restarted.
    #[must_use]
    pub fn life(&self) -> u64 {
        self.flow.0.lock().entry_ref(self.key).map_or(0, |entry| entry.life)
    }

    /// Tells whether a cancel was requested while the task ran.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.flow.0.lock().entry_ref(self.key).is_some_and(|entry| entry.is_cancelled)
    }

    /// Has `callback` called once with the result when the task has ended; at once if it has.
    pub(in crate::flow) fn when_ended(&self, callback: impl FnOnce(&TaskResult) + Send + 'static) {
        let result = {
            let mut state = self.flow.0.lock();
            let Some(entry) = state.entry(self.key) else { return };
            if entry.phase != Phase::Ended {
                entry.ended.push(Box::new(callback));
                return;
            }
            entry.result.clone()
        };
        callback(&result);
    }

    fn schedule_with(&self, delay: Option<Duration>) -> bool {
        let now = self.flow.0.clock.now();
        let mut state = self.flow.0.lock();
        let readiness = state.graph.readiness(self.key);
        let Some(entry) = state.entry(self.key).filter(|entry| entry.phase == Phase::Created) else { return false };
        entry.delay = delay.unwrap_or(entry.delay);
        let scheduler = entry.scheduler;
        let refusal = match readiness {
            _ if state.schedulers[scheduler].is_cancelled => Some(cancelled()),
            Some(Readiness::Broken(_)) => Some(dependency_failed()),
            Some(Readiness::Waiting | Readiness::Met) | None => None,
        };
        let Some(refusal) = refusal else {
            state.schedulers[scheduler].live += 1;
            state.schedule(self.key, now);
            drop(state);
            self.flow.0.wake();
            return true;
        };
        if let Some(entry) = state.entry(self.key) {
            entry.is_skipped = refusal.code == Code::Dependency;
        }
        let can_end = state.conclude(self.key, Err(refusal));
        drop(state);
        if can_end {
            self.clone().end();
        }
        true
    }

    fn restart_as(&self, delay: Option<Duration>, body: Option<Body>) -> bool {
        let now = self.flow.0.clock.now();
        let mut state = self.flow.0.lock();
        let is_cancelled = state.entry_ref(self.key).is_none_or(|entry| state.schedulers[entry.scheduler].is_cancelled);
        let Some(entry) = state.entry(self.key).filter(|_| !is_cancelled) else { return false };
        let has_ended = match entry.phase {
            Phase::Ending => false,
            Phase::Ended => true,
            Phase::Created | Phase::Scheduled | Phase::Queued | Phase::Running => return false,
        };
        entry.life += 1;
        entry.delay = delay.unwrap_or(entry.delay);
        (entry.result, entry.is_cancelled, entry.is_skipped, entry.waits_to_end) = (Ok(()), false, false, false);
        let old = match body {
            Some(body) => entry.body.replace(body),
            None => None,
        };
        let scheduler = entry.scheduler;
        if has_ended {
            state.graph.restart(self.key);
            state.schedulers[scheduler].live += 1;
        }
        state.schedule(self.key, now);
        drop(state);
        drop(old);
        self.flow.0.wake();
        true
    }

    /// Runs the preparation callbacks and the body of a task that was taken for that.
    pub(super) fn start(&self) {
        let mut state = self.flow.0.lock();
        let Some(entry) = state.entry(self.key) else { return };
        let (mut prepare, mut body) = (std::mem::take(&mut entry.prepare), entry.body.take());
        drop(state);
        let prepared = prepare.iter_mut().try_for_each(|callback| match callback(self) {
            Ok(()) if self.phase() == Phase::Running => Ok(()),
            Ok(()) => Err(None),
            Err(error) => Err(Some(error)),
        });
        match (prepared, &mut body) {
            (Ok(()), Some(body)) => body(self),
            (Err(Some(error)), _) => _ = self.complete(Err(error)),
            (Ok(()), None) | (Err(None), _) => {}
        }
        let mut state = self.flow.0.lock();
        let Some(entry) = state.entry(self.key) else { return };
        entry.prepare = prepare;
        // A restart may have set another one.
        let old = if entry.body.is_none() { std::mem::replace(&mut entry.body, body) } else { body };
        let can_end = state.release(self.key);
        drop(state);
        drop(old);
        if can_end {
            self.clone().end();
        }
    }

    /// Ends the task on this thread, now or when the callbacks that run on it have returned.
    pub(super) fn end(self) {
        let flow = self.flow.clone();
        let is_working = endings(|endings| {
            endings.tasks.push_back(self);
            std::mem::replace(&mut endings.is_working, true)
        });
        if is_working {
            return;
        }
        let _working = Working;
        while let Some(task) = endings(|endings| endings.tasks.pop_front()) {
            task.run_completion();
        }
        flow.0.wake();
    }

    /// Runs the completion callbacks of a task that has its result, and ends it unless it is restarted.
    fn run_completion(&self) {
        loop {
            let mut state = self.flow.0.lock();
            let Some(entry) = state.entry(self.key) else { return };
            if entry.phase != Phase::Ending || entry.is_busy || entry.waits_to_end {
                return;
            }
            entry.is_busy = true;
            let (life, mut result) = (entry.life, entry.result.clone());
            let mut callbacks = std::mem::take(&mut entry.completed);
            if !callbacks.is_empty() {
                drop(state);
                for callback in callbacks.iter_mut().rev() {
                    let said = callback(self, &result);
                    if self.life() != life {
                        break;
                    }
                    result = result.and(said);
                }
                state = self.flow.0.lock();
            }
            let Some(entry) = state.entry(self.key) else { return };
            entry.completed = callbacks;
            if entry.life == life {
                (entry.result, entry.phase, entry.is_busy) = (result, Phase::Ended, false);
                return self.finish(state);
            }
            if !state.release(self.key) {
                return;
            }
        }
    }

    /// Tells the graph and the scheduler that the task has ended.
    fn finish(&self, mut state: MutexGuard<'_, FlowState>) {
        let Some(entry) = state.entry(self.key) else { return };
        let outcome = match &entry.result {
            Ok(()) => Outcome::Succeeded,
            Err(_) if entry.is_skipped => Outcome::Skipped,
            Err(error) if error.code == Code::Cancelled => Outcome::Cancelled,
            Err(_) => Outcome::Failed,
        };
        let (index, told) = (entry.scheduler, std::mem::take(&mut entry.ended));
        let result = if told.is_empty() { Ok(()) } else { entry.result.clone() };
        let mut ends = Vec::new();
        state.end(self.key, outcome, &mut ends);
        let scheduler = &mut state.schedulers[index];
        scheduler.live -= 1;
        let mut idle = if scheduler.live == 0 { std::mem::take(&mut scheduler.idle) } else { Vec::new() };
        drop(state);
        told.into_iter().for_each(|callback| callback(&result));
        self.flow.end_all(ends);
        if !idle.is_empty() {
            idle.iter_mut().for_each(|callback| callback());
            let added = std::mem::replace(&mut self.flow.0.lock().schedulers[index].idle, idle);
            self.flow.0.lock().schedulers[index].idle.extend(added);
        }
    }
}

/// Marks the thread as ending tasks; a panic of a callback unmarks it.
struct Working;

impl Drop for Working {
    fn drop(&mut self) {
        endings(|endings| endings.is_working = false);
    }
}

impl Clone for Task {
    fn clone(&self) -> Self {
        if let Some(entry) = self.flow.0.lock().entry(self.key) {
            entry.handles += 1;
        }
        Self { flow: self.flow.clone(), key: self.key }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        let mut state = self.flow.0.lock();
        let Some(entry) = state.entry(self.key) else { return };
        entry.handles -= 1;
        if entry.handles > 0 {
            return;
        }
        match entry.phase {
            Phase::Ended => {
                let forgotten = state.entries[self.key.index()].take();
                state.graph.remove(self.key);
                drop(state);
                // Its callbacks may hold handles of other tasks.
                drop(forgotten);
            }
            Phase::Created => self.abandon(state),
            Phase::Running if !entry.is_busy => self.abandon(state),
            Phase::Scheduled | Phase::Queued | Phase::Running | Phase::Ending => {}
        }
    }
}

impl Task {
    /// Cancels a task that nothing can move on any more.
    fn abandon(&self, mut state: MutexGuard<'_, FlowState>) {
        if let Some(entry) = state.entry(self.key) {
            entry.handles = 1;
        }
        let can_end = state.conclude(self.key, Err(cancelled()));
        drop(state);
        let task = Self { flow: self.flow.clone(), key: self.key };
        if can_end {
            task.end();
        }
    }
}

impl fmt::Debug for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Task").field("key", &self.key).field("phase", &self.phase()).finish()
    }
}
