//! Records which assignments a runner holds, has ended, and will never accept.
//!
//! What always holds: a task is in the table before any work for it, and leaves the table after the last write about
//! it. Ended assignments are remembered for a while, to answer queries of a dispatcher.

use super::attempt::Attempt;
use crate::model::{Epoch, TaskId};
use crate::peers::AssignmentStatus;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Number of ended assignments that are remembered. A query about a forgotten assignment is answered with
/// [`AssignmentStatus::Unknown`]; the record's version check refuses the dispatcher's write that follows.
const ENDED_MAX: usize = 4096;

/// Table of assignments; see the module's head.
#[derive(Debug)]
pub(super) struct AssignmentTable {
    tables: Mutex<Tables>,
    held: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Tables {
    held: BTreeMap<TaskId, Arc<Attempt>>,
    past: BTreeMap<TaskId, (Epoch, AssignmentStatus)>,
    order: VecDeque<TaskId>,
}

/// Answer of the table to a new assignment.
#[derive(Debug)]
pub(super) enum AcceptResult {
    /// The assignment was added.
    Added,
    /// The assignment is held already, or has ended.
    Known,
    /// The assignment will never be accepted.
    Refused,
    /// Another grant of the same task has not ended yet.
    Busy,
    /// All slots are used.
    Full,
}

impl AssignmentTable {
    pub(super) fn new() -> Self {
        Self { tables: Mutex::default(), held: watch::Sender::new(0) }
    }

    /// Adds an attempt, unless the table refuses it or has `slots` entries.
    pub(super) fn add(&self, attempt: &Arc<Attempt>, slots: usize) -> AcceptResult {
        let mut tables = self.tables();
        let (task, epoch) = (attempt.task(), attempt.epoch());
        if let Some(held) = tables.held.get(task) {
            return if held.epoch() == epoch { AcceptResult::Known } else { AcceptResult::Busy };
        }
        match tables.past.get(task) {
            Some(&(past, _)) if past > epoch => return AcceptResult::Refused,
            Some(&(past, status)) if past == epoch => {
                return if status == AssignmentStatus::Ended { AcceptResult::Known } else { AcceptResult::Refused };
            }
            Some(_) | None => {}
        }
        if tables.held.len() >= slots {
            return AcceptResult::Full;
        }
        tables.held.insert(task.clone(), Arc::clone(attempt));
        self.held.send_replace(tables.held.len());
        AcceptResult::Added
    }

    /// Returns the status of an attempt's assignment, if it is or was in the table.
    pub(super) fn status_of(&self, attempt: &Attempt) -> Option<AssignmentStatus> {
        let tables = self.tables();
        if tables.held.get(attempt.task()).is_some_and(|held| held.epoch() == attempt.epoch()) {
            return Some(AssignmentStatus::Held);
        }
        let past = tables.past.get(attempt.task()).filter(|past| past.0 == attempt.epoch());
        past.map(|&(_, status)| status).filter(|&status| status == AssignmentStatus::Ended)
    }

    /// Returns the status of an assignment. An unknown one is refused from now on.
    pub(super) fn status(&self, task: &TaskId, epoch: Epoch) -> AssignmentStatus {
        let mut tables = self.tables();
        if let Some(held) = tables.held.get(task).filter(|held| held.epoch() == epoch) {
            return held.status();
        }
        match tables.past.get(task) {
            Some(&(past, status)) if past == epoch => status,
            Some(&(past, _)) if past > epoch => AssignmentStatus::Unknown,
            Some(_) | None => {
                tables.remember(task, epoch, AssignmentStatus::Unknown);
                AssignmentStatus::Unknown
            }
        }
    }

    /// Removes an ended attempt: its record has its outcome ([`AssignmentStatus::Ended`]), or nothing was ever done
    /// ([`AssignmentStatus::Unknown`]).
    pub(super) fn remove(&self, attempt: &Attempt, status: AssignmentStatus) {
        let mut tables = self.tables();
        tables.held.remove(attempt.task());
        tables.remember(attempt.task(), attempt.epoch(), status);
        self.held.send_replace(tables.held.len());
    }

