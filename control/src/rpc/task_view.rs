//! Renders a task for its readers: the one JSON object of `get`, `list`, `watch` and `submit`.

use super::convert::is_over;
use super::wire;
use crate::model::{Summary, TaskSpec};
use crate::timestamp::Timestamp;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;

/// Task for people and scripts. Serialises with exactly these names; what does not apply is `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskView {
    /// Name of the task.
    pub id: String,
    /// `copy`, `verify`, `run`, `noop` or `group`.
    pub kind: &'static str,
    /// State, as `RUNNING`.
    pub state: String,
    /// `run`, `pause` or `cancel`.
    pub desired_state: String,
    /// Why it is not running, as text; empty if there is nothing to say.
    pub reason: String,
    /// 0 to 9; higher goes first.
    pub priority: u32,
    /// `local`, `lease`, `command` or `manual`.
    pub fence: Option<String>,
    /// Hook that is run.
    pub hook: Option<String>,
    /// Volume or receipt that is read.
    pub source: Option<String>,
    /// Volume that a copy writes, or a comparison checks.
    pub destination: Option<String>,
    /// Node that holds it, or held it last; of a waiting task, the only one that may run it.
    pub node: Option<String>,
    /// Number of attempts so far.
    pub attempt: usize,
    /// Grant under which its holder works.
    pub epoch: Option<i64>,
    /// Progress in bytes.
    pub progress: ProgressView,
    /// Limit in bytes per second.
    pub limit: Option<u64>,
    /// Last failure.
    pub error: Option<ErrorView>,
    /// Report of the engine, or the end of a hook's output, once it has ended.
    pub report: Option<Value>,
    /// When it was created, as `2026-01-31T12:00:00.000Z`.
    pub created_at: Timestamp,
    /// When its state last changed.
    pub updated_at: Timestamp,
    /// Tasks that it waits for, or waited for.
    pub after: Vec<DependencyView>,
    /// Earliest start, if its client has set one.
    pub starts_at: Option<Timestamp>,
    /// Time by which it has to have ended, if its client has set one.
    pub deadline_at: Option<Timestamp>,
    /// Task that it tries again.
    pub retry_of: Option<String>,
    /// Schedule that has made it.
    pub schedule: Option<String>,
    /// Task whose failure it tells of.
    pub notifies: Option<String>,
    /// Labels that its node must have.
    pub require: BTreeMap<String, String>,
    /// Labels that its node should have.
    pub prefer: BTreeMap<String, String>,
    /// Key of the tasks that are never on its node.
    pub apart_from: Option<String>,
    /// Windows inside of which it may run; none: always.
    pub windows: Vec<String>,
    /// Group that it is a member of.
    pub group: Option<String>,
    /// Of a group: number of stored members in each state.
    pub members: Option<BTreeMap<String, u64>>,
    /// Last attempts, oldest first.
    pub attempts: Vec<AttemptView>,
    /// Whether it has ended, also in a state that this client does not know. Its readers see the state.
    #[serde(skip)]
    pub over: bool,
}

/// Task that another one waits for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DependencyView {
    /// The task.
    pub task: String,
    /// How it has to end: `success`, `failure` or `end`.
    pub condition: String,
}

impl From<wire::Dependency> for DependencyView {
    fn from(wire::Dependency { task, condition }: wire::Dependency) -> Self {
        Self { task, condition }
    }
}

/// As [`crate::model::Progress`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[allow(missing_docs, reason = "one fact, one home: the record")]
pub struct ProgressView {
    pub planned: u64,
    pub issued: u64,
    pub written: u64,
    pub durable: u64,
    pub verified: u64,
    pub rate_bytes_per_second: u64,
    pub eta_seconds: Option<f64>,
}

/// As [`crate::model::Failure`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "one fact, one home: the record")]
pub struct ErrorView {
    pub code: String,
    pub side: String,
    pub operation: String,
    pub offset: Option<u64>,
    pub length: Option<u64>,
    pub errno: Option<i32>,
    pub retryable: bool,
    pub message: String,
}

/// One runner's attempt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttemptView {
    /// Node of the runner.
    pub runner: String,
    /// Its grant; `null` if it never began.
    pub epoch: Option<i64>,
    /// When the task was assigned.
    pub started_at: Timestamp,
    /// When it ended; `null` while it runs.
    pub ended_at: Option<Timestamp>,
    /// `succeeded`, or an error's code.
    pub outcome: Option<String>,
}

