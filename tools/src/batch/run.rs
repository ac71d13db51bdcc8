//! Runs the members of a batch: in the order that dependencies allow, so many at once, on one engine.
//!
//! The members are tasks of a [`Scheduler`]. A task that may start is put into a queue; this module takes from it while
//! there is a place, and submits the job. An [`EventQueue`] delivers the ends of jobs; they complete the tasks, which
//! lets others start or skips them.
//!
//! What always holds:
//! - One thread decides. The engine has the others.
//! - The end of a member is recorded before a member that waits for it starts.
//! - After a stop was asked for, nothing starts, and everything that runs is waited for.
//! - A member with a hook runs until no process of the hook is left.

use super::display::{Display, MemberProgress};
use super::earlier::BatchStart;
use super::hooks::{HookEnd, HookRunner, RunningHook};
use super::request::{BatchRequest, MemberJob, RunMode};
use super::state::{BatchState, EndState, MemberEnd, now_ms};
use crate::signals::StopTarget;
use blockhaul_control::batch::{Batch, OnFailure};
use blockhaul_engine::engine::Engine;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::flow::event_queue::{Event, EventQueue};
use blockhaul_engine::flow::graph::Condition;
use blockhaul_engine::flow::scheduler::{Flow, Scheduler, Task, TaskResult};
use blockhaul_engine::job::{JobHandle, StopReason};
use blockhaul_engine::progress::{Report, Status};
use blockhaul_engine::units::format_size;
use blockhaul_hooks::HOOK_GRACE;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// Members that may start, in the order in which they may.
type ReadyQueue = Arc<Mutex<VecDeque<usize>>>;
/// Members that have ended, with the results of their tasks.
type EndQueue = Arc<Mutex<VecDeque<(usize, TaskResult)>>>;

/// The members of a batch while they run.
pub(super) struct BatchRun<'a> {
    request: &'a BatchRequest,
    engine: &'a Engine,
    state: BatchState,
    display: Display,
    is_clean_up: Vec<bool>,
    queue: EventQueue,
    scheduler: Scheduler,
    tasks: Vec<Task>,
    ready: ReadyQueue,
    ends: EndQueue,
    running: Vec<Running>,
    hooks: HookRunner<'a>,
    /// Members whose hooks run again, and when.
    delayed: Vec<(Instant, usize)>,
    /// Whether all members but clean-up are cancelled from the beginning.
    is_cancelled: bool,
    stop: StopRequest,
    ended: Vec<Option<MemberEnd>>,
    totals: Totals,
    first_error: Option<Error>,
}

/// A member that runs.
struct Running {
    member: usize,
    event: Event,
    work: RunningWork,
}

enum RunningWork {
    Job(JobHandle),
    Hook(RunningHook),
}

impl RunningWork {
    fn stop(&self, reason: StopReason) {
        match self {
            Self::Job(job) => job.cancel(reason),
            Self::Hook(hook) => hook.stop(HOOK_GRACE),
        }
    }
}

/// Sums over all members that this run has started.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Totals {
    pub(super) planned: u64,
    pub(super) moved: u64,
    pub(super) durable: u64,
    pub(super) is_quiesced: bool,
}

/// What has become of a batch.
#[derive(Debug)]
pub(super) struct BatchResult {
    /// How it ended; `None` if it was interrupted.
    pub(super) end: Option<EndState>,
    /// How each member ended; `None`: it did not.
    pub(super) members: Vec<Option<MemberEnd>>,
    pub(super) totals: Totals,
    pub(super) first_error: Option<Error>,
}

/// Request to stop, which a signal makes.
#[derive(Clone, Debug)]
pub(super) struct StopRequest {
    reason: Arc<Mutex<Option<StopReason>>>,
    /// Completed by the request, so that the run's thread wakes.
    event: Event,
    status: Arc<Mutex<String>>,
}

impl StopTarget for StopRequest {
    fn stop(&self, reason: StopReason) {
        lock(&self.reason).get_or_insert(reason);
        self.event.complete(Ok(()));
    }

