//! Declares what the services ask of the roles of this node: of the leader, while this node leads, and of its runner.
//!
//! Both come and go while the process lives. The services hold a [`watch`] of them and look at each call.

use super::error::RpcError;
use crate::clock::ClockOffset;
use crate::dispatcher::Latency;
use crate::model::{
    DrainMode, Epoch, NodeId, Progress, Registration, Submission, TaskChange, TaskId, TaskRecord, TaskSpec, TaskState,
};
use crate::peers::{AssignResponse, Assignment, AssignmentStatus};
use async_trait::async_trait;
use blockhaul_engine::error::Result;
use std::sync::Arc;
use tokio::sync::watch;

/// Tasks in the order of their ids.
pub type TaskRecords = Vec<Arc<TaskRecord>>;

/// What clients and runners may ask of the dispatcher that leads.
#[async_trait]
pub trait LeaderApi: Send + Sync + std::fmt::Debug {
    /// Stores a task, or finds the one that is stored under the same id with the same work.
    async fn submit(&self, order: Submission) -> Result<Arc<TaskRecord>>;

    /// A task with its latest progress. `ENotFound`.
    async fn get(&self, task: &TaskId) -> Result<Arc<TaskRecord>>;

    /// A task as it is now and at each change, until the sender is dropped: then another node leads, or it is gone.
    async fn watch(&self, task: &TaskId) -> Result<watch::Receiver<Arc<TaskRecord>>>;

    /// At most `max` tasks in the order of their ids, beginning after `after`.
    async fn list(&self, state: Option<TaskState>, after: Option<&TaskId>, max: usize) -> Result<TaskRecords>;

    /// Changes what is wanted of a task. `ENotFound`; `EUnsupported` if its kind cannot do that.
    async fn change(&self, task: &TaskId, change: TaskChange) -> Result<Arc<TaskRecord>>;

    /// Deletes a task that has ended; what it said last. `ENotFound`, `EBusy`.
    async fn remove(&self, task: &TaskId) -> Result<Arc<TaskRecord>>;

    /// Every node that is registered, drains, or holds a task, in the order of their names.
    async fn runners(&self) -> Result<Vec<RunnerInfo>>;

    /// Keeps new tasks from a node, or stops to. The number of tasks that it holds.
    async fn drain(&self, node: &NodeId, drain: DrainMode) -> Result<u32>;

    /// An operator's word that nothing of a node can write any more. The number of tasks that went on.
    async fn fence(&self, node: &NodeId) -> Result<u32>;

    /// The center as a whole.
    async fn status(&self) -> Result<CenterStatus>;

    /// The center in numbers.
    async fn numbers(&self) -> Result<CenterMetrics>;

    /// The records of these tasks have changed.
    async fn changed(&self, tasks: Vec<TaskId>) -> Result<()>;

    /// Where running tasks stand.
    async fn progress(&self, updates: Vec<(TaskId, Progress)>) -> Result<()>;
}

/// A node as the dispatcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunnerInfo {
    /// Its name.
    pub node: NodeId,
    /// What it says of itself; `None` if it is not there.
    pub registration: Option<Registration>,
    /// Whether an operator keeps new tasks from it.
    pub draining: bool,
    /// Tasks that it holds.
    pub running: u32,
    /// Its wall clock against its peers', once it was asked.
    pub clock: Option<ClockInfo>,
}

/// A node's wall clock as the leader sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockInfo {
    /// By how many milliseconds it is ahead of its peers'.
    pub offset_ms: i64,
    /// Whether that is more than it should be.
    pub is_off: bool,
}

/// The center as the dispatcher sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CenterStatus {
    /// Tells centers apart.
    pub center: String,
    /// Who leads.
    pub leader: NodeId,
    /// Where.
    pub address: String,
    /// Since which transaction.
    pub epoch: Epoch,
    /// Registered ones.
    pub runners: u32,
    /// How often the processes of all registered nodes were started before.
    pub restarts: u64,
    /// How many there are of each state.
    pub tasks: Vec<(TaskState, u64)>,
    /// Records that cannot be read and are left alone.
    pub unreadable: Vec<String>,
}

/// The center in numbers, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CenterMetrics {
    /// Of this term.
    pub epoch: Epoch,
    /// How many there are of each state.
    pub tasks: Vec<(TaskState, u64)>,
    /// Records that cannot be read.
    pub unreadable: u64,
    /// Sizes of the sources of running copies.
    pub planned_bytes: u64,
    /// What of them is durable.
    pub durable_bytes: u64,
    /// How fast they are together.
    pub rate_bytes_per_second: u64,
    /// Tasks given to runners in this term.
    pub assignments: u64,
    /// From submission to assignment.
    pub queue_wait: Latency,
    /// From the decision to the runner's acceptance.
    pub assignment: Latency,
    /// Writes to the coordination service.
    pub store: Latency,
}

/// What the dispatcher may ask of this node's runner.
#[async_trait]
pub trait RunnerApi: Send + Sync + std::fmt::Debug {
    /// See [`RunnerClient::assign`](crate::peers::RunnerClient::assign).
    async fn assign(&self, assignment: Assignment) -> Result<AssignResponse>;

    /// See [`RunnerClient::query`](crate::peers::RunnerClient::query).
    async fn query(&self, assignment: Assignment) -> Result<AssignmentStatus>;

    /// See [`RunnerClient::notify`](crate::peers::RunnerClient::notify).
    async fn notify(&self, leader: Epoch, task: TaskId) -> Result<()>;

    /// See [`RunnerClient::resolve`](crate::peers::RunnerClient::resolve).
    async fn resolve(&self, leader: Epoch, spec: TaskSpec) -> Result<Vec<String>>;

    /// See [`RunnerClient::interrupt`](crate::peers::RunnerClient::interrupt).
    async fn interrupt(&self, leader: Epoch) -> Result<()>;
}

/// Who leads, as this node knows.
#[derive(Clone, Debug, Default)]
pub struct Leadership {
    /// The dispatcher, while this node leads.
    pub leader: Option<Arc<dyn LeaderApi>>,
    /// `HOST:PORT` of the node that leads, if that is known.
    pub address: Option<String>,
}

/// The roles of this node, as they come and go.
#[derive(Clone, Debug)]
pub struct NodeRoles {
    /// The dispatcher, here or elsewhere.
    pub leadership: watch::Receiver<Leadership>,
    /// Whether this node has roles: not while it starts or stops, nor while its storage network is lost.
    pub serving: watch::Receiver<bool>,
    /// The runner, once it can take calls.
    pub runner: watch::Receiver<Option<Arc<dyn RunnerApi>>>,
    /// How far this node's wall clock is from its peers', once a leader has told it.
    pub clock: watch::Sender<Option<ClockOffset>>,
}

impl NodeRoles {
    /// The dispatcher of this node.
    ///
    /// # Errors
    /// `ENotLeader` with the address of the one that leads.
    pub fn leader(&self) -> Result<Arc<dyn LeaderApi>, RpcError> {
        let Leadership { leader, address } = self.leadership.borrow().clone();
        leader.ok_or_else(|| RpcError::not_leader(address))
    }
}
