//! Runs the trials of a scenario and decides which of them count.
//!
//! Trials are interleaved (A B C A B C), so that a change of the machine affects all targets alike. Each trial is
//! reset, run and verified. A target that fails or writes wrong bytes runs no further trials and gets no summary: a
//! target cannot win by skipping the work.

use crate::histogram;
use crate::interrupt::Stopped;
use crate::results::{Kind, Metric, Outcome, Summary, TargetResult, Trial};
use crate::scale::GIB;
use crate::target::{Target, TrialWork};
use crate::trial_executor::{Failure, Measurement, TrialExecutor};
use crate::warning;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Instant;

/// Parameters of the trials of a scenario.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrialSettings {
    pub metric: Metric,
    /// Number of trials of each target.
    pub trials: u32,
    /// Whether an additional trial of each target counts system calls.
    pub count_calls: bool,
    /// Bytes of data in the volumes; CPU time is divided by this.
    pub data_bytes: u64,
    /// Start of the run.
    pub run_started: Instant,
}

/// The result of a target, with its whole latency distributions.
#[derive(Clone, Debug)]
pub(crate) struct TargetRun {
    pub result: TargetResult,
    pub latency: BTreeMap<String, Histogram<u64>>,
}

/// Returns the order of trials: index of the target and number of its trial, both from 0.
pub(crate) fn order(targets: usize, trials: u32) -> impl Iterator<Item = (usize, u32)> {
    (0..trials).flat_map(move |trial| (0..targets).map(move |target| (target, trial)))
}

/// Runs the trials of all targets. Calls `on_trial` before each of them.
///
/// # Errors
/// The run was interrupted; the results so far come with the error.
pub(crate) fn run_trials(
    targets: &[Target],
    settings: TrialSettings,
    executor: &mut dyn TrialExecutor,
    on_trial: &mut dyn FnMut(&Target, u32),
) -> Result<Vec<TargetRun>, (Vec<TargetRun>, Stopped)> {
    let mut records: Vec<TargetRecord> = targets.iter().map(TargetRecord::new).collect();
    let mut position = 0;
    for (at, number) in order(targets.len(), settings.trials) {
        let (target, record) = (&targets[at], &mut records[at]);
        if record.outcome != Outcome::Ran {
            continue;
        }
        on_trial(target, number);
        let started_seconds = settings.run_started.elapsed().as_secs_f64();
        match run_trial(target, executor) {
            Ok(measured) => record.trials.push((settings.trial(&measured, position, started_seconds), measured)),
            Err(Failure::Stopped) => return Err((finish(targets, records), Stopped)),
            Err(failure) => record.fail(failure),
        }
        position += 1;
    }
    if settings.count_calls && count_calls(targets, &mut records, executor).is_err() {
        return Err((finish(targets, records), Stopped));
    }
    Ok(finish(targets, records))
}

fn run_trial(target: &Target, executor: &mut dyn TrialExecutor) -> Result<Measurement, Failure> {
    executor.reset(target)?;
    let measured = executor.run(target)?;
    executor.verify(target)?;
    Ok(measured)
}

/// Counts system calls in an additional trial of each target that does not report them, after all timed trials.
fn count_calls(
    targets: &[Target],
    records: &mut [TargetRecord],
    executor: &mut dyn TrialExecutor,
) -> Result<(), Stopped> {
    for (target, record) in targets.iter().zip(records) {
        let known = record.trials.iter().any(|(trial, _)| trial.system_calls.is_some());
        if record.outcome != Outcome::Ran || known || !matches!(target.kind, Kind::Rival | Kind::Command) {
            continue;
        }
        match executor.reset(target).and_then(|()| executor.count_calls(target)) {
            Ok(calls) => record.trials.iter_mut().for_each(|(trial, _)| trial.system_calls = calls),
            Err(Failure::Stopped) => return Err(Stopped),
            // The timed trials succeeded without strace: only this number is missing.
            Err(failure) => {
                record.warnings.push(warning::WarningKind::NotMeasured(format!("system calls ({failure})")).warning())
            }
        }
    }
    Ok(())
}

