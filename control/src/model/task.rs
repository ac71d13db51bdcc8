//! Defines the record of a task.

use super::{
    DurableMap, Epoch, Failure, Holder, NodeFault, NodeId, OpId, Record, Submission, TaskId, TaskSpec, UnknownFields,
    is_zero,
};
use blockhaul_engine::error::Code;
use serde::{Deserialize, Serialize};

/// Attempts that a record remembers; the oldest go first, but never one that may still write.
pub(super) const ATTEMPTS_KEPT: usize = 16;

/// Everything about a task. Terminal states never change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Its name.
    pub id: TaskId,
    /// What is to be done.
    pub spec: TaskSpec,
    /// How far it is.
    pub state: TaskState,
    /// What its client wants.
    #[serde(rename = "wish", alias = "desired_state")]
    pub desired_state: DesiredState,
    /// 0 to 9; higher goes first.
    pub priority: u8,
    /// Failures without progress in between after which it is given up; interruptions do not count.
    pub max_attempts: u32,
    /// Failures and losses since more of it became durable than ever before.
    pub failures: u32,
    /// Why it is not running, for people; empty if there is nothing to say.
    pub reason: String,
    /// Not assigned again before, in milliseconds since 1970: the back-off after a failure.
    pub not_before_ms: u64,
    /// Who works on it.
    pub holder: Option<Holder>,
    /// The grant that the holder works under; known from the first write after it.
    pub epoch: Option<Epoch>,
    /// Identities of its destination that it has claimed, the first being its own; empty until its first assignment.
    pub claims: Vec<String>,
    /// Whether the destination was judged empty enough to write, before the first write: later attempts do not ask again.
    pub admitted: bool,
    /// The last ones, oldest first.
    pub attempts: Vec<Attempt>,
    /// As of the last write of the record.
    pub progress: Progress,
    /// What is durable on the destination.
    pub map: DurableMap,
    /// The most bytes that were ever durable: whoever gets further has made progress.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub durable_best: u64,
    /// Of the last failure.
    pub error: Option<Failure>,
    /// The engine's report of the attempt that ended it, without what would not fit.
    pub report: Option<serde_json::Value>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Of the last change of state, in milliseconds since 1970.
    pub updated_ms: u64,
    /// Of the write that made it what it is.
    pub op: OpId,
    /// Of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Record for TaskRecord {}

/// How far a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TaskState {
    /// Waits for a runner.
    Pending,
    /// Given to a runner that has not begun to write.
    Assigned,
    /// A runner may write its destination.
    Running,
    /// All is written; waits for earlier attempts to be quiet, or reads back.
    Verifying,
    /// Waits for its client.
    Paused,
    /// Its runner is gone and may still write.
    Lost,
    /// Its client gave it up; its runner has still to stop.
    Cancelling,
    /// Every byte is there.
    Succeeded,
    /// Given up.
    Failed,
    /// Its client gave it up.
    Cancelled,
}

impl TaskState {
    /// Every state, in the order of a task's life.
    pub const ALL: [Self; 10] = [
        Self::Pending,
        Self::Assigned,
        Self::Running,
        Self::Verifying,
        Self::Paused,
        Self::Lost,
        Self::Cancelling,
        Self::Succeeded,
        Self::Failed,
        Self::Cancelled,
    ];

    /// Whether nothing will change any more.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    /// Whether a runner has it, or had it and may still write.
    #[must_use]
    pub fn is_held(self) -> bool {
        matches!(self, Self::Assigned | Self::Running | Self::Verifying | Self::Lost | Self::Cancelling)
    }

    /// As users see it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "PENDING",
            Self::Assigned => "ASSIGNED",
            Self::Running => "RUNNING",
            Self::Verifying => "VERIFYING",
            Self::Paused => "PAUSED",
            Self::Lost => "LOST",
            Self::Cancelling => "CANCELLING",
            Self::Succeeded => "SUCCEEDED",
            Self::Failed => "FAILED",
            Self::Cancelled => "CANCELLED",
        }
    }
}

/// What the client wants of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DesiredState {
    /// That it is done.
    Run,
    /// That it waits.
    Pause,
    /// That it is given up.
    Cancel,
}

