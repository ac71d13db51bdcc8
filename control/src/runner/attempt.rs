//! Runs one assignment, from its acceptance to the last write about it.
//!
//! ```text
//!  accepted -> record and claims read -> order checked -> lease held, if it needs one -> copy started
//!           -> permit requested: RUNNING stored -> copy ends, or is stopped -> outcome stored
//! ```
//! What always holds: the destination is not written before `RUNNING` is stored, and the record is not written once the
//! task is known to have another holder. A stop reaches the copy at once, whatever the attempt waits for. Everything is
//! logged in the attempt's span.

use super::assignment_records::{AssignmentRecords, Written};
use super::context::RunnerContext;
use super::source_claims::SourceClaims;
use super::write_lease::WriteLease;
use crate::attempt_log::ASSIGNED_FIELD;
use crate::execution::{End, Execution, ExecutionHandle, Outcome, WritePermitRequest, stopped_early};
use crate::model::KindName;
use crate::model::state_machine::{self, Checkpoint, TaskEvent};
use crate::model::{
    DesiredState, DurableMap, Epoch, Failure, FenceMethod, Holder, Summary, TaskId, TaskRecord, TaskState,
};
use crate::order::VerifiedTask;
use crate::peers::{AssignmentStatus, StartStage};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use blockhaul_engine::job::StopReason;
use blockhaul_engine::write_gate::WriteGate;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};
use tracing::{Instrument, Span, field};

/// Time between two checks that the lease has been renewed.
const LEASE_CHECK_EVERY: Duration = Duration::from_millis(20);

/// Attempt of this runner at a task; see the module's head.
#[derive(Debug)]
pub(super) struct Attempt {
    pub records: AssignmentRecords,
    span: Span,
    /// What was signed, once that has been checked; `None` where orders are not checked.
    order: OnceLock<Option<SignedFor>>,
    control: Mutex<Control>,
    signal: watch::Sender<Signal>,
}

/// What an attempt keeps of its order.
#[derive(Debug)]
struct SignedFor {
    /// Mark of its destination.
    mark: String,
    /// When the order ceases to hold, in milliseconds since 1970.
    not_after_ms: u64,
    /// Whether no second attempt may begin.
    runs_at_most_once: bool,
}

/// State of an attempt that other parts of the runner read and change.
#[derive(Debug, Default)]
struct Control {
    /// Stage before it begins; `None` once it has begun.
    start_stage: Option<StartStage>,
    running: Option<Arc<dyn ExecutionHandle>>,
    lease: LeaseState,
    abandoned: bool,
    is_cut_off: bool,
}

/// Lease of an attempt.
#[derive(Debug, Default)]
enum LeaseState {
    /// None is needed as the destination's lock is enough, or the record was not read yet.
    #[default]
    NotNeeded,
    /// The attempt waits for a lease.
    Waiting,
    /// The attempt writes under this lease of a registration.
    Held(Arc<WriteLease>),
}

/// Signals to an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Signal {
    /// First reason to stop.
    stop: Option<StopReason>,
    /// Number of hints that its record has changed.
    rechecks: u64,
}

impl Attempt {
    pub(super) fn new(task: TaskId, epoch: Epoch, holder: Holder) -> Self {
        // Of the highest level, so that every line that is logged has these fields. The number of the attempt, and when it
        // was assigned, are recorded once the record has been read: its log is named after the latter.
        let span = tracing::error_span!(
            parent: None, "attempt", %task, attempt = field::Empty, %epoch, assigned_ms = field::Empty
        );
        let records = AssignmentRecords::new(task, epoch, holder);
        let control = Mutex::new(Control { start_stage: Some(StartStage::Reading), ..Control::default() });
        Self { records, span, order: OnceLock::new(), control, signal: watch::Sender::new(Signal::default()) }
    }

    pub(super) fn task(&self) -> &TaskId {
        &self.records.task
    }

    pub(super) fn epoch(&self) -> Epoch {
        self.records.epoch
    }

    /// Returns the span in which the attempt logs.
    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// Returns the status of a held assignment.
    pub(super) fn status(&self) -> AssignmentStatus {
        self.control().start_stage.map_or(AssignmentStatus::Held, AssignmentStatus::Waits)
    }

    fn set_stage(&self, stage: StartStage) {
        self.control().start_stage = Some(stage);
    }

    /// Returns the copy, once it has been started.
    pub(super) fn running(&self) -> Option<Arc<dyn ExecutionHandle>> {
        self.control().running.clone()
    }

