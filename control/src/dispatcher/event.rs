//! Lists the results of reads, writes and calls that the leader has started, and the origin of each.

use super::cluster_state::FenceProgress;
use super::handle::{Mutation, Reply, ScheduleView};
use super::level::CenterLevel;
use super::rollback_detection::RecordVersion;
use super::settings::StoredSettings;
use super::write::Written;
use super::write_schedule::{ScheduleUpdate, ScheduleWritten};
use crate::cluster::election::CommitError;
use crate::coord::{CoordError, Watch, Znode};
use crate::model::schedule::Step;
use crate::model::{
    Abilities, Actor, Drain, Epoch, Holder, MemberTemplate, NodeId, Registration, ScheduleName, TaskId, TaskRecord,
};
use crate::peers::{AssignResponse, AssignmentStatus, CallError};
use blockhaul_engine::error::Error;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Event: the result of something that the leader has started.
#[derive(Debug)]
pub(crate) enum Event {
    Listed(Result<Vec<String>, CoordError>),
    Read {
        read: Result<Option<Znode>, CoordError>,
        task: TaskId,
        /// State of the record when the read started.
        known: Option<RecordVersion>,
    },
    Fleet(Result<(FleetRead, Watch), CoordError>),
    Written {
        task: TaskId,
        origin: WriteOrigin,
        written: Written,
        took: Duration,
    },
    Resolved {
        task: TaskId,
        to: Holder,
        answer: Result<Vec<String>, CallError>,
    },
    CallEnded {
        call: Call,
        task: TaskId,
        holder: Holder,
        grant: Option<Epoch>,
        result: CallResult,
    },
    Fenced(Holder, FenceProgress),
    Interrupted(NodeId, Result<(), CallError>),
    ScheduleWritten {
        update: Box<ScheduleUpdate>,
        origin: ScheduleOrigin,
        written: ScheduleWritten,
    },
    MembersRead {
        schedule: ScheduleName,
        /// Version of the schedule whose members were read.
        version: u32,
        read: Result<Vec<MemberTemplate>, String>,
    },
    LevelRaised(Result<(), CommitError>),
    SettingsStored {
        result: Result<StoredSettings, Error>,
        reply: Reply<StoredSettings>,
    },
    Drained {
        node: NodeId,
        is_drain: bool,
        result: Result<Option<(Drain, i32)>, Error>,
        reply: Reply<usize>,
    },
}

/// Origin of a write.
#[derive(Debug)]
pub(crate) enum WriteOrigin {
    /// The dispatcher itself.
    Decided,
    /// A client.
    Mutation(PendingMutation),
    /// A client's new task.
    Submitted,
}

/// Origin of the write of a schedule.
#[derive(Debug)]
pub(crate) enum ScheduleOrigin {
    /// The dispatcher itself: this step.
    Decided(Step),
    /// A client.
    Client {
        /// Waits for the schedule as it is then.
        reply: Reply<ScheduleView>,
        /// Last view of a schedule that is deleted.
        removed: Option<Box<ScheduleView>>,
        /// Task that is cancelled after the write.
        cancelled: Option<TaskId>,
        by: Actor,
    },
}

/// WriteOrigin of a call about a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Assign,
    Query,
    Notify,
}

/// Result of a call.
#[derive(Debug)]
pub(crate) enum CallResult {
    Answered(AssignResponse),
    Status(AssignmentStatus),
    Notified,
    /// The claim does not name the holder: the record has changed.
    NoGrant,
    Failed(CallError),
}

/// One client's pending mutation.
#[derive(Debug)]
pub(crate) struct PendingMutation {
    pub(crate) mutation: Mutation,
    pub(crate) by: Actor,
    pub(crate) deadline: Duration,
    pub(crate) reply: Reply<Arc<TaskRecord>>,
    /// Last content of a task whose removal has been sent.
    pub(crate) removed: Option<Arc<TaskRecord>>,
}

/// The runners and the drain records of operators.
#[derive(Debug, Default)]
pub(crate) struct FleetRead {
    /// Number of observations of records when the read has begun.
    pub(crate) observed: u64,
    pub(crate) runners: BTreeMap<NodeId, Registration>,
    /// Nodes whose registrations cannot be decoded.
    pub(crate) unreadable: BTreeSet<NodeId>,
    /// What the runners announce that they can do.
    pub(crate) abilities: BTreeMap<NodeId, Abilities>,
    /// Addresses of processes that are kept from registering, by their node's name.
    pub(crate) refused: BTreeMap<NodeId, BTreeSet<String>>,
    /// Level of the center, if it has one.
    pub(crate) level: Option<CenterLevel>,
    pub(crate) drains: BTreeMap<NodeId, (Drain, i32)>,
    /// Schedules and the versions of their nodes, if they were to be read.
    pub(crate) schedules: Vec<(String, Znode)>,
    /// The settings, if they were to be read and there are any.
    pub(crate) settings: Option<Znode>,
    pub(crate) undecodable: BTreeMap<String, String>,
}
