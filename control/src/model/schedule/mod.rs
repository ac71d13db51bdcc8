//! Defines the record of a schedule: the template of its tasks, when it makes them, and what it has made so far.
//!
//! ```text
//!          every instant: a task, a skip (the last task is still live) or nothing (too late)
//!             .--.
//!             v  |          no instant left, last task ended
//! add ------> ACTIVE --------------------------------------> ENDED
//!             |    ^
//!       pause |    | resume: the instants in between do not count
//!             v    |
//!             PAUSED
//! ```
//!
//! What always holds: instants are decided in their order, each once. All up to `considered_ms` are decided. The write
//! that decides an instant also creates its task, if there is one: neither happens without the other.

mod batch;
mod cron;
mod step;
mod template;
mod time_pattern;
mod trigger;

pub use batch::MemberTemplate;
pub(crate) use batch::{check_members, decode_members, encode_members};
pub(crate) use step::{Facts, Predecessor, SkipCause, Step};
pub use template::Template;
pub(crate) use template::{boot_id, instant_id, spec_at};
pub use trigger::Trigger;
pub(crate) use trigger::{Timer, local_time, parse_zone};

use super::{OpId, Record, ScheduleName, TaskId, UnknownFields, is_zero};
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr};

/// Default number of ended tasks that a schedule keeps.
pub(crate) const KEEP_DEFAULT: u32 = 10;

/// Record of a schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduleRecord {
    /// Its name.
    pub name: ScheduleName,
    /// BLAKE3 of the request that it was made from, in hexadecimal digits: the same request is the same schedule.
    pub request: String,
    /// 1 when it was added, one more with each replacement.
    pub version: u32,
    /// When it fires.
    pub trigger: Trigger,
    /// IANA name of the time zone of its expression and of its names.
    pub zone: String,
    /// Tasks that it makes.
    pub template: Template,
    /// Number of nodes below its own that hold the members of its batch.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub parts: u64,
    /// What happens with instants that nobody was there for.
    pub catch_up: CatchUp,
    /// Number of its ended tasks that are kept.
    pub keep: u32,
    /// What it is doing.
    pub state: ScheduleState,
    /// When it was added, in milliseconds since 1970.
    pub created_ms: u64,
    /// Instants up to this one are decided, in milliseconds since 1970.
    pub considered_ms: u64,
    /// Last instant that has fired, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_fired_ms: Option<u64>,
    /// Last task that it has made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_task: Option<TaskId>,
    /// Last known boot of the node whose boots fire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_boot: Option<String>,
    /// Number of tasks that it has made.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub fired: u64,
    /// Number of instants at which its last task was still live.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skipped: u64,
    /// Why its last instant has made no task; empty if it has.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Operation id of the last write.
    pub op: OpId,
    /// Fields of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Record for ScheduleRecord {}

/// What a schedule is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr)]
#[serde(rename_all = "UPPERCASE")]
#[strum(serialize_all = "UPPERCASE", ascii_case_insensitive)]
pub enum ScheduleState {
    /// It fires.
    Active,
    /// Its client has paused it.
    Paused,
    /// It has no instant left, and its last task has ended.
    Ended,
}

/// What happens with instants that nobody was there for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, EnumString, IntoStaticStr)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum CatchUp {
    /// The last of them fires, late.
    #[default]
    Once,
    /// None of them fires.
    None,
}

impl ScheduleState {
    /// Returns the name that users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

impl CatchUp {
    /// Returns the name that users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
