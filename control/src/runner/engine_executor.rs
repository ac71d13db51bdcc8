//! Carries out the work of tasks with the engine, behind the node's policy.
//!
//! Each attempt has a thread of its own, which may block: it opens the volumes, and waits for the end of the job. A
//! copy requests its write permit on the engine's thread of the job, which blocks until the runner has stored `RUNNING`
//! or has refused. A comparison changes nothing and requests the permit before it is submitted.
//!
//! ```text
//!  runner --copy--> thread: policy opens -> engine.submit -> waits --------------------------------> outcome
//!                                             `- job's thread: rules, lock -> epoch -> permit -> copies
//!  runner --compare--> thread: policy opens -> permit -> engine.verify -> waits -------------------> outcome
//! ```

mod check;

use super::hook_execution::{NodeHooks, no_hooks};
use super::stored_epoch::StoredEpochs;
use crate::execution::{
    CompareJob, CopyJob, End, Execution, ExecutionHandle, Executor, HookJob, Outcome, Reference, Refused, Work,
    WritePermitRequest, stopped_early,
};
use crate::model::volume::TaskVolume;
use crate::model::{DurableMap, Epoch, Failure, NodeId, Progress, TaskId};
use crate::policy::{Policy, identities};
use async_trait::async_trait;
use blockhaul_engine::engine::Engine;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::job::{JobHandle, StopReason};
use blockhaul_engine::progress::{Report, Status};
use blockhaul_engine::shown::Shown;
use blockhaul_engine::spec::{self as engine, CheckpointLocation, CopySpec, Overwrite, ResumePolicy, VerifySpec};
use blockhaul_engine::supervision::{Admission, AdmissionRequest, OpenedVolumes, Supervision};
use blockhaul_engine::volume::Locator;
use serde_json::Value;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, oneshot, watch};
use tracing::Span;

/// Longest time to open the volumes after a stop was requested; then their device counts as not answering. As long as
/// the engine waits for a device.
const OPEN_MAX: Duration = Duration::from_secs(10);
/// Time between two checks that a copy has drained.
const DRAIN_CHECK_EVERY: Duration = Duration::from_secs(60);

/// Executor over the engine; see the module's head. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct EngineExecutor {
    engine: Arc<Engine>,
    environment: Arc<JobEnvironment>,
    hooks: Option<Arc<NodeHooks>>,
    /// Places of checks.
    checks: Arc<Semaphore>,
}

/// Node that jobs run on: its policy, and its folders of journals and stored epochs.
#[derive(Debug)]
struct JobEnvironment {
    node: NodeId,
    policy: Policy,
    journals: PathBuf,
    stored_epochs: Arc<StoredEpochs>,
}

/// Attempt, as the runner sees it.
#[derive(Debug)]
struct EngineExecution {
    job: Mutex<Job>,
    outcome: Mutex<Option<oneshot::Receiver<Outcome>>>,
    /// Whether a stop was requested before the job was submitted: then the engine does not bound the wait for its end.
    stop_requested: watch::Sender<bool>,
    is_drained: watch::Sender<bool>,
}

/// Job of the engine, or the requests to apply once it is submitted.
#[derive(Debug, Default)]
struct Job {
    handle: Option<JobHandle>,
    cancelled: Option<StopReason>,
    limit: Option<Option<u64>>,
}

/// Admission of a copy: checks the destination's stored epoch, and requests the runner's write permit.
struct WriteAdmission {
    request: Mutex<Option<oneshot::Sender<WritePermitRequest>>>,
    durable: DurableMap,
    epoch: Epoch,
    /// Mark of the order, where orders are checked.
    mark: Option<String>,
    stored_epochs: Arc<StoredEpochs>,
    /// Span of the attempt, for the engine's thread of the job.
    span: Span,
    is_granted: AtomicBool,
}

/// Job whose volumes are open.
struct PreparedJob {
    submit: Box<dyn FnOnce(&Engine) -> JobHandle>,
    /// Is called when the job has drained.
    clean_up: Box<dyn FnOnce()>,
}

impl EngineExecutor {
    /// Creates an executor of `node`; keeps journals and stored epochs in the state directory. Without `hooks` it refuses
    /// them.
    ///
    /// # Errors
    /// The error of creating folders there.
    pub(crate) fn new(
        engine: Arc<Engine>,
        policy: Policy,
        node: NodeId,
        state_dir: &Path,
        hooks: Option<NodeHooks>,
    ) -> Result<Self> {
        let journals = state_dir.join("journals");
        std::fs::create_dir_all(&journals).map_err(|error| {
            Error::io(Side::Caller, Operation::Journal, &error, format!("create {}", journals.shown()))
        })?;
        let stored_epochs = Arc::new(StoredEpochs::new(state_dir)?);
        let environment = Arc::new(JobEnvironment { node, policy, journals, stored_epochs });
        let checks = Arc::new(Semaphore::new(check::CHECKS_MAX));
        Ok(Self { engine, environment, hooks: hooks.map(Arc::new), checks })
    }
}