fn finish(targets: &[Target], records: Vec<TargetRecord>) -> Vec<TargetRun> {
    targets.iter().zip(records).map(|(target, record)| record.finish(target)).collect()
}

impl TrialSettings {
    fn trial(&self, measured: &Measurement, position: u32, started_seconds: f64) -> Trial {
        #[allow(clippy::cast_precision_loss, reason = "rates and shares for people")]
        let value = match self.metric {
            Metric::BytesPerSecond => measured.bytes as f64 / measured.wall_seconds,
            Metric::Seconds => measured.wall_seconds,
            Metric::CpuSecondsPerGib => {
                let seconds = measured.user_seconds + measured.system_seconds + measured.kernel_worker_seconds;
                seconds * GIB as f64 / self.data_bytes.max(1) as f64
            }
            Metric::Microseconds | Metric::Bytes => 0.0,
        };
        Trial {
            position,
            started_seconds,
            wall_seconds: measured.wall_seconds,
            user_seconds: measured.user_seconds,
            system_seconds: measured.system_seconds,
            kernel_worker_seconds: measured.kernel_worker_seconds,
            peak_rss_bytes: measured.peak_rss_bytes,
            system_calls: measured.system_calls,
            bytes: measured.bytes,
            value: measured.value.unwrap_or(value),
        }
    }
}

/// Trials and outcome of a target so far.
struct TargetRecord {
    outcome: Outcome,
    trials: Vec<(Trial, Measurement)>,
    warnings: Vec<crate::results::Warning>,
}

impl TargetRecord {
    fn new(target: &Target) -> Self {
        let outcome = match &target.work {
            TrialWork::Missing(why) => Outcome::Missing(why.clone()),
            TrialWork::Commands { .. } => Outcome::Ran,
        };
        let mut warnings = target.warnings.clone();
        if let Outcome::Missing(why) = &outcome {
            warnings.push(warning::WarningKind::Missing(target.name.clone(), why.clone()).warning());
        }
        Self { outcome, trials: Vec::new(), warnings }
    }

    fn fail(&mut self, failure: Failure) {
        self.outcome = match failure {
            Failure::WrongBytes(what) => Outcome::WrongBytes(what),
            Failure::Failed(what) => Outcome::Failed(what),
            Failure::Stopped => Outcome::Failed("the run was interrupted".to_owned()),
        };
    }

    fn finish(self, target: &Target) -> TargetRun {
        let values: Vec<f64> = self.trials.iter().map(|(trial, _)| trial.value).collect();
        let summary = if self.outcome == Outcome::Ran { Summary::of(&values) } else { None };
        let outcome = match (self.outcome, summary) {
            (Outcome::Ran, None) => Outcome::Failed("interrupted before the first trial".to_owned()),
            (outcome, _) => outcome,
        };
        let typical = typical(&self.trials, summary);
        let (timeline, window) = typical.map(|it| (it.timeline.clone(), it.window.clone())).unwrap_or_default();
        let latency = latencies(&self.trials);
        let mut result = TargetResult {
            name: target.name.clone(),
            kind: target.kind,
            step: target.step.clone(),
            command: target.command(),
            outcome,
            other_metrics: other_metrics(&self.trials),
            trials: self.trials.into_iter().map(|(trial, _)| trial).collect(),
            summary,
            latency: BTreeMap::new(),
            timeline,
            window,
            warnings: self.warnings,
        };
        result.warnings.extend(warning::of_target(&result));
        TargetRun { result, latency }
    }
}

/// Returns the trial whose value is nearest to the median.
fn typical(trials: &[(Trial, Measurement)], summary: Option<Summary>) -> Option<&Measurement> {
    let median = summary?.median;
    let distance = |(trial, _): &&(Trial, Measurement)| (trial.value - median).abs();
    trials.iter().min_by(|one, other| distance(one).total_cmp(&distance(other))).map(|(_, measured)| measured)
}

/// Returns the median over the trials for each number that any of them has.
fn other_metrics(trials: &[(Trial, Measurement)]) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
    for (name, value) in trials.iter().flat_map(|(_, measured)| &measured.other_metrics) {
        all.entry(name).or_default().push(*value);
    }
    all.into_iter().filter_map(|(name, values)| Some((name.clone(), crate::stats::median(&values)?))).collect()
}

