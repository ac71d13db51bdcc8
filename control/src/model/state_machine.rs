//! Computes a task's next state: one pure function, used by the dispatcher and by the runners alike.
//!
//! ```text
//!             Assigned           Started           Written           Succeeded
//!  PENDING -------------> ASSIGNED ----> RUNNING ----------> VERIFYING ----------> SUCCEEDED
//!   ^  ^ \                  |  |           |
//!   |  |  `- PauseRequested |  |           |---- Failed, GivenBack -------> PENDING PAUSED FAILED CANCELLED
//!   |  |        v           |  |           |
//!   |  `----- PAUSED        |  |           |  RunnerLost        Fenced
//!   |     ResumeRequested   |  |           `----------> LOST -------------> PENDING PAUSED FAILED CANCELLED
//!   |                       |  |                         |  RunnerReturned (local copies)
//!   `--- Revoked -----------'  |  CancelRequested        `----------------> RUNNING or CANCELLING
//!                              `------------> CANCELLING -- Succeeded, Failed, GivenBack, Revoked, RunnerLost --> ...
//!
//!  PENDING, PAUSED -- DependencyBroken --> SKIPPED   (before the first attempt)
//! ```
//! The states of a group, which no runner holds, are in [`group`].
//!
//! Where several states follow an event, the desired state and the number of failures decide.
//!
//! What always holds of a record that this function made:
//! - A task has a holder exactly while an attempt runs: in `ASSIGNED`, `RUNNING`, `VERIFYING`, `CANCELLING`, and in
//!   `LOST` while a local copy may come back.
//! - A terminal state is final, and a `SUCCEEDED` task has only drained attempts.
//! - A task that runs at most once is not assigned again once it has begun: it ends as `FAILED` instead.
//! - `failures` falls only when more is durable than ever before: a task without progress fails after `max_attempts`.
//! - The holder of a task holds its claims. A task that ended keeps its claims, without a holder, while an earlier
//!   attempt may still write: no other task may have the destination before.

mod changes;
mod deadline;
mod group;
mod transitions;

use crate::model::{
    Attempt, DesiredState, DurableMap, Epoch, Failure, FenceMethod, Holder, NodeFault, NodeId, Progress, TaskChanges,
    TaskRecord, TaskState, UnknownFields,
};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::time::Duration;

/// Longest backoff after a failure, whatever the clocks of its runner and its dispatcher say.
pub(crate) const RETRY_REST_MAX: Duration = Duration::from_secs(75);

/// Reason of a copy whose source may change unnoticed between two attempts.
const STARTS_OVER: &str = "another attempt would start over, because a changed source would go unnoticed; digests, or \
                           --verify, let it go on; so does --source-stable, if nothing writes to the source";

/// Why a task that was to be run again is not.
const RUN_ONCE: &str = "it has begun, and runs at most once";

/// Reason of a task that a client has paused while it ran.
const PAUSED_BY_USER: &str = "paused by user";
const PAUSED_BY_WINDOW: &str = "outside of its windows";

