//! Executes tasks: accepts assignments, runs their copies, and returns what this node must not or cannot finish.
//!
//! ```text
//!  dispatcher --assign--> AssignmentTable -> attempt -> Executor (engine) -> outcome -> record
//!                                               ^  gate
//!  session -> ActiveRegistration -> WriteLease -'  (committed renewals)
//! ```
//! A runner is one future, [`Runner::run`], and the calls of its [`RunnerHandle`]. Dropping the future is a crash: all
//! that it did stops where it is, and only the store tells what happened.
//!
//! What always holds:
//! - No call decides anything. Only a write that checks the registration, the claims and the record counts.
//! - A copy to a destination that other nodes reach writes only while the lease of its registration is held; when that
//!   lease ends, the copy is cut off. Copies behind a destination's lock need no lease.
//! - An assignment is in the table until the last write about it. The registration is removed when the table is empty,
//!   or with its session.

mod attempt;
mod attendance;
mod assignments;
mod context;
mod engine_executor;
mod finish;
mod grant;
mod handle;
mod leader_notifier;
mod node_state;
mod registration;
mod renewal;
mod stored_epoch;
mod write_lease;
#[cfg(test)]
mod tests;

pub(crate) use engine_executor::EngineExecutor;
pub use handle::RunnerHandle;
#[cfg(test)]
pub(crate) use node_state::Memory;
pub use node_state::{NodeState, StateDir, boot_id};

use crate::clock::Clock;
use crate::coord::paths;
use crate::coord::session_keeper::Sessions;
use crate::execution::Executor;
use crate::liveness::LivenessCounter;
use crate::model::{Incarnation, NodeId, Record, TaskId, TaskRecord};
use crate::peers::LeaderClient;
use crate::stopping::{LEAVE_MAX, MARK_MAX, REST_MAX, TELL_MAX};
use attempt::Attempt;
use blockhaul_engine::job::Reason;
use context::{RunnerContext, RunnerPhase};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// What a runner is, for all its life.
#[derive(Clone, Debug)]
pub struct RunnerConfig {
    /// Its node.
    pub node: NodeId,
    /// The life of its process.
    pub incarnation: Incarnation,
    /// Of the kernel: [`boot_id`].
    pub boot_id: String,
    /// Where the dispatcher reaches it, as `HOST:PORT`.
    pub address: String,
    /// Tasks that it runs at once. Default 4. More share the same devices and cores.
    pub slots: u32,
    /// Free text for operators.
    pub labels: BTreeMap<String, String>,
    /// As the policy's, for the dispatcher to read.
    pub allow_paths: Vec<String>,
    /// The same.
    pub allow_nbd: Vec<String>,
    /// Version of its program.
    pub build: String,
    /// Where peers probe it in the storage network.
    pub data: Option<SocketAddr>,
    /// How often its process was started before.
    pub restarts: u64,
    /// Beats while the runner is alive.
    pub liveness: LivenessCounter,
    /// When it stops, it waits so long for copies to come to rest and to be given back. Default 10 s.
    pub stop_wait: Duration,
    /// Assumed life of a request in network and server. Default 30 s.
    pub quiet_after: Duration,
}

impl RunnerConfig {
    /// A runner with every default.
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
            liveness: LivenessCounter::default(),
            stop_wait: REST_MAX,
            quiet_after: Duration::from_secs(30),
        }
    }
}

/// Whom a runner works with.
#[derive(Clone, Debug)]
pub struct Seams {
    /// Carries copies out.
    pub executor: Arc<dyn Executor>,
    /// The dispatcher, wherever it is.
    pub leader: Arc<dyn LeaderClient>,
    /// The node's clocks.
    pub clock: Arc<dyn Clock>,
    /// The node's memory.
    pub state: Arc<dyn NodeState>,
}

/// See the module's head.
#[derive(Debug)]
pub struct Runner {
    context: Arc<RunnerContext>,
    starts: mpsc::UnboundedReceiver<Arc<Attempt>>,
}

/// How a runner has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Tasks that could not be given back: their copies have not come to rest, or the store was out of reach. While
    /// there are any the session must not be closed: it is left to expire.
    pub left_behind: Vec<TaskId>,
}

impl Runner {
    /// A runner that does nothing yet.
    #[must_use]
    pub fn new(config: RunnerConfig, seams: Seams) -> Self {
        // Bounded by the slots: what is in it is in the book.
        let (sender, starts) = mpsc::unbounded_channel();
        Self { context: Arc::new(RunnerContext::new(config, seams, sender)), starts }
    }

