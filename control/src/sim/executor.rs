//! Simulates the engine: copies between simulated volumes, as the real engine does under a supervisor.
//!
//! A copy waits for the destination's lock, requests its write permit, and submits writes only while its gate is open
//! by the node's clock. A copy flushes before it reports blocks as durable, keeps a journal that outlives the process,
//! and drains when it is cancelled. A copy that was cut off, or has not drained in time, reports `quiesced: false`.

use super::defect::Defect;
use super::disk::{BLOCK, Writer};
use super::environment::{Journals, SimEnvironment};
use super::hooks;
use super::volume_name::VolumeName;
use crate::async_spawn::spawn;
use crate::clock::Clock;
use crate::execution::{
    CompareJob, CopyJob, End, Execution, ExecutionHandle, Executor, HookJob, Outcome, WritePermitRequest,
};
use crate::model::TaskVolume;
use crate::model::{DurableMap, Failure, Holder, Progress, TaskId};
use async_trait::async_trait;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::extent::{ByteRange, RangeSet};
use blockhaul_engine::job::StopReason;
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

/// Writes of a job in flight at once.
const WINDOW: usize = 3;
/// Longest wait of a job for a lock.
const LOCK_WAIT: Duration = Duration::from_secs(5);
/// Longest wait of a stopping job for its writes.
const DRAIN: Duration = Duration::from_secs(10);
/// Time between two checks of conditions that no event announces.
const CHECK_EVERY: Duration = Duration::from_millis(20);
/// Time between two checkpoints.
const CHECKPOINT: Duration = Duration::from_secs(1);

/// The engine of one process.
#[derive(Debug)]
pub(super) struct SimExecutor {
    holder: Holder,
    environment: SimEnvironment,
    clock: Arc<dyn Clock>,
    journals: Journals,
    started: Mutex<Vec<u64>>,
    wedged: Arc<AtomicBool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl SimExecutor {
    pub(super) fn new(holder: Holder, environment: SimEnvironment, clock: Arc<dyn Clock>, journals: Journals) -> Self {
        Self { holder, environment, clock, journals, started: Mutex::default(), wedged: Arc::default() }
    }

    /// Tells whether a copy of a local volume has not drained.
    pub(super) fn is_wedged(&self) -> bool {
        self.wedged.load(Relaxed)
    }

    /// Returns the writer of a new job.
    fn writer(&self, work: &Execution) -> Writer {
        let SimEnvironment { disks, jobs, .. } = &self.environment;
        let number = jobs.fetch_add(1, Relaxed);
        lock(&self.started).push(number);
        let (task, epoch, era) = (work.task.clone(), work.epoch, disks.era());
        Writer { task, epoch, era, holder: self.holder.clone(), job: number }
    }

    /// Returns the numbers of all jobs of this process.
    pub(super) fn jobs(&self) -> Vec<u64> {
        lock(&self.started).clone()
    }
}

#[async_trait]
impl Executor for SimExecutor {
    async fn resolve(&self, destination: &TaskVolume) -> Result<Vec<String>> {
        let volume = VolumeName::of(destination);
        match &volume.node {
            Some(node) if *node != self.holder.node.as_str() => {
                Err(Error::bad_request(format!("{destination} is not on {}", self.holder.node)))
            }
            _ => Ok(vec![volume.identity()]),
        }
    }

    fn compare(&self, _job: CompareJob, _execution: Execution) -> Arc<dyn ExecutionHandle> {
        unreachable!("no scenario submits a comparison")
    }

    fn run_hook(&self, _job: HookJob, work: Execution) -> Arc<dyn ExecutionHandle> {
        let by = self.writer(&work);
        let task = self.environment.invariants.hook_task(&work.task, work.created_ms);
        let state = Arc::new(State::new(0));
        let (environment, clock) = (self.environment.clone(), self.clock.clone());
        spawn(hooks::run(state.clone(), environment, clock, by, task, work));
        state
    }

    fn copy(&self, copy: CopyJob, work: Execution) -> Arc<dyn ExecutionHandle> {
        let disks = &self.environment.disks;
        let by = self.writer(&work);
        let source = VolumeName::of(&copy.source);
        let destination = VolumeName::of(&copy.destination);
        let state = Arc::new(State::new(disks.blocks(&source.name()).len()));
        let job = Job {
            state: state.clone(),
            environment: self.environment.clone(),
            clock: self.clock.clone(),
            journals: self.journals.clone(),
            by,
            source: source.name(),
            destination: destination.name(),
            created_ms: work.created_ms,
            wedged: self.wedged.clone(),
            inflight: VecDeque::new(),
        };
        spawn(job.run(copy.overwrite, work));
        state
    }

