//! Carries calls between simulated nodes. Requests and answers may be late or lost, and a call may arrive twice.
//!
//! A call is carried out as part of the called process, and answered only while that process lives and both nodes reach
//! each other. The caller waits 2 s at most, as over the real network.

use super::process::Process;
use crate::model::{Epoch, Progress, TaskId, TaskSpec};
use crate::peers::{
    Addressee, AssignResponse, Assignment, AssignmentStatus, CallError, CenterId, LeaderClient, LocalIdentity, Peer,
    RunnerClient,
};
use crate::process::spawn;
use crate::rpc::local_roles::{LeaderApi, Leadership};
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
pub(super) struct SimEndpoint {
    pub(super) process: Arc<Process>,
    pub(super) identity: LocalIdentity,
    pub(super) runner: RunnerHandle,
    pub(super) leadership: watch::Receiver<Leadership>,
}

impl SimEndpoint {
    /// Returns the dispatcher of the process, if it leads.
    pub(super) fn leader(&self) -> Option<Arc<dyn LeaderApi>> {
        self.leadership.borrow().leader.clone()
    }
}

#[derive(Debug, Default)]
struct Inner {
    ports: BTreeMap<String, SimEndpoint>,
    cut: BTreeSet<(String, String)>,
    noise: NetworkFaults,
}

/// The network of a world.
#[derive(Clone, Debug, Default)]
pub(super) struct Net(Arc<Mutex<Inner>>);

type Work<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl Net {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the endpoint of a process at its node's address.
    pub(super) fn listen(&self, node: &str, port: SimEndpoint) {
        self.lock().ports.insert(node.to_owned(), port);
    }

    /// Removes the endpoint at a node's address.
    pub(super) fn hang_up(&self, node: &str) {
        self.lock().ports.remove(node);
    }

    pub(super) fn set_noise(&self, noise: NetworkFaults) {
        self.lock().noise = noise;
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

    fn reach(&self, from: &str, to: &str) -> Option<SimEndpoint> {
        let inner = self.lock();
        let is_cut = inner.cut.contains(&(from.to_owned(), to.to_owned()));
        inner.ports.get(to).filter(|_| !is_cut).cloned()
    }

    /// Makes a call from one node to another.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        from: &str,
        to: &str,
        work: impl Fn(SimEndpoint) -> Work<T> + Send,
    ) -> Result<T, CallError> {
        let no_answer = |why: &str| CallError::NoAnswer(format!("{to}: {why}"));
        let answered = timeout(CALL_MAX, async {
            self.travel().await;
            let port = self.reach(from, to)?;
            if fastrand::f64() < self.lock().noise.twice {
                carry_out(&port, work(port.clone()), Duration::from_millis(fastrand::u64(0..3000)));
            }
            let answer = carry_out(&port, work(port.clone()), Duration::ZERO).await.ok();
            self.travel().await;
            self.reach(from, to).and(answer)
        });
        match answered.await {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(no_answer("the connection broke")),
            Err(_) => Err(no_answer("it took too long")),
        }
    }

    async fn travel(&self) {
        let NetworkFaults { lost, delay_ms, .. } = self.lock().noise;
        if fastrand::f64() < lost {
            std::future::pending::<()>().await;
        }
        sleep(Duration::from_millis(fastrand::u64(0..=delay_ms))).await;
    }
}

/// Carries out a call in the called process, after a delay.
fn carry_out<T: Send + 'static>(port: &SimEndpoint, work: Work<T>, after: Duration) -> oneshot::Receiver<T> {
    let (answer, answered) = oneshot::channel();
    port.process.enter(|| {
        spawn(async move {
            sleep(after).await;
            let _ = answer.send(work.await);
        })
    });
    answered
}

/// Calls that one node's dispatcher and runner make.
#[derive(Debug)]
pub(super) struct Calls {
    pub(super) net: Net,
    pub(super) node: String,
    pub(super) leader: watch::Receiver<Option<Peer>>,
}

#[async_trait]
impl RunnerClient for Calls {
    async fn assign(&self, to: &Peer, assignment: Assignment) -> Result<AssignResponse, CallError> {
        let work = |port: SimEndpoint| {
            let assignment = assignment.clone();
            Box::pin(async move { port.runner.assign(assignment).await }) as Work<_>
        };
        self.at_process(to, work).await
    }

    async fn query(&self, to: &Peer, assignment: Assignment) -> Result<AssignmentStatus, CallError> {
        let work = |port: SimEndpoint| {
            let assignment = assignment.clone();
            Box::pin(async move { port.runner.query(assignment).await }) as Work<_>
        };
        self.at_process(to, work).await
    }

    async fn notify(&self, to: &Peer, leader: Epoch, task: &TaskId) -> Result<(), CallError> {
        let work = |port: SimEndpoint| {
            let task = task.clone();
            Box::pin(async move { port.runner.notify(leader, &task).await }) as Work<_>
        };
        self.at_process(to, work).await
    }

    async fn resolve(&self, to: &Peer, leader: Epoch, spec: &TaskSpec) -> Result<Vec<String>, CallError> {
        let work = |port: SimEndpoint| {
            let spec = spec.clone();
            Box::pin(async move { port.runner.resolve(leader, &spec).await }) as Work<_>
        };
        self.at_process(to, work).await
    }

    async fn interrupt(&self, to: &Peer, leader: Epoch) -> Result<(), CallError> {
        let work = |port: SimEndpoint| Box::pin(async move { port.runner.interrupt(leader).await }) as Work<_>;
        self.at_process(to, work).await
    }
}

impl Calls {
    /// Calls one process. Another process at its address refuses the call.
    async fn at_process<T: Send + 'static>(
        &self,
        to: &Peer,
        work: impl Fn(SimEndpoint) -> Work<Result<T, CallError>> + Send + Sync,
    ) -> Result<T, CallError> {
        let addressee = Addressee::new(&CenterId::default(), to);
        let guarded = |port: SimEndpoint| match port.identity.check(&addressee) {
            Ok(()) => work(port),
            Err(error) => Box::pin(std::future::ready(Err(error))) as Work<_>,
        };
        self.net.call(&self.node, &to.address, guarded).await?
    }

    async fn tell<F>(&self, work: impl Fn(Arc<dyn LeaderApi>) -> F + Send + Sync) -> Result<(), CallError>
    where
        F: Future<Output = blockhaul_engine::error::Result<()>> + Send + 'static,
    {
        let leader = self.leader.borrow().clone();
        let Some(leader) = leader else { return Err(CallError::NoAnswer(String::from("no leader is known"))) };
        let at_port = |port: SimEndpoint| {
            let told = port.leader().map(&work);
            Box::pin(async move {
                match told {
                    Some(told) => {
                        told.await.map_err(|error| CallError::Refused { code: error.code, why: error.message })
                    }
                    None => Err(CallError::NoAnswer(String::from("the node does not lead"))),
                }
            }) as Work<_>
        };
        self.at_process(&leader, at_port).await
    }
}

#[async_trait]
impl LeaderClient for Calls {
    async fn changed(&self, tasks: &[TaskId]) -> Result<(), CallError> {
        let tasks = tasks.to_vec();
        self.tell(move |leader| {
            let tasks = tasks.clone();
            async move { leader.changed(tasks).await }
        })
        .await
    }

    async fn progress(&self, updates: &[(TaskId, Progress)]) -> Result<(), CallError> {
        let updates = updates.to_vec();
        self.tell(move |leader| {
            let updates = updates.clone();
            async move { leader.progress(updates).await }
        })
        .await
    }
}