    /// Tells whether the attempt waits for a lease or has one.
    pub(super) fn needs_lease(&self) -> bool {
        !matches!(self.control().lease, LeaseState::NotNeeded)
    }

    /// Returns the write lease of the attempt, if it has one.
    pub(super) fn write_lease(&self) -> Option<Arc<WriteLease>> {
        match &self.control().lease {
            LeaseState::Held(write_lease) => Some(Arc::clone(write_lease)),
            LeaseState::NotNeeded | LeaseState::Waiting => None,
        }
    }

    /// Stops the attempt at once, whatever it waits for. The first reason is kept; a lost lease always cuts the copy
    /// off.
    pub(super) fn stop(&self, reason: StopReason) {
        let mut control = self.control();
        if reason == StopReason::LeaseLost && !std::mem::replace(&mut control.is_cut_off, true) {
            let _in = self.span.enter();
            tracing::warn!("lease lost: copy cut off");
        }
        if self.stop_reason().is_none() {
            let _in = self.span.enter();
            tracing::info!(?reason, "asked to stop");
        }
        self.signal.send_modify(|signal| _ = signal.stop.get_or_insert(reason));
        if let Some(running) = &control.running {
            apply_stop(&**running, reason);
        }
    }

    /// Wakes the attempt to read its record, which may have changed.
    pub(super) fn recheck_record(&self) {
        self.signal.send_modify(|signal| signal.rechecks += 1);
    }

    /// Runs the attempt to its last write. Returns the status under which the table remembers the assignment.
    pub(super) async fn run(&self, context: &RunnerContext) -> AssignmentStatus {
        let run = async {
            let status = self.execute(context).await;
            tracing::info!(?status, "assignment ended");
            status
        };
        run.instrument(self.span.clone()).await
    }

    async fn execute(&self, context: &RunnerContext) -> AssignmentStatus {
        let read = tokio::select! { biased;
            record = self.records.read(context) => record,
            () = self.wait_after_stop(context.config.stop_wait) => None,
        };
        let Some(record) = read else { return AssignmentStatus::Unknown };
        self.span.record("attempt", record.attempts.len());
        if let Some(attempt) = record.attempts.last() {
            self.span.record(ASSIGNED_FIELD, attempt.started_ms);
        }
        let Summary { kind, hook, source, destination, .. } = record.spec.summary();
        let (node, epoch) = (&context.config.node, self.epoch());
        tracing::info!(%node, %epoch, kind, hook, source, destination, "attempt begins");
        if let Some(reason) = self.stop_reason() {
            self.end(context, stopped_outcome(reason)).await;
            return AssignmentStatus::Ended;
        }
        let (record, order) = match verified(context, record) {
            Ok(verified) => verified,
            Err(error) => {
                tracing::error!(%error, "order refused");
                self.end(context, Outcome::refused(&error)).await;
                return AssignmentStatus::Ended;
            }
        };
        // Set once: an attempt is executed once.
        let _ = self.order.set(order);
        let ready = async {
            let gate = self.gate(context, &record).await;
            (gate, SourceClaims::watch(context, &record).await)
        };
        let (gate, mut claims) = tokio::select! { biased;
            ready = ready => ready,
            reason = self.wait_for_stop() => {
                self.end(context, stopped_outcome(reason)).await;
                return AssignmentStatus::Ended;
            }
        };
        if let Some(error) = claims.conflict() {
            self.end(context, Outcome::refused(&error)).await;
            return AssignmentStatus::Ended;
        }
        self.set_stage(StartStage::Opening);
        let (admission, permit_request) = oneshot::channel();
        let (kind, started) = (KindName::from(&record.spec), context.now());
        let running = self.start(context, &record, gate, admission);
        let outcome = self.supervise(context, &*running, permit_request).await;
        let outcome = tokio::select! { biased;
            outcome = claims.checked(context, outcome.clone()) => outcome,
            reason = self.wait_for_stop() => Outcome { end: End::Stopped(reason), ..outcome },
        };
        log_end(&outcome);
        context.metrics.count(kind, &outcome, context.now().saturating_sub(started));
        self.finish(context, &*running, outcome).await;
        AssignmentStatus::Ended
    }

