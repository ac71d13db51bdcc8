//! Renders a task for its readers: the one JSON object of `get`, `list`, `watch` and `submit`.

use super::convert::is_over;
use super::wire;
use crate::model::{Summary, TaskSpec};
use serde::{Serialize, Serializer};
use serde_json::Value;

/// A task for people and scripts. Serialises with exactly these names; what does not apply is `null`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TaskView {
    /// Its name.
    pub id: String,
    /// `copy`, `noop` or `verify`.
    pub kind: &'static str,
    /// As `RUNNING`.
    pub state: String,
    /// `run`, `pause` or `cancel`.
    pub desired_state: String,
    /// Why it is not running, for people; empty if there is nothing to say.
    pub reason: String,
    /// 0 to 9; higher goes first.
    pub priority: u32,
    /// `local`, `lease`, `command` or `manual`.
    pub fence: Option<String>,
    /// What is read, if it is a volume or a receipt.
    pub source: Option<String>,
    /// What a copy writes, or a comparison checks.
    pub destination: Option<String>,
    /// That has it, or had it last; of one that waits, the only one that may have it.
    pub node: Option<String>,
    /// Attempts so far.
    pub attempt: usize,
    /// The grant that its holder works under.
    pub epoch: Option<i64>,
    /// In bytes.
    pub progress: ProgressView,
    /// Bytes per second.
    pub limit: Option<u64>,
    /// Of the last failure.
    pub error: Option<ErrorView>,
    /// The engine's report, once it has ended.
    pub report: Option<Value>,
    /// As `2026-01-31T12:00:00.000Z`.
    pub created_at: Timestamp,
    /// Of the last change of state.
    pub updated_at: Timestamp,
    /// The last ones, oldest first.
    pub attempts: Vec<AttemptView>,
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

/// One runner's try.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AttemptView {
    /// Its node.
    pub runner: String,
    /// Its grant; `null` if it never began.
    pub epoch: Option<i64>,
    /// When it was given the task.
    pub started_at: Timestamp,
    /// `null` while it runs.
    pub ended_at: Option<Timestamp>,
    /// `succeeded`, or an error's code.
    pub outcome: Option<String>,
}

impl From<wire::Task> for TaskView {
    fn from(task: wire::Task) -> Self {
        // A node of a later version may know kinds that this client does not.
        let unknown = || Summary { kind: "unknown", ..Summary::default() };
        let summary = TaskSpec::try_from(task.spec).map_or_else(|_| unknown(), |spec| spec.kind().summary());
        let Summary { kind, source, destination, node: pinned, fence, limit } = summary;
        Self {
            id: task.id,
            kind,
            state: task.state,
            desired_state: task.desired_state,
            reason: task.reason,
            priority: task.priority,
            fence: fence.map(|fence| fence.as_str().to_owned()),
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
            attempts: task.attempts.into_iter().map(AttemptView::from).collect(),
        }
    }
}

impl TaskView {
    /// Whether it has ended.
    #[must_use]
    pub fn is_over(&self) -> bool {
        is_over(&self.state)
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

/// Milliseconds since 1970-01-01 UTC, shown as `2026-01-31T12:00:00.000Z`: reads well, and sorts as text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub u64);

impl std::fmt::Display for Timestamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (seconds, milliseconds) = (self.0 / 1000, self.0 % 1000);
        let (year, month, day) = civil(seconds / 86_400);
        let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
        write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Year, month and day of a day since 1970-01-01: eras of 400 years that begin with March, so that leap days come last.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names of the design, in its order, `attempts` last.
    const NAMES: &str = "id kind state desired_state reason priority fence source destination node attempt epoch progress limit error \
        report created_at updated_at attempts";

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

    #[test]
    fn times_are_of_the_calendar() {
        for (milliseconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_001, "2000-02-29T00:00:00.001Z"),
            (1_582_934_399_999, "2020-02-28T23:59:59.999Z"),
            (1_795_276_800_000, "2026-11-21T16:00:00.000Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Timestamp(milliseconds).to_string(), text);
        }
        assert!(!Timestamp(u64::MAX).to_string().is_empty());
    }
}
