//! The task that does nothing: it asks to begin like a copy, waits, and is done. It exercises the center without an engine.

use super::executor::{End, ExecutionHandle, Outcome, WritePermitRequest};
use crate::model::{DurableMap, NoopTask, Progress};
use async_trait::async_trait;
use blockhaul_engine::job::Reason;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// See the module's head.
#[derive(Debug)]
pub(super) struct Noop {
    lasts: Duration,
    admission: Mutex<Option<oneshot::Sender<WritePermitRequest>>>,
    cancelled: watch::Sender<Option<Reason>>,
}

impl Noop {
    pub(super) fn new(task: &NoopTask, admission: oneshot::Sender<WritePermitRequest>) -> Self {
        let lasts = Duration::from_millis(task.milliseconds);
        Self { lasts, admission: Mutex::new(Some(admission)), cancelled: watch::Sender::new(None) }
    }

    /// Asks to begin; the end if that is refused.
    async fn begin(&self) -> Result<(), End> {
        match WritePermitRequest::ask(&self.admission, DurableMap::default()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Outcome::refused(&error).end),
            Err(_) => Err(End::Stopped(Reason::RunnerInterrupt)),
        }
    }

    async fn wait(&self) -> End {
        if let Err(end) = self.begin().await {
            return end;
        }
        let mut cancelled = self.cancelled.subscribe();
        tokio::select! { biased;
            Ok(reason) = cancelled.wait_for(Option::is_some) => {
                reason.map_or(End::Succeeded, End::Stopped)
            }
            () = tokio::time::sleep(self.lasts) => End::Succeeded,
        }
    }
}

#[async_trait]
impl ExecutionHandle for Noop {
    fn progress(&self) -> Progress {
        Progress::default()
    }

    fn durable(&self) -> DurableMap {
        DurableMap::default()
    }

    fn set_limit(&self, _bytes_per_second: Option<u64>) {}

    fn cancel(&self, reason: Reason) {
        self.cancelled.send_modify(|cancelled| _ = cancelled.get_or_insert(reason));
    }

    fn cut(&self) {}

    async fn ended(&self) -> Outcome {
        Outcome::untouched(self.wait().await)
    }
}
