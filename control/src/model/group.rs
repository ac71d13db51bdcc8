//! Defines what records keep of a group and of its members.
//!
//! A group is a task without work of its own: only the dispatcher moves it, by the states of its members. A member is a
//! task that names its group. Members are stored one by one, so that a group may be stored in part; no member starts
//! before the seal of its group, which is written when all of them are stored.

use super::{DesiredState, TaskId, TaskState};
use serde::{Deserialize, Serialize};

/// Membership of a task in a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Membership {
    /// The group.
    pub group: TaskId,
    /// When the group was created, in milliseconds since 1970: tells it from a later one of the same name.
    pub created_ms: u64,
    /// Whether it runs although its group is stopping: see [`Batch::clean_up`](crate::batch::Batch::clean_up).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub clean_up: bool,
    /// State that the group wants of it. Written only to members that have started: of the others, the record of the
    /// group counts.
    pub desired_state: DesiredState,
}

/// What the record of a group has besides that of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupState {
    /// When it was sealed, in milliseconds since 1970. Members may start from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sealed_ms: Option<u64>,
    /// Whether its client has cancelled its clean-up, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cancels_clean_up: bool,
    /// Whether its record and those of its members are to be deleted although their retention has not passed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_removed: bool,
    /// Number of members in each state, of those that are stored. Not in the record: the leader counts them.
    #[serde(skip)]
    pub counts: Vec<(TaskState, usize)>,
}
