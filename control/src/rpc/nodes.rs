//! Serves the calls between nodes: from the dispatcher to this node's runner, and from runners to this node's
//! dispatcher.

use super::checks;
use super::convert::refusal;
use super::error::RpcError;
use super::local_roles::NodeRoles;
use super::wire::{self, dispatcher_server::Dispatcher, runner_server::Runner};
use crate::clock::{Clock, ClockOffset, HostClock};
use crate::model::{Epoch, Progress, TaskId, TaskSpec};
use crate::peers::{Assignment, LogQuery};
use crate::runner::RunnerHandle;
use blockhaul_engine::error::{Code, Result};
use tonic::{Request, Response, Status};

type Answer<T> = std::result::Result<Response<T>, Status>;

/// Answers the dispatcher.
#[derive(Debug)]
pub(crate) struct RunnerService(NodeRoles);

impl RunnerService {
    /// Creates the service for the runner of `roles`.
    #[must_use]
    pub(crate) fn new(roles: NodeRoles) -> Self {
        Self(roles)
    }

    fn runner(&self) -> std::result::Result<RunnerHandle, RpcError> {
        let missing = || refusal(Code::RunnerInterrupt, String::from("this node's runner is starting or stopping"));
        self.0.runner.borrow().clone().ok_or_else(missing)
    }
}

#[tonic::async_trait]
impl Runner for RunnerService {
    #[tracing::instrument(skip_all, fields(task = %request.get_ref().task, epoch = request.get_ref().epoch))]
    async fn assign(&self, request: Request<wire::Assignment>) -> Answer<wire::AssignReply> {
        let runner = self.runner()?;
        let assignment = Assignment::try_from(request.into_inner()).map_err(RpcError::from)?;
        Ok(Response::new(runner.assign(assignment).await.map_err(RpcError::from)?.into()))
    }

    async fn ask(&self, request: Request<wire::Assignment>) -> Answer<wire::AskReply> {
        let runner = self.runner()?;
        let assignment = Assignment::try_from(request.into_inner()).map_err(RpcError::from)?;
        Ok(Response::new(runner.query(assignment).await.map_err(RpcError::from)?.into()))
    }

    async fn nudge(&self, request: Request<wire::NudgeRequest>) -> Answer<wire::Done> {
        let wire::NudgeRequest { task, leader } = request.into_inner();
        let task = TaskId::new(task).map_err(RpcError::from)?;
        done(self.runner()?.notify(Epoch(leader), &task).await)
    }

    async fn resolve(&self, request: Request<wire::ResolveRequest>) -> Answer<wire::ResolveReply> {
        let wire::ResolveRequest { leader, spec } = request.into_inner();
        let spec = TaskSpec::try_from(spec).map_err(RpcError::from)?;
        let identities = self.runner()?.resolve(Epoch(leader), &spec).await.map_err(RpcError::from)?;
        Ok(Response::new(wire::ResolveReply { identities }))
    }

    #[tracing::instrument(skip_all)]
    async fn interrupt(&self, request: Request<wire::InterruptRequest>) -> Answer<wire::Done> {
        let wire::InterruptRequest { leader } = request.into_inner();
        done(self.runner()?.interrupt(Epoch(leader)).await)
    }

    async fn clock(&self, request: Request<wire::ClockRequest>) -> Answer<wire::ClockReply> {
        if let Some(offset_ms) = request.into_inner().offset_ms {
            self.0.clock.send_replace(Some(ClockOffset::told(offset_ms, &HostClock)));
        }
        Ok(Response::new(wire::ClockReply { unix_ms: HostClock.unix_ms() }))
    }

    async fn check_task(&self, request: Request<wire::CheckTaskRequest>) -> Answer<wire::NodeCheck> {
        let spec = TaskSpec::try_from(request.into_inner().spec).map_err(RpcError::from)?;
        // It may take longer than the caller waits: a refusal is an answer all the same, and nothing is undone.
        let checked = self.runner()?.check(&spec).await;
        Ok(Response::new(checks::answer(checked)))
    }

    // Also while the runner starts or stops.
    async fn attempt_log(&self, request: Request<wire::AttemptLogRequest>) -> Answer<wire::AttemptLogReply> {
        let query = LogQuery::try_from(request.into_inner()).map_err(RpcError::from)?;
        Ok(Response::new(self.0.logs.read(query).await.map_err(RpcError::from)?.into()))
    }
}

/// Answers runners.
#[derive(Debug)]
pub(crate) struct DispatcherService(NodeRoles);

impl DispatcherService {
    /// Creates the service for the dispatcher of `roles`.
    #[must_use]
    pub(crate) fn new(roles: NodeRoles) -> Self {
        Self(roles)
    }
}

#[tonic::async_trait]
impl Dispatcher for DispatcherService {
    async fn changed(&self, request: Request<wire::ChangedRequest>) -> Answer<wire::Done> {
        let dispatcher = self.0.dispatcher()?;
        let tasks: Result<Vec<_>> = request.into_inner().tasks.into_iter().map(TaskId::new).collect();
        done(dispatcher.changed(tasks.map_err(RpcError::from)?).await)
    }

    async fn progress(&self, request: Request<wire::ProgressRequest>) -> Answer<wire::Done> {
        let dispatcher = self.0.dispatcher()?;
        let update = |wire::Update { task, progress }| {
            Ok((TaskId::new(task)?, progress.map(Progress::from).unwrap_or_default()))
        };
        let updates: Result<Vec<_>> = request.into_inner().updates.into_iter().map(update).collect();
        done(dispatcher.progress(updates.map_err(RpcError::from)?))
    }
}

fn done<E: Into<RpcError>>(result: std::result::Result<(), E>) -> Answer<wire::Done> {
    result.map_err(Into::into)?;
    Ok(Response::new(wire::Done {}))
}
