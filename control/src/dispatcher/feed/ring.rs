//! Holds the last changes, up to a number and up to a number of bytes.

use super::TaskChange;
use std::collections::VecDeque;
use std::sync::Arc;

/// The last changes, with consecutive numbers.
#[derive(Debug)]
pub(super) struct Ring {
    /// Number of the first change that is here, or of the next one.
    first: u64,
    changes: VecDeque<Arc<TaskChange>>,
    bytes: usize,
    changes_max: usize,
    bytes_max: usize,
}

impl Ring {
    pub(super) fn new(start: u64, changes_max: usize, bytes_max: usize) -> Self {
        Self { first: start + 1, changes: VecDeque::new(), bytes: 0, changes_max, bytes_max }
    }

    /// Adds a change; returns its number. The oldest ones go where there is no room.
    pub(super) fn push(&mut self, change: TaskChange) -> u64 {
        self.bytes += change.bytes();
        self.changes.push_back(Arc::new(change));
        while self.changes.len() > self.changes_max || self.bytes > self.bytes_max {
            let Some(oldest) = self.changes.pop_front() else { break };
            self.bytes -= oldest.bytes();
            self.first += 1;
        }
        self.last()
    }

    /// Returns at most `most` changes after that number; `None` if some of them are gone, or the number was never given.
    pub(super) fn after(&self, number: u64, most: usize) -> Option<Vec<(u64, Arc<TaskChange>)>> {
        if number > self.last() || number + 1 < self.first {
            return None;
        }
        let next = number + 1;
        let skipped = usize::try_from(next - self.first).unwrap_or(usize::MAX);
        Some((next..).zip(self.changes.iter().skip(skipped).take(most).cloned()).collect())
    }

    /// Tells whether a subscriber that is at that number has at least half of the ring's room before it loses changes.
    pub(super) fn is_recent(&self, number: u64) -> bool {
        let behind = self.last().saturating_sub(number);
        number + 1 >= self.first && behind <= self.changes_max as u64 / 2
    }

    fn last(&self) -> u64 {
        self.first + self.changes.len() as u64 - 1
    }
}
