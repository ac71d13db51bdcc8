//! Compares two runs: tells a slower engine from a changed machine.
//!
//! Our targets are compared by the raw samples of both runs, never by their summaries. A difference counts when the
//! interval of the ratio excludes 1, when the difference is large enough to matter, and when rivals of the same version
//! did not change as much. If they did, the machine changed, and the comparison of ours has no result. Runs of other
//! machines, sizes or parameters are not compared.

mod runs;
mod text;

use crate::results::{Kind, Metric, Results, ScenarioResult, TargetResult, Warning};
use crate::stats::{self, Ratio};
use std::path::Path;

pub(crate) use runs::LoadError;

/// Differences below this share are ignored, however certain they are.
const MIN_RELEVANT_CHANGE: f64 = 0.03;

/// Result of a comparison, worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Regression,
    CannotBeCompared,
    NoDifferenceSeen,
    Improvement,
}

/// Comparison of two runs.
#[derive(Debug)]
pub(crate) struct Comparison {
    /// Our targets of both runs.
    pub rows: Vec<Row>,
    /// Warnings about the whole comparison.
    pub warnings: Vec<Warning>,
}

/// One of our targets in both runs.
#[derive(Debug)]
pub(crate) struct Row {
    pub scenario: String,
    pub target: String,
    pub metric: Metric,
    /// Medians, in the unit of the metric.
    pub old: Option<f64>,
    pub new: Option<f64>,
    /// Ratio of the new run to the old one; above 1 the new run is better. `None` if unknown.
    pub ratio: Option<Ratio>,
    /// The same ratio for rivals of unchanged version: shows how the machine changed.
    pub rivals: Option<f64>,
    pub verdict: Verdict,
    /// Reason why the target cannot be compared.
    pub why: Option<String>,
}

/// Compares two results files, or two directories with a `results.json` each.
///
/// # Errors
/// [`LoadError`] if a file cannot be read, is not a results file, or has another schema.
pub(crate) fn run(old: &Path, new: &Path) -> Result<Comparison, LoadError> {
    Ok(Comparison::of(&runs::read(old)?, &runs::read(new)?))
}

impl Comparison {
    /// Compares two runs.
    pub(crate) fn of(old: &Results, new: &Results) -> Self {
        let pair = RunPair { old, new, reason: runs::incomparable_hosts(&old.host, &new.host) };
        let rows = new.scenarios.iter().flat_map(|scenario| pair.rows(scenario));
        let dropped = old.scenarios.iter().flat_map(|scenario| pair.dropped(scenario));
        Self { rows: rows.chain(dropped).collect(), warnings: runs::warnings(old, new) }
    }

    /// Returns the verdict over all rows: a regression if there is one, `CannotBeCompared` if no row can be compared,
    /// and otherwise whether something improved.
    pub(crate) fn verdict(&self) -> Verdict {
        let any = |verdict| self.rows.iter().any(|row| row.verdict == verdict);
        let order = [Verdict::Regression, Verdict::Improvement, Verdict::NoDifferenceSeen];
        order.into_iter().find(|verdict| any(*verdict)).unwrap_or(Verdict::CannotBeCompared)
    }
}

/// Two runs, and why nothing of them can be compared, if so.
struct RunPair<'a> {
    old: &'a Results,
    new: &'a Results,
    reason: Option<String>,
}

