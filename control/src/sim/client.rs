//! Simulates clients and operators: sends their requests to the leader until they are answered, and checks that the
//! store holds what was acknowledged.

use super::invariants::InvariantChecker;
use super::net::{CLIENT, Net, ProcessEndpoint};
use super::run_result::RunResult;
use super::scenario::ClientAction;
use crate::dispatcher::{DispatcherHandle, NewSchedule, ScheduleCommand};
use crate::model::{
    DesiredState, DrainMode, NodeId, ScheduleName, Submission, TaskChanges, TaskCommand, TaskId, TaskState,
};
use blockhaul_engine::error::{Code, Result};
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// Time after which a client gives up.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Time between two attempts.
const RETRY: Duration = Duration::from_millis(400);

/// Client. Clones are the same client.
#[derive(Clone, Debug)]
pub(super) struct Client {
    pub(super) net: Net,
    pub(super) invariants: InvariantChecker,
    pub(super) result: RunResult,
}

impl Client {
    /// Sends a request to the leader, and again until the answer is neither `ENotLeader` nor `EUnreachable`. `None`
    /// after a minute without such an answer.
    async fn ask<T, F>(&self, what: impl Fn(DispatcherHandle) -> F + Send + Sync) -> Option<Result<T>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T>> + Send + 'static,
    {
        let start = Instant::now();
        while start.elapsed() < REQUEST_TIMEOUT {
            if let Some(leader) = self.invariants.leader() {
                let at_endpoint = |endpoint: ProcessEndpoint| {
                    let asked = endpoint.leader().map(&what);
                    let answer: std::pin::Pin<Box<dyn Future<Output = Option<Result<T>>> + Send>> = Box::pin(async {
                        match asked {
                            Some(asked) => Some(asked.await),
                            None => None,
                        }
                    });
                    answer
                };
                match self.net.call(CLIENT, leader.node.as_str(), at_endpoint).await {
                    Ok(Some(Err(error))) if matches!(error.code, Code::NotLeader | Code::Unreachable) => {}
                    Ok(Some(answer)) => return Some(answer),
                    Ok(None) | Err(_) => {}
                }
            }
            sleep(RETRY).await;
        }
        None
    }

    /// Submits a task. An accepted task must be in the store.
    pub(super) async fn submit(self, submission: Submission) {
        let id = submission.id.clone();
        let era = self.invariants.era();
        let answer = self
            .ask(|leader| {
                let submission = submission.clone();
                async move { leader.submit(submission).await }
            })
            .await;
        match answer {
            Some(Ok(_)) => {
                let is_there =
                    self.invariants.tasks().iter().any(|seen| seen.record.id == id) || self.invariants.era() != era;
                self.result.expect(is_there, || format!("{id} was accepted and is not in the store"));
            }
            // The submission of a predecessor may have been lost, or the predecessor has ended and is purged.
            Some(Err(error))
                if (error.code == Code::NotFound || error.retryable)
                    && (!submission.after.is_empty() || submission.retry_of.is_some()) =>
            {
                self.result.note(format_args!("{id}: {error}"));
            }
            Some(Err(error)) if submission.retry_of.is_some() && self.invariants.era() != era => {
                self.result.note(format_args!("{id}: {error}"));
            }
            Some(Err(error)) => self.result.fail(format_args!("{id} was refused: {error}")),
            None => self.result.note(format_args!("{id}: no leader has accepted it")),
        }
    }

    /// Tries a task again that has ended without success.
    pub(super) async fn retry(self, id: TaskId) {
        let found = self
            .ask(|leader| {
                let id = id.clone();
                async move { leader.get(&id).await }
            })
            .await;
        match found {
            Some(Ok(first)) if first.state.is_terminal() && first.state != TaskState::Succeeded => {
                let next = id.next_try().expect("its name is short");
                let again = Submission::new(next, first.priority, first.max_attempts, first.spec.clone());
                self.submit(Submission { retry_of: Some(id), ..again }).await;
            }
            other => {
                self.result.note(format_args!("{id} is not tried again: {:?}", other.map(|it| it.map(|it| it.state))))
            }
        }
    }

    /// Submits a group, its members and its seal, and all of that again if the client `dies` on the way.
    pub(super) async fn submit_group(
        self,
        group: Submission,
        members: Vec<Submission>,
        dies: Option<(usize, Duration)>,
    ) {
        let (id, era) = (group.id.clone(), self.invariants.era());
        let messages: Vec<Submission> = std::iter::once(group).chain(members).collect();
        if let Some((after, pause)) = dies {
            for message in messages.iter().take(after) {
                if !self.submit_part(&id, message.clone(), era).await {
                    break;
                }
            }
            sleep(pause).await;
        }
        for message in messages {
            if !self.submit_part(&id, message, era).await {
                return;
            }
        }
        let sealed = self
            .ask(|leader| {
                let id = id.clone();
                async move { leader.command(&id, TaskCommand::Seal).await }
            })
            .await;
        match sealed {
            Some(Ok(_)) => self.result.count("groups sealed"),
            // It has been cancelled meanwhile, or a part of it is lost with the history.
            Some(Err(error)) if error.code == Code::Busy || self.invariants.era() != era => {
                self.result.note(format_args!("{id}: {error}"));
            }
            Some(Err(error)) => self.result.fail(format_args!("{id} was not sealed: {error}")),
            None => self.result.note(format_args!("{id}: no leader has sealed it")),
        }
    }