/// One runner's try at a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Which node and process.
    pub runner: Holder,
    /// Its grant; unknown if it never began.
    pub epoch: Option<Epoch>,
    /// Milliseconds since 1970, as the next.
    pub started_ms: u64,
    /// `None` while it runs.
    pub ended_ms: Option<u64>,
    /// `succeeded`, or the name of an error code; `None` while it runs.
    pub outcome: Option<String>,
    /// Whether it is known that no write of it can land any more. Always so for one that never began.
    pub quiet: bool,
    /// What was wrong with its node, if it was the node that failed and not the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_fault: Option<NodeFault>,
    /// Of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// How often a process has failed a task by faults of its own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// By what may be gone another time.
    pub passing: usize,
    /// Whether it will never succeed.
    pub is_lasting: bool,
}

/// Where a task stands, in bytes: as the engine's progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// The source's size.
    pub planned: u64,
    /// Handed to the kernel.
    pub issued: u64,
    /// Answered by the destination.
    pub written: u64,
    /// Flushed and recorded.
    pub durable: u64,
    /// Read back.
    pub verified: u64,
    /// Over the last second.
    pub rate_bytes_per_second: u64,
    /// Seconds to go.
    pub eta_seconds: Option<f64>,
}

impl TaskRecord {
    /// A task as it begins. `now_ms`: milliseconds since 1970.
    #[must_use]
    pub fn new(order: Submission, now_ms: u64) -> Self {
        let Submission { id, priority, max_attempts, spec } = order;
        Self {
            id,
            spec,
            state: TaskState::Pending,
            desired_state: DesiredState::Run,
            priority,
            max_attempts,
            failures: 0,
            reason: String::new(),
            not_before_ms: 0,
            holder: None,
            epoch: None,
            claims: Vec::new(),
            admitted: false,
            attempts: Vec::new(),
            progress: Progress::default(),
            map: DurableMap::default(),
            durable_best: 0,
            error: None,
            report: None,
            created_ms: now_ms,
            updated_ms: now_ms,
            op: OpId::fresh(),
            unknown: UnknownFields::default(),
        }
    }

    /// Whether every earlier attempt is known to have stopped writing.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.attempts.iter().all(|attempt| attempt.quiet || attempt.ended_ms.is_none())
    }

    /// The node that holds it.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        self.holder.as_ref().map(|holder| &holder.node)
    }

    /// How a process has failed this task so far by faults of its own.
    #[must_use]
    pub fn faults_of(&self, holder: &Holder) -> Faults {
        let its = self.attempts.iter().filter(|attempt| attempt.runner == *holder);
        its.filter_map(|attempt| attempt.node_fault).fold(Faults::default(), |faults, fault| match fault {
            NodeFault::Passing => Faults { passing: faults.passing + 1, ..faults },
            NodeFault::Lasting => Faults { is_lasting: true, ..faults },
        })
    }

    /// Nodes that have failed it by faults of their own, in the order of their first failures.
    #[must_use]
    pub fn failed_nodes(&self) -> Vec<&NodeId> {
        let mut nodes: Vec<&NodeId> = Vec::new();
        for attempt in self.attempts.iter().filter(|attempt| attempt.node_fault.is_some()) {
            if !nodes.contains(&&attempt.runner.node) {
                nodes.push(&attempt.runner.node);
            }
        }
        nodes
    }

    /// The attempt that runs.
    pub fn running(&mut self) -> Option<&mut Attempt> {
        self.attempts.iter_mut().rfind(|attempt| attempt.ended_ms.is_none())
    }

    /// Ends the attempt that runs.
    pub fn end_attempt(&mut self, outcome: Result<(), Code>, quiet: bool, now_ms: u64) {
        let Some(attempt) = self.running() else { return };
        attempt.ended_ms = Some(now_ms);
        attempt.outcome = Some(outcome.map_or_else(|code| code.as_str().to_owned(), |()| String::from("succeeded")));
        attempt.quiet = quiet;
        let surplus = self.attempts.len().saturating_sub(ATTEMPTS_KEPT);
        let mut dropped = 0;
        self.attempts.retain(|attempt| {
            let goes = dropped < surplus && attempt.quiet && attempt.ended_ms.is_some();
            dropped += usize::from(goes);
            !goes
        });
    }
}
