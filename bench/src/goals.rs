//! Defines the goals of the project for speed and size, as formulas over a run; `--check` enforces them.
//!
//! A goal that could not be measured is not met: a missing rival is no win. Ratios above 1 mean that ours is faster.
//! CPU time here is that of processes; the time of kernel threads is an estimate, and shared with others.

use crate::results::{Goal, Metric, Outcome, Results, ScenarioResult, Sense, TargetResult, Trial};
use crate::scale::{GIB, MIB};
use crate::stats;

/// Definition of a goal.
struct GoalDefinition {
    /// Name of the scenario, a slash, and a word for the goal.
    name: &'static str,
    about: &'static str,
    sense: Sense,
    bound: f64,
    measure: fn(&ScenarioResult) -> Option<f64>,
}

/// All goals, in the order of the scenarios.
const GOALS: [GoalDefinition; 39] = [
    at_least("dense-direct/qemu-img", "at least 1.3x as fast as qemu-img", 1.3, |it| {
        faster(it, "blockhaul", "qemu-img")
    }),
    at_least("dense-direct/nbdcopy", "at least 1.3x as fast as nbdcopy", 1.3, |it| faster(it, "blockhaul", "nbdcopy")),
    at_least("dense-direct/dd", "at least 1.3x as fast as dd", 1.3, |it| faster(it, "blockhaul", "dd")),
    at_least("dense-direct/cp", "at least 4x as fast as cp and sync", 4.0, |it| faster(it, "blockhaul", "cp")),
    at_least("dense-direct/fio", "at least 0.95 of the rate of fio at its best", 0.95, |it| {
        faster(it, "engine", "fio")
    }),
    at_least("dense-direct/threads", "without io_uring at least 0.7 of the rate with it", 0.7, |it| {
        faster(it, "engine-threads", "engine=")
    }),
    at_most("dense-direct/memory", "at most 40 MiB of memory", 40.0, |it| rss_mib(it, "blockhaul")),
    at_most("dense-direct/calls", "at most 1 system call per MiB", 1.0, calls_per_mib),
    at_least("tmpfs/cp", "at least as fast as cp in memory", 1.0, |it| faster(it, "blockhaul", "cp")),
    at_least("sparse/qemu-img", "a sparse file at least 1.2x as fast as qemu-img", 1.2, |it| {
        faster(it, "blockhaul", "qemu-img")
    }),
    at_most("sparse/memory", "at most 40 MiB of memory for a sparse file", 40.0, |it| rss_mib(it, "blockhaul")),
    at_most("empty/seconds", "a huge empty file in less than 1 s", 1.0, |it| median(it, "blockhaul")),
    at_most("empty/memory", "at most 40 MiB of memory for a huge file", 40.0, |it| rss_mib(it, "blockhaul")),
    at_most("reflink/cp", "sharing extents takes at most 20 ms more than cp takes", 0.02, |it| {
        Some(median(it, "blockhaul")? - median(it, "cp")?)
    }),
    at_least("nbd-unix/rivals", "export to export at least 1.1x as fast as the faster rival", 1.1, |it| {
        faster(it, "blockhaul", "")
    }),
    at_most("nbd-unix/memory", "export to export at most 48 MiB of memory", 48.0, |it| rss_mib(it, "blockhaul")),
    at_most("nbd-unix/cpu", "export to export at most the CPU of nbdcopy", 1.0, |it| {
        cpu_ratio(it, "blockhaul", "nbdcopy")
    }),
    at_most("nbd-unix/cpu-no-digest", "without digests at most 0.9 of the CPU of nbdcopy", 0.9, |it| {
        cpu_ratio(it, "blockhaul-no-digest", "nbdcopy")
    }),
    at_least("nbd-tcp-in/rivals", "TCP to file at least 1.2x as fast as the faster rival", 1.2, |it| {
        faster(it, "blockhaul", "")
    }),
    at_least("nbd-tcp-out/rivals", "file to TCP at least 1.2x as fast as the faster rival", 1.2, |it| {
        faster(it, "blockhaul", "")
    }),
    at_least("nbd-sparse/nbdcopy", "a mostly empty export at least 1.2x as fast as nbdcopy", 1.2, |it| {
        faster(it, "blockhaul", "nbdcopy")
    }),
    at_least("nbd-delay/nbdcopy", "on a long path at least as fast as nbdcopy tuned by hand", 1.0, |it| {
        faster(it, "blockhaul", "nbdcopy")
    }),
    at_most("cancel/engine", "the p90 of stopping the engine at most 100 ms", 100.0, |it| p90_ms(it, "engine")),
    at_most("cancel/blockhaul", "the p90 of stopping the command at most 100 ms", 100.0, |it| p90_ms(it, "blockhaul")),
    at_most(
        "resume/copied-again",
        "after a kill at most 256 MiB and the window, 16 MiB, are copied again",
        272.0,
        |it| Some(ran(it, "blockhaul")?.other_metrics.get("copied_again_bytes")? / MIB as f64),
    ),
    at_most("protection/engine", "latency of other readers at most 3x their latency alone", 3.0, |it| {
        foreground_ratio(it, "engine-protecting")
    }),
    at_most("protection/blockhaul", "latency of other readers at most 3x their latency alone", 3.0, |it| {
        foreground_ratio(it, "blockhaul-protecting")
    }),
    at_least("protection/rate", "a protecting copy keeps 0.7 of its rate", 0.7, |it| {
        let rate = |name| ran(it, name)?.other_metrics.get("copy_bytes_per_second").copied();
        Some(rate("engine-protecting")? / rate("engine")?)
    }),
    at_most("digest/engine", "at most 0.12 s of CPU per GiB", 0.12, |it| cpu_per_gib(it, "engine")),
    at_most("digest/engine-no-digest", "at most 0.05 s of CPU per GiB without digests", 0.05, |it| {
        cpu_per_gib(it, "engine-no-digest")
    }),
    at_most("digest/blockhaul", "the command at most 0.12 s of CPU per GiB", 0.12, |it| cpu_per_gib(it, "blockhaul")),
    at_most("digest/blockhaul-no-digest", "the command at most 0.05 s of CPU per GiB without digests", 0.05, |it| {
        cpu_per_gib(it, "blockhaul-no-digest")
    }),
    at_most("digest/bare-loop", "without digests at most 1.1x the CPU of a bare loop", 1.1, |it| {
        cpu_ratio(it, "engine-no-digest", "bare-loop")
    }),
    at_most("jobs/memory-1", "at most 40 MiB of memory for 1 job", 40.0, |it| rss_mib(it, "engine@1")),
    at_most("jobs/memory-4", "at most 40 MiB of memory for 4 jobs", 40.0, |it| rss_mib(it, "engine@4")),
    at_most("jobs/memory-16", "at most 40 MiB of memory for 16 jobs", 40.0, |it| rss_mib(it, "engine@16")),
    at_most("jobs/memory-64", "at most 40 MiB of memory for 64 jobs", 40.0, |it| rss_mib(it, "engine@64")),
    at_least("batch/qemu-img", "a batch at least 1.5x as fast as qemu-img for each volume", 1.5, |it| {
        faster(it, "blockhaul", "qemu-img")
    }),
    at_most("batch-members/memory", "at most 4 MiB more for 1,000 members than for 10", 4.0, |it| {
        Some(rss_mib(it, "many")? - rss_mib(it, "few")?)
    }),
];

