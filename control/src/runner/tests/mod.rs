//! Tests the runner against a simulated store, executor and dispatcher.

mod attempts;
mod bandwidth;
mod checking;
mod engine;
mod executor;
mod leasing;
mod logging;
mod orders;
mod registering;
mod stopping;
mod store;

use super::*;
use crate::clock::TestClock;
use crate::coord::session_keeper::SessionKeeper;
use crate::coord::{CreateMode, Done, Op};
use crate::execution::{End, Execution, ExecutionHandle, Outcome, WritePermitRequest};
use crate::model::state_machine::{self, TaskEvent};
use crate::model::{
    Claim, CopyTask, DurableMap, Epoch, FenceMethod, Holder, NoopTask, OpId, Registration, RunTask, Submission,
    TaskSpec, TaskState,
};
use crate::peers::{AssignResponse, Assignment};
use executor::{RecordingLeader, TestCopy, TestExecutor};
use store::Store;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// Store, and one node `n1` with a runner.
struct Harness {
    store: Store,
    executor: Arc<TestExecutor>,
    leader: Arc<RecordingLeader>,
    memory: Arc<Memory>,
    clock: Arc<TestClock>,
    handle: RunnerHandle,
    keeper: Arc<SessionKeeper>,
    stop: Option<oneshot::Sender<()>>,
    runner: JoinHandle<Stopped>,
}

fn node() -> NodeId {
    NodeId::new("n1").unwrap()
}

fn id(task: &str) -> TaskId {
    TaskId::new(task).unwrap()
}

fn holder(incarnation: &str) -> Holder {
    Holder { node: node(), incarnation: Incarnation(incarnation.into()) }
}

fn copy_of(fence: FenceMethod) -> TaskSpec {
    TaskSpec::Copy(CopyTask { node: Some(node()), digest: "none".into(), fence, ..CopyTask::example("/in/a", "/in/b") })
}

fn noop(milliseconds: u64) -> TaskSpec {
    TaskSpec::Noop(NoopTask::new(milliseconds, None))
}

impl Harness {
    async fn new() -> Self {
        Self::registered(Store::default(), Arc::new(Memory::default()), "life").await
    }

    /// Starts a runner and waits until it is registered.
    async fn registered(store: Store, memory: Arc<Memory>, incarnation: &str) -> Self {
        let harness = Self::start(store, memory, incarnation);
        while !harness.handle.is_registered() {
            sleep(Duration::from_millis(5)).await;
        }
        harness
    }

    fn start(store: Store, memory: Arc<Memory>, incarnation: &str) -> Self {
        Self::start_with(store, memory, incarnation, None)
    }

    fn start_with(store: Store, memory: Arc<Memory>, incarnation: &str, orders: Option<RunnerOrders>) -> Self {
        fastrand::seed(7);
        let (executor, leader) = (Arc::new(TestExecutor::default()), Arc::new(RecordingLeader::default()));
        let clock = Arc::new(TestClock::start());
        let config =
            RunnerConfig { orders, ..RunnerConfig::new(node(), Incarnation(incarnation.into()), "n1:1".into()) };
        let dependencies = RunnerDependencies {
            executor: Arc::clone(&executor) as Arc<dyn Executor>,
            leader: Arc::clone(&leader) as Arc<dyn LeaderClient>,
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            state: Arc::clone(&memory) as Arc<dyn NodeState>,
        };
        let runner = Runner::new(config, dependencies);
        let handle = runner.handle();
        let keeper = Arc::new(SessionKeeper::new(Arc::new(store.clone())));
        let (stop, stopped) = oneshot::channel::<()>();
        let sessions = keeper.sessions();
        let kept = Arc::clone(&keeper);
        let runner = tokio::spawn(async move {
            tokio::select! { biased;
                () = kept.run() => unreachable!("it never ends"),
                stopped = runner.run(sessions, async { _ = stopped.await }) => stopped,
            }
        });
        Self { store, executor, leader, memory, clock, handle, keeper, stop: Some(stop), runner }
    }

    /// Stores a new task as `PENDING`.
    fn submit(&self, task: &str, spec: TaskSpec) {
        self.store_record(TaskRecord::new(Submission::new(id(task), 5, 3, spec), 5));
    }

    /// Stores a record as it is, as whoever writes the store can.
    fn store_record(&self, record: TaskRecord) {
        let task = record.id.as_str();
        let create = Op::Create { path: paths::task(&id(task)), data: record.encode(), mode: CreateMode::Persistent };
        self.store.write(&[create]);
    }

