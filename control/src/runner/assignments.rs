//! Which assignments a runner holds, has ended, and will never take.
//!
//! What always holds: a task is in the book before anything is done for it, and leaves it after the last write about it.
//! What has left is remembered for a while: a dispatcher that asks hears how it was.

use super::attempt::Attempt;
use crate::model::{Epoch, TaskId};
use crate::peers::Standing;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Assignments that are remembered after they have ended. A late question about a forgotten one is answered with
/// [`Standing::Unknown`], and what follows from that is a write that the record refuses.
const REMEMBERED: usize = 4096;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Book {
    pages: Mutex<Pages>,
    held: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Pages {
    held: BTreeMap<TaskId, Arc<Attempt>>,
    past: BTreeMap<TaskId, (Epoch, Standing)>,
    order: VecDeque<TaskId>,
}

/// What the book says to a new assignment.
#[derive(Debug)]
pub(super) enum Entry {
    /// It is in the book now.
    Added,
    /// It was already, or has been done.
    Known,
    /// It will never be taken.
    Refused,
    /// A different grant of the same task has not ended yet.
    Busy,
    /// All slots are taken.
    Full,
}

impl Book {
    pub(super) fn new() -> Self {
        Self { pages: Mutex::default(), held: watch::Sender::new(0) }
    }

    /// Enters an attempt, unless the book speaks against it or it has `slots` entries.
    pub(super) fn enter(&self, attempt: &Arc<Attempt>, slots: usize) -> Entry {
        let mut pages = self.pages();
        let (task, epoch) = (attempt.task(), attempt.epoch());
        if let Some(held) = pages.held.get(task) {
            return if held.epoch() == epoch { Entry::Known } else { Entry::Busy };
        }
        match pages.past.get(task) {
            Some(&(past, _)) if past > epoch => return Entry::Refused,
            Some(&(past, standing)) if past == epoch => {
                return if standing == Standing::Ended { Entry::Known } else { Entry::Refused };
            }
            Some(_) | None => {}
        }
        if pages.held.len() >= slots {
            return Entry::Full;
        }
        pages.held.insert(task.clone(), Arc::clone(attempt));
        self.held.send_replace(pages.held.len());
        Entry::Added
    }

    /// How the assignment of an attempt stands, if it is or was in the book.
    pub(super) fn standing_of(&self, attempt: &Attempt) -> Option<Standing> {
        let pages = self.pages();
        if pages.held.get(attempt.task()).is_some_and(|held| held.epoch() == attempt.epoch()) {
            return Some(Standing::Held);
        }
        let past = pages.past.get(attempt.task()).filter(|past| past.0 == attempt.epoch());
        past.map(|&(_, standing)| standing).filter(|&standing| standing == Standing::Ended)
    }

    /// How an assignment stands. One that is unknown never will be known.
    pub(super) fn standing(&self, task: &TaskId, epoch: Epoch) -> Standing {
        let mut pages = self.pages();
        if let Some(held) = pages.held.get(task).filter(|held| held.epoch() == epoch) {
            return held.standing();
        }
        match pages.past.get(task) {
            Some(&(past, standing)) if past == epoch => standing,
            Some(&(past, _)) if past > epoch => Standing::Unknown,
            Some(_) | None => {
                pages.remember(task, epoch, Standing::Unknown);
                Standing::Unknown
            }
        }
    }

    /// An attempt is over: its record says how ([`Standing::Ended`]), or nothing was ever done ([`Standing::Unknown`]).
    pub(super) fn leave(&self, attempt: &Attempt, standing: Standing) {
        let mut pages = self.pages();
        pages.held.remove(attempt.task());
        pages.remember(attempt.task(), attempt.epoch(), standing);
        self.held.send_replace(pages.held.len());
    }

    pub(super) fn find(&self, task: &TaskId) -> Option<Arc<Attempt>> {
        self.pages().held.get(task).cloned()
    }

    /// Everything that is held, in the order of names.
    pub(super) fn all(&self) -> Vec<Arc<Attempt>> {
        self.pages().held.values().cloned().collect()
    }

    /// How many are held, now and at every change.
    pub(super) fn count(&self) -> watch::Receiver<usize> {
        self.held.subscribe()
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn remember(&mut self, task: &TaskId, epoch: Epoch, standing: Standing) {
        match self.past.get_mut(task) {
            // What was said of a later grant holds.
            Some(past) if past.0 > epoch => {}
            Some(past) => *past = (epoch, standing),
            None => {
                self.past.insert(task.clone(), (epoch, standing));
                self.order.push_back(task.clone());
            }
        }
        while self.order.len() > REMEMBERED {
            let oldest = self.order.pop_front();
            oldest.and_then(|oldest| self.past.remove(&oldest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Holder, Incarnation, NodeId};
    use crate::peers::Step;

    fn attempt(task: &str, epoch: i64) -> Arc<Attempt> {
        let holder = Holder { node: NodeId::new("n").unwrap(), incarnation: Incarnation("i".into()) };
        Arc::new(Attempt::new(TaskId::new(task).unwrap(), Epoch(epoch), holder))
    }

    fn standing(book: &Book, task: &str, epoch: i64) -> Standing {
        book.standing(&TaskId::new(task).unwrap(), Epoch(epoch))
    }

    #[test]
    fn an_assignment_is_taken_once() {
        let book = Book::new();
        let first = attempt("a", 5);
        assert!(matches!(book.enter(&first, 2), Entry::Added));
        assert!(matches!(book.enter(&attempt("a", 5), 2), Entry::Known));
        assert!(matches!(book.enter(&attempt("a", 6), 2), Entry::Busy));
        assert_eq!((standing(&book, "a", 5), *book.count().borrow()), (Standing::Waits(Step::Reading), 1));
        book.leave(&first, Standing::Ended);
        assert_eq!((standing(&book, "a", 5), *book.count().borrow()), (Standing::Ended, 0));
        assert!(matches!(book.enter(&attempt("a", 5), 2), Entry::Known), "it has been done");
        assert!(matches!(book.enter(&attempt("a", 4), 2), Entry::Refused), "an older grant");
        assert!(matches!(book.enter(&attempt("a", 6), 2), Entry::Added));
    }

    #[test]
    fn what_was_called_unknown_stays_so() {
        let book = Book::new();
        assert_eq!(standing(&book, "a", 5), Standing::Unknown);
        assert!(matches!(book.enter(&attempt("a", 5), 2), Entry::Refused));
        assert!(matches!(book.enter(&attempt("a", 6), 2), Entry::Added));
        assert_eq!(standing(&book, "a", 5), Standing::Unknown, "the older grant");
        assert_eq!(standing(&book, "a", 6), Standing::Waits(Step::Reading));
    }

    #[test]
    fn slots_are_all_there_is() {
        let book = Book::new();
        assert!(matches!(book.enter(&attempt("a", 1), 1), Entry::Added));
        assert!(matches!(book.enter(&attempt("b", 1), 1), Entry::Full));
    }

    #[test]
    fn memory_is_bounded() {
        let book = Book::new();
        for number in 0..2 * REMEMBERED {
            standing(&book, &format!("t{number}"), 1);
        }
        let pages = book.pages();
        assert_eq!((pages.past.len(), pages.order.len()), (REMEMBERED, REMEMBERED));
    }
}
