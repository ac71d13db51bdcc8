//! Stores the outcome of an attempt at its end.
//!
//! What always holds: a task is not returned before its attempt has drained. Requests to a server count as drained
//! after `quiet_after`. For a local volume the executor reports when the device has answered. If it never does, the
//! task stays with this runner until the process ends, and the destination's lock then shows that the attempt has
//! drained.

use super::assignment_records::Written;
use super::attempt::Attempt;
use super::context::RunnerContext;
use crate::execution::{End, ExecutionHandle, Outcome};
use crate::model::state_machine::{self, Checkpoint, IllegalTransition, TaskEvent};
use crate::model::{Failure, FenceMethod, TaskRecord, TaskState};
use blockhaul_engine::backoff::ExponentialBackoff;
use blockhaul_engine::error::Code;
use blockhaul_engine::job::StopReason;
use std::time::Duration;

/// Backoff of a task after failures.
const RETRY: ExponentialBackoff = ExponentialBackoff { first: Duration::from_secs(1), max: Duration::from_secs(60) };
const _: () = assert!(RETRY.max.as_millis() * 125 / 100 <= state_machine::RETRY_REST_MAX.as_millis());
/// Backoff of a node without space for journals: no event announces free space.
const FULL_BACKOFF: Duration = Duration::from_secs(10);
/// Time between two checks that earlier attempts have drained.
const DRAIN_CHECK_EVERY: Duration = Duration::from_secs(1);

impl Attempt {
    /// Stores the outcome, unless the task has another holder.
    pub(super) async fn finish(&self, context: &RunnerContext, running: &dyn ExecutionHandle, mut outcome: Outcome) {
        if !outcome.quiesced && !self.is_abandoned() {
            self.drain(context, running).await;
            if let (Some(reason), End::Failed(_)) = (self.stop_reason(), &outcome.end) {
                // The failure was only that the copy had not drained in time.
                outcome.end = End::Stopped(reason);
            }
        }
        self.end(context, outcome).await;
    }

    /// Waits until no operation in flight of an ended copy can take effect any more.
    async fn drain(&self, context: &RunnerContext, running: &dyn ExecutionHandle) {
        if let Some(why) = running.survivors() {
            tracing::error!(why, "attempt did not drain: keeping its task");
            tokio::select! { biased;
                () = running.quiet() => {}
                () = self.explain(context, why) => running.quiet().await,
            }
        } else {
            tracing::error!("copy did not drain: keeping its task until its devices answer");
            if self.needs_lease() {
                tokio::time::sleep(context.config.quiet_after).await;
            } else {
                running.quiet().await;
            }
        }
        tracing::info!("copy drained");
    }

    /// Stores what the attempt waits for, unless the task has another holder by now.
    async fn explain(&self, context: &RunnerContext, why: String) {
        let blocked = |record: &TaskRecord| {
            state_machine::next(record, TaskEvent::Blocked { why: why.clone() }, context.unix_ms())
        };
        let _ = self.records.write(context, blocked).await;
    }

    /// Stores the outcome of a copy that has drained.
    pub(super) async fn end(&self, context: &RunnerContext, outcome: Outcome) {
        if self.is_abandoned() {
            return;
        }
        let written = match &outcome.end {
            End::Succeeded => self.succeed(context, &outcome).await,
            End::Failed(failure) => self.fail(context, &outcome, failure).await,
            End::Stopped(reason) => self.return_task(context, &outcome, outcome_of(*reason)).await,
        };
        match written {
            Written::Done(record) => {
                tracing::info!(state = record.state.as_str(), reason = record.reason, "outcome stored");
                if record.state.is_terminal() {
                    // A failure is logged; the end of the task stands.
                    let _ = self.remember_end(context).await;
                }
                self.clean_up(context, &record);
            }
            Written::NotOurs => {}
            Written::IllegalTransition(illegal, record) => {
                let state = record.state;
                tracing::error!(%illegal, ?state, "outcome of a copy does not fit its record");
            }
        }
    }

