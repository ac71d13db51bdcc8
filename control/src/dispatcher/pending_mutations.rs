//! Applies the changes that clients request of tasks: one write at a time for each task, on the record as it is then.

use super::Dispatcher;
use super::event::{PendingMutation, WriteOrigin};
use super::handle::{Mutation, Reply, not_leader};
use super::now::Now;
use super::write::Denial;
use crate::coord::{CoordError, Refusal};
use crate::model::state_machine::{self, FenceProof, IllegalTransition, TaskEvent};
use crate::model::{Actor, NodeId, TaskCommand, TaskId, TaskRecord, TaskState};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Time after which a client gets an error if the store does not answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Mutations that wait, in the order of their requests for each task, and when a delayed one is tried again.
#[derive(Debug, Default)]
pub(crate) struct PendingMutations {
    queues: BTreeMap<TaskId, VecDeque<PendingMutation>>,
    retry_at: Option<Duration>,
}

impl PendingMutations {
    /// Returns when a delayed mutation is tried again.
    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.retry_at
    }
}

impl Dispatcher {
    /// Queues a client's mutation of a task.
    pub(crate) fn queue_mutation(&mut self, id: TaskId, mutation: Mutation, by: Actor, reply: Reply<Arc<TaskRecord>>) {
        let deadline = self.clock.boot_time() + ANSWER_WITHIN;
        self.mutations.queues.entry(id).or_default().push_back(PendingMutation {
            mutation,
            by,
            deadline,
            reply,
            removed: None,
        });
    }

    /// Starts the writes of all mutations whose tasks have no other write under way.
    pub(crate) fn start_mutations(&mut self, now: Now) {
        self.mutations.retry_at = None;
        let ids: Vec<TaskId> = self.mutations.queues.keys().cloned().collect();
        for id in ids {
            let Some(mut queue) = self.mutations.queues.remove(&id) else { continue };
            while !queue.is_empty() && self.is_free(&id, now) {
                if let Some(pending) = queue.pop_front() {
                    self.start_mutation(&id, pending, now);
                }
            }
            if !queue.is_empty() {
                self.mutations.queues.insert(id, queue);
            }
        }
    }

    fn is_free(&mut self, id: &TaskId, now: Now) -> bool {
        let Some(entry) = self.cluster.tasks.get(id) else { return true };
        if entry.runtime.next_write > now.boot {
            let next =
                self.mutations.retry_at.map_or(entry.runtime.next_write, |next| next.min(entry.runtime.next_write));
            self.mutations.retry_at = Some(next);
            return false;
        }
        !entry.runtime.is_busy
    }

    fn start_mutation(&mut self, id: &TaskId, pending: PendingMutation, now: Now) {
        let Some(entry) = self.cluster.tasks.get(id) else {
            let _ = pending.reply.send(pending.removed.ok_or_else(|| not_found(id)));
            return;
        };
        if pending.mutation == Mutation::Remove {
            return self.remove(id, pending);
        }
        if let Err(error) = self.check_seal(&entry.record, &pending.mutation) {
            let _ = pending.reply.send(Err(error));
            return;
        }
        match apply_mutation(&entry.record, &pending.mutation, now.unix_ms) {
            Err(error) => {
                let _ = pending.reply.send(Err(error));
            }
            Ok(after) if after == *entry.record => self.answer(id, pending.reply),
            Ok(mut after) => {
                if after.transitions != entry.record.transitions {
                    after.transitions.attribute(pending.by.clone());
                }
                self.cluster.unqueue(id);
                self.write(id, after.sealed(), WriteOrigin::Mutation(pending));
            }
        }
    }

    /// Refuses to seal a group some of whose members are not stored.
    fn check_seal(&self, record: &TaskRecord, mutation: &Mutation) -> Result<()> {
        let (Mutation::Command(TaskCommand::Seal), Some(spec)) = (mutation, record.spec.kind().group()) else {
            return Ok(());
        };
        let stored = self.cluster.groups.get(&record.id).map_or(0, |members| members.ids().len());
        let is_sealed = record.members.as_ref().is_some_and(|members| members.sealed_ms.is_some());
        if is_sealed || stored == spec.members as usize {
            return Ok(());
        }
        let message = format!("{stored} of {} members of {} are stored: store the rest first", spec.members, record.id);
        Err(Error { retryable: true, ..busy(message) })
    }

