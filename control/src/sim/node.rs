//! Simulates a node: the state that survives its process, and the incarnations of that process.
//!
//! An incarnation consists of the same parts as `taskd`: a session keeper, a runner, an election, and a dispatcher
//! while it leads. These parts are production code, and so are their start and stop. The coordination service, the
//! network, the engine, the clock and the state directory are simulated.

use super::clock::SimClock;
use super::defect::Defect;
use super::environment::{Journals, SimEnvironment};
use super::executor::SimExecutor;
use super::net::{ProcessEndpoint, SimCalls};
use super::process::Process;
use crate::async_spawn::spawn;
use crate::coord::CoordClient;
use crate::coord::session_keeper::SessionKeeper;
use crate::dispatcher::Config;
use crate::model::{Holder, Incarnation, NodeId};
use crate::node::{LeaderRole, Roles, Stop, StopHandle};
use crate::peers::{CenterId, LocalIdentity};
use crate::rpc::local_roles::Leadership;
use crate::runner::{Memory, Runner, RunnerConfig, RunnerDependencies, Stopped};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// State that survives a process.
#[derive(Debug)]
pub(super) struct SimNode {
    pub(super) name: String,
    pub(super) clock: Arc<SimClock>,
    slots: u32,
    center: Arc<dyn CoordClient>,
    memory: Arc<Memory>,
    /// Number of boots of its kernel.
    boots: AtomicU64,
    journals: Journals,
    environment: SimEnvironment,
}

/// One incarnation of a node.
#[derive(Debug)]
pub(super) struct SimProcess {
    pub(super) process: Arc<Process>,
    pub(super) holder: Holder,
    executor: Arc<SimExecutor>,
    stopper: StopHandle,
    ended: Arc<Mutex<Option<Stopped>>>,
    /// Keeps a session that was not closed until the process has ended; then it expires.
    _keeper: Arc<SessionKeeper>,
}

impl SimNode {
    pub(super) fn new(name: &str, slots: u32, center: Arc<dyn CoordClient>, environment: SimEnvironment) -> Self {
        Self {
            name: name.to_owned(),
            clock: Arc::new(SimClock::new(Duration::from_secs(fastrand::u64(1..1_000_000)))),
            slots,
            center,
            memory: Arc::default(),
            boots: AtomicU64::new(1),
            journals: Journals::default(),
            environment,
        }
    }

    /// Has the kernel boot again.
    pub(super) fn reboot(&self) {
        self.boots.fetch_add(1, Relaxed);
    }

    /// Starts the node's process. The earlier process must have ended.
    pub(super) fn start(&self) -> SimProcess {
        let process = Arc::new(Process::default());
        let incarnation = Incarnation(format!("{:032x}", fastrand::u128(..)));
        let node = NodeId::new(self.name.as_str()).expect("a node's name");
        let holder = Holder { node: node.clone(), incarnation: incarnation.clone() };
        let environment = &self.environment;
        environment.hooks.kill_leftovers(&self.name);
        let speed = if environment.defect == Some(Defect::SlowClocks) { 0.2 } else { 1.0 };
        let clock = Arc::new(self.clock.at_speed(speed));
        let executor =
            Arc::new(SimExecutor::new(holder.clone(), environment.clone(), clock.clone(), self.journals.clone()));
        let (leader, leader_seen) = watch::channel(None);
        let calls = Arc::new(SimCalls { net: environment.net.clone(), node: self.name.clone(), leader: leader_seen });
        let config = RunnerConfig {
            slots: self.slots,
            boot_id: format!("boot {} of {}", self.boots.load(Relaxed), self.name),
            ..RunnerConfig::new(node.clone(), incarnation.clone(), self.name.clone())
        };
        let dependencies =
            RunnerDependencies { executor: executor.clone(), leader: calls.clone(), clock, state: self.memory.clone() };
        let runner = Runner::new(config, dependencies);
        let (leadership, leadership_seen) = watch::channel(Leadership::default());
        let identity =
            LocalIdentity { center: CenterId::default(), node: node.clone(), incarnation: incarnation.clone() };
        let runner_handle = runner.handle();
        let endpoint = ProcessEndpoint {
            process: process.clone(),
            identity,
            runner: runner_handle,
            clock: self.clock.clone(),
            leadership: leadership_seen,
        };
        environment.net.listen(&self.name, endpoint);
        // No role of a simulated node fails for good.
        let (failed, failures) = mpsc::channel(1);
        let leading = LeaderRole {
            node,
            incarnation,
            address: self.name.clone(),
            calls,
            clock: self.clock.clone(),
            clock_off: Duration::MAX,
            dispatcher: self.dispatcher_config(),
            runner: runner.handle(),
            leadership,
            leader,
            vip: None,
            holds_leadership: watch::Sender::new(false),
            failed,
        };
        let (keeper, stopper) = (Arc::new(SessionKeeper::new(self.center.clone())), StopHandle::new());
        let ended = Arc::new(Mutex::new(None));
        let (own, asked, result) = (keeper.clone(), stopper.clone(), ended.clone());
        process.enter(|| {
            spawn(async move {
                let serving = watch::Sender::new(false);
                let roles = Roles {
                    keeper: &own,
                    leading: &leading,
                    serving,
                    stopper: &asked,
                    storage_network: None,
                    clock_told: watch::channel(None).1,
                    certified: None,
                    failures,
                };
                let (stopped, _) = roles.run(runner, || ()).await;
                *result.lock().unwrap_or_else(PoisonError::into_inner) = Some(stopped);
            })
        });
        SimProcess { process, holder, executor, stopper, ended, _keeper: keeper }
    }

    fn dispatcher_config(&self) -> Config {
        let mut config = Config { fence: Some(self.environment.fence.clone()), ..Config::default() };
        match self.environment.defect {
            Some(Defect::DrainAtOnce) => config.quiet_after = Duration::ZERO,
            Some(Defect::NoHoldOff) => config.hold_off = Duration::ZERO,
            _ => {}
        }
        config
    }
}

impl SimProcess {
    /// Asks the process to stop.
    pub(super) fn stop(&self) {
        self.stopper.stop(Stop::Drained);
    }

    /// Returns the result of its stop, once it has stopped.
    pub(super) fn ended(&self) -> Option<Stopped> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns every job that it has started.
    pub(super) fn jobs(&self) -> Vec<u64> {
        self.executor.jobs()
    }

    /// Tells whether a copy of a local volume will never drain, so that the process has to be ended.
    pub(super) fn is_wedged(&self) -> bool {
        self.executor.is_wedged()
    }
}