    async fn succeed(&self, context: &RunnerContext, outcome: &Outcome) -> Written {
        loop {
            let written =
                self.records.write(context, |record| succeeded(self, record, outcome, context.unix_ms())).await;
            match written {
                Written::Done(record) if record.state == TaskState::Verifying => {}
                Written::IllegalTransition(IllegalTransition::NotQuiet, record)
                    if record.state == TaskState::Cancelling =>
                {
                    return self.return_task(context, outcome, Code::Cancelled).await;
                }
                Written::IllegalTransition(IllegalTransition::NotQuiet, _) => {}
                Written::IllegalTransition(..) => return self.return_task(context, outcome, Code::Cancelled).await,
                over => return over,
            }
            // The dispatcher marks earlier attempts as drained.
            self.wait_for_signal(DRAIN_CHECK_EVERY).await;
            if let Some(reason) = self.stop_reason() {
                return self.return_task(context, outcome, outcome_of(reason)).await;
            }
            if self.records.read(context).await.is_none() {
                return Written::NotOurs;
            }
        }
    }

    async fn fail(&self, context: &RunnerContext, outcome: &Outcome, failure: &Failure) -> Written {
        let fail = |record: &TaskRecord| {
            let now_ms = context.unix_ms();
            let backoff = match failure.is_node_full() {
                true => FULL_BACKOFF,
                false => RETRY.jittered(record.failures.saturating_add(1), fastrand::f64()),
            };
            let backoff_ms = u64::try_from(backoff.as_millis()).unwrap_or(u64::MAX);
            let event = TaskEvent::Failed {
                error: failure.clone(),
                retry_at_ms: now_ms.saturating_add(backoff_ms),
                checkpoint: checkpoint(record, outcome),
                report: outcome.report.clone(),
            };
            state_machine::next(record, event, now_ms)
        };
        self.records.write(context, fail).await
    }

    async fn return_task(&self, context: &RunnerContext, outcome: &Outcome, code: Code) -> Written {
        let returned = |record: &TaskRecord| {
            state_machine::next(
                record,
                TaskEvent::GivenBack { code, checkpoint: checkpoint(record, outcome) },
                context.unix_ms(),
            )
        };
        self.records.write(context, returned).await
    }

    /// Deletes the journal, unless a later attempt on this node can use it.
    fn clean_up(&self, context: &RunnerContext, record: &TaskRecord) {
        if record.state.is_terminal() || record.spec.kind().fence() != FenceMethod::Local {
            context.dependencies.executor.forget(&record.id, record.created_ms);
        }
    }
}

/// Returns the record of a task that is done: `SUCCEEDED`, or `VERIFYING` while an earlier attempt may still write.
fn succeeded(
    attempt: &Attempt,
    record: &TaskRecord,
    outcome: &Outcome,
    now_ms: u64,
) -> Result<TaskRecord, IllegalTransition> {
    let began = match record.state {
        // The copy had nothing to write, so it has not requested a permit.
        TaskState::Assigned => state_machine::apply(record, TaskEvent::Started { epoch: attempt.epoch() }, now_ms)?,
        _ => record.clone(),
    };
    let checkpoint = checkpoint(&began, outcome);
    let event = TaskEvent::Succeeded { checkpoint: checkpoint.clone(), report: outcome.report.clone() };
    match state_machine::next(&began, event, now_ms) {
        Err(IllegalTransition::NotQuiet) if began.state == TaskState::Running => {
            state_machine::next(&began, TaskEvent::Written(checkpoint), now_ms)
        }
        done => done,
    }
}

/// Returns the progress of the copy; a copy without progress keeps that of the record.
fn checkpoint(record: &TaskRecord, outcome: &Outcome) -> Checkpoint {
    let map = if outcome.durable.is_empty() { record.map.clone() } else { outcome.durable.clone() };
    let progress = if outcome.progress.planned == 0 { record.progress } else { outcome.progress };
    Checkpoint { progress, map }
}

/// Returns the error code of a stopped attempt. After a lost lease a task that is still this runner's is returned like
/// any interrupted one.
pub(super) fn outcome_of(reason: StopReason) -> Code {
    match reason {
        StopReason::UserCancel => Code::Cancelled,
        StopReason::RunnerInterrupt | StopReason::LeaseLost => Code::RunnerInterrupt,
        StopReason::DeadlineExceeded => Code::Timeout,
    }
}
