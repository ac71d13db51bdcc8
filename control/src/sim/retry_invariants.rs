//! Checks the invariants of tasks that try others again, from the committed records alone.

use super::invariants::{InvariantChecker, ObservedState};
use crate::model::TaskRecord;

impl InvariantChecker {
    /// Checks a write that starts a task: no write of the one that it tries again can land any more.
    pub(super) fn check_retry_start(&self, observed: &ObservedState, before: &TaskRecord, after: &TaskRecord) {
        let Some(first) = &after.retry_of else { return };
        if !before.attempts.is_empty() || after.attempts.is_empty() {
            return;
        }
        self.result.count("tasks tried again");
        // Gone, or another task of that name.
        let Some(first) = observed.record(first).filter(|first| first.state.is_terminal()) else { return };
        let id = &after.id;
        self.result.expect(observed.is_settled(first), || format!("{id} started, and {first:?} is not settled"));
    }
}
