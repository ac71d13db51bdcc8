//! Defines the record of a task.

use super::{
    Actor, Dependency, DurableMap, Epoch, Failure, GroupState, Holder, Membership, NodeFault, NodeId, OpId,
    PlacementRules, Record, ScheduleName, SignedOrder, Submission, TaskId, TaskSpec, TaskTimes, Transitions,
    UnknownFields, is_zero,
};
use blockhaul_engine::error::{Code, Result};
use blockhaul_engine::flow::graph::Outcome;
use serde::{Deserialize, Serialize};
use strum::{EnumString, IntoStaticStr, VariantArray};

/// Attempts that a record remembers; the oldest go first, but never one that may still write.
pub(super) const ATTEMPTS_KEPT: usize = 16;

/// Record of a task. Terminal states never change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// Its name.
    pub id: TaskId,
    /// Work of the task.
    pub spec: TaskSpec,
    /// Tasks that it waits for before its first attempt.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub after: Vec<Dependency>,
    /// Group that it is a member of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Membership>,
    /// What a group knows of its members; `None` of any other task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub members: Option<GroupState>,
    /// When it may start, and by when it has to have ended.
    #[serde(default, skip_serializing_if = "TaskTimes::is_unset")]
    pub times: TaskTimes,
    /// Where it may run.
    #[serde(default, skip_serializing_if = "PlacementRules::is_unset")]
    pub placement: PlacementRules,
    /// Windows inside of which it may run; none: always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub windows: Vec<String>,
    /// Whether it has begun, and does not go on before one of its windows opens.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_outside_windows: bool,
    /// Task that it tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<TaskId>,
    /// Times as they were submitted, if its client has changed them since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub submitted_times: Option<TaskTimes>,
    /// Schedule that has made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<ScheduleName>,
    /// Task whose failure it tells of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub notifies: Option<TaskId>,
    /// What its client has signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<SignedOrder>,
    /// Whether its failure has been told by another task, as the center's settings want.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_notified: bool,
    /// Where its client wants it to run next; until then, no runner keeps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving: Option<Move>,
    /// Whether it is being ended because it has missed its deadline.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_overdue: bool,
    /// How far it is.
    pub state: TaskState,
    /// State that its client wants.
    #[serde(rename = "wish", alias = "desired_state")]
    pub desired_state: DesiredState,
    /// 0 to 9; higher goes first.
    pub priority: u8,
    /// Failures without progress in between after which it fails; interruptions do not count.
    pub max_attempts: u32,
    /// Failures and losses since its last progress.
    pub failures: u32,
    /// Why it is not running, as text; empty if there is nothing to say.
    pub reason: String,
    /// Earliest next assignment, in milliseconds since 1970: the backoff after a failure.
    pub not_before_ms: u64,
    /// Process that works on it.
    pub holder: Option<Holder>,
    /// Grant under which the holder works; known from the first write after it.
    pub epoch: Option<Epoch>,
    /// Claimed identities of its destination, its own first; empty until its first assignment.
    pub claims: Vec<String>,
    /// Whether the destination was checked to be empty enough to write, before the first write: later attempts do not
    /// check again.
    pub admitted: bool,
    /// Last attempts, oldest first.
    pub attempts: Vec<Attempt>,
    /// Progress as of the last write of the record.
    pub progress: Progress,
    /// Durable bytes of the destination.
    pub map: DurableMap,
    /// Most bytes that were ever durable: an attempt that gets further has made progress.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub durable_best: u64,
    /// Last failure.
    pub error: Option<Failure>,
    /// Engine's report of the attempt that ended it, without what would not fit.
    pub report: Option<serde_json::Value>,
    /// When it was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// When its state last changed, in milliseconds since 1970.
    pub updated_ms: u64,
    /// Its last transitions, for people.
    #[serde(default, skip_serializing_if = "Transitions::is_empty")]
    pub transitions: Transitions,
    /// Operation id of the last write.
    pub op: OpId,
    /// Fields of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Record for TaskRecord {}