const fn at_least(
    name: &'static str,
    about: &'static str,
    bound: f64,
    measure: fn(&ScenarioResult) -> Option<f64>,
) -> GoalDefinition {
    GoalDefinition { name, about, sense: Sense::AtLeast, bound, measure }
}

const fn at_most(
    name: &'static str,
    about: &'static str,
    bound: f64,
    measure: fn(&ScenarioResult) -> Option<f64>,
) -> GoalDefinition {
    GoalDefinition { name, about, sense: Sense::AtMost, bound, measure }
}

/// Evaluates the goals of a scenario.
pub(crate) fn goals(scenario: &ScenarioResult) -> Vec<Goal> {
    let about_it = |goal: &&GoalDefinition| goal.name.split_once('/').is_some_and(|(name, _)| name == scenario.name);
    GOALS.iter().filter(about_it).map(|goal| goal.evaluate(scenario)).collect()
}

/// Returns a line for each goal that was missed or not measured.
pub(crate) fn misses(results: &Results) -> Vec<String> {
    let goals = results.scenarios.iter().flat_map(|scenario| &scenario.goals);
    let line = |goal: &Goal| match goal.measured {
        Some(measured) => format!("missed: {}: {}: measured {measured:.3}", goal.name, goal.about),
        None => format!("not measured: {}: {}", goal.name, goal.about),
    };
    goals.filter(|goal| goal.met != Some(true)).map(line).collect()
}

