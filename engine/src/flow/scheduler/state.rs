//! Holds what a flow knows of its tasks and schedulers, and moves tasks between their phases. Calls nothing of a user's.

use super::super::graph::{Change, Graph, Outcome, Readiness, TaskKey};
use super::super::sync::{Mutex, MutexGuard};
use super::{
    Body, CancelCallback, CompletionCallback, EndedCallback, IdleCallback, Phase, PrepareCallback, TaskResult, Waker,
};
use crate::error::{Code, Error, Operation, Side};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct Shared {
    pub(super) state: Mutex<FlowState>,
    /// Called when a task has become ready or has ended.
    pub(super) wakers: Mutex<Vec<Waker>>,
    pub(super) clock: FlowClock,
}

/// Time since the flow was made, and what a test adds.
pub(super) struct FlowClock {
    pub(super) start: Instant,
    pub(super) source: Option<Box<dyn Fn() -> Duration + Send + Sync>>,
}

impl Default for FlowClock {
    fn default() -> Self {
        Self { start: Instant::now(), source: None }
    }
}

impl FlowClock {
    pub(super) fn now(&self) -> Duration {
        self.source.as_ref().map_or_else(|| self.start.elapsed(), |source| source())
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Flow").field("tasks", &state.graph.len()).field("schedulers", &state.schedulers.len()).finish()
    }
}

#[derive(Default)]
pub(super) struct FlowState {
    pub(super) graph: Graph,
    /// By the index of the key.
    pub(super) entries: Vec<Option<Entry>>,
    pub(super) schedulers: Vec<SchedulerState>,
    /// Number of the next sleeper: orders those that wake at the same time.
    pub(super) next_sleeper: u64,
    /// Changes of the graph that are not applied yet; kept for its memory.
    pub(super) changes: Vec<Change>,
}

#[derive(Default)]
pub(super) struct SchedulerState {
    pub(super) ready: VecDeque<(TaskKey, u64)>,
    pub(super) sleepers: BTreeMap<(Duration, u64), TaskKey>,
    /// Tasks that were scheduled and have not ended.
    pub(super) live: usize,
    pub(super) is_cancelled: bool,
    pub(super) idle: Vec<IdleCallback>,
}

pub(super) struct Entry {
    pub(super) scheduler: usize,
    pub(super) phase: Phase,
    /// Number of restarts.
    pub(super) life: u64,
    pub(super) handles: u32,
    /// Longest wait from scheduling to the start.
    pub(super) delay: Duration,
    pub(super) sleeper: Option<(Duration, u64)>,
    pub(super) result: TaskResult,
    /// Whether a thread runs its callbacks or its body: no other one does.
    pub(super) is_busy: bool,
    /// Whether it was due while it was busy: it is queued again afterwards.
    pub(super) is_due: bool,
    pub(super) is_cancelled: bool,
    /// Whether it ends without having started, as a condition is broken.
    pub(super) is_skipped: bool,
    /// Whether it ends when conditions that were added while it ran are decided.
    pub(super) waits_to_end: bool,
    pub(super) body: Option<Body>,
    pub(super) prepare: Vec<PrepareCallback>,
    pub(super) completed: Vec<CompletionCallback>,
    pub(super) cancelled: Vec<CancelCallback>,
    /// Called once, when it has ended.
    pub(super) ended: Vec<EndedCallback>,
}

