//! Runs a `taskd` from its start to its end: one owner constructs, initialises, runs, stops and joins all of its parts.
//!
//! ```text
//!  new --> initialise --> run: { session, runner, election and dispatcher, services } --> stop --> join
//!               |                                                                          ^
//!               `-- an error, or a stop was requested ---------------------------------------'
//! ```
//! What always holds:
//! - Every stop is requested through the [`StopHandle`]. Nothing in here ends the process or waits for its own thread.
//! - Roles come and go by what the session and the election say; the process stays. A role that cannot run on this node stops the
//!   process with an error; one that an outage ends starts again.
//! - The order of a stop: deciding ends, the service address is removed, leadership is resigned, the runner returns
//!   its tasks, the session is closed, the listeners end. A task that could not be returned keeps its session
//!   until that expires. A lost storage network does the same, but the process stays, answers, and starts its roles again.

mod apart;
mod candidacy;
mod hooks;
mod node_handle;
mod leader_role;
mod overview;
mod roles;
mod service_manager;
mod shutdown;
mod web_servers;

pub use crate::config::Limits;
pub use crate::stop_bounds::TOTAL_MAX as STOP_MAX;
pub(crate) use leader_role::LeaderRole;
pub use node_handle::NodeHandle;
pub(crate) use roles::Roles;
pub use shutdown::{Stop, StopHandle};
use web_servers::WebServers;

use crate::audit::AuditLog;
use crate::clock::{Clock, ClockOffset, HostClock};
use crate::cluster::service_address::{InterfaceAddress, ServiceAddress};
use crate::cluster::storage_probe::StorageProbe;
use crate::config::{Config, Store, host_name};
use crate::coord::CoordClient;
use crate::coord::bootstrap::BootstrappingClient;
use crate::coord::credentials::Credentials;
use crate::coord::embedded::Embedded;
use crate::coord::session_keeper::SessionKeeper;
use crate::coord::zookeeper::{Settings, ZooKeeper};
use crate::dispatcher::{Config as DispatcherConfig, FenceCommand, FenceProgram};
use crate::execution::Executor;
use crate::liveness::LivenessCounters;
use crate::model::{Incarnation, NodeId};
use crate::order::{EndedOrders, OrderVerifier, RunnerOrders};
use crate::peers::{CenterId, LocalIdentity, RunnerClient};
use crate::policy::Policy;
use crate::rpc::calls::{GrpcLeaderClient, GrpcRunnerClient};
use crate::rpc::channels::Channels;
use crate::rpc::listener::{Listener, Protection};
use crate::rpc::local_roles::{Leadership, NodeRoles};
use crate::rpc::tls::Tls;
use crate::runner::{
    EngineExecutor, NodeState, Runner, RunnerConfig, RunnerDependencies, RunnerHandle, StateDir, Stopped, boot_id,
};
use crate::stop_bounds::INITIALISE_MAX;
use blockhaul_engine::engine::{Engine, EngineConfig};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::shown::Shown;
use overview::Overview;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};

/// Longest wait for the lock of the state directory: a predecessor that was killed may still hold it.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Time between two attempts to lock it.
const LOCK_EVERY: Duration = Duration::from_millis(100);

/// Node that has its settings, and has not touched the host.
#[derive(Debug)]
pub struct Node {
    config: Config,
    handle: NodeHandle,
}

/// Node that holds its state directory, has started its engine, and listens.
#[derive(Debug)]
pub struct InitialisedNode {
    keeper: SessionKeeper,
    leading: LeaderRole,
    runner: Runner,
    engine: Arc<Engine>,
    listener: Listener,
    web: WebServers,
    storage_probe: Option<StorageProbe>,
    local_runner: watch::Sender<Option<RunnerHandle>>,
    serving: watch::Sender<bool>,
    clock_told: watch::Receiver<Option<ClockOffset>>,
    failures: mpsc::Receiver<Error>,
    liveness: LivenessCounters,
    overview: Overview,
    /// Whether there are no other nodes.
    is_alone: bool,
    stopper: StopHandle,
}

