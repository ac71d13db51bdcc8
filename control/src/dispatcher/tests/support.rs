//! Sets up a simulated ensemble, one dispatcher, and scripted runners.

use crate::clock::TestClock;
use crate::cluster::election::{Election, LeaderTerm, Role};
use crate::coord::paths;
use crate::coord::sim::{Ensemble, FaultRates};
use crate::coord::{CoordError, CreateMode, Op, Session};
use crate::dispatcher::{Config, Dispatcher, DispatcherHandle, FenceProgram, TermEnd};
use crate::model::fence_method::default_fence;
use crate::model::state_machine::{Checkpoint, ClaimChange, TaskEvent, claim_change, next};
use crate::model::{
    Claim, CopyTask, Epoch, Failure, Holder, Incarnation, NodeId, NoopTask, OpId, Record, Registration, Submission,
    TaskId, TaskRecord, TaskSpec, TaskState,
};
use crate::peers::{AssignResponse, Assignment, AssignmentStatus, CallError, Peer, RunnerClient, StartStage};
use async_trait::async_trait;
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

pub(super) const T: Duration = Duration::from_secs(10);

/// Behaviour of a runner.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Behaviour {
    /// Accepts, and holds what it has accepted.
    Accepting,
    /// Accepts, and runs the task to its end at once.
    Completing,
    /// Refuses.
    Refusing(Code),
    /// Does not answer, and has not received the call.
    Silent,
}

#[derive(Debug)]
struct Runner {
    behaviour: Behaviour,
    held: BTreeSet<TaskId>,
}

/// Scripted runners, and the log of their calls.
#[derive(Debug, Default)]
pub(super) struct TestRunners {
    runners: Mutex<BTreeMap<String, Runner>>,
    pub(super) log: Mutex<Vec<String>>,
    sessions: Mutex<BTreeMap<String, Arc<dyn Session>>>,
}

impl TestRunners {
    fn receive(&self, address: &str, what: String) -> Result<Behaviour, CallError> {
        let runners = self.runners.lock().unwrap();
        let silent = || CallError::NoAnswer(String::from("silence"));
        let behaviour = runners.get(address).map(|runner| runner.behaviour.clone()).ok_or_else(silent)?;
        if behaviour == Behaviour::Silent {
            return Err(silent());
        }
        self.log.lock().unwrap().push(format!("{address} {what}"));
        Ok(behaviour)
    }

    /// Returns the log since the last call.
    pub(super) fn take_calls(&self) -> Vec<String> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    pub(super) fn set_behaviour(&self, address: &str, behaviour: Behaviour) {
        self.runners.lock().unwrap().get_mut(address).unwrap().behaviour = behaviour;
    }
}

#[async_trait]
impl RunnerClient for TestRunners {
    async fn assign(&self, to: &Peer, assignment: Assignment) -> Result<AssignResponse, CallError> {
        let address = &*to.address;
        sleep(Duration::from_millis(1)).await;
        let behaviour = self.receive(address, format!("assign {}", assignment.task))?;
        if let Behaviour::Refusing(code) = behaviour {
            return Ok(AssignResponse::Refused { code, why: String::from("no") });
        }
        self.runners.lock().unwrap().get_mut(address).unwrap().held.insert(assignment.task.clone());
        if behaviour == Behaviour::Completing {
            let session = self.sessions.lock().unwrap()[address].clone();
            tokio::spawn(async move {
                let began = TaskEvent::Started { epoch: assignment.epoch };
                if step(&*session, &assignment.task, began).await {
                    sleep(Duration::from_millis(20)).await;
                    let done = TaskEvent::Succeeded { checkpoint: Checkpoint::default(), report: None };
                    step(&*session, &assignment.task, done).await;
                }
            });
        }
        Ok(AssignResponse::Accepted)
    }

    async fn query(&self, to: &Peer, assignment: Assignment) -> Result<AssignmentStatus, CallError> {
        let address = &*to.address;
        sleep(Duration::from_millis(1)).await;
        self.receive(address, format!("query {}", assignment.task))?;
        let is_held = self.runners.lock().unwrap()[address].held.contains(&assignment.task);
        Ok(if is_held { AssignmentStatus::Waits(StartStage::Opening) } else { AssignmentStatus::Unknown })
    }

