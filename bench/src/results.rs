//! What one run found: the content of `results.json`.
//!
//! Raw samples and host facts are kept with every number derived from them, so that a later run can be compared with
//! this one and a reader can disagree with the summary. `docs/bench.md` owns the schema; quantities carry their unit in
//! the name; a time is in seconds since the start of the run unless it says otherwise.

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
    /// Where it ran.
    pub host: Host,
    /// How it was asked to run.
    pub run: Run,
    /// Programs that it is compared with, the missing ones too.
    pub programs: Vec<Program>,
    /// In the order in which they ran.
    pub scenarios: Vec<ScenarioResult>,
    /// What makes the whole run less trustworthy.
    #[serde(rename = "doubts")]
    pub warnings: Vec<Warning>,
}

/// The build under test.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Build {
    pub version: String,
    /// Commit of the working tree, with `+` if it had changes; `None` outside of one.
    pub commit: Option<String>,
    /// `release` or `debug`.
    pub profile: String,
}

/// Where it ran.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Host {
    pub kernel: String,
    pub cpu: String,
    pub cpus: u32,
    pub memory_bytes: u64,
    /// Type of the file system that holds the volumes, and the device below.
    pub filesystem: String,
    pub device: String,
    /// Anything else worth a line: scheduler, virtualisation, io_uring's state, memlock.
    pub facts: BTreeMap<String, String>,
}

/// How it was asked to run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Run {
    /// RFC 3339, UTC.
    pub started_at: String,
    pub seconds: f64,
    pub command: Vec<String>,
    pub quick: bool,
    pub trials: u32,
    pub seed: u64,
    /// False if it was stopped before its end.
    pub complete: bool,
}

/// A program that it is compared with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Program {
    pub name: String,
    /// The first line of its `--version`; `None` if it is not installed.
    pub version: Option<String>,
    pub path: Option<String>,
}

/// One question, answered for each target.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ScenarioResult {
    /// Stable: comparisons of runs go by it.
    pub name: String,
    /// One sentence.
    pub about: String,
    pub metric: Metric,
    /// Bytes of the volume, holes included, and of the data in it.
    pub volume_bytes: u64,
    pub data_bytes: u64,
    /// Block sizes, depths, fill, delays: whatever distinguishes it.
    pub parameters: BTreeMap<String, String>,
    /// What grows from step to step, where the targets are steps of a series; drawn as a line.
    #[serde(default)]
    pub axis: Option<Axis>,
    pub targets: Vec<TargetResult>,
    /// What the project promised about it.
    pub goals: Vec<Goal>,
    #[serde(rename = "doubts")]
    pub warnings: Vec<Warning>,
}

/// What a trial's `value` is, and which way is better.
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

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    /// The engine, in this process.
    Engine,
    /// The `blockhaul` command.
    Command,
    /// Another program.
    Rival,
    /// What the device can do: fio, the bare ring loop.
    Limit,
    /// Does nothing: what the harness itself costs.
    Null,
}

/// One way of doing the scenario's work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TargetResult {
    /// Stable within the scenario.
    pub name: String,
    pub kind: Kind,
    /// Where it stands in its series; `None` unless the scenario has an axis.
    #[serde(default)]
    pub step: Option<Step>,
    /// The command line, or the engine's settings.
    pub command: String,
    pub outcome: Outcome,
    /// The counted ones only, in the order in which they ran.
    pub trials: Vec<Trial>,
    /// Of the trials' values; `None` unless `outcome` is `ran`.
    pub summary: Option<Summary>,
    /// By operation: `read`, `write`, `flush`, `cancel`, `foreground`.
    pub latency: BTreeMap<String, Latency>,
    /// Throughput over time of its median trial, where it could be seen.
    pub timeline: Vec<ThroughputPoint>,
    /// Window of the engine against the latency of others, where it was watched.
    pub window: Vec<WindowPoint>,
    /// Other numbers that were seen, by name with the unit in it: medians over the trials.
    #[serde(default, rename = "figures")]
    pub other_metrics: BTreeMap<String, f64>,
    #[serde(rename = "doubts")]
    pub warnings: Vec<Warning>,
}

/// What grows from step to step of a series.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Axis {
    /// With its unit, such as `parallel jobs` or `block size in KiB`.
    pub name: String,
}

/// The place of a target in a series: one line of a chart has one name.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// Such as `blockhaul` or `qemu-img`: the same at every step.
    pub series: String,
    /// In the unit of the axis.
    pub at: f64,
}

/// How it went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "status", content = "why")]
pub(crate) enum Outcome {
    /// Every trial ended well, with equal bytes where they can be compared.
    Ran,
    /// The program or facility is not here.
    Missing(String),
    /// A trial failed.
    Failed(String),
    /// A trial ended well over wrong bytes.
    WrongBytes(String),
}

/// One measured repetition.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Trial {
    /// Position among all trials of the scenario: shows the interleaving.
    pub position: u32,
    /// Since the start of the run.
    pub started_seconds: f64,
    pub wall_seconds: f64,
    pub user_seconds: f64,
    pub system_seconds: f64,
    /// Of kernel workers, while it ran: an estimate, since others use them too.
    pub kernel_worker_seconds: f64,
    pub peak_rss_bytes: Option<u64>,
    pub system_calls: Option<u64>,
    /// Volume bytes that it moved or passed over.
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
    /// The `.hgrm` file beside `results.json` that holds all of it; `None` where only the percentiles are known.
    pub file: Option<String>,
    /// Enough points of the distribution to draw it, by rising quantile; empty where only the percentiles are known.
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

/// The window and what others felt at a moment of a trial.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct WindowPoint {
    /// Since the start of the trial.
    pub seconds: f64,
    pub window_bytes: u64,
    pub foreground_us: f64,
}

/// Something that was promised, and what was found.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Goal {
    /// Stable, such as `dense-direct/qemu-img`.
    pub name: String,
    /// One line that a stranger understands, with the bound in it.
    pub about: String,
    /// What was found, in the unit of the bound; `None` if it could not be measured.
    pub measured: Option<f64>,
    pub bound: f64,
    pub sense: Sense,
    pub met: Option<bool>,
}

/// Which side of the bound is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sense {
    AtLeast,
    AtMost,
}

/// A reason to distrust a number, and what to do about it.
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

    /// Keys of these are names of things, not fields.
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
}