    fn record(&self, task: &str) -> TaskRecord {
        TaskRecord::decode(&self.store.get(&paths::task(&id(task))).unwrap().data).unwrap()
    }

    /// Writes an event of a task as a dispatcher.
    fn write_event(&self, task: &str, event: TaskEvent) {
        let node = self.store.get(&paths::task(&id(task))).unwrap();
        let after = state_machine::next(&TaskRecord::decode(&node.data).unwrap(), event, 7).unwrap();
        self.store.write(&[Op::Set { path: paths::task(&id(task)), data: after.encode(), version: node.stat.version }]);
    }

    /// Grants a task to an incarnation of this node, as a dispatcher does.
    fn grant(&self, task: &str, incarnation: &str) -> Assignment {
        let path = paths::task(&id(task));
        let node = self.store.get(&path).unwrap();
        let before = TaskRecord::decode(&node.data).unwrap();
        let claims = vec![format!("test:{task}")];
        let after =
            state_machine::next(&before, TaskEvent::Assigned { to: holder(incarnation), claims: claims.clone() }, 6)
                .unwrap();
        let claim_path = paths::claim(&claims[0]);
        let (destination, holder) = (claims[0].clone(), Some(holder(incarnation)));
        let claim = Claim { destination, task: id(task), holder, op: OpId::fresh(), unknown: Default::default() };
        let claim_op = match self.store.get(&claim_path) {
            None => Op::Create { path: claim_path, data: claim.encode(), mode: CreateMode::Persistent },
            Some(old) => Op::Set { path: claim_path, data: claim.encode(), version: old.stat.version },
        };
        let done = self.store.write(&[claim_op, Op::Set { path, data: after.encode(), version: node.stat.version }]);
        let Some(Done::Set(stat)) = done.last() else { panic!("{done:?}") };
        Assignment {
            task: id(task),
            epoch: Epoch::from(stat.modified),
            incarnation: Incarnation(incarnation.into()),
            leader: Epoch(1),
        }
    }

    /// Takes a task from its holder, as a dispatcher does when a registration is gone.
    fn revoke(&self, task: &str) {
        let path = paths::task(&id(task));
        let node = self.store.get(&path).unwrap();
        let before = TaskRecord::decode(&node.data).unwrap();
        let after = state_machine::next(&before, TaskEvent::RunnerLost, 7).unwrap();
        let claim_path = paths::claim(&before.claims[0]);
        let claim = self.store.get(&claim_path).unwrap();
        let free = Claim { holder: None, ..Claim::decode(&claim.data).unwrap() };
        self.store.write(&[
            Op::Set { path: claim_path, data: free.encode(), version: claim.stat.version },
            Op::Set { path, data: after.encode(), version: node.stat.version },
        ]);
    }

    /// Submits, grants and assigns a task, and waits until its copy may write.
    async fn running(&self, task: &str, spec: TaskSpec) -> Arc<TestCopy> {
        self.submit(task, spec);
        let assignment = self.grant(task, "life");
        assert_eq!(self.handle.assign(assignment).await, Ok(AssignResponse::Accepted));
        let copy = self.copy(task).await;
        assert_eq!(copy.is_admitted().await, Ok(()));
        copy
    }

    async fn copy(&self, task: &str) -> Arc<TestCopy> {
        loop {
            if let Some(copy) = self.executor.all.lock().unwrap().get(&id(task)) {
                return Arc::clone(copy);
            }
            sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until a task is in a state, for a minute at most.
    async fn until(&self, task: &str, state: TaskState) -> TaskRecord {
        for _ in 0..12_000 {
            let record = self.record(task);
            if record.state == state {
                return record;
            }
            sleep(Duration::from_millis(5)).await;
        }
        panic!("it stays: {:?}", self.record(task));
    }

    fn registration(&self) -> Option<Registration> {
        self.store.get(&paths::runner("n1")).map(|node| Registration::decode(&node.data).unwrap())
    }

    fn has_claim(&self, task: &str) -> bool {
        self.store.get(&paths::claim(&format!("test:{task}"))).is_some()
    }

    fn is_free(&self, task: &str) -> bool {
        let node = self.store.get(&paths::claim(&format!("test:{task}"))).unwrap();
        Claim::decode(&node.data).unwrap().holder.is_none()
    }

    async fn stop(mut self) -> (Self, Stopped) {
        drop(self.stop.take());
        let stopped = (&mut self.runner).await.unwrap();
        (self, stopped)
    }
}
