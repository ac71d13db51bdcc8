//! Provides a dispatcher and a runner that record their calls, and nodes made of them.

use async_trait::async_trait;
use blockhaul_control::model::{
    DrainMode, Epoch, Incarnation, NodeId, NoopTask, Progress, Submission, TaskChange, TaskId, TaskRecord, TaskSpec,
    TaskState,
};
use blockhaul_control::peers::{AssignResponse, Assignment, AssignmentStatus, CenterId, LocalIdentity, Peer};
use blockhaul_control::rpc::channels::Channels;
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::listener::Listener;
use blockhaul_control::rpc::local_roles::{
    CenterMetrics, CenterStatus, LeaderApi, Leadership, NodeRoles, RunnerApi, RunnerInfo,
};
use blockhaul_control::rpc::tls::Tls;
use blockhaul_control::rpc::wire;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// Tasks in memory; nothing ever runs.
#[derive(Debug, Default)]
pub(crate) struct MockLeader {
    pub(crate) tasks: Mutex<BTreeMap<TaskId, watch::Sender<Arc<TaskRecord>>>>,
    pub(crate) changed: Mutex<Vec<TaskId>>,
    pub(crate) progress: Mutex<Vec<(TaskId, Progress)>>,
}

impl MockLeader {
    /// Changes a task behind everybody's back.
    pub(crate) fn edit(&self, id: &str, change: impl FnOnce(&mut TaskRecord)) {
        let tasks = self.tasks.lock().unwrap();
        tasks[&TaskId::new(id).unwrap()].send_modify(|task| change(Arc::make_mut(task)));
    }

    /// Puts a task there.
    pub(crate) fn put(&self, task: TaskRecord) {
        self.tasks.lock().unwrap().insert(task.id.clone(), watch::Sender::new(Arc::new(task)));
    }
}

pub(crate) fn record(id: &str) -> TaskRecord {
    let spec = TaskSpec::Noop(NoopTask::new(1, None));
    TaskRecord::new(Submission { id: TaskId::new(id).unwrap(), priority: 0, max_attempts: 5, spec }, 0)
}

#[async_trait]
impl LeaderApi for MockLeader {
    async fn submit(&self, order: Submission) -> Result<Arc<TaskRecord>> {
        let Ok(known) = self.get(&order.id).await else {
            self.put(TaskRecord::new(order.clone(), 0));
            return self.get(&order.id).await;
        };
        if known.spec == order.spec {
            return Ok(known);
        }
        Err(Error::new(Code::Exists, Side::Caller, Operation::Parse, "another task has that id"))
    }

    async fn get(&self, task: &TaskId) -> Result<Arc<TaskRecord>> {
        Ok(Arc::clone(&self.watch(task).await?.borrow()))
    }

    async fn watch(&self, task: &TaskId) -> Result<watch::Receiver<Arc<TaskRecord>>> {
        let missing = || Error::new(Code::NotFound, Side::Caller, Operation::Parse, format!("no task {task}"));
        self.tasks.lock().unwrap().get(task).map(watch::Sender::subscribe).ok_or_else(missing)
    }

    async fn list(
        &self,
        state: Option<TaskState>,
        after: Option<&TaskId>,
        most: usize,
    ) -> Result<Vec<Arc<TaskRecord>>> {
        let tasks = self.tasks.lock().unwrap();
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let later = tasks.range::<TaskId, _>((from, Bound::Unbounded)).map(|(_, task)| Arc::clone(&task.borrow()));
        Ok(later.filter(|task| state.is_none_or(|state| task.state == state)).take(most).collect())
    }

    async fn change(&self, task: &TaskId, change: TaskChange) -> Result<Arc<TaskRecord>> {
        match change {
            TaskChange::Cancel => self.edit(task.as_str(), |task| task.state = TaskState::Cancelled),
            TaskChange::Pause | TaskChange::Resume | TaskChange::Limit(_) => {
                return Err(Error::new(Code::Unsupported, Side::Caller, Operation::Parse, "only copies can do that"));
            }
        }
        self.get(task).await
    }

    async fn remove(&self, task: &TaskId) -> Result<Arc<TaskRecord>> {
        let last = self.get(task).await?;
        self.tasks.lock().unwrap().remove(task);
        Ok(last)
    }

    async fn runners(&self) -> Result<Vec<RunnerInfo>> {
        let node = NodeId::new("n1")?;
        Ok(vec![RunnerInfo { node, registration: None, draining: true, running: 3, clock: None }])
    }

    async fn drain(&self, _: &NodeId, _: DrainMode) -> Result<u32> {
        Ok(3)
    }

    async fn fence(&self, _: &NodeId) -> Result<u32> {
        Ok(2)
    }

    async fn status(&self) -> Result<CenterStatus> {
        Ok(CenterStatus {
            center: String::from("c"),
            leader: NodeId::new("n1")?,
            address: String::from("here:1"),
            epoch: Epoch(9),
            runners: 1,
            restarts: 2,
            tasks: vec![(TaskState::Pending, 7)],
            unreadable: vec![String::from("/tasks/00/x")],
        })
    }