    fn status(&self) -> String {
        lock(&self.status).clone()
    }
}

impl<'a> BatchRun<'a> {
    /// Prepares a run in which the members of `ended` have ended already.
    pub(super) fn new(
        request: &'a BatchRequest,
        engine: &'a Engine,
        hooks: HookRunner<'a>,
        BatchStart { state, ended, is_cancelled }: BatchStart,
        display: Display,
    ) -> Self {
        let scheduler = Flow::default().scheduler();
        let queue = EventQueue::default();
        queue.drive(&scheduler);
        let (ready, ends) = (ReadyQueue::default(), EndQueue::default());
        let tasks = tasks(&request.batch, &scheduler, &ended, &ready, &ends);
        let stop = StopRequest { reason: Arc::default(), event: queue.event(), status: Arc::default() };
        Self {
            request,
            engine,
            state,
            display,
            is_clean_up: request.batch.clean_up(),
            queue,
            scheduler,
            tasks,
            ready,
            ends,
            running: Vec::new(),
            hooks,
            delayed: Vec::new(),
            is_cancelled: is_cancelled || request.mode == RunMode::Cancel,
            stop,
            ended,
            totals: Totals { is_quiesced: true, ..Totals::default() },
            first_error: None,
        }
    }

    /// Returns what stops the run.
    pub(super) fn stop_target(&self) -> StopRequest {
        self.stop.clone()
    }

    /// Runs all members.
    ///
    /// # Errors
    /// The state could not be recorded: everything that ran was stopped.
    pub(super) fn run(mut self) -> Result<BatchResult> {
        self.stop.event.launch()?;
        let outcome = self.begin().and_then(|()| self.run_until_over());
        if let Err(error) = outcome {
            self.stop_running(StopReason::RunnerInterrupt);
            while !self.running.is_empty() {
                let ended = self.queue.poll(usize::MAX, self.display.interval());
                ended.iter().for_each(|delivery| _ = self.take(&delivery.event));
            }
            self.display.clear();
            return Err(error);
        }
        let is_over = self.ended.iter().all(Option::is_some);
        let end = is_over.then(|| end_of(&self.ended));
        if let Some(end) = end {
            self.state.ended(end)?;
        }
        self.display.clear();
        let first_error = self.first_error.take().or_else(|| self.recorded_error());
        Ok(BatchResult { end, members: self.ended, totals: self.totals, first_error })
    }

    /// Schedules all members, and cancels what an earlier run has cancelled, or would have if it had not been killed.
    fn begin(&mut self) -> Result<()> {
        self.tasks.iter().for_each(|task| _ = task.schedule());
        // The tasks of members that have ended end before anything is cancelled.
        self.scheduler.progress();
        if self.is_cancelled {
            self.state.cancelled()?;
        }
        let has_failed = self.ended.iter().flatten().any(|end| end.state == EndState::Failed);
        if self.is_cancelled || (has_failed && self.request.batch.on_failure == OnFailure::Stop) {
            self.cancel_others();
        }
        Ok(())
    }

    fn run_until_over(&mut self) -> Result<()> {
        let mut is_stopping = false;
        loop {
            let stop = *lock(&self.stop.reason);
            match stop {
                None => {
                    self.requeue_delayed();
                    while self.scheduler.progress() > 0 || self.record_ends()? || self.start_ready()? {}
                }
                Some(reason) => {
                    self.record_ends()?;
                    if !std::mem::replace(&mut is_stopping, true) {
                        self.stop_running(reason);
                    }
                }
            }
            if self.running.is_empty() && (is_stopping || self.scheduler.is_idle()) {
                return Ok(());
            }
            self.show();
            for delivery in self.queue.poll(self.request.parallel, self.display.interval()) {
                match (self.take(&delivery.event), &delivery.report) {
                    (Some(Running { member, work: RunningWork::Hook(hook), .. }), _) => self.hook_ended(member, &hook),
                    (Some(Running { member, .. }), Some(report)) => self.job_ended(member, report),
                    // The request to stop.
                    (_, _) => {}
                }
            }
        }
    }