impl GoalDefinition {
    fn evaluate(&self, scenario: &ScenarioResult) -> Goal {
        let measured = (self.measure)(scenario).filter(|value| value.is_finite());
        let met = measured.map(|measured| match self.sense {
            Sense::AtLeast => measured >= self.bound,
            Sense::AtMost => measured <= self.bound,
        });
        let (name, about) = (self.name.to_owned(), self.about.to_owned());
        Goal { name, about, measured, bound: self.bound, sense: self.sense, met }
    }
}

/// Returns the target of that name if all of its trials ended well.
fn ran<'a>(scenario: &'a ScenarioResult, name: &str) -> Option<&'a TargetResult> {
    scenario.targets.iter().find(|target| target.name == name && target.outcome == Outcome::Ran)
}

fn median(scenario: &ScenarioResult, name: &str) -> Option<f64> {
    Some(ran(scenario, name)?.summary?.median)
}

/// Returns how many times as fast ours is as the fastest of its rivals: the target `rivals` and its variants, only the
/// target itself if the name ends in `=`, or all rivals if the name is empty.
fn faster(scenario: &ScenarioResult, ours: &str, rivals: &str) -> Option<f64> {
    let is_meant = |target: &&TargetResult| match rivals.strip_suffix('=') {
        Some(name) => target.name == name,
        None if rivals.is_empty() => target.kind == crate::results::Kind::Rival,
        None => target.name == rivals || target.name.strip_prefix(rivals).is_some_and(|rest| rest.starts_with('-')),
    };
    let meant: Vec<&TargetResult> = scenario.targets.iter().filter(is_meant).collect();
    // A rival that failed may have been the fastest.
    let medians = meant.iter().map(|target| median(scenario, &target.name)).collect::<Option<Vec<f64>>>()?;
    let ours = median(scenario, ours)?;
    let ratios = medians.into_iter().map(|rival| match scenario.metric {
        Metric::BytesPerSecond => ours / rival,
        Metric::Seconds | Metric::CpuSecondsPerGib | Metric::Microseconds | Metric::Bytes => rival / ours,
    });
    ratios.min_by(f64::total_cmp)
}

/// Returns the median of a number over the trials of a target.
fn over_trials(scenario: &ScenarioResult, name: &str, of: impl Fn(&Trial) -> f64) -> Option<f64> {
    stats::median(&ran(scenario, name)?.trials.iter().map(of).collect::<Vec<f64>>())
}

fn cpu_seconds(scenario: &ScenarioResult, name: &str) -> Option<f64> {
    over_trials(scenario, name, |trial| trial.user_seconds + trial.system_seconds)
}

#[allow(clippy::cast_precision_loss, reason = "bytes of a volume")]
fn cpu_per_gib(scenario: &ScenarioResult, name: &str) -> Option<f64> {
    Some(cpu_seconds(scenario, name)? * GIB as f64 / scenario.data_bytes as f64)
}

fn cpu_ratio(scenario: &ScenarioResult, ours: &str, rival: &str) -> Option<f64> {
    Some(cpu_seconds(scenario, ours)? / cpu_seconds(scenario, rival)?)
}

/// Returns the largest peak of all trials.
#[allow(clippy::cast_precision_loss, reason = "bytes of memory")]
fn rss_mib(scenario: &ScenarioResult, name: &str) -> Option<f64> {
    let peaks = ran(scenario, name)?.trials.iter().map(|trial| trial.peak_rss_bytes).collect::<Option<Vec<u64>>>()?;
    peaks.into_iter().max().map(|bytes| bytes as f64 / MIB as f64)
}

#[allow(clippy::cast_precision_loss, reason = "bytes of a volume")]
fn calls_per_mib(scenario: &ScenarioResult) -> Option<f64> {
    let calls = ran(scenario, "engine")?.trials.iter().map(|trial| trial.system_calls.map(|calls| calls as f64));
    Some(stats::median(&calls.collect::<Option<Vec<f64>>>()?)? * MIB as f64 / scenario.volume_bytes as f64)
}

