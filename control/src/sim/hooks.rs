//! Simulates hooks: programs that run for a while, exit in several ways, and leave processes behind when their `taskd`
//! is killed.
//!
//! Checked of each start, beside the grant: no other run of the task is under way or has left processes, and a task that
//! runs at most once was never started before. What a paused `taskd` has started under a lease is excused: it cannot kill a
//! hook when that lease ends.

use super::defect::Defect;
use super::disk::Writer;
use super::environment::SimEnvironment;
use super::executor::State;
use super::process::Process;
use super::run_result::RunResult;
use crate::clock::Clock;
use crate::execution::{End, Execution, Outcome, WritePermitRequest, stopped_early};
use crate::model::{DurableMap, Failure, TaskId};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::job::StopReason;
use blockhaul_engine::write_gate::WriteGate;
use blockhaul_hooks::{HOOK_GRACE, HOOK_GRACE_OF_NODE_STOP};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

/// Time between two looks at the gate, as in production.
const GATE_CHECK_EVERY: Duration = Duration::from_millis(100);
/// Longest time for which a hook runs, in milliseconds.
const RUN_MS_MAX: u64 = 20_000;

/// All runs of hooks of a world.
#[derive(Clone, Debug)]
pub(super) struct HookRuns {
    inner: Arc<Mutex<Inner>>,
    result: RunResult,
}

#[derive(Debug, Default)]
struct Inner {
    /// Runs of which a process may be there, by their jobs.
    present: BTreeMap<u64, Run>,
    /// Tasks of which a run was ever started, with their times of creation.
    started: BTreeSet<(TaskId, u64)>,
}

/// A run of which a process may be there.
#[derive(Debug)]
struct Run {
    by: Writer,
    taskd: Option<Arc<Process>>,
}

/// A hook that runs. Dropping it is the end of its `taskd`.
struct RunningHook {
    runs: HookRuns,
    job: u64,
    /// Whether a part of it outlives its `taskd`, until the next one of the node starts.
    leaves: bool,
    has_ended: bool,
}

/// A task whose hook is started.
#[derive(Clone, Copy, Debug)]
pub(super) struct HookTask {
    pub(super) created_ms: u64,
    /// Whether the attempt has a lease: then what `taskd` leaves behind is not modelled, as no other node sees it.
    pub(super) is_leased: bool,
    pub(super) is_once: bool,
}

