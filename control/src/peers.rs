//! Defines the calls between nodes: the seam below which there is gRPC, or a simulation.
//!
//! Calls are hints and telemetry: each can be lost, repeated or late without harm, because what follows from it is
//! decided by a version-checked write. Every call names its addressee, and any other process refuses it without effect:
//! an address may have become another node's, or another center's. Every call of a dispatcher carries its epoch; a
//! runner refuses a lower one than it has seen.

use crate::model::{Epoch, Incarnation, Leader, NodeId, Progress, Registration, TaskId, TaskSpec};
use async_trait::async_trait;
use blockhaul_engine::error::Code;
use std::sync::{Arc, OnceLock};

/// The center that this process has joined, once it has; see [`Meta::center`](crate::model::Meta).
pub type CenterId = Arc<OnceLock<String>>;

/// One life of a node, and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// As `HOST:PORT`.
    pub address: String,
    /// Its node.
    pub node: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
}

impl From<&Registration> for Peer {
    fn from(Registration { address, node, incarnation, .. }: &Registration) -> Self {
        Self { address: address.clone(), node: node.clone(), incarnation: incarnation.clone() }
    }
}

impl From<Leader> for Peer {
    fn from(Leader { address, node, incarnation, .. }: Leader) -> Self {
        Self { address, node, incarnation }
    }
}

/// Whom a call is for. What is `None` was not said, as by a caller that is older than this, and is not judged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addressee {
    /// The center that the caller belongs to.
    pub center: Option<String>,
    /// The node that the caller means to reach.
    pub node: Option<String>,
    /// The life of that node.
    pub incarnation: Option<String>,
}

impl Addressee {
    /// A process, as a member of `center` knows it.
    #[must_use]
    pub fn new(center: &CenterId, peer: &Peer) -> Self {
        Self {
            center: center.get().cloned(),
            node: Some(peer.node.to_string()),
            incarnation: Some(peer.incarnation.0.clone()),
        }
    }
}

/// This process, as calls have to name it.
#[derive(Clone, Debug)]
pub struct LocalIdentity {
    /// The center that it has joined.
    pub center: CenterId,
    /// Its node.
    pub node: NodeId,
    /// Its life.
    pub incarnation: Incarnation,
}

impl LocalIdentity {
    /// Whether a call is for this process.
    ///
    /// # Errors
    /// [`CallError::Misdirected`], saying whom it is for and who this is.
    pub fn check(&self, addressee: &Addressee) -> Result<(), CallError> {
        let Addressee { center, node, incarnation } = addressee;
        let is = |wanted: &Option<String>, own: Option<&str>| wanted.as_deref().is_none_or(|it| Some(it) == own);
        let own = self.center.get().map(String::as_str);
        if is(center, own) && is(node, Some(self.node.as_str())) && is(incarnation, Some(&self.incarnation.0)) {
            return Ok(());
        }
        let shown = |text: &Option<String>| {
            text.as_deref().unwrap_or("?").chars().take(80).collect::<String>().escape_debug().to_string()
        };
        Err(CallError::Misdirected(format!(
            "the call is for node {}, process {}, of center {}; here is node {}, process {}, of {}",
            shown(node),
            shown(incarnation),
            shown(center),
            self.node,
            self.incarnation.0,
            own.map_or_else(|| String::from("no center yet"), |center| format!("center {center}")),
        )))
    }
}

/// Calls from the dispatcher to a runner. An implementation bounds every call (2 s).
#[async_trait]
pub trait RunnerClient: Send + Sync + std::fmt::Debug {
    /// Tells a runner that a task is its own: the claim names it already.
    async fn assign(&self, to: &Peer, assignment: Assignment) -> Result<AssignResponse, CallError>;

    /// What a runner knows of an assignment. A runner that knows nothing will refuse it from now on.
    async fn query(&self, to: &Peer, assignment: Assignment) -> Result<AssignmentStatus, CallError>;

    /// The record of a task has changed in a way that its holder should look at: wish or limit.
    async fn notify(&self, to: &Peer, leader: Epoch, task: &TaskId) -> Result<(), CallError>;