impl Node {
    /// Creates the node. Touches nothing.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self::with_handle(config, NodeHandle::default())
    }

    /// Creates the node with its handle: stops that were requested before hold.
    #[must_use]
    pub fn with_handle(config: Config, handle: NodeHandle) -> Self {
        Self { config, handle }
    }

    /// Returns the handle that requests stops, from now on.
    #[must_use]
    pub fn stopper(&self) -> StopHandle {
        self.handle.stopper().clone()
    }

    /// Initialises the node and runs it until a stop is requested. Returns when it has stopped.
    ///
    /// # Errors
    /// Says what could not be initialised, or which role cannot run on this node.
    pub async fn run_to_end(self) -> Result<()> {
        let stopper = self.stopper();
        if stopper.asked() >= Stop::Drained {
            return Ok(());
        }
        let mut initialising = Box::pin(self.initialise());
        let ready = tokio::select! {
            biased;
            ready = &mut initialising => ready?,
            () = stopper.wait_for(Stop::Drained) => match timeout(INITIALISE_MAX, initialising).await {
                // Its run ends at once, and stops it in the usual order.
                Ok(Ok(ready)) => ready,
                Ok(Err(_)) | Err(_) => return Ok(()),
            },
        };
        let vip = ready.leading.vip.clone();
        tokio::select! {
            biased;
            () = stopper.wait_for(Stop::Fast) => {}
            result = ready.run() => return result,
        }
        if let Some(vip) = vip {
            // The kernel keeps the address when the process ends.
            vip.release().await;
        }
        Ok(())
    }

    /// Takes the state directory, starts the engine and listens. The coordination service need not be there.
    ///
    /// # Errors
    /// Says what is missing or wrong on this host, and what to do.
    pub async fn initialise(self) -> Result<InitialisedNode> {
        let Self { config, handle } = self;
        check_apart(&config).await?;
        let state = Arc::new(lock(&config).await?);
        handle.attempt_logs().open(state.path());
        let restarts = count_start(&state);
        let storage_probe = open_storage_probe(&config).await?;
        let vip = config.vip.as_deref().map(InterfaceAddress::parse).transpose()?;
        let service = center(&config, &state).await?;
        let (engine, executor) = executor(&config, &state).await?;
        let (local_runner, local_runner_seen) = watch::channel(None);
        let (serving, serving_seen) = watch::channel(false);
        let (leadership, leadership_seen) = watch::channel(Leadership::default());
        let (clock, clock_told) = watch::channel(None);
        let (channels, center) = (Channels::new(config.tls.clone()), CenterId::default());
        let runners = Arc::new(GrpcRunnerClient::new(channels.clone(), center.clone()));
        let roles = NodeRoles {
            leadership: leadership_seen,
            serving: serving_seen,
            runner: local_runner_seen,
            clock,
            logs: handle.attempt_logs().clone(),
            runners: Arc::clone(&runners) as Arc<dyn RunnerClient>,
        };
        let incarnation = Incarnation(uuid::Uuid::new_v4().simple().to_string());
        let last_end = handle.begin_run(state.path(), &incarnation);
        let identity = LocalIdentity { center: center.clone(), node: config.node.clone(), incarnation };
        let listener = listen(&config, &state, &identity, &roles, vip.as_ref()).await?;
        let address = advertised(&config, listener.address());
        tracing::info!(node = %config.node, listen = %listener.address(), %address, "listening");
        let vip = service_address(vip, &listener, storage_probe.as_ref()).await?;
        let (leader, leader_seen) = watch::channel(None);
        let to_leader = GrpcLeaderClient::new(channels, center.clone(), leader_seen);
        let dependencies = runner_dependencies(executor, to_leader, &state);
        let data = storage_probe.as_ref().map(StorageProbe::address);
        let runner_config =
            RunnerConfig { data, restarts, last_end, ..runner_config(&config, &identity, &address, &state)? };
        let runner_pulse = runner_config.liveness.clone();
        let runner = Runner::new(runner_config, dependencies);
        let web = WebServers::open(&config, &roles, &runner.handle(), &listener).await?;
        let overview = Overview {
            node: config.node.clone(),
            incarnation: identity.incarnation.clone(),
            started: Instant::now(),
            restarts,
            runner: runner.handle(),
            leadership: roles.leadership,
            serving: roles.serving,
            storage_network: storage_probe.as_ref().map(StorageProbe::seen),
            vip: vip.clone(),
            tls: config.tls.clone(),
            access: config.access.clone(),
            order_keys: config.order_keys.clone(),
        };
        let (failed, failures) = mpsc::channel(1);
        let leading = LeaderRole {
            dispatcher: dispatcher_config(&config),
            node: config.node,
            incarnation: identity.incarnation,
            address,
            calls: runners,
            clock: Arc::new(HostClock),
            clock_off: config.clock_off,
            runner: runner.handle(),
            leadership,
            leader,
            vip,
            holds_leadership: watch::Sender::new(false),
            failed,
        };
        let liveness = LivenessCounters::of([runner_pulse, leading.dispatcher.liveness.clone()]);
        handle.attach(&overview);
        Ok(InitialisedNode {
            keeper: SessionKeeper::new(Arc::new(BootstrappingClient::new(service, center, state))),
            leading,
            runner,
            engine,
            listener,
            web,
            storage_probe,
            local_runner,
            serving,
            clock_told,
            failures,
            liveness,
            overview,
            is_alone: config.store == Store::Embedded,
            stopper: handle.stopper().clone(),
        })
    }
}

