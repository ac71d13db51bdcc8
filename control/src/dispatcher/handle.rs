//! Passes the requests of clients and runners to the leader's dispatcher, through a handle that any part of the node
//! may hold.

use super::drains::DrainAnswer;
use super::feed::{FeedReader, Snapshot};
use super::settings::StoredSettings;
use super::status::{RunnerSummary, Status};
use crate::model::{
    Actor, CatchUp, DrainMode, MemberTemplate, NodeId, Progress, ScheduleName, ScheduleRecord, SettingName,
    SignedOrder, Submission, TaskCommand, TaskId, TaskRecord, TaskState, Template, Trigger,
};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::sync::Arc;
use std::time::Duration;
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

/// Request for a schedule.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NewSchedule {
    /// Its name.
    pub name: ScheduleName,
    /// BLAKE3 of the request, in hexadecimal digits.
    pub request: String,
    /// When it fires.
    pub trigger: Trigger,
    /// IANA name of its time zone.
    pub zone: String,
    /// Tasks that it makes.
    pub template: Template,
    /// Members of the batch, if they are groups; each comes after those that it waits for.
    pub members: Vec<MemberTemplate>,
    /// What happens with instants that nobody was there for.
    pub catch_up: CatchUp,
    /// Number of its ended tasks that are kept.
    pub keep: u32,
    /// Whether it replaces another one of that name.
    pub replace: bool,
    /// Version of the one that it replaces.
    pub if_version: Option<u32>,
    /// Whether the live task of the one that it replaces is cancelled.
    pub cancel_live: bool,
}

/// Command of a client to a schedule.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ScheduleCommand {
    /// Add it, or replace another one.
    Add(Box<NewSchedule>),
    /// Let it make no tasks.
    Pause,
    /// Let it make tasks again.
    Resume,
    /// Make a task now.
    Run,
    /// Make the task of this instant, which its client has signed.
    RunSigned {
        /// Instant, in milliseconds since 1970.
        at_ms: u64,
        /// What was signed.
        order: SignedOrder,
    },
    /// Decide the instants from this time on again, in milliseconds since 1970.
    RefireFrom(u64),
    /// Delete it.
    Remove {
        /// Whether its live task is cancelled.
        cancel_live: bool,
    },
}

/// Schedule as clients see it.
#[derive(Clone, Debug)]
pub(crate) struct ScheduleView {
    /// Its record, with the reason why it makes no task, if there is one.
    pub record: ScheduleRecord,
    /// Its next instants, in milliseconds since 1970.
    pub next_ms: Vec<u64>,
    /// Its last task, while that is live.
    pub live_task: Option<TaskId>,
    /// In the answer to an addition: whether it was there already.
    pub existed: bool,
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T>>;

/// One request to the loop.
#[derive(Debug)]
pub(crate) enum Request {
    Submit(Box<Submission>, Actor, Reply<Arc<TaskRecord>>),
    Get(TaskId, Reply<Arc<TaskRecord>>),
    List(Query, Reply<Page>),
    Watch(TaskId, Reply<watch::Receiver<Arc<TaskRecord>>>),
    /// The changes of all tasks from now on, and the last ones.
    Feed(Reply<FeedReader>),
    /// All tasks, for one who follows them.
    Snapshot(Reply<Arc<Snapshot>>),
    Mutate(TaskId, Mutation, Actor, Reply<Arc<TaskRecord>>),
    Runners(Reply<Vec<RunnerSummary>>),
    /// Ends the exclusion of a node.
    Include(NodeId, Reply<bool>),
    Drain {
        node: NodeId,
        mode: DrainMode,
        lasts: Option<Duration>,
        reply: Reply<usize>,
    },
    DrainIdle {
        count: usize,
        lasts: Option<Duration>,
        reply: Reply<Vec<DrainAnswer>>,
    },
    Fence(NodeId, Actor, Reply<Vec<oneshot::Receiver<Result<Arc<TaskRecord>>>>>),
    Status(Reply<Status>),
    Settings {
        changes: Vec<(SettingName, String)>,
        if_version: Option<u32>,
        reply: Reply<StoredSettings>,
    },
    Schedule(ScheduleName, ScheduleCommand, Actor, Reply<ScheduleView>),
    GetSchedule(ScheduleName, Reply<ScheduleView>),
    ListSchedules(Option<ScheduleName>, Reply<Vec<ScheduleView>>),
    Changed(Vec<TaskId>),
    Progress(Vec<(TaskId, Progress)>),
}

/// Access to the dispatcher of one term. When the term is over, every call returns `ENotLeader`.
#[derive(Clone, Debug)]
pub(crate) struct DispatcherHandle {
    requests: mpsc::Sender<Request>,
    /// Who asks.
    by: Actor,
}

impl DispatcherHandle {
    pub(crate) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(REQUESTS_MAX);
        (Self { requests, by: Actor::Client(None) }, receiver)
    }

