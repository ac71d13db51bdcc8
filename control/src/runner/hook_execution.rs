//! Runs the hooks of tasks on this node.
//!
//! Each attempt has a thread of its own. It opens the hook, requests the permit, so that `RUNNING` is stored before
//! anything is executed, and waits until no process of the hook is left. Only then does the attempt end: two runs never
//! overlap on a node.
//!
//! ```text
//!  runner --run_hook--> thread: opens hook -> permit -> HookHandle::start -> Ended -> Gone -> outcome
//!                                                         ^ stop: cancel, node stop, end of the lease
//! ```
//! Where another node may run the hook next, the attempt has a lease. The thread of the attempt checks the gate of
//! that lease: a slow runner does not delay the kill when the lease ends.

use crate::execution::{End, Execution, ExecutionHandle, HookJob, Outcome, Refused, WritePermitRequest, stopped_early};
use crate::model::{DurableMap, Failure, NodeId, Progress};
use async_trait::async_trait;
use blockhaul_engine::error::{Code, Effect, Error, Operation, Result, Side};
use blockhaul_engine::job::StopReason;
use blockhaul_engine::shown::Escaped;
use blockhaul_engine::write_gate::WriteGate;
use blockhaul_hooks::{
    HOOK_GRACE, HOOK_GRACE_OF_NODE_STOP, HookEvent, HookFolder, HookHandle, HookName, HookOrder, HookOutcome,
    HookOutput, HookReport, HookRequest, HookStateFolder, Subreaper,
};
use serde_json::json;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tracing::Span;

/// Time between two looks at the gate of the lease: small against the time from the end of a lease to the next attempt.
const GATE_CHECK_EVERY: Duration = Duration::from_millis(100);

/// Hooks of this node.
#[derive(Debug)]
pub(crate) struct NodeHooks {
    node: NodeId,
    folder: HookFolder,
    state: HookStateFolder,
    subreaper: Subreaper,
}

/// Attempt, as the runner sees it.
#[derive(Debug)]
struct HookExecution {
    run: Mutex<Run>,
    outcome: Mutex<Option<oneshot::Receiver<Outcome>>>,
    /// Numbers of processes that survive SIGKILL.
    survivors: Mutex<Vec<i32>>,
    is_gone: watch::Sender<bool>,
}

/// Run of the hook, or the request to stop it.
#[derive(Debug, Default)]
struct Run {
    handle: Option<HookHandle>,
    /// First reason to stop.
    stopped: Option<StopReason>,
}

impl NodeHooks {
    /// Creates the hooks of `node`. Its state folder holds no leftovers of an earlier process any more.
    pub(crate) fn new(node: NodeId, folder: HookFolder, state: HookStateFolder, subreaper: Subreaper) -> Self {
        Self { node, folder, state, subreaper }
    }

    /// Starts an attempt on a thread of its own. Returns at once.
    pub(crate) fn run(self: &Arc<Self>, job: HookJob, execution: Execution) -> Arc<dyn ExecutionHandle> {
        let (send_outcome, outcome) = oneshot::channel();
        let attempt = Arc::new(HookExecution {
            run: Mutex::default(),
            outcome: Mutex::new(Some(outcome)),
            survivors: Mutex::default(),
            is_gone: watch::Sender::new(false),
        });
        let (hooks, shared, span) = (Arc::clone(self), Arc::clone(&attempt), Span::current());
        let name = format!("run {}", execution.task);
        let run = move || {
            let _in = span.enter();
            // Without a receiver the runner was dropped, or no longer waits.
            let send_outcome = move |outcome| _ = send_outcome.send(outcome);
            match hooks.start(&job, execution, &shared) {
                Ok((events, gate)) => shared.supervise(&job.hook, &events, &gate, send_outcome),
                Err(error) => send_outcome(Outcome::refused(&error)),
            }
            shared.is_gone.send_replace(true);
        };
        match std::thread::Builder::new().name(name).spawn(run) {
            Ok(_) => attempt,
            Err(error) => Arc::new(Refused(Error::io(Side::Engine, Operation::Start, &error, "start a hook's thread"))),
        }
    }

    /// Checks that a hook is there, that it may be run, and what is asked of it.
    ///
    /// # Errors
    /// As those of an attempt that executes nothing.
    pub(crate) fn check(&self, job: &HookJob) -> Result<()> {
        self.folder.hook(&job.hook)?;
        HookOrder::try_from(job.request(HookRequest::new("check", self.node.as_str(), 1, 0))).map(drop)
    }

