//! Defines the seam between the task center and the engine: how the work of a task is carried out.
//!
//! Implementations are the runner's executor over the engine and the one of the simulation. Everything that blocks is
//! behind the seam: opening volumes, waiting for the end of a job, the epoch that is stored beside a destination. The
//! runner itself only awaits.

use crate::model::volume::TaskVolume;
use crate::model::{DurableMap, Epoch, Failure, NodeId, Progress, TaskId};
use async_trait::async_trait;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::job::StopReason;
use blockhaul_engine::spec::{self, CopySpec, DigestKind, Overwrite, Reflink, Sparse, Verify, VerifySpec};
use blockhaul_engine::write_gate::WriteGate;
use blockhaul_hooks::{HookArgument, HookName, HookRequest};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Carries out work on this node.
#[async_trait]
pub trait Executor: Send + Sync + std::fmt::Debug {
    /// Returns the identities of a destination on this node, its own first. Changes nothing.
    ///
    /// # Errors
    /// `EPermission` outside the node's policy, and what is wrong with the name.
    async fn resolve(&self, destination: &TaskVolume) -> Result<Vec<String>>;

    /// Limits all copies of this node together, in bytes per second; `None` lifts the limit.
    fn set_bandwidth(&self, _bytes_per_second: Option<u64>) {}

    /// Starts a copy. Returns at once; what goes wrong is in its outcome.
    fn copy(&self, job: CopyJob, execution: Execution) -> Arc<dyn ExecutionHandle>;

    /// Starts a comparison. Returns at once; a difference is in its outcome as `EVerifyMismatch`.
    fn compare(&self, job: CompareJob, execution: Execution) -> Arc<dyn ExecutionHandle>;

    /// Starts a hook. Returns at once; what goes wrong is in its outcome. A node without hooks refuses with `EUnsupported`,
    /// as a fault of the node.
    fn run_hook(&self, job: HookJob, execution: Execution) -> Arc<dyn ExecutionHandle>;

    /// Checks work without doing it: opens what it needs as an attempt does, applies every refusal, and changes nothing.
    /// Returns the plan, as fields of JSON.
    ///
    /// # Errors
    /// The refusals of an attempt; `EOverloaded` while too many checks run.
    async fn check(&self, _work: Work) -> Result<serde_json::Value> {
        let error = Error::new(Code::Unsupported, Side::Engine, Operation::Start, "this node checks no tasks");
        Err(error)
    }

    /// Returns the tasks that have data here (a journal), with their times of creation in milliseconds since 1970.
    fn kept(&self) -> Vec<(TaskId, u64)>;

    /// Deletes the data of a task: it has ended, or other nodes continue it.
    fn forget(&self, task: &TaskId, created_ms: u64);
}

/// Work of a task, as it is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// A copy.
    Copy(CopyJob),
    /// A comparison.
    Compare(CompareJob),
    /// A hook.
    Hook(HookJob),
    /// Nothing that a node could refuse.
    Nothing,
}

/// Copy for the engine to do.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "one fact, one home: the task")]
pub struct CopyJob {
    pub source: TaskVolume,
    pub destination: TaskVolume,
    pub limit: Option<u64>,
    pub verify: bool,
    pub overwrite: bool,
    pub sparse: Sparse,
    pub reflink: Reflink,
    pub digest: DigestKind,
    /// Whether nothing of an earlier attempt may be reused.
    pub starts_over: bool,
}

impl CopyJob {
    /// Returns the engine's spec: without a checkpoint, and not yet resumed from one.
    #[must_use]
    pub fn spec(&self) -> CopySpec {
        CopySpec {
            limit_bytes_per_second: self.limit,
            sparse: self.sparse,
            reflink: self.reflink,
            digest: self.digest,
            verify: if self.verify { Verify::Yes } else { Verify::No },
            overwrite: if self.overwrite { Overwrite::Yes } else { Overwrite::No },
            ..CopySpec::new(self.source.locator(), self.destination.locator())
        }
    }
}

/// Comparison for the engine to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareJob {
    /// Expected content.
    pub reference: Reference,
    /// Volume to check.
    pub volume: TaskVolume,
    /// Limit in bytes per second.
    pub limit: Option<u64>,
}

impl CompareJob {
    /// Returns the engine's spec.
    #[must_use]
    pub fn spec(&self) -> VerifySpec {
        let reference = match &self.reference {
            Reference::Volume(volume) => spec::Reference::Volume(volume.locator()),
            Reference::Receipt { path, .. } => spec::Reference::Receipt(path.clone()),
        };
        VerifySpec { limit_bytes_per_second: self.limit, ..VerifySpec::new(reference, self.volume.locator()) }
    }
}

/// Hook for a node to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookJob {
    /// The hook.
    pub hook: HookName,
    /// Its arguments.
    pub arguments: Vec<HookArgument>,
    /// What it reads from its standard input.
    pub input: Vec<u8>,
    /// Time after which it is ended.
    pub timeout: Duration,
}

impl HookJob {
    /// Completes the request of an attempt with what the task says.
    #[must_use]
    pub fn request(&self, attempt: HookRequest) -> HookRequest {
        let Self { hook: _, arguments, input, timeout } = self.clone();
        HookRequest { arguments, input, timeout, ..attempt }
    }
}

/// Reference of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// Another volume.
    Volume(TaskVolume),
    /// The receipt of a copy.
    Receipt {
        /// The node that has the file.
        node: NodeId,
        /// Where.
        path: PathBuf,
    },
}

