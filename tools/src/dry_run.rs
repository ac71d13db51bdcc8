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
use std::fmt::Display;

/// The result of a dry run, as it is printed.
#[derive(Debug, Serialize)]
struct Plan<'a> {
    /// Member of a batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    member: Option<&'a str>,
    source: String,
    destination: String,
    checkpoint: Option<String>,
    /// All zero if the copy would be refused.
    #[serde(flatten)]
    report: CheckReport,
    /// Reasons why the copy would be refused; empty if it would not.
    refusals: Vec<Error>,
}

/// Prints the plan of a copy, of a batch if it is a `member`. Returns the exit code of a copy that is refused for the
/// same reason.
pub(crate) fn show(member: Option<&str>, spec: &CopySpec, checked: Result<CheckReport>, json: bool) -> Exit {
    let (report, refusals) = match checked {
        Ok(report) => (report, Vec::new()),
        Err(refusal) => (CheckReport::default(), vec![refusal]),
    };
    let checkpoint = match &spec.checkpoint {
        CheckpointLocation::File(file) => Some(file.shown().to_string()),
        CheckpointLocation::None => None,
    };
    let (source, destination) = (spec.source.to_string(), spec.destination.to_string());
    let plan = Plan { member, source, destination, checkpoint, report, refusals };
    print_refusals(member, &plan.refusals);
    if json {
        output::json_event("plan", &plan);
    } else {
        describe(&plan).iter().for_each(output::print_stdout);
    }
    plan.refusals.first().map_or(Exit::Done, Exit::from)
}

/// The plan of a member that is no copy, or that cannot be checked yet.
#[derive(Debug, Serialize)]
struct OtherPlan<'a> {
    member: &'a str,
    /// What it does: `copy`, `verify`.
    kind: &'a str,
    /// Why it was not checked, if it was not.
    unchecked: Option<&'a str>,
    refusals: Vec<Error>,
}

/// Prints the plan of a member that is no copy. Returns the exit code of its refusal.
pub(crate) fn show_other(member: &str, kind: &str, checked: Result<()>, json: bool) -> Exit {
    print_other(&OtherPlan { member, kind, unchecked: None, refusals: checked.err().into_iter().collect() }, json)
}

/// Prints that a member cannot be checked yet, and `why`.
pub(crate) fn show_unchecked(member: &str, kind: &str, why: &str, json: bool) -> Exit {
    print_other(&OtherPlan { member, kind, unchecked: Some(why), refusals: Vec::new() }, json)
}

fn print_other(plan: &OtherPlan<'_>, json: bool) -> Exit {
    print_refusals(Some(plan.member), &plan.refusals);
    if json {
        output::json_event("plan", plan);
    } else {
        let result = match (plan.unchecked, plan.refusals.is_empty()) {
            (Some(why), _) => format!("not checked: {why}"),
            (None, true) => "no problems found".to_owned(),
            (None, false) => "it would be refused; nothing was changed".to_owned(),
        };
        output::print_stdout(field("member", format!("{} ({})", plan.member, plan.kind)));
        output::print_stdout(field("result", result));
    }
    plan.refusals.first().map_or(Exit::Done, Exit::from)
}

fn print_refusals(member: Option<&str>, refusals: &[Error]) {
    for refusal in refusals {
        match member {
            Some(member) => print_stderr(format_args!("{member}: {refusal}")),
            None => print_stderr(refusal),
        }
    }
}

fn field(name: &str, value: impl Display) -> String {
    format!("{name:<12} {value}")
}

fn describe(plan: &Plan<'_>) -> Vec<String> {
    let Plan { member, source, destination, checkpoint, report, refusals } = plan;
    let mut lines: Vec<_> = member.iter().map(|member| field("member", member)).collect();
    let checkpoint = checkpoint.clone().unwrap_or_else(|| "none: the copy could not be resumed".to_owned());
    if !refusals.is_empty() {
        lines.extend([
            field("source", source),
            field("destination", destination),
            field("checkpoint", checkpoint),
            field("result", "the copy would be refused; nothing was changed"),
        ]);
        return lines;
    }
    let CheckReport { source_bytes, data_bytes, zero_bytes, hole_bytes, unchanged_bytes, .. } = report;
    let kinds = [("data", data_bytes), ("zeros", zero_bytes), ("holes", hole_bytes), ("unchanged", unchanged_bytes)];
    let kinds = kinds.iter().filter(|(name, bytes)| *name != "unchanged" || **bytes > 0);
    let kinds: Vec<String> = kinds.map(|(name, bytes)| format!("{name} {}", format_size(**bytes))).collect();
    let resumed = report.resumed_bytes.map_or(String::new(), |done| format!(", resumes after {}", format_size(done)));
    let path = report.path.clone().unwrap_or_else(|| "none: the copy is complete".to_owned());
    lines.extend([
        field("source", format!("{source}, {} ({source_bytes} bytes)", format_size(*source_bytes))),
        field("", kinds.join(", ")),
        field("destination", destination),
        field("checkpoint", format!("{checkpoint}{resumed}")),
        field("path", format!("{path}, blocks of {}", format_size(report.block_size_bytes.into()))),
    ]);
    lines.extend(report.free_bytes.map(|free| field("free space", format_size(free))));
    lines.push(field("result", "no problems found"));
    lines
}
