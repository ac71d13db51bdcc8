//! Checks that the numbers of a run do not contradict each other.
//!
//! Derived numbers (summaries, rates, percentiles, goals) must follow from the measured ones. Measured numbers must be
//! possible: trials follow one another, end before the run does, and use no more CPU than there is.

use crate::results::{
    Goal, Latency, Metric, Outcome, Results, SCHEMA, ScenarioResult, Sense, Summary, TargetResult, Trial,
};
use std::collections::BTreeSet;

/// Equal numbers may differ by this share, because JSON rounds them.
const ROUNDING: f64 = 1e-6;

/// Tolerance in seconds: the clocks of a trial and of the run are read one after the other.
const CLOCKS_SECONDS: f64 = 0.01;

/// Tolerance in seconds: CPU time is counted in ticks per thread. Programs that time themselves, such as fio, also use CPU
/// outside of the time they report.
const TICKS_SECONDS: f64 = 1.0;

impl Results {
    /// Returns a line for each inconsistency; empty if the results are consistent.
    pub(crate) fn inconsistencies(&self) -> Vec<String> {
        let mut found = Inconsistencies::default();
        found.unless(self.schema == SCHEMA, || format!("schema is {}, not {SCHEMA}", self.schema));
        found.unique("scenario", self.scenarios.iter().map(|scenario| scenario.name.as_str()));
        for scenario in &self.scenarios {
            found.within(&scenario.name, |found| check_scenario(scenario, self, found));
        }
        found.lines
    }
}

/// Collects lines, each with the scenario and target it is about.
#[derive(Default)]
struct Inconsistencies {
    place: String,
    lines: Vec<String>,
}

impl Inconsistencies {
    fn unless(&mut self, holds: bool, line: impl FnOnce() -> String) {
        if !holds {
            let line = line();
            self.lines.push(if self.place.is_empty() { line } else { format!("{}: {line}", self.place) });
        }
    }

    fn within(&mut self, name: &str, look: impl FnOnce(&mut Self)) {
        let outside = self.place.clone();
        self.place = if outside.is_empty() { name.to_owned() } else { format!("{outside}/{name}") };
        look(self);
        self.place = outside;
    }

    fn unique<'a>(&mut self, noun: &str, names: impl Iterator<Item = &'a str>) {
        let mut seen = BTreeSet::new();
        names.for_each(|name| self.unless(seen.insert(name), || format!("two {noun}s are called '{name}'")));
    }
}

fn check_scenario(scenario: &ScenarioResult, results: &Results, found: &mut Inconsistencies) {
    let (data, volume) = (scenario.data_bytes, scenario.volume_bytes);
    found.unless(data <= volume, || format!("{data} bytes of data in a volume of {volume}"));
    found.unique("target", scenario.targets.iter().map(|target| target.name.as_str()));
    for target in &scenario.targets {
        found.within(&target.name, |found| {
            check_target(target, found);
            target.trials.iter().for_each(|trial| check_trial(trial, scenario, results, found));
        });
    }
    check_order(scenario, found);
    scenario.goals.iter().for_each(|goal| check_goal(goal, found));
}

fn check_target(target: &TargetResult, found: &mut Inconsistencies) {
    let expected = if target.outcome == Outcome::Ran { Summary::of(&target.values()) } else { None };
    found.unless(target.outcome != Outcome::Ran || expected.is_some(), || "it ran, but without a trial".to_owned());
    let same = match (target.summary, expected) {
        (None, None) => true,
        (Some(a), Some(b)) => {
            a.count == b.count
                && [(a.median, b.median), (a.min, b.min), (a.max, b.max)].iter().all(|(a, b)| close(*a, *b))
                && (a.spread - b.spread).abs() <= ROUNDING * b.median.abs()
        }
        _ => false,
    };
    found.unless(same, || format!("its summary is {:?}, its trials say {expected:?}", target.summary));
    target.latency.iter().for_each(|(operation, latency)| check_latency(operation, latency, found));
    let longest = target.trials.iter().map(|trial| trial.wall_seconds).fold(0.0, f64::max);
    check_moments("timeline", target.timeline.iter().map(|point| (point.seconds, point.bytes_per_second)), found);
    check_moments("window", target.window.iter().map(|point| (point.seconds, point.foreground_us)), found);
    let end = target.timeline.last().map_or(0.0, |point| point.seconds);
    found.unless(end <= longest + 1.0, || format!("its timeline goes on to {end} s, its longest trial to {longest} s"));
}

fn check_trial(trial: &Trial, scenario: &ScenarioResult, results: &Results, found: &mut Inconsistencies) {
    let at = trial.position;
    let times = [trial.wall_seconds, trial.user_seconds, trial.system_seconds, trial.kernel_worker_seconds];
    let possible = times.iter().all(|seconds| seconds.is_finite() && *seconds >= 0.0);
    found.unless(possible && trial.value.is_finite(), || format!("trial {at} has impossible times or value"));
    let cpu = trial.user_seconds + trial.system_seconds;
    let most = trial.wall_seconds * f64::from(results.host.cpus) * 1.05 + TICKS_SECONDS;
    found.unless(cpu <= most, || format!("trial {at} used {cpu} s of CPU where {most} s were to be had"));
    let end = trial.started_seconds + trial.wall_seconds;
    let run = results.run.seconds;
    found.unless(end <= run + CLOCKS_SECONDS, || format!("trial {at} ended at {end} s, the run at {run} s"));
    if let Some(expected) = expected_value(trial, scenario) {
        found.unless(close(trial.value, expected), || {
            format!("trial {at} has the value {}, its bytes and seconds say {expected}", trial.value)
        });
    }
}

