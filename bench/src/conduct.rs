//! The method: who runs when, what counts, and what ends a contestant's part.
//!
//! Trials are interleaved, A B C A B C, so that whatever changes on the machine meanwhile meets all alike. Each one is
//! reset, performed, judged; who fails or writes wrong bytes is out from then on, and never has a summary: nothing can
//! be won by not doing the work.

use crate::contestant::{Contestant, Work};
use crate::doubt;
use crate::executor::{Executor, Failure, Measured};
use crate::histogram;
use crate::interrupt::Stopped;
use crate::results::{Kind, Metric, Outcome, Summary, Target, Trial};
use crate::scale::GIB;
use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use std::time::Instant;

/// How a scenario is conducted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Method {
    pub metric: Metric,
    /// Of each contestant.
    pub trials: u32,
    /// Whether one more trial each is spent on counting system calls.
    pub count_calls: bool,
    /// Bytes of data in the volumes: what CPU time is divided by.
    pub data_bytes: u64,
    /// When the run began.
    pub run_started: Instant,
}

/// What became of a contestant, with all of its latencies.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub target: Target,
    pub latency: BTreeMap<String, Histogram<u64>>,
}

/// Hears of every trial before it runs, for whoever waits.
pub(crate) trait Audience {
    fn before(&mut self, contestant: &Contestant, trial: u32);
}

/// The order of trials: the index of a contestant, and the number of its trial from 0.
pub(crate) fn order(contestants: usize, trials: u32) -> impl Iterator<Item = (usize, u32)> {
    (0..trials).flat_map(move |trial| (0..contestants).map(move |contestant| (contestant, trial)))
}

/// Lets the contestants do their trials.
///
/// # Errors
/// The run is being stopped; what was found so far comes along.
pub(crate) fn conduct(
    contestants: &[Contestant],
    method: Method,
    executor: &mut dyn Executor,
    audience: &mut dyn Audience,
) -> Result<Vec<Finding>, (Vec<Finding>, Stopped)> {
    let mut parts: Vec<Part> = contestants.iter().map(Part::new).collect();
    let mut position = 0;
    for (at, number) in order(contestants.len(), method.trials) {
        let (contestant, part) = (&contestants[at], &mut parts[at]);
        if part.outcome != Outcome::Ran {
            continue;
        }
        audience.before(contestant, number);
        let started_seconds = method.run_started.elapsed().as_secs_f64();
        match one_trial(contestant, executor) {
            Ok(measured) => part.trials.push((method.trial(&measured, position, started_seconds), measured)),
            Err(Failure::Stopped) => return Err((close(contestants, parts), Stopped)),
            Err(failure) => part.fail(failure),
        }
        position += 1;
    }
    if method.count_calls && count_calls(contestants, &mut parts, executor).is_err() {
        return Err((close(contestants, parts), Stopped));
    }
    Ok(close(contestants, parts))
}

fn one_trial(contestant: &Contestant, executor: &mut dyn Executor) -> Result<Measured, Failure> {
    executor.reset(contestant)?;
    let measured = executor.perform(contestant)?;
    executor.judge(contestant)?;
    Ok(measured)
}

/// One more trial for those of which nobody knows the number, after all that are timed.
fn count_calls(contestants: &[Contestant], parts: &mut [Part], executor: &mut dyn Executor) -> Result<(), Stopped> {
    for (contestant, part) in contestants.iter().zip(parts) {
        let known = part.trials.iter().any(|(trial, _)| trial.system_calls.is_some());
        if part.outcome != Outcome::Ran || known || !matches!(contestant.kind, Kind::Rival | Kind::Command) {
            continue;
        }
        match executor.reset(contestant).and_then(|()| executor.count_calls(contestant)) {
            Ok(calls) => part.trials.iter_mut().for_each(|(trial, _)| trial.system_calls = calls),
            Err(Failure::Stopped) => return Err(Stopped),
            // It worked without being watched: only this number is missing.
            Err(failure) => part.doubts.push(doubt::Reason::Blind(format!("system calls ({failure})")).doubt()),
        }
    }
    Ok(())
}