    /// Deletes a task's record, unless the task has not ended or an attempt may still write. The records of a group and
    /// of its members are deleted by and by, once the group's record says so.
    fn remove(&mut self, id: &TaskId, pending: PendingMutation) {
        let Some(entry) = self.cluster.tasks.get(id) else { return };
        let record = entry.record.clone();
        let group = self.cluster.group(&record);
        let refused = match &pending.removed {
            // Deleted by an earlier try, and another task has the id by now.
            Some(removed) if !record.state.is_terminal() => Some(Ok(removed.clone())),
            _ if !record.state.is_terminal() => {
                Some(Err(busy(format!("{id} is {}: cancel it first", record.state.as_str()))))
            }
            _ if !record.claims.is_empty() => {
                let message = format!("an earlier attempt of {id} may still write its destination: retry later");
                Some(Err(Error { retryable: true, ..busy(message) }))
            }
            _ if record.is_group() => None,
            _ if group.is_some() => {
                let group = group.map(|group| group.id.to_string()).unwrap_or_default();
                Some(Err(busy(format!("{id} is a member of {group}: remove that"))))
            }
            _ if self.cluster.is_needed(id) => {
                let dependent = self.cluster.dependents(id).next().map(ToString::to_string).unwrap_or_default();
                let message = format!("task {dependent} waits for {id}: cancel it first, or wait for its end");
                Some(Err(Error { retryable: true, ..busy(message) }))
            }
            _ => None,
        };
        if let Some(answer) = refused {
            let _ = pending.reply.send(answer);
            return;
        }
        tracing::info!(task = %id, "task removed by its client");
        if record.is_group() {
            return self.start_removal(id, &record, pending);
        }
        self.delete(id, WriteOrigin::Mutation(PendingMutation { removed: Some(record), ..pending }));
    }

    fn start_removal(&mut self, id: &TaskId, record: &TaskRecord, pending: PendingMutation) {
        match state_machine::next(record, TaskEvent::RemovalRequested, self.clock.unix_ms()) {
            Ok(after) => self.write(id, after, WriteOrigin::Mutation(pending)),
            Err(illegal) => {
                let _ = pending.reply.send(Err(transition_error(record, &illegal)));
            }
        }
    }

    fn answer(&mut self, id: &TaskId, reply: Reply<Arc<TaskRecord>>) {
        let _ = reply.send(self.describe(id).ok_or_else(|| not_found(id)));
    }

    /// Answers the origin of a write that was done, and notifies the holder later.
    pub(crate) fn on_written(&mut self, id: &TaskId, origin: WriteOrigin) {
        match origin {
            WriteOrigin::Decided => {
                // The holder has not made this change: it waits for earlier attempts to drain, or was lost and is back.
                self.request_notification(id);
            }
            WriteOrigin::Mutation(pending) => {
                self.request_notification(id);
                self.answer(id, pending.reply);
            }
            WriteOrigin::Submitted => self.answer_submitters(id),
        }
    }

    fn request_notification(&mut self, id: &TaskId) {
        if let Some(entry) = self.cluster.tasks.get_mut(id)
            && entry.record.holder.is_some()
            && entry.record.has_begun()
        {
            (entry.runtime.needs_notification, entry.runtime.next_call) = (true, Duration::ZERO);
        }
    }

    /// Handles a write that another change of the record has forestalled: a mutation is tried again on the new record.
    pub(crate) fn on_conflict(&mut self, id: &TaskId, origin: WriteOrigin) {
        match origin {
            WriteOrigin::Decided => {}
            WriteOrigin::Mutation(pending) => self.mutations.queues.entry(id.clone()).or_default().push_front(pending),
            WriteOrigin::Submitted => self.answer_submitters(id),
        }
    }

    /// Answers the origin of a write that the service refuses until an operator has changed something.
    pub(crate) fn on_denied(&mut self, id: &TaskId, origin: WriteOrigin, denial: &Denial) {
        let code = if denial.why == Refusal::QuotaExceeded { Code::NoSpace } else { Code::Permission };
        let error = Error::new(code, Side::Coordination, Operation::Write, format!("{denial}: nothing has changed"));
        match origin {
            WriteOrigin::Decided => {}
            WriteOrigin::Mutation(pending) => {
                let _ = pending.reply.send(Err(error));
            }
            WriteOrigin::Submitted => self.refuse_submitters(id, &error),
        }
    }

