//! Delivers the ends of jobs and tasks as events, each to one poller, in the order in which they ended.
//!
//! ```text
//!            launch                 it ends, and all children have               poll or test
//!   Ready ------------> Launched ----------------------------------> Completed ---------------> Ready
//! ```
//! An event that was delivered can be launched again. A parent is launched after its children, and is completed by the
//! last of them: with its own result and theirs, the first error wins. Children are never delivered alone.
//!
//! What always holds:
//! - Every launched event is delivered once, to one call of [`EventQueue::poll`] or [`Event::test`].
//! - A poller returns when its time is over, when there is an event, or when the queue is closed.
//! - The queue has no thread of its own: pollers run the schedulers that it drives.

use super::scheduler::{Scheduler, Task, TaskResult, Waker};
use super::sync::{Arc, Condvar, Mutex, MutexGuard};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::job::{JobHandle, StopReason};
use crate::progress::Report;
use std::collections::VecDeque;
use std::fmt;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

/// Longest time between two looks at jobs that may hang: they report that themselves, to whoever asks.
const LOOK_AT_JOBS: Duration = Duration::from_secs(1);

/// Queue of events. Clones are the same queue.
#[derive(Clone, Debug, Default)]
pub struct EventQueue(Arc<Queue>);

/// An event of a queue. Clones are the same event.
pub struct Event {
    queue: EventQueue,
    index: usize,
}

/// State of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventState {
    /// It may be launched.
    Ready,
    /// What it stands for has not ended.
    Launched,
    /// It is to be delivered, to whoever polls or to its parent.
    Completed,
}

/// Number of events by state, children included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounts {
    /// Events that are launched.
    pub launched: usize,
    /// Events that are to be delivered.
    pub completed: usize,
}

/// An event that was delivered.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The event; it may be launched again.
    pub event: Event,
    /// Its result; of a parent, the first error of itself and its children.
    pub result: TaskResult,
    /// Report of its job, if it stood for one.
    pub report: Option<Report>,
}

/// What a launched event stands for.
#[derive(Debug)]
enum Launched {
    /// Nothing: a barrier, or something that calls [`Event::complete`].
    Nothing,
    Job(JobHandle),
    Task(Task),
}

#[derive(Debug)]
struct Slot {
    state: EventState,
    parent: Option<usize>,
    /// Whether what it stands for has not ended.
    is_open: bool,
    /// Number of launched children that have not completed.
    open_children: usize,
    /// Children that were launched since it was delivered last.
    children: Vec<usize>,
    launched: Launched,
    result: TaskResult,
    report: Option<Report>,
    handles: usize,
}

#[derive(Debug, Default)]
struct Inner {
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// In the order in which they ended; children are not in it.
    completed: VecDeque<usize>,
    /// Events that stand for a job.
    jobs: Vec<usize>,
    launched: usize,
    schedulers: Vec<Scheduler>,
    /// Number of wake-ups so far.
    wakes: u64,
    is_closed: bool,
}

#[derive(Debug, Default)]
struct Queue {
    inner: Mutex<Inner>,
    woken: Condvar,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        self.lock().wakes += 1;
        self.woken.notify_all();
    }
}

impl EventQueue {
    /// Makes an event.
    #[must_use]
    pub fn event(&self) -> Event {
        self.new_event(None)
    }

    /// Has pollers run the tasks of a scheduler.
    pub fn drive(&self, scheduler: &Scheduler) {
        scheduler.flow().wake_by(self.waker());
        self.0.lock().schedulers.push(scheduler.clone());
        self.0.wake();
    }

    /// Runs what is ready in the schedulers, and takes at most `max` events that are completed. Waits for one for at most
    /// `timeout`. Returns none when the time is over, or when the queue is closed.
    #[must_use]
    pub fn poll(&self, max: usize, timeout: Duration) -> Vec<Delivery> {
        let deadline = Instant::now().checked_add(timeout);
        loop {
            let (wakes, schedulers) = {
                let inner = self.0.lock();
                (inner.wakes, inner.schedulers.clone())
            };
            schedulers.iter().for_each(|scheduler| _ = scheduler.progress());
            let next_wake = schedulers.iter().filter_map(Scheduler::next_wake).min();
            self.look_at_jobs();
            let mut inner = self.0.lock();
            let count = inner.completed.len().min(max);
            let taken: Vec<_> = inner.completed.drain(..count).collect();
            if !taken.is_empty() {
                return taken.into_iter().map(|index| self.deliver(&mut inner, index)).collect();
            }
            let left = deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() || inner.is_closed || max == 0 {
                return Vec::new();
            }
            if inner.wakes == wakes {
                let job_look = if inner.jobs.is_empty() { Duration::MAX } else { LOOK_AT_JOBS };
                let longest = left.min(job_look).min(next_wake.unwrap_or(Duration::MAX));
                drop(self.0.woken.wait_timeout(inner, longest));
            }
        }
    }

