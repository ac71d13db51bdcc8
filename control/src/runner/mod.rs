//! Executes tasks: accepts assignments, runs their copies, and returns what this node must not or cannot finish.
//!
//! ```text
//!  dispatcher --assign--> AssignmentTable -> attempt -> Executor (engine) -> outcome -> record
//!                                               ^  gate
//!  session -> ActiveRegistration -> WriteLease -'  (committed renewals)
//! ```
//! A runner is one future, [`Runner::run`], and the calls of its [`RunnerHandle`]. Dropping the future has the effect
//! of a crash: all work stops where it is.
//!
//! What always holds:
//! - Calls are hints. Only a write that checks the registration, the claims and the record changes a task.
//! - A copy to a destination that other nodes reach writes only while the lease of its registration is held; when that
//!   lease ends, the copy is cut off. Copies behind a destination's lock need no lease.
//! - An assignment is in the table until the last write about it. The registration is removed when the table is empty,
//!   or with its session.

mod assignments;
mod attempt;
mod bandwidth;
mod withdrawal;
mod context;
mod engine_executor;
mod finish;
mod assignment_records;
mod handle;
mod hook_execution;
mod last_run;
mod leader_notifier;
mod metrics;
mod node_state;
mod progress_reports;
mod registration;
mod renewal;
mod source_claims;
mod state;
mod stored_epoch;
mod write_lease;
#[cfg(test)]
mod tests;

pub(crate) use engine_executor::EngineExecutor;
pub use handle::RunnerHandle;
pub(crate) use hook_execution::NodeHooks;
pub(crate) use last_run::{begin_run, end_run};
pub(crate) use metrics::RunnerMetrics;
#[cfg(test)]
pub(crate) use node_state::Memory;
pub use node_state::{NodeState, StateDir, boot_id};

use crate::clock::Clock;
use crate::coord::paths;
use crate::coord::session_keeper::Sessions;
use crate::execution::Executor;
use crate::liveness::LivenessCounter;
use crate::model::{Incarnation, LastEnd, NodeId, Record, TaskId, TaskRecord};
use crate::order::RunnerOrders;
use crate::peers::LeaderClient;
use crate::stop_bounds::{DRAIN_MAX, LEAVE_MAX, MARK_MAX, NOTIFY_MAX};
use attempt::Attempt;
use blockhaul_engine::job::StopReason;
use context::RunnerPhase;
use state::RunnerState;
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Settings of a runner that never change.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// Node of the runner.
    pub node: NodeId,
    /// Incarnation of the node's process.
    pub incarnation: Incarnation,
    /// Boot id of the kernel: [`boot_id`].
    pub boot_id: String,
    /// Address at which the dispatcher reaches the runner, as `HOST:PORT`.
    pub address: String,
    /// Number of tasks that it runs at once. Default 4. With more, each gets a smaller share of devices and cores.
    pub slots: u32,
    /// Free text for operators.
    pub labels: BTreeMap<String, String>,
    /// Allowed folders and devices of the policy, as they are registered.
    pub allow_paths: Vec<String>,
    /// Allowed servers of the policy, as they are registered.
    pub allow_nbd: Vec<String>,
    /// Version of the program.
    pub build: String,
    /// Address at which peers probe the node in the storage network.
    pub data: Option<SocketAddr>,
    /// Number of earlier starts of `taskd` on this node.
    pub restarts: u64,
    /// How the last run of `taskd` on this node has ended, if that is known.
    pub last_end: Option<LastEnd>,
    /// Counts rounds while the runner is alive.
    pub liveness: LivenessCounter,
    /// Longest wait at a stop for copies to drain and to be returned. Default 10 s.
    pub stop_wait: Duration,
    /// Assumed lifetime of a request in network and server. Default 30 s.
    pub quiet_after: Duration,
    /// Checks what clients have signed before each attempt; `None` (default): they need not sign.
    pub orders: Option<RunnerOrders>,
}

impl RunnerConfig {
    /// Returns the settings of a runner with every default.
    #[must_use]
    pub fn new(node: NodeId, incarnation: Incarnation, address: String) -> Self {
        Self {
            node,
            incarnation,
            boot_id: boot_id(),
            address,
            slots: 4,
            labels: BTreeMap::new(),
            allow_paths: Vec::new(),
            allow_nbd: Vec::new(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
            data: None,
            restarts: 0,
            last_end: None,
            liveness: LivenessCounter::default(),
            stop_wait: DRAIN_MAX,
            quiet_after: Duration::from_secs(30),
            orders: None,
        }
    }
}

/// Services that a runner uses.
#[derive(Clone, Debug)]
pub struct RunnerDependencies {
    /// Carries out copies.
    pub executor: Arc<dyn Executor>,
    /// Calls the dispatcher, wherever it is.
    pub leader: Arc<dyn LeaderClient>,
    /// Clocks of the node.
    pub clock: Arc<dyn Clock>,
    /// State of the node.
    pub state: Arc<dyn NodeState>,
}

/// Runner; see the module's head.
#[derive(Debug)]
pub struct Runner {
    state: Arc<RunnerState>,
    starts: mpsc::UnboundedReceiver<Arc<Attempt>>,
}

/// Result of a runner's stop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Tasks that could not be returned: their copies have not drained, or the store was unreachable. If there are any,
    /// the session must not be closed, but left to expire.
    pub left_behind: Vec<TaskId>,
}

