//! Provides a dispatcher that records its requests, a runner without a dispatcher, and nodes made of them.

use crate::access::AccessControl;
use crate::attempt_log::AttemptLogs;
use crate::audit::AuditLog;
use crate::clock::HostClock;
use crate::coord::bootstrap::BootstrappingClient;
use crate::coord::embedded::Embedded;
use crate::coord::session_keeper::SessionKeeper;
use crate::dispatcher::{
    ChangeFeed, DispatcherHandle, DispatcherRequest as Request, Mutation, Page, Query, RunnerSummary, Status,
    TaskChange,
};
use crate::execution::{CompareJob, CopyJob, Execution, ExecutionHandle, Executor, HookJob, Work};
use crate::model::{
    CopyTask, Drain, Epoch, Incarnation, Leader, NodeId, NoopTask, OpId, Progress, Registration, Submission,
    TaskCommand, TaskId, TaskRecord, TaskSpec, TaskState, TaskVolume,
};
use crate::order::OrderVerifier;
use crate::peers::{CallError, CenterId, LeaderClient, LocalIdentity, Peer};
use crate::rpc::calls::GrpcRunnerClient;
use crate::rpc::channels::Channels;
use crate::rpc::client::CenterClient;
use crate::rpc::listener::{Listener, Protection};
use crate::rpc::local_roles::{Leadership, NodeRoles};
use crate::rpc::tls::Tls;
use crate::rpc::wire;
use crate::runner::{Runner, RunnerConfig, RunnerDependencies, RunnerHandle, StateDir, Stopped};
use async_trait::async_trait;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// Tasks in memory; none ever runs.
#[derive(Debug, Default)]
pub(super) struct MockDispatcher {
    pub(super) tasks: Mutex<BTreeMap<TaskId, watch::Sender<Arc<TaskRecord>>>>,
    pub(super) changed: Mutex<Vec<TaskId>>,
    /// Number of terms so far, and the changes of the present one.
    feed: Mutex<(i64, Option<ChangeFeed>)>,
    pub(super) progress: Mutex<Vec<(TaskId, Progress)>>,
    /// Registration of the only node; without, it drains.
    pub(super) registered: Mutex<Option<Registration>>,
}

pub(super) fn record(id: &str) -> TaskRecord {
    let spec = TaskSpec::Noop(NoopTask::new(1, None));
    TaskRecord::new(Submission::new(TaskId::new(id).unwrap(), 0, 5, spec), 0)
}

fn error(code: Code, message: &str) -> Error {
    Error::new(code, Side::Caller, Operation::Parse, message)
}

impl MockDispatcher {
    /// Changes a task without a request.
    pub(super) fn edit(&self, id: &TaskId, change: impl FnOnce(&mut TaskRecord)) {
        let tasks = self.tasks.lock().unwrap();
        tasks[id].send_modify(|task| change(Arc::make_mut(task)));
        self.feed(|feed| feed.push(TaskChange::of(&tasks[id].borrow(), 1)));
    }

    /// Stores a task.
    pub(super) fn put(&self, task: TaskRecord) {
        self.feed(|feed| feed.push(TaskChange::of(&task, 0)));
        self.tasks.lock().unwrap().insert(task.id.clone(), watch::Sender::new(Arc::new(task)));
    }

    /// Does something with the changes of the present term.
    fn feed<T>(&self, act: impl FnOnce(&mut ChangeFeed) -> T) -> T {
        let mut locked = self.feed.lock().unwrap();
        let (term, feed) = &mut *locked;
        act(feed.get_or_insert_with(|| ChangeFeed::new(Epoch(*term), 0)))
    }

    /// Begins a new term.
    fn begin_term(&self) {
        let mut locked = self.feed.lock().unwrap();
        *locked = (locked.0 + 1, None);
    }

    /// Serves requests until the handle and its clones are gone.
    fn serve(self: &Arc<Self>) -> DispatcherHandle {
        let (handle, mut requests) = DispatcherHandle::new();
        let mock = Arc::clone(self);
        mock.begin_term();
        tokio::spawn(async move {
            while let Some(request) = requests.recv().await {
                mock.answer(request);
            }
        });
        handle
    }