    /// Returns how many events are launched, and how many are to be delivered.
    #[must_use]
    pub fn query(&self) -> EventCounts {
        let inner = self.0.lock();
        EventCounts { launched: inner.launched, completed: inner.completed.len() }
    }

    /// Closes the queue: nothing can be launched any more, and pollers return.
    ///
    /// # Errors
    /// `EBusy` while events are launched or to be delivered.
    pub fn close(&self) -> Result<()> {
        let mut inner = self.0.lock();
        let in_flight = inner.launched + inner.completed.len();
        if in_flight > 0 {
            let message = format!("{in_flight} events are in flight: deliver them before the queue is closed");
            return Err(Error::new(Code::Busy, Side::Caller, Operation::Stop, message));
        }
        inner.is_closed = true;
        drop(inner);
        self.0.wake();
        Ok(())
    }

    fn waker(&self) -> Waker {
        let queue = Arc::downgrade(&self.0);
        Arc::new(move || {
            if let Some(queue) = queue.upgrade() {
                queue.wake();
            }
        })
    }

    fn new_event(&self, parent: Option<usize>) -> Event {
        let slot = Slot {
            state: EventState::Ready,
            parent,
            is_open: false,
            open_children: 0,
            children: Vec::new(),
            launched: Launched::Nothing,
            result: Ok(()),
            report: None,
            handles: 1,
        };
        let mut inner = self.0.lock();
        let index = match inner.free.pop() {
            Some(index) => {
                inner.slots[index] = Some(slot);
                index
            }
            None => {
                inner.slots.push(Some(slot));
                inner.slots.len() - 1
            }
        };
        if let Some(parent) = parent {
            inner.slot(parent).handles += 1;
        }
        drop(inner);
        Event { queue: self.clone(), index }
    }

    /// Completes the events of jobs that have ended.
    fn look_at_jobs(&self) {
        let jobs: Vec<_> = {
            let inner = self.0.lock();
            let job = |&index: &usize| match &inner.slots[index].as_ref()?.launched {
                Launched::Job(job) => Some((index, job.clone())),
                Launched::Nothing | Launched::Task(_) => None,
            };
            inner.jobs.iter().filter_map(job).collect()
        };
        for (index, job) in jobs {
            if let Some(report) = job.wait_for(Duration::ZERO) {
                let result = report.error.clone().map_or(Ok(()), Err);
                self.complete(index, result, Some(report));
            }
        }
    }

    /// Gives a launched event its own result.
    fn complete(&self, index: usize, result: TaskResult, report: Option<Report>) -> bool {
        let mut inner = self.0.lock();
        let is_own = inner.slots[index].as_ref().is_some_and(|slot| slot.state == EventState::Launched && slot.is_open);
        if !is_own {
            return false;
        }
        inner.jobs.retain(|&job| job != index);
        let slot = inner.slot(index);
        (slot.report, slot.is_open) = (report, false);
        // Its handle is dropped without the lock.
        let launched = std::mem::replace(&mut slot.launched, Launched::Nothing);
        inner.settle(index, result);
        drop(inner);
        drop(launched);
        self.0.wake();
        true
    }

    fn deliver(&self, inner: &mut Inner, index: usize) -> Delivery {
        let slot = inner.slot(index);
        slot.state = EventState::Ready;
        slot.handles += 1;
        let (result, report) = (std::mem::replace(&mut slot.result, Ok(())), slot.report.take());
        for child in std::mem::take(&mut slot.children) {
            let slot = inner.slot(child);
            (slot.state, slot.result, slot.report) = (EventState::Ready, Ok(()), None);
            inner.release(child);
        }
        Delivery { event: Event { queue: self.clone(), index }, result, report }
    }
}

impl Inner {
    fn slot(&mut self, index: usize) -> &mut Slot {
        self.slots[index].as_mut().expect("a handle keeps the event")
    }

    /// Gives an event one of the results that it waits for: its own, or a child's. Completes it if that was the last one.
    fn settle(&mut self, index: usize, result: TaskResult) {
        let mut next = Some((index, result));
        while let Some((index, result)) = next.take() {
            let slot = self.slot(index);
            if slot.result.is_ok() {
                slot.result = result;
            }
            if slot.state != EventState::Launched || slot.is_open || slot.open_children > 0 {
                return;
            }
            slot.state = EventState::Completed;
            let (parent, result) = (slot.parent, slot.result.clone());
            self.launched -= 1;
            match parent {
                Some(parent) => {
                    self.slot(parent).open_children -= 1;
                    next = Some((parent, result));
                }
                None => self.completed.push_back(index),
            }
        }
    }
}

/// Events are equal if they are the same event of the same queue.
impl PartialEq for Event {
    fn eq(&self, other: &Self) -> bool {
        self.index == other.index && Arc::ptr_eq(&self.queue.0, &other.queue.0)
    }
}

impl Eq for Event {}

impl Event {
    /// Makes a child of this event.
    #[must_use]
    pub fn child(&self) -> Self {
        self.queue.new_event(Some(self.index))
    }

