//! Defines `results.json`: what one run found.
//!
//! Raw samples and host facts are kept with every number derived from them, so that a later run can be compared with
//! this one and a reader can check the summary. `docs/bench.md` owns the schema. Quantities carry their unit in their
//! names; times are seconds since the start of the run unless stated otherwise.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version of the schema that this program writes.
pub(crate) const SCHEMA: u32 = 1;

/// One run of `copy-bench`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Results {
    /// [`SCHEMA`] of the program that wrote it.
    pub schema: u32,
    /// The build under test.
    pub build: Build,
    /// The host of the run.
    pub host: Host,
    /// Start, duration and options of the run.
    pub run: Run,
    /// Programs that are compared, including missing ones.
    pub programs: Vec<Program>,
    /// In the order in which they ran.
    pub scenarios: Vec<ScenarioResult>,
    /// Warnings about the whole run.
    #[serde(rename = "doubts")]
    pub warnings: Vec<Warning>,
}

/// The build under test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Build {
    pub version: String,
    /// Commit of the working tree, with `+` if the tree had changes; `None` outside of a tree.
    pub commit: Option<String>,
    /// `release` or `debug`.
    pub profile: String,
}

/// The host of the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Host {
    pub kernel: String,
    pub cpu: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    /// Type of the file system that holds the volumes, and the device below.
    pub filesystem: String,
    pub device: String,
    /// Other facts: scheduler, virtualisation, state of io_uring, memlock.
    pub facts: BTreeMap<String, String>,
}

/// Start, duration and options of the run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    /// RFC 3339, UTC.
    pub started_at: String,
    pub seconds: f64,
    pub command: Vec<String>,
    pub quick: bool,
    pub trials: u32,
    pub seed: u64,
    /// False if the run was interrupted.
    pub complete: bool,
}

/// A program that is compared.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Program {
    pub name: String,
    /// The first line of its `--version`; `None` if it is not installed.
    pub version: Option<String>,
    pub path: Option<String>,
}

/// Results of one scenario.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ScenarioResult {
    /// Stable: `compare` matches scenarios by name.
    pub name: String,
    /// One sentence.
    pub about: String,
    pub metric: Metric,
    /// Bytes of the volume, holes included, and of the data in it.
    pub volume_bytes: u64,
    pub data_bytes: u64,
    /// Block sizes, depths, fill, delays: everything that distinguishes the scenario.
    pub parameters: BTreeMap<String, String>,
    /// The axis of the series, if the targets are steps of series; drawn as lines.
    #[serde(default)]
    pub axis: Option<Axis>,
    pub targets: Vec<TargetResult>,
    /// Goals of the project for this scenario.
    pub goals: Vec<Goal>,
    #[serde(rename = "doubts")]
    pub warnings: Vec<Warning>,
}

/// Meaning of a trial's `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Volume bytes per wall second; more is better.
    BytesPerSecond,
    /// Wall seconds; less is better.
    Seconds,
    /// CPU seconds per GiB of data; less is better.
    CpuSecondsPerGib,
    /// Microseconds of latency; less is better.
    Microseconds,
    /// Bytes; less is better.
    Bytes,
}

/// Kind of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The engine as a library.
    Engine,
    /// The `blockhaul` command.
    Command,
    /// Another program.
    Rival,
    /// A limit of the device or of io_uring: fio, the bare ring loop.
    Limit,
    /// A program that does nothing: the cost of the harness itself.
    Null,
}

/// Results of one target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TargetResult {
    /// Stable within the scenario.
    pub name: String,
    pub kind: Kind,
    /// Step of its series; `None` unless the scenario has an axis.
    #[serde(default)]
    pub step: Option<Step>,
    /// The command line, or the engine's settings.
    pub command: String,
    pub outcome: Outcome,
    /// Trials that count, in the order in which they ran.
    pub trials: Vec<Trial>,
    /// Of the trials' values; `None` unless `outcome` is `ran`.
    pub summary: Option<Summary>,
    /// By operation: `read`, `write`, `flush`, `cancel`, `foreground`.
    pub latency: BTreeMap<String, Latency>,
    /// Throughput over time of the median trial, where it could be sampled.
    pub timeline: Vec<ThroughputPoint>,
    /// Window of the engine against foreground latency, where it was sampled.
    pub window: Vec<WindowPoint>,
    /// Medians of other numbers, by names that end in their unit.
    #[serde(default, rename = "figures")]
    pub other_metrics: BTreeMap<String, f64>,
    #[serde(rename = "doubts")]
    pub warnings: Vec<Warning>,
}

/// Quantity that grows from step to step of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Axis {
    /// With its unit, such as `parallel jobs` or `block size in KiB`.
    pub name: String,
}

