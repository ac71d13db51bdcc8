//! Moves groups, which no runner holds.
//!
//! ```text
//!           Sealed             PauseRequested
//!  PENDING ---------> RUNNING <--------------> PAUSED        MemberFailed keeps the state, and the first failure
//!     |                  |     ResumeRequested   |
//!     |  CancelRequested |                       |           MembersEnded, from any of these:
//!     `------------> CANCELLING <----------------'           --> FAILED, CANCELLED or SUCCEEDED
//! ```
//! What always holds: the members of a group that was cancelled before its seal never start.

use super::IllegalTransition;
use crate::model::{DesiredState, Failure, TaskRecord, TaskState};

impl TaskRecord {
    pub(super) fn sealed_by_client(&mut self, now_ms: u64) -> Result<(), IllegalTransition> {
        let is_sealed = self.members.as_ref().is_some_and(|members| members.sealed_ms.is_some());
        self.expect(is_sealed || (self.is_group() && self.state == TaskState::Pending), "sealed")?;
        if let Some(members) = &mut self.members {
            members.sealed_ms.get_or_insert(now_ms);
        }
        if !self.state.is_terminal() {
            self.settle_group();
        }
        Ok(())
    }

    pub(super) fn cancel_all_requested(&mut self) -> Result<(), IllegalTransition> {
        self.expect(!self.state.is_terminal(), "cancelled")?;
        match &mut self.members {
            None => return Err(IllegalTransition::Unsupported("cancelled with its clean-up")),
            Some(members) => members.cancels_clean_up = true,
        }
        self.cancel_requested()
    }

    pub(super) fn removal_requested(&mut self) -> Result<(), IllegalTransition> {
        self.expect(self.is_group() && self.state.is_terminal(), "removed")?;
        if let Some(members) = &mut self.members {
            members.is_removed = true;
        }
        Ok(())
    }

    pub(super) fn member_failed(&mut self, error: Failure) -> Result<(), IllegalTransition> {
        self.expect(self.is_group() && !self.state.is_terminal(), "failed")?;
        self.error.get_or_insert(error);
        Ok(())
    }

    pub(super) fn members_ended(&mut self, is_cancelled: bool) -> Result<(), IllegalTransition> {
        let is_sealed = self.members.as_ref().is_some_and(|members| members.sealed_ms.is_some());
        let may_end = self.is_group() && !self.state.is_terminal();
        self.expect(may_end && (is_sealed || self.state == TaskState::Cancelling), "done")?;
        self.state = match &self.error {
            Some(_) => TaskState::Failed,
            None if is_cancelled || !is_sealed => TaskState::Cancelled,
            None => TaskState::Succeeded,
        };
        self.reason = self.error.as_ref().map(ToString::to_string).unwrap_or_default();
        Ok(())
    }

    pub(super) fn group_requested(&mut self, desired_state: DesiredState) -> Result<(), IllegalTransition> {
        self.expect(!self.state.is_terminal() && self.group.is_some(), "changed by its group")?;
        if let Some(member) = &mut self.group {
            member.desired_state = desired_state;
        }
        self.apply_desired();
        Ok(())
    }

    /// Chooses the state of a group that has not ended.
    pub(super) fn settle_group(&mut self) {
        let is_sealed = self.members.as_ref().is_some_and(|members| members.sealed_ms.is_some());
        self.state = match self.desired_state {
            DesiredState::Cancel => TaskState::Cancelling,
            _ if !is_sealed => TaskState::Pending,
            DesiredState::Pause => TaskState::Paused,
            DesiredState::Run => TaskState::Running,
        };
    }
}
