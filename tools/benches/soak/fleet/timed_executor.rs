//! Carries out copies and comparisons without volumes: each asks for its permit, lasts for the time that the name of its
//! source says, and succeeds.
//!
//! The runner calls this executor as it calls the one with the engine. The executor notes each success in a file; a
//! measurement compares the file with the records of the tasks.

use async_trait::async_trait;
use blockhaul_control::execution::{
    CompareJob, CopyJob, End, Execution, ExecutionHandle, Executor, HookJob, Outcome, Reference, WritePermitRequest,
};
use blockhaul_control::model::{DurableMap, Progress, TaskId, TaskVolume};
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::job::StopReason;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// What the number of milliseconds follows in the name of a volume.
const LASTS: &str = "lasts-";

/// Returns the name of a volume that a task needs so long to read.
pub(crate) fn volume(lasts: Duration) -> String {
    format!("nbd://127.0.0.1:1/{LASTS}{}", lasts.as_millis())
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct TimedExecutor(Arc<Mutex<File>>);

impl TimedExecutor {
    /// Creates an executor that appends the id of each task that it has completed to `completed`, one a line.
    pub(crate) fn new(completed: &Path) -> Self {
        let file = File::options().create(true).append(true).open(completed).expect("the folder is ours");
        Self(Arc::new(Mutex::new(file)))
    }

    fn start(&self, source: &TaskVolume, execution: Execution) -> Arc<dyn ExecutionHandle> {
        Arc::new(TimedExecution {
            task: execution.task,
            lasts: lasts(source),
            admission: Mutex::new(Some(execution.admission)),
            cancelled: watch::Sender::new(None),
            completed: Arc::clone(&self.0),
        })
    }
}

/// Returns the time in the name of a volume; without one it is none.
fn lasts(volume: &TaskVolume) -> Duration {
    let name = volume.to_string();
    let digits = name.split(LASTS).nth(1).unwrap_or_default();
    let digits = digits.split(|letter: char| !letter.is_ascii_digit()).next().unwrap_or_default();
    Duration::from_millis(digits.parse().unwrap_or_default())
}

#[async_trait]
impl Executor for TimedExecutor {
    async fn resolve(&self, destination: &TaskVolume) -> Result<Vec<String>> {
        Ok(vec![destination.to_string()])
    }

    fn copy(&self, job: CopyJob, execution: Execution) -> Arc<dyn ExecutionHandle> {
        self.start(&job.source, execution)
    }

    fn compare(&self, job: CompareJob, execution: Execution) -> Arc<dyn ExecutionHandle> {
        match &job.reference {
            Reference::Volume(reference) => self.start(reference, execution),
            Reference::Receipt { .. } => self.start(&job.volume, execution),
        }
    }

    fn run_hook(&self, job: HookJob, _: Execution) -> Arc<dyn ExecutionHandle> {
        unreachable!("no hook is submitted: {job:?}")
    }

    fn kept(&self) -> Vec<(TaskId, u64)> {
        Vec::new()
    }

    fn forget(&self, _: &TaskId, _: u64) {}
}

/// One attempt.
#[derive(Debug)]
struct TimedExecution {
    task: TaskId,
    lasts: Duration,
    admission: Mutex<Option<oneshot::Sender<WritePermitRequest>>>,
    cancelled: watch::Sender<Option<StopReason>>,
    completed: Arc<Mutex<File>>,
}

impl TimedExecution {
    /// Asks for the permit.
    async fn begin(&self) -> std::result::Result<(), End> {
        let (answer, answered) = oneshot::channel();
        if let Some(admission) = self.admission.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // A request that nobody takes is dropped, and refused by that.
            let _ = admission.send(WritePermitRequest { durable: DurableMap::default(), answer });
        }
        let permit = answered.await;
        permit.map_err(|_| End::Stopped(StopReason::RunnerInterrupt))?.map_err(|error| refused(&error))
    }

    async fn run(&self) -> End {
        if let Err(end) = self.begin().await {
            return end;
        }
        let mut cancelled = self.cancelled.subscribe();
        tokio::select! { biased;
            Ok(reason) = cancelled.wait_for(Option::is_some) => return reason.map_or(End::Succeeded, End::Stopped),
            () = tokio::time::sleep(self.lasts) => {}
        }
        let mut completed = self.completed.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(completed, "{}", self.task).expect("the file is ours");
        End::Succeeded
    }
}

fn refused(error: &Error) -> End {
    Outcome::refused(error).end
}

#[async_trait]
impl ExecutionHandle for TimedExecution {
    fn progress(&self) -> Progress {
        Progress::default()
    }

    fn durable(&self) -> DurableMap {
        DurableMap::default()
    }

    fn set_limit(&self, _: Option<u64>) {}

    fn cancel(&self, reason: StopReason) {
        self.cancelled.send_modify(|cancelled| _ = cancelled.get_or_insert(reason));
    }

    fn cut(&self) {}

    async fn ended(&self) -> Outcome {
        Outcome::untouched(self.run().await)
    }
}
