//! Does nothing for a while: asks for permission to begin like a copy, waits, and succeeds. Exercises the center
//! without an engine.

use super::{Kind, Summary};
use crate::execution::{End, Execution, ExecutionHandle, Executor, Outcome, Work, WritePermitRequest};
use crate::model::{DurableMap, NodeId, Progress, UnknownFields};
use crate::wire;
use async_trait::async_trait;
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::job::StopReason;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Longest duration of such a task in milliseconds: a week.
const MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;

/// A task that does nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NoopTask {
    /// Duration in milliseconds.
    pub milliseconds: u64,
    /// The only node that may run it.
    pub node: Option<NodeId>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl NoopTask {
    /// Creates a task of this duration, for that node or any.
    #[must_use]
    pub fn new(milliseconds: u64, node: Option<NodeId>) -> Self {
        Self { milliseconds, node, unknown: UnknownFields::default() }
    }
}

impl Kind for NoopTask {
    fn validate(&self) -> Result<()> {
        if self.milliseconds > MS_MAX {
            return Err(Error::bad_request(format!("a noop task lasts at most {MS_MAX} milliseconds")));
        }
        Ok(())
    }

    fn node(&self) -> Result<Option<NodeId>> {
        Ok(self.node.clone())
    }

    fn imply_node(&mut self, _node: &NodeId) {}

    fn work(&self) -> Result<Work> {
        Ok(Work::Nothing)
    }

    fn start(&self, execution: Execution, _executor: &dyn Executor) -> Arc<dyn ExecutionHandle> {
        Arc::new(Noop::new(self, execution.admission))
    }

    fn unknown(&self) -> &UnknownFields {
        &self.unknown
    }

    fn summary(&self) -> Summary {
        Summary { kind: "noop", node: self.node.clone(), ..Summary::default() }
    }

    fn to_wire(&self) -> wire::spec::Work {
        let Self { milliseconds, node, unknown: _ } = self;
        wire::spec::Work::Noop(wire::NoopWork { milliseconds: *milliseconds, node: node.clone().map(String::from) })
    }
}

impl TryFrom<wire::NoopWork> for NoopTask {
    type Error = Error;

    fn try_from(wire::NoopWork { milliseconds, node }: wire::NoopWork) -> Result<Self> {
        Ok(Self::new(milliseconds, node.map(NodeId::new).transpose()?))
    }
}

/// One attempt.
#[derive(Debug)]
struct Noop {
    lasts: Duration,
    admission: Mutex<Option<oneshot::Sender<WritePermitRequest>>>,
    cancelled: watch::Sender<Option<StopReason>>,
}

impl Noop {
    fn new(task: &NoopTask, admission: oneshot::Sender<WritePermitRequest>) -> Self {
        let lasts = Duration::from_millis(task.milliseconds);
        Self { lasts, admission: Mutex::new(Some(admission)), cancelled: watch::Sender::new(None) }
    }

    /// Asks for permission to begin; returns the end if that is refused.
    async fn begin(&self) -> std::result::Result<(), End> {
        match WritePermitRequest::ask(&self.admission, DurableMap::default()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Outcome::refused(&error).end),
            Err(_) => Err(End::Stopped(StopReason::RunnerInterrupt)),
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

    fn cancel(&self, reason: StopReason) {
        self.cancelled.send_modify(|cancelled| _ = cancelled.get_or_insert(reason));
    }

    fn cut(&self) {}

    async fn ended(&self) -> Outcome {
        Outcome::untouched(self.wait().await)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lasts_a_week_at_most() {
        assert!(NoopTask::new(MS_MAX, None).validate().is_ok());
        assert!(NoopTask::new(MS_MAX + 1, None).validate().is_err());
    }
}