    /// Opens the hook, waits for the permit, and executes it. Nothing was executed if this fails.
    fn start(
        &self,
        job: &HookJob,
        execution: Execution,
        attempt: &HookExecution,
    ) -> Result<(Receiver<HookEvent>, Arc<WriteGate>)> {
        let Execution { task, group, attempt: number, epoch, gate, admission, .. } = execution;
        let hook = self.folder.hook(&job.hook)?;
        // Epochs are transaction numbers, which are never negative.
        let epoch = u64::try_from(epoch.0).unwrap_or_default();
        let request = HookRequest::new(task.as_str(), self.node.as_str(), number, epoch);
        let request = HookRequest { group: group.map(String::from), ..request };
        let order = HookOrder::try_from(job.request(request))?;
        let permit = WritePermitRequest::ask(&Mutex::new(Some(admission)), DurableMap::default());
        permit.blocking_recv().unwrap_or_else(|_| Err(stopped_early(StopReason::RunnerInterrupt)))?;
        let mut run = attempt.run();
        if let Some(reason) = run.stopped {
            return Err(stopped_early(reason));
        }
        if !gate.is_open() {
            return Err(stopped_early(StopReason::LeaseLost));
        }
        let (events, received) = channel();
        let on_event = move |event| _ = events.send(event);
        run.handle = Some(HookHandle::start(self.subreaper, hook, order, &self.state, on_event)?);
        Ok((received, gate))
    }
}

/// Returns the refusal of a node without hooks: another node may have them.
pub(crate) fn no_hooks(hook: &HookName) -> Error {
    let message = format!("this node runs no hooks, so not {hook} either");
    let error = Error::new(Code::Unsupported, Side::Engine, Operation::Start, message);
    error.advise("start its taskd with --hooks-dir DIR, or name another node by --node")
}

impl HookExecution {
    /// Waits until nothing of the hook is left, and sends the outcome: then, or as soon as something survives SIGKILL.
    fn supervise(
        &self,
        name: &HookName,
        events: &Receiver<HookEvent>,
        gate: &WriteGate,
        send_outcome: impl FnOnce(Outcome),
    ) {
        let mut send_outcome = Some(send_outcome);
        let mut ended = None;
        let mut logged = 0;
        loop {
            let event = events.recv_timeout(GATE_CHECK_EVERY);
            logged += self.log_output(name, logged);
            match event {
                Err(RecvTimeoutError::Timeout) if gate.is_open() => {}
                Err(RecvTimeoutError::Timeout) => self.stop(StopReason::LeaseLost),
                Ok(HookEvent::Ended(report)) => {
                    log(name, &report, logged);
                    let outcome = self.outcome_of(name, &report);
                    *lock(&self.survivors) = report.survivors;
                    if outcome.quiesced {
                        ended = Some(outcome);
                    } else if let Some(send_outcome) = send_outcome.take() {
                        send_outcome(outcome);
                    }
                }
                Ok(HookEvent::Gone) => break,
                Err(RecvTimeoutError::Disconnected) => unreachable!("the end of a hook is told before its thread ends"),
            }
        }
        if let (Some(outcome), Some(send_outcome)) = (ended, send_outcome) {
            send_outcome(outcome);
        }
    }

    /// Logs the whole lines that the hook has written, of its first bytes, from this position on; returns their length. So
    /// they are in the log also if this process is killed.
    fn log_output(&self, hook: &HookName, from: usize) -> usize {
        let written = self.run().handle.as_ref().map(|handle| handle.first_output(from)).unwrap_or_default();
        let length = written.iter().rposition(|byte| *byte == b'\n').map_or(0, |last| last + 1);
        if length > 0 {
            tracing::info!(%hook, output = Escaped::from(&written[..length]).to_string(), "hook wrote");
        }
        length
    }

    fn outcome_of(&self, name: &HookName, report: &HookReport) -> Outcome {
        let said = report.output.shown_tail();
        let end = match &report.outcome {
            HookOutcome::Succeeded => End::Succeeded,
            HookOutcome::Retry => End::Failed(Failure::from(&retry(name, &said))),
            HookOutcome::Failed(error) | HookOutcome::TimedOut(error) => End::Failed(Failure::from(&of_run(error))),
            HookOutcome::Stopped => End::Stopped(self.run().stopped.unwrap_or(StopReason::RunnerInterrupt)),
        };
        let report_json = json!({ "hook": name.as_str(), "output_tail": said });
        Outcome { quiesced: report.survivors.is_empty(), report: Some(report_json), ..Outcome::untouched(end) }
    }