/// One attempt at a task.
#[derive(Debug)]
pub struct Execution {
    /// The task.
    pub task: TaskId,
    /// Group that the task is a member of.
    pub group: Option<TaskId>,
    /// When the task was created, in milliseconds since 1970: tells it from an earlier task of the same name.
    pub created_ms: u64,
    /// Number of the attempt, from 1; the oldest ones of many are not counted.
    pub attempt: u64,
    /// Grant under which the attempt writes.
    pub epoch: Epoch,
    /// Whether the destination was checked before: then it may hold data, and the copy continues on it.
    pub admitted: bool,
    /// Grants of earlier attempts that have begun.
    pub earlier: Vec<Epoch>,
    /// Mark of the order that the work was taken from, where orders are checked. Then nothing that the record says of earlier
    /// attempts is to be believed: a destination was checked if it has this mark, its durable bytes are in the journal of
    /// this node, and exports are copied from the start.
    pub mark: Option<String>,
    /// What earlier attempts have made durable, according to the record.
    pub durable: DurableMap,
    /// Gate that closes when writes may no longer be submitted.
    pub gate: Arc<WriteGate>,
    /// Receives the request for the permit to write, when everything else is ready and before the first change to the
    /// destination. Work that writes nothing asks before it reads.
    pub admission: oneshot::Sender<WritePermitRequest>,
}

/// Request of a copy for the permit to write. The copy waits for the answer; a dropped request is a refusal.
#[derive(Debug)]
pub struct WritePermitRequest {
    /// Bytes that it does not copy again: those of the record, or fewer if the destination is not the one that the
    /// record describes.
    pub durable: DurableMap,
    /// Channel for the answer.
    pub answer: oneshot::Sender<Result<(), Error>>,
}

impl WritePermitRequest {
    /// Asks through the channel of an [`Execution`], for a copy that continues from `durable`. The answer channel is
    /// dropped if no receiver exists or it has asked before.
    pub(crate) fn ask(
        admission: &Mutex<Option<oneshot::Sender<Self>>>,
        durable: DurableMap,
    ) -> oneshot::Receiver<Result<(), Error>> {
        let (answer, answered) = oneshot::channel();
        if let Some(admission) = admission.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Returned and dropped here if the receiver is gone.
            let _ = admission.send(Self { durable, answer });
        }
        answered
    }
}

/// Copy that runs, or has ended.
#[async_trait]
pub trait ExecutionHandle: Send + Sync + std::fmt::Debug {
    /// Returns the progress.
    fn progress(&self) -> Progress;

    /// Returns what is durable on the destination; empty until it has begun to copy.
    fn durable(&self) -> DurableMap;

    /// Changes the limit, in bytes per second.
    fn set_limit(&self, bytes_per_second: Option<u64>);

    /// Asks the copy to stop at the next block. The first reason is kept.
    fn cancel(&self, reason: StopReason);

    /// Resets its connections at once.
    fn cut(&self);

    /// Waits for the end. Called once.
    async fn ended(&self) -> Outcome;

    /// Waits, after an end with operations in flight, until none of them can take effect any more; forever if that
    /// cannot be known.
    async fn quiet(&self) {
        std::future::pending().await
    }

    /// Returns what of ended work nothing can end, for clients: the work is kept until that has ended by itself, and has
    /// drained then, whatever its lease. `None`: there is no such thing.
    fn survivors(&self) -> Option<String> {
        None
    }
}

/// Work that was refused before it began.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Error);

#[async_trait]
impl ExecutionHandle for Refused {
    fn progress(&self) -> Progress {
        Progress::default()
    }

    fn durable(&self) -> DurableMap {
        DurableMap::default()
    }

    fn set_limit(&self, _bytes_per_second: Option<u64>) {}

    fn cancel(&self, _reason: StopReason) {}

    fn cut(&self) {}

    async fn ended(&self) -> Outcome {
        Outcome::refused(&self.0)
    }
}

/// Outcome of a copy.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How it ended.
    pub end: End,
    /// Whether none of its operations is in flight any more.
    pub quiesced: bool,
    /// Progress at the end.
    pub progress: Progress,
    /// Durable bytes.
    pub durable: DurableMap,
    /// Report of the engine.
    pub report: Option<serde_json::Value>,
}

/// How a copy ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every byte is written, flushed, and verified if that was asked for.
    Succeeded,
    /// It was asked to stop, and did.
    Stopped(StopReason),
    /// It failed.
    Failed(Failure),
}

/// Returns the error of a copy that was stopped before it began to write.
pub(crate) fn stopped_early(reason: StopReason) -> Error {
    let code = match reason {
        StopReason::UserCancel => Code::Cancelled,
        StopReason::RunnerInterrupt => Code::RunnerInterrupt,
        StopReason::LeaseLost => Code::LeaseLost,
        StopReason::DeadlineExceeded => Code::Timeout,
    };
    Error::new(code, Side::Caller, Operation::Start, format!("stopped before it began to write: {code}"))
}

impl Outcome {
    /// Returns the outcome of a copy that has changed nothing.
    #[must_use]
    pub fn untouched(end: End) -> Self {
        Self { end, quiesced: true, progress: Progress::default(), durable: DurableMap::default(), report: None }
    }

    /// Returns the outcome of a copy that failed before it changed anything.
    #[must_use]
    pub fn refused(error: &Error) -> Self {
        Self::untouched(match error.code {
            Code::RunnerInterrupt => End::Stopped(StopReason::RunnerInterrupt),
            Code::Cancelled => End::Stopped(StopReason::UserCancel),
            Code::LeaseLost => End::Stopped(StopReason::LeaseLost),
            _ => {
                let failure = Failure::from(error);
                if failure.message.len() < error.message.len() {
                    // A record has no room for all of it.
                    tracing::warn!(%error, "failed, in full");
                }
                End::Failed(failure)
            }
        })
    }
}