    /// Returns the gate of the copy's writes, once it is open. For a destination protected by its lock it stays open.
    async fn gate(&self, context: &RunnerContext, record: &TaskRecord) -> Arc<WriteGate> {
        if record.spec.kind().fence() == FenceMethod::Local {
            let gate = WriteGate::closed();
            gate.open_until(Duration::MAX);
            return Arc::new(gate);
        }
        self.set_stage(StartStage::Leasing);
        self.control().lease = LeaseState::Waiting;
        loop {
            context.renew.notify_one();
            let write_lease = context.registration().await.write_lease;
            if write_lease.is_open(context.now()) {
                tracing::info!("lease held");
                let gate = write_lease.gate();
                self.control().lease = LeaseState::Held(write_lease);
                return gate;
            }
            sleep(LEASE_CHECK_EVERY).await;
        }
    }

    fn start(
        &self,
        context: &RunnerContext,
        record: &TaskRecord,
        gate: Arc<WriteGate>,
        admission: oneshot::Sender<WritePermitRequest>,
    ) -> Arc<dyn ExecutionHandle> {
        let execution = Execution {
            task: record.id.clone(),
            group: record.group.as_ref().map(|member| member.group.clone()),
            created_ms: record.created_ms,
            attempt: record.attempts.len() as u64,
            epoch: self.epoch(),
            admitted: record.admitted,
            earlier: record.attempts.iter().filter_map(|attempt| attempt.epoch).collect(),
            mark: self.order().map(|order| order.mark.clone()),
            durable: record.map.clone(),
            gate,
            admission,
        };
        let running = record.spec.start(execution, &*context.dependencies.executor);
        let mut control = self.control();
        control.running = Some(Arc::clone(&running));
        // `stop` may have been called before `running` was set.
        if let Some(reason) = self.stop_reason() {
            apply_stop(&*running, if control.is_cut_off { StopReason::LeaseLost } else { reason });
        }
        running
    }

    /// Answers the copy's request for a permit, and applies changes of the record, until the copy ends.
    async fn supervise(
        &self,
        context: &RunnerContext,
        running: &dyn ExecutionHandle,
        mut permit_request: oneshot::Receiver<WritePermitRequest>,
    ) -> Outcome {
        let mut signals = self.signal.subscribe();
        let mut seen = signals.borrow_and_update().rechecks;
        let mut is_requested = false;
        let mut ended = std::pin::pin!(running.ended());
        loop {
            tokio::select! { biased;
                outcome = &mut ended => return outcome,
                requested = &mut permit_request, if !is_requested => {
                    is_requested = true;
                    if let Ok(WritePermitRequest { durable, answer }) = requested {
                        self.set_stage(StartStage::Storing);
                        let admitted = self.admit(context, durable).await;
                        // Without a receiver the copy has ended already.
                        let _ = answer.send(admitted);
                    }
                }
                _ = signals.changed() => {
                    let rechecks = signals.borrow_and_update().rechecks;
                    if rechecks != seen {
                        seen = rechecks;
                        tokio::select! { biased;
                            outcome = &mut ended => return outcome,
                            () = self.apply_record(context) => {}
                        }
                    }
                }
            }
        }
    }

    /// Stores `RUNNING`, so that the copy may write.
    async fn admit(&self, context: &RunnerContext, durable: DurableMap) -> Result<(), Error> {
        let begin = |record: &TaskRecord| {
            let began = state_machine::next(record, TaskEvent::Started { epoch: self.epoch() }, context.unix_ms())?;
            // The destination may be another one than the record describes: then the record's durable bytes are
            // dropped.
            let checkpoint = Checkpoint { progress: began.progress, map: durable.clone() };
            state_machine::next(&began, TaskEvent::Checkpointed(checkpoint), context.unix_ms())
        };
        let written = tokio::select! { biased;
            reason = self.wait_for_stop() => return Err(stopped_early(reason)),
            written = self.records.write(context, begin) => written,
        };
        match written {
            Written::Done(record) => {
                self.control().start_stage = None;
                if self.order().is_some_and(|order| order.runs_at_most_once) {
                    self.remember_end(context).await?;
                }
                tracing::info!("copy may write");
                self.apply_desired_state(&record);
                context.renew.notify_one();
                Ok(())
            }
            Written::NotOurs => {
                self.abandon();
                let message = "the task was assigned to another runner before it began";
                Err(Error::new(Code::Fenced, Side::Coordination, Operation::Start, message))
            }
            Written::IllegalTransition(_, record) if has_begun(&record) => Ok(()),
            Written::IllegalTransition(illegal, _) => {
                let message = illegal.to_string();
                Err(Error::new(Code::Cancelled, Side::Caller, Operation::Start, message))
            }
        }
    }