impl RunPair<'_> {
    /// Compares our targets of a scenario of the new run.
    fn rows(&self, scenario: &ScenarioResult) -> Vec<Row> {
        let before = self.old.scenarios.iter().find(|before| before.name == scenario.name);
        let ours = scenario.targets.iter().filter(|target| is_ours(target));
        ours.map(|target| match before {
            None => not_comparable(scenario, target, "the old run has no such scenario"),
            Some(before) => self.row(before, scenario, target),
        })
        .collect()
    }

    fn row(&self, before: &ScenarioResult, scenario: &ScenarioResult, target: &TargetResult) -> Row {
        let Some(earlier) = before.targets.iter().find(|earlier| earlier.name == target.name) else {
            return not_comparable(scenario, target, "the old run has no such target");
        };
        let reason = self.reason.clone().or_else(|| other_work(before, scenario));
        let why = reason.or_else(|| did_not_run("old", earlier)).or_else(|| did_not_run("new", target));
        let rivals = if why.is_some() { None } else { self.rivals(before, scenario) };
        let ratio = if why.is_some() { None } else { gain(earlier, target, scenario.metric) };
        let (verdict, why) =
            why.map_or_else(|| verdict_of(ratio, rivals), |why| (Verdict::CannotBeCompared, Some(why)));
        Row {
            old: earlier.summary.map(|summary| summary.median),
            new: target.summary.map(|summary| summary.median),
            ratio,
            rivals,
            verdict,
            why,
            ..not_comparable(scenario, target, "")
        }
    }

    /// Lists our targets that the new run lacks, so that dropping a target does not hide a regression.
    fn dropped(&self, before: &ScenarioResult) -> Vec<Row> {
        let after = self.new.scenarios.iter().find(|after| after.name == before.name);
        let is_gone = |target: &&TargetResult| {
            is_ours(target) && !after.is_some_and(|after| after.targets.iter().any(|kept| kept.name == target.name))
        };
        let dropped = before.targets.iter().filter(is_gone);
        dropped
            .map(|target| Row { new: None, ..not_comparable(before, target, "the new run has no such target") })
            .map(|row| Row { old: row.old.or(row.new), ..row })
            .collect()
    }

    /// Returns the median gain of programs whose version did not change.
    fn rivals(&self, before: &ScenarioResult, scenario: &ScenarioResult) -> Option<f64> {
        let unchanged = scenario.targets.iter().filter(|target| {
            matches!(target.kind, Kind::Rival | Kind::Limit)
                && target.ran()
                && runs::version(self.old, &target.name) == runs::version(self.new, &target.name)
        });
        let gains = unchanged.filter_map(|target| {
            let earlier = before.targets.iter().find(|earlier| earlier.name == target.name && earlier.ran())?;
            Some(gain(earlier, target, scenario.metric)?.value)
        });
        stats::median(&gains.collect::<Vec<f64>>())
    }
}

fn is_ours(target: &TargetResult) -> bool {
    matches!(target.kind, Kind::Engine | Kind::Command)
}

fn not_comparable(scenario: &ScenarioResult, target: &TargetResult, why: &str) -> Row {
    Row {
        scenario: scenario.name.clone(),
        target: target.name.clone(),
        metric: scenario.metric,
        old: None,
        new: target.summary.map(|summary| summary.median),
        ratio: None,
        rivals: None,
        verdict: Verdict::CannotBeCompared,
        why: Some(why.to_owned()),
    }
}

/// Returns how the work of the scenario differs between the runs, if it does.
fn other_work(before: &ScenarioResult, after: &ScenarioResult) -> Option<String> {
    let differs = |what: &str, same: bool| (!same).then(|| format!("{what} differs between the runs"));
    differs("what is measured", before.metric == after.metric)
        .or_else(|| differs("the volume's size", before.volume_bytes == after.volume_bytes))
        .or_else(|| differs("the amount of data", before.data_bytes == after.data_bytes))
        .or_else(|| {
            let names = before.parameters.keys().chain(after.parameters.keys());
            let mut other = names.filter(|name| before.parameters.get(*name) != after.parameters.get(*name));
            other.next().map(|name| format!("parameter '{name}' differs between the runs"))
        })
}

fn did_not_run(run: &str, target: &TargetResult) -> Option<String> {
    (!target.ran()).then(|| format!("it failed or is missing in the {run} run"))
}

