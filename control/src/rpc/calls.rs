//! Makes the calls between nodes over gRPC. Each is answered or fails within two seconds.

use super::channels::Channels;
use super::error::RpcError;
use super::limits::{CHECK_WAIT, MESSAGE_BYTES_MAX, NODE_CALL_WAIT, UPDATES_MAX};
use super::wire::{
    self, dispatcher_client::DispatcherClient as DispatcherStub, runner_client::RunnerClient as RunnerStub,
};
use super::{addressee, checks};
use crate::model::{Epoch, Progress, TaskId, TaskSpec};
use crate::peers::{
    Addressee, AssignResponse, Assignment, AssignmentStatus, CallError, CenterId, LeaderClient, LogPart, LogQuery,
    Peer, RunnerClient,
};
use async_trait::async_trait;
use blockhaul_engine::error::{Code, Error};
use serde_json::Value;
use std::future::Future;
use std::time::Duration;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// Calls to runners.
#[derive(Clone, Debug)]
pub struct GrpcRunnerClient {
    channels: Channels,
    center: CenterId,
}

impl GrpcRunnerClient {
    /// Creates a client over these connections, as a member of this center.
    #[must_use]
    pub fn new(channels: Channels, center: CenterId) -> Self {
        Self { channels, center }
    }

    fn client(&self, to: &Peer) -> Result<RunnerStub<Channel>, CallError> {
        Ok(RunnerStub::new(self.channels.to(&to.address)?).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }

    fn request<T>(&self, to: &Peer, message: T) -> Request<T> {
        request(message, &Addressee::new(&self.center, to))
    }
}

#[async_trait]
impl RunnerClient for GrpcRunnerClient {
    async fn assign(&self, to: &Peer, assignment: Assignment) -> Result<AssignResponse, CallError> {
        let mut client = self.client(to)?;
        bounded(client.assign(self.request(to, wire::Assignment::from(&assignment)))).await.map(AssignResponse::from)
    }

    async fn query(&self, to: &Peer, assignment: Assignment) -> Result<AssignmentStatus, CallError> {
        let mut client = self.client(to)?;
        AssignmentStatus::try_from(bounded(client.ask(self.request(to, wire::Assignment::from(&assignment)))).await?)
    }

    async fn notify(&self, to: &Peer, leader: Epoch, task: &TaskId) -> Result<(), CallError> {
        let mut client = self.client(to)?;
        let nudge = wire::NudgeRequest { task: task.to_string(), leader: leader.0 };
        bounded(client.nudge(self.request(to, nudge))).await.map(drop)
    }

    async fn resolve(&self, to: &Peer, leader: Epoch, spec: &TaskSpec) -> Result<Vec<String>, CallError> {
        let mut client = self.client(to)?;
        let resolve = wire::ResolveRequest { leader: leader.0, spec: Some(wire::Spec::from(spec)) };
        bounded(client.resolve(self.request(to, resolve))).await.map(|reply| reply.identities)
    }

    async fn interrupt(&self, to: &Peer, leader: Epoch) -> Result<(), CallError> {
        let mut client = self.client(to)?;
        bounded(client.interrupt(self.request(to, wire::InterruptRequest { leader: leader.0 }))).await.map(drop)
    }

    async fn clock(&self, to: &Peer, offset_ms: Option<i64>) -> Result<u64, CallError> {
        let mut client = self.client(to)?;
        bounded(client.clock(self.request(to, wire::ClockRequest { offset_ms }))).await.map(|reply| reply.unix_ms)
    }

    async fn check(&self, to: &Peer, spec: &TaskSpec) -> Result<Result<Value, Error>, CallError> {
        let mut client = self.client(to)?;
        let mut request = self.request(to, wire::CheckTaskRequest { spec: Some(wire::Spec::from(spec)) });
        request.set_timeout(CHECK_WAIT);
        checks::result(bounded_by(CHECK_WAIT, client.check_task(request)).await?)
    }

    async fn attempt_log(&self, to: &Peer, query: &LogQuery) -> Result<LogPart, CallError> {
        let mut client = self.client(to)?;
        bounded(client.attempt_log(self.request(to, wire::AttemptLogRequest::from(query)))).await.map(LogPart::from)
    }
}

/// Calls to the dispatcher, wherever it is.
#[derive(Clone, Debug)]
pub struct GrpcLeaderClient {
    channels: Channels,
    center: CenterId,
    leader: watch::Receiver<Option<Peer>>,
}

impl GrpcLeaderClient {
    /// Creates a client; `leader` names the current leader.
    #[must_use]
    pub fn new(channels: Channels, center: CenterId, leader: watch::Receiver<Option<Peer>>) -> Self {
        Self { channels, center, leader }
    }

    fn client(&self) -> Result<(DispatcherStub<Channel>, Addressee), CallError> {
        let leader = self.leader.borrow().clone();
        let leader = leader.ok_or_else(|| CallError::NoAnswer(String::from("no known leader")))?;
        let client = DispatcherStub::new(self.channels.to(&leader.address)?);
        Ok((client.max_decoding_message_size(MESSAGE_BYTES_MAX), Addressee::new(&self.center, &leader)))
    }
}

#[async_trait]
impl LeaderClient for GrpcLeaderClient {
    async fn changed(&self, tasks: &[TaskId]) -> Result<(), CallError> {
        let (mut client, addressee) = self.client()?;
        for some in tasks.chunks(UPDATES_MAX) {
            let tasks = some.iter().map(ToString::to_string).collect();
            bounded(client.changed(request(wire::ChangedRequest { tasks }, &addressee))).await?;
        }
        Ok(())
    }

    async fn progress(&self, updates: &[(TaskId, Progress)]) -> Result<(), CallError> {
        let (mut client, addressee) = self.client()?;
        for some in updates.chunks(UPDATES_MAX) {
            let update = |(task, progress): &(TaskId, Progress)| wire::Update {
                task: task.to_string(),
                progress: Some((*progress).into()),
            };
            let updates = some.iter().map(update).collect();
            bounded(client.progress(request(wire::ProgressRequest { updates }, &addressee))).await?;
        }
        Ok(())
    }
}

/// Adds the deadline and the addressee to a request.
fn request<T>(message: T, addressee: &Addressee) -> Request<T> {
    let mut request = Request::new(message);
    addressee::name(request.metadata_mut(), addressee);
    request.set_timeout(NODE_CALL_WAIT);
    request
}

/// Returns the answer to a call, or an error after the deadline.
async fn bounded<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, CallError> {
    bounded_by(NODE_CALL_WAIT, call).await
}

/// As [`bounded`], with another deadline.
async fn bounded_by<T>(
    wait: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CallError> {
    match tokio::time::timeout(wait, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(RpcError::from(status).into()),
        Err(_) => {
            let message = format!("no answer within {} s", wait.as_secs());
            Err(RpcError::no_answer(Code::Timeout, message).into())
        }
    }
}
