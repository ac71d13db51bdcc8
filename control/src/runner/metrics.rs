//! Counts the attempts of this node, for its metrics: by kind and outcome, with their durations and bytes.

use super::finish::outcome_of;
use crate::execution::{End, Outcome};
use crate::model::KindName;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use std::time::Duration;

/// What the engine has done with bytes, by the names in its report.
const OPERATIONS: [&str; 5] = ["read", "written", "zeroed", "cloned", "verified"];

/// Counters since the start of this process. Clones count together.
#[derive(Clone, Debug)]
pub(crate) struct RunnerMetrics {
    /// Attempts whose work has ended.
    pub(crate) attempts: Family<AttemptLabels, Counter>,
    /// Seconds from the start of an attempt's work to its end.
    pub(crate) durations: Family<KindLabel, Histogram>,
    /// Bytes of these attempts, by what was done with them.
    pub(crate) bytes: Family<OperationLabel, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct AttemptLabels {
    kind: &'static str,
    /// `succeeded`, or the code of an error.
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct KindLabel {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct OperationLabel {
    operation: &'static str,
}

impl Default for RunnerMetrics {
    /// Measures attempts from 10 ms to two days.
    fn default() -> Self {
        let durations = || Histogram::new(exponential_buckets(0.01, 4.0, 13));
        let this = Self {
            attempts: Family::default(),
            durations: Family::new_with_constructor(durations),
            bytes: Family::default(),
        };
        // Counters that are there before the first attempt show its first byte as a rise.
        OPERATIONS.iter().for_each(|operation| drop(this.bytes.get_or_create(&OperationLabel { operation })));
        this
    }
}

impl RunnerMetrics {
    /// Counts an attempt that has worked for so long.
    pub(super) fn count(&self, kind: KindName, outcome: &Outcome, lasted: Duration) {
        let kind = <&'static str>::from(kind);
        let ended = match &outcome.end {
            End::Succeeded => "succeeded",
            End::Stopped(reason) => outcome_of(*reason).as_str(),
            End::Failed(failure) => failure.code.as_str(),
        };
        self.attempts.get_or_create(&AttemptLabels { kind, outcome: ended }).inc();
        self.durations.get_or_create(&KindLabel { kind }).observe(lasted.as_secs_f64());
        let bytes = outcome.report.as_ref().map(|report| &report["bytes"]);
        for operation in OPERATIONS {
            let moved = bytes.and_then(|bytes| bytes[operation].as_u64()).unwrap_or_default();
            self.bytes.get_or_create(&OperationLabel { operation }).inc_by(moved);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_engine::job::StopReason;
    use serde_json::json;

    #[test]
    fn attempts_are_counted_by_how_they_end() {
        let metrics = RunnerMetrics::default();
        let copied = Outcome {
            report: Some(json!({"bytes": {"read": 5, "written": 3, "zeroed": 2}})),
            ..Outcome::untouched(End::Succeeded)
        };
        let stopped = Outcome::untouched(End::Stopped(StopReason::UserCancel));
        for outcome in [&copied, &copied, &stopped] {
            metrics.count(KindName::Copy, outcome, Duration::from_millis(20));
        }
        let attempts = |outcome| metrics.attempts.get_or_create(&AttemptLabels { kind: "copy", outcome }).get();
        assert_eq!((attempts("succeeded"), attempts("ECancelled")), (2, 1));
        let bytes = |operation| metrics.bytes.get_or_create(&OperationLabel { operation }).get();
        assert_eq!(OPERATIONS.map(bytes), [10, 6, 4, 0, 0]);
    }
}
