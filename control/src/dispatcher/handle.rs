//! Passes the requests of clients and runners to the leader's dispatcher, through a handle that any part of the node
//! may hold.

use super::status::{RunnerSummary, Status};
use crate::model::{DrainMode, NodeId, Progress, Submission, TaskCommand, TaskId, TaskRecord, TaskState};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// Requests that wait for the dispatcher; further callers wait.
const REQUESTS_MAX: usize = 1024;

/// Most tasks of one page of a list.
pub(super) const PAGE_MAX: usize = 500;

/// Selects the tasks to list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    /// Only tasks of this state.
    pub state: Option<TaskState>,
    /// Only members of this group.
    pub group: Option<TaskId>,
    /// Only tasks after this one in the order of ids.
    pub after: Option<TaskId>,
    /// Most tasks; 0 and anything above [`PAGE_MAX`] mean [`PAGE_MAX`].
    pub limit: usize,
}

/// Part of a list, in the order of ids.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    /// Tasks of the page.
    pub tasks: Vec<Arc<TaskRecord>>,
    /// Value of `after` for the next page; `None`: this was the last.
    pub next: Option<TaskId>,
}

/// Requested change of one task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mutation {
    /// A client's command.
    Command(TaskCommand),
    /// An operator confirms that the node is off.
    Confirm(NodeId),
    /// The record of an ended task is deleted.
    Remove,
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// One request to the loop.
#[derive(Debug)]
pub(crate) enum Request {
    Submit(Box<Submission>, Reply<Arc<TaskRecord>>),
    Get(TaskId, Reply<Arc<TaskRecord>>),
    List(Query, Reply<Page>),
    Watch(TaskId, Reply<watch::Receiver<Arc<TaskRecord>>>),
    Mutate(TaskId, Mutation, Reply<Arc<TaskRecord>>),
    Runners(Reply<Vec<RunnerSummary>>),
    Drain(NodeId, DrainMode, Reply<usize>),
    Fence(NodeId, Reply<Vec<oneshot::Receiver<Result<Arc<TaskRecord>>>>>),
    Status(Reply<Status>),
    Changed(Vec<TaskId>),
    Progress(Vec<(TaskId, Progress)>),
}

/// Access to the dispatcher of one term. When the term is over, every call returns `ENotLeader`.
#[derive(Clone, Debug)]
pub(crate) struct DispatcherHandle {
    requests: mpsc::Sender<Request>,
}

impl DispatcherHandle {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        (Self { requests }, receiver)
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| not_leader())?;
        answer.await.map_err(|_| not_leader())?
    }

    /// Stores a new task. The same submission again, by its id, returns the existing task.
    ///
    /// # Errors
    /// `EBadRequest`: it is too long for a record. `EUnsupported`: there is no program to fence it by. `EExists`: another
    /// task has that id. `EOverloaded`: there are too many tasks that have not ended. `EUnreachable`: the store does not answer; it may be
    /// submitted again. `ENotLeader`, as from every call: ask the node that leads now.
    pub(crate) async fn submit(&self, order: Submission) -> Result<Arc<TaskRecord>> {
        self.ask(|reply| Request::Submit(Box::new(order), reply)).await
    }

    /// Returns a task.
    ///
    /// # Errors
    /// `ENotFound`.
    pub(crate) async fn get(&self, task: &TaskId) -> Result<Arc<TaskRecord>> {
        self.ask(|reply| Request::Get(task.clone(), reply)).await
    }

    /// Returns a page of tasks.
    ///
    /// # Errors
    /// `ENotLeader`.
    pub(crate) async fn list(&self, query: Query) -> Result<Page> {
        self.ask(|reply| Request::List(query, reply)).await
    }

    /// Returns a task as it is now, and every change of it (merged, if the reader is slow), telemetry included. The
    /// sender is dropped when the term ends or the task's record is deleted: then ask the node that leads.
    ///
    /// # Errors
    /// `ENotFound`.
    pub(crate) async fn watch(&self, task: &TaskId) -> Result<watch::Receiver<Arc<TaskRecord>>> {
        self.ask(|reply| Request::Watch(task.clone(), reply)).await
    }

    /// Changes what a client wants of a task. Cancelling an ended task returns its final state.
    ///
    /// # Errors
    /// `EUnsupported`: it is no copy, and can only be given up. `EBusy`: it has ended or is being cancelled.
    /// `EBadRequest`: a limit of 0. `ENotFound`, `EUnreachable`.
    pub(crate) async fn command(&self, task: &TaskId, command: TaskCommand) -> Result<Arc<TaskRecord>> {
        self.ask(|reply| Request::Mutate(task.clone(), Mutation::Command(command), reply)).await
    }

    /// Deletes the record of an ended task; returns its last content.
    ///
    /// # Errors
    /// `EBusy`: it has not ended, or an earlier attempt may still write its destination. `ENotFound`, `EUnreachable`.
    pub(crate) async fn remove(&self, task: &TaskId) -> Result<Arc<TaskRecord>> {
        self.ask(|reply| Request::Mutate(task.clone(), Mutation::Remove, reply)).await
    }

    /// Returns the registered runners, and nodes that drain.
    ///
    /// # Errors
    /// `ENotLeader`.
    pub(crate) async fn runners(&self) -> Result<Vec<RunnerSummary>> {
        self.ask(Request::Runners).await
    }

    /// Drains a node, or ends that. Returns the number of tasks that the node holds.
    ///
    /// # Errors
    /// `ENotFound`: no such node has ever registered. `EUnreachable`.
    pub(crate) async fn drain(&self, node: &NodeId, desired_state: DrainMode) -> Result<usize> {
        self.ask(|reply| Request::Drain(node.clone(), desired_state, reply)).await
    }

    /// Takes an operator's confirmation that a node is off and writes nothing any more. Returns the number of tasks
    /// that proceed because of it.
    ///
    /// # Errors
    /// `EBusy`: the node is registered, so it is not off. `EUnreachable`.
    pub(crate) async fn fence(&self, node: &NodeId) -> Result<usize> {
        let answers = self.ask(|reply| Request::Fence(node.clone(), reply)).await?;
        let count = answers.len();
        for answer in answers {
            answer.await.map_err(|_| not_leader())??;
        }
        Ok(count)
    }

    /// Returns the status of the center.
    ///
    /// # Errors
    /// `ENotLeader`.
    pub(crate) async fn status(&self) -> Result<Status> {
        self.ask(Request::Status).await
    }

    /// Takes a runner's hint that it has changed these records.
    ///
    /// # Errors
    /// `ENotLeader`.
    pub(crate) async fn changed(&self, tasks: Vec<TaskId>) -> Result<()> {
        self.requests.send(Request::Changed(tasks)).await.map_err(|_| not_leader())
    }

    /// Takes a runner's report of its tasks' progress. Dropped when the queue is full.
    ///
    /// # Errors
    /// `ENotLeader`.
    pub(crate) fn progress(&self, updates: Vec<(TaskId, Progress)>) -> Result<()> {
        match self.requests.try_send(Request::Progress(updates)) {
            Err(mpsc::error::TrySendError::Closed(_)) => Err(not_leader()),
            Ok(()) | Err(mpsc::error::TrySendError::Full(_)) => Ok(()),
        }
    }
}

/// Returns the error of every call when the term is over.
pub(crate) fn not_leader() -> Error {
    let message = "this node no longer leads: retry";
    Error { retryable: true, ..Error::new(Code::NotLeader, Side::Coordination, Operation::Start, message) }
}