#[async_trait]
impl Executor for EngineExecutor {
    async fn resolve(&self, destination: &TaskVolume) -> Result<Vec<String>> {
        let (environment, destination) = (Arc::clone(&self.environment), destination.clone());
        let resolved = tokio::task::spawn_blocking(move || environment.resolve(&destination)).await;
        resolved.unwrap_or_else(|error| Err(Error::internal(Operation::Open, format!("resolving has failed: {error}"))))
    }

    fn set_bandwidth(&self, bytes_per_second: Option<u64>) {
        self.engine.set_copy_limit(bytes_per_second);
    }

    fn copy(&self, job: CopyJob, execution: Execution) -> Arc<dyn ExecutionHandle> {
        let name = format!("copy {}", execution.task);
        self.start(name, move |environment| environment.prepare_copy(job, execution))
    }

    fn compare(&self, job: CompareJob, execution: Execution) -> Arc<dyn ExecutionHandle> {
        let name = format!("verify {}", execution.task);
        self.start(name, move |environment| environment.prepare_comparison(&job, execution))
    }

    fn run_hook(&self, job: HookJob, execution: Execution) -> Arc<dyn ExecutionHandle> {
        match &self.hooks {
            Some(hooks) => hooks.run(job, execution),
            None => Arc::new(Refused(no_hooks(&job.hook))),
        }
    }

    async fn check(&self, work: Work) -> Result<Value> {
        self.check_work(work).await
    }

    fn kept(&self) -> Vec<(TaskId, u64)> {
        let Ok(entries) = std::fs::read_dir(&self.environment.journals) else { return Vec::new() };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let mut kept: Vec<_> = names
            .filter_map(|name| {
                let (task, created) = name.strip_suffix(".journal")?.rsplit_once('.')?;
                Some((TaskId::new(task).ok()?, created.parse().ok()?))
            })
            .collect();
        kept.sort();
        kept
    }

    fn forget(&self, task: &TaskId, created_ms: u64) {
        self.environment.forget(task, created_ms);
    }
}

impl EngineExecutor {
    /// Starts the thread of an attempt.
    fn start(
        &self,
        name: String,
        prepare: impl FnOnce(&JobEnvironment) -> Result<PreparedJob> + Send + 'static,
    ) -> Arc<dyn ExecutionHandle> {
        let (send_outcome, outcome) = oneshot::channel();
        let execution = Arc::new(EngineExecution {
            job: Mutex::default(),
            outcome: Mutex::new(Some(outcome)),
            stop_requested: watch::Sender::new(false),
            is_drained: watch::Sender::new(false),
        });
        let (executor, shared, span) = (self.clone(), Arc::clone(&execution), Span::current());
        let run = move || {
            let _in = span.enter();
            executor.run_attempt(prepare, &shared, send_outcome);
        };
        if let Err(error) = std::thread::Builder::new().name(name).spawn(run) {
            // The closure was dropped with the sender of the outcome, so `ended` reports the missing thread.
            tracing::error!(%error, "cannot start a thread for an attempt");
        }
        execution
    }

    /// Carries out one attempt on its own thread. Sends the outcome, and marks the attempt as drained when it is.
    fn run_attempt(
        &self,
        prepare: impl FnOnce(&JobEnvironment) -> Result<PreparedJob>,
        execution: &EngineExecution,
        send_outcome: oneshot::Sender<Outcome>,
    ) {
        // Without a receiver the runner was dropped, or no longer waits.
        let send_outcome = move |outcome| _ = send_outcome.send(outcome);
        let PreparedJob { submit, clean_up } = match prepare(&self.environment) {
            Ok(prepared) => prepared,
            Err(error) => {
                send_outcome(Outcome::refused(&error));
                return execution.mark_drained();
            }
        };
        let (outcome, job) = match execution.submit(|| submit(&self.engine)) {
            Ok(job) => (outcome(&job.wait(), &job), Some(job)),
            Err(error) => (Outcome::refused(&error), None),
        };
        match job.filter(|_| !outcome.quiesced) {
            None => {
                clean_up();
                send_outcome(outcome);
            }
            Some(job) => {
                send_outcome(outcome);
                while !job.wait_quiet_for(DRAIN_CHECK_EVERY) {
                    if !job.may_become_quiet() {
                        return;
                    }
                }
                clean_up();
            }
        }
        execution.mark_drained();
    }
}

