//! Keeps the last changes of all tasks of one term for the clients that follow all of them.
//!
//! ```text
//!  stored record -> TaskChange -> Ring (bounded) <---- Subscriber: reads at its own pace
//!                                     `-- not there any more, or of another term -> Snapshot of all tasks
//! ```
//! What always holds: the numbers of changes are consecutive, in the order in which the leader has seen what is stored.
//! A snapshot with the number N and the changes after N give the tasks as the leader knows them. The dispatcher never
//! waits for a subscriber, and keeps nothing for one: a subscriber that is too slow finds that the ring has moved on.
//!
//! Memory: the ring has at most [`CHANGES_MAX`] changes and [`BYTES_MAX`] bytes. A snapshot lives as long as a subscriber
//! sends it; subscribers that need one at about the same time share it.

mod change;
#[cfg(test)]
pub(crate) mod picture;
mod ring;
mod subscriber;
#[cfg(test)]
mod tests;

pub(crate) use change::{TaskChange, is_progress_only};
pub(crate) use subscriber::{Next, Subscriber};

use crate::model::Epoch;
use ring::Ring;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::watch;

/// Most changes in the ring: about a minute of a center that does nothing but start tasks and end them.
pub(crate) const CHANGES_MAX: usize = 65_536;
/// Most bytes of all changes in the ring: 512 for each, three times as many as most have.
const BYTES_MAX: usize = 32 << 20;

/// All tasks after the change of a number.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) number: u64,
    pub(crate) tasks: Vec<TaskChange>,
}

/// Changes of one term: the dispatcher's end.
#[derive(Debug)]
pub(crate) struct Feed {
    epoch: Epoch,
    ring: Arc<Mutex<Ring>>,
    /// Number of the last change.
    last: watch::Sender<u64>,
    /// Last snapshot, while a subscriber sends it.
    snapshot: Weak<Snapshot>,
}

/// Changes of one term: a subscriber's end.
#[derive(Clone, Debug)]
pub(crate) struct FeedReader {
    pub(crate) epoch: Epoch,
    ring: Arc<Mutex<Ring>>,
    last: watch::Receiver<u64>,
}

impl Feed {
    /// Creates the feed of a term. Its first change has the number after `start`.
    ///
    /// A store that is restored from a backup may give an epoch a second time. So `start` should be a number that
    /// earlier terms have not reached, such as the time: then a position in the lost term is not taken for one in this.
    #[must_use]
    pub(crate) fn new(epoch: Epoch, start: u64) -> Self {
        Self::with_bounds(epoch, start, CHANGES_MAX, BYTES_MAX)
    }

    fn with_bounds(epoch: Epoch, start: u64, changes_max: usize, bytes_max: usize) -> Self {
        let ring = Arc::new(Mutex::new(Ring::new(start, changes_max, bytes_max)));
        Self { epoch, ring, last: watch::Sender::new(start), snapshot: Weak::new() }
    }

    /// Adds a change.
    pub(crate) fn push(&mut self, change: TaskChange) {
        let last = lock(&self.ring).push(change);
        self.last.send_replace(last);
    }

    /// Returns a snapshot; `tasks` makes a new one if the last one is not in use or too old to be of use.
    pub(crate) fn snapshot(&mut self, tasks: impl FnOnce() -> Vec<TaskChange>) -> Arc<Snapshot> {
        let number = *self.last.borrow();
        let used = self.snapshot.upgrade().filter(|used| lock(&self.ring).is_recent(used.number));
        let snapshot = used.unwrap_or_else(|| Arc::new(Snapshot { number, tasks: tasks() }));
        self.snapshot = Arc::downgrade(&snapshot);
        snapshot
    }

    /// Returns the end of a subscriber.
    #[must_use]
    pub(crate) fn reader(&self) -> FeedReader {
        FeedReader { epoch: self.epoch, ring: self.ring.clone(), last: self.last.subscribe() }
    }
}

fn lock(ring: &Mutex<Ring>) -> MutexGuard<'_, Ring> {
    // Consistent between any two statements under the lock.
    ring.lock().unwrap_or_else(PoisonError::into_inner)
}