    /// Returns the member that an event stands for; it does not run any more.
    fn take(&mut self, event: &Event) -> Option<Running> {
        let at = self.running.iter().position(|running| running.event == *event)?;
        Some(self.running.swap_remove(at))
    }

    /// Queues members whose hooks are to run again by now.
    fn requeue_delayed(&mut self) {
        let now = Instant::now();
        let due = self.delayed.extract_if(.., |(at, _)| *at <= now);
        lock(&self.ready).extend(due.map(|(_, member)| member));
    }

    /// Starts the next ready member if there is a place. Returns whether one has left the queue.
    fn start_ready(&mut self) -> Result<bool> {
        if self.running.len() >= self.request.parallel {
            return Ok(false);
        }
        let Some(member) = lock(&self.ready).pop_front() else { return Ok(false) };
        if self.tasks[member].is_cancelled() {
            self.tasks[member].complete(Err(cancelled()));
            return Ok(true);
        }
        self.display.started(self.request.batch.members[member].id.as_str());
        let event = self.queue.event();
        match self.start(member, &event) {
            Ok(work) => self.running.push(Running { member, event, work }),
            Err(error) => _ = self.tasks[member].complete(Err(error)),
        }
        Ok(true)
    }

    /// Starts the work of a member; `event` completes when it has ended.
    fn start(&mut self, member: usize, event: &Event) -> Result<RunningWork> {
        let id = self.request.batch.members[member].id.as_str();
        let job = match &self.request.jobs[member] {
            MemberJob::Run(hook) => {
                event.launch()?;
                return self.hooks.start(member, hook, event).map(RunningWork::Hook);
            }
            MemberJob::Copy(spec) => {
                let mut spec = spec.as_ref().clone();
                if let Some(checkpoint) = self.request.jobs[member].checkpoint() {
                    spec.resume_policy = self.state.resume_policy(id, checkpoint);
                }
                spec.receipt = Some(self.state.receipt(id));
                self.engine.submit(spec)
            }
            MemberJob::Verify(spec) => self.engine.verify(spec.as_ref().clone()),
        };
        event.launch_job(&job)?;
        Ok(RunningWork::Job(job))
    }

    /// Completes the task of a job that has ended, unless it was interrupted.
    fn job_ended(&mut self, member: usize, report: &Report) {
        let Totals { planned, moved, durable, is_quiesced } = &mut self.totals;
        *planned += report.bytes.planned;
        *moved += report.bytes.read.max(report.bytes.written);
        *durable += report.bytes.durable;
        *is_quiesced &= report.quiesced;
        let id = self.request.batch.members[member].id.as_str();
        self.display.reported(id, &self.request.jobs[member], report);
        let is_interrupted =
            lock(&self.stop.reason).is_some() && matches!(report.status, Status::Interrupted | Status::Cancelled);
        if !is_interrupted {
            self.ended[member] = Some(MemberEnd { bytes: report.bytes.planned, ..end_of_member(&result_of(report)) });
            self.tasks[member].complete(result_of(report));
        }
    }

    /// Completes the task of a hook of which no process is left, unless it was interrupted or runs again.
    fn hook_ended(&mut self, member: usize, hook: &RunningHook) {
        let Some(report) = hook.report() else { return };
        let end = self.hooks.ended(member, &report);
        self.display.hook_ended(self.request.batch.members[member].id.as_str(), &report, &end);
        let is_stopping = lock(&self.stop.reason).is_some();
        let result = match end {
            HookEnd::Again(wait) => return self.delayed.push((Instant::now() + wait, member)),
            HookEnd::Stopped if is_stopping => return,
            HookEnd::Stopped => Err(cancelled()),
            HookEnd::Ended(result) => result,
        };
        self.ended[member] = Some(end_of_member(&result));
        self.tasks[member].complete(result);
    }