    /// Stops the hook, or keeps it from being executed. The first reason is kept, and the shortest grace.
    fn stop(&self, reason: StopReason) {
        let mut run = self.run();
        run.stopped.get_or_insert(reason);
        if let Some(handle) = &run.handle {
            handle.stop(match reason {
                StopReason::UserCancel | StopReason::DeadlineExceeded => HOOK_GRACE,
                StopReason::RunnerInterrupt => HOOK_GRACE_OF_NODE_STOP,
                // Another node may run it now.
                StopReason::LeaseLost => Duration::ZERO,
            });
        }
    }

    fn run(&self) -> MutexGuard<'_, Run> {
        lock(&self.run)
    }
}

#[async_trait]
impl ExecutionHandle for HookExecution {
    fn progress(&self) -> Progress {
        Progress::default()
    }

    fn durable(&self) -> DurableMap {
        DurableMap::default()
    }

    fn set_limit(&self, _bytes_per_second: Option<u64>) {}

    fn cancel(&self, reason: StopReason) {
        self.stop(reason);
    }

    fn cut(&self) {
        self.stop(StopReason::LeaseLost);
    }

    async fn ended(&self) -> Outcome {
        let outcome = lock(&self.outcome).take();
        match outcome {
            Some(outcome) => match outcome.await {
                Ok(outcome) => outcome,
                // Nobody knows what runs: the attempt is kept.
                Err(_) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    }

    async fn quiet(&self) {
        // The sender lives as long as self.
        let _ = self.is_gone.subscribe().wait_for(|is_gone| *is_gone).await;
    }

    fn survivors(&self) -> Option<String> {
        let survivors = lock(&self.survivors);
        (!survivors.is_empty()).then(|| {
            let numbers: Vec<String> = survivors.iter().map(ToString::to_string).collect();
            format!(
                "processes {} of the hook survive SIGKILL, as they wait for a device: waiting for them",
                numbers.join(", ")
            )
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the error of a hook that asks to be run again.
fn retry(name: &HookName, said: &str) -> Error {
    let said = if said.is_empty() { String::from("it wrote nothing") } else { format!("it wrote last: {said}") };
    let message = format!("hook {name} asks to be run again (exit code 75); {said}");
    Error {
        retryable: true,
        ..of_run(&Error::new(Code::Hook, Side::Engine, Operation::Start, message).maybe_applied())
    }
}

/// Returns the error of a hook as its task's: what was executed would fail on every node, and is not repeated by itself.
/// What could not be executed is a fault of the node.
fn of_run(error: &Error) -> Error {
    match error.effect {
        Effect::Unknown => Error { side: Side::Caller, retryable: false, ..error.clone() },
        Effect::NotApplied => error.clone(),
    }
}

/// Logs the end of a hook and what it has written, but for the first bytes that are logged already.
fn log(hook: &HookName, report: &HookReport, logged: usize) {
    let HookReport { outcome, output, survivors } = report;
    let HookText { first, dropped_bytes, last } = HookText::of(output, logged);
    let outcome = match outcome {
        HookOutcome::Succeeded => String::from("succeeded"),
        HookOutcome::Retry => String::from("asked for a retry"),
        HookOutcome::Stopped => String::from("stopped"),
        // The message repeats the end of the output.
        HookOutcome::Failed(error) | HookOutcome::TimedOut(error) => error.code.to_string(),
    };
    tracing::info!(%hook, outcome, output = first, dropped_bytes, output_end = last, "hook ended");
    if !survivors.is_empty() {
        tracing::error!(%hook, processes = ?survivors, "processes of a hook survive SIGKILL: waiting for them");
    }
}

/// Output of a hook for the log.
struct HookText {
    first: String,
    dropped_bytes: u64,
    last: String,
}

impl HookText {
    fn of(output: &HookOutput, logged: usize) -> Self {
        let shown = |bytes: &[u8]| Escaped::from(bytes).to_string();
        Self {
            first: shown(output.first().get(logged..).unwrap_or_default()),
            dropped_bytes: output.dropped_bytes(),
            last: shown(&output.last()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Epoch, TaskId};
    use blockhaul_hooks::become_subreaper;
    use blockhaul_testkit::safe_dir::SafeDir;

    /// A node with the hook `h`; `None` if this host has no folder that only this user can change.
    fn node(script: &str) -> Option<(SafeDir, Arc<NodeHooks>)> {
        let dir = SafeDir::new()?;
        dir.executable("hooks/h", &format!("#!/bin/sh\n{script}\n"));
        let folder = HookFolder::open(dir.path("hooks")).unwrap();
        let state = HookStateFolder::open(dir.path("state")).unwrap();
        let hooks = NodeHooks::new(NodeId::new("n").unwrap(), folder, state, become_subreaper().unwrap());
        Some((dir, Arc::new(hooks)))
    }

    fn start(
        hooks: &Arc<NodeHooks>,
        name: &str,
        gate: &Arc<WriteGate>,
    ) -> (Arc<dyn ExecutionHandle>, oneshot::Receiver<WritePermitRequest>) {
        let (admission, permit_request) = oneshot::channel();
        let execution = Execution {
            task: TaskId::new("t").unwrap(),
            group: None,
            created_ms: 1,
            attempt: 1,
            epoch: Epoch(7),
            admitted: false,
            earlier: Vec::new(),
            mark: None,
            durable: DurableMap::default(),
            gate: Arc::clone(gate),
            admission,
        };
        let job = HookJob {
            hook: HookName::parse(name).unwrap(),
            arguments: Vec::new(),
            input: Vec::new(),
            timeout: Duration::from_secs(600),
        };
        (hooks.run(job, execution), permit_request)
    }

    fn open_gate() -> Arc<WriteGate> {
        let gate = WriteGate::closed();
        gate.open_until(Duration::MAX);
        Arc::new(gate)
    }

    async fn permit(request: oneshot::Receiver<WritePermitRequest>) {
        request.await.unwrap().answer.send(Ok(())).unwrap();
    }

    fn failure(outcome: &Outcome) -> &Failure {
        match &outcome.end {
            End::Failed(failure) => failure,
            end => panic!("it did not fail: {end:?}"),
        }
    }

    #[tokio::test]
    async fn the_exit_code_decides_and_a_failed_hook_is_its_tasks_fault() {
        for (exit, is_retryable) in [(0, None), (75, Some(true)), (3, Some(false))] {
            let Some((_dir, hooks)) = node(&format!("echo done; exit {exit}")) else { return };
            let (running, request) = start(&hooks, "h", &open_gate());
            permit(request).await;
            let outcome = running.ended().await;
            assert!(outcome.quiesced, "{outcome:?}");
            assert_eq!(outcome.report.as_ref().unwrap()["output_tail"], "done");
            match is_retryable {
                None => assert_eq!(outcome.end, End::Succeeded),
                Some(is_retryable) => {
                    let failure = failure(&outcome);
                    assert_eq!((failure.code, failure.retryable), (Code::Hook, is_retryable), "{failure}");
                    assert_eq!(failure.node_fault(), None, "{failure}");
                }
            }
        }
    }

    #[tokio::test]
    async fn a_hook_that_is_not_there_is_the_nodes_fault_and_asks_for_no_permit() {
        let Some((_dir, hooks)) = node("exit 0") else { return };
        let (running, request) = start(&hooks, "other", &open_gate());
        assert!(request.await.is_err());
        let outcome = running.ended().await;
        assert_eq!(failure(&outcome).code, Code::NotFound);
        assert!(failure(&outcome).node_fault().is_some());
    }

    #[tokio::test]
    async fn without_a_permit_or_after_a_stop_nothing_is_executed() {
        let Some((dir, hooks)) = node("exit 0") else { return };
        let (running, request) = start(&hooks, "h", &open_gate());
        drop(request);
        assert_eq!(running.ended().await.end, End::Stopped(StopReason::RunnerInterrupt));
        let (running, request) = start(&hooks, "h", &open_gate());
        let request = request.await.unwrap();
        running.cancel(StopReason::UserCancel);
        request.answer.send(Ok(())).unwrap();
        assert_eq!(running.ended().await.end, End::Stopped(StopReason::UserCancel));
        let (running, request) = start(&hooks, "h", &Arc::new(WriteGate::closed()));
        permit(request).await;
        assert_eq!(running.ended().await.end, End::Stopped(StopReason::LeaseLost));
        let left = std::fs::read_dir(dir.path("state")).unwrap().count();
        assert_eq!(left, 0, "no run was prepared");
    }

    #[tokio::test]
    async fn a_hook_is_killed_when_its_lease_ends_whatever_it_does() {
        let Some((dir, hooks)) = node("trap '' TERM; sleep 1000") else { return };
        let gate = open_gate();
        let (running, request) = start(&hooks, "h", &gate);
        permit(request).await;
        // Nobody stops the attempt: its thread sees the gate.
        gate.close();
        let outcome = running.ended().await;
        assert_eq!((&outcome.end, outcome.quiesced), (&End::Stopped(StopReason::LeaseLost), true));
        running.quiet().await;
        assert_eq!(std::fs::read_dir(dir.path("state")).unwrap().count(), 0, "nothing is left");
    }
}