    /// Submits a group or a member of it. Returns whether it was accepted.
    async fn submit_part(&self, group: &TaskId, submission: Submission, era: u32) -> bool {
        let id = submission.id.clone();
        let answer = self
            .ask(|leader| {
                let submission = submission.clone();
                async move { leader.submit(submission).await }
            })
            .await;
        match answer {
            Some(Ok(_)) => return true,
            // The group is being cancelled, or a part of it is lost with the history.
            Some(Err(error)) if error.code == Code::Busy || self.invariants.era() != era => {
                self.result.note(format_args!("{id}: {error}"));
            }
            Some(Err(error)) => self.result.fail(format_args!("{id} of {group} was refused: {error}")),
            None => self.result.note(format_args!("{id}: no leader has accepted it")),
        }
        false
    }

    /// Requests a change of a task. An acknowledged change must be in the store.
    pub(super) async fn request(self, id: TaskId, action: ClientAction) {
        let answer = self
            .ask(|leader| {
                let id = id.clone();
                async move {
                    let command = match action {
                        ClientAction::Cancel => TaskCommand::Cancel,
                        ClientAction::Pause => TaskCommand::Pause,
                        ClientAction::Resume => TaskCommand::Resume,
                        ClientAction::CancelAll => TaskCommand::CancelAll,
                        ClientAction::Limit => TaskCommand::Set(TaskChanges::limit(Some(1 << 20))),
                        ClientAction::Move => TaskCommand::Move(None),
                    };
                    leader.command(&id, command).await
                }
            })
            .await;
        let outcome =
            answer.as_ref().map(|answer| answer.as_ref().map(|record| record.state).map_err(|error| error.code));
        self.result.note(format_args!("{id}: {action:?} {outcome:?}"));
        if let (Some(Ok(_)), ClientAction::Cancel) = (answer, action) {
            let is_cancelled = |seen: &super::invariants::CommittedTask| {
                seen.record.id != id
                    || seen.record.desired_state == DesiredState::Cancel
                    || seen.record.state.is_terminal()
            };
            let is_kept = self.invariants.tasks().iter().all(is_cancelled) || self.invariants.has_lost_history();
            self.result.expect(is_kept, || format!("{id}: the cancel was forgotten"));
        }
    }

    /// Adds a schedule. An accepted one must be in the store.
    pub(super) async fn add_schedule(self, new: NewSchedule) {
        let (name, era) = (new.name.clone(), self.invariants.era());
        let answer = self
            .ask(|leader| {
                let (name, command) = (new.name.clone(), ScheduleCommand::Add(Box::new(new.clone())));
                async move { leader.schedule(&name, command).await }
            })
            .await;
        match answer {
            Some(Ok(_)) => {
                let is_there = self.invariants.schedules().contains(&name) || self.invariants.era() != era;
                self.result.expect(is_there, || format!("schedule {name} was accepted and is not in the store"));
            }
            Some(Err(error)) => self.result.fail(format_args!("schedule {name} was refused: {error}")),
            None => self.result.note(format_args!("schedule {name}: no leader has accepted it")),
        }
    }

    /// Removes a schedule, whose tasks stay.
    pub(super) async fn remove_schedule(&self, name: &ScheduleName) {
        let answer = self
            .ask(|leader| {
                let name = name.clone();
                async move { leader.schedule(&name, ScheduleCommand::Remove { cancel_live: false }).await }
            })
            .await;
        let outcome = answer.map(|answer| answer.map(drop).map_err(|error| error.code));
        self.result.note(format_args!("schedule {name} is removed: {outcome:?}"));
    }

    pub(super) async fn drain(self, node: NodeId, desired_state: DrainMode) {
        let answer = self
            .ask(|leader| {
                let node = node.clone();
                async move { leader.drain(&node, desired_state, None).await }
            })
            .await;
        self.result.note(format_args!(
            "drain {node} {desired_state:?}: {:?}",
            answer.map(|answer| answer.map_err(|error| error.code))
        ));
    }

    /// Confirms as an operator that a node is off. Returns whether the leader has accepted that.
    pub(super) async fn confirm(&self, node: &NodeId) -> bool {
        let answer = self
            .ask(|leader| {
                let node = node.clone();
                async move { leader.fence(&node).await }
            })
            .await;
        self.result.note(format_args!(
            "fence {node}: {:?}",
            answer.as_ref().map(|answer| answer.as_ref().map_err(|error| error.code))
        ));
        matches!(answer, Some(Ok(_)))
    }
}
