//! Provides a scripted executor, and a leader that records its calls.

use crate::execution::{
    CompareJob, CopyJob, End, Execution, ExecutionHandle, Executor, HookJob, Outcome, WritePermitRequest,
};
use crate::model::TaskVolume;
use crate::model::{DurableMap, Failure, Progress, TaskId};
use crate::peers::{CallError, LeaderClient};
use async_trait::async_trait;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::extent::{ByteRange, RangeSet};
use blockhaul_engine::job::StopReason;
use blockhaul_engine::write_gate::WriteGate;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

/// Executor whose copies run until a test ends them.
#[derive(Debug, Default)]
pub(super) struct TestExecutor {
    pub all: Mutex<BTreeMap<TaskId, Arc<TestCopy>>>,
    pub forgotten: Mutex<Vec<TaskId>>,
    pub kept: Mutex<Vec<(TaskId, u64)>>,
    /// Time until a copy asks for its write permit.
    pub opening: Mutex<Duration>,
    pub bandwidth: Mutex<Option<u64>>,
}

/// One copy.
#[derive(Debug)]
pub(super) struct TestCopy {
    pub work: Mutex<Option<Execution>>,
    pub opening: Duration,
    pub gate: Arc<WriteGate>,
    pub admitted: watch::Sender<Option<std::result::Result<(), Code>>>,
    pub durable: Mutex<u64>,
    pub limit: Mutex<Option<u64>>,
    pub cancelled: watch::Sender<Option<StopReason>>,
    pub cuts: Mutex<u32>,
    /// Outcome of the copy, unless it is cancelled.
    pub end: watch::Sender<Option<End>>,
    /// Whether the copy drains.
    pub drains: watch::Sender<bool>,
    /// What is left of it while it has not drained, if it is a hook.
    pub survivors: Option<String>,
}

pub(super) fn bytes(end: u64) -> DurableMap {
    let mut ranges = RangeSet::new();
    if end > 0 {
        ranges.insert(ByteRange::new(0, end));
    }
    DurableMap::of(&ranges)
}

#[async_trait]
impl Executor for TestExecutor {
    async fn resolve(&self, destination: &TaskVolume) -> Result<Vec<String>> {
        let destination = destination.to_string();
        if destination.contains("forbidden") {
            return Err(Error::new(Code::Permission, Side::Destination, Operation::Open, "not allowed"));
        }
        Ok(vec![format!("file:{destination}")])
    }

    fn set_bandwidth(&self, bytes_per_second: Option<u64>) {
        *self.bandwidth.lock().unwrap() = bytes_per_second;
    }

    fn compare(&self, job: CompareJob, work: Execution) -> Arc<dyn ExecutionHandle> {
        self.start(job.limit, None, work)
    }

    fn copy(&self, job: CopyJob, work: Execution) -> Arc<dyn ExecutionHandle> {
        self.start(job.limit, None, work)
    }

    fn run_hook(&self, _: HookJob, work: Execution) -> Arc<dyn ExecutionHandle> {
        self.start(None, Some(String::from("process 7 survives")), work)
    }

    fn kept(&self) -> Vec<(TaskId, u64)> {
        self.kept.lock().unwrap().clone()
    }

    fn forget(&self, task: &TaskId, _created_ms: u64) {
        self.forgotten.lock().unwrap().push(task.clone());
    }
}

impl TestExecutor {
    fn start(&self, limit: Option<u64>, survivors: Option<String>, work: Execution) -> Arc<dyn ExecutionHandle> {
        let copy = Arc::new(TestCopy {
            gate: Arc::clone(&work.gate),
            durable: Mutex::new(0),
            limit: Mutex::new(limit),
            work: Mutex::default(),
            opening: *self.opening.lock().unwrap(),
            admitted: watch::Sender::new(None),
            cancelled: watch::Sender::new(None),
            cuts: Mutex::new(0),
            end: watch::Sender::new(None),
            drains: watch::Sender::new(true),
            survivors,
        });
        self.all.lock().unwrap().insert(work.task.clone(), Arc::clone(&copy));
        *copy.work.lock().unwrap() = Some(work);
        copy
    }
}