/// Event of a task.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum TaskEvent {
    /// Leader: it is assigned to a runner, together with the claims on all identities of its destination.
    Assigned {
        /// The runner.
        to: Holder,
        /// Claims, the destination's own identity first; includes all that the record has already.
        claims: Vec<String>,
    },
    /// Leader: the runner refused it or does not know it, before it began.
    Revoked {
        /// Outcome of the attempt as a code.
        code: Code,
        /// Reason as text.
        why: String,
    },
    /// Leader: no runner may or can do it, and that will not change by itself.
    Rejected(Failure),
    /// Leader: a task that it depends on did not end as it has to.
    DependencyBroken(Failure),
    /// Leader: the holder's registration is gone, or is another process's.
    RunnerLost,
    /// Leader: the process that held a local copy is registered again.
    RunnerReturned,
    /// Leader: the earlier holder writes no more, or its late writes do no harm.
    Fenced(FenceProof),
    /// Leader: no write of this ended attempt can land any more, because enough time has passed.
    AttemptDrained {
        /// Position in the record's attempts.
        attempt: usize,
    },
    /// Leader, of one that has failed: a task that tells of it is stored.
    FailureNotified,
    /// Client: cancel it.
    CancelRequested,
    /// Client: pause it.
    PauseRequested,
    /// Client: resume it.
    ResumeRequested,
    /// Client: change its settings.
    ChangesRequested(TaskChanges),
    /// Client: run it on this node; `None`: on any other one than now. Its runner returns it.
    MoveRequested(Option<NodeId>),
    /// Leader, of a group: nobody has completed it. It is cancelled.
    SealMissed,
    /// Leader: its deadline has passed. It is stopped as by a cancel, and fails with `ETimeout`.
    DeadlinePassed,
    /// Client, of a group: cancel it, clean-up included.
    CancelAllRequested,
    /// Client, of a group: all members are stored.
    Sealed,
    /// Client, of a group that has ended: its record and those of its members are to be deleted.
    RemovalRequested,
    /// Leader, of a group: a member has failed, or is missing. Only the first failure is kept.
    MemberFailed(Failure),
    /// Leader, of a group: its last member has ended, and no write of any can land any more.
    MembersEnded {
        /// Whether a member was cancelled.
        is_cancelled: bool,
    },
    /// Leader, of a member: its group wants this of it.
    GroupRequested(DesiredState),
    /// Leader, of a task with windows: whether one of them is open.
    WindowChanged { is_open: bool },
    /// Runner: the destination is open, locked and checked; writing may begin once this is stored.
    Started {
        /// Epoch of the grant of its claims.
        epoch: Epoch,
    },
    /// Runner: it has made progress.
    Checkpointed(Checkpoint),
    /// Runner: everything is written; it waits for earlier attempts, or reads back.
    Written(Checkpoint),
    /// Runner: its work has ended, but for something that cannot be ended; the runner keeps the task until that is gone.
    Blocked {
        /// What is left.
        why: String,
    },
    /// Runner: every byte is durable. Only when all earlier attempts have drained.
    Succeeded {
        /// Final progress.
        checkpoint: Checkpoint,
        /// Report of the engine.
        report: Option<serde_json::Value>,
    },
    /// Runner: the copy has drained and failed. Counts as a failure.
    Failed {
        /// The error; `retryable` decides whether it is tried again.
        error: Failure,
        /// Earliest next attempt, in milliseconds since 1970.
        retry_at_ms: u64,
        /// Progress of the copy.
        checkpoint: Checkpoint,
        /// Report of the engine.
        report: Option<serde_json::Value>,
    },
    /// Runner: the copy has drained and is returned. Counts as a failure if the code is `ELeaseLost`.
    GivenBack {
        /// Outcome of the attempt: `ERunnerInterrupt`, `ECancelled`, `ELeaseLost`.
        code: Code,
        /// Progress of the copy.
        checkpoint: Checkpoint,
    },
}

/// Progress of a copy and what is durable.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Checkpoint {
    /// Progress in numbers.
    pub progress: Progress,
    /// Durable bytes of the destination.
    pub map: DurableMap,
}

/// Proof that an earlier holder can do no more harm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FenceProof {
    /// `local`: another process of the same node is registered; the destination's lock does the rest.
    NodeBack,
    /// `lease`: its lease is over and the hold-off has passed. Its requests may still be in flight.
    LeaseOver,
    /// `command`: the program has cut it off.
    Command,
    /// Any: an operator confirms that the node is off.
    Operator,
    /// `local`, when the task is not to run again: it was gone for long enough; the lock keeps other writers off.
    Waited,
}

/// Effect of a transition on the claims on a task's destination, written in the same multi as the record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ClaimChange {
    /// They are unchanged. A holder checks their versions.
    Keep,
    /// They get the record's holder (missing ones are created), or none.
    Set,
    /// They are deleted.
    Remove,
}

