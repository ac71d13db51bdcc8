//! Defines what a client signs: the text of an order.
//!
//! The text is JSON, and is signed and stored as the client has written it. It is read by the same rules everywhere: unknown
//! and repeated fields are refused, as they would be signed without being understood. The work has the form of the task's
//! record, without its limit.

use super::refused;
use crate::model::{ORDER_BYTES_MAX, Submission, TaskId, TaskRecord, TaskSpec, Trigger};
use blockhaul_engine::error::Result;
use serde::{Deserialize, Serialize};

/// What a client has signed: one task, or all tasks of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Identity of the center.
    pub(crate) center: String,
    /// Id of the task; with a trigger, the name of the schedule.
    pub(crate) id: String,
    /// Work; with a trigger, its template.
    pub(crate) spec: TaskSpec,
    /// Tasks that it waits for, and how each has to end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) after: Vec<(TaskId, String)>,
    /// Group that it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) group: Option<OrderGroup>,
    /// When the schedule makes tasks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) trigger: Option<OrderTrigger>,
    /// Key that has signed it.
    pub(crate) key: String,
    /// Last time at which an attempt may start, in milliseconds since 1970.
    pub(crate) not_after_ms: u64,
}

/// Group of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OrderGroup {
    pub(crate) id: TaskId,
    /// Whether the task runs although its group is stopping.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) clean_up: bool,
}

/// Trigger of a schedule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct OrderTrigger {
    pub(crate) when: Trigger,
    pub(crate) zone: String,
    /// When it was signed, in milliseconds since 1970: earlier instants make no task.
    pub(crate) from_ms: u64,
}

/// What is to be done according to a request or a record.
#[derive(Clone, Debug)]
pub(super) struct Claimed<'a> {
    pub(super) id: &'a TaskId,
    pub(super) spec: &'a TaskSpec,
    after: Vec<(&'a TaskId, &'static str)>,
    group: Option<(&'a TaskId, bool)>,
}

impl<'a> From<&'a Submission> for Claimed<'a> {
    fn from(submission: &'a Submission) -> Self {
        Self {
            id: &submission.id,
            spec: &submission.spec,
            after: submission.after.iter().map(|(task, condition)| (task, condition.as_str())).collect(),
            group: submission.group.as_ref().map(|group| (&group.id, group.clean_up)),
        }
    }
}

impl<'a> From<&'a TaskRecord> for Claimed<'a> {
    fn from(record: &'a TaskRecord) -> Self {
        let after = record.after.iter().map(|dependency| (&dependency.task, dependency.condition.as_str()));
        Self {
            id: &record.id,
            spec: &record.spec,
            after: after.collect(),
            group: record.group.as_ref().map(|member| (&member.group, member.clean_up)),
        }
    }
}

impl Order {
    /// Reads the text of an order.
    ///
    /// # Errors
    /// `EPermission` if it is none, or too long.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        if text.len() > ORDER_BYTES_MAX {
            return Err(refused(format!("it has {} bytes, at most {ORDER_BYTES_MAX} are possible", text.len())));
        }
        serde_json::from_str(text).map_err(|error| {
            let why: String = error.to_string().chars().take(200).collect();
            refused(format!("it cannot be read: {}", why.escape_debug()))
        })
    }

    /// Checks that a task waits for what was signed, in the group that was signed.
    ///
    /// # Errors
    /// `EPermission` naming what differs.
    pub(super) fn check_place(&self, claimed: &Claimed<'_>) -> Result<()> {
        let after = self.after.iter().map(|(task, condition)| (task, condition.as_str()));
        if !after.eq(claimed.after.iter().copied()) {
            return Err(refused("the task waits for other tasks than its client has signed"));
        }
        if self.group.as_ref().map(|group| (&group.id, group.clean_up)) != claimed.group {
            return Err(refused("the task has another place in a group than its client has signed"));
        }
        Ok(())
    }

    /// Returns the id of the task, or the name of the schedule.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }
}