impl HookRuns {
    pub(super) fn new(result: RunResult) -> Self {
        Self { inner: Arc::default(), result }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a run and checks that it may start.
    fn start(&self, by: &Writer, task: HookTask, has_lost_history: bool) -> RunningHook {
        let mut inner = self.inner();
        let is_excused = |run: &Run| task.is_leased && run.taskd.as_ref().is_some_and(|taskd| taskd.was_paused());
        let rival = inner.present.values().find(|run| run.by.task == by.task && !is_excused(run));
        self.result.expect(rival.is_none() || has_lost_history, || {
            format!("{}: runs of its hook overlap, by {by:?} and {rival:?}", by.task)
        });
        let is_first = inner.started.insert((by.task.clone(), task.created_ms));
        self.result.expect(is_first || !task.is_once || has_lost_history, || {
            format!("{} was started again and runs at most once", by.task)
        });
        self.result.count(if is_first { "hooks started" } else { "hooks started again" });
        self.result.note(format_args!("{}: hook started by {}", by.task, by.holder.node));
        inner.present.insert(by.job, Run { by: by.clone(), taskd: Process::current() });
        let leaves = !task.is_leased && fastrand::bool();
        RunningHook { runs: self.clone(), job: by.job, leaves, has_ended: false }
    }

    /// Ends what hooks have left on a node, as its next `taskd` does before it registers.
    pub(super) fn kill_leftovers(&self, node: &str) {
        let mut inner = self.inner();
        let before = inner.present.len();
        inner.present.retain(|_, run| run.by.holder.node.as_str() != node);
        if inner.present.len() < before {
            self.result.count("leftovers of hooks killed");
        }
    }
}

impl Drop for RunningHook {
    fn drop(&mut self) {
        if self.has_ended || !self.leaves {
            self.runs.inner().present.remove(&self.job);
        }
    }
}

/// Runs the hook of one attempt.
pub(super) async fn run(
    state: Arc<State>,
    environment: SimEnvironment,
    clock: Arc<dyn Clock>,
    by: Writer,
    task: HookTask,
    work: Execution,
) {
    let gate = Arc::clone(&work.gate);
    let outcome = match begin(&state, &environment, &*clock, work).await {
        Ok(()) => {
            environment.invariants.check_writer(&by);
            let has_lost_history = environment.invariants.has_lost_history();
            let mut running = environment.hooks.start(&by, task, has_lost_history);
            if environment.defect == Some(Defect::RunHooksAtOnce) {
                environment.hooks.start(&by, task, has_lost_history).has_ended = true;
            }
            let end = execute(&state, &*clock, &gate).await;
            running.has_ended = true;
            drop(running);
            if environment.defect == Some(Defect::RunHookTwice) {
                environment.hooks.start(&by, task, has_lost_history).has_ended = true;
            }
            Outcome { report: Some("output".into()), ..Outcome::untouched(end) }
        }
        Err(error) => Outcome::refused(&error),
    };
    state.end(outcome);
}

/// Does everything before the hook is executed.
async fn begin(state: &State, environment: &SimEnvironment, clock: &dyn Clock, work: Execution) -> Result<()> {
    let unfit = environment.disk_behaviour.lock().unwrap_or_else(PoisonError::into_inner).unfit;
    if fastrand::f64() < unfit {
        return Err(Error::new(Code::Unsupported, Side::Engine, Operation::Start, "this node runs no hooks"));
    }
    sleep(Duration::from_millis(fastrand::u64(0..50))).await;
    let (answer, answered) = oneshot::channel();
    let no = || Error::new(Code::RunnerInterrupt, Side::Engine, Operation::Start, "no permit");
    work.admission.send(WritePermitRequest { durable: DurableMap::default(), answer }).map_err(|_| no())?;
    answered.await.map_err(|_| no())??;
    match state.reason() {
        Some(reason) => Err(stopped_early(reason)),
        None if !work.gate.is_open_at(clock.boot_time()) => Err(stopped_early(StopReason::LeaseLost)),
        None => Ok(()),
    }
}

/// Waits for the end of the hook, by itself or by signals.
async fn execute(state: &State, clock: &dyn Clock, gate: &WriteGate) -> End {
    let mut ends_at = Instant::now() + Duration::from_millis(fastrand::u64(50..=RUN_MS_MAX));
    let mut is_stopping = false;
    loop {
        if state.is_cut() || !gate.is_open_at(clock.boot_time()) {
            return End::Stopped(state.reason().unwrap_or(StopReason::LeaseLost));
        }
        if let Some(reason) = state.reason().filter(|_| !is_stopping) {
            is_stopping = true;
            let grace = if reason == StopReason::UserCancel { HOOK_GRACE } else { HOOK_GRACE_OF_NODE_STOP };
            // It cleans up, or has to be killed.
            ends_at = Instant::now() + grace.mul_f64(fastrand::f64());
        }
        let left = ends_at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return if is_stopping { End::Stopped(state.reason().unwrap_or(StopReason::LeaseLost)) } else { exit() };
        }
        tokio::select! { biased;
            () = state.woken() => {}
            () = sleep(left.min(GATE_CHECK_EVERY)) => {}
        }
    }
}

/// Draws how a hook ends that is left alone.
fn exit() -> End {
    let failed = |retryable| {
        let error = Error::new(Code::Hook, Side::Caller, Operation::Start, "the hook failed");
        End::Failed(Failure::from(&Error { retryable, ..error }))
    };
    match fastrand::u8(..20) {
        0..=11 => End::Succeeded,
        12..=16 => failed(true),
        _ => failed(false),
    }
}