/// Event that cannot happen to a task in its state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum IllegalTransition {
    /// Not in this state, or against the desired state.
    #[error("a task that is {} and should {} cannot be {event}", .state.as_str(), desired_verb(*.desired_state))]
    WrongState {
        /// State of the task.
        state: TaskState,
        /// Desired state of the task.
        desired_state: DesiredState,
        /// Rejected event.
        event: &'static str,
    },
    /// An earlier attempt may still write.
    #[error("an earlier attempt may still write")]
    NotQuiet,
    /// The kind of the task does not allow it.
    #[error("a task of this kind cannot be {0}")]
    Unsupported(&'static str),
    /// Its volumes are on this node.
    #[error("only {0} can run it")]
    OnlyNode(NodeId),
    /// The proof does not fit this kind of fence.
    #[error("{proof:?} proves nothing for a task that is fenced by {fence:?}")]
    NoProof {
        /// Proof that was given.
        proof: FenceProof,
        /// Fence of the task.
        fence: FenceMethod,
    },
    /// There is no such attempt, or it has drained already.
    #[error("attempt {0} is not draining")]
    NoAttempt(usize),
}

fn desired_verb(desired_state: DesiredState) -> &'static str {
    match desired_state {
        DesiredState::Run => "run",
        DesiredState::Pause => "pause",
        DesiredState::Cancel => "be cancelled",
    }
}

/// Returns the record after `event`. Its `op` is still the old one: use [`next`] for a record that is to be written. An
/// event that changes nothing (a second cancel, a resume of a running task) returns an equal record: then there is
/// nothing to write.
///
/// # Errors
/// [`IllegalTransition`]: the event cannot happen to this record; it is to be read again, or its asker told.
pub(crate) fn apply(record: &TaskRecord, event: TaskEvent, now_ms: u64) -> Result<TaskRecord, IllegalTransition> {
    let (mut after, by) = (record.clone(), event.actor());
    after.advance(event, now_ms)?;
    if matches!(after.state, TaskState::Pending | TaskState::Paused) && !after.may_begin() {
        after.fail_for_good();
    }
    if after.is_overdue && after.state == TaskState::Failed && record.state != after.state {
        after.fail_overdue();
    }
    if after.state != record.state {
        after.updated_ms = now_ms;
    }
    if after.state.is_terminal() && (after.is_quiet() || after.spec.kind().fence() != FenceMethod::Lease) {
        after.claims.clear();
    }
    after.note_transition(record, by, now_ms);
    Ok(after)
}

/// As [`apply`], [sealed](TaskRecord::sealed) to be written.
///
/// # Errors
/// As [`apply`].
pub(crate) fn next(record: &TaskRecord, event: TaskEvent, now_ms: u64) -> Result<TaskRecord, IllegalTransition> {
    apply(record, event, now_ms).map(TaskRecord::sealed)
}

/// Returns the change of the claims of `before` (or of `after`, when they are new) in the multi that writes `after`.
#[must_use]
pub(crate) fn claim_change(before: &TaskRecord, after: &TaskRecord) -> ClaimChange {
    if after.claims.is_empty() && !before.claims.is_empty() {
        ClaimChange::Remove
    } else if after.holder != before.holder {
        ClaimChange::Set
    } else {
        ClaimChange::Keep
    }
}