/// State of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, EnumString, IntoStaticStr, VariantArray)]
#[serde(rename_all = "UPPERCASE")]
#[strum(serialize_all = "UPPERCASE", ascii_case_insensitive)]
pub enum TaskState {
    /// Waits for a runner.
    Pending,
    /// Assigned to a runner that has not begun to write.
    Assigned,
    /// A runner may write its destination.
    Running,
    /// Everything is written; waits for earlier attempts to drain, or reads back.
    Verifying,
    /// Waits for its client to resume it.
    Paused,
    /// Its runner is lost and may still write.
    Lost,
    /// Its client cancelled it; its runner has still to stop.
    Cancelling,
    /// Every byte is durable.
    Succeeded,
    /// Failed for good.
    Failed,
    /// Its client cancelled it.
    Cancelled,
    /// It never started: a task that it depends on did not end as it has to.
    Skipped,
}

impl TaskState {
    /// Returns the name that users see.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        self.into()
    }

    /// Tells whether the state is final.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled | Self::Skipped)
    }

    /// Tells whether a runner holds it, or held it and may still write.
    #[must_use]
    pub fn is_held(self) -> bool {
        matches!(self, Self::Assigned | Self::Running | Self::Verifying | Self::Lost | Self::Cancelling)
    }
}

/// State that a client wants of a task. Of two, the later one is the stronger one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DesiredState {
    /// It runs to its end.
    #[default]
    Run,
    /// It is paused.
    Pause,
    /// It is cancelled.
    Cancel,
}

impl DesiredState {
    /// Tells whether it is [`DesiredState::Run`].
    #[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
    pub(super) fn is_run(&self) -> bool {
        *self == Self::Run
    }
}

/// Order to run a task elsewhere. Holds until the task is assigned again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Move {
    /// Node that is to run it no longer: the one that had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<NodeId>,
    /// Node that is to run it; `None`: any other one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<NodeId>,
}

/// One runner's attempt at a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Node and process.
    pub runner: Holder,
    /// Its grant; unknown if it never began.
    pub epoch: Option<Epoch>,
    /// When it started, in milliseconds since 1970.
    pub started_ms: u64,
    /// When it ended, in milliseconds since 1970; `None` while it runs.
    pub ended_ms: Option<u64>,
    /// `succeeded`, or the name of an error code; `None` while it runs.
    pub outcome: Option<String>,
    /// Whether it has drained: no write of it can land any more. Always true for one that never began.
    pub quiet: bool,
    /// What was wrong with its node, if it was the node that failed and not the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_fault: Option<NodeFault>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

/// Faults by which a process has failed a task.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Number of passing faults.
    pub passing: usize,
    /// Whether it will never succeed.
    pub is_lasting: bool,
}

/// Progress of a task in bytes, as the engine counts it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Progress {
    /// Size of the source.
    pub planned: u64,
    /// Bytes submitted to the kernel.
    pub issued: u64,
    /// Bytes acknowledged by the destination.
    pub written: u64,
    /// Bytes flushed and recorded.
    pub durable: u64,
    /// Bytes read back.
    pub verified: u64,
    /// Rate over the last second.
    pub rate_bytes_per_second: u64,
    /// Estimated seconds left.
    pub eta_seconds: Option<f64>,
}

impl TaskRecord {
    /// Creates the record of a new task that waits for no other one and is in no group. `now_ms`: milliseconds since 1970.
    #[must_use]
    pub fn new(submission: Submission, now_ms: u64) -> Self {
        let Submission {
            id,
            priority,
            max_attempts,
            spec,
            after: _,
            group: _,
            times,
            placement,
            windows,
            retry_of,
            notifies,
            order,
        } = submission;
        let members = spec.kind().group().map(|_| GroupState::default());
        let by = if notifies.is_some() { Actor::Dispatcher } else { Actor::Client(None) };
        Self {
            id,
            spec,
            after: Vec::new(),
            group: None,
            members,
            times,
            placement,
            windows,
            is_outside_windows: false,
            retry_of,
            submitted_times: None,
            schedule: None,
            notifies,
            order,
            is_notified: false,
            moving: None,
            is_overdue: false,
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
            transitions: Transitions::created(now_ms, by),
            op: OpId::fresh(),
            unknown: UnknownFields::default(),
        }
    }

