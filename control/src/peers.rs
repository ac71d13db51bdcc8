//! Defines the calls between nodes: the seam below which there is gRPC, or a simulation.
//!
//! Calls are hints and telemetry: each can be lost, repeated or late without harm, because what follows from it is
//! decided by a version-checked write. Every call names its addressee, and any other process refuses it without effect:
//! an address may have become another node's, or another center's. Every call of a dispatcher carries its epoch; a
//! runner refuses a lower one than it has seen.

use crate::model::{Epoch, Incarnation, Leader, NodeId, Progress, Registration, TaskId, TaskSpec};
use async_trait::async_trait;
use blockhaul_engine::error::{Code, Error};
use std::sync::{Arc, OnceLock};

/// Identity of the center that this process has joined, once it has; see [`Meta::center`](crate::model::Meta).
pub type CenterId = Arc<OnceLock<String>>;

/// One incarnation of a node, and the address at which it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Address, as `HOST:PORT`.
    pub address: String,
    /// Its node.
    pub node: NodeId,
    /// Its incarnation.
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

/// Addressee of a call. A field that is `None` was not sent, as by an older caller, and is not checked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addressee {
    /// Center that the caller belongs to.
    pub center: Option<String>,
    /// Node that the caller means to reach.
    pub node: Option<String>,
    /// Incarnation of that node.
    pub incarnation: Option<String>,
}

impl Addressee {
    /// Names a process, as a member of `center` knows it.
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
    /// Center that it has joined.
    pub center: CenterId,
    /// Its node.
    pub node: NodeId,
    /// Its incarnation.
    pub incarnation: Incarnation,
}

impl LocalIdentity {
    /// Checks that a call is for this process.
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
            "the call is for node {}, process {}, of center {}; this is node {}, process {}, of {}",
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
    /// Assigns a task to a runner: the claim names it already.
    async fn assign(&self, to: &Peer, assignment: Assignment) -> Result<AssignResponse, CallError>;

    /// Asks for the state of an assignment. A runner that does not know it will refuse it from now on.
    async fn query(&self, to: &Peer, assignment: Assignment) -> Result<AssignmentStatus, CallError>;

    /// Notifies a holder that its task's record has changed: desired state or limit.
    async fn notify(&self, to: &Peer, leader: Epoch, task: &TaskId) -> Result<(), CallError>;

    /// Returns the identities of a task's destination on that node, by which it is claimed: its own first. Checks the
    /// paths of the spec against the node's policy, and changes nothing.
    async fn resolve(&self, to: &Peer, leader: Epoch, spec: &TaskSpec) -> Result<Vec<String>, CallError>;

    /// Asks the runner to return all its tasks and to accept none.
    async fn interrupt(&self, to: &Peer, leader: Epoch) -> Result<(), CallError>;

    /// Returns the node's wall clock, in milliseconds since 1970. Tells the node by how many its clock was ahead of its
    /// peers'.
    async fn clock(&self, _to: &Peer, _offset_ms: Option<i64>) -> Result<u64, CallError> {
        Err(CallError::NoAnswer(String::from("clocks are not measured here")))
    }

    /// Checks a task on that node without doing it. Returns the plan or the refusal. Bounded by 6 s instead.
    async fn check(&self, _to: &Peer, _spec: &TaskSpec) -> Result<Result<serde_json::Value, Error>, CallError> {
        Err(CallError::NoAnswer(String::from("tasks are not checked here")))
    }

    /// Reads a part of the log that the node keeps of one of its attempts.
    async fn attempt_log(&self, _to: &Peer, _query: &LogQuery) -> Result<LogPart, CallError> {
        Err(CallError::NoAnswer(String::from("logs are not kept here")))
    }
}

/// Asks for a part of the log of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// Task of the attempt.
    pub task: TaskId,
    /// When the attempt was assigned, as its record says, in milliseconds since 1970.
    pub assigned_ms: u64,
    /// Bytes of the log that the caller has read or passed over.
    pub offset: u64,
}

/// Part of the log of an attempt: whole lines, if the log has been written properly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPart {
    /// Position of the text in the log. What is between the asked position and this one was dropped.
    pub offset: u64,
    /// The text; empty if nothing is there yet.
    pub text: Vec<u8>,
    /// Whether the attempt may still log.
    pub is_live: bool,
    /// Why there is no log.
    pub missing: Option<String>,
}

/// Calls from a runner to the dispatcher, wherever it is now. Never block a copy.
#[async_trait]
pub trait LeaderClient: Send + Sync + std::fmt::Debug {
    /// Hints that the records of these tasks have changed.
    async fn changed(&self, tasks: &[TaskId]) -> Result<(), CallError>;

    /// Reports the progress of running tasks. At most 4 a second and task.
    async fn progress(&self, updates: &[(TaskId, Progress)]) -> Result<(), CallError>;
}

/// Task assigned to a runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The task.
    pub task: TaskId,
    /// Grant of its claim.
    pub epoch: Epoch,
    /// Process that it is assigned to.
    pub incarnation: Incarnation,
    /// Epoch of the leader that assigns it.
    pub leader: Epoch,
}

/// Answer of a runner to an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AssignResponse {
    /// It will start the task, or has.
    Accepted,
    /// It will not, and nothing of it has run or will.
    Refused {
        /// `EOverloaded`, `EPermission`, `ERunnerInterrupt` (it is stopping), `EFenced` (a lower epoch), ...
        code: Code,
        /// Reason as text.
        why: String,
    },
}

/// State of an assignment on a runner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AssignmentStatus {
    /// The runner does not know it, and will refuse it from now on.
    Unknown,
    /// It runs, or will.
    Held,
    /// It has not begun, and waits for this.
    Waits(StartStage),
    /// It has ended; the record has its outcome, or will.
    Ended,
}

/// Stage of an assignment that has not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartStage {
    /// It reads the task's record.
    Reading,
    /// It waits for its lease to be renewed before it may write.
    Leasing,
    /// It opens the volumes and waits for the destination's lock.
    Opening,
    /// It stores that it begins.
    Storing,
}

/// Call without a reliable answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The call may or may not have arrived.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// The call was received and refused.
    #[error("{code}: {why}")]
    Refused {
        /// Error code.
        code: Code,
        /// Reason as text.
        why: String,
    },
    /// Another process than the addressee answers at that address; nothing was done.
    #[error("another process answers: {0}")]
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