    /// The identities of a task's destination on that node, by which it is claimed: its own first, then other names for
    /// it. Judges the paths of the spec against the node's policy, and changes nothing.
    async fn resolve(&self, to: &Peer, leader: Epoch, spec: &TaskSpec) -> Result<Vec<String>, CallError>;

    /// Asks the runner to give back all it holds and to take nothing.
    async fn interrupt(&self, to: &Peer, leader: Epoch) -> Result<(), CallError>;

    /// What the node's wall clock says, in milliseconds since 1970. Tells the node by how many it was ahead of its peers'.
    async fn clock(&self, _to: &Peer, _offset_ms: Option<i64>) -> Result<u64, CallError> {
        Err(CallError::NoAnswer(String::from("nobody asks clocks here")))
    }
}

/// Calls from a runner to the dispatcher, wherever that is now. Never block a copy.
#[async_trait]
pub trait LeaderClient: Send + Sync + std::fmt::Debug {
    /// The records of these tasks have changed: look at them.
    async fn changed(&self, tasks: &[TaskId]) -> Result<(), CallError>;

    /// Where running tasks stand. At most 4 a second and task.
    async fn progress(&self, updates: &[(TaskId, Progress)]) -> Result<(), CallError>;
}

/// A task given to a runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Which task.
    pub task: TaskId,
    /// The grant of its claim.
    pub epoch: Epoch,
    /// To which process.
    pub incarnation: Incarnation,
    /// By whom.
    pub leader: Epoch,
}

/// What a runner says to an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AssignResponse {
    /// It will start it, or has.
    Accepted,
    /// It will not, and nothing of it has run or will.
    Refused {
        /// `EOverloaded`, `EPermission`, `ERunnerInterrupt` (it is stopping), `EFenced` (a lower epoch), ...
        code: Code,
        /// For people.
        why: String,
    },
}

/// What a runner knows of an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignmentStatus {
    /// Nothing, and it will refuse it from now on.
    Unknown,
    /// It runs, or will.
    Held,
    /// It will run, and has not begun: what it waits for.
    Waits(StartStage),
    /// It has ended; the record says how, or will.
    Ended,
}

/// How far a runner is with an assignment that it has not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartStage {
    /// It reads the task's record.
    Reading,
    /// It has no right to write yet: its lease is to be renewed.
    Leasing,
    /// It opens the volumes and waits for the destination's lock.
    Opening,
    /// It is about to begin, and stores that.
    Storing,
}

/// A call without an answer that can be relied on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It may or may not have arrived.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// It was understood and refused.
    #[error("{code}: {why}")]
    Refused {
        /// Which error.
        code: Code,
        /// For people.
        why: String,
    },
    /// Another process answers at that address than the one it is for; nothing was done.
    #[error("somebody else answers: {0}")]
    Misdirected(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(center: Option<&str>) -> LocalIdentity {
        let node = NodeId::new("n1").unwrap();
        let known = CenterId::default();
        center.map(|center| known.set(center.to_owned()));
        LocalIdentity { center: known, node, incarnation: Incarnation(String::from("i1")) }
    }

    #[test]
    fn a_call_is_for_one_life_of_one_node_of_one_center() {
        let here = identity(Some("c1"));
        let peer = Peer { address: String::new(), node: here.node.clone(), incarnation: here.incarnation.clone() };
        let addressee = Addressee::new(&here.center, &peer);
        assert_eq!(here.check(&addressee), Ok(()));
        for wrong in [
            Addressee { center: Some(String::from("c2")), ..addressee.clone() },
            Addressee { node: Some(String::from("n2")), ..addressee.clone() },
            Addressee { incarnation: Some(String::from("i2")), ..addressee.clone() },
        ] {
            let Err(CallError::Misdirected(why)) = here.check(&wrong) else { panic!("{wrong:?}") };
            assert!(why.contains("node n1, process i1, of center c1"), "{why}");
        }
        // Who has joined no center yet is not meant by a member of one.
        assert!(identity(None).check(&addressee).is_err());
        assert_eq!(here.check(&Addressee::default()), Ok(()), "an older caller says nothing");
    }
}
