//! Defines what a client may change of a task that has not ended.

use blockhaul_engine::error::{Error, Result};

/// Largest number of failures without progress after which a task fails.
const MAX_ATTEMPTS_MAX: u32 = 100;

/// Changes of a task. What is `None` stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskChanges {
    /// Limit in bytes per second; `Some(None)`: no limit.
    pub limit: Option<Option<u64>>,
    /// 0 to 9; higher goes first.
    pub priority: Option<u8>,
    /// Failures without progress after which it fails: 1 to 100.
    pub max_attempts: Option<u32>,
    /// Earliest start, in milliseconds since 1970; `Some(None)`: at once.
    pub start_at_ms: Option<Option<u64>>,
    /// Time from its submission within which it has to have ended, in milliseconds; `Some(None)`: no deadline.
    pub deadline_ms: Option<Option<u64>>,
}

impl TaskChanges {
    /// Returns the change of the limit alone.
    #[cfg(test)]
    pub(crate) fn limit(bytes_per_second: Option<u64>) -> Self {
        Self { limit: Some(bytes_per_second), ..Self::default() }
    }

    /// Checks what can be checked without the task.
    ///
    /// # Errors
    /// `EBadRequest` for numbers out of their ranges, and if nothing is to change.
    pub(crate) fn check(&self) -> Result<()> {
        if *self == Self::default() {
            return Err(Error::bad_request("nothing is to change"));
        }
        if self.limit == Some(Some(0)) {
            return Err(Error::bad_request("a limit of 0 would stop the copy: pause it, or name a rate"));
        }
        self.priority.map_or(Ok(()), check_priority)?;
        self.max_attempts.map_or(Ok(()), check_max_attempts)?;
        if self.deadline_ms == Some(Some(0)) {
            return Err(Error::bad_request("a deadline of 0 has passed already"));
        }
        Ok(())
    }
}

/// Checks the priority of a task.
///
/// # Errors
/// `EBadRequest`.
pub(crate) fn check_priority(priority: u8) -> Result<()> {
    if priority > 9 {
        return Err(Error::bad_request("the priority must be a number from 0 to 9"));
    }
    Ok(())
}

/// Checks the number of failures without progress after which a task fails.
///
/// # Errors
/// `EBadRequest`.
pub(crate) fn check_max_attempts(count: u32) -> Result<()> {
    match count {
        0 => Err(Error::bad_request("a task has at least 1 attempt")),
        1..=MAX_ATTEMPTS_MAX => Ok(()),
        _ => Err(Error::bad_request(format!("{count} attempts are too many: at most {MAX_ATTEMPTS_MAX}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_their_ranges_are_refused() {
        let good = TaskChanges { priority: Some(9), max_attempts: Some(100), limit: Some(None), ..Default::default() };
        assert!(good.check().is_ok());
        for bad in [
            TaskChanges::default(),
            TaskChanges { priority: Some(10), ..good },
            TaskChanges { max_attempts: Some(0), ..good },
            TaskChanges { max_attempts: Some(101), ..good },
            TaskChanges { limit: Some(Some(0)), ..good },
            TaskChanges { deadline_ms: Some(Some(0)), ..good },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
