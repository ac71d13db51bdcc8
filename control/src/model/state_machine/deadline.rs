//! Ends tasks that have missed their deadline: each is stopped as by a cancel, and fails with `ETimeout`.

use super::IllegalTransition;
use crate::model::{DesiredState, Failure, TaskRecord};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::time::Duration;

impl TaskRecord {
    pub(super) fn deadline_passed(&mut self) -> Result<(), IllegalTransition> {
        self.expect(!self.state.is_terminal(), "ended by its deadline")?;
        (self.is_overdue, self.desired_state) = (true, DesiredState::Cancel);
        if self.is_group() {
            self.error.get_or_insert_with(|| timeout(self.times.deadline_ms));
        }
        self.apply_desired();
        Ok(())
    }

    /// Sets the error of a task that has failed because it has missed its deadline.
    pub(super) fn fail_overdue(&mut self) {
        let error = match (&self.error, self.is_group()) {
            (Some(first), true) => first.clone(),
            _ => timeout(self.times.deadline_ms),
        };
        self.reason = error.to_string();
        self.error = Some(error);
    }
}

/// Returns the error of a task that has missed its deadline.
fn timeout(deadline_ms: Option<u64>) -> Failure {
    let seconds = Duration::from_millis(deadline_ms.unwrap_or_default()).as_secs_f64();
    let message = format!("it has not ended within {seconds} s of its submission, its --deadline");
    Failure::from(&Error::new(Code::Timeout, Side::Caller, Operation::Start, message))
}