    /// Records the ends of members, and what follows from a failure. Returns whether there were any.
    fn record_ends(&mut self) -> Result<bool> {
        let ended: Vec<_> = lock(&self.ends).drain(..).collect();
        if ended.is_empty() {
            return Ok(false);
        }
        let mut records = Vec::with_capacity(ended.len());
        let mut has_failed = false;
        for (member, result) in ended {
            let id = self.request.batch.members[member].id.as_str();
            let end = match self.ended[member].take() {
                Some(end) => end,
                None => {
                    let result = self.explained(member, result.clone());
                    let end = end_of_member(&result);
                    self.display.not_started(id, end.state, &result);
                    end
                }
            };
            if let (EndState::Failed, Err(error)) = (end.state, result) {
                has_failed = true;
                self.first_error.get_or_insert_with(|| of_member(id, error));
            }
            records.push((id.to_owned(), end.clone()));
            self.ended[member] = Some(end);
        }
        self.state.members_ended(&records)?;
        if has_failed && self.request.batch.on_failure == OnFailure::Stop {
            self.cancel_others();
        }
        Ok(true)
    }

    /// Returns the error of the member that failed first, or else was cancelled, as it was recorded.
    fn recorded_error(&self) -> Option<Error> {
        let first = |state| {
            let members = self.request.batch.members.iter().zip(&self.ended);
            let ends = members.filter_map(|(member, end)| Some((member, end.as_ref()?)));
            ends.filter(|(_, end)| end.state == state).min_by_key(|(_, end)| end.ended_ms)
        };
        let (member, end) = first(EndState::Failed).or_else(|| first(EndState::Cancelled))?;
        result_of_end(end).err().map(|error| of_member(member.id.as_str(), error))
    }

    /// Cancels every member that has not ended, except for clean-up.
    fn cancel_others(&mut self) {
        // What waits for others comes before them: none starts, or is skipped, because an earlier one was cancelled.
        for member in self.request.batch.order().into_iter().rev() {
            if !self.is_clean_up[member] && self.ended[member].is_none() {
                self.tasks[member].cancel();
            }
        }
        for running in self.running.iter().filter(|running| !self.is_clean_up[running.member]) {
            running.work.stop(StopReason::UserCancel);
        }
    }

    fn stop_running(&self, reason: StopReason) {
        self.running.iter().for_each(|running| running.work.stop(reason));
    }

    /// Says which dependency kept a member from starting.
    fn explained(&self, member: usize, result: TaskResult) -> TaskResult {
        result.map_err(|error| {
            if error.code != Code::Dependency {
                return error;
            }
            let members = &self.request.batch.members;
            let broken = members[member].after.iter().find_map(|dependency| {
                let state = self.ended[dependency.on].as_ref()?.state;
                let is_met = match dependency.condition {
                    Condition::Success => state == EndState::Succeeded,
                    Condition::Failure => state == EndState::Failed,
                    Condition::End => true,
                };
                (!is_met).then(|| format!("{} {}", members[dependency.on].id, state.as_verb()))
            });
            broken.map_or(error.clone(), |what| Error { message: format!("it was not started, as {what}"), ..error })
        })
    }

    fn show(&mut self) {
        let ended = self.ended.iter().flatten().count();
        let count = self.ended.len();
        *lock(&self.stop.status) = format!("{ended} of {count} members have ended, {} run", self.running.len());
        let members = &self.request.batch.members;
        let progress = |running: &Running| {
            let RunningWork::Job(job) = &running.work else { return None };
            let id = members[running.member].id.as_str();
            Some(MemberProgress { id, progress: job.progress(), path: job.path() })
        };
        let running: Vec<_> = self.running.iter().filter_map(progress).collect();
        self.display.show(&running, ended, count, self.totals.moved);
    }
}

