//! Applies what clients change of tasks that have not ended: their settings, and the node that they run on.

use super::{IllegalTransition, PAUSED_BY_USER, PAUSED_BY_WINDOW};
use crate::model::{DesiredState, Move, NodeId, TaskChanges, TaskRecord};

impl TaskRecord {
    pub(super) fn changes_requested(&mut self, changes: &TaskChanges) -> Result<(), IllegalTransition> {
        let TaskChanges { limit, priority, max_attempts, start_at_ms, deadline_ms } = *changes;
        self.expect(!self.state.is_terminal(), "changed")?;
        if self.is_group() && (priority.is_some() || max_attempts.is_some()) {
            return Err(IllegalTransition::Unsupported("changed like that: change its members"));
        }
        if let Some(limit) = limit
            && !self.spec.kind_mut().set_limit(limit)
        {
            return Err(IllegalTransition::Unsupported("limited"));
        }
        self.priority = priority.unwrap_or(self.priority);
        self.max_attempts = max_attempts.unwrap_or(self.max_attempts);
        let mut times = self.times;
        if let Some(start_at_ms) = start_at_ms {
            self.expect(self.is_unstarted(), "started later: it has started")?;
            (times.start_at_ms, times.delay_ms) = (start_at_ms, None);
        }
        if let Some(deadline_ms) = deadline_ms {
            self.expect(self.desired() != DesiredState::Cancel, "given another deadline")?;
            times.deadline_ms = deadline_ms;
        }
        if times != self.times {
            self.submitted_times.get_or_insert(self.times);
            self.times = times;
        }
        Ok(())
    }

    pub(super) fn window_changed(&mut self, is_open: bool) -> Result<(), IllegalTransition> {
        self.expect_pausable("paused by a window")?;
        self.expect(!self.state.is_terminal(), "changed by a window")?;
        self.is_outside_windows = !is_open;
        self.apply_desired();
        Ok(())
    }

    pub(super) fn pause_reason(&self) -> &'static str {
        let is_by_window = self.is_outside_windows && self.desired_state == DesiredState::Run;
        if is_by_window { PAUSED_BY_WINDOW } else { PAUSED_BY_USER }
    }

    pub(super) fn move_requested(&mut self, to: Option<NodeId>) -> Result<(), IllegalTransition> {
        if self.is_group() {
            return Err(IllegalTransition::Unsupported("moved"));
        }
        self.expect_pausable("moved")?;
        self.expect(!self.state.is_terminal() && self.desired() != DesiredState::Cancel, "moved")?;
        if let Ok(Some(only)) = self.spec.kind().node()
            && to.as_ref() != Some(&only)
        {
            return Err(IllegalTransition::OnlyNode(only));
        }
        let from = self.attempts.last().map(|attempt| attempt.runner.node.clone());
        self.moving = match to {
            Some(to) if self.node() == Some(&to) => None,
            None if from.is_none() => None,
            to => Some(Move { from, to }),
        };
        Ok(())
    }
}