impl Runner {
    /// Creates a runner that does nothing yet.
    #[must_use]
    pub fn new(config: RunnerConfig, dependencies: RunnerDependencies) -> Self {
        // Bounded by the slots: each queued attempt is in the table.
        let (sender, starts) = mpsc::unbounded_channel();
        Self { state: Arc::new(RunnerState::new(config, dependencies, sender)), starts }
    }

    /// Returns the handle for its calls.
    #[must_use]
    pub fn handle(&self) -> RunnerHandle {
        RunnerHandle::new(Arc::clone(&self.state))
    }

    /// Runs until `shutdown`, and then until all tasks are returned or [`RunnerConfig::stop_wait`] has passed, and for
    /// up to 2 s more to notify the leader and to deregister.
    pub async fn run(self, sessions: Sessions, shutdown: impl Future<Output = ()>) -> Stopped {
        let Self { state, mut starts } = self;
        if state.context.is_wanted() {
            state.context.phase.send_replace(RunnerPhase::Serving);
        }
        let work = async {
            tokio::join!(
                renewal::guard_leases(&state),
                registration::keep_registered(&state, sessions),
                renewal::renew(&state),
                attempts(&state, &mut starts),
                withdrawal::run(&state),
                state.context.config.liveness.idle(|| true),
                bandwidth::follow_settings(&state.context),
                delete_ended_journals(&state),
                leader_notifier::send_changes(&state.context.notifier, &*state.context.dependencies.leader),
                progress_reports::send_progress(&state.assignments, &*state.context.dependencies.leader),
            )
        };
        let stop = async {
            shutdown.await;
            return_all_tasks(&state).await
        };
        let stopped = tokio::select! { biased;
            stopped = stop => stopped,
            _ = work => unreachable!("none of these ends"),
        };
        state.context.phase.send_replace(RunnerPhase::Absent);
        stopped
    }
}

/// Runs all attempts as a part of the runner's own future: pausing it pauses them, and dropping it ends them.
async fn attempts(state: &Arc<RunnerState>, starts: &mut mpsc::UnboundedReceiver<Arc<Attempt>>) {
    let mut running: Vec<Pin<Box<dyn Future<Output = ()> + Send>>> = Vec::new();
    loop {
        // There are no more attempts than slots: few enough to poll all of them at each wake-up.
        let all = poll_fn(|context| {
            running.retain_mut(|attempt| attempt.as_mut().poll(context).is_pending());
            Poll::<()>::Pending
        });
        tokio::select! { biased;
            Some(attempt) = starts.recv() => running.push(Box::pin(run(attempt, Arc::clone(state)))),
            () = all => {}
        }
    }
}

/// Runs one attempt to its last write.
async fn run(attempt: Arc<Attempt>, state: Arc<RunnerState>) {
    let status = attempt.run(&state.context).await;
    state.assignments.remove(&attempt, status);
    state.context.renew.notify_one();
}

/// Stops in a fixed order: mark the registration, refuse assignments, cancel, drain, return, notify, deregister.
async fn return_all_tasks(state: &RunnerState) -> Stopped {
    state.context.end();
    let marked = state.context.registration.borrow().as_ref().map(|registration| registration.version);
    // A runner without a registration stays without.
    let marked = marked.filter(|_| state.context.change_phase(RunnerPhase::Serving, RunnerPhase::Stopping));
    if let Some(version) = marked {
        let mut registrations = state.context.registration.subscribe();
        let moved = registrations
            .wait_for(|registration| registration.as_ref().is_none_or(|registration| registration.version != version));
        let _ = timeout(MARK_MAX, moved).await;
    }
    stop_all(state, StopReason::RunnerInterrupt).await;
    let _ = timeout(NOTIFY_MAX, state.context.notifier.all_sent()).await;
    let left_behind: Vec<_> = state.assignments.all().iter().map(|attempt| attempt.task().clone()).collect();
    if left_behind.is_empty() {
        state.context.phase.send_replace(RunnerPhase::Absent);
        match timeout(LEAVE_MAX, registration::deregister(state)).await {
            Ok(Ok(())) => tracing::info!(node = %state.context.config.node, "deregistered"),
            Ok(Err(error)) => tracing::warn!(%error, "cannot remove the registration: it ends with its session"),
            Err(_) => tracing::warn!("no answer: the registration ends with its session"),
        }
    } else {
        tracing::error!(?left_behind, "not all tasks could be returned: leaving the registration to expire");
    }
    Stopped { left_behind }
}

/// Stops every attempt and waits, bounded, until all are over.
async fn stop_all(state: &RunnerState, reason: StopReason) {
    state.assignments.all().iter().for_each(|attempt| attempt.stop(reason));
    let mut held = state.assignments.count();
    let _ = timeout(state.context.config.stop_wait, held.wait_for(|&count| count == 0)).await;
}

/// Deletes the journals of earlier incarnations whose tasks have ended.
async fn delete_ended_journals(state: &RunnerState) {
    for (task, created_ms) in state.context.dependencies.executor.kept() {
        let registration = state.context.registration().await;
        let path = paths::task(&task);
        let is_over = match registration.session.get(&path).await {
            Ok(None) => true,
            Ok(Some(node)) => TaskRecord::decode(&node.data)
                .is_ok_and(|record| record.state.is_terminal() || record.created_ms != created_ms),
            // Unknown: the journal is kept.
            Err(_) => false,
        };
        if is_over {
            state.context.dependencies.executor.forget(&task, created_ms);
        }
    }
    std::future::pending().await
}