/// Builds the tasks of all members. Those that have ended complete at once.
fn tasks(
    batch: &Batch,
    scheduler: &Scheduler,
    ended: &[Option<MemberEnd>],
    ready: &ReadyQueue,
    ends: &EndQueue,
) -> Vec<Task> {
    let mut tasks: Vec<Option<Task>> = vec![None; batch.members.len()];
    for member in batch.order() {
        let mut builder = scheduler.task();
        let task = match &ended[member] {
            // What it waited for may run again.
            Some(end) => {
                let result = result_of_end(end);
                builder.run(move || result.clone())
            }
            None => {
                for dependency in &batch.members[member].after {
                    let on = tasks[dependency.on].as_ref().expect("the order puts it before");
                    builder = builder.after(on, dependency.condition);
                }
                let (ready, ends) = (Arc::clone(ready), Arc::clone(ends));
                let ended = move |_: &Task, result: &TaskResult| {
                    lock(&ends).push_back((member, result.clone()));
                    Ok(())
                };
                builder.body(move |_| lock(&ready).push_back(member)).completed(ended)
            }
        };
        tasks[member] = Some(task.build());
    }
    tasks.into_iter().map(|task| task.expect("there is no circle")).collect()
}

/// Returns the result of a job as that of a task.
fn result_of(report: &Report) -> TaskResult {
    match (&report.error, report.status) {
        (_, Status::Succeeded) => Ok(()),
        (Some(error), _) => Err(error.clone()),
        (None, Status::Differs) => {
            let bytes: u64 = report.differences.iter().map(|range| range.length).sum();
            let message = format!("the volumes differ: {} in the ranges that are listed", format_size(bytes));
            Err(Error::new(Code::VerifyMismatch, Side::Destination, Operation::Verify, message))
        }
        (None, Status::Interrupted | Status::Cancelled | Status::Failed) => Err(cancelled()),
    }
}

fn end_of_member(result: &TaskResult) -> MemberEnd {
    let state = match result {
        Ok(()) => EndState::Succeeded,
        Err(error) => match error.code {
            Code::Dependency => EndState::Skipped,
            Code::Cancelled | Code::RunnerInterrupt => EndState::Cancelled,
            _ => EndState::Failed,
        },
    };
    let error = result.as_ref().err();
    MemberEnd {
        state,
        bytes: 0,
        code: error.map(|error| error.code.as_str().to_owned()),
        error: error.map(|error| error.message.clone()),
        ended_ms: now_ms(),
    }
}

/// Returns the result of a member that ended in an earlier run.
fn result_of_end(end: &MemberEnd) -> TaskResult {
    match end.state {
        EndState::Succeeded => Ok(()),
        EndState::Failed => Err(earlier_error(end, Code::Internal)),
        EndState::Cancelled => Err(earlier_error(end, Code::Cancelled)),
        EndState::Skipped => Err(earlier_error(end, Code::Dependency)),
    }
}

fn earlier_error(end: &MemberEnd, usual: Code) -> Error {
    let code = end
        .code
        .as_deref()
        .and_then(|text| Code::ALL.iter().copied().find(|code| code.as_str() == text))
        .unwrap_or(usual);
    Error::new(code, Side::Engine, Operation::Start, end.error.clone().unwrap_or_default())
}

/// Returns how a batch has ended: a failure counts more than a cancel, and what was skipped counts as neither.
pub(super) fn end_of(members: &[Option<MemberEnd>]) -> EndState {
    let any = |state| members.iter().flatten().any(|end| end.state == state);
    if any(EndState::Failed) {
        EndState::Failed
    } else if any(EndState::Cancelled) {
        EndState::Cancelled
    } else {
        EndState::Succeeded
    }
}

fn of_member(id: &str, error: Error) -> Error {
    Error { message: format!("member {id}: {}", error.message), ..error }
}

fn cancelled() -> Error {
    Error::new(Code::Cancelled, Side::Caller, Operation::Stop, "it was cancelled with the rest of its batch")
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