    fn kept(&self) -> Vec<(TaskId, u64)> {
        lock(&self.journals).keys().cloned().collect()
    }

    fn forget(&self, task: &TaskId, created_ms: u64) {
        lock(&self.journals).remove(&(task.clone(), created_ms));
    }
}

/// Published state of a job.
#[derive(Debug)]
pub(super) struct State {
    blocks: usize,
    durable: Mutex<BTreeSet<usize>>,
    written: AtomicU64,
    cancelled: Mutex<Option<StopReason>>,
    cut: watch::Sender<bool>,
    wake: Notify,
    outcome: watch::Sender<Option<Outcome>>,
}

impl State {
    fn new(blocks: usize) -> Self {
        Self {
            blocks,
            durable: Mutex::default(),
            written: AtomicU64::new(0),
            cancelled: Mutex::default(),
            cut: watch::Sender::new(false),
            wake: Notify::new(),
            outcome: watch::Sender::new(None),
        }
    }

    /// Returns the first reason to stop.
    pub(super) fn reason(&self) -> Option<StopReason> {
        *lock(&self.cancelled)
    }

    pub(super) fn is_cut(&self) -> bool {
        *self.cut.borrow()
    }

    /// Waits for a request to stop.
    pub(super) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(super) fn end(&self, outcome: Outcome) {
        self.outcome.send_replace(Some(outcome));
    }
}

#[async_trait]
impl ExecutionHandle for State {
    fn progress(&self) -> Progress {
        let durable = lock(&self.durable).len() as u64 * BLOCK;
        let written = durable.max(self.written.load(Relaxed));
        Progress { planned: self.blocks as u64 * BLOCK, issued: written, written, durable, ..Progress::default() }
    }

    fn durable(&self) -> DurableMap {
        let mut ranges = RangeSet::new();
        for block in lock(&self.durable).iter() {
            let start = *block as u64 * BLOCK;
            ranges.insert(ByteRange::new(start, start + BLOCK));
        }
        DurableMap::of(&ranges)
    }

    fn set_limit(&self, _bytes_per_second: Option<u64>) {}

    fn cancel(&self, reason: StopReason) {
        lock(&self.cancelled).get_or_insert(reason);
        self.wake.notify_one();
    }

    fn cut(&self) {
        self.cut.send_replace(true);
        self.wake.notify_one();
    }

    async fn ended(&self) -> Outcome {
        let mut outcome = self.outcome.subscribe();
        let ended = outcome.wait_for(Option::is_some).await;
        ended.ok().and_then(|ended| ended.clone()).expect("the sender lives as long as self")
    }
}

/// Running copy.
struct Job {
    state: Arc<State>,
    environment: SimEnvironment,
    clock: Arc<dyn Clock>,
    journals: Journals,
    by: Writer,
    source: String,
    destination: String,
    created_ms: u64,
    wedged: Arc<AtomicBool>,
    /// Writes in flight, oldest first.
    inflight: VecDeque<(usize, oneshot::Receiver<()>)>,
}

/// Reason for the stop of a copy before its end.
enum Stop {
    Asked,
    CutOff,
    Failed(Error),
}

impl Job {
    async fn run(mut self, overwrite: bool, work: Execution) {
        let outcome = match self.begin(overwrite, work).await {
            Ok(gate) => {
                let copied = self.copy(&gate).await;
                self.finish(copied).await
            }
            Err(error) => Outcome::refused(&error),
        };
        self.environment.disks.unlock(&self.destination, self.by.job);
        self.state.outcome.send_replace(Some(outcome));
    }