    async fn notify(&self, to: &Peer, _leader: Epoch, task: &TaskId) -> Result<(), CallError> {
        let address = &*to.address;
        sleep(Duration::from_millis(1)).await;
        self.receive(address, format!("notify {task}")).map(|_| ())
    }

    async fn resolve(&self, to: &Peer, _leader: Epoch, spec: &TaskSpec) -> Result<Vec<String>, CallError> {
        let address = &*to.address;
        sleep(Duration::from_millis(1)).await;
        let TaskSpec::Copy(copy) = spec else { panic!("only copies have a destination") };
        match self.receive(address, format!("resolve {}", copy.destination))? {
            Behaviour::Refusing(code) => Err(CallError::Refused { code, why: String::from("no") }),
            _ => Ok(vec![format!("inode:{address}:{}", copy.destination)]),
        }
    }

    async fn interrupt(&self, to: &Peer, _leader: Epoch) -> Result<(), CallError> {
        let address = &*to.address;
        self.receive(address, String::from("interrupt")).map(|_| ())
    }
}

/// Writes the record after `event` and its claims, as a runner does. Reads after lost answers until the outcome is
/// known. Returns whether the event was written.
pub(super) async fn step(session: &dyn Session, id: &TaskId, event: TaskEvent) -> bool {
    let mut written = BTreeSet::new();
    for _ in 0..300 {
        match try_step(session, id, &event, &mut written).await {
            Ok(is_written) => return is_written,
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
    false
}

async fn try_step(
    session: &dyn Session,
    id: &TaskId,
    event: &TaskEvent,
    written: &mut BTreeSet<String>,
) -> Result<bool, CoordError> {
    session.sync().await?;
    let Some(node) = session.get(&paths::task(id)).await? else { return Ok(false) };
    let before = TaskRecord::decode(&node.data).unwrap();
    if written.contains(&before.op.0) {
        return Ok(true);
    }
    let Ok(after) = next(&before, event.clone(), before.updated_ms + 1) else { return Ok(false) };
    let mut ops = vec![Op::Set { path: paths::task(id), data: after.encode(), version: node.stat.version }];
    for text in &before.claims {
        let path = paths::claim(text);
        let Some(node) = session.get(&path).await? else { return Ok(false) };
        let version = node.stat.version;
        ops.push(match claim_change(&before, &after) {
            ClaimChange::Keep => Op::Check { path, version },
            ClaimChange::Remove => Op::Delete { path, version },
            ClaimChange::Set => {
                let claim = Claim { holder: after.holder.clone(), ..Claim::decode(&node.data).unwrap() };
                Op::Set { path, data: claim.encode(), version }
            }
        });
    }
    written.insert(after.op.0.clone());
    session.multi(ops).await.map(|_| true)
}

/// Center with one leader.
pub(super) struct TestCenter {
    pub(super) ensemble: Ensemble,
    pub(super) runners: Arc<TestRunners>,
    pub(super) clock: Arc<TestClock>,
    pub(super) leader: DispatcherHandle,
    pub(super) dispatcher: JoinHandle<TermEnd>,
    stand: watch::Sender<bool>,
    config: Config,
}

/// Creates the folders of a center.
pub(super) async fn create_folders(session: &dyn Session) {
    let create = |path| Op::Create { path, data: Vec::new(), mode: CreateMode::Persistent };
    session.multi(paths::all_folders().map(create).collect()).await.unwrap();
}

impl TestCenter {
    /// Creates a center with a leader and no runners.
    pub(super) async fn new(seed: u64, config: Config) -> Self {
        Self::with_faults(seed, config, FaultRates::default()).await
    }

    pub(super) async fn with_faults(seed: u64, config: Config, fault_rates: FaultRates) -> Self {
        fastrand::seed(seed);
        let ensemble = Ensemble::new(seed, T);
        create_folders(&*ensemble.client("founder").open().await.unwrap()).await;
        ensemble.set_fault_rates(fault_rates);
        let (runners, clock) = (Arc::new(TestRunners::default()), Arc::new(TestClock::start()));
        let (leader, dispatcher, stand) = start_leader("d1", &ensemble, &runners, &clock, &config).await;
        Self { ensemble, runners, clock, leader, dispatcher, stand, config }
    }

    /// Makes the leader resign, and another node lead. Returns the end of the first dispatcher.
    pub(super) async fn change_leader(&mut self, node: &str) -> TermEnd {
        self.stand.send_replace(false);
        let (leader, dispatcher, stand) =
            start_leader(node, &self.ensemble, &self.runners, &self.clock, &self.config).await;
        (self.leader, self.stand) = (leader, stand);
        std::mem::replace(&mut self.dispatcher, dispatcher).await.unwrap()
    }

    /// Registers a runner.
    pub(super) async fn runner(
        &self,
        node: &str,
        incarnation: &str,
        slots: u32,
        behaviour: Behaviour,
    ) -> Arc<dyn Session> {
        let session = self.ensemble.client(node).open().await.unwrap();
        let registration = self.registration(node, incarnation, slots);
        let op = Op::Create { path: paths::runner(node), data: registration.encode(), mode: CreateMode::Ephemeral };
        self.runners.runners.lock().unwrap().insert(node.to_owned(), Runner { behaviour, held: BTreeSet::new() });
        self.runners.sessions.lock().unwrap().insert(node.to_owned(), session.clone());
        // The first registration of a node leaves its lease behind.
        let lease = Op::Create { path: paths::lease(node), data: Vec::new(), mode: CreateMode::Persistent };
        let _ = session.multi(vec![lease]).await;
        while session.multi(vec![op.clone()]).await.is_err() {
            if self.ensemble.committed(&paths::runner(node)).is_some() {
                break;
            }
            sleep(Duration::from_millis(50)).await;
        }
        session
    }

    /// Returns the registration of a runner.
    pub(super) fn registration(&self, node: &str, incarnation: &str, slots: u32) -> Registration {
        Registration {
            incarnation: Incarnation(incarnation.to_owned()),
            address: node.to_owned(),
            slots,
            op: OpId::fresh(),
            ..Registration::example(node)
        }
    }

    /// Creates the dispatcher of a new leader without running it.
    pub(super) async fn idle_leader(&self, node: &str) -> (Dispatcher, DispatcherHandle) {
        self.stand.send_replace(false);
        let (session, leader_term, stand) = elected(node, &self.ensemble).await;
        // The node leads until the end of the test.
        std::mem::forget(stand);
        Dispatcher::new(session, leader_term, self.runners.clone(), self.clock.clone(), self.config.clone())
    }

    /// Ends a runner's process and its registration.
    pub(super) async fn lose(&self, session: &Arc<dyn Session>) {
        session.close().await;
    }

    /// Returns the committed record.
    pub(super) fn stored(&self, id: &str) -> TaskRecord {
        let path = paths::task(&TaskId::new(id).unwrap());
        TaskRecord::decode(&self.ensemble.committed(&path).unwrap().data).unwrap()
    }

    /// Waits until a task is in that state, as committed.
    pub(super) async fn until(&self, id: &str, state: TaskState) -> TaskRecord {
        let start = Instant::now();
        loop {
            let record = self.stored(id);
            if record.state == state {
                return record;
            }
            assert!(start.elapsed() < Duration::from_secs(300), "{id} stays {:?}: {}", record.state, record.reason);
            sleep(Duration::from_millis(1)).await;
        }
    }

    /// Begins a task on the runner that holds it.
    pub(super) async fn begin(&self, session: &Arc<dyn Session>, id: &str) {
        let record = self.until(id, TaskState::Assigned).await;
        let grant = self.ensemble.committed(&paths::claim(&record.claims[0])).unwrap().stat.modified;
        assert!(step(&**session, &record.id, TaskEvent::Started { epoch: grant.into() }).await, "begin {id}");
        self.leader.changed(vec![record.id]).await.unwrap();
    }

    /// Writes an event as a runner, and notifies the leader.
    pub(super) async fn step(&self, session: &Arc<dyn Session>, id: &str, event: TaskEvent) -> bool {
        let id = TaskId::new(id).unwrap();
        let is_written = step(&**session, &id, event).await;
        self.leader.changed(vec![id]).await.unwrap();
        is_written
    }

    /// Returns the committed claims.
    pub(super) fn claims(&self) -> Vec<Claim> {
        let below = self.ensemble.committed_below(&format!("{}/", paths::CLAIMS));
        below
            .into_iter()
            .filter(|(_, node)| !node.data.is_empty())
            .map(|(_, node)| Claim::decode(&node.data).unwrap())
            .collect()
    }

    /// Replaces a task's record by hand.
    pub(super) async fn overwrite(&self, name: &str, data: Vec<u8>) {
        let session = self.ensemble.client("operator").open().await.unwrap();
        let path = paths::task(&id(name));
        let version = self.ensemble.committed(&path).unwrap().stat.version;
        session.multi(vec![Op::Set { path, data, version }]).await.unwrap();
        session.close().await;
    }

    /// Deletes a task's record by hand, as an operator might.
    pub(super) async fn ensemble_delete(&self, name: &str) {
        let session = self.ensemble.client("operator").open().await.unwrap();
        let path = paths::task(&id(name));
        let version = self.ensemble.committed(&path).unwrap().stat.version;
        session.multi(vec![Op::Delete { path, version }]).await.unwrap();
        session.close().await;
    }
}

async fn start_leader(
    node: &str,
    ensemble: &Ensemble,
    runners: &Arc<TestRunners>,
    clock: &Arc<TestClock>,
    config: &Config,
) -> (DispatcherHandle, JoinHandle<TermEnd>, watch::Sender<bool>) {
    let (session, leader_term, stand) = elected(node, ensemble).await;
    let (dispatcher, handle) = Dispatcher::new(session, leader_term, runners.clone(), clock.clone(), config.clone());
    (handle, tokio::spawn(dispatcher.run(std::future::pending())), stand)
}

async fn elected(node: &str, ensemble: &Ensemble) -> (Arc<dyn Session>, LeaderTerm, watch::Sender<bool>) {
    let session = ensemble.client(node).open().await.unwrap();
    let (leader_term, stand) = elected_on(session.clone(), node).await;
    (session, leader_term, stand)
}

/// Has a node elected over a session.
pub(super) async fn elected_on(session: Arc<dyn Session>, node: &str) -> (LeaderTerm, watch::Sender<bool>) {
    let (roles, (stand, stands)) = (Election::roles(), watch::channel(true));
    let incarnation = Incarnation(format!("{node}-life"));
    let election = Election::new(session, NodeId::new(node).unwrap(), incarnation, format!("{node}:1"), roles.clone());
    tokio::spawn(async move { election.run(stands).await });
    let role = roles.subscribe().wait_for(|role| matches!(role, Role::Leader(_))).await.unwrap().clone();
    let Role::Leader(leader_term) = role else { unreachable!("waited for it") };
    (leader_term, stand)
}

pub(super) fn noop(milliseconds: u64) -> TaskSpec {
    TaskSpec::Noop(NoopTask::new(milliseconds, None))
}

pub(super) fn copy(source: &str, destination: &str) -> CopyTask {
    CopyTask { fence: default_fence(destination), ..CopyTask::example(source, destination) }
}

pub(super) fn submission(id: &str, spec: TaskSpec) -> Submission {
    Submission::new(TaskId::new(id).unwrap(), 5, 3, spec)
}

/// Fence program that fails until `works` is set.
#[derive(Debug, Default)]
pub(super) struct TestFence {
    pub(super) works: Mutex<bool>,
    pub(super) fenced: Mutex<Vec<String>>,
}

#[async_trait]
impl FenceProgram for TestFence {
    async fn fence_runner(&self, runner: &Holder) -> Result<(), String> {
        sleep(Duration::from_millis(5)).await;
        self.fenced.lock().unwrap().push(runner.node.to_string());
        if *self.works.lock().unwrap() { Ok(()) } else { Err(String::from("the switch does not answer")) }
    }
}

/// Returns the id of that name.
pub(super) fn id(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}

/// Returns the event of an attempt that has failed for good.
pub(super) fn failed() -> TaskEvent {
    let error = Failure::from(&Error::new(Code::Io, Side::Source, Operation::Read, "no"));
    TaskEvent::Failed { error, retry_at_ms: 0, checkpoint: Checkpoint::default(), report: None }
}

/// Returns the event of an attempt that has succeeded.
pub(super) fn done() -> TaskEvent {
    TaskEvent::Succeeded { checkpoint: Checkpoint::default(), report: None }
}