fn close(contestants: &[Contestant], parts: Vec<Part>) -> Vec<Finding> {
    contestants.iter().zip(parts).map(|(contestant, part)| part.close(contestant)).collect()
}

impl Method {
    fn trial(&self, measured: &Measured, position: u32, started_seconds: f64) -> Trial {
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

/// What is known of a contestant so far.
struct Part {
    outcome: Outcome,
    trials: Vec<(Trial, Measured)>,
    doubts: Vec<crate::results::Doubt>,
}

impl Part {
    fn new(contestant: &Contestant) -> Self {
        let outcome = match &contestant.work {
            Work::Missing(why) => Outcome::Missing(why.clone()),
            Work::Commands { .. } => Outcome::Ran,
        };
        let mut doubts = contestant.doubts.clone();
        if let Outcome::Missing(why) = &outcome {
            doubts.push(doubt::Reason::Missing(contestant.name.clone(), why.clone()).doubt());
        }
        Self { outcome, trials: Vec::new(), doubts }
    }

    fn fail(&mut self, failure: Failure) {
        self.outcome = match failure {
            Failure::WrongBytes(what) => Outcome::WrongBytes(what),
            Failure::Failed(what) => Outcome::Failed(what),
            Failure::Stopped => Outcome::Failed("the run was stopped".to_owned()),
        };
    }

    fn close(self, contestant: &Contestant) -> Finding {
        let values: Vec<f64> = self.trials.iter().map(|(trial, _)| trial.value).collect();
        let summary = if self.outcome == Outcome::Ran { Summary::of(&values) } else { None };
        let outcome = match (self.outcome, summary) {
            (Outcome::Ran, None) => Outcome::Failed("it was stopped before its first trial".to_owned()),
            (outcome, _) => outcome,
        };
        let typical = typical(&self.trials, summary);
        let (timeline, window) = typical.map(|it| (it.timeline.clone(), it.window.clone())).unwrap_or_default();
        let latency = latencies(&self.trials);
        let mut target = Target {
            name: contestant.name.clone(),
            kind: contestant.kind,
            step: contestant.step.clone(),
            command: contestant.command(),
            outcome,
            figures: figures(&self.trials),
            trials: self.trials.into_iter().map(|(trial, _)| trial).collect(),
            summary,
            latency: BTreeMap::new(),
            timeline,
            window,
            doubts: self.doubts,
        };
        target.doubts.extend(doubt::of_target(&target));
        Finding { target, latency }
    }
}

/// The trial whose value is nearest to the median.
fn typical(trials: &[(Trial, Measured)], summary: Option<Summary>) -> Option<&Measured> {
    let median = summary?.median;
    let distance = |(trial, _): &&(Trial, Measured)| (trial.value - median).abs();
    trials.iter().min_by(|one, other| distance(one).total_cmp(&distance(other))).map(|(_, measured)| measured)
}

/// The median over the trials, of each number that any of them has.
fn figures(trials: &[(Trial, Measured)]) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<&String, Vec<f64>> = BTreeMap::new();
    for (name, value) in trials.iter().flat_map(|(_, measured)| &measured.figures) {
        all.entry(name).or_default().push(*value);
    }
    all.into_iter().filter_map(|(name, values)| Some((name.clone(), crate::stats::median(&values)?))).collect()
}

fn latencies(trials: &[(Trial, Measured)]) -> BTreeMap<String, Histogram<u64>> {
    let mut all: BTreeMap<&String, Vec<&Histogram<u64>>> = BTreeMap::new();
    for (name, part) in trials.iter().flat_map(|(_, measured)| &measured.latency) {
        all.entry(name).or_default().push(part);
    }
    all.into_iter().map(|(name, parts)| (name.clone(), histogram::merge(parts))).collect()
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
    use crate::contestant::{Compared, Invocation, Told};

    fn contestant(name: &str) -> Contestant {
        Contestant {
            name: name.to_owned(),
            kind: Kind::Rival,
            step: None,
            work: Work::Commands { commands: vec![Invocation::new([name])], told: Told::Nothing },
            pairs: Vec::new(),
            compared: Compared::Yes,
            doubts: Vec::new(),
        }
    }

    /// Keeps a list of what it was asked, and answers by a script of `(step, contestant, nth time) -> failure`.
    struct Mock<F: Fn(&str, &str, usize) -> Option<Failure>> {
        asked: Vec<String>,
        script: F,
    }

    impl<F: Fn(&str, &str, usize) -> Option<Failure>> Mock<F> {
        fn new(script: F) -> Self {
            Self { asked: Vec::new(), script }
        }

        fn answer(&mut self, step: &str, contestant: &Contestant) -> Result<usize, Failure> {
            let entry = format!("{step} {}", contestant.name);
            self.asked.push(entry.clone());
            let times = self.asked.iter().filter(|asked| **asked == entry).count();
            (self.script)(step, &contestant.name, times).map_or(Ok(times), Err)
        }

        fn performed(&self) -> Vec<&str> {
            self.asked.iter().filter_map(|asked| asked.strip_prefix("perform ")).collect()
        }
    }

    impl<F: Fn(&str, &str, usize) -> Option<Failure>> Executor for Mock<F> {
        fn reset(&mut self, contestant: &Contestant) -> Result<(), Failure> {
            self.answer("reset", contestant).map(drop)
        }

        #[allow(clippy::cast_precision_loss, reason = "small numbers")]
        fn perform(&mut self, contestant: &Contestant) -> Result<Measured, Failure> {
            let times = self.answer("perform", contestant)?;
            let mut read = histogram::empty();
            read.saturating_record(times as u64 * 100);
            Ok(Measured {
                wall_seconds: times as f64,
                bytes: 6,
                latency: BTreeMap::from([("read".to_owned(), read)]),
                figures: BTreeMap::from([("things".to_owned(), times as f64)]),
                timeline: vec![crate::results::Point { seconds: times as f64, bytes_per_second: 1.0 }],
                ..Measured::default()
            })
        }

        fn judge(&mut self, contestant: &Contestant) -> Result<(), Failure> {
            self.answer("judge", contestant).map(drop)
        }

        fn count_calls(&mut self, contestant: &Contestant) -> Result<Option<u64>, Failure> {
            self.answer("count", contestant).map(|_| Some(77))
        }
    }

    struct Nobody;

    impl Audience for Nobody {
        fn before(&mut self, _: &Contestant, _: u32) {}
    }

    fn method(trials: u32) -> Method {
        Method { metric: Metric::BytesPerSecond, trials, count_calls: true, data_bytes: 6, run_started: Instant::now() }
    }

    fn run<F: Fn(&str, &str, usize) -> Option<Failure>>(mock: &mut Mock<F>, trials: u32) -> Vec<Target> {
        let contestants = ["a", "b", "c"].map(contestant);
        let findings = conduct(&contestants, method(trials), mock, &mut Nobody);
        let findings = findings.unwrap_or_else(|(findings, Stopped)| findings);
        findings.into_iter().map(|finding| finding.target).collect()
    }

    #[test]
    fn trials_are_interleaved_and_each_is_reset_performed_and_judged() {
        let mut mock = Mock::new(|_, _, _| None);
        let targets = run(&mut mock, 2);
        assert_eq!(mock.performed(), ["a", "b", "c", "a", "b", "c"]);
        assert_eq!(mock.asked[..6], ["reset a", "perform a", "judge a", "reset b", "perform b", "judge b"]);
        assert_eq!(mock.asked[18..], ["reset a", "count a", "reset b", "count b", "reset c", "count c"]);
        let positions: Vec<Vec<u32>> =
            targets.iter().map(|target| target.trials.iter().map(|trial| trial.position).collect()).collect();
        assert_eq!(positions, [[0, 3], [1, 4], [2, 5]]);
        assert!(targets.iter().all(|target| target.trials.iter().all(|trial| trial.system_calls == Some(77))));
    }

    #[test]
    fn values_are_rates_summaries_medians_and_shapes_those_of_the_typical_trial() {
        let contestants = [contestant("a")];
        let mut mock = Mock::new(|_, _, _| None);
        let findings = conduct(&contestants, method(3), &mut mock, &mut Nobody).map_err(drop).unwrap();
        let Finding { target, latency } = &findings[0];
        assert_eq!(target.trials.iter().map(|trial| trial.value).collect::<Vec<_>>(), [6.0, 3.0, 2.0]);
        assert_eq!(target.summary.unwrap().median, 3.0);
        assert_eq!((target.figures["things"], target.timeline[0].seconds), (2.0, 2.0));
        assert_eq!(latency["read"].len(), 3);
    }

    #[test]
    fn who_fails_is_out_and_has_no_summary() {
        let failing = |step: &str, name: &str, times| {
            (step == "perform" && name == "b" && times == 2).then(|| Failure::Failed("broke".to_owned()))
        };
        let mut mock = Mock::new(failing);
        let targets = run(&mut mock, 4);
        assert_eq!(mock.performed(), ["a", "b", "c", "a", "b", "c", "a", "c", "a", "c"]);
        assert_eq!(targets[1].outcome, Outcome::Failed("broke".to_owned()));
        assert!(targets[1].summary.is_none() && targets[0].summary.is_some());
    }

    #[test]
    fn wrong_bytes_are_a_verdict_of_their_own() {
        let wrong = |step: &str, name: &str, _| {
            (step == "judge" && name == "a").then(|| Failure::WrongBytes("byte 7".to_owned()))
        };
        let targets = run(&mut Mock::new(wrong), 3);
        assert_eq!(targets[0].outcome, Outcome::WrongBytes("byte 7".to_owned()));
        assert!(targets[0].summary.is_none() && targets[0].trials.is_empty());
    }

    #[test]
    fn who_is_missing_is_never_asked() {
        let mut contestants = ["a", "b"].map(contestant);
        contestants[1].work = Work::Missing("install b".to_owned());
        let mut mock = Mock::new(|_, _, _| None);
        let findings = conduct(&contestants, method(2), &mut mock, &mut Nobody).map_err(drop).unwrap();
        assert_eq!(mock.performed(), ["a", "a"]);
        assert_eq!(findings[1].target.outcome, Outcome::Missing("install b".to_owned()));
        assert!(findings[1].target.doubts.iter().any(|doubt| doubt.kind == "missing"));
    }

    #[test]
    fn a_stopped_run_keeps_what_it_has() {
        let stopping = |step: &str, name: &str, times| {
            (step == "perform" && name == "b" && times == 2).then_some(Failure::Stopped)
        };
        let contestants = ["a", "b", "c"].map(contestant);
        let mut mock = Mock::new(stopping);
        let (findings, Stopped) = conduct(&contestants, method(5), &mut mock, &mut Nobody).unwrap_err();
        let counts: Vec<_> = findings.iter().map(|finding| finding.target.trials.len()).collect();
        assert_eq!(counts, [2, 1, 1]);
        assert!(!mock.asked.iter().any(|asked| asked.starts_with("count")));
    }

    #[test]
    fn a_count_that_fails_costs_only_the_count() {
        let failing = |step: &str, _: &str, _| (step == "count").then(|| Failure::Failed("no ptrace".to_owned()));
        let targets = run(&mut Mock::new(failing), 2);
        assert!(targets.iter().all(|target| target.outcome == Outcome::Ran && target.trials[0].system_calls.is_none()));
        assert!(targets[0].doubts.iter().any(|doubt| doubt.kind == "blind"));
    }
}