impl EngineExecution {
    /// Submits the job to the engine, unless it was cancelled before.
    fn submit(&self, submit: impl FnOnce() -> JobHandle) -> Result<JobHandle> {
        let mut job = self.job();
        if let Some(reason) = job.cancelled {
            return Err(stopped_early(reason));
        }
        let handle = submit();
        if let Some(limit) = job.limit {
            handle.set_limit(limit);
        }
        job.handle = Some(handle.clone());
        Ok(handle)
    }

    fn mark_drained(&self) {
        self.is_drained.send_replace(true);
    }

    /// Waits until a stop was requested and the time to open the volumes has passed.
    async fn open_timed_out(&self) -> Outcome {
        // The sender lives as long as self.
        let _ = self.stop_requested.subscribe().wait_for(|stop_requested| *stop_requested).await;
        tokio::time::sleep(OPEN_MAX).await;
        if self.handle().is_some() {
            // The engine bounds the end of a submitted job.
            return std::future::pending().await;
        }
        let message = "opening the volumes did not end within the drain limit: a device does not answer";
        let error = Error::new(Code::Timeout, Side::Engine, Operation::Open, message);
        Outcome { quiesced: false, ..Outcome::refused(&error) }
    }

    fn handle(&self) -> Option<JobHandle> {
        self.job().handle.clone()
    }

    fn job(&self) -> MutexGuard<'_, Job> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl ExecutionHandle for EngineExecution {
    fn progress(&self) -> Progress {
        self.handle().map(|job| progress(&job)).unwrap_or_default()
    }

    fn durable(&self) -> DurableMap {
        self.handle().map(|job| durable(&job)).unwrap_or_default()
    }

    fn set_limit(&self, bytes_per_second: Option<u64>) {
        let mut job = self.job();
        job.limit = Some(bytes_per_second);
        if let Some(handle) = &job.handle {
            handle.set_limit(bytes_per_second);
        }
    }

    fn cancel(&self, reason: StopReason) {
        let mut job = self.job();
        job.cancelled.get_or_insert(reason);
        match &job.handle {
            Some(handle) => handle.cancel(reason),
            None => _ = self.stop_requested.send_replace(true),
        }
    }

    fn cut(&self) {
        if let Some(job) = self.handle() {
            job.revoke_connections();
        }
    }

    async fn ended(&self) -> Outcome {
        let outcome = self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        let received = match outcome {
            Some(outcome) => tokio::select! { biased;
                outcome = outcome => outcome.ok(),
                outcome = self.open_timed_out() => Some(outcome),
            },
            None => None,
        };
        received.unwrap_or_else(|| {
            let error = Error::new(Code::Overloaded, Side::Engine, Operation::Start, "no thread for the attempt");
            Outcome::refused(&error)
        })
    }

    async fn quiet(&self) {
        // The sender lives as long as self.
        let _ = self.is_drained.subscribe().wait_for(|is_drained| *is_drained).await;
    }
}

impl Admission for WriteAdmission {
    fn admit(&self, destination: &AdmissionRequest<'_>) -> Result<()> {
        let _in = self.span.enter();
        let file = destination.file.map(|file| file.try_clone_to_owned().map(File::from)).transpose();
        let file =
            file.map_err(|error| Error::io(Side::Destination, Operation::Open, &error, "keep the destination open"))?;
        if let Some(file) = &file {
            self.stored_epochs.check(file, self.epoch)?;
        }
        let answered = WritePermitRequest::ask(&self.request, self.durable.clone());
        answered.blocking_recv().unwrap_or_else(|_| Err(stopped_early(StopReason::RunnerInterrupt)))?;
        self.is_granted.store(true, Relaxed);
        // Only after the permit, when the record names this grant: a destination with a stored epoch that its record
        // does not name would be copied from the start.
        let Some(file) = file else { return Ok(()) };
        self.stored_epochs.raise(&file, self.epoch)?;
        self.mark.as_ref().map_or(Ok(()), |mark| self.stored_epochs.mark(&file, self.epoch, mark))
    }
}

