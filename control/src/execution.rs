//! Defines the seam between the task center and the engine: how the work of a task is carried out.
//!
//! Implementations are the runner's executor over the engine and the one of the simulation. Everything that blocks is
//! behind the seam: opening volumes, waiting for the end of a job, the epoch that is stored beside a destination. The
//! runner itself only awaits.

use crate::model::volume::TaskVolume;
use crate::model::{DurableMap, Epoch, Failure, Progress, TaskId};
use async_trait::async_trait;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::gate::Gate;
use blockhaul_engine::job::Reason;
use blockhaul_engine::spec::{DigestKind, Reflink, Sparse};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// Carries work out on this node.
#[async_trait]
pub trait Executor: Send + Sync + std::fmt::Debug {
    /// Returns the identities of a destination on this node, its own first. Changes nothing.
    ///
    /// # Errors
    /// `EPermission` outside the node's policy, and what is wrong with the name.
    async fn resolve(&self, destination: &TaskVolume) -> Result<Vec<String>>;

    /// Starts a copy. Returns at once; what goes wrong is in its outcome.
    fn copy(&self, job: CopyJob, execution: Execution) -> Arc<dyn ExecutionHandle>;

    /// Starts a comparison. Returns at once; a difference is in its outcome as `EVerifyMismatch`.
    fn compare(&self, job: CompareJob, execution: Execution) -> Arc<dyn ExecutionHandle>;

    /// Returns the tasks that something is kept of here (a journal), with their times of creation in milliseconds since 1970.
    fn kept(&self) -> Vec<(TaskId, u64)>;

    /// Drops what is kept of a task: it has ended, or others go on with it.
    fn forget(&self, task: &TaskId, created_ms: u64);
}

/// What the engine is to copy.
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
    /// Whether nothing of an earlier attempt may be gone on with.
    pub starts_over: bool,
}

/// What the engine is to compare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompareJob {
    /// What should be there.
    pub reference: Reference,
    /// What is checked.
    pub volume: TaskVolume,
    /// Bytes per second.
    pub limit: Option<u64>,
}

/// What a volume is compared with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reference {
    /// Another volume.
    Volume(TaskVolume),
    /// The receipt of a copy, a file of the node.
    Receipt(TaskVolume),
}

/// One attempt at a task.
#[derive(Debug)]
pub struct Execution {
    /// Which task.
    pub task: TaskId,
    /// When the task was created, in milliseconds since 1970: tells it from an earlier task of the same name.
    pub created_ms: u64,
    /// The grant under which the attempt writes.
    pub epoch: Epoch,
    /// Whether the destination was judged before: then it may hold data, and the copy goes on with it.
    pub admitted: bool,
    /// Grants of earlier attempts that have begun.
    pub earlier: Vec<Epoch>,
    /// What earlier attempts have made durable, as the record has it.
    pub durable: DurableMap,
    /// Until when writes may be submitted.
    pub gate: Arc<Gate>,
    /// Takes the request for the permit to write, when everything else has been settled and before the first change to the
    /// destination. Work that writes nothing asks before it reads.
    pub admission: oneshot::Sender<WritePermitRequest>,
}

/// A copy asks whether it may write. It waits for the answer; a question that is dropped is a no.
#[derive(Debug)]
pub struct WritePermitRequest {
    /// What it goes on from: what the record has, or less if the destination is not what the record was made of.
    pub durable: DurableMap,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<(), Error>>,
}

impl WritePermitRequest {
    /// Asks through what an [`Execution`] has brought, for a copy that goes on from `durable`. An answer that can never come,
    /// as nobody listens or it was asked before, is dropped.
    pub(crate) fn ask(
        admission: &Mutex<Option<oneshot::Sender<Self>>>,
        durable: DurableMap,
    ) -> oneshot::Receiver<Result<(), Error>> {
        let (answer, answered) = oneshot::channel();
        if let Some(admission) = admission.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // Comes back, and is dropped here, if nobody listens.
            let _ = admission.send(Self { durable, answer });
        }
        answered
    }
}

/// A copy that runs, or has ended.
#[async_trait]
pub trait ExecutionHandle: Send + Sync + std::fmt::Debug {
    /// Where it stands.
    fn progress(&self) -> Progress;

    /// What is durable on the destination; empty until it has begun to copy.
    fn durable(&self) -> DurableMap;

    /// Changes its limit, in bytes per second.
    fn set_limit(&self, bytes_per_second: Option<u64>);

    /// Asks it to stop at the next block. The first reason holds.
    fn cancel(&self, reason: Reason);

    /// Resets its connections at once.
    fn cut(&self);

    /// Waits for its end. Called once.
    async fn ended(&self) -> Outcome;

    /// After an end that was not quiet: waits until nothing of it can happen any more, for ever if nobody can tell.
    async fn quiet(&self) {
        std::future::pending().await
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

    fn cancel(&self, _reason: Reason) {}

    fn cut(&self) {}

    async fn ended(&self) -> Outcome {
        Outcome::refused(&self.0)
    }
}

/// How a copy ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// How.
    pub end: End,
    /// Whether none of its operations is in flight any more.
    pub quiesced: bool,
    /// Where it stood.
    pub progress: Progress,
    /// What is durable.
    pub durable: DurableMap,
    /// The engine's report.
    pub report: Option<serde_json::Value>,
}

/// In which way a copy ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every byte is there, flushed, and verified if that was asked for.
    Succeeded,
    /// It was asked to stop, and has.
    Stopped(Reason),
    /// It failed.
    Failed(Failure),
}

/// The error of a copy that was stopped before it began to write.
pub(crate) fn stopped_early(reason: Reason) -> Error {
    let code = match reason {
        Reason::UserCancel => Code::Cancelled,
        Reason::RunnerInterrupt => Code::RunnerInterrupt,
        Reason::LeaseLost => Code::LeaseLost,
        Reason::DeadlineExceeded => Code::Timeout,
    };
    Error::new(code, Side::Caller, Operation::Start, format!("stopped before it began to write: {code}"))
}

impl Outcome {
    /// The outcome of a copy that has touched nothing.
    #[must_use]
    pub fn untouched(end: End) -> Self {
        Self { end, quiesced: true, progress: Progress::default(), durable: DurableMap::default(), report: None }
    }

    /// The outcome of a copy that failed before it touched anything.
    #[must_use]
    pub fn refused(error: &Error) -> Self {
        Self::untouched(match error.code {
            Code::RunnerInterrupt => End::Stopped(Reason::RunnerInterrupt),
            Code::Cancelled => End::Stopped(Reason::UserCancel),
            Code::LeaseLost => End::Stopped(Reason::LeaseLost),
            _ => End::Failed(Failure::from(error)),
        })
    }
}