impl From<wire::Task> for TaskView {
    fn from(task: wire::Task) -> Self {
        let over = is_over(&task);
        // A node of a later version may know kinds that this client does not.
        let unknown = || Summary { kind: "unknown", ..Summary::default() };
        let summary = TaskSpec::try_from(task.spec).map_or_else(|_| unknown(), |spec| spec.kind().summary());
        let Summary { kind, hook, source, destination, node: pinned, fence, limit } = summary;
        let placement = task.placement.unwrap_or_default();
        Self {
            id: task.id,
            kind,
            state: task.state,
            desired_state: task.desired_state,
            reason: task.reason,
            priority: task.priority,
            fence: fence.map(|fence| fence.as_str().to_owned()),
            hook,
            source,
            destination,
            node: task.node.or(pinned.map(String::from)),
            attempt: task.attempts.len(),
            epoch: task.epoch,
            progress: task.progress.map(ProgressView::from).unwrap_or_default(),
            limit,
            error: task.error.map(ErrorView::from),
            report: task.report_json.and_then(|text| serde_json::from_str(&text).ok()),
            created_at: Timestamp(task.created_ms),
            updated_at: Timestamp(task.updated_ms),
            after: task.after.into_iter().map(DependencyView::from).collect(),
            starts_at: task.starts_ms.map(Timestamp),
            deadline_at: task.ends_ms.map(Timestamp),
            retry_of: task.retry_of,
            schedule: task.schedule,
            notifies: task.notifies,
            windows: task.windows,
            require: placement.require.into_iter().collect(),
            prefer: placement.prefer.into_iter().collect(),
            apart_from: (!placement.apart_from.is_empty()).then_some(placement.apart_from),
            group: task.group.map(|member| member.group),
            members: task.members.map(|members| members.states.into_iter().collect()),
            attempts: task.attempts.into_iter().map(AttemptView::from).collect(),
            over,
        }
    }
}

impl TaskView {
    /// Tells whether it has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over
    }
}

impl From<wire::Progress> for ProgressView {
    fn from(progress: wire::Progress) -> Self {
        let wire::Progress { planned, issued, written, durable, verified, rate_bytes_per_second, eta_seconds } =
            progress;
        Self { planned, issued, written, durable, verified, rate_bytes_per_second, eta_seconds }
    }
}

impl From<wire::RpcError> for ErrorView {
    fn from(fault: wire::RpcError) -> Self {
        let wire::RpcError { code, message, retryable, side, operation, offset, length, errno, .. } = fault;
        Self { code, side, operation, offset, length, errno, retryable, message }
    }
}

impl From<wire::Attempt> for AttemptView {
    fn from(attempt: wire::Attempt) -> Self {
        let wire::Attempt { runner, epoch, started_ms, ended_ms, outcome } = attempt;
        Self { runner, epoch, started_at: Timestamp(started_ms), ended_at: ended_ms.map(Timestamp), outcome }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Field names in the order of the design, `attempts` last.
    const NAMES: &str = "id kind state desired_state reason priority fence hook source destination node attempt epoch progress limit error \
        report created_at updated_at after starts_at deadline_at retry_of schedule notifies require prefer \
        apart_from windows group members attempts";

    #[test]
    fn a_task_in_a_state_of_a_later_version_has_ended_if_the_leader_says_so() {
        let task = |state: &str, over| wire::Task { state: state.to_owned(), over, ..Default::default() };
        assert!(TaskView::from(task("EXPIRED", true)).is_over() && !TaskView::from(task("EXPIRED", false)).is_over());
        // A leader of an earlier version does not say so.
        assert!(TaskView::from(task("FAILED", false)).is_over() && !TaskView::from(task("RUNNING", false)).is_over());
    }

    #[test]
    fn a_task_has_exactly_the_names_of_the_contract() {
        let attempt = wire::Attempt { runner: "n1".to_owned(), outcome: Some("EIo".to_owned()), ..Default::default() };
        let task = wire::Task { attempts: vec![attempt], error: Some(wire::RpcError::default()), ..Default::default() };
        let text = serde_json::to_string(&TaskView::from(task)).unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let mut names: Vec<_> = NAMES.split_whitespace().collect();
        let positions: Vec<_> = names.iter().map(|name| text.find(&format!("\"{name}\":")).unwrap()).collect();
        assert!(positions.is_sorted(), "{text}");
        names.sort_unstable();
        assert_eq!(value.as_object().unwrap().keys().collect::<Vec<_>>(), names);
        let attempt = value["attempts"][0].as_object().unwrap();
        assert_eq!(attempt.keys().collect::<Vec<_>>(), ["ended_at", "epoch", "outcome", "runner", "started_at"]);
        let progress = value["progress"].as_object().unwrap();
        let wanted = ["durable", "eta_seconds", "issued", "planned", "rate_bytes_per_second", "verified", "written"];
        assert_eq!(progress.keys().collect::<Vec<_>>(), wanted);
    }
}
