//! Defines when a task may start, and by when it has to have ended, as its client says.

use blockhaul_engine::error::{Error, Result};
use serde::{Deserialize, Serialize};

/// Times of a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskTimes {
    /// Earliest start, in milliseconds since 1970.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_at_ms: Option<u64>,
    /// Time from the submission to the earliest start, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delay_ms: Option<u64>,
    /// Time from the submission within which it has to have ended, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

impl TaskTimes {
    /// Checks the times of a new task.
    ///
    /// # Errors
    /// `EBadRequest` if it could never end in time.
    pub(crate) fn check(&self) -> Result<()> {
        match (self.deadline_ms, self.delay_ms) {
            (Some(0), _) => Err(Error::bad_request("a deadline of 0 has passed already")),
            (Some(deadline), Some(delay)) if deadline <= delay => {
                Err(Error::bad_request("the deadline would pass before the delay does: make it longer"))
            }
            _ => Ok(()),
        }
    }

    /// Tells serde to leave out what is not set.
    pub(crate) fn is_unset(&self) -> bool {
        *self == Self::default()
    }

    /// Returns the earliest start of a task that was created then, in milliseconds since 1970.
    #[must_use]
    pub fn starts_ms(&self, created_ms: u64) -> Option<u64> {
        let delayed = self.delay_ms.map(|delay| created_ms.saturating_add(delay));
        self.start_at_ms.max(delayed)
    }

    /// Returns the time by which a task that was created then has to have ended, in milliseconds since 1970.
    #[must_use]
    pub fn ends_ms(&self, created_ms: u64) -> Option<u64> {
        self.deadline_ms.map(|deadline| created_ms.saturating_add(deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_later_start_counts_and_a_deadline_counts_from_the_submission() {
        let times = TaskTimes { start_at_ms: Some(50), delay_ms: Some(20), deadline_ms: Some(70) };
        assert_eq!((times.starts_ms(10), times.starts_ms(40), times.ends_ms(40)), (Some(50), Some(60), Some(110)));
        assert_eq!((TaskTimes::default().starts_ms(1), TaskTimes::default().ends_ms(1)), (None, None));
        assert_eq!(times.ends_ms(u64::MAX), Some(u64::MAX));
    }

    #[test]
    fn a_deadline_that_cannot_be_met_is_refused() {
        let times = |deadline_ms, delay_ms| TaskTimes { start_at_ms: None, delay_ms, deadline_ms };
        assert!(times(Some(0), None).check().is_err() && times(Some(5), Some(5)).check().is_err());
        assert!(times(Some(6), Some(5)).check().is_ok() && times(None, Some(5)).check().is_ok());
    }
}
