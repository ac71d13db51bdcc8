//! Decides when tasks run that have windows: they start inside of one, and what can pause goes on only inside. Pure.
//!
//! The wall clock of the leader counts.

use super::decision::Decision;
use super::now::Now;
use crate::model::state_machine::TaskEvent;
use crate::model::{TaskRecord, TaskState, Windows};
use crate::timestamp::Timestamp;
use std::time::Duration;

/// Longest wait before a look at the clock, which may be set meanwhile.
const CLOCK_CHECK_MAX: Duration = Duration::from_secs(60);

/// State of a task's windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowState {
    pub(super) is_open: bool,
    /// When that changes, in milliseconds since 1970.
    changes_ms: Option<u64>,
}

impl WindowState {
    /// Returns the state for a task that has windows, and has not ended. Windows of a later version, which cannot be parsed,
    /// are never open.
    pub(super) fn of(record: &TaskRecord, now: Now) -> Option<Self> {
        if record.windows.is_empty() || record.state.is_terminal() {
            return None;
        }
        let windows = Windows::parse(&record.windows).ok();
        Some(Self {
            is_open: windows.as_ref().is_some_and(|windows| windows.is_open(now.unix_ms)),
            changes_ms: windows.and_then(|windows| windows.next_change(now.unix_ms)),
        })
    }

    /// Returns when to look again.
    pub(super) fn look_again(self, now: Now) -> Duration {
        let latest = now.boot + CLOCK_CHECK_MAX;
        self.changes_ms.map_or(latest, |changes_ms| now.at_unix(changes_ms).min(latest))
    }

    /// Pauses a task that has begun when its window closes, and lets it go on when one opens.
    pub(super) fn decide(self, record: &TaskRecord) -> Option<Decision> {
        let is_outside = !self.is_open && !record.is_unstarted() && record.spec.kind().can_pause();
        (record.is_outside_windows != is_outside).then(|| {
            let event = TaskEvent::WindowChanged { is_open: !is_outside };
            Decision::Transition { task: record.id.clone(), events: vec![event] }
        })
    }

    /// Explains what the task waits for; `None` while one of its windows is open.
    pub(super) fn reason(self, record: &TaskRecord) -> Option<String> {
        let waits = matches!(record.state, TaskState::Pending | TaskState::Paused) && !self.is_open;
        let opens =
            |changes_ms: Option<u64>| changes_ms.map_or_else(|| String::from("later"), |ms| Timestamp(ms).to_string());
        waits.then(|| format!("waiting for its window, which opens at {}", opens(self.changes_ms)))
    }
}