/// Step of a target in its series; a series is one line of a chart.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// Such as `blockhaul` or `qemu-img`; the same at every step.
    pub series: String,
    /// In the unit of the axis.
    pub at: f64,
}

/// Outcome of the trials of a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "status", content = "why")]
pub(crate) enum Outcome {
    /// Every trial succeeded, with correct bytes where they can be verified.
    Ran,
    /// A program or facility is missing.
    Missing(String),
    /// A trial failed.
    Failed(String),
    /// A trial succeeded but wrote wrong bytes.
    WrongBytes(String),
}

/// One trial.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Trial {
    /// Position among all trials of the scenario; shows the interleaving.
    pub position: u32,
    /// Since the start of the run.
    pub started_seconds: f64,
    pub wall_seconds: f64,
    pub user_seconds: f64,
    pub system_seconds: f64,
    /// CPU seconds of kernel workers meanwhile: an estimate, because other processes use them as well.
    pub kernel_worker_seconds: f64,
    pub peak_rss_bytes: Option<u64>,
    pub system_calls: Option<u64>,
    /// Volume bytes copied or skipped.
    pub bytes: u64,
    /// In the unit of the scenario's metric.
    pub value: f64,
}

/// A summary of samples.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Summary {
    pub count: u32,
    pub median: f64,
    /// Median absolute deviation from the median.
    pub spread: f64,
    pub min: f64,
    pub max: f64,
}

/// A latency distribution, in microseconds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub count: u64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
    /// The `.hgrm` file beside `results.json` with the whole distribution; `None` if only the percentiles are known.
    pub file: Option<String>,
    /// Points of the distribution for charts, by rising quantile; empty if only the percentiles are known.
    #[serde(default)]
    pub curve: Vec<Quantile>,
}

/// A point of a latency distribution.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Quantile {
    /// 0 to 1.
    pub quantile: f64,
    pub microseconds: f64,
}

/// Throughput at a moment of a trial.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct ThroughputPoint {
    /// Since the start of the trial.
    pub seconds: f64,
    pub bytes_per_second: f64,
}

/// The window and the foreground latency at a moment of a trial.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct WindowPoint {
    /// Since the start of the trial.
    pub seconds: f64,
    pub window_bytes: u64,
    pub foreground_us: f64,
}

/// A goal of the project and its measured value.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Goal {
    /// Stable, such as `dense-direct/qemu-img`.
    pub name: String,
    /// One line that explains the goal, with its bound.
    pub about: String,
    /// Measured value in the unit of the bound; `None` if it could not be measured.
    pub measured: Option<f64>,
    pub bound: f64,
    pub sense: Sense,
    pub met: Option<bool>,
}

/// Side of the bound that meets the goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sense {
    AtLeast,
    AtMost,
}

/// A reason to distrust a number, with advice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Warning {
    /// Stable, such as `noisy`.
    pub kind: String,
    pub what: String,
    pub advice: String,
}

#[cfg(test)]
mod tests {
    use crate::sample_results;
    use serde_json::Value;
    use std::collections::BTreeSet;

    const PAGE: &str = include_str!("../../docs/bench.md");

    /// Maps whose keys are names of things, not fields.
    const MAPS: [&str; 4] = ["facts", "parameters", "latency", "figures"];

    fn fields(value: &Value, is_map: bool, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => object.iter().for_each(|(key, value)| {
                if !is_map {
                    found.insert(key.clone());
                }
                fields(value, MAPS.contains(&key.as_str()) && !is_map, found);
            }),
            Value::Array(list) => list.iter().for_each(|value| fields(value, false, found)),
            _ => {}
        }
    }

    #[test]
    fn the_page_names_every_field_and_no_other() {
        let mut written = BTreeSet::new();
        let results = serde_json::to_value(sample_results::results(1)).expect("it can be written");
        fields(&results, false, &mut written);
        let schema = PAGE.split("<!-- schema -->").nth(1).and_then(|rest| rest.split("<!-- end of schema -->").next());
        let rows = schema.expect("the page has a schema").lines().filter_map(|line| line.strip_prefix("| `"));
        let documented: BTreeSet<String> = rows.filter_map(|row| Some(row.split_once('`')?.0.to_owned())).collect();
        assert_eq!(documented, written, "docs/bench.md owns the schema: name every field there");
    }

    #[test]
    fn numbers_survive_json() {
        let results = sample_results::results(1);
        let text = serde_json::to_string_pretty(&results).expect("it can be written");
        let back: super::Results = serde_json::from_str(&text).expect("it can be read");
        assert!(
            serde_json::to_string_pretty(&back).expect("it can be written") == text,
            "reading and writing changed it"
        );
    }
}
