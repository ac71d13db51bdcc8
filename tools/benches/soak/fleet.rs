//! Runs many runners in one process.
//!
//! Each runner has a session, a registration and a listener of its own, as in `taskd`, but no engine. The tasks do
//! nothing.

use async_trait::async_trait;
use blockhaul_control::attempt_log::AttemptLogs;
use blockhaul_control::clock::HostClock;
use blockhaul_control::coord::CoordClient;
use blockhaul_control::coord::paths;
use blockhaul_control::coord::session_keeper::SessionKeeper;
use blockhaul_control::coord::zookeeper::{Settings, ZooKeeper};
use blockhaul_control::execution::{CompareJob, CopyJob, Execution, ExecutionHandle, Executor, HookJob};
use blockhaul_control::model::{Incarnation, Leader, Meta, NodeId, Record, TaskId, TaskVolume};
use blockhaul_control::peers::{CenterId, LocalIdentity, Peer};
use blockhaul_control::rpc::calls::{GrpcLeaderClient, GrpcRunnerClient};
use blockhaul_control::rpc::channels::Channels;
use blockhaul_control::rpc::listener::{Listener, Protection};
use blockhaul_control::rpc::local_roles::{Leadership, NodeRoles};
use blockhaul_control::runner::{Runner, RunnerConfig, RunnerDependencies, StateDir};
use blockhaul_engine::error::{Error, Result};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use tokio::sync::watch;

/// Starts `count` runners for the current leader, until the runtime ends; returns when all listen.
pub(crate) async fn launch(count: usize, zookeeper: &str, folder: &Path) {
    let (center, leading) = members(zookeeper).await;
    for number in 0..count {
        let id = format!("simulated{number}");
        let folder = folder.join(&id);
        let state = StateDir::lock(&folder).expect("the folder is ours");
        let (leads, leader) = watch::channel(Some(leading.clone()));
        let (local_runner, runner_seen) = watch::channel(None);
        let (serving, serving_seen) = watch::channel(true);
        let (leadership, leadership_seen) = watch::channel(Leadership::default());
        let clock = watch::Sender::new(None);
        let roles = NodeRoles {
            leadership: leadership_seen,
            serving: serving_seen,
            runner: runner_seen,
            clock,
            logs: AttemptLogs::default(),
            runners: Arc::new(GrpcRunnerClient::new(Channels::new(None), center.clone())),
        };
        let node = NodeId::new(&id).expect("a short name");
        let incarnation = Incarnation(id);
        let identity = LocalIdentity { center: center.clone(), node: node.clone(), incarnation: incarnation.clone() };
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let protection = Protection::open_to_all(&folder, node.clone()).expect("threads can be started");
        let listener =
            Listener::open(anywhere, protection, identity, roles, None, None).await.expect("there are ports");
        let dependencies = RunnerDependencies {
            executor: Arc::new(NoCopies),
            leader: Arc::new(GrpcLeaderClient::new(Channels::new(None), center.clone(), leader)),
            clock: Arc::new(HostClock),
            state: Arc::new(state),
        };
        let config = RunnerConfig::new(node, incarnation, listener.address().to_string());
        let runner = Runner::new(config, dependencies);
        local_runner.send_replace(Some(runner.handle()));
        let service = ZooKeeper::new(zookeeper, Settings::default()).expect("the ensemble's addresses");
        tokio::spawn(async move {
            let keeper = SessionKeeper::new(Arc::new(service));
            let _kept = (leads, leadership, serving, local_runner, listener);
            tokio::join!(keeper.run(), runner.run(keeper.sessions(), std::future::pending()));
        });
    }
}

/// Returns the center's identity and its leader.
async fn members(zookeeper: &str) -> (CenterId, Peer) {
    let service = ZooKeeper::new(zookeeper, Settings::default()).expect("the ensemble's addresses");
    let session = service.open().await.expect("the ensemble serves");
    let read = async |path| session.get(path).await.expect("the ensemble serves").expect("a node leads");
    let meta = Meta::decode(&read(paths::META).await.data).expect("it is a center");
    let leader = Leader::decode(&read(paths::LEADER).await.data).expect("it is a center");
    session.close().await;
    (CenterId::new(meta.center.into()), Peer::from(leader))
}

/// An executor without volumes: it runs no copies.
#[derive(Debug)]
struct NoCopies;

#[async_trait]
impl Executor for NoCopies {
    async fn resolve(&self, _: &TaskVolume) -> Result<Vec<String>> {
        Err(Error::bad_request("this runner takes no copies"))
    }

    fn copy(&self, job: CopyJob, _: Execution) -> Arc<dyn ExecutionHandle> {
        unreachable!("no copy was accepted: {job:?}")
    }

    fn compare(&self, job: CompareJob, _: Execution) -> Arc<dyn ExecutionHandle> {
        unreachable!("no comparison was accepted: {job:?}")
    }

    fn run_hook(&self, job: HookJob, _: Execution) -> Arc<dyn ExecutionHandle> {
        unreachable!("no hook was accepted: {job:?}")
    }

    fn kept(&self) -> Vec<(TaskId, u64)> {
        Vec::new()
    }

    fn forget(&self, _: &TaskId, _: u64) {}
}