impl Shared {
    pub(super) fn wake(&self) {
        let wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
        wakers.iter().for_each(|waker| waker());
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, FlowState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FlowState {
    pub(super) fn entry_ref(&self, key: TaskKey) -> Option<&Entry> {
        if self.graph.contains(key) { self.entries[key.index()].as_ref() } else { None }
    }

    pub(super) fn entry(&mut self, key: TaskKey) -> Option<&mut Entry> {
        if self.graph.contains(key) { self.entries[key.index()].as_mut() } else { None }
    }

    /// Queues the sleepers of a scheduler whose time has come.
    pub(super) fn wake(&mut self, scheduler: usize, now: Duration) {
        while let Some((&(wake, _), &key)) = self.schedulers[scheduler].sleepers.first_key_value() {
            if wake > now {
                return;
            }
            self.schedulers[scheduler].sleepers.pop_first();
            if let Some(entry) = self.entry(key) {
                entry.sleeper = None;
            }
            self.queue_if_due(key);
        }
    }

    /// Queues a task that is scheduled if its conditions are met and its delay is over.
    pub(super) fn queue_if_due(&mut self, key: TaskKey) {
        let is_met = self.graph.readiness(key) == Some(Readiness::Met);
        let Some(entry) = self.entry(key) else { return };
        if entry.phase == Phase::Scheduled && is_met && entry.sleeper.is_none() {
            entry.phase = Phase::Queued;
            let (scheduler, life) = (entry.scheduler, entry.life);
            self.schedulers[scheduler].ready.push_back((key, life));
        }
    }

    /// Schedules a task for its next life: it sleeps, waits, or is queued.
    pub(super) fn schedule(&mut self, key: TaskKey, now: Duration) {
        let sleeper = self.next_sleeper;
        let Some(entry) = self.entry(key) else { return };
        entry.phase = Phase::Scheduled;
        let (scheduler, delay) = (entry.scheduler, entry.delay);
        if !delay.is_zero() {
            entry.sleeper = Some((now.saturating_add(delay), sleeper));
            self.next_sleeper += 1;
            self.schedulers[scheduler].sleepers.insert((now.saturating_add(delay), sleeper), key);
        }
        self.queue_if_due(key);
    }

    /// Gives a task that has not ended its result, and tells whether its end can begin on this thread.
    pub(super) fn conclude(&mut self, key: TaskKey, result: TaskResult) -> bool {
        let is_waiting = self.graph.readiness(key) == Some(Readiness::Waiting);
        let Some(entry) = self.entry(key) else { return false };
        if entry.result.is_ok() {
            entry.result = result;
        }
        let phase = std::mem::replace(&mut entry.phase, Phase::Ending);
        entry.waits_to_end = phase == Phase::Running && is_waiting;
        let can_end = !entry.waits_to_end && !entry.is_busy;
        let (scheduler, sleeper) = (entry.scheduler, entry.sleeper.take());
        let scheduler = &mut self.schedulers[scheduler];
        scheduler.live += usize::from(phase == Phase::Created);
        if let Some(sleeper) = sleeper {
            scheduler.sleepers.remove(&sleeper);
        }
        can_end
    }

    /// Ends a task in the graph, and adds those tasks to `ends` whose own end can begin because of it.
    pub(super) fn end(&mut self, key: TaskKey, outcome: Outcome, ends: &mut Vec<TaskKey>) {
        let mut changes = std::mem::take(&mut self.changes);
        self.graph.end(key, outcome, &mut changes);
        for change in changes.drain(..) {
            if let Some(key) = self.apply(change) {
                ends.push(key);
            }
        }
        self.changes = changes;
    }

    /// Applies a change of the graph. Returns the task if its end can begin.
    pub(super) fn apply(&mut self, change: Change) -> Option<TaskKey> {
        let (Change::Met(key) | Change::Broken(key)) = change;
        let is_broken = matches!(change, Change::Broken(_));
        let entry = self.entry(key)?;
        match entry.phase {
            Phase::Scheduled | Phase::Queued if is_broken => {
                entry.is_skipped = true;
                return self.conclude(key, Err(dependency_failed())).then_some(key);
            }
            Phase::Scheduled => self.queue_if_due(key),
            Phase::Running if is_broken && entry.result.is_ok() => entry.result = Err(dependency_failed()),
            Phase::Ending if entry.waits_to_end => {
                if is_broken && entry.result.is_ok() {
                    entry.result = Err(dependency_failed());
                }
                entry.waits_to_end = false;
                return (!entry.is_busy).then_some(key);
            }
            Phase::Created | Phase::Queued | Phase::Running | Phase::Ending | Phase::Ended => {}
        }
        None
    }
}

pub(super) fn dependency_failed() -> Error {
    Error::new(
        Code::Dependency,
        Side::Caller,
        Operation::Start,
        "a task that this one depends on did not end as it has to",
    )
}

pub(super) fn cancelled() -> Error {
    Error::new(Code::Cancelled, Side::Caller, Operation::Stop, "the task was cancelled")
}

impl FlowState {
    /// No thread runs callbacks or the body of a task any more. Returns true if its end can begin.
    pub(super) fn release(&mut self, key: TaskKey) -> bool {
        let Some(entry) = self.entry(key) else { return false };
        entry.is_busy = false;
        if std::mem::take(&mut entry.is_due) && entry.phase == Phase::Queued {
            let (scheduler, life) = (entry.scheduler, entry.life);
            self.schedulers[scheduler].ready.push_back((key, life));
            return false;
        }
        entry.phase == Phase::Ending && !entry.waits_to_end
    }
}
