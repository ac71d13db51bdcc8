//! Carries calls between simulated nodes. Requests and answers may be late or lost, and a call may arrive twice.
//!
//! A call is carried out as part of the called process, and answered only while that process lives and both nodes reach
//! each other. The caller waits 2 s at most, as over the real network.

use super::clock::SimClock;
use super::process::Process;
use crate::async_spawn::spawn;
use crate::clock::Clock;
use crate::dispatcher::DispatcherHandle;
use crate::model::{Epoch, Progress, TaskId, TaskSpec};
use crate::peers::{
    Addressee, AssignResponse, Assignment, AssignmentStatus, CallError, CenterId, LeaderClient, LocalIdentity, Peer,
    RunnerClient,
};
use crate::rpc::local_roles::Leadership;
use crate::runner::RunnerHandle;
use async_trait::async_trait;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

/// Bound of every call.
const CALL_MAX: Duration = Duration::from_secs(2);

/// Name of the clients in the network; they are never cut off.
pub(super) const CLIENT: &str = "client";

/// Faults of the network.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NetworkFaults {
    /// Share of requests and of answers that are lost.
    pub(super) lost: f64,
    /// Share of calls that arrive twice.
    pub(super) twice: f64,
    /// Longest delay of one way, in milliseconds.
    pub(super) delay_ms: u64,
}

/// Endpoint of a process: its identity, and the handles that serve its calls.
#[derive(Clone, Debug)]
pub(super) struct ProcessEndpoint {
    pub(super) process: Arc<Process>,
    pub(super) identity: LocalIdentity,
    pub(super) runner: RunnerHandle,
    /// Clock of its node.
    pub(super) clock: Arc<SimClock>,
    pub(super) leadership: watch::Receiver<Leadership>,
}

impl ProcessEndpoint {
    /// Returns the dispatcher of the process, if it leads.
    pub(super) fn leader(&self) -> Option<DispatcherHandle> {
        self.leadership.borrow().dispatcher.clone()
    }
}

#[derive(Debug, Default)]
struct Inner {
    endpoints: BTreeMap<String, ProcessEndpoint>,
    cut: BTreeSet<(String, String)>,
    faults: NetworkFaults,
}

/// The network of a world.
#[derive(Clone, Debug, Default)]
pub(super) struct Net(Arc<Mutex<Inner>>);

type CallFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Net {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the endpoint of a process at its node's address.
    pub(super) fn listen(&self, node: &str, endpoint: ProcessEndpoint) {
        self.lock().endpoints.insert(node.to_owned(), endpoint);
    }

    /// Removes the endpoint at a node's address.
    pub(super) fn unlisten(&self, node: &str) {
        self.lock().endpoints.remove(node);
    }

    pub(super) fn set_faults(&self, faults: NetworkFaults) {
        self.lock().faults = faults;
    }

    /// Cuts the connection of two nodes, or repairs it.
    pub(super) fn cut(&self, one: &str, other: &str, is_cut: bool) {
        for pair in [(one, other), (other, one)].map(|(from, to)| (from.to_owned(), to.to_owned())) {
            if is_cut {
                self.lock().cut.insert(pair)
            } else {
                self.lock().cut.remove(&pair)
            };
        }
    }

    pub(super) fn mend_all(&self) {
        self.lock().cut.clear();
    }

    /// Returns the endpoint at a node's address, if the caller reaches it.
    pub(super) fn find_endpoint(&self, from: &str, to: &str) -> Option<ProcessEndpoint> {
        let inner = self.lock();
        let is_cut = inner.cut.contains(&(from.to_owned(), to.to_owned()));
        inner.endpoints.get(to).filter(|_| !is_cut).cloned()
    }

    /// Makes a call from one node to another.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        from: &str,
        to: &str,
        work: impl Fn(ProcessEndpoint) -> CallFuture<T> + Send,
    ) -> Result<T, CallError> {
        let no_answer = |why: &str| CallError::NoAnswer(format!("{to}: {why}"));
        let answered = timeout(CALL_MAX, async {
            self.delay_or_lose().await;
            let endpoint = self.find_endpoint(from, to)?;
            if fastrand::f64() < self.lock().faults.twice {
                carry_out(&endpoint, work(endpoint.clone()), Duration::from_millis(fastrand::u64(0..3000)));
            }
            let answer = carry_out(&endpoint, work(endpoint.clone()), Duration::ZERO).await.ok();
            self.delay_or_lose().await;
            self.find_endpoint(from, to).and(answer)
        });
        match answered.await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(no_answer("the connection broke")),
            Err(_) => Err(no_answer("it took too long")),
        }
    }

    async fn delay_or_lose(&self) {
        let NetworkFaults { lost, delay_ms, .. } = self.lock().faults;
        if fastrand::f64() < lost {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(fastrand::u64(0..=delay_ms))).await;
    }
}