    /// Reads the record and applies it, or abandons the attempt if the task has another holder.
    async fn apply_record(&self, context: &RunnerContext) {
        match self.records.read(context).await {
            Some(record) => self.apply_desired_state(&record),
            None => self.abandon(),
        }
    }

    fn apply_desired_state(&self, record: &TaskRecord) {
        if let Some(running) = self.running() {
            running.set_limit(record.spec.kind().limit());
        }
        if record.desired() != DesiredState::Run || record.state == TaskState::Cancelling {
            self.stop(StopReason::UserCancel);
        } else if record.is_leaving() {
            self.stop(StopReason::RunnerInterrupt);
        }
    }

    /// Stops the copy and writes nothing more: the task has another holder.
    fn abandon(&self) {
        self.control().abandoned = true;
        tracing::warn!("task has another holder: copy stopped");
        self.stop(StopReason::LeaseLost);
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.control().abandoned
    }

    /// Returns the reason to stop, if there is one.
    pub(super) fn stop_reason(&self) -> Option<StopReason> {
        self.signal.borrow().stop
    }

    fn order(&self) -> Option<&SignedFor> {
        self.order.get()?.as_ref()
    }

    /// Remembers that the task has ended on this node, if it was signed: nobody can have it run here again.
    pub(super) async fn remember_end(&self, context: &RunnerContext) -> Result<(), Error> {
        let (Some(orders), Some(order)) = (&context.config.orders, self.order()) else { return Ok(()) };
        let remembered = orders.remember(self.task(), order.not_after_ms, context.unix_ms()).await;
        remembered.inspect_err(|error| {
            tracing::error!(%error, "cannot store that a signed task has ended: it could be repeated after a restart");
        })
    }

    /// Waits for a reason to stop.
    pub(super) async fn wait_for_stop(&self) -> StopReason {
        let mut signals = self.signal.subscribe();
        loop {
            // The sender lives as long as this.
            if let Ok(signal) = signals.wait_for(|signal| signal.stop.is_some()).await
                && let Some(reason) = signal.stop
            {
                return reason;
            }
        }
    }

    /// Waits for a reason to stop, and then for `wait`.
    async fn wait_after_stop(&self, wait: Duration) {
        self.wait_for_stop().await;
        sleep(wait).await;
    }

    /// Waits for a signal to the attempt, at most for `wait`.
    pub(super) async fn wait_for_signal(&self, wait: Duration) {
        let mut signals = self.signal.subscribe();
        signals.mark_unchanged();
        let _ = timeout(wait, signals.changed()).await;
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the task as its client has signed it, where that is checked.
///
/// # Errors
/// `EPermission`: nothing was done.
fn verified(context: &RunnerContext, record: TaskRecord) -> Result<(TaskRecord, Option<SignedFor>), Error> {
    let Some(orders) = &context.config.orders else { return Ok((record, None)) };
    let VerifiedTask { record, mark, not_after_ms } = orders.verify(&record, context.unix_ms())?;
    let runs_at_most_once = record.spec.kind().runs_at_most_once();
    Ok((record, Some(SignedFor { mark, not_after_ms, runs_at_most_once })))
}

/// Tells whether a record's attempt runs and may have written.
pub(super) fn has_begun(record: &TaskRecord) -> bool {
    record.has_begun() && matches!(record.state, TaskState::Running | TaskState::Verifying)
}

/// Logs how the work of an attempt has ended, before its outcome is stored.
fn log_end(outcome: &Outcome) {
    let Outcome { end, quiesced, progress, .. } = outcome;
    match end {
        End::Succeeded => tracing::info!(planned = progress.planned, durable = progress.durable, "work done"),
        End::Stopped(reason) => {
            let (planned, durable) = (progress.planned, progress.durable);
            tracing::info!(%reason, quiesced, planned, durable, "work stopped");
        }
        End::Failed(failure) => {
            let Failure { code, side, operation, offset, length, errno, retryable, message } = failure;
            let range = offset.zip(*length).map(|(offset, length)| format!("{length} bytes at {offset}"));
            tracing::warn!(%code, side, operation, range, errno, retryable, quiesced, "work failed: {message}");
        }
    }
}

fn apply_stop(running: &dyn ExecutionHandle, reason: StopReason) {
    running.cancel(reason);
    if reason == StopReason::LeaseLost {
        running.cut();
    }
}

/// Returns the outcome of a copy that was stopped before it was started.
fn stopped_outcome(reason: StopReason) -> Outcome {
    Outcome::untouched(End::Stopped(reason))
}