fn latencies(trials: &[(Trial, Measurement)]) -> BTreeMap<String, Histogram<u64>> {
    let mut all: BTreeMap<&String, Vec<&Histogram<u64>>> = BTreeMap::new();
    for (name, record) in trials.iter().flat_map(|(_, measured)| &measured.latency) {
        all.entry(name).or_default().push(record);
    }
    all.into_iter().map(|(name, records)| (name.clone(), histogram::merge(records))).collect()
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopped"),
            Self::Failed(what) | Self::WrongBytes(what) => f.write_str(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::{Invocation, OutputFormat};

    fn target(name: &str) -> Target {
        let work = TrialWork::Commands { commands: vec![Invocation::new([name])], format: OutputFormat::Ignored };
        Target::new(name, Kind::Rival, work, &[])
    }

    /// Records its calls and fails according to a script of `(step, target, nth time) -> failure`.
    struct Mock<F: Fn(&str, &str, usize) -> Option<Failure>> {
        calls: Vec<String>,
        script: F,
    }

    impl<F: Fn(&str, &str, usize) -> Option<Failure>> Mock<F> {
        fn new(script: F) -> Self {
            Self { calls: Vec::new(), script }
        }

        fn answer(&mut self, step: &str, target: &Target) -> Result<usize, Failure> {
            let entry = format!("{step} {}", target.name);
            self.calls.push(entry.clone());
            let times = self.calls.iter().filter(|call| **call == entry).count();
            (self.script)(step, &target.name, times).map_or(Ok(times), Err)
        }

        fn performed(&self) -> Vec<&str> {
            self.calls.iter().filter_map(|call| call.strip_prefix("run ")).collect()
        }
    }

    impl<F: Fn(&str, &str, usize) -> Option<Failure>> TrialExecutor for Mock<F> {
        fn reset(&mut self, target: &Target) -> Result<(), Failure> {
            self.answer("reset", target).map(drop)
        }

        #[allow(clippy::cast_precision_loss, reason = "small numbers")]
        fn run(&mut self, target: &Target) -> Result<Measurement, Failure> {
            let times = self.answer("run", target)?;
            let mut read = histogram::empty();
            read.saturating_record(times as u64 * 100);
            Ok(Measurement {
                wall_seconds: times as f64,
                bytes: 6,
                latency: BTreeMap::from([("read".to_owned(), read)]),
                other_metrics: BTreeMap::from([("things".to_owned(), times as f64)]),
                timeline: vec![crate::results::ThroughputPoint { seconds: times as f64, bytes_per_second: 1.0 }],
                ..Measurement::default()
            })
        }

        fn verify(&mut self, target: &Target) -> Result<(), Failure> {
            self.answer("verify", target).map(drop)
        }

        fn count_calls(&mut self, target: &Target) -> Result<Option<u64>, Failure> {
            self.answer("count", target).map(|_| Some(77))
        }
    }

    fn settings(trials: u32) -> TrialSettings {
        TrialSettings {
            metric: Metric::BytesPerSecond,
            trials,
            count_calls: true,
            data_bytes: 6,
            run_started: Instant::now(),
        }
    }

    fn run<F: Fn(&str, &str, usize) -> Option<Failure>>(mock: &mut Mock<F>, trials: u32) -> Vec<TargetResult> {
        let targets = ["a", "b", "c"].map(target);
        let runs = run_trials(&targets, settings(trials), mock, &mut |_, _| ());
        let runs = runs.unwrap_or_else(|(runs, Stopped)| runs);
        runs.into_iter().map(|run| run.result).collect()
    }

    #[test]
    fn trials_are_interleaved_and_each_is_reset_run_and_verified() {
        let mut mock = Mock::new(|_, _, _| None);
        let targets = run(&mut mock, 2);
        assert_eq!(mock.performed(), ["a", "b", "c", "a", "b", "c"]);
        assert_eq!(mock.calls[..6], ["reset a", "run a", "verify a", "reset b", "run b", "verify b"]);
        assert_eq!(mock.calls[18..], ["reset a", "count a", "reset b", "count b", "reset c", "count c"]);
        let positions: Vec<Vec<u32>> =
            targets.iter().map(|result| result.trials.iter().map(|trial| trial.position).collect()).collect();
        assert_eq!(positions, [[0, 3], [1, 4], [2, 5]]);
        assert!(targets.iter().all(|result| result.trials.iter().all(|trial| trial.system_calls == Some(77))));
    }

    #[test]
    fn values_are_rates_summaries_medians_and_shapes_those_of_the_typical_trial() {
        let targets = [target("a")];
        let mut mock = Mock::new(|_, _, _| None);
        let runs = run_trials(&targets, settings(3), &mut mock, &mut |_, _| ()).map_err(drop).unwrap();
        let TargetRun { result, latency } = &runs[0];
        assert_eq!(result.trials.iter().map(|trial| trial.value).collect::<Vec<_>>(), [6.0, 3.0, 2.0]);
        assert_eq!(result.summary.unwrap().median, 3.0);
        assert_eq!((result.other_metrics["things"], result.timeline[0].seconds), (2.0, 2.0));
        assert_eq!(latency["read"].len(), 3);
    }

    #[test]
    fn a_failed_target_runs_no_more_and_has_no_summary() {
        let failing = |step: &str, name: &str, times| {
            (step == "run" && name == "b" && times == 2).then(|| Failure::Failed("broke".to_owned()))
        };
        let mut mock = Mock::new(failing);
        let targets = run(&mut mock, 4);
        assert_eq!(mock.performed(), ["a", "b", "c", "a", "b", "c", "a", "c", "a", "c"]);
        assert_eq!(targets[1].outcome, Outcome::Failed("broke".to_owned()));
        assert!(targets[1].summary.is_none() && targets[0].summary.is_some());
    }

    #[test]
    fn wrong_bytes_are_an_outcome_of_their_own() {
        let wrong = |step: &str, name: &str, _| {
            (step == "verify" && name == "a").then(|| Failure::WrongBytes("byte 7".to_owned()))
        };
        let targets = run(&mut Mock::new(wrong), 3);
        assert_eq!(targets[0].outcome, Outcome::WrongBytes("byte 7".to_owned()));
        assert!(targets[0].summary.is_none() && targets[0].trials.is_empty());
    }

    #[test]
    fn a_missing_target_is_never_run() {
        let mut targets = ["a", "b"].map(target);
        targets[1].work = TrialWork::Missing("install b".to_owned());
        let mut mock = Mock::new(|_, _, _| None);
        let runs = run_trials(&targets, settings(2), &mut mock, &mut |_, _| ()).map_err(drop).unwrap();
        assert_eq!(mock.performed(), ["a", "a"]);
        assert_eq!(runs[1].result.outcome, Outcome::Missing("install b".to_owned()));
        assert!(runs[1].result.warnings.iter().any(|warning| warning.kind == "missing"));
    }

    #[test]
    fn a_stopped_run_keeps_what_it_has() {
        let stopping =
            |step: &str, name: &str, times| (step == "run" && name == "b" && times == 2).then_some(Failure::Stopped);
        let targets = ["a", "b", "c"].map(target);
        let mut mock = Mock::new(stopping);
        let (runs, Stopped) = run_trials(&targets, settings(5), &mut mock, &mut |_, _| ()).unwrap_err();
        let counts: Vec<_> = runs.iter().map(|run| run.result.trials.len()).collect();
        assert_eq!(counts, [2, 1, 1]);
        assert!(!mock.calls.iter().any(|call| call.starts_with("count")));
    }

    #[test]
    fn a_failed_count_of_calls_keeps_the_trials() {
        let failing = |step: &str, _: &str, _| (step == "count").then(|| Failure::Failed("no ptrace".to_owned()));
        let targets = run(&mut Mock::new(failing), 2);
        assert!(targets.iter().all(|result| result.outcome == Outcome::Ran && result.trials[0].system_calls.is_none()));
        assert!(targets[0].warnings.iter().any(|warning| warning.kind == "blind"));
    }
}