/// Carries out a call in the called process, after a delay.
fn carry_out<T: Send + 'static>(
    endpoint: &ProcessEndpoint,
    work: CallFuture<T>,
    after: Duration,
) -> oneshot::Receiver<T> {
    let (answer, answered) = oneshot::channel();
    endpoint.process.enter(|| {
        spawn(async move {
            sleep(after).await;
            let _ = answer.send(work.await);
        })
    });
    answered
}

/// Calls that one node's dispatcher and runner make.
#[derive(Debug)]
pub(super) struct SimCalls {
    pub(super) net: Net,
    pub(super) node: String,
    pub(super) leader: watch::Receiver<Option<Peer>>,
}

#[async_trait]
impl RunnerClient for SimCalls {
    async fn assign(&self, to: &Peer, assignment: Assignment) -> Result<AssignResponse, CallError> {
        let work = |endpoint: ProcessEndpoint| {
            let assignment = assignment.clone();
            Box::pin(async move { endpoint.runner.assign(assignment).await }) as CallFuture<_>
        };
        self.at_process(to, work).await
    }

    async fn query(&self, to: &Peer, assignment: Assignment) -> Result<AssignmentStatus, CallError> {
        let work = |endpoint: ProcessEndpoint| {
            let assignment = assignment.clone();
            Box::pin(async move { endpoint.runner.query(assignment).await }) as CallFuture<_>
        };
        self.at_process(to, work).await
    }

    async fn notify(&self, to: &Peer, leader: Epoch, task: &TaskId) -> Result<(), CallError> {
        let work = |endpoint: ProcessEndpoint| {
            let task = task.clone();
            Box::pin(async move { endpoint.runner.notify(leader, &task).await }) as CallFuture<_>
        };
        self.at_process(to, work).await
    }

    async fn resolve(&self, to: &Peer, leader: Epoch, spec: &TaskSpec) -> Result<Vec<String>, CallError> {
        let work = |endpoint: ProcessEndpoint| {
            let spec = spec.clone();
            Box::pin(async move { endpoint.runner.resolve(leader, &spec).await }) as CallFuture<_>
        };
        self.at_process(to, work).await
    }

    async fn interrupt(&self, to: &Peer, leader: Epoch) -> Result<(), CallError> {
        let work = |endpoint: ProcessEndpoint| {
            Box::pin(async move { endpoint.runner.interrupt(leader).await }) as CallFuture<_>
        };
        self.at_process(to, work).await
    }

    async fn clock(&self, to: &Peer, _offset_ms: Option<i64>) -> Result<u64, CallError> {
        let work = |endpoint: ProcessEndpoint| Box::pin(async move { Ok(endpoint.clock.unix_ms()) }) as CallFuture<_>;
        self.at_process(to, work).await
    }
}

impl SimCalls {
    /// Calls one process. Another process at its address refuses the call.
    async fn at_process<T: Send + 'static>(
        &self,
        to: &Peer,
        work: impl Fn(ProcessEndpoint) -> CallFuture<Result<T, CallError>> + Send + Sync,
    ) -> Result<T, CallError> {
        let addressee = Addressee::new(&CenterId::default(), to);
        let guarded = |endpoint: ProcessEndpoint| match endpoint.identity.check(&addressee) {
            Ok(()) => work(endpoint),
            Err(error) => Box::pin(std::future::ready(Err(error))) as CallFuture<_>,
        };
        self.net.call(&self.node, &to.address, guarded).await?
    }

    async fn call_leader<F>(&self, work: impl Fn(DispatcherHandle) -> F + Send + Sync) -> Result<(), CallError>
    where
        F: Future<Output = blockhaul_engine::error::Result<()>> + Send + 'static,
    {
        let leader = self.leader.borrow().clone();
        let Some(leader) = leader else { return Err(CallError::NoAnswer(String::from("no leader is known"))) };
        let at_endpoint = |endpoint: ProcessEndpoint| {
            let call = endpoint.leader().map(&work);
            Box::pin(async move {
                match call {
                    Some(call) => {
                        call.await.map_err(|error| CallError::Refused { code: error.code, why: error.message })
                    }
                    None => Err(CallError::NoAnswer(String::from("the node does not lead"))),
                }
            }) as CallFuture<_>
        };
        self.at_process(&leader, at_endpoint).await
    }
}

#[async_trait]
impl LeaderClient for SimCalls {
    async fn changed(&self, tasks: &[TaskId]) -> Result<(), CallError> {
        let tasks = tasks.to_vec();
        self.call_leader(move |leader| {
            let tasks = tasks.clone();
            async move { leader.changed(tasks).await }
        })
        .await
    }

    async fn progress(&self, updates: &[(TaskId, Progress)]) -> Result<(), CallError> {
        let updates = updates.to_vec();
        self.call_leader(move |leader| {
            let updates = updates.clone();
            async move { leader.progress(updates) }
        })
        .await
    }
}
