//! Lists what comes back from reads, writes and calls that the leader has started, and what each of them was for.

use super::cluster_state::FenceProgress;
use super::handle::{Mutation, Reply};
use super::history::Known;
use super::write::Written;
use crate::coord::{CoordError, Node, Watch};
use crate::model::{Drain, Epoch, Holder, NodeId, Registration, TaskId, TaskRecord};
use crate::peers::{AssignResponse, AssignmentStatus, CallError};
use blockhaul_engine::error::Error;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// What has happened to something that the leader has started.
#[derive(Debug)]
pub(crate) enum Event {
    Listed(Result<Vec<String>, CoordError>),
    Read {
        read: Result<Option<Node>, CoordError>,
        task: TaskId,
        /// When it was asked for.
        known: Option<Known>,
    },
    Fleet(Result<(FleetRead, Watch), CoordError>),
    Written {
        task: TaskId,
        purpose: Purpose,
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
        called: CallResult,
    },
    Fenced(Holder, FenceProgress),
    Interrupted(NodeId, Result<(), CallError>),
    Drained {
        node: NodeId,
        result: Result<Option<(Drain, i32)>, Error>,
        reply: Reply<()>,
    },
}

/// Whom a write is for.
#[derive(Debug)]
pub(crate) enum Purpose {
    /// The dispatcher itself.
    Decided,
    /// A client.
    Mutation(PendingMutation),
    /// A client's new task.
    Submitted,
}

/// What a call about a task is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Assign,
    Query,
    Notify,
}

/// How it ended.
#[derive(Debug)]
pub(crate) enum CallResult {
    Answered(AssignResponse),
    Status(AssignmentStatus),
    Notified,
    /// The claim does not name the holder: the record has changed.
    NoGrant,
    Failed(CallError),
}

/// One client's wish.
#[derive(Debug)]
pub(crate) struct PendingMutation {
    pub(crate) wanted: Mutation,
    pub(crate) until: Duration,
    pub(crate) reply: Reply<Arc<TaskRecord>>,
    /// What a task that is to be removed said last: its removal is under way, or has happened.
    pub(crate) removed: Option<Arc<TaskRecord>>,
}

/// The runners and operators' wishes about them.
#[derive(Debug, Default)]
pub(crate) struct FleetRead {
    pub(crate) runners: BTreeMap<NodeId, Registration>,
    pub(crate) drains: BTreeMap<NodeId, (Drain, i32)>,
    pub(crate) undecodable: BTreeMap<String, String>,
}