    /// Does everything before the first write.
    async fn begin(&self, overwrite: bool, work: Execution) -> Result<Arc<blockhaul_engine::write_gate::WriteGate>> {
        let unfit = lock(&self.environment.disk_behaviour).unfit;
        if self.environment.disks.is_remote(&self.destination) && fastrand::f64() < unfit {
            let code = if fastrand::bool() { Code::Permission } else { Code::Unreachable };
            return Err(destination(code, "not from this node"));
        }
        self.acquire_lock().await?;
        let is_empty = self.environment.disks.is_empty(&self.destination);
        if !work.admitted && !overwrite && !is_empty {
            return Err(destination(Code::Exists, "the destination holds data"));
        }
        let disks = &self.environment.disks;
        let is_known = disks.is_remote(&self.destination) || disks.is_written_by(&self.destination, &work.earlier);
        let is_known = is_known && !self.has(Defect::IgnoreCheckpoint);
        if !is_known {
            lock(&self.journals).remove(&(work.task.clone(), work.created_ms));
        }
        disks.check_stored_epoch(&self.destination, work.epoch)?;
        let journal = lock(&self.journals).get(&(work.task.clone(), work.created_ms)).cloned().unwrap_or_default();
        let recorded = if is_known { work.durable.to_ranges() } else { RangeSet::new() };
        let is_recorded = |block: &usize| {
            let start = *block as u64 * BLOCK;
            recorded.contains(ByteRange::new(start, start + BLOCK))
        };
        if self.has(Defect::WriteBeforePermit) && self.state.blocks > 0 {
            self.environment.invariants.check_writer(&self.by);
        }
        let durable: BTreeSet<usize> =
            (0..self.state.blocks).filter(|block| journal.contains(block) || is_recorded(block)).collect();
        let is_complete = durable.len() == self.state.blocks;
        *lock(&self.state.durable) = durable;
        if is_complete && fastrand::bool() {
            // As the engine does when nothing is left to be written.
            return Ok(work.gate);
        }
        let (answer, answered) = oneshot::channel();
        let question = WritePermitRequest { durable: self.state.durable(), answer };
        let no = || Error::new(Code::RunnerInterrupt, Side::Engine, Operation::Start, "no write permit");
        work.admission.send(question).map_err(|_| no())?;
        answered.await.map_err(|_| no())??;
        disks.raise_stored_epoch(&self.destination, work.epoch);
        Ok(work.gate)
    }

    fn has(&self, defect: Defect) -> bool {
        self.environment.defect == Some(defect)
    }

    async fn acquire_lock(&self) -> Result<()> {
        let start = Instant::now();
        while !self.environment.disks.try_lock(&self.destination, self.by.job) {
            if let Some(reason) = self.state.reason() {
                return Err(stopped(reason));
            }
            if start.elapsed() > LOCK_WAIT {
                return Err(destination(Code::Busy, "another job has the destination open"));
            }
            sleep(CHECK_EVERY).await;
        }
        Ok(())
    }

    async fn copy(&mut self, gate: &blockhaul_engine::write_gate::WriteGate) -> std::result::Result<(), Stop> {
        let data = self.environment.disks.blocks(&self.source);
        let disk_behaviour = *lock(&self.environment.disk_behaviour);
        let fails_at = (fastrand::f64() < disk_behaviour.fail).then(|| fastrand::usize(..data.len()));
        let durable = lock(&self.state.durable).clone();
        let mut todo: VecDeque<usize> = (0..data.len()).filter(|block| !durable.contains(block)).collect();
        if self.has(Defect::OmitLastBlock) {
            todo.pop_back();
        }
        let mut written = BTreeSet::new();
        let mut checkpoint = Instant::now() + CHECKPOINT;
        while !todo.is_empty() || !self.inflight.is_empty() {
            let ignores_stop = self.has(Defect::IgnoreGateAndCancel);
            if !ignores_stop && self.state.is_cut() && self.environment.disks.is_remote(&self.destination) {
                return Err(Stop::CutOff);
            }
            if !ignores_stop && self.state.reason().is_some() {
                return Err(Stop::Asked);
            }
            while self.inflight.len() < WINDOW && (ignores_stop || gate.is_open_at(self.clock.boot_time())) {
                let Some(block) = todo.pop_front() else { break };
                if fails_at == Some(block) {
                    let error = Error::new(Code::Io, Side::Destination, Operation::Write, "the device failed");
                    return Err(Stop::Failed(Error { retryable: fastrand::u8(..4) > 0, ..error }));
                }
                self.submit(block, data[block]);
            }
            if let Some(block) = self.wait().await {
                written.insert(block);
                self.state.written.fetch_add(BLOCK, Relaxed);
                if self.has(Defect::ReportUnflushedAsDurable) {
                    lock(&self.state.durable).insert(block);
                }
            }
            if Instant::now() >= checkpoint {
                checkpoint = Instant::now() + CHECKPOINT;
                self.checkpoint(&mut written).await;
            }
        }
        self.checkpoint(&mut written).await;
        Ok(())
    }