/// Returns the value that follows from the other numbers of the trial, if the metric allows it.
fn expected_value(trial: &Trial, scenario: &ScenarioResult) -> Option<f64> {
    match scenario.metric {
        Metric::BytesPerSecond => Some(trial.bytes as f64 / trial.wall_seconds),
        Metric::CpuSecondsPerGib => trial.cpu_seconds_per_gib(scenario),
        // Only part of a trial may count, such as the time from a signal to the end.
        Metric::Seconds | Metric::Microseconds | Metric::Bytes => None,
    }
}

/// Checks that no two trials ran at the same time.
fn check_order(scenario: &ScenarioResult, found: &mut Inconsistencies) {
    let mut trials: Vec<&Trial> = scenario.targets.iter().flat_map(|target| &target.trials).collect();
    trials.sort_by_key(|trial| trial.position);
    for pair in trials.windows(2) {
        let (before, after) = (pair[0], pair[1]);
        found.unless(before.position < after.position, || format!("two trials have position {}", after.position));
        let end = before.started_seconds + before.wall_seconds;
        found.unless(end <= after.started_seconds + CLOCKS_SECONDS, || {
            format!("trial {} started before trial {} had ended", after.position, before.position)
        });
    }
}

fn check_latency(operation: &str, latency: &Latency, found: &mut Inconsistencies) {
    let rising = [latency.p50, latency.p90, latency.p99, latency.max];
    found.unless(latency.count > 0 && rising.is_sorted(), || format!("{operation} latency does not rise: {rising:?}"));
    let curve = &latency.curve;
    let curve_rises = curve.is_sorted_by(|a, b| a.quantile <= b.quantile && a.microseconds <= b.microseconds);
    found.unless(curve_rises, || format!("the curve of {operation} latency does not rise"));
}

fn check_moments(name: &str, moments: impl Iterator<Item = (f64, f64)>, found: &mut Inconsistencies) {
    let moments: Vec<(f64, f64)> = moments.collect();
    let forward =
        moments.is_sorted_by(|a, b| a.0 <= b.0) && moments.iter().all(|(at, value)| *at >= 0.0 && *value >= 0.0);
    found.unless(forward, || format!("its {name} goes back in time or below zero"));
}

fn check_goal(goal: &Goal, found: &mut Inconsistencies) {
    let met = goal.measured.map(|measured| match goal.sense {
        Sense::AtLeast => measured >= goal.bound,
        Sense::AtMost => measured <= goal.bound,
    });
    found.unless(goal.met == met, || format!("goal {} says met: {:?}, its numbers {met:?}", goal.name, goal.met));
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= ROUNDING * b.abs()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_results;

    #[test]
    fn a_run_that_adds_up_has_no_findings() {
        assert_eq!(sample_results::results(1).inconsistencies(), Vec::<String>::new());
    }

    #[test]
    fn numbers_survive_json() {
        let results = sample_results::results(1);
        let text = serde_json::to_string_pretty(&results).expect("it can be written");
        let back: Results = serde_json::from_str(&text).expect("it can be read");
        assert_eq!(back.inconsistencies(), Vec::<String>::new());
        let again = serde_json::to_string_pretty(&back).expect("it can be written");
        assert!(again == text, "reading and writing changed something");
    }

    /// Each change makes the results inconsistent and must be found.
    #[test]
    fn every_contradiction_is_found() {
        type Change = fn(&mut Results);
        let changes: [(&str, Change); 16] = [
            ("schema is 0", |run| run.schema = 0),
            ("two scenarios", |run| run.scenarios[1].name = "dense-direct".into()),
            ("two targets", |run| run.scenarios[0].targets[1].name = "blockhaul".into()),
            ("of data in a volume", |run| run.scenarios[0].data_bytes += 1),
            ("without a trial", |run| run.scenarios[0].targets[0].trials.clear()),
            ("its summary is", |run| run.scenarios[0].targets[0].summary = None),
            ("its trials say None", |run| run.scenarios[0].targets[2].outcome = Outcome::Failed("exit 1".into())),
            ("its bytes and seconds say", |run| run.scenarios[0].targets[0].trials[3].bytes /= 2),
            ("of CPU where", |run| run.scenarios[0].targets[0].trials[0].user_seconds = 1e6),
            ("impossible times", |run| run.scenarios[0].targets[0].trials[0].system_seconds = -1.0),
            ("the run at", |run| run.run.seconds = 10.0),
            ("have position", |run| run.scenarios[0].targets[0].trials[0].position = 1),
            ("started before trial", |run| run.scenarios[0].targets[1].trials[0].started_seconds -= 1.0),
            ("does not rise", |run| {
                run.scenarios[5].targets[0].latency.get_mut("cancel").expect("it is there").p90 = 0.0
            }),
            ("goes back in time", |run| run.scenarios[0].targets[0].timeline.reverse()),
            ("says met", |run| run.scenarios[0].goals[0].met = Some(false)),
        ];
        for (expected, change) in changes {
            let mut run = sample_results::results(1);
            change(&mut run);
            let found = run.inconsistencies();
            assert!(found.iter().any(|line| line.contains(expected)), "'{expected}' was not found, but {found:?}");
        }
    }
}