    fn answer(&self, request: Request) {
        // A caller that does not wait any more needs no answer.
        match request {
            Request::Submit(order, _, reply) => drop(reply.send(self.submit(*order))),
            Request::Get(id, reply) => drop(reply.send(self.get(&id))),
            Request::List(query, reply) => drop(reply.send(Ok(self.list(&query)))),
            Request::Watch(id, reply) => drop(reply.send(self.watch(&id))),
            Request::Feed(reply) => drop(reply.send(Ok(self.feed(|feed| feed.reader())))),
            Request::Snapshot(reply) => {
                let tasks = self.tasks.lock().unwrap();
                let all = || tasks.values().map(|task| TaskChange::of(&task.borrow(), 0)).collect();
                drop(reply.send(Ok(self.feed(|feed| feed.snapshot(all)))));
            }
            Request::Mutate(id, mutation, _, reply) => drop(reply.send(self.mutate(&id, &mutation))),
            Request::Runners(reply) => drop(reply.send(Ok(vec![self.node()]))),
            Request::Include(_, reply) => drop(reply.send(Ok(false))),
            Request::Drain { reply, .. } => drop(reply.send(Ok(3))),
            Request::DrainIdle { reply, .. } => drop(reply.send(Ok(Vec::new()))),
            Request::Fence(_, _, reply) => drop(reply.send(Ok(Vec::new()))),
            Request::Status(reply) => drop(reply.send(Ok(status()))),
            Request::Schedule(name, _, _, reply) | Request::GetSchedule(name, reply) => {
                drop(reply.send(Err(error(Code::NotFound, &format!("no schedule {name}")))));
            }
            Request::Settings { reply, .. } => drop(reply.send(Ok(Default::default()))),
            Request::ListSchedules(_, reply) => drop(reply.send(Ok(Vec::new()))),
            Request::Changed(tasks) => self.changed.lock().unwrap().extend(tasks),
            Request::Progress(updates) => self.progress.lock().unwrap().extend(updates),
        }
    }

    fn node(&self) -> RunnerSummary {
        match self.registered.lock().unwrap().clone() {
            Some(there) => RunnerSummary { registration: Some(there), drain: None, ..draining_node() },
            None => draining_node(),
        }
    }

    fn submit(&self, order: Submission) -> Result<Arc<TaskRecord>> {
        let Ok(known) = self.get(&order.id) else {
            self.put(TaskRecord::new(order.clone(), 0));
            return self.get(&order.id);
        };
        if known.spec == order.spec { Ok(known) } else { Err(error(Code::Exists, "another task has that id")) }
    }

    fn get(&self, task: &TaskId) -> Result<Arc<TaskRecord>> {
        Ok(Arc::clone(&self.watch(task)?.borrow()))
    }

    fn watch(&self, task: &TaskId) -> Result<watch::Receiver<Arc<TaskRecord>>> {
        let missing = || error(Code::NotFound, &format!("no task {task}"));
        self.tasks.lock().unwrap().get(task).map(watch::Sender::subscribe).ok_or_else(missing)
    }

    fn list(&self, query: &Query) -> Page {
        let tasks = self.tasks.lock().unwrap();
        let from = query.after.as_ref().map_or(Bound::Unbounded, Bound::Excluded);
        let later = tasks.range::<TaskId, _>((from, Bound::Unbounded)).map(|(_, task)| Arc::clone(&task.borrow()));
        let mut found = later.filter(|task| query.state.is_none_or(|state| task.state == state));
        let tasks: Vec<_> = found.by_ref().take(query.limit).collect();
        let next = found.next().and_then(|_| tasks.last().map(|last| last.id.clone()));
        Page { tasks, next }
    }

    fn mutate(&self, task: &TaskId, mutation: &Mutation) -> Result<Arc<TaskRecord>> {
        let last = self.get(task)?;
        match mutation {
            Mutation::Command(TaskCommand::Cancel) => self.edit(task, |task| task.state = TaskState::Cancelled),
            Mutation::Remove => {
                self.tasks.lock().unwrap().remove(task);
                self.feed(|feed| feed.push(TaskChange::removed(&last, 0)));
                return Ok(last);
            }
            Mutation::Command(_) | Mutation::Confirm(_) => {
                return Err(error(Code::Unsupported, "only copies can do that"));
            }
        }
        self.get(task)
    }
}

