//! Decides what a subscriber gets next: changes that the ring still holds, or all tasks again.

use super::{FeedReader, Snapshot, TaskChange, lock};
use crate::model::Position;
use std::sync::Arc;

/// Most changes that a subscriber takes at once.
const BATCH_MAX: usize = 256;

/// Place of one subscriber in the changes of a term.
#[derive(Debug)]
pub(crate) struct Subscriber {
    reader: FeedReader,
    /// Number of the last change that it has got; `None`: it needs all tasks.
    at: Option<u64>,
}

/// What a subscriber gets next.
#[derive(Debug)]
pub(crate) enum Next {
    /// All tasks, as they are now: changes after its position are gone, or it has none.
    Snapshot,
    /// Changes and their numbers, in order.
    Changes(Vec<(u64, Arc<TaskChange>)>),
    /// Nothing yet.
    Nothing,
}

impl Subscriber {
    /// Creates a subscriber that has got everything up to `since`.
    #[must_use]
    pub(crate) fn new(reader: FeedReader, since: Option<Position>) -> Self {
        let at = since.filter(|since| since.epoch == reader.epoch).map(|since| since.number);
        Self { reader, at }
    }

    /// Returns what it gets next. Changes count as got, a snapshot once [`Subscriber::take`] is called.
    pub(crate) fn next(&mut self) -> Next {
        let changes = self.at.and_then(|at| lock(&self.reader.ring).after(at, BATCH_MAX));
        let Some(changes) = changes else {
            self.at = None;
            return Next::Snapshot;
        };
        match changes.last() {
            None => Next::Nothing,
            Some((number, _)) => {
                self.at = Some(*number);
                Next::Changes(changes)
            }
        }
    }

    /// Notes that it has got a snapshot. Changes after it are next.
    pub(crate) fn take(&mut self, snapshot: &Snapshot) {
        self.at = Some(snapshot.number);
    }

    /// Returns a position under its term.
    pub(crate) fn position(&self, number: u64) -> Position {
        Position { epoch: self.reader.epoch, number }
    }

    /// Waits for a change after those that it has got. Returns `false` when the term is over.
    pub(crate) async fn changed(&mut self) -> bool {
        let at = self.at;
        self.reader.last.wait_for(|last| Some(*last) != at).await.is_ok()
    }
}