    /// Tells whether every earlier attempt has drained.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.attempts.iter().all(|attempt| attempt.quiet || attempt.ended_ms.is_none())
    }

    /// Tells whether it is a group.
    #[must_use]
    pub fn is_group(&self) -> bool {
        self.members.is_some()
    }

    /// Returns the state that is wanted of it: the stronger one of what its client and its group want.
    #[must_use]
    pub fn desired(&self) -> DesiredState {
        let by_group = self.group.as_ref().map_or(DesiredState::Run, |member| member.desired_state);
        let by_window = if self.is_outside_windows { DesiredState::Pause } else { DesiredState::Run };
        self.desired_state.max(by_group).max(by_window)
    }

    /// Tells whether its holder has to return it, because it is to run elsewhere.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.holder.is_some() && self.moving.is_some()
    }

    /// Tells whether its client lets that node run it next.
    #[must_use]
    pub fn may_run_on(&self, node: &NodeId) -> bool {
        self.moving.as_ref().is_none_or(|moving| match &moving.to {
            Some(to) => to == node,
            None => moving.from.as_ref() != Some(node),
        })
    }

    /// Returns the only node that may run it next; `None`: any.
    ///
    /// # Errors
    /// `EBadRequest` if its volumes are of different nodes, or are no volumes.
    pub fn only_node(&self) -> Result<Option<NodeId>> {
        let wanted = self.moving.as_ref().and_then(|moving| moving.to.clone());
        Ok(self.spec.node()?.or(wanted))
    }

    /// Returns the earliest time of its first attempt, in milliseconds since 1970.
    #[must_use]
    pub fn starts_ms(&self) -> Option<u64> {
        self.times.starts_ms(self.created_ms)
    }

    /// Returns the time by which it has to have ended, in milliseconds since 1970.
    #[must_use]
    pub fn ends_ms(&self) -> Option<u64> {
        self.times.ends_ms(self.created_ms)
    }

    /// Tells whether it has never been assigned, so that its dependencies still count.
    #[must_use]
    pub fn is_unstarted(&self) -> bool {
        self.attempts.is_empty()
    }

    /// Returns how it has ended; `None` if it has not.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        match self.state {
            TaskState::Succeeded => Some(Outcome::Succeeded),
            TaskState::Failed => Some(Outcome::Failed),
            TaskState::Cancelled => Some(Outcome::Cancelled),
            TaskState::Skipped => Some(Outcome::Skipped),
            TaskState::Pending
            | TaskState::Assigned
            | TaskState::Running
            | TaskState::Verifying
            | TaskState::Paused
            | TaskState::Lost
            | TaskState::Cancelling => None,
        }
    }

    /// Returns the node that holds it.
    #[must_use]
    pub fn node(&self) -> Option<&NodeId> {
        self.holder.as_ref().map(|holder| &holder.node)
    }

    /// Returns the node that holds it, or, of one that has ended, held it last.
    #[must_use]
    pub fn shown_node(&self) -> Option<&NodeId> {
        let last = self.attempts.last().filter(|_| self.state.is_terminal()).map(|attempt| &attempt.runner.node);
        self.node().or(last)
    }

    /// Returns the faults by which a process has failed this task so far.
    #[must_use]
    pub fn faults_of(&self, holder: &Holder) -> Faults {
        let its = self.attempts.iter().filter(|attempt| attempt.runner == *holder);
        its.filter_map(|attempt| attempt.node_fault).fold(Faults::default(), |faults, fault| match fault {
            NodeFault::Passing => Faults { passing: faults.passing + 1, ..faults },
            NodeFault::Lasting => Faults { is_lasting: true, ..faults },
        })
    }

    /// Returns the nodes that have failed it by faults of their own, in the order of their first failures.
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

    /// Returns the running attempt.
    pub fn running(&mut self) -> Option<&mut Attempt> {
        self.attempts.iter_mut().rfind(|attempt| attempt.ended_ms.is_none())
    }

    /// Ends the running attempt.
    pub fn end_attempt(&mut self, outcome: std::result::Result<(), Code>, quiet: bool, now_ms: u64) {
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