    /// Returns the same for the requests of a client, by the name in its certificate.
    #[must_use]
    pub(crate) fn of_client(&self, name: Option<&str>) -> Self {
        Self { requests: self.requests.clone(), by: Actor::Client(name.map(str::to_owned)) }
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
        self.ask(|reply| Request::Submit(Box::new(order), self.by.clone(), reply)).await
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

    /// Returns the changes of all tasks under this term. They end with the term.
    ///
    /// # Errors
    /// `ENotLeader`.
    pub(crate) async fn feed(&self) -> Result<FeedReader> {
        self.ask(Request::Feed).await
    }

    /// Returns all tasks, for a client that follows them.
    ///
    /// # Errors
    /// `ENotLeader`.
    pub(crate) async fn snapshot(&self) -> Result<Arc<Snapshot>> {
        self.ask(Request::Snapshot).await
    }

    /// Changes what a client wants of a task. Cancelling an ended task returns its final state.
    ///
    /// # Errors
    /// `EUnsupported`: it is no copy, and can only be given up. `EBusy`: it has ended or is being cancelled.
    /// `EBadRequest`: a limit of 0. `ENotFound`, `EUnreachable`.
    pub(crate) async fn command(&self, task: &TaskId, command: TaskCommand) -> Result<Arc<TaskRecord>> {
        self.ask(|reply| Request::Mutate(task.clone(), Mutation::Command(command), self.by.clone(), reply)).await
    }

    /// Deletes the record of an ended task; returns its last content.
    ///
    /// # Errors
    /// `EBusy`: it has not ended, or an earlier attempt may still write its destination. `ENotFound`, `EUnreachable`.
    pub(crate) async fn remove(&self, task: &TaskId) -> Result<Arc<TaskRecord>> {
        self.ask(|reply| Request::Mutate(task.clone(), Mutation::Remove, self.by.clone(), reply)).await
    }

    /// Returns the registered runners, and nodes that drain.
    ///
    /// # Errors
    /// `ENotLeader`.
    pub(crate) async fn runners(&self) -> Result<Vec<RunnerSummary>> {
        self.ask(Request::Runners).await
    }

    /// Ends the exclusion of a node that failed several tasks in a row. Returns whether it was excluded.
    ///
    /// # Errors
    /// `ENotLeader`.
    pub(crate) async fn include(&self, node: &NodeId) -> Result<bool> {
        self.ask(|reply| Request::Include(node.clone(), reply)).await
    }

    /// Drains a node, for this time or until it is undone; or ends that. Returns the number of tasks that the node holds.
    ///
    /// # Errors
    /// `ENotFound`: no such node has ever registered. `EBusy`: as many nodes are drained as the settings let be.
    /// `EUnreachable`.
    pub(crate) async fn drain(&self, node: &NodeId, mode: DrainMode, lasts: Option<Duration>) -> Result<usize> {
        self.ask(|reply| Request::Drain { node: node.clone(), mode, lasts, reply }).await
    }

    /// Drains up to `count` nodes that hold no task; returns those that are drained by now.
    ///
    /// # Errors
    /// `EUnreachable`: none could be drained.
    pub(crate) async fn drain_idle(&self, count: usize, lasts: Option<Duration>) -> Result<Vec<NodeId>> {
        let answers = self.ask(|reply| Request::DrainIdle { count, lasts, reply }).await?;
        let (mut drained, mut last) = (Vec::new(), None);
        for (node, answer) in answers {
            match answer.await.map_err(|_| not_leader())? {
                Ok(_) => drained.push(node),
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if drained.is_empty() => Err(error),
            _ => Ok(drained),
        }
    }

    /// Takes an operator's confirmation that a node is off and writes nothing any more. Returns the number of tasks
    /// that proceed because of it.
    ///
    /// # Errors
    /// `EBusy`: the node is registered, so it is not off. `EUnreachable`.
    pub(crate) async fn fence(&self, node: &NodeId) -> Result<usize> {
        let answers = self.ask(|reply| Request::Fence(node.clone(), self.by.clone(), reply)).await?;
        let count = answers.len();
        for answer in answers {
            answer.await.map_err(|_| not_leader())??;
        }
        Ok(count)
    }

    /// Returns the settings and their version, after these changes: all of them are made, or none.
    ///
    /// # Errors
    /// `EBadRequest`: a value is invalid. `EExists`: the settings have another version. `EUnreachable`.
    pub(crate) async fn settings(
        &self,
        changes: Vec<(SettingName, String)>,
        if_version: Option<u32>,
    ) -> Result<StoredSettings> {
        self.ask(|reply| Request::Settings { changes, if_version, reply }).await
    }

    /// Carries out a command to a schedule; returns the schedule as it is then, or was before its deletion.
    ///
    /// # Errors
    /// `ENotFound`. `EExists`: another schedule has that name, or another version of it. `EBadRequest`: its trigger or its
    /// template is invalid, or it has no instant. `EBusy`: its last task is live. `EOverloaded`: all schedules together
    /// would fire too often. `EUnreachable`.
    pub(crate) async fn schedule(&self, name: &ScheduleName, command: ScheduleCommand) -> Result<ScheduleView> {
        self.ask(|reply| Request::Schedule(name.clone(), command, self.by.clone(), reply)).await
    }

    /// Returns a schedule.
    ///
    /// # Errors
    /// `ENotFound`.
    pub(crate) async fn get_schedule(&self, name: &ScheduleName) -> Result<ScheduleView> {
        self.ask(|reply| Request::GetSchedule(name.clone(), reply)).await
    }

    /// Returns at most [`PAGE_MAX`] schedules after this one, in the order of their names.
    ///
    /// # Errors
    /// `ENotLeader`.
    pub(crate) async fn list_schedules(&self, after: Option<ScheduleName>) -> Result<Vec<ScheduleView>> {
        self.ask(|reply| Request::ListSchedules(after, reply)).await
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
