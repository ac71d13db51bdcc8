//! Answers the services for the dispatcher of this node's term, and for the runner of this node.

use crate::cluster::clock_skew::{ClockSkew, is_off};
use crate::dispatcher::{DispatcherHandle, Query, Status};
use crate::model::{
    DrainMode, Epoch, NodeId, Progress, Submission, TaskChange, TaskId, TaskRecord, TaskSpec, TaskState,
};
use crate::peers::{AssignResponse, Assignment, AssignmentStatus, CallError, CenterId};
use crate::rpc::local_roles::{CenterMetrics, CenterStatus, ClockInfo, LeaderApi, RunnerApi, RunnerInfo};
use crate::runner::RunnerHandle;
use async_trait::async_trait;
use blockhaul_engine::error::{Effect, Error, Operation, Result, Side};
use std::sync::Arc;
use tokio::sync::watch;

/// The dispatcher of one term.
#[derive(Clone, Debug)]
pub(super) struct DispatcherApi {
    pub(super) dispatcher: DispatcherHandle,
    pub(super) center: CenterId,
    pub(super) clocks: Arc<ClockSkew>,
}

#[async_trait]
impl LeaderApi for DispatcherApi {
    async fn submit(&self, order: Submission) -> Result<Arc<TaskRecord>> {
        self.dispatcher.submit(order).await
    }

    async fn get(&self, task: &TaskId) -> Result<Arc<TaskRecord>> {
        self.dispatcher.get(task).await
    }

    async fn watch(&self, task: &TaskId) -> Result<watch::Receiver<Arc<TaskRecord>>> {
        self.dispatcher.watch(task).await
    }

    async fn list(
        &self,
        state: Option<TaskState>,
        after: Option<&TaskId>,
        most: usize,
    ) -> Result<Vec<Arc<TaskRecord>>> {
        let mut query = Query { state, after: after.cloned(), limit: 0 };
        let mut tasks = Vec::new();
        loop {
            let page = self.dispatcher.list(query.clone()).await?;
            tasks.extend(page.tasks);
            query.after = page.next;
            if query.after.is_none() || tasks.len() >= most {
                tasks.truncate(most);
                return Ok(tasks);
            }
        }
    }

    async fn change(&self, task: &TaskId, change: TaskChange) -> Result<Arc<TaskRecord>> {
        self.dispatcher.change(task, change).await
    }

    async fn remove(&self, task: &TaskId) -> Result<Arc<TaskRecord>> {
        self.dispatcher.remove(task).await
    }

    async fn runners(&self) -> Result<Vec<RunnerInfo>> {
        let views = self.dispatcher.runners().await?;
        let clock = |node: &NodeId| {
            let offset_ms = self.clocks.offset(node)?;
            Some(ClockInfo { offset_ms, is_off: is_off(offset_ms) })
        };
        let seen = views.into_iter().map(|view| RunnerInfo {
            clock: clock(&view.node),
            node: view.node,
            registration: view.registration,
            draining: view.drain.is_some(),
            running: u32::try_from(view.tasks).unwrap_or(u32::MAX),
        });
        Ok(seen.collect())
    }

    async fn drain(&self, node: &NodeId, drain: DrainMode) -> Result<u32> {
        self.dispatcher.drain(node, drain).await?;
        Ok(self.runners().await?.iter().find(|seen| seen.node == *node).map_or(0, |seen| seen.running))
    }

    async fn fence(&self, node: &NodeId) -> Result<u32> {
        Ok(u32::try_from(self.dispatcher.fence(node).await?).unwrap_or(u32::MAX))
    }

    async fn status(&self) -> Result<CenterStatus> {
        let Status { leader, epoch, tasks, undecodable, runners, .. } = self.dispatcher.status().await?;
        let there = self.dispatcher.runners().await?.into_iter().filter_map(|view| view.registration);
        Ok(CenterStatus {
            center: self.center.get().cloned().unwrap_or_default(),
            leader: leader.node,
            address: leader.address,
            epoch,
            runners: u32::try_from(runners).unwrap_or(u32::MAX),
            restarts: there.map(|there| there.restarts).fold(0, u64::saturating_add),
            tasks: tasks.into_iter().map(|(state, count)| (state, count as u64)).collect(),
            unreadable: undecodable.into_iter().map(|(path, why)| format!("{path}: {why}")).collect(),
        })
    }

    async fn numbers(&self) -> Result<CenterMetrics> {
        let status = self.dispatcher.status().await?;
        let running = self.list(Some(TaskState::Running), None, usize::MAX).await?;
        let sum =
            |part: fn(&Progress) -> u64| running.iter().map(|task| part(&task.progress)).fold(0, u64::saturating_add);
        Ok(CenterMetrics {
            epoch: status.epoch,
            tasks: status.tasks.into_iter().map(|(state, count)| (state, count as u64)).collect(),
            unreadable: status.undecodable.len() as u64,
            planned_bytes: sum(|progress| progress.planned),
            durable_bytes: sum(|progress| progress.durable),
            rate_bytes_per_second: sum(|progress| progress.rate_bytes_per_second),
            assignments: status.assignments,
            queue_wait: status.queue_wait,
            assignment: status.assignment,
            store: status.store,
        })
    }

    async fn changed(&self, tasks: Vec<TaskId>) -> Result<()> {
        self.dispatcher.changed(tasks).await
    }

    async fn progress(&self, updates: Vec<(TaskId, Progress)>) -> Result<()> {
        self.dispatcher.progress(updates)
    }
}

#[async_trait]
impl RunnerApi for RunnerHandle {
    async fn assign(&self, assignment: Assignment) -> Result<AssignResponse> {
        Self::assign(self, assignment).await.map_err(refused)
    }

    async fn query(&self, assignment: Assignment) -> Result<AssignmentStatus> {
        Self::query(self, assignment).await.map_err(refused)
    }

    async fn notify(&self, leader: Epoch, task: TaskId) -> Result<()> {
        Self::notify(self, leader, &task).await.map_err(refused)
    }

    async fn resolve(&self, leader: Epoch, spec: TaskSpec) -> Result<Vec<String>> {
        Self::resolve(self, leader, &spec).await.map_err(refused)
    }

    async fn interrupt(&self, leader: Epoch) -> Result<()> {
        Self::interrupt(self, leader).await.map_err(refused)
    }
}

fn refused(error: CallError) -> Error {
    match error {
        CallError::Refused { code, why } => Error::new(code, Side::Engine, Operation::Start, why),
        CallError::NoAnswer(why) | CallError::Misdirected(why) => {
            Error { effect: Effect::Unknown, ..Error::internal(Operation::Start, why) }
        }
    }
}
