//! The life of a `taskd`: one owner constructs, initialises, runs, stops and joins it.
//!
//! ```text
//!  new --> initialise --> run: { session, runner, election and dispatcher, services } --> stop --> join
//!               |                                                                          ^
//!               `-- an error, or asked to stop ---------------------------------------------'
//! ```
//! What always holds:
//! - Whoever wants it to stop asks the [`Stopper`]; nothing in here ends the process or waits for its own thread.
//! - Roles come and go by what the session and the election say; the process stays. A role that cannot be made stops the
//!   server with an error, one that an outage takes away comes back.
//! - The order of a stop: leadership is resigned, the runner gives everything back, the session is closed, the listeners
//!   say goodbye. What could not be given back keeps its session until that expires.

mod desk;
mod founding;
mod leading;
mod stop;

pub(crate) use leading::Leading;
pub use stop::{Stop, Stopper};

use crate::api::calls::{GrpcLeaderCalls, GrpcRunnerCalls};
use crate::api::channels::Channels;
use crate::api::desk::{Floor, Leadership, Roles};
use crate::api::listener::Listener;
use crate::clock::HostClock;
use crate::config::{Config, Store};
use crate::coord::Center;
use crate::coord::credentials::Credentials;
use crate::coord::embedded::Embedded;
use crate::coord::zookeeper::{Settings, ZooKeeper};
use crate::dispatcher::{Config as DispatcherConfig, FenceCommand, FenceProgram};
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::record::{Incarnation, NodeId};
use crate::runner::{EngineWorker, NodeState, Runner, RunnerConfig, Seams, SessionKeeper, StateDir, Stopped, Worker};
use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use founding::Founded;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

/// How long a predecessor that was killed may take to let go of the state directory.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Between two tries to lock it.
const LOCK_EVERY: Duration = Duration::from_millis(100);
/// For the next leader to be known after a resignation: then it is told at once what is given back.
const RESIGN_WAIT: Duration = Duration::from_secs(1);

/// A `taskd`, not yet begun.
#[derive(Debug)]
pub struct Server {
    config: Config,
    stopper: Stopper,
}

/// A `taskd` that has all it needs, and listens.
#[derive(Debug)]
pub struct Ready {
    keeper: SessionKeeper,
    leading: Leading,
    runner: Runner,
    engine: Arc<Engine>,
    listener: Listener,
    metrics: Option<Metrics>,
    floor: watch::Sender<Option<Arc<dyn Floor>>>,
    stopper: Stopper,
}

impl Server {
    /// Touches nothing.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config, stopper: Stopper::new() }
    }

    /// To ask it to stop, from now on.
    #[must_use]
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// From beginning to end: returns when it has stopped because it was asked to.
    ///
    /// # Errors
    /// What could not be initialised.
    pub async fn live(self) -> Result<()> {
        let stopper = self.stopper();
        let ready = tokio::select! {
            biased;
            () = stopper.wait_for(Stop::Drained) => return Ok(()),
            ready = self.initialise() => ready?,
        };
        ready.run().await;
        Ok(())
    }

    /// Takes the state directory, starts the engine and listens. The coordination service need not be there.
    ///
    /// # Errors
    /// What is missing or wrong on this host, and what helps.
    pub async fn initialise(self) -> Result<Ready> {
        let Self { config, stopper } = self;
        let state = Arc::new(lock(&config).await?);
        let service = center(&config, &state).await?;
        let (engine, worker) = worker(&config, &state).await?;
        let (floor, floor_seen) = watch::channel(None);
        let (leadership, leadership_seen) = watch::channel(Leadership::default());
        let roles = Roles { leadership: leadership_seen, floor: floor_seen };
        let here = (config.store == Store::Embedded).then(|| config.node.clone());
        let listener = Listener::open(config.listen, config.tls.as_ref(), roles.clone(), here.clone()).await?;
        let address = advertised(&config, listener.address());
        tracing::info!(node = %config.node, listen = %listener.address(), %address, "listens");
        let incarnation = Incarnation(uuid::Uuid::new_v4().simple().to_string());
        let channels = Channels::new(config.tls.clone());
        let (leader, leader_seen) = watch::channel(None);
        let seams = Seams {
            worker,
            leader: Arc::new(GrpcLeaderCalls::new(channels.clone(), leader_seen)),
            clock: Arc::new(HostClock),
            state: Arc::clone(&state) as Arc<dyn NodeState>,
        };
        let runner = Runner::new(runner_config(&config, &incarnation, &address), seams);
        let metrics = match config.metrics {
            Some(at) => Some(Metrics::open(at, roles, runner.handle()).await?),
            None => None,
        };
        let name = Arc::new(OnceLock::new());
        let leading = Leading {
            dispatcher: dispatcher_config(&config, here),
            node: config.node,
            incarnation,
            address,
            center: Arc::clone(&name),
            calls: Arc::new(GrpcRunnerCalls::new(channels)),
            clock: Arc::new(HostClock),
            runner: runner.handle(),
            leadership,
            leader,
        };
        let keeper = SessionKeeper::new(Arc::new(Founded::new(service, name)));
        Ok(Ready { keeper, leading, runner, engine, listener, metrics, floor, stopper })
    }
}

