//! Computes since when each task waits, so that no task counts as younger than one that was created after it.
//!
//! A task's record holds the time of its submission by the wall clock of the leader of that moment. If that clock was
//! ahead, a task looks younger than tasks that were submitted later to a leader whose clock is right. The order in
//! which the coordination service created the records is certain. So a task counts as waiting since the earliest time
//! of all tasks that were created no earlier than it.
//!
//! What always holds: in the order of creation, times never fall.

use crate::coord::Zxid;
use crate::model::TaskId;
use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};

/// Order of tasks: by the transaction that created the record, or [`UNKNOWN`].
pub(crate) type Creation = (Zxid, TaskId);

/// Creation of a record whose transaction is not known yet: it counts by its own time of submission.
pub(crate) const UNKNOWN: Zxid = Zxid(i64::MAX);

/// Start of each waiting task's wait, in milliseconds since 1970.
#[derive(Debug, Default)]
pub(crate) struct Ages(BTreeMap<Creation, u64>);

impl Ages {
    /// Adds a task. Returns the tasks before it that looked younger, and count as equally old from now on.
    pub(crate) fn insert(&mut self, creation: Creation, submitted_ms: u64) -> Vec<TaskId> {
        if creation.0 == UNKNOWN {
            self.0.insert(creation, submitted_ms);
            return Vec::new();
        }
        let later = self.0.range((Excluded(&creation), Unbounded)).next();
        let later = later.filter(|((created, _), _)| *created != UNKNOWN).map(|(_, ms)| *ms);
        let since = later.map_or(submitted_ms, |later| later.min(submitted_ms));
        let mut aged = Vec::new();
        for ((_, task), ms) in self.0.range_mut(..&creation).rev() {
            if *ms <= since {
                break;
            }
            *ms = since;
            aged.push(task.clone());
        }
        self.0.insert(creation, since);
        aged
    }

    pub(crate) fn remove(&mut self, creation: &Creation) -> Option<u64> {
        self.0.remove(creation)
    }

    /// Returns since when a task waits.
    pub(crate) fn since(&self, creation: &Creation) -> Option<u64> {
        self.0.get(creation).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn creation(number: i64) -> Creation {
        (Zxid(number), TaskId::new(format!("t{number}")).unwrap())
    }

    #[test]
    fn a_task_is_never_younger_than_one_that_came_later() {
        let mut ages = Ages::default();
        assert!(ages.insert(creation(1), 100).is_empty());
        // Of a leader a day ahead, and of the next one.
        assert!(ages.insert(creation(2), 86_400_000).is_empty());
        assert_eq!(ages.insert(creation(3), 200), [creation(2).1]);
        let since = |ages: &Ages| [1, 2, 3].map(|number| ages.since(&creation(number)).unwrap());
        assert_eq!(since(&ages), [100, 200, 200]);
        // Read in any order.
        let mut other = Ages::default();
        for (number, ms) in [(3, 200), (1, 100), (2, 86_400_000)] {
            other.insert(creation(number), ms);
        }
        assert_eq!(since(&other), since(&ages));
        // One that was behind makes those before it no older than themselves.
        assert_eq!(ages.insert(creation(4), 50).len(), 3);
        assert_eq!((since(&ages), ages.since(&creation(4))), ([50; 3], Some(50)));
        assert_eq!((ages.remove(&creation(4)), ages.since(&creation(4))), (Some(50), None));
    }
}
