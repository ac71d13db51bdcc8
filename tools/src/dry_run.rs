//! Prints what `blockhaul copy --dry-run` finds out: the plan of the copy, or why it would be refused.
//!
//! The engine checks the copy with the code of a real start, and changes nothing.

use crate::exit::Exit;
use crate::output::{self, print_stderr};
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::job::CheckReport;
use blockhaul_engine::shown::Shown;
use blockhaul_engine::spec::{CheckpointLocation, CopySpec};
use blockhaul_engine::units::format_size;
use serde::Serialize;

/// The result of a dry run, as it is printed.
#[derive(Debug, Serialize)]
struct Plan {
    source: String,
    destination: String,
    checkpoint: Option<String>,
    /// All zero if the copy would be refused.
    #[serde(flatten)]
    report: CheckReport,
    /// Reasons why the copy would be refused; empty if it would not.
    refusals: Vec<Error>,
}

/// Prints the plan. Returns the exit code of a copy that is refused for the same reason.
pub(crate) fn show(spec: &CopySpec, checked: Result<CheckReport>, json: bool) -> Exit {
    let (report, refusals) = match checked {
        Ok(report) => (report, Vec::new()),
        Err(refusal) => (CheckReport::default(), vec![refusal]),
    };
    let checkpoint = match &spec.checkpoint {
        CheckpointLocation::File(file) => Some(file.shown().to_string()),
        CheckpointLocation::None => None,
    };
    let (source, destination) = (spec.source.to_string(), spec.destination.to_string());
    let plan = Plan { source, destination, checkpoint, report, refusals };
    plan.refusals.iter().for_each(print_stderr);
    if json {
        output::json_event("plan", &plan);
    } else {
        describe(&plan).iter().for_each(output::print_stdout);
    }
    plan.refusals.first().map_or(Exit::Done, Exit::from)
}

fn describe(plan: &Plan) -> Vec<String> {
    let Plan { source, destination, checkpoint, report, refusals } = plan;
    let field = |name: &str, value: String| format!("{name:<12} {value}");
    let checkpoint = checkpoint.clone().unwrap_or_else(|| "none: the copy could not be resumed".to_owned());
    if !refusals.is_empty() {
        return vec![
            field("source", source.clone()),
            field("destination", destination.clone()),
            field("checkpoint", checkpoint),
            field("result", "the copy would be refused; nothing was changed".to_owned()),
        ];
    }
    let CheckReport { source_bytes, data_bytes, zero_bytes, hole_bytes, unchanged_bytes, .. } = report;
    let kinds = [("data", data_bytes), ("zeros", zero_bytes), ("holes", hole_bytes), ("unchanged", unchanged_bytes)];
    let kinds = kinds.iter().filter(|(name, bytes)| *name != "unchanged" || **bytes > 0);
    let kinds: Vec<String> = kinds.map(|(name, bytes)| format!("{name} {}", format_size(**bytes))).collect();
    let resumed = report.resumed_bytes.map_or(String::new(), |done| format!(", resumes after {}", format_size(done)));
    let path = report.path.clone().unwrap_or_else(|| "none: the copy is complete".to_owned());
    let mut lines = vec![
        field("source", format!("{source}, {} ({source_bytes} bytes)", format_size(*source_bytes))),
        field("", kinds.join(", ")),
        field("destination", destination.clone()),
        field("checkpoint", format!("{checkpoint}{resumed}")),
        field("path", format!("{path}, blocks of {}", format_size(report.block_size_bytes.into()))),
    ];
    lines.extend(report.free_bytes.map(|free| field("free space", format_size(free))));
    lines.push(field("result", "no problems found".to_owned()));
    lines
}