impl Ready {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Runs until it is asked to stop, and stops: when this returns, nothing of it is left but what could not be given
    /// back. Asked for [`Stop::Fast`], its owner drops it.
    pub async fn run(self) {
        let Self { keeper, leading, runner, engine, listener, metrics, floor, stopper } = self;
        floor.send_replace(Some(Arc::new(runner.handle())));
        let Stopped { left_behind } = play(&keeper, &leading, runner, &stopper).await;
        floor.send_replace(None);
        if !left_behind.is_empty() {
            // Closing the session, or waiting for the engine, would say or take what is not known to be so.
            std::mem::forget((keeper, engine));
        }
        let metrics = async {
            if let Some(metrics) = metrics {
                metrics.close().await;
            }
        };
        tokio::join!(listener.close(), metrics);
        tracing::info!("stopped");
    }
}

/// Plays all roles until a stop is asked for, and gives them up in order. The session is closed if nothing is left behind;
/// else its owner leaves it as it is.
pub(crate) async fn play(keeper: &SessionKeeper, leading: &Leading, runner: Runner, stopper: &Stopper) -> Stopped {
    let (stand, stands) = watch::channel(true);
    let leader = leading.leader.subscribe();
    let stopped = tokio::select! {
        biased;
        stopped = runner.run(keeper.sessions(), resigned(stopper, stand, leader, leading.address.clone())) => stopped,
        () = keeper.run() => unreachable!("it never ends"),
        () = leading.run(keeper.sessions(), stands) => unreachable!("it never ends"),
    };
    if stopped.left_behind.is_empty() {
        keeper.close().await;
    }
    stopped
}

/// Waits until a stop is asked for, resigns, and waits a moment until another node is known to lead.
async fn resigned(
    stopper: &Stopper,
    stand: watch::Sender<bool>,
    mut leader: watch::Receiver<Option<String>>,
    here: String,
) {
    stopper.wait_for(Stop::Drained).await;
    tracing::info!("stops: gives everything back");
    stand.send_replace(false);
    let is_led = leader.borrow().as_ref().is_some_and(|leader| *leader == here);
    if is_led {
        let another = leader.wait_for(|leader| leader.as_ref().is_none_or(|leader| *leader != here));
        let _ = timeout(RESIGN_WAIT, another).await;
    }
    // Not dropped before: without it there is no election that says who leads now.
    crate::process::spawn(async move { stand.closed().await });
}

/// A predecessor that was killed may still have requests in the kernel.
async fn lock(config: &Config) -> Result<StateDir> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match StateDir::lock(&config.state_dir) {
            Err(error) if error.code == Code::Busy && Instant::now() < deadline => sleep(LOCK_EVERY).await,
            result => return result,
        }
    }
}

async fn center(config: &Config, state: &StateDir) -> Result<Arc<dyn Center>> {
    match &config.store {
        Store::Embedded => {
            let file = state.path().join("center.redb");
            let failed = |why: String| Error::new(Code::Io, Side::Coordination, Operation::Start, why);
            let opened = tokio::task::spawn_blocking(move || Embedded::open(&file)).await;
            let store = opened.map_err(|error| failed(error.to_string()))?;
            Ok(Arc::new(store.map_err(|error| failed(error.to_string()))?))
        }
        Store::ZooKeeper { address, auth, session_timeout } => {
            let credentials = auth.as_deref().map(Credentials::read).transpose();
            let credentials = credentials.map_err(|error| Error::bad_request(error.to_string()))?;
            if credentials.is_none() {
                tracing::warn!("everybody who reaches ZooKeeper can change the center's records: use --zookeeper-auth");
            }
            let settings = Settings { session_timeout: *session_timeout, credentials, ..Settings::default() };
            let ensemble = ZooKeeper::new(address, settings);
            Ok(Arc::new(ensemble.map_err(|error| Error::bad_request(format!("--zookeeper: {error}")))?))
        }
    }
}

async fn worker(config: &Config, state: &StateDir) -> Result<(Arc<Engine>, Arc<dyn Worker>)> {
    let policy = Policy::new(&config.allow_paths, &config.allow_nbd)?;
    let memory_bytes = config.memory_bytes.map(|bytes| bytes as u64);
    let sizes = EngineConfig { cores: config.cores, memory_bytes, ..EngineConfig::default() };
    let started = tokio::task::spawn_blocking(move || Engine::start(sizes)).await;
    let engine = started.map_err(|error| Error::internal(Operation::Start, error.to_string()))?;
    let engine = Arc::new(engine?);
    let worker = EngineWorker::new(Arc::clone(&engine), policy, config.node.clone(), state.path())?;
    Ok((engine, Arc::new(worker)))
}

fn runner_config(config: &Config, incarnation: &Incarnation, address: &str) -> RunnerConfig {
    RunnerConfig {
        slots: config.slots,
        labels: config.labels.clone(),
        allow_paths: config.allow_paths.iter().map(|path| path.display().to_string()).collect(),
        allow_nbd: config.allow_nbd.clone(),
        quiet_after: config.quiet_after,
        ..RunnerConfig::new(config.node.clone(), incarnation.clone(), address.to_owned())
    }
}

fn dispatcher_config(config: &Config, implied_node: Option<NodeId>) -> DispatcherConfig {
    let fence = config.fence_command.clone().map(|program| Arc::new(FenceCommand(program)) as Arc<dyn FenceProgram>);
    DispatcherConfig {
        retention: config.retention,
        quiet_after: config.quiet_after,
        implied_node,
        fence,
        ..DispatcherConfig::default()
    }
}

/// Where others reach this node: as it was told, else where it listens; of all addresses, the host's name.
fn advertised(config: &Config, listens: SocketAddr) -> String {
    if let Some(address) = &config.advertise {
        return address.clone();
    }
    if !listens.ip().is_unspecified() {
        return listens.to_string();
    }
    let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
    format!("{}:{}", host.unwrap_or_else(|| String::from("localhost")), listens.port())
}
