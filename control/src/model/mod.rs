//! Defines the records of the center as they are stored in the coordination service: one file per record.
//!
//! Records are JSON, so that an operator can read them with any client of the service, and at most
//! [`NODE_BYTES_MAX`](crate::coord::NODE_BYTES_MAX) long. Every writer puts a fresh [`OpId`] into a record: after an
//! unknown outcome the record tells whether the write has happened. A record that cannot be decoded is reported and
//! left alone; it never stops the dispatcher. Fields that this version does not know are kept: see [`UnknownFields`].

mod changes;
mod claim;
pub(crate) mod dependency;
mod durable_map;
mod failure;
pub(crate) mod fence_method;
mod group;
mod kind;
pub(crate) mod level;
mod names;
mod node;
mod node_fault;
mod placement;
mod position;
mod request;
mod record_shrinking;
pub(crate) mod schedule;
mod settings;
mod signed_order;
pub(crate) mod state_machine;
mod task;
mod times;
pub(crate) mod transition;
mod unknown_fields;
pub(crate) mod volume;
mod window;

pub use changes::TaskChanges;
pub(crate) use changes::{check_max_attempts, check_priority};
pub use claim::{Claim, Holder};
pub use dependency::{DEPENDENCIES_MAX, DEPENDENCY_BYTES_MAX, Dependency, parse_dependency};
pub use durable_map::DurableMap;
pub use failure::Failure;
pub use fence_method::FenceMethod;
pub use group::{GroupState, Membership};
pub use kind::{CopyTask, GroupTask, KindName, NoopTask, RunTask, Summary, TaskSpec, VerifyTask};
pub use level::Abilities;
pub use names::{Epoch, Incarnation, NodeId, OpId, ScheduleName, TaskId};
pub use node::{Drain, LastEnd, Leader, Meta, Registration, Renewal};
pub use node_fault::{FaultOrigin, NodeFault};
pub use placement::{LABEL_BYTES_MAX, Labels, PlacementRules, parse_label};
pub use position::Position;
pub use request::{DrainMode, GroupName, Submission, TaskCommand};
pub(crate) use schedule::KEEP_DEFAULT;
pub use schedule::{CatchUp, MemberTemplate, ScheduleRecord, ScheduleState, Template, Trigger};
pub(crate) use settings::duration_text;
pub use settings::{Notify, Placement, SettingName, Settings};
pub(crate) use signed_order::hexadecimal;
pub use signed_order::{ORDER_BYTES_MAX, SignedOrder};
pub use task::{Attempt, DesiredState, Faults, Move, Progress, TaskRecord, TaskState};
pub use times::TaskTimes;
pub use transition::{Actor, Transition, Transitions};
pub use unknown_fields::UnknownFields;
pub use volume::{TaskVolume, VOLUME_NAME_BYTES_MAX};

pub(crate) use window::{RateSchedule, Windows};

use serde::{Serialize, de::DeserializeOwned};

/// Record that is stored in a node of the coordination service.
pub trait Record: Serialize + DeserializeOwned {
    /// Encodes the record for the store.
    fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("records have no keys but strings")
    }

    /// Decodes a stored record.
    ///
    /// # Errors
    /// What is wrong with it and where.
    fn decode(data: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(data)
    }
}

/// Tells serde to leave out a count of zero, so that an older `taskd` still reads the record.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}