    /// Launches the event for something that calls [`Event::complete`].
    ///
    /// # Errors
    /// `EBusy` if it was launched and not delivered, or its parent was. `EBadRequest` if the queue is closed.
    pub fn launch(&self) -> Result<()> {
        self.launch_as(Launched::Nothing, true)
    }

    /// Launches the event for its children alone: it is completed by the last of them, at once without any.
    ///
    /// # Errors
    /// As [`Event::launch`].
    pub fn barrier(&self) -> Result<()> {
        self.launch_as(Launched::Nothing, false)
    }

    /// Launches the event for the end of a job.
    ///
    /// # Errors
    /// As [`Event::launch`].
    pub fn launch_job(&self, job: &JobHandle) -> Result<()> {
        self.launch_as(Launched::Job(job.clone()), true)?;
        job.wake_at_end(self.queue.waker());
        self.queue.0.wake();
        Ok(())
    }

    /// Launches the event for the end of a task.
    ///
    /// # Errors
    /// As [`Event::launch`].
    pub fn launch_task(&self, task: &Task) -> Result<()> {
        self.launch_as(Launched::Task(task.clone()), true)?;
        let (queue, index) = (self.queue.clone(), self.index);
        task.when_ended(move |result| _ = queue.complete(index, result.clone(), None));
        Ok(())
    }

    /// Completes an event that was [launched](Event::launch) for something else. Returns false if it was not, or was
    /// completed before.
    pub fn complete(&self, result: TaskResult) -> bool {
        let is_free = matches!(self.queue.0.lock().slot(self.index).launched, Launched::Nothing);
        is_free && self.queue.complete(self.index, result, None)
    }

    /// Takes the event if it is completed; then no poller gets it. `None` for a child.
    #[must_use]
    pub fn test(&self) -> Option<Delivery> {
        self.queue.look_at_jobs();
        let mut inner = self.queue.0.lock();
        let at = inner.completed.iter().position(|&index| index == self.index)?;
        inner.completed.remove(at);
        Some(self.queue.deliver(&mut inner, self.index))
    }

    /// Returns the state of the event.
    #[must_use]
    pub fn state(&self) -> EventState {
        self.queue.0.lock().slot(self.index).state
    }

    /// Cancels what the event and its children stand for. They complete when that has ended.
    pub fn abort(&self) {
        let mut open = vec![self.index];
        while let Some(index) = open.pop() {
            let launched = {
                let mut inner = self.queue.0.lock();
                let slot = inner.slot(index);
                open.extend(&slot.children);
                match &slot.launched {
                    _ if slot.state != EventState::Launched => None,
                    Launched::Nothing => None,
                    Launched::Job(job) => Some(Launched::Job(job.clone())),
                    Launched::Task(task) => Some(Launched::Task(task.clone())),
                }
            };
            match launched {
                Some(Launched::Job(job)) => job.cancel(StopReason::UserCancel),
                Some(Launched::Task(task)) => task.cancel(),
                Some(Launched::Nothing) | None => {}
            }
        }
    }

    fn launch_as(&self, launched: Launched, is_open: bool) -> Result<()> {
        let mut inner = self.queue.0.lock();
        if inner.is_closed {
            return Err(Error::bad_request("the event queue is closed"));
        }
        let busy = |what: &str| Err(Error::new(Code::Busy, Side::Caller, Operation::Start, what));
        let Slot { state, parent, .. } = *inner.slot(self.index);
        if state != EventState::Ready {
            return busy("the event was launched and has not been delivered");
        }
        if let Some(parent) = parent {
            let parent = inner.slot(parent);
            if parent.state != EventState::Ready {
                return busy("children are launched before their parent");
            }
            parent.open_children += 1;
            parent.children.push(self.index);
            // Until the parent is delivered.
            inner.slot(self.index).handles += 1;
        }
        if matches!(launched, Launched::Job(_)) {
            inner.jobs.push(self.index);
        }
        inner.launched += 1;
        let slot = inner.slot(self.index);
        (slot.state, slot.launched, slot.is_open) = (EventState::Launched, launched, is_open);
        if !is_open {
            inner.settle(self.index, Ok(()));
            drop(inner);
            self.queue.0.wake();
        }
        Ok(())
    }
}

impl Clone for Event {
    fn clone(&self) -> Self {
        self.queue.0.lock().slot(self.index).handles += 1;
        Self { queue: self.queue.clone(), index: self.index }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.queue.0.lock().release(self.index);
    }
}

impl Inner {
    /// Drops a handle, and forgets an event that nothing names any more.
    fn release(&mut self, index: usize) {
        let mut next = Some(index);
        while let Some(index) = next.take() {
            let slot = self.slot(index);
            slot.handles -= 1;
            if slot.handles == 0 && slot.state == EventState::Ready {
                next = slot.parent;
                self.slots[index] = None;
                self.free.push(index);
            }
        }
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("index", &self.index).field("state", &self.state()).finish()
    }
}