fn draining_node() -> RunnerSummary {
    let drain = Some(Drain { since_ms: 0, now: false, until_ms: None, op: OpId::fresh() });
    let node = NodeId::new("n1").unwrap();
    RunnerSummary {
        node,
        registration: None,
        tasks: 3,
        drain,
        clock_offset_ms: None,
        excluded: None,
        is_unreadable: false,
        level: 0,
        idle_since_ms: None,
        last_ended: None,
        failures: 0,
        refused: Vec::new(),
    }
}

fn status() -> Status {
    Status {
        leader: Leader::example("n1"),
        epoch: Epoch(9),
        tasks: vec![(TaskState::Pending, 7)],
        undecodable: vec![(String::from("/tasks/00/x"), String::from("no JSON"))],
        runners: 1,
        level: Some(2),
        restarts: 2,
        last_successes: Default::default(),
        running: Default::default(),
        metrics: Default::default(),
    }
}

/// A runner that has registered and does nothing more: a task that it accepts never begins.
pub(super) struct IdleRunner {
    pub(super) handle: RunnerHandle,
    /// Not polled any more.
    _running: Pin<Box<dyn Future<Output = Stopped> + Send>>,
    _folder: tempfile::TempDir,
}

impl IdleRunner {
    pub(super) async fn start(slots: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let state = Arc::new(StateDir::lock(folder.path()).unwrap());
        let store = Arc::new(Embedded::open(&folder.path().join("center.redb")).unwrap());
        let keeper = SessionKeeper::new(Arc::new(BootstrappingClient::new(store, CenterId::default(), state.clone())));
        let LocalIdentity { node, incarnation, .. } = identity();
        let config = RunnerConfig { slots, ..RunnerConfig::new(node, incarnation, String::from("127.0.0.1:1")) };
        let (executor, leader) = (Arc::new(HangingExecutor), Arc::new(NoLeader));
        let runner = Runner::new(config, RunnerDependencies { executor, leader, clock: Arc::new(HostClock), state });
        let handle = runner.handle();
        let mut running: Pin<Box<dyn Future<Output = Stopped> + Send>> = Box::pin(async move {
            let sessions = keeper.sessions();
            tokio::select! { biased;
                () = keeper.run() => unreachable!("it never ends"),
                stopped = runner.run(sessions, std::future::pending()) => stopped,
            }
        });
        let registered = async {
            while !handle.is_registered() {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::select! { _ = &mut running => unreachable!("no stop was requested"), () = registered => {} }
        Self { handle, _running: running, _folder: folder }
    }
}

/// Never answers where a destination lies.
#[derive(Debug)]
struct HangingExecutor;

#[async_trait]
impl Executor for HangingExecutor {
    async fn resolve(&self, _: &TaskVolume) -> Result<Vec<String>> {
        std::future::pending().await
    }

    fn copy(&self, job: CopyJob, _: Execution) -> Arc<dyn ExecutionHandle> {
        unreachable!("no task begins: {job:?}")
    }

    fn compare(&self, job: CompareJob, _: Execution) -> Arc<dyn ExecutionHandle> {
        unreachable!("no task begins: {job:?}")
    }

    fn run_hook(&self, job: HookJob, _: Execution) -> Arc<dyn ExecutionHandle> {
        unreachable!("no task begins: {job:?}")
    }

    async fn check(&self, work: Work) -> Result<serde_json::Value> {
        match work {
            Work::Hook(_) => Err(error(Code::Permission, "not this hook")),
            Work::Copy(_) | Work::Compare(_) | Work::Nothing => Ok(serde_json::json!({ "checked": true })),
        }
    }

    fn kept(&self) -> Vec<(TaskId, u64)> {
        Vec::new()
    }

    fn forget(&self, _: &TaskId, _: u64) {}
}

/// No node leads.
#[derive(Debug)]
struct NoLeader;

#[async_trait]
impl LeaderClient for NoLeader {
    async fn changed(&self, _: &[TaskId]) -> Result<(), CallError> {
        Err(CallError::NoAnswer(String::from("no node leads")))
    }

    async fn progress(&self, _: &[(TaskId, Progress)]) -> Result<(), CallError> {
        Err(CallError::NoAnswer(String::from("no node leads")))
    }
}

/// A call to an [`IdleRunner`] that is never answered.
pub(super) fn hanging_call() -> wire::ResolveRequest {
    wire::ResolveRequest { leader: 1, spec: Some(wire::Spec::from(&copy())) }
}

/// A valid copy.
pub(super) fn copy() -> TaskSpec {
    TaskSpec::Copy(CopyTask::example("file://n1/in/a", "file://n1/in/b"))
}

/// One node's services, with roles that a test changes.
pub(super) struct Node {
    pub(super) listener: Listener,
    pub(super) leadership: watch::Sender<Leadership>,
    pub(super) serving: watch::Sender<bool>,
    pub(super) runner: watch::Sender<Option<RunnerHandle>>,
    /// Its state directory, where its audit log is.
    pub(super) state: tempfile::TempDir,
    pub(super) logs: AttemptLogs,
}

impl Node {
    pub(super) async fn start() -> Self {
        Self::with_tls(None).await
    }

    pub(super) async fn with_tls(tls: Option<&Tls>) -> Self {
        Self::at("127.0.0.1:0", tls).await
    }

    pub(super) async fn at(address: &str, tls: Option<&Tls>) -> Self {
        Self::open(address, tls, None, None).await
    }

    /// With certificates, and rights by their names.
    pub(super) async fn with_access(tls: &Tls, access: &AccessControl) -> Self {
        Self::open("127.0.0.1:0", Some(tls), Some(access), None).await
    }

    /// Takes only what is signed.
    pub(super) async fn with_orders(orders: &OrderVerifier) -> Self {
        Self::open("127.0.0.1:0", None, None, Some(orders)).await
    }

    async fn open(
        address: &str,
        tls: Option<&Tls>,
        access: Option<&AccessControl>,
        orders: Option<&OrderVerifier>,
    ) -> Self {
        let state = tempfile::tempdir().unwrap();
        let audit = AuditLog::start(state.path(), identity().node).unwrap();
        let protection = Protection { tls: tls.cloned(), access: access.cloned(), orders: orders.cloned(), audit };
        let logs = AttemptLogs::default();
        let (leadership, leadership_seen) = watch::channel(Leadership::default());
        let (runner, runner_seen) = watch::channel(None);
        let (serving, serving_seen) = watch::channel(true);
        let roles = NodeRoles {
            leadership: leadership_seen,
            serving: serving_seen,
            runner: runner_seen,
            clock: watch::Sender::new(None),
            logs: logs.clone(),
            runners: Arc::new(GrpcRunnerClient::new(Channels::default(), center("c"))),
        };
        let listener =
            Listener::open(address.parse().unwrap(), protection, identity(), roles, None, None).await.unwrap();
        Self { listener, leadership, serving, runner, state, logs }
    }

    pub(super) fn address(&self) -> String {
        self.listener.address().to_string()
    }

    /// The process that it is, as its own center knows it.
    pub(super) fn peer(&self) -> Peer {
        let LocalIdentity { node, incarnation, .. } = identity();
        Peer { address: self.address(), node, incarnation }
    }

    /// Makes it the leader, over these tasks.
    pub(super) fn lead(&self, tasks: &Arc<MockDispatcher>) {
        self.leadership.send_replace(Leadership { dispatcher: Some(tasks.serve()), address: Some(self.address()) });
    }

    /// Makes it a follower of another one.
    pub(super) fn follow(&self, leader: Option<&Self>) {
        self.leadership.send_replace(Leadership { dispatcher: None, address: leader.map(Self::address) });
    }
}

/// A center with this identity.
pub(super) fn center(name: &str) -> CenterId {
    let center = CenterId::default();
    center.set(name.to_owned()).unwrap();
    center
}

/// Of every node here.
pub(super) fn identity() -> LocalIdentity {
    let (node, incarnation) = (NodeId::new("n1").unwrap(), Incarnation(String::from("mine")));
    LocalIdentity { center: center("c"), node, incarnation }
}

pub(super) fn client(addresses: &[String]) -> CenterClient {
    CenterClient::new(addresses.to_vec(), Channels::default()).unwrap()
}

pub(super) fn noop(id: &str) -> wire::SubmitRequest {
    let work = wire::spec::Work::Noop(wire::NoopWork { milliseconds: 1, node: None });
    let spec = Some(wire::Spec { work: Some(work) });
    wire::SubmitRequest { id: id.to_owned(), spec, ..wire::SubmitRequest::default() }
}

pub(super) fn name(id: &str) -> wire::TaskName {
    wire::TaskName { id: id.to_owned() }
}