impl JobEnvironment {
    fn resolve(&self, destination: &TaskVolume) -> Result<Vec<String>> {
        self.check(destination, Side::Destination)?;
        match destination {
            TaskVolume::Path { path, .. } => identities(&self.policy, &self.node, path),
            TaskVolume::Socket { uri, .. } => Ok(vec![format!("unix:{}:{uri}", self.node)]),
            volume @ TaskVolume::Network(_) => Ok(volume.canonical().into_iter().collect()),
        }
    }

    /// Checks a volume without looking it up: it is of this node, or of a server that the policy allows.
    fn check(&self, volume: &TaskVolume, side: Side) -> Result<()> {
        if let Some(node) = volume.node() {
            self.check_node(node)?;
        }
        if let TaskVolume::Socket { uri, .. } | TaskVolume::Network(uri) = volume {
            self.policy.check_server(&uri.to_string(), uri, side)?;
        }
        Ok(())
    }

    fn check_node(&self, node: &NodeId) -> Result<()> {
        if *node == self.node {
            return Ok(());
        }
        // The call was for the other node, whose address reaches this one by mistake or after a change of addresses.
        let message = format!("a volume of {node} cannot be reached on {}: the call was for {node}", self.node);
        Err(Error::new(Code::Unreachable, Side::Engine, Operation::Open, message))
    }

    fn prepare_copy(&self, job: CopyJob, execution: Execution) -> Result<PreparedJob> {
        let Execution { task, created_ms, epoch, admitted, earlier, mark, durable, gate, admission, .. } = execution;
        let mut supervision = Supervision { gate: Some(gate), ..Supervision::default() };
        let source = self.locator(&job.source, Side::Source)?;
        let destination = self.locator(&job.destination, Side::Destination)?;
        let mut mode = 0o600;
        if let Locator::Path(path) = &source {
            let file = File::from(self.policy.open_to_read(path, Side::Source)?);
            let stat = file.metadata();
            let stat = stat.map_err(|error| Error::io(Side::Source, Operation::Stat, &error, "look at the source"))?;
            mode = if stat.is_file() { stat.mode() & 0o777 } else { mode };
            supervision.source = Some(file.into());
        }
        let is_believed = mark.is_none();
        let mut durable = if admitted && is_believed && !job.starts_over { durable } else { DurableMap::default() };
        let is_export = matches!(destination, Locator::Nbd(_));
        if job.starts_over || (is_export && !is_believed) {
            self.forget(&task, created_ms);
        }
        let mut spec = CopySpec { resume_policy: ResumePolicy::Resume, ..job.spec() };
        // An earlier attempt has checked what the destination held.
        if admitted && is_believed {
            spec.overwrite = Overwrite::Yes;
        }
        spec.checkpoint = CheckpointLocation::File(self.journal(&task, created_ms));
        let mut created = None;
        if let Locator::Path(path) = &destination {
            let opened = self.policy.open_destination(path, mode)?;
            let is_known = opened.created.is_none()
                && match &mark {
                    None => self.is_written_by(&opened.file, &earlier, &durable),
                    Some(mark) => self.stored_epochs.is_marked(&opened.file, mark),
                };
            let (opened, new) = opened.split()?;
            (supervision.destination, created) = (Some(opened), new);
            if !is_known {
                // The record and the journal of earlier attempts describe another destination.
                self.forget(&task, created_ms);
                durable = DurableMap::default();
                // No attempt has checked or written the content of this destination, so it may be in use.
                spec.overwrite = if job.overwrite { Overwrite::Yes } else { Overwrite::No };
            } else if mark.is_some() {
                spec.overwrite = Overwrite::Yes;
            }
        }
        supervision.durable = (!durable.is_empty()).then(|| durable.to_ranges());
        supervision.evidence = durable.evidence().clone();
        let write_admission = Arc::new(WriteAdmission {
            request: Mutex::new(Some(admission)),
            durable,
            epoch,
            mark,
            stored_epochs: Arc::clone(&self.stored_epochs),
            span: Span::current(),
            is_granted: AtomicBool::new(false),
        });
        supervision.admission = Some(Arc::clone(&write_admission) as Arc<dyn Admission>);
        let remove_created = move || {
            if let Some(created) = created.filter(|_| !write_admission.is_granted.load(Relaxed)) {
                created.remove();
            }
        };
        let submit = move |engine: &Engine| engine.submit_supervised(spec, supervision);
        Ok(PreparedJob { submit: Box::new(submit), clean_up: Box::new(remove_created) })
    }