    fn submit(&mut self, block: usize, value: u64) {
        let disk_behaviour = *lock(&self.environment.disk_behaviour);
        let millis = match fastrand::f64() < disk_behaviour.hang {
            true => fastrand::u64(1_000..=15_000),
            false => fastrand::u64(disk_behaviour.write_ms.0..=disk_behaviour.write_ms.1),
        };
        self.environment.invariants.check_writer(&self.by);
        let landed =
            self.environment.disks.submit(&self.destination, block, value, &self.by, Duration::from_millis(millis));
        self.inflight.push_back((block, landed));
    }

    /// Waits until the oldest write lands, or a check is due. Returns the block that has landed.
    async fn wait(&mut self) -> Option<usize> {
        let state = self.state.clone();
        let Some((block, landed)) = self.inflight.front_mut() else {
            tokio::select! { biased; () = state.wake.notified() => {}, () = sleep(CHECK_EVERY) => {} }
            return None;
        };
        let block = *block;
        tokio::select! {
            biased;
            () = state.wake.notified() => None,
            landed = landed => {
                self.inflight.pop_front();
                landed.is_ok().then_some(block)
            }
        }
    }

    /// Flushes: what was written before is durable afterwards.
    async fn checkpoint(&self, written: &mut BTreeSet<usize>) {
        sleep(Duration::from_millis(fastrand::u64(1..30))).await;
        self.environment.disks.flush(&self.destination, written);
        let mut durable = lock(&self.state.durable);
        durable.append(written);
        lock(&self.journals).insert((self.by.task.clone(), self.created_ms), durable.clone());
    }

    async fn finish(&mut self, copied: std::result::Result<(), Stop>) -> Outcome {
        let mut quiesced = true;
        if copied.is_err() {
            let is_cut = matches!(copied, Err(Stop::CutOff));
            quiesced = !is_cut && self.drain().await;
            if !quiesced && self.environment.disks.orphan(|by| by.job == self.by.job, &mut fastrand::Rng::new()) == 0 {
                quiesced = true;
            }
            if !quiesced && !self.environment.disks.is_remote(&self.destination) {
                self.wedged.store(true, Relaxed);
            }
        }
        let end = match (copied, self.state.reason()) {
            (Ok(()), _) => End::Succeeded,
            (Err(_), _) if !quiesced => {
                End::Failed(Failure::from(&destination(Code::Timeout, "writes were on their way for too long")))
            }
            (Err(_), Some(reason)) => End::Stopped(reason),
            (Err(Stop::Failed(error)), None) => End::Failed(Failure::from(&error)),
            (Err(_), None) => End::Stopped(StopReason::LeaseLost),
        };
        let (progress, durable) = (self.state.progress(), self.state.durable());
        Outcome { end, quiesced, progress, durable, report: None }
    }

    /// Waits for writes in flight; true if all have landed.
    async fn drain(&mut self) -> bool {
        let mut written = BTreeSet::new();
        let landing = async {
            while let Some((block, landed)) = self.inflight.front_mut() {
                if landed.await.is_ok() {
                    written.insert(*block);
                }
                self.inflight.pop_front();
            }
        };
        let is_cut = async {
            let mut cut = self.state.cut.subscribe();
            let _ = cut.wait_for(|cut| *cut).await;
        };
        let is_remote = self.environment.disks.is_remote(&self.destination);
        let is_quiet = tokio::select! {
            biased;
            () = landing => true,
            () = is_cut, if is_remote => false,
            () = sleep(DRAIN) => false,
        };
        if is_quiet && !written.is_empty() {
            let _ = timeout(DRAIN, self.checkpoint(&mut written)).await;
        }
        is_quiet
    }
}

fn destination(code: Code, what: &str) -> Error {
    Error::new(code, Side::Destination, Operation::Write, what)
}

fn stopped(reason: StopReason) -> Error {
    let code = Code::ALL.iter().find(|code| code.as_str() == reason.as_str());
    Error::new(*code.expect("reasons are codes"), Side::Caller, Operation::Stop, "stopped")
}