impl InitialisedNode {
    /// Returns the address on which it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Runs until a stop is requested, and stops. When this returns, nothing runs any more but tasks that could not be
    /// returned. On [`Stop::Fast`] its owner drops it.
    ///
    /// # Errors
    /// Says which role cannot run on this node, and why; the node has stopped then, too.
    pub async fn run(self) -> Result<()> {
        let Self { keeper, leading, runner, engine, listener, web, storage_probe, local_runner, serving, .. } = self;
        let Self { clock_told, failures, liveness, overview, is_alone, stopper, .. } = self;
        local_runner.send_replace(Some(runner.handle()));
        let storage_network = storage_probe.as_ref().map(StorageProbe::seen);
        let tls = overview.tls.clone();
        let certified = tls.as_ref().map(Tls::valid);
        let roles = Roles {
            keeper: &keeper,
            leading: &leading,
            serving,
            stopper: &stopper,
            storage_network,
            clock_told,
            certified,
            failures,
        };
        let clock: Arc<dyn Clock> = Arc::new(HostClock);
        let probing = async {
            match &storage_probe {
                Some(probe) => probe.run(&leading.node, keeper.sessions(), &clock).await,
                None => std::future::pending().await,
            }
        };
        let renewing = async {
            match &tls {
                Some(tls) => tls.keep(&*clock).await,
                None => std::future::pending().await,
            }
        };
        let governing = async {
            let own = || tls.as_ref().filter(|_| !is_alone).and_then(Tls::own_name);
            match &overview.access {
                Some(access) => access.keep(own).await,
                None => std::future::pending().await,
            }
        };
        let following_keys = async {
            match &overview.order_keys {
                Some(keys) => keys.keep().await,
                None => std::future::pending().await,
            }
        };
        let (Stopped { left_behind }, result) = tokio::select! {
            biased;
            ended = roles.run(runner, || service_manager::stopping(&overview)) => ended,
            () = probing => unreachable!("it never ends"),
            () = renewing => unreachable!("it never ends"),
            () = governing => unreachable!("it never ends"),
            () = following_keys => unreachable!("it never ends"),
            () = service_manager::attend(&overview, liveness) => unreachable!("it never ends"),
        };
        local_runner.send_replace(None);
        if !left_behind.is_empty() {
            // Those tasks may still write: their session has to expire, and the engine cannot be waited for.
            std::mem::forget((keeper, engine));
        }
        tokio::join!(listener.close(), web.close());
        tracing::info!("stopped");
        result
    }
}

/// Refuses to let tasks write what decides about their rights, or read the key of this node.
async fn check_apart(config: &Config) -> Result<()> {
    let config = config.clone();
    let checked = tokio::task::spawn_blocking(move || apart::check(&config)).await;
    checked.unwrap_or_else(|error| Err(Error::internal(Operation::Start, error.to_string())))
}

async fn listen(
    config: &Config,
    state: &StateDir,
    identity: &LocalIdentity,
    roles: &NodeRoles,
    vip: Option<&InterfaceAddress>,
) -> Result<Listener> {
    let orders = order_verifier(config, &identity.center);
    let audit = AuditLog::start(state.path(), config.node.clone())?;
    let protection = Protection { tls: config.tls.clone(), access: config.access.clone(), orders, audit };
    Listener::open(
        config.listen,
        protection,
        identity.clone(),
        roles.clone(),
        only_node(config),
        vip.map(|vip| vip.address),
    )
    .await
}

/// Returns the node of plain paths where there is only one.
fn only_node(config: &Config) -> Option<NodeId> {
    (config.store == Store::Embedded).then(|| config.node.clone())
}

fn order_verifier(config: &Config, center: &CenterId) -> Option<OrderVerifier> {
    let keys = config.order_keys.clone()?;
    Some(OrderVerifier::new(keys, center.clone(), only_node(config)))
}

fn runner_orders(config: &Config, center: &CenterId, state: &StateDir) -> Result<Option<RunnerOrders>> {
    let Some(verifier) = order_verifier(config, center) else { return Ok(None) };
    let ended = EndedOrders::open(state.path(), HostClock.unix_ms())?;
    Ok(Some(RunnerOrders::new(verifier, config.node.clone(), boot_id(), ended)))
}

async fn open_storage_probe(config: &Config) -> Result<Option<StorageProbe>> {
    match &config.data {
        Some((address, terms)) => StorageProbe::open(address, *terms).await.map(Some),
        None => Ok(None),
    }
}