/// Returns how many times as good the later samples are.
fn gain(earlier: &TargetResult, later: &TargetResult, metric: Metric) -> Option<Ratio> {
    let ratio = Ratio::of_medians(&later.values(), &earlier.values())?;
    Some(if metric.more_is_better() { ratio } else { ratio.inverted() })
}

fn verdict_of(ratio: Option<Ratio>, rivals: Option<f64>) -> (Verdict, Option<String>) {
    let Some(ratio) = ratio else {
        return (Verdict::CannotBeCompared, Some("a sample is not a positive number".to_owned()));
    };
    if !ratio.high.is_finite() {
        return (Verdict::CannotBeCompared, Some("one trial does not show noise; use --trials 5".to_owned()));
    }
    if ratio.holds_one() || (ratio.value - 1.0).abs() < MIN_RELEVANT_CHANGE {
        return (Verdict::NoDifferenceSeen, None);
    }
    let slower = ratio.value < 1.0;
    let machine = |rivals: f64| if slower { rivals <= ratio.high } else { rivals >= ratio.low };
    match rivals.filter(|rivals| (rivals - 1.0).abs() >= MIN_RELEVANT_CHANGE && machine(*rivals)) {
        Some(_) => (Verdict::CannotBeCompared, Some("rivals changed as much: the machine changed".to_owned())),
        None if slower => (Verdict::Regression, None),
        None => (Verdict::Improvement, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Outcome;
    use crate::sample_results::{results, scale};

    fn verdicts(comparison: &Comparison, wanted: Verdict) -> Vec<String> {
        let rows = comparison.rows.iter().filter(|row| row.verdict == wanted);
        rows.map(|row| format!("{}/{}", row.scenario, row.target)).collect()
    }

    #[test]
    fn a_run_is_no_different_from_itself() {
        let comparison = Comparison::of(&results(1), &results(1));
        assert_eq!(comparison.verdict(), Verdict::NoDifferenceSeen);
        assert_eq!(verdicts(&comparison, Verdict::NoDifferenceSeen).len(), comparison.rows.len());
        assert!(comparison.warnings.is_empty(), "{:?}", comparison.warnings);
    }

    #[test]
    fn noise_is_no_regression() {
        for seed in 2..22 {
            let comparison = Comparison::of(&results(1), &results(seed));
            assert_eq!(verdicts(&comparison, Verdict::Regression), Vec::<String>::new(), "seed {seed}");
        }
    }

    #[test]
    fn a_slower_copy_is_a_regression_and_a_faster_one_an_improvement() {
        for seed in 2..12 {
            let mut new = results(seed);
            scale(&mut new, "dense-direct", "blockhaul", 0.85);
            scale(&mut new, "cancel", "blockhaul", 1.25);
            scale(&mut new, "sparse", "blockhaul", 1.2);
            let comparison = Comparison::of(&results(1), &new);
            assert_eq!(comparison.verdict(), Verdict::Regression);
            assert_eq!(verdicts(&comparison, Verdict::Regression), ["dense-direct/blockhaul", "cancel/blockhaul"]);
            assert_eq!(verdicts(&comparison, Verdict::Improvement), ["sparse/blockhaul"]);
            let back = Comparison::of(&new, &results(1));
            assert_eq!(verdicts(&back, Verdict::Regression), ["sparse/blockhaul"]);
        }
    }

    #[test]
    fn three_trials_show_a_large_regression_and_no_other() {
        let few = |seed| {
            let mut run = results(seed);
            let targets = run.scenarios.iter_mut().flat_map(|scenario| &mut scenario.targets);
            targets.for_each(|target| target.trials.truncate(3));
            run
        };
        for seed in 2..12 {
            let mut new = few(seed);
            assert_eq!(
                verdicts(&Comparison::of(&few(1), &new), Verdict::Regression),
                Vec::<String>::new(),
                "seed {seed}"
            );
            scale(&mut new, "sparse", "blockhaul", 0.7);
            assert_eq!(
                verdicts(&Comparison::of(&few(1), &new), Verdict::Regression),
                ["sparse/blockhaul"],
                "seed {seed}"
            );
        }
    }

    #[test]
    fn a_slower_rival_is_no_regression() {
        let mut new = results(2);
        scale(&mut new, "dense-direct", "cp", 0.3);
        assert_eq!(Comparison::of(&results(1), &new).verdict(), Verdict::NoDifferenceSeen);
    }

    #[test]
    fn a_slower_machine_is_distinguished_from_a_slower_copy() {
        let mut new = results(2);
        let names: Vec<String> = new.scenarios[0].targets.iter().map(|target| target.name.clone()).collect();
        names.iter().for_each(|name| scale(&mut new, "dense-direct", name, 0.7));
        let comparison = Comparison::of(&results(1), &new);
        assert_eq!(verdicts(&comparison, Verdict::CannotBeCompared), ["dense-direct/blockhaul", "dense-direct/engine"]);
        scale(&mut new, "dense-direct", "blockhaul", 0.8);
        let comparison = Comparison::of(&results(1), &new);
        assert_eq!(verdicts(&comparison, Verdict::Regression), ["dense-direct/blockhaul"]);
    }

    #[test]
    fn an_upgraded_rival_says_nothing_about_the_machine() {
        let (old, mut new) = (results(1), results(2));
        scale(&mut new, "jobs", "blockhaul x1", 0.8);
        for jobs in ["1", "4", "16", "64"] {
            scale(&mut new, "jobs", &format!("qemu-img x{jobs}"), 0.8);
        }
        assert_eq!(Comparison::of(&old, &new).verdict(), Verdict::NoDifferenceSeen);
        new.programs[0].version = Some("qemu-img version 11.0.0".into());
        let comparison = Comparison::of(&old, &new);
        assert_eq!(verdicts(&comparison, Verdict::Regression), ["jobs/blockhaul x1"]);
        assert!(comparison.warnings.iter().any(|warning| warning.what.contains("11.0.0")), "{:?}", comparison.warnings);
    }

    #[test]
    fn different_work_is_not_compared() {
        type Change = fn(&mut Results);
        let changes: [(&str, Change); 8] = [
            ("size differs", |run| run.scenarios[1].volume_bytes *= 2),
            ("amount of data differs", |run| run.scenarios[1].data_bytes /= 2),
            ("'fill' differs", |run| run.scenarios[1].parameters.remove("fill").map_or((), drop)),
            ("what is measured differs", |run| run.scenarios[1].metric = Metric::Seconds),
            ("it failed or is missing", |run| {
                run.scenarios[1].targets[0].outcome = Outcome::Failed("exit code 1".into())
            }),
            ("no such scenario", |run| run.scenarios[1].name = "sparse-2".into()),
            ("no such target", |run| run.scenarios[1].targets[0].name = "blockhaul-2".into()),
            ("one trial", |run| run.scenarios[1].targets[0].trials.truncate(1)),
        ];
        for (expected, change) in changes {
            let mut new = results(2);
            change(&mut new);
            for comparison in [Comparison::of(&results(1), &new), Comparison::of(&new, &results(1))] {
                let why = comparison.rows.iter().filter_map(|row| row.why.as_ref());
                assert!(why.into_iter().any(|why| why.contains(expected)), "{expected}: {:?}", comparison.rows);
                assert!(verdicts(&comparison, Verdict::CannotBeCompared).iter().all(|row| row.starts_with("sparse")));
            }
        }
    }

    #[test]
    fn another_machine_is_not_compared() {
        let mut new = results(2);
        new.host.cpu = "another".into();
        let comparison = Comparison::of(&results(1), &new);
        assert_eq!(comparison.verdict(), Verdict::CannotBeCompared);
        assert!(comparison.rows.iter().all(|row| row.why.as_ref().is_some_and(|why| why.contains("processor"))));
    }
}