impl TestCopy {
    /// Waits until it may write, or is refused.
    pub(super) async fn is_admitted(&self) -> std::result::Result<(), Code> {
        self.admitted.subscribe().wait_for(Option::is_some).await.unwrap().unwrap()
    }

    async fn ask(&self) -> Option<End> {
        tokio::time::sleep(self.opening).await;
        let work = self.work.lock().unwrap().take().unwrap();
        let (answer, answered) = oneshot::channel();
        assert!(work.admission.send(WritePermitRequest { durable: work.durable.clone(), answer }).is_ok());
        let answer = answered.await.unwrap();
        self.admitted.send_replace(Some(answer.as_ref().copied().map_err(|error| error.code)));
        answer.err().map(|error| Outcome::refused(&error).end)
    }
}

#[async_trait]
impl ExecutionHandle for TestCopy {
    fn progress(&self) -> Progress {
        let durable = *self.durable.lock().unwrap();
        Progress { planned: 100, issued: durable, written: durable, durable, ..Progress::default() }
    }

    fn durable(&self) -> DurableMap {
        bytes(*self.durable.lock().unwrap())
    }

    fn set_limit(&self, bytes_per_second: Option<u64>) {
        *self.limit.lock().unwrap() = bytes_per_second;
    }

    fn cancel(&self, reason: StopReason) {
        self.cancelled.send_modify(|cancelled| _ = cancelled.get_or_insert(reason));
    }

    fn cut(&self) {
        *self.cuts.lock().unwrap() += 1;
    }

    async fn ended(&self) -> Outcome {
        let mut end = self.end.subscribe();
        let mut cancelled = self.cancelled.subscribe();
        let end = match self.ask().await {
            Some(end) => end,
            None => tokio::select! { biased;
                Ok(end) = end.wait_for(Option::is_some) => end.clone().unwrap(),
                Ok(reason) = cancelled.wait_for(Option::is_some) => End::Stopped(reason.unwrap()),
            },
        };
        let quiesced = *self.drains.borrow();
        let end = match end {
            // As in the engine: a copy that has not drained fails with a timeout.
            End::Stopped(_) if !quiesced => {
                let error = Error::new(Code::Timeout, Side::Engine, Operation::Stop, "a device does not answer");
                End::Failed(Failure::from(&error))
            }
            end => end,
        };
        Outcome { end, quiesced, progress: self.progress(), durable: self.durable(), report: None }
    }

    async fn quiet(&self) {
        self.drains.subscribe().wait_for(|drains| *drains).await.unwrap();
    }

    fn survivors(&self) -> Option<String> {
        self.survivors.clone().filter(|_| !*self.drains.borrow())
    }
}

/// Calls to the dispatcher, and their times.
#[derive(Debug, Default)]
pub(super) struct RecordingLeader {
    pub changed: Mutex<Vec<(Instant, TaskId)>>,
    pub progress: Mutex<Vec<(Instant, TaskId, Progress)>>,
    pub is_silent: Mutex<bool>,
}

#[async_trait]
impl LeaderClient for RecordingLeader {
    async fn changed(&self, tasks: &[TaskId]) -> std::result::Result<(), CallError> {
        if *self.is_silent.lock().unwrap() {
            tokio::time::sleep(Duration::from_secs(2)).await;
            return Err(CallError::NoAnswer(String::from("silent")));
        }
        let now = Instant::now();
        self.changed.lock().unwrap().extend(tasks.iter().map(|task| (now, task.clone())));
        Ok(())
    }

    async fn progress(&self, updates: &[(TaskId, Progress)]) -> std::result::Result<(), CallError> {
        let now = Instant::now();
        self.progress.lock().unwrap().extend(updates.iter().map(|(task, progress)| (now, task.clone(), *progress)));
        Ok(())
    }
}