/// Opens the service address, which must not be one of the addresses that the node needs itself.
async fn service_address(
    vip: Option<InterfaceAddress>,
    listener: &Listener,
    storage_probe: Option<&StorageProbe>,
) -> Result<Option<ServiceAddress>> {
    let Some((vip, endpoint)) = vip.zip(listener.service()) else { return Ok(None) };
    let own = [Some(listener.address()), storage_probe.map(StorageProbe::address)];
    let own: Vec<_> = own.into_iter().flatten().map(|address| address.ip()).collect();
    ServiceAddress::open(vip, &own, Arc::new(endpoint)).await.map(Some)
}

/// Locks the state directory. Waits for a predecessor that was killed: its requests may still be in the kernel.
async fn lock(config: &Config) -> Result<StateDir> {
    let deadline = Instant::now() + LOCK_WAIT;
    loop {
        match StateDir::lock(&config.state_dir) {
            Err(error) if error.code == Code::Busy && Instant::now() < deadline => sleep(LOCK_EVERY).await,
            result => return result,
        }
    }
}

/// Counts this start; returns the number of earlier ones, as far as it is known.
fn count_start(state: &StateDir) -> u64 {
    state.count_start().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot count this start");
        0
    })
}

async fn center(config: &Config, state: &StateDir) -> Result<Arc<dyn CoordClient>> {
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
                tracing::warn!(
                    "no ZooKeeper credentials: every client of ZooKeeper can change the center's records (use --zookeeper-auth)"
                );
            }
            let settings = Settings { session_timeout: *session_timeout, credentials, ..Settings::default() };
            let ensemble = ZooKeeper::new(address, settings);
            Ok(Arc::new(ensemble.map_err(|error| Error::bad_request(format!("--zookeeper: {error}")))?))
        }
    }
}

async fn executor(config: &Config, state: &StateDir) -> Result<(Arc<Engine>, Arc<dyn Executor>)> {
    let policy = Policy::new(&config.allow_paths, &config.allow_nbd)?;
    let memory_bytes = config.memory_bytes.map(|bytes| bytes as u64);
    let sizes = EngineConfig { cores: config.cores, memory_bytes, ..EngineConfig::default() };
    let started = tokio::task::spawn_blocking(move || Engine::start(sizes)).await;
    let engine = started.map_err(|error| Error::internal(Operation::Start, error.to_string()))?;
    let engine = Arc::new(engine?);
    let hooks_config = config.clone();
    let hooks = tokio::task::spawn_blocking(move || hooks::open_hooks(&hooks_config)).await;
    let hooks = hooks.map_err(|error| Error::internal(Operation::Start, error.to_string()))??;
    let executor = EngineExecutor::new(Arc::clone(&engine), policy, config.node.clone(), state.path(), hooks)?;
    Ok((engine, Arc::new(executor)))
}

fn runner_config(config: &Config, identity: &LocalIdentity, address: &str, state: &StateDir) -> Result<RunnerConfig> {
    Ok(RunnerConfig {
        slots: config.slots,
        labels: config.labels.clone(),
        allow_paths: config.allow_paths.iter().map(|path| path.shown().to_string()).collect(),
        allow_nbd: config.allow_nbd.clone(),
        quiet_after: config.quiet_after,
        orders: runner_orders(config, &identity.center, state)?,
        ..RunnerConfig::new(identity.node.clone(), identity.incarnation.clone(), address.to_owned())
    })
}

fn runner_dependencies(
    executor: Arc<dyn Executor>,
    leader: GrpcLeaderClient,
    state: &Arc<StateDir>,
) -> RunnerDependencies {
    let (leader, clock, state) = (Arc::new(leader), Arc::new(HostClock), Arc::clone(state) as Arc<dyn NodeState>);
    RunnerDependencies { executor, leader, clock, state }
}

fn dispatcher_config(config: &Config) -> DispatcherConfig {
    let fence = config.fence_command.clone().map(|program| Arc::new(FenceCommand(program)) as Arc<dyn FenceProgram>);
    DispatcherConfig {
        retention: config.retention,
        quiet_after: config.quiet_after,
        fence,
        ..DispatcherConfig::default()
    }
}

/// Returns the address at which others reach this node: `--advertise`, else where it listens. If that is every address, the
/// host's name.
fn advertised(config: &Config, listens: SocketAddr) -> String {
    if let Some(address) = &config.advertise {
        return address.clone();
    }
    if !listens.ip().is_unspecified() {
        return listens.to_string();
    }
    format!("{}:{}", host_name().unwrap_or_else(|| String::from("localhost")), listens.port())
}