    async fn numbers(&self) -> Result<CenterMetrics> {
        Err(Error::new(Code::Unsupported, Side::Caller, Operation::Stat, "the stand-in does not count"))
    }

    async fn changed(&self, tasks: Vec<TaskId>) -> Result<()> {
        self.changed.lock().unwrap().extend(tasks);
        Ok(())
    }

    async fn progress(&self, updates: Vec<(TaskId, Progress)>) -> Result<()> {
        self.progress.lock().unwrap().extend(updates);
        Ok(())
    }
}

/// Says what it is told to say.
#[derive(Debug)]
pub(crate) struct MockRunner {
    pub(crate) answer: AssignResponse,
}

#[async_trait]
impl RunnerApi for MockRunner {
    async fn assign(&self, _: Assignment) -> Result<AssignResponse> {
        Ok(self.answer.clone())
    }

    async fn query(&self, assignment: Assignment) -> Result<AssignmentStatus> {
        Ok(if assignment.incarnation == Incarnation(String::from("mine")) {
            AssignmentStatus::Held
        } else {
            AssignmentStatus::Unknown
        })
    }

    async fn notify(&self, leader: Epoch, _: TaskId) -> Result<()> {
        if leader < Epoch(5) {
            return Err(Error::new(Code::Fenced, Side::Coordination, Operation::Start, "a later leader has called"));
        }
        Ok(())
    }

    async fn resolve(&self, _: Epoch, spec: TaskSpec) -> Result<Vec<String>> {
        Ok(vec![format!("{spec:?}")])
    }

    async fn interrupt(&self, _: Epoch) -> Result<()> {
        std::future::pending().await
    }
}

/// One node's services, with roles that a test changes.
pub(crate) struct Node {
    pub(crate) listener: Listener,
    pub(crate) leadership: watch::Sender<Leadership>,
    pub(crate) serving: watch::Sender<bool>,
    pub(crate) runner: watch::Sender<Option<Arc<dyn RunnerApi>>>,
}

impl Node {
    pub(crate) async fn start() -> Self {
        Self::with_tls(None).await
    }

    pub(crate) async fn with_tls(tls: Option<&Tls>) -> Self {
        Self::at("127.0.0.1:0", tls).await
    }

    pub(crate) async fn at(address: &str, tls: Option<&Tls>) -> Self {
        let (leadership, leadership_seen) = watch::channel(Leadership::default());
        let (runner, runner_seen) = watch::channel(None);
        let (serving, serving_seen) = watch::channel(true);
        let roles = NodeRoles {
            leadership: leadership_seen,
            serving: serving_seen,
            runner: runner_seen,
            clock: watch::Sender::new(None),
        };
        let listener = Listener::open(address.parse().unwrap(), tls, identity(), roles, None, None).await.unwrap();
        Self { listener, leadership, serving, runner }
    }

    pub(crate) fn address(&self) -> String {
        self.listener.address().to_string()
    }

    /// The process that it is, as its own center knows it.
    pub(crate) fn peer(&self) -> Peer {
        let LocalIdentity { node, incarnation, .. } = identity();
        Peer { address: self.address(), node, incarnation }
    }

    /// Makes it the leader, over these tasks.
    pub(crate) fn lead(&self, tasks: &Arc<MockLeader>) {
        let tasks: Arc<dyn LeaderApi> = Arc::clone(tasks) as _;
        self.leadership.send_replace(Leadership { leader: Some(tasks), address: Some(self.address()) });
    }

    /// Makes it a follower of another one.
    pub(crate) fn follow(&self, leader: Option<&Self>) {
        self.leadership.send_replace(Leadership { leader: None, address: leader.map(Self::address) });
    }
}

/// A center with this identity.
pub(crate) fn center(name: &str) -> CenterId {
    let center = CenterId::default();
    center.set(name.to_owned()).unwrap();
    center
}

/// Of every node here.
pub(crate) fn identity() -> LocalIdentity {
    let (node, incarnation) = (NodeId::new("n1").unwrap(), Incarnation(String::from("mine")));
    LocalIdentity { center: center("c"), node, incarnation }
}

pub(crate) fn client(addresses: &[String]) -> CenterClient {
    CenterClient::new(addresses.to_vec(), Channels::default()).unwrap()
}

pub(crate) fn noop(id: &str) -> wire::SubmitRequest {
    let work = wire::spec::Work::Noop(wire::NoopWork { milliseconds: 1, node: None });
    let spec = Some(wire::Spec { work: Some(work) });
    wire::SubmitRequest { id: id.to_owned(), spec, ..wire::SubmitRequest::default() }
}

pub(crate) fn name(id: &str) -> wire::TaskName {
    wire::TaskName { id: id.to_owned() }
}