    /// Its calls.
    #[must_use]
    pub fn handle(&self) -> RunnerHandle {
        RunnerHandle::new(Arc::clone(&self.context))
    }

    /// Runs until `shutdown`, and then until everything is given back or [`RunnerConfig::stop_wait`] has passed: at most
    /// 2 s more than that.
    pub async fn run(self, sessions: Sessions, shutdown: impl Future<Output = ()>) -> Stopped {
        let Self { context, mut starts } = self;
        if context.is_wanted() {
            context.phase.send_replace(RunnerPhase::Serving);
        }
        let work = async {
            tokio::join!(
                renewal::guard_leases(&context),
                registration::keep_registered(&context, sessions),
                renewal::renew(&context),
                attempts(&context, &mut starts),
                attendance::attend(&context),
                context.config.liveness.idle(|| true),
                sweep(&context),
                leader_notifier::tell_changes(&context),
                leader_notifier::tell_progress(&context),
            )
        };
        let stop = async {
            shutdown.await;
            give_everything_back(&context).await
        };
        let stopped = tokio::select! { biased;
            stopped = stop => stopped,
            _ = work => unreachable!("none of these ends"),
        };
        context.phase.send_replace(RunnerPhase::Absent);
        stopped
    }
}

/// Lives all attempts, as a part of the runner's own future: who holds that still holds them, and who drops it ends them.
async fn attempts(context: &Arc<RunnerContext>, starts: &mut mpsc::UnboundedReceiver<Arc<Attempt>>) {
    let mut living: Vec<Pin<Box<dyn Future<Output = ()> + Send>>> = Vec::new();
    loop {
        // There are as many as slots: few enough to look at each whenever one of them has to go on.
        let all = poll_fn(|context| {
            living.retain_mut(|attempt| attempt.as_mut().poll(context).is_pending());
            Poll::<()>::Pending
        });
        tokio::select! { biased;
            Some(attempt) = starts.recv() => living.push(Box::pin(attempt.live(Arc::clone(context)))),
            () = all => {}
        }
    }
}

/// The order of a stop: marked, refusing, cancelled, at rest, given back, told, gone.
async fn give_everything_back(context: &RunnerContext) -> Stopped {
    context.end();
    let marked = context.registration.borrow().as_ref().map(|registration| registration.version);
    // One that is away stays there.
    let marked = marked.filter(|_| context.turn(RunnerPhase::Serving, RunnerPhase::Stopping));
    if let Some(version) = marked {
        let mut registrations = context.registration.subscribe();
        let moved = registrations
            .wait_for(|registration| registration.as_ref().is_none_or(|registration| registration.version != version));
        let _ = timeout(MARK_MAX, moved).await;
    }
    stop_all(context, Reason::RunnerInterrupt).await;
    let _ = timeout(TELL_MAX, context.notifier.told()).await;
    let left_behind: Vec<_> = context.assignments.all().iter().map(|attempt| attempt.task().clone()).collect();
    if left_behind.is_empty() {
        context.phase.send_replace(RunnerPhase::Absent);
        match timeout(LEAVE_MAX, registration::deregister(context)).await {
            Ok(Ok(())) => tracing::info!(node = %context.config.node, "gone from the runners"),
            Ok(Err(error)) => tracing::warn!(%error, "the registration stays until its session ends"),
            Err(_) => tracing::warn!("no answer: the registration stays until its session ends"),
        }
    } else {
        tracing::error!(?left_behind, "not everything could be given back: the registration is left to expire");
    }
    Stopped { left_behind }
}

/// Stops every attempt and waits, bounded, until all are over.
async fn stop_all(context: &RunnerContext, reason: Reason) {
    context.assignments.all().iter().for_each(|attempt| attempt.stop(reason));
    let mut held = context.assignments.count();
    let _ = timeout(context.config.stop_wait, held.wait_for(|&count| count == 0)).await;
}

/// Drops what an earlier life has kept of tasks that nobody here will go on with.
async fn sweep(context: &RunnerContext) {
    for (task, created_ms) in context.seams.executor.kept() {
        let registration = context.registration().await;
        let path = paths::task(&task);
        let is_over = match registration.session.get(&path).await {
            Ok(None) => true,
            Ok(Some(node)) => TaskRecord::decode(&node.data)
                .is_ok_and(|record| record.state.is_terminal() || record.created_ms != created_ms),
            // Kept until another time.
            Err(_) => false,
        };
        if is_over {
            context.seams.executor.forget(&task, created_ms);
        }
    }
    std::future::pending().await
}