    pub(super) fn find(&self, task: &TaskId) -> Option<Arc<Attempt>> {
        self.tables().held.get(task).cloned()
    }

    /// Returns all held attempts, in the order of task names.
    pub(super) fn all(&self) -> Vec<Arc<Attempt>> {
        self.tables().held.values().cloned().collect()
    }

    /// Returns the number of held attempts, now and at every change.
    pub(super) fn count(&self) -> watch::Receiver<usize> {
        self.held.subscribe()
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    fn remember(&mut self, task: &TaskId, epoch: Epoch, status: AssignmentStatus) {
        match self.past.get_mut(task) {
            // The entry of a later grant stays.
            Some(past) if past.0 > epoch => {}
            Some(past) => *past = (epoch, status),
            None => {
                self.past.insert(task.clone(), (epoch, status));
                self.order.push_back(task.clone());
            }
        }
        while self.order.len() > ENDED_MAX {
            let oldest = self.order.pop_front();
            oldest.and_then(|oldest| self.past.remove(&oldest));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Holder, Incarnation, NodeId};
    use crate::peers::StartStage;

    fn attempt(task: &str, epoch: i64) -> Arc<Attempt> {
        let holder = Holder { node: NodeId::new("n").unwrap(), incarnation: Incarnation("i".into()) };
        Arc::new(Attempt::new(TaskId::new(task).unwrap(), Epoch(epoch), holder))
    }

    fn status(assignments: &AssignmentTable, task: &str, epoch: i64) -> AssignmentStatus {
        assignments.status(&TaskId::new(task).unwrap(), Epoch(epoch))
    }

    #[test]
    fn an_assignment_is_accepted_once() {
        let assignments = AssignmentTable::new();
        let first = attempt("a", 5);
        assert!(matches!(assignments.add(&first, 2), AcceptResult::Added));
        assert!(matches!(assignments.add(&attempt("a", 5), 2), AcceptResult::Known));
        assert!(matches!(assignments.add(&attempt("a", 6), 2), AcceptResult::Busy));
        assert_eq!(
            (status(&assignments, "a", 5), *assignments.count().borrow()),
            (AssignmentStatus::Waits(StartStage::Reading), 1)
        );
        assignments.remove(&first, AssignmentStatus::Ended);
        assert_eq!((status(&assignments, "a", 5), *assignments.count().borrow()), (AssignmentStatus::Ended, 0));
        assert!(matches!(assignments.add(&attempt("a", 5), 2), AcceptResult::Known), "it has been done");
        assert!(matches!(assignments.add(&attempt("a", 4), 2), AcceptResult::Refused), "an older grant");
        assert!(matches!(assignments.add(&attempt("a", 6), 2), AcceptResult::Added));
    }

    #[test]
    fn an_unknown_assignment_stays_unknown() {
        let assignments = AssignmentTable::new();
        assert_eq!(status(&assignments, "a", 5), AssignmentStatus::Unknown);
        assert!(matches!(assignments.add(&attempt("a", 5), 2), AcceptResult::Refused));
        assert!(matches!(assignments.add(&attempt("a", 6), 2), AcceptResult::Added));
        assert_eq!(status(&assignments, "a", 5), AssignmentStatus::Unknown, "the older grant");
        assert_eq!(status(&assignments, "a", 6), AssignmentStatus::Waits(StartStage::Reading));
    }

    #[test]
    fn no_more_tasks_than_slots_are_accepted() {
        let assignments = AssignmentTable::new();
        assert!(matches!(assignments.add(&attempt("a", 1), 1), AcceptResult::Added));
        assert!(matches!(assignments.add(&attempt("b", 1), 1), AcceptResult::Full));
    }

    #[test]
    fn memory_is_bounded() {
        let assignments = AssignmentTable::new();
        for number in 0..2 * ENDED_MAX {
            status(&assignments, &format!("t{number}"), 1);
        }
        let tables = assignments.tables();
        assert_eq!((tables.past.len(), tables.order.len()), (ENDED_MAX, ENDED_MAX));
    }
}
