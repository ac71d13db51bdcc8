//! Defines the claim: the exclusive right to write a destination.

use super::{Incarnation, NodeId, OpId, Record, TaskId, UnknownFields};
use serde::{Deserialize, Serialize};

/// The exclusive right of one task to write one destination, from its first assignment to its end. Its node's `modified`
/// transaction is the epoch of the grant for as long as there is a holder: it is written only to change that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Canonical text of the destination's identity: what the node's name is the hash of.
    pub destination: String,
    /// Whose it is.
    pub task: TaskId,
    /// Who may use it now; `None` between grants.
    pub holder: Option<Holder>,
    /// Of the write that made it what it is.
    pub op: OpId,
    /// Of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Record for Claim {}

/// A process that may work on a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// Its node.
    pub node: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
}
