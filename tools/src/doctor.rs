//! Runs `blockhaul doctor`: shows what this host offers the engine, and suggests changes.
//!
//! The engine examines the host and returns one serialisable report. The table is built from its fields, so that a new
//! fact appears without a change here.

use crate::args::RawDoctor;
use crate::exit::Exit;
use crate::output::{json_event, print_stdout, refuse_volume_streams};
use crate::start_logging;
use blockhaul_engine::error::{Error, Operation, Result};
use blockhaul_engine::host;
use serde_json::Value;
use std::path::PathBuf;

/// Name of the field with the suggested changes.
const REMEDIES: &str = "remedies";

/// Examines the host and the file systems of the given paths. Missing features are findings, not failures: exit code 0.
///
/// # Errors
/// The report cannot be formatted.
pub(crate) fn run(raw: RawDoctor) -> Result<Exit> {
    let RawDoctor { paths, json, log } = raw;
    refuse_volume_streams(paths.iter().map(PathBuf::as_path))?;
    start_logging(log)?;
    let report = host::examine(&paths);
    if json {
        json_event("host", &report);
    } else {
        let facts = serde_json::to_value(&report)
            .map_err(|error| Error::internal(Operation::Start, format!("format the host report: {error}")))?;
        table(&facts).iter().for_each(print_stdout);
    }
    Ok(Exit::Done)
}

/// Formats one line per fact, with groups indented and suggestions last.
fn table(report: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    if let Value::Object(facts) = report {
        facts.iter().filter(|(name, _)| *name != REMEDIES).for_each(|(name, value)| fact(&mut lines, 0, name, value));
    }
    lines.push(String::new());
    match report.get(REMEDIES).and_then(Value::as_array) {
        Some(remedies) if !remedies.is_empty() => {
            lines.push("Suggested changes:".to_owned());
            lines.extend(remedies.iter().map(|remedy| format!("  - {}", plain(remedy))));
        }
        _ => lines.push("No changes needed.".to_owned()),
    }
    lines
}

fn fact(lines: &mut Vec<String>, depth: usize, name: &str, value: &Value) {
    let indent = "  ".repeat(depth);
    let name = name.replace('_', " ");
    match value {
        Value::Object(group) => {
            lines.push(format!("{indent}{name}:"));
            group.iter().for_each(|(name, value)| fact(lines, depth + 1, name, value));
        }
        Value::Array(items) if items.iter().any(Value::is_object) => {
            items.iter().for_each(|item| fact(lines, depth, &name, item));
        }
        other => lines.push(format!("{:<32} {}", format!("{indent}{name}"), plain(other))),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "unknown".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join(", "),
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| format!("{name}: {}", plain(value))).collect::<Vec<_>>().join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn facts_first_remedies_last() {
        let lines = table(&json!({
            "remedies": ["raise memlock: ulimit -l unlimited"],
            "kernel": "6.18",
            "io_uring": {"allowed": true, "reason": null},
            "paths": [{"path": "/srv", "features": ["reflink", "direct"]}],
        }))
        .join("\n");
        for part in ["kernel", "6.18", "io uring:", "allowed", "yes", "unknown", "reflink, direct"] {
            assert!(lines.contains(part), "{part}:\n{lines}");
        }
        assert!(lines.ends_with("Suggested changes:\n  - raise memlock: ulimit -l unlimited"), "{lines}");
    }

    #[test]
    fn a_host_with_all_features_is_reported_as_such() {
        assert_eq!(table(&json!({"remedies": []})).last().unwrap(), "No changes needed.");
    }
}
