//! Runs many runners in one process.
//!
//! Each runner has a session, a registration, a listener, connections and a state directory of its own, and follows the
//! leader over its own session, as in `taskd`. It stands for no election and has no engine: see [`TimedExecutor`].

use super::timed_executor::TimedExecutor;
use blockhaul_control::attempt_log::AttemptLogs;
use blockhaul_control::clock::HostClock;
use blockhaul_control::coord::CoordClient;
use blockhaul_control::coord::paths;
use blockhaul_control::coord::session_keeper::{SessionKeeper, Sessions};
use blockhaul_control::coord::zookeeper::{Settings, ZooKeeper};
use blockhaul_control::execution::Executor;
use blockhaul_control::model::{Incarnation, Leader, Meta, NodeId, Record};
use blockhaul_control::peers::{CenterId, LocalIdentity, Peer};
use blockhaul_control::rpc::calls::{GrpcLeaderClient, GrpcRunnerClient};
use blockhaul_control::rpc::channels::Channels;
use blockhaul_control::rpc::listener::{Listener, Protection};
use blockhaul_control::rpc::local_roles::{Leadership, NodeRoles};
use blockhaul_control::runner::{Runner, RunnerConfig, RunnerDependencies, StateDir};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

/// Label of every such runner, as name and value.
pub(crate) const LABEL: (&str, &str) = ("fleet", "light");
/// Longest time between two reads of the leader, as watches may be lost: as in an election.
const READ_EVERY: Duration = Duration::from_secs(10);
/// Wait after a read that failed.
const RETRY: Duration = Duration::from_millis(250);

/// Runners to start.
#[derive(Clone, Debug)]
pub(crate) struct Crew {
    /// Address of the center's records, as `HOSTS/CHROOT`.
    pub(crate) zookeeper: String,
    /// Existing folder for the state directories.
    pub(crate) folder: PathBuf,
    /// Number of the first runner: the names are `light0`, `light1`, ...
    pub(crate) first: usize,
    /// Number of runners.
    pub(crate) count: usize,
    /// Slots of each runner.
    pub(crate) slots: u32,
}

/// Running runners. When this is dropped, they stop as on a request, as long as their runtime lives.
#[derive(Debug)]
pub(crate) struct LightRunners {
    stop: watch::Sender<bool>,
    running: Vec<JoinHandle<()>>,
}

impl LightRunners {
    /// Stops all runners at once as `taskd` stops: they return their tasks, and deregister.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        for runner in self.running {
            runner.await.expect("a runner ends without a panic");
        }
    }
}

/// Starts the runners; returns when all listen, and before all are registered.
pub(crate) async fn launch(crew: &Crew) -> LightRunners {
    let center = center(&crew.zookeeper).await;
    let completed = crew.folder.join(format!("completed{}", crew.first));
    let executor: Arc<dyn Executor> = Arc::new(TimedExecutor::new(&completed));
    let stop = watch::Sender::new(false);
    let mut running = Vec::new();
    for number in crew.first..crew.first + crew.count {
        running.push(start(crew, number, &center, &executor, stop.subscribe()).await);
    }
    LightRunners { stop, running }
}

async fn start(
    crew: &Crew,
    number: usize,
    center: &CenterId,
    executor: &Arc<dyn Executor>,
    mut stop: watch::Receiver<bool>,
) -> JoinHandle<()> {
    let id = format!("light{number}");
    let folder = crew.folder.join(&id);
    let state = StateDir::lock(&folder).expect("the folder is ours");
    let leads = watch::Sender::new(None);
    let (local_runner, runner_seen) = watch::channel(None);
    let (serving, serving_seen) = watch::channel(true);
    let (leadership, leadership_seen) = watch::channel(Leadership::default());
    let roles = NodeRoles {
        leadership: leadership_seen,
        serving: serving_seen,
        runner: runner_seen,
        clock: watch::Sender::new(None),
        logs: AttemptLogs::default(),
        runners: Arc::new(GrpcRunnerClient::new(Channels::new(None), center.clone())),
    };
    let node = NodeId::new(&id).expect("a short name");
    let incarnation = Incarnation(format!("{id}-{:016x}", fastrand::u64(..)));
    let identity = LocalIdentity { center: center.clone(), node: node.clone(), incarnation: incarnation.clone() };
    let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let protection = Protection::open_to_all(&folder, node.clone()).expect("threads can be started");
    let listener = Listener::open(anywhere, protection, identity, roles, None, None).await.expect("there are ports");
    let dependencies = RunnerDependencies {
        executor: Arc::clone(executor),
        leader: Arc::new(GrpcLeaderClient::new(Channels::new(None), center.clone(), leads.subscribe())),
        clock: Arc::new(HostClock),
        state: Arc::new(state),
    };
    let config = RunnerConfig {
        slots: crew.slots,
        labels: [LABEL].map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..RunnerConfig::new(node, incarnation, listener.address().to_string())
    };
    let runner = Runner::new(config, dependencies);
    local_runner.send_replace(Some(runner.handle()));
    let service = ZooKeeper::new(&crew.zookeeper, Settings::default()).expect("the ensemble's addresses");
    tokio::spawn(async move {
        let _kept = (leadership, serving, local_runner);
        let keeper = SessionKeeper::new(Arc::new(service));
        let stopping = async {
            // Nobody to ask for a stop is as good as one who asks.
            let _ = stop.wait_for(|stop| *stop).await;
        };
        let stopped = tokio::select! {
            biased;
            stopped = runner.run(keeper.sessions(), stopping) => stopped,
            () = keeper.run() => unreachable!("it never ends"),
            () = follow_leader(keeper.sessions(), &leads) => unreachable!("it never ends"),
        };
        if stopped.left_behind.is_empty() {
            keeper.close().await;
        }
        listener.close().await;
    })
}

/// Publishes who leads, over the sessions of one runner. Never ends.
async fn follow_leader(mut sessions: Sessions, leads: &watch::Sender<Option<Peer>>) {
    loop {
        let open = sessions.wait_for(Option::is_some).await.map(|session| session.clone());
        let Ok(Some(session)) = open else { return std::future::pending().await };
        match session.get_and_watch(paths::LEADER).await {
            Ok((node, changed)) => {
                let leader = node.and_then(|node| Leader::decode(&node.data).ok());
                leads.send_replace(leader.map(Peer::from));
                let _ = timeout(READ_EVERY, changed.fired()).await;
            }
            Err(_) => sleep(RETRY).await,
        }
    }
}

/// Returns the identity of a center.
async fn center(zookeeper: &str) -> CenterId {
    let service = ZooKeeper::new(zookeeper, Settings::default()).expect("the ensemble's addresses");
    let session = service.open().await.expect("the ensemble serves");
    let meta = session.get(paths::META).await.expect("the ensemble serves").expect("a node has begun the center");
    let meta = Meta::decode(&meta.data).expect("it is a center");
    session.close().await;
    CenterId::new(meta.center.into())
}