fn p90_ms(scenario: &ScenarioResult, name: &str) -> Option<f64> {
    let values: Vec<f64> = ran(scenario, name)?.trials.iter().map(|trial| trial.value).collect();
    stats::percentile(&values, 0.9).map(|us| us / 1e3)
}

/// Returns the latency of the foreground reader beside a copy, as a multiple of its latency alone.
fn foreground_ratio(scenario: &ScenarioResult, name: &str) -> Option<f64> {
    Some(median(scenario, name)? / median(scenario, "nobody-copies")?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{Kind, Summary};
    use std::collections::BTreeMap;

    fn target(name: &str, kind: Kind, value: f64) -> TargetResult {
        let trial = Trial {
            position: 0,
            started_seconds: 0.0,
            wall_seconds: 1.0,
            user_seconds: 0.1,
            system_seconds: 0.1,
            kernel_worker_seconds: 5.0,
            peak_rss_bytes: Some(30 << 20),
            system_calls: Some(8),
            bytes: 4 << 20,
            value,
        };
        TargetResult {
            name: name.to_owned(),
            kind,
            step: None,
            command: String::new(),
            outcome: Outcome::Ran,
            trials: vec![trial],
            summary: Summary::of(&[value]),
            latency: BTreeMap::new(),
            timeline: Vec::new(),
            window: Vec::new(),
            other_metrics: BTreeMap::new(),
            warnings: Vec::new(),
        }
    }

    fn scenario(name: &str, metric: Metric, targets: Vec<TargetResult>) -> ScenarioResult {
        ScenarioResult {
            name: name.to_owned(),
            about: String::new(),
            metric,
            volume_bytes: 4 << 20,
            data_bytes: 1 << 30,
            parameters: BTreeMap::new(),
            axis: None,
            targets,
            goals: Vec::new(),
            warnings: Vec::new(),
        }
    }

    fn goal(scenario: &ScenarioResult, name: &str) -> Goal {
        goals(scenario).into_iter().find(|goal| goal.name == name).unwrap()
    }

    #[test]
    fn every_goal_belongs_to_a_scenario_and_has_its_own_name() {
        let mut names: Vec<_> = GOALS.iter().map(|goal| goal.name).collect();
        for name in &names {
            let (scenario, _) = name.split_once('/').unwrap();
            assert!(crate::scenario::named(scenario).is_some(), "{name}");
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), GOALS.len());
    }

    #[test]
    fn a_goal_uses_the_fastest_variant_of_a_rival() {
        let targets = vec![
            target("blockhaul", Kind::Command, 200.0),
            target("qemu-img", Kind::Rival, 100.0),
            target("qemu-img-falloc", Kind::Rival, 160.0),
        ];
        let found = goal(&scenario("dense-direct", Metric::BytesPerSecond, targets.clone()), "dense-direct/qemu-img");
        assert_eq!((found.measured, found.met), (Some(1.25), Some(false)));
        let found = goal(&scenario("sparse", Metric::Seconds, targets), "sparse/qemu-img");
        assert_eq!((found.measured, found.met), (Some(0.5), Some(false)));
    }

    #[test]
    fn missing_or_wrong_targets_are_not_beaten() {
        let mut wrong = target("nbdcopy", Kind::Rival, 1.0);
        wrong.outcome = Outcome::WrongBytes("byte 7".to_owned());
        wrong.summary = None;
        let targets = vec![target("blockhaul", Kind::Command, 200.0), wrong];
        let scenario = scenario("dense-direct", Metric::BytesPerSecond, targets);
        for name in ["dense-direct/nbdcopy", "dense-direct/dd"] {
            let found = goal(&scenario, name);
            assert_eq!((found.measured, found.met), (None, None), "{name}");
        }
    }

    #[test]
    fn memory_calls_and_cpu_are_those_of_the_process() {
        let targets = vec![target("engine", Kind::Engine, 1.0), target("blockhaul", Kind::Command, 1.0)];
        let dense = scenario("dense-direct", Metric::BytesPerSecond, targets.clone());
        assert_eq!(goal(&dense, "dense-direct/memory").measured, Some(30.0));
        assert_eq!(goal(&dense, "dense-direct/calls").measured, Some(2.0));
        let digest = scenario("digest", Metric::CpuSecondsPerGib, targets);
        assert_eq!(goal(&digest, "digest/engine").measured, Some(0.2));
    }
}
