//! Defines the claim: the exclusive right to write a destination.

use super::{Incarnation, NodeId, OpId, Record, TaskId, UnknownFields};
use serde::{Deserialize, Serialize};

/// Exclusive right of one task to write one destination, from its first assignment to its end. Its node's `modified`
/// transaction is the epoch of the grant while there is a holder: the claim is written only to change the holder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// Canonical text of the destination's identity, whose hash is the node's name.
    pub destination: String,
    /// Task that owns the claim.
    pub task: TaskId,
    /// Process that may use it now; `None` between grants.
    pub holder: Option<Holder>,
    /// Operation id of the last write.
    pub op: OpId,
    /// Fields of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Record for Claim {}

/// Process that may work on a task.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// Its node.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
}