    /// Handles a write that has failed: a mutation is tried again until its time is over.
    pub(crate) fn on_failed(&mut self, id: &TaskId, origin: WriteOrigin, error: &CoordError) {
        let is_retryable = matches!(error, CoordError::NotConnected);
        match origin {
            WriteOrigin::Decided => {}
            WriteOrigin::Mutation(pending) if is_retryable && pending.deadline > self.clock.boot_time() => {
                self.mutations.queues.entry(id.clone()).or_default().push_front(pending);
            }
            WriteOrigin::Mutation(pending) => {
                let _ = pending.reply.send(Err(store_error(error)));
            }
            WriteOrigin::Submitted => self.refuse_submitters(id, &store_error(error)),
        }
    }
}

/// Returns the record after a mutation; an equal one if nothing has to change.
fn apply_mutation(record: &TaskRecord, mutation: &Mutation, now_ms: u64) -> Result<TaskRecord> {
    let step =
        |event| state_machine::apply(record, event, now_ms).map_err(|illegal| transition_error(record, &illegal));
    match mutation {
        Mutation::Command(TaskCommand::Cancel) if record.state.is_terminal() => Ok(record.clone()),
        Mutation::Command(TaskCommand::Cancel) => step(TaskEvent::CancelRequested),
        Mutation::Command(TaskCommand::CancelAll) if record.state.is_terminal() => Ok(record.clone()),
        Mutation::Command(TaskCommand::CancelAll) => step(TaskEvent::CancelAllRequested),
        Mutation::Command(TaskCommand::Seal) => step(TaskEvent::Sealed),
        Mutation::Command(TaskCommand::Pause) => step(TaskEvent::PauseRequested),
        Mutation::Command(TaskCommand::Resume) => step(TaskEvent::ResumeRequested),
        Mutation::Command(TaskCommand::Set(changes)) => step(TaskEvent::ChangesRequested(*changes)),
        Mutation::Command(TaskCommand::Move(to)) => step(TaskEvent::MoveRequested(to.clone())),
        Mutation::Remove => Ok(record.clone()),
        Mutation::Confirm(node) => {
            apply_confirmation(record, node, now_ms).map_err(|illegal| transition_error(record, &illegal))
        }
    }
}

/// Returns the record after the confirmation that `node` is off: no attempt there writes any more.
fn apply_confirmation(
    record: &TaskRecord,
    node: &NodeId,
    now_ms: u64,
) -> std::result::Result<TaskRecord, IllegalTransition> {
    let mut after = record.clone();
    if after.state.is_held() && after.state != TaskState::Lost && after.node() == Some(node) {
        after = state_machine::apply(&after, TaskEvent::RunnerLost, now_ms)?;
    }
    if after.state == TaskState::Lost && after.attempts.last().is_some_and(|attempt| attempt.runner.node == *node) {
        after = state_machine::apply(&after, TaskEvent::Fenced(FenceProof::Operator), now_ms)?;
    }
    for index in 0..after.attempts.len() {
        let attempt = &after.attempts[index];
        if attempt.runner.node == *node && !attempt.quiet && attempt.ended_ms.is_some() {
            after = state_machine::apply(&after, TaskEvent::AttemptDrained { attempt: index }, now_ms)?;
        }
    }
    Ok(after)
}

/// Returns the error for a transition that the record does not permit.
fn transition_error(record: &TaskRecord, illegal: &IllegalTransition) -> Error {
    let code = match illegal {
        IllegalTransition::Unsupported(_) => Code::Unsupported,
        IllegalTransition::OnlyNode(_) => Code::BadRequest,
        IllegalTransition::WrongState { .. }
        | IllegalTransition::NotQuiet
        | IllegalTransition::NoProof { .. }
        | IllegalTransition::NoAttempt(_) => Code::Busy,
    };
    Error { code, ..busy(format!("{}: {illegal}", record.id)) }
}

/// Returns the error for a mutation that the state of the task does not permit.
fn busy(message: String) -> Error {
    Error { retryable: false, ..Error::new(Code::Busy, Side::Caller, Operation::Parse, message) }
}

/// Returns the error for a task that does not exist.
pub(crate) fn not_found(id: &TaskId) -> Error {
    Error::new(Code::NotFound, Side::Caller, Operation::Parse, format!("no task {id}"))
}

/// Returns the error for a write to the store that was not done.
pub(crate) fn store_error(error: &CoordError) -> Error {
    match error {
        CoordError::Ended(_) => not_leader(),
        CoordError::TooLarge { .. } => Error::bad_request(error.to_string()),
        _ => {
            let message = format!("{error}: nothing has changed; retry");
            Error::new(Code::Unreachable, Side::Coordination, Operation::Write, message)
        }
    }
}