impl TaskRecord {
    /// Tells whether its holder may have written: its attempt is known to have begun.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.attempts.iter().rfind(|attempt| attempt.ended_ms.is_none()).is_some_and(|attempt| attempt.epoch.is_some())
    }

    /// Tells whether an attempt may begin: not of a task that has begun and runs at most once.
    fn may_begin(&self) -> bool {
        !self.spec.kind().runs_at_most_once() || self.attempts.iter().all(|attempt| attempt.epoch.is_none())
    }

    /// Fails a task that would have to begin a second time.
    fn fail_for_good(&mut self) {
        let outcome = self.attempts.last().and_then(|attempt| attempt.outcome.as_deref());
        let code = outcome.and_then(Failure::parse_code).unwrap_or(Code::RunnerInterrupt);
        let known = self.error.take().filter(|error| error.code == code);
        let error = known.unwrap_or_else(|| {
            let message = self.reason.as_str();
            Failure::from(&Error::new(code, Side::Coordination, Operation::Start, message))
        });
        let message = format!("{RUN_ONCE}: {}", error.message);
        let error = Failure { retryable: false, ..error.with_message(&message) };
        self.state = TaskState::Failed;
        self.reason = error.to_string();
        self.error = Some(error);
    }

    fn advance(&mut self, event: TaskEvent, now_ms: u64) -> Result<(), IllegalTransition> {
        match event {
            TaskEvent::Assigned { to, claims } => self.assigned(to, claims, now_ms),
            TaskEvent::Revoked { code, why } => self.revoked(code, why, now_ms),
            TaskEvent::Rejected(error) => self.rejected(error),
            TaskEvent::DependencyBroken(error) => self.dependency_broken(error),
            TaskEvent::RunnerLost => self.runner_lost(now_ms),
            TaskEvent::RunnerReturned => self.runner_returned(),
            TaskEvent::Fenced(proof) => self.fenced(proof, now_ms),
            TaskEvent::AttemptDrained { attempt } => self.attempt_drained(attempt),
            TaskEvent::FailureNotified => self.failure_notified(),
            TaskEvent::CancelRequested | TaskEvent::SealMissed => self.cancel_requested(),
            TaskEvent::PauseRequested => self.pause_requested(),
            TaskEvent::ResumeRequested => self.resume_requested(),
            TaskEvent::ChangesRequested(changes) => self.changes_requested(&changes),
            TaskEvent::MoveRequested(to) => self.move_requested(to),
            TaskEvent::DeadlinePassed => self.deadline_passed(),
            TaskEvent::CancelAllRequested => self.cancel_all_requested(),
            TaskEvent::Sealed => self.sealed_by_client(now_ms),
            TaskEvent::RemovalRequested => self.removal_requested(),
            TaskEvent::MemberFailed(error) => self.member_failed(error),
            TaskEvent::MembersEnded { is_cancelled } => self.members_ended(is_cancelled),
            TaskEvent::GroupRequested(desired_state) => self.group_requested(desired_state),
            TaskEvent::WindowChanged { is_open } => self.window_changed(is_open),
            TaskEvent::Started { epoch } => self.started(epoch),
            TaskEvent::Checkpointed(checkpoint) => self.checkpointed(checkpoint),
            TaskEvent::Written(checkpoint) => self.written(checkpoint),
            TaskEvent::Blocked { why } => self.blocked(why),
            TaskEvent::Succeeded { checkpoint, report } => self.succeeded(checkpoint, report, now_ms),
            TaskEvent::Failed { error, retry_at_ms, checkpoint, report } => {
                self.failed(error, retry_at_ms, checkpoint, now_ms)?;
                self.report = report;
                Ok(())
            }
            TaskEvent::GivenBack { code, checkpoint } => self.given_back(code, checkpoint, now_ms),
        }
    }

    fn assigned(&mut self, to: Holder, claims: Vec<String>, now_ms: u64) -> Result<(), IllegalTransition> {
        // Claims that are dropped here would never be removed.
        let keeps_claims = !claims.is_empty() && self.claims.iter().all(|claim| claims.contains(claim));
        self.expect(
            self.state == TaskState::Pending && self.desired() == DesiredState::Run && keeps_claims && self.may_begin(),
            "assigned",
        )?;
        (self.state, self.moving) = (TaskState::Assigned, None);
        self.reason.clear();
        self.claims = claims;
        self.attempts.push(Attempt {
            runner: to.clone(),
            epoch: None,
            started_ms: now_ms,
            ended_ms: None,
            outcome: None,
            quiet: true,
            node_fault: None,
            unknown: UnknownFields::default(),
        });
        self.holder = Some(to);
        Ok(())
    }

    fn revoked(&mut self, code: Code, why: String, now_ms: u64) -> Result<(), IllegalTransition> {
        let is_given = matches!(self.state, TaskState::Assigned | TaskState::Cancelling);
        self.expect(is_given && !self.has_begun(), "revoked")?;
        self.release(code, true, now_ms);
        if code == Code::Unreachable {
            self.blame(NodeFault::Passing);
        }
        self.settle();
        self.reason = why;
        Ok(())
    }

    fn rejected(&mut self, error: Failure) -> Result<(), IllegalTransition> {
        self.expect(self.state == TaskState::Pending, "rejected")?;
        let error = if error.node_fault().is_some() && !self.failed_nodes().is_empty() {
            self.naming_nodes(error)
        } else {
            error
        };
        self.state = TaskState::Failed;
        self.reason = error.to_string();
        self.error = Some(error);
        Ok(())
    }

    fn dependency_broken(&mut self, error: Failure) -> Result<(), IllegalTransition> {
        let is_waiting = matches!(self.state, TaskState::Pending | TaskState::Paused) && self.is_unstarted();
        self.expect(is_waiting && (!self.after.is_empty() || self.group.is_some()), "skipped")?;
        self.state = TaskState::Skipped;
        self.reason = error.to_string();
        self.error = Some(error);
        Ok(())
    }

    fn runner_lost(&mut self, now_ms: u64) -> Result<(), IllegalTransition> {
        self.expect(self.state.is_held() && self.state != TaskState::Lost, "lost")?;
        let node = self.node().map(ToString::to_string).unwrap_or_default();
        if !self.has_begun() {
            return self.revoked(Code::LeaseLost, format!("{node} was lost before it started"), now_ms);
        }
        if !self.spec.kind().writes() {
            self.charge_loss(true, now_ms);
            self.settle();
            return Ok(());
        }
        if self.spec.kind().fence() != FenceMethod::Local {
            self.charge_loss(false, now_ms);
        }
        self.state = TaskState::Lost;
        self.reason = format!("{node} is lost and may still write");
        Ok(())
    }

    fn runner_returned(&mut self) -> Result<(), IllegalTransition> {
        self.expect(self.state == TaskState::Lost && self.holder.is_some(), "continued")?;
        self.state = if self.desired() == DesiredState::Cancel { TaskState::Cancelling } else { TaskState::Running };
        self.reason.clear();
        Ok(())
    }

    fn fenced(&mut self, proof: FenceProof, now_ms: u64) -> Result<(), IllegalTransition> {
        self.expect(self.state == TaskState::Lost, "fenced")?;
        let fence = self.spec.kind().fence();
        let is_proof = match proof {
            FenceProof::NodeBack => fence == FenceMethod::Local,
            FenceProof::LeaseOver => fence == FenceMethod::Lease,
            FenceProof::Command => fence == FenceMethod::Command,
            FenceProof::Operator => true,
            FenceProof::Waited => fence == FenceMethod::Local && self.desired() != DesiredState::Run,
        };
        if !is_proof {
            return Err(IllegalTransition::NoProof { proof, fence });
        }
        if self.holder.is_some() {
            self.charge_loss(false, now_ms);
        }
        if matches!(proof, FenceProof::Command | FenceProof::Operator)
            && let Some(attempt) = self.attempts.last_mut()
        {
            attempt.quiet = true;
        }
        self.settle();
        Ok(())
    }

    fn failure_notified(&mut self) -> Result<(), IllegalTransition> {
        self.expect(self.state == TaskState::Failed, "told")?;
        self.is_notified = true;
        Ok(())
    }

    fn attempt_drained(&mut self, index: usize) -> Result<(), IllegalTransition> {
        match self.attempts.get_mut(index) {
            Some(attempt) if !attempt.quiet && attempt.ended_ms.is_some() => attempt.quiet = true,
            _ => return Err(IllegalTransition::NoAttempt(index)),
        }
        Ok(())
    }

    fn cancel_requested(&mut self) -> Result<(), IllegalTransition> {
        self.expect(!self.state.is_terminal(), "cancelled")?;
        self.desired_state = DesiredState::Cancel;
        self.apply_desired();
        Ok(())
    }

    fn pause_requested(&mut self) -> Result<(), IllegalTransition> {
        self.expect_pausable("paused")?;
        self.expect(!self.state.is_terminal() && self.desired() != DesiredState::Cancel, "paused")?;
        self.desired_state = DesiredState::Pause;
        self.apply_desired();
        Ok(())
    }

    fn resume_requested(&mut self) -> Result<(), IllegalTransition> {
        self.expect_pausable("resumed")?;
        self.expect(!self.state.is_terminal() && self.desired() != DesiredState::Cancel, "resumed")?;
        self.desired_state = DesiredState::Run;
        self.apply_desired();
        Ok(())
    }

    /// Applies a change of what the client or the group wants. A runner that holds the task applies it later.
    fn apply_desired(&mut self) {
        if self.is_group() {
            return self.settle_group();
        }
        match (self.desired(), self.state) {
            (DesiredState::Cancel, TaskState::Pending | TaskState::Paused) => self.settle(),
            (DesiredState::Cancel, TaskState::Assigned | TaskState::Running | TaskState::Verifying) => {
                self.state = TaskState::Cancelling;
            }
            (DesiredState::Pause, TaskState::Pending) => self.settle(),
            (DesiredState::Run, TaskState::Paused) => {
                if [PAUSED_BY_USER, PAUSED_BY_WINDOW].contains(&&*self.reason) {
                    self.reason.clear();
                }
                self.settle();
            }
            _ => {}
        }
    }

    fn started(&mut self, epoch: Epoch) -> Result<(), IllegalTransition> {
        self.expect(self.state == TaskState::Assigned && self.desired() == DesiredState::Run, "begun")?;
        let has_lock = self.spec.kind().fence() == FenceMethod::Local;
        for attempt in &mut self.attempts {
            match attempt.ended_ms {
                // The destination's lock is granted only after the last write of its previous holder.
                Some(_) => attempt.quiet |= has_lock,
                None => (attempt.epoch, attempt.quiet) = (Some(epoch), false),
            }
        }
        self.state = TaskState::Running;
        self.epoch = Some(epoch);
        self.admitted = true;
        if self.spec.kind().starts_over() {
            self.reason = STARTS_OVER.to_owned();
        }
        Ok(())
    }

    fn checkpointed(&mut self, checkpoint: Checkpoint) -> Result<(), IllegalTransition> {
        let is_at_work = matches!(self.state, TaskState::Running | TaskState::Verifying | TaskState::Cancelling);
        self.expect(is_at_work && self.has_begun(), "checkpointed")?;
        self.checkpoint(checkpoint);
        Ok(())
    }

    fn written(&mut self, checkpoint: Checkpoint) -> Result<(), IllegalTransition> {
        self.expect(matches!(self.state, TaskState::Running | TaskState::Verifying), "verified")?;
        self.checkpoint(checkpoint);
        self.state = TaskState::Verifying;
        Ok(())
    }

    fn blocked(&mut self, why: String) -> Result<(), IllegalTransition> {
        let is_at_work = matches!(self.state, TaskState::Running | TaskState::Verifying | TaskState::Cancelling);
        self.expect(is_at_work && self.has_begun(), "blocked")?;
        self.reason = why;
        Ok(())
    }

    fn succeeded(
        &mut self,
        checkpoint: Checkpoint,
        report: Option<serde_json::Value>,
        now_ms: u64,
    ) -> Result<(), IllegalTransition> {
        let is_at_work = matches!(self.state, TaskState::Running | TaskState::Verifying | TaskState::Cancelling);
        self.expect(is_at_work && self.has_begun(), "done")?;
        if !self.is_quiet() {
            return Err(IllegalTransition::NotQuiet);
        }
        self.checkpoint(checkpoint);
        self.end_attempt(Ok(()), true, now_ms);
        (self.holder, self.error, self.report) = (None, None, report);
        self.state = TaskState::Succeeded;
        self.reason.clear();
        Ok(())
    }

    fn failed(
        &mut self,
        error: Failure,
        retry_at_ms: u64,
        checkpoint: Checkpoint,
        now_ms: u64,
    ) -> Result<(), IllegalTransition> {
        self.expect(self.state.is_held() && self.state != TaskState::Lost, "failed")?;
        self.checkpoint(checkpoint);
        let is_pinned = !matches!(self.spec.kind().node(), Ok(None));
        let is_final = match error.node_fault() {
            None => !error.retryable,
            Some(NodeFault::Passing) => false,
            // Whether another node is left is for the leader to say, who knows them.
            Some(NodeFault::Lasting) => is_pinned,
        };
        self.release(error.code, true, now_ms);
        if let Some(fault) = error.node_fault() {
            self.blame(fault);
        }
        // Space may be freed at any time: the task waits for it, however long it takes.
        if !error.is_node_full() {
            self.failures = self.failures.saturating_add(1);
        }
        self.not_before_ms = retry_at_ms;
        self.settle();
        if is_final && self.state != TaskState::Cancelled {
            self.state = TaskState::Failed;
        }
        let is_given_up = self.state == TaskState::Failed && error.node_fault().is_some() && !is_pinned;
        let error = if is_given_up { self.naming_nodes(error) } else { error };
        self.reason = error.to_string();
        self.error = Some(error);
        Ok(())
    }

    /// Records that the last failure was a fault of its node.
    fn blame(&mut self, fault: NodeFault) {
        if let Some(attempt) = self.attempts.last_mut() {
            attempt.node_fault = Some(fault);
        }
    }

    /// Returns the final error of a task that nodes have failed, naming the nodes.
    fn naming_nodes(&self, error: Failure) -> Failure {
        let nodes: Vec<&str> = self.failed_nodes().into_iter().map(NodeId::as_str).collect();
        let message = match &nodes[..] {
            [only] => format!("only {only} has tried it: {}", error.message),
            _ => format!("failed on {}, the last time with: {}", nodes.join(", "), error.message),
        };
        error.with_message(&message)
    }

    fn given_back(&mut self, code: Code, checkpoint: Checkpoint, now_ms: u64) -> Result<(), IllegalTransition> {
        self.expect(self.state.is_held() && self.state != TaskState::Lost, "returned")?;
        self.checkpoint(checkpoint);
        self.release(code, true, now_ms);
        if code == Code::LeaseLost {
            self.failures = self.failures.saturating_add(1);
        }
        self.reason = match (code, self.desired()) {
            (Code::Cancelled, DesiredState::Pause) => self.pause_reason().to_owned(),
            (Code::Cancelled, DesiredState::Cancel) => String::from("cancelled by user"),
            (Code::RunnerInterrupt, DesiredState::Run) if self.moving.is_some() => String::new(),
            _ => format!("returned with {code}"),
        };
        self.settle();
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: Checkpoint) {
        // An attempt that ends before it has begun knows nothing of what earlier ones have done.
        if !self.has_begun() {
            return;
        }
        if checkpoint.progress.durable > self.durable_best {
            (self.durable_best, self.failures) = (checkpoint.progress.durable, 0);
        }
        (self.progress, self.map) = (checkpoint.progress, checkpoint.map);
    }

    /// Removes the holder; the caller counts the failure.
    fn release(&mut self, outcome: Code, quiet: bool, now_ms: u64) {
        let quiet = quiet || !self.has_begun();
        self.end_attempt(Err(outcome), quiet, now_ms);
        (self.holder, self.epoch) = (None, None);
    }

    fn charge_loss(&mut self, quiet: bool, now_ms: u64) {
        let node = self.node().map(ToString::to_string).unwrap_or_default();
        let message = format!("{node} was lost while it held the task");
        self.release(Code::LeaseLost, quiet, now_ms);
        self.failures = self.failures.saturating_add(1);
        self.error =
            Some(Failure::from(&Error::new(Code::LeaseLost, Side::Coordination, Operation::Write, message.as_str())));
        self.reason = message;
    }

    /// Chooses the state of a task without a holder.
    fn settle(&mut self) {
        self.state = match self.desired() {
            DesiredState::Cancel if self.is_overdue => TaskState::Failed,
            DesiredState::Cancel => TaskState::Cancelled,
            _ if self.failures >= self.max_attempts => TaskState::Failed,
            DesiredState::Pause => TaskState::Paused,
            DesiredState::Run => TaskState::Pending,
        };
    }

    fn expect(&self, holds: bool, event: &'static str) -> Result<(), IllegalTransition> {
        if holds {
            Ok(())
        } else {
            Err(IllegalTransition::WrongState { state: self.state, desired_state: self.desired(), event })
        }
    }

    fn expect_pausable(&self, event: &'static str) -> Result<(), IllegalTransition> {
        if self.spec.kind().can_pause() { Ok(()) } else { Err(IllegalTransition::Unsupported(event)) }
    }
}

#[cfg(test)]
mod tests;
