//! Calls between nodes over gRPC: each has its answer within two seconds, or none.

use super::channels::Channels;
use super::fault::Fault;
use super::limits::{MESSAGE_BYTES_MAX, NODE_CALL_WAIT, UPDATES_MAX};
use super::wire::{self, dispatcher_client::DispatcherClient, runner_client::RunnerClient};
use crate::peers::{Answer, Assignment, CallError, LeaderCalls, RunnerCalls, Standing};
use crate::record::{Epoch, Progress, TaskId, TaskSpec};
use async_trait::async_trait;
use blockhaul_engine::error::Code;
use std::future::Future;
use tokio::sync::watch;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

/// Calls to runners.
#[derive(Clone, Debug)]
pub struct GrpcRunnerCalls {
    channels: Channels,
}

impl GrpcRunnerCalls {
    /// Over these connections.
    #[must_use]
    pub fn new(channels: Channels) -> Self {
        Self { channels }
    }

    fn client(&self, address: &str) -> Result<RunnerClient<Channel>, CallError> {
        Ok(RunnerClient::new(self.channels.to(address)?).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }
}

#[async_trait]
impl RunnerCalls for GrpcRunnerCalls {
    async fn assign(&self, address: &str, assignment: Assignment) -> Result<Answer, CallError> {
        let mut client = self.client(address)?;
        bounded(client.assign(request(wire::Assignment::from(&assignment)))).await.map(Answer::from)
    }

    async fn ask(&self, address: &str, assignment: Assignment) -> Result<Standing, CallError> {
        let mut client = self.client(address)?;
        Standing::try_from(bounded(client.ask(request(wire::Assignment::from(&assignment)))).await?)
    }

    async fn nudge(&self, address: &str, leader: Epoch, task: &TaskId) -> Result<(), CallError> {
        let mut client = self.client(address)?;
        let nudge = wire::NudgeRequest { task: task.to_string(), leader: leader.0 };
        bounded(client.nudge(request(nudge))).await.map(drop)
    }

    async fn resolve(&self, address: &str, leader: Epoch, spec: &TaskSpec) -> Result<Vec<String>, CallError> {
        let mut client = self.client(address)?;
        let resolve = wire::ResolveRequest { leader: leader.0, spec: Some(wire::Spec::from(spec)) };
        bounded(client.resolve(request(resolve))).await.map(|reply| reply.identities)
    }

    async fn interrupt(&self, address: &str, leader: Epoch) -> Result<(), CallError> {
        let mut client = self.client(address)?;
        bounded(client.interrupt(request(wire::InterruptRequest { leader: leader.0 }))).await.map(drop)
    }

    async fn clock(&self, address: &str) -> Result<u64, CallError> {
        let mut client = self.client(address)?;
        bounded(client.clock(request(wire::ClockRequest {}))).await.map(|reply| reply.unix_ms)
    }
}

/// Calls to the dispatcher, wherever that is.
#[derive(Clone, Debug)]
pub struct GrpcLeaderCalls {
    channels: Channels,
    leader: watch::Receiver<Option<String>>,
}

impl GrpcLeaderCalls {
    /// `leader` says where it is, as `HOST:PORT`.
    #[must_use]
    pub fn new(channels: Channels, leader: watch::Receiver<Option<String>>) -> Self {
        Self { channels, leader }
    }

    fn client(&self) -> Result<DispatcherClient<Channel>, CallError> {
        let leader = self.leader.borrow().clone();
        let address =
            leader.ok_or_else(|| CallError::NoAnswer(String::from("no node leads, as far as is known here")))?;
        Ok(DispatcherClient::new(self.channels.to(&address)?).max_decoding_message_size(MESSAGE_BYTES_MAX))
    }
}

#[async_trait]
impl LeaderCalls for GrpcLeaderCalls {
    async fn changed(&self, tasks: &[TaskId]) -> Result<(), CallError> {
        let mut client = self.client()?;
        for some in tasks.chunks(UPDATES_MAX) {
            let tasks = some.iter().map(ToString::to_string).collect();
            bounded(client.changed(request(wire::ChangedRequest { tasks }))).await?;
        }
        Ok(())
    }

    async fn progress(&self, updates: &[(TaskId, Progress)]) -> Result<(), CallError> {
        let mut client = self.client()?;
        for some in updates.chunks(UPDATES_MAX) {
            let update = |(task, progress): &(TaskId, Progress)| wire::Update {
                task: task.to_string(),
                progress: Some((*progress).into()),
            };
            let updates = some.iter().map(update).collect();
            bounded(client.progress(request(wire::ProgressRequest { updates }))).await?;
        }
        Ok(())
    }
}

/// With the deadline for the other side to know.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(NODE_CALL_WAIT);
    request
}

/// The answer to a call, or none in time.
async fn bounded<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Result<T, CallError> {
    match tokio::time::timeout(NODE_CALL_WAIT, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Fault::from(status).into()),
        Err(_) => {
            let message = format!("nothing within {} s", NODE_CALL_WAIT.as_secs());
            Err(Fault::no_answer(Code::Timeout, message).into())
        }
    }
}