    fn prepare_comparison(&self, job: &CompareJob, execution: Execution) -> Result<PreparedJob> {
        let CompareJob { reference, volume, limit } = job;
        let mut opened = OpenedVolumes::default();
        let reference = match reference {
            Reference::Volume(volume) => {
                let locator = self.locator(volume, Side::Source)?;
                opened.reference = self.open_to_read(&locator, Side::Source)?;
                engine::Reference::Volume(locator)
            }
            Reference::Receipt { node, path } => {
                self.check_node(node)?;
                opened.receipt = Some(self.policy.open_to_read(path, Side::Source)?);
                engine::Reference::Receipt(path.clone())
            }
        };
        let volume = self.locator(volume, Side::Destination)?;
        opened.volume = self.open_to_read(&volume, Side::Destination)?;
        let spec = VerifySpec { limit_bytes_per_second: *limit, ..VerifySpec::new(reference, volume) };
        let permit = WritePermitRequest::ask(&Mutex::new(Some(execution.admission)), DurableMap::default());
        permit.blocking_recv().unwrap_or_else(|_| Err(stopped_early(StopReason::RunnerInterrupt)))?;
        let submit = move |engine: &Engine| engine.verify_opened(spec, opened);
        Ok(PreparedJob { submit: Box::new(submit), clean_up: Box::new(|| ()) })
    }

    /// Opens a local volume or file as the policy allows; `None` for an export.
    fn open_to_read(&self, locator: &Locator, side: Side) -> Result<Option<OwnedFd>> {
        match locator {
            Locator::Path(path) => self.policy.open_to_read(path, side).map(Some),
            Locator::Nbd(_) => Ok(None),
        }
    }

    /// Returns a task's volume as the engine names it.
    fn locator(&self, volume: &TaskVolume, side: Side) -> Result<Locator> {
        self.check(volume, side)?;
        Ok(volume.locator())
    }

    /// Tells whether a file or device was written last by an earlier attempt of this task, by its stored epoch, and is
    /// long enough for the durable ranges.
    fn is_written_by(&self, file: &File, earlier: &[Epoch], durable: &DurableMap) -> bool {
        let stored = self.stored_epochs.read(file).ok().flatten();
        let end = durable.to_ranges().iter().last().map_or(0, |range| range.end());
        let is_long = file.metadata().is_ok_and(|stat| !stat.is_file() || stat.len() >= end);
        stored.is_some_and(|stored| earlier.contains(&stored)) && is_long
    }

    fn forget(&self, task: &TaskId, created_ms: u64) {
        let path = self.journal(task, created_ms);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(path = %path.shown(), %error, "cannot delete a journal");
            }
            _ => {}
        }
    }

    fn journal(&self, task: &TaskId, created_ms: u64) -> PathBuf {
        self.journals.join(format!("{task}.{created_ms}.journal"))
    }
}

fn outcome(report: &Report, job: &JobHandle) -> Outcome {
    let end = match (&report.error, report.status) {
        (_, Status::Succeeded) => End::Succeeded,
        (Some(error), _) => Outcome::refused(error).end,
        (None, Status::Interrupted) => End::Stopped(StopReason::RunnerInterrupt),
        (None, Status::Cancelled) => End::Stopped(StopReason::UserCancel),
        (None, Status::Differs) => End::Failed(Failure::from(&difference(report))),
        (None, Status::Failed) => {
            End::Failed(Failure::from(&Error::internal(Operation::Stop, "the job failed without a reason")))
        }
    };
    Outcome {
        end,
        quiesced: report.quiesced,
        progress: progress(job),
        durable: durable(job),
        report: serde_json::to_value(report).ok(),
    }
}

/// Returns the error of volumes that differ.
fn difference(report: &Report) -> Error {
    let first = report.differences.first();
    let at = first.map(|first| format!(", first in the {} bytes at byte {}", first.length, first.offset));
    let message = format!("the volumes differ{}: the report lists where", at.unwrap_or_default());
    let error = Error::new(Code::VerifyMismatch, Side::Destination, Operation::Verify, message);
    Error { offset: first.map(|first| first.offset), length: first.map(|first| first.length), ..error }
}

/// Returns the durable ranges with their evidence. The evidence is read first, so that it covers no leaf outside of the
/// ranges.
fn durable(job: &JobHandle) -> DurableMap {
    let evidence = job.evidence();
    DurableMap::of(&job.durable_ranges()).known_by(evidence)
}

fn progress(job: &JobHandle) -> Progress {
    let blockhaul_engine::progress::Progress {
        planned,
        issued,
        written,
        durable,
        verified,
        rate_bytes_per_second,
        eta_seconds,
    } = job.progress();
    Progress { planned, issued, written, durable, verified, rate_bytes_per_second, eta_seconds }
}
