//! Simulates processes: runs their tasks, pauses them, ends them.
//!
//! A process is the set of its tasks. Each is wrapped in an [`Owned`], which is polled only while its process runs.
//! Wake-ups of a paused process are kept for later. A process that is ended drops all its tasks at once, in the order
//! in which they were started.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

thread_local! {
    /// Process whose task is being polled.
    static CURRENT: RefCell<Option<Arc<Process>>> = const { RefCell::new(None) };
}

/// One incarnation of a node.
#[derive(Default)]
pub(crate) struct Process {
    is_paused: AtomicBool,
    was_paused: AtomicBool,
    is_ended: AtomicBool,
    started: AtomicU64,
    panic: Mutex<Option<String>>,
    /// Tasks woken while it was paused.
    woken: Mutex<Vec<Waker>>,
    tasks: Mutex<BTreeMap<u64, Arc<dyn Body>>>,
}

impl std::fmt::Debug for Process {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Process").field("is_paused", &self.is_paused).field("is_ended", &self.is_ended).finish()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Process {
    /// Returns the process of the task that is being polled.
    pub(crate) fn current() -> Option<Arc<Self>> {
        CURRENT.with_borrow(Clone::clone)
    }

    pub(crate) fn is_ended(&self) -> bool {
        self.is_ended.load(Relaxed)
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.is_paused.load(Relaxed)
    }

    /// Tells whether it has ever been paused.
    pub(crate) fn was_paused(&self) -> bool {
        self.was_paused.load(Relaxed)
    }

    /// Returns the panic of one of its tasks.
    pub(crate) fn panic(&self) -> Option<String> {
        lock(&self.panic).clone()
    }

    /// Runs `work` as part of this process: the tasks that it starts belong to the process.
    pub(crate) fn enter<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> T {
        let outer = CURRENT.with_borrow_mut(|current| current.replace(self.clone()));
        let result = work();
        CURRENT.with_borrow_mut(|current| *current = outer);
        result
    }

    /// Pauses it, as SIGSTOP does.
    pub(crate) fn pause(&self) {
        self.is_paused.store(true, Relaxed);
        self.was_paused.store(true, Relaxed);
    }

    /// Continues it, as SIGCONT does.
    pub(crate) fn resume(&self) {
        self.is_paused.store(false, Relaxed);
        std::mem::take(&mut *lock(&self.woken)).into_iter().for_each(Waker::wake);
    }

    /// Ends it, as SIGKILL does.
    pub(crate) fn end(self: &Arc<Self>) {
        self.is_ended.store(true, Relaxed);
        let tasks = std::mem::take(&mut *lock(&self.tasks));
        self.enter(|| tasks.values().for_each(|task| task.end()));
        lock(&self.woken).clear();
    }
}

/// Task that can be dropped from outside.
trait Body: Send + Sync {
    fn end(&self);
}

/// Slot of a future; empty once the future has ended.
struct Slot<F>(Mutex<Option<Pin<Box<F>>>>);

impl<F: Future + Send> Body for Slot<F> {
    fn end(&self) {
        let future = lock(&self.0).take();
        drop(future);
    }
}

/// Future that is part of a process.
pub(crate) struct Owned<F: Future> {
    home: Option<(Arc<Process>, u64)>,
    slot: Arc<Slot<F>>,
}

impl<F: Future + Send + 'static> Owned<F> {
    /// Makes a future a part of the running process, if there is one.
    pub(crate) fn here(future: F) -> Self {
        let slot = Arc::new(Slot(Mutex::new(Some(Box::pin(future)))));
        let home = Process::current().map(|process| {
            let number = process.started.fetch_add(1, Relaxed);
            if process.is_ended() {
                slot.end();
            } else {
                lock(&process.tasks).insert(number, slot.clone());
            }
            (process, number)
        });
        Self { home, slot }
    }
}

impl<F: Future> Drop for Owned<F> {
    fn drop(&mut self) {
        let Some((process, number)) = &self.home else { return };
        let task = lock(&process.tasks).remove(number);
        process.enter(|| drop(task));
        let future = lock(&self.slot.0).take();
        process.enter(|| drop(future));
    }
}

impl<F: Future> Future for Owned<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let mut slot = lock(&self.slot.0);
        let Some(future) = slot.as_mut() else { return Poll::Pending };
        let Some((process, _)) = &self.home else { return future.as_mut().poll(context) };
        if process.is_paused() {
            lock(&process.woken).push(context.waker().clone());
            return Poll::Pending;
        }
        let polled = process.enter(|| catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))));
        let polled = polled.unwrap_or_else(|cause| {
            let text = cause.downcast_ref::<String>().map(String::as_str).or(cause.downcast_ref::<&str>().copied());
            lock(&process.panic).get_or_insert_with(|| text.unwrap_or("without a message").to_owned());
            Poll::Pending
        });
        if polled.is_ready() || process.panic().is_some() {
            let done = slot.take();
            drop(slot);
            process.enter(|| drop(done));
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::{Instant, sleep};

    /// Creates a process whose tasks count, started by each other.
    fn counter() -> (Arc<Process>, Arc<AtomicU64>) {
        let (process, count) = (Arc::new(Process::default()), Arc::new(AtomicU64::new(0)));
        let counted = count.clone();
        process.enter(|| {
            crate::async_spawn::spawn(async move {
                let tick = async move {
                    loop {
                        sleep(Duration::from_secs(1)).await;
                        counted.fetch_add(1, Relaxed);
                    }
                };
                let _ = crate::async_spawn::spawn(tick).await;
            })
        });
        (process, count)
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_process_does_nothing_and_then_continues() {
        let (process, count) = counter();
        sleep(Duration::from_millis(5500)).await;
        process.pause();
        sleep(Duration::from_secs(100)).await;
        assert_eq!(count.load(Relaxed), 5);
        process.resume();
        sleep(Duration::from_millis(1)).await;
        assert_eq!(count.load(Relaxed), 6, "its timer had fired");
        sleep(Duration::from_millis(2500)).await;
        assert_eq!(count.load(Relaxed), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn an_ended_process_drops_its_tasks_at_once() {
        let start = Instant::now();
        let (process, count) = counter();
        sleep(Duration::from_millis(2500)).await;
        let weak = Arc::downgrade(&count);
        drop(count);
        process.end();
        assert!(weak.upgrade().is_none(), "all its tasks are dropped");
        process.enter(|| crate::async_spawn::spawn(std::future::pending::<()>()));
        assert_eq!(start.elapsed(), Duration::from_millis(2500));
        assert!(lock(&process.tasks).is_empty(), "nothing starts on a process that has ended");
    }
}
