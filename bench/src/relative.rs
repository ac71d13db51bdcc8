//! Compares our copy with every other target of a scenario.
//!
//! A rival is a command, so it is compared with our command, or with the engine where our command did not run; in a
//! series, with the same step. Only targets whose trials all ended well are compared: a target that is missing, failed
//! or wrote wrong bytes was not beaten.

use crate::results::{Kind, Outcome, ScenarioResult, TargetResult, Trial};
use crate::stats::{self, Ratio};
use std::fmt::{self, Display, Formatter};

const GIB: f64 = (1u64 << 30) as f64;

/// Our target compared with another one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelativeResult<'a> {
    pub other: &'a TargetResult,
    /// Ratio of ours to the other; above 1 ours is better, whatever the metric.
    pub ratio: Ratio,
}

impl ScenarioResult {
    /// Returns the target of ours that `other` is compared with; in a series the one of the same step.
    pub(crate) fn baseline_for(&self, other: &TargetResult) -> Option<&TargetResult> {
        let same_step = |target: &&TargetResult| {
            target.ran() && target.step.as_ref().map(|step| step.at) == other.step.as_ref().map(|step| step.at)
        };
        let of = |kind| self.targets.iter().filter(same_step).find(|target| target.kind == kind);
        of(Kind::Command).or_else(|| of(Kind::Engine))
    }

    /// Compares ours with `other`; `None` if either did not run, if `other` is ours, or if a value is not positive.
    pub(crate) fn relative_to<'a>(&'a self, other: &'a TargetResult) -> Option<RelativeResult<'a>> {
        let ours = self.baseline_for(other).filter(|ours| !std::ptr::eq(*ours, other))?;
        let comparable = other.ran() && other.kind != Kind::Null;
        let ratio = comparable.then(|| Ratio::of_medians(&ours.values(), &other.values()))??;
        Some(RelativeResult { other, ratio: if self.metric.more_is_better() { ratio } else { ratio.inverted() } })
    }

    /// Compares ours with all other targets that ran, in the order of the results.
    pub(crate) fn relative_results(&self) -> Vec<RelativeResult<'_>> {
        self.targets.iter().filter_map(|other| self.relative_to(other)).collect()
    }

    /// Compares ours with the best of the rivals that ran.
    pub(crate) fn closest_rival(&self) -> Option<RelativeResult<'_>> {
        let rivals = self.relative_results().into_iter().filter(|relative| relative.other.kind == Kind::Rival);
        rivals.min_by(|a, b| a.ratio.value.total_cmp(&b.ratio.value))
    }
}

impl TargetResult {
    /// Returns whether every trial ended well.
    pub(crate) fn ran(&self) -> bool {
        self.outcome == Outcome::Ran
    }

    /// Returns the values of the trials, in the unit of the scenario's metric.
    pub(crate) fn values(&self) -> Vec<f64> {
        self.trials.iter().map(|trial| trial.value).collect()
    }
}

/// Formats as `1.42x (1.38 to 1.47)`, without the interval if there is none.
impl Display for Ratio {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let number = |ratio: f64| match ratio {
            // More than two decimals of a ratio below one would be noise.
            small if (0.0095..0.995).contains(&small) => format!("{small:.2}"),
            other => crate::format::significant(other),
        };
        write!(out, "{}x", number(self.value))?;
        if !self.high.is_finite() {
            return Ok(());
        }
        write!(out, " ({} to {})", number(self.low), number(self.high))
    }
}

impl Trial {
    /// Returns CPU seconds of the processes and of kernel workers per GiB of data; `None` if there is no data.
    pub(crate) fn cpu_seconds_per_gib(&self, scenario: &ScenarioResult) -> Option<f64> {
        let seconds = self.user_seconds + self.system_seconds + self.kernel_worker_seconds;
        (scenario.data_bytes > 0).then(|| seconds / (scenario.data_bytes as f64 / GIB))
    }
}

/// Medians of the costs of the trials; `None` where a trial lacks the number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Costs {
    pub cpu_seconds_per_gib: Option<f64>,
    pub peak_rss_bytes: Option<f64>,
    pub system_calls: Option<f64>,
}

impl Costs {
    /// Computes the costs of a target of this scenario.
    pub(crate) fn of(target: &TargetResult, scenario: &ScenarioResult) -> Self {
        let median = |cost: &dyn Fn(&Trial) -> Option<f64>| {
            stats::median(&target.trials.iter().map(cost).collect::<Option<Vec<f64>>>()?)
        };
        Self {
            cpu_seconds_per_gib: median(&|trial| trial.cpu_seconds_per_gib(scenario)),
            peak_rss_bytes: median(&|trial| trial.peak_rss_bytes.map(|bytes| bytes as f64)),
            system_calls: median(&|trial| trial.system_calls.map(|calls| calls as f64)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_results;

    fn scenario(name: &str) -> ScenarioResult {
        sample_results::results(1)
            .scenarios
            .into_iter()
            .find(|scenario| scenario.name == name)
            .expect("it is in the run")
    }

    #[test]
    fn commands_are_compared_with_our_command_and_steps_with_the_same_step() {
        let dense = scenario("dense-direct");
        let ours = |scenario: &ScenarioResult, relative: RelativeResult| {
            scenario.baseline_for(relative.other).map(|ours| ours.name.clone()).unwrap_or_default()
        };
        assert!(dense.relative_results().into_iter().all(|relative| ours(&dense, relative) == "blockhaul"));
        let jobs = scenario("jobs");
        let pairs: Vec<(String, &str)> =
            jobs.relative_results().into_iter().map(|s| (ours(&jobs, s), s.other.name.as_str())).collect();
        assert_eq!(pairs[1], ("blockhaul x4".to_owned(), "qemu-img x4"));
        assert_eq!(pairs.len(), 4);
    }

    #[test]
    fn above_one_is_better_whichever_way_the_metric_goes() {
        let dense = scenario("dense-direct");
        let slow = dense.relative_results().into_iter().find(|relative| relative.other.name == "cp").expect("cp ran");
        assert!((4.0..6.0).contains(&slow.ratio.value) && slow.ratio.low > 1.0, "{:?}", slow.ratio);
        let reflink = scenario("reflink");
        let relative = reflink.closest_rival().expect("cp ran");
        assert!((0.8..0.95).contains(&relative.ratio.value) && relative.ratio.high < 1.0, "{:?}", relative.ratio);
    }

    #[test]
    fn a_failed_target_is_not_beaten() {
        let nbd = scenario("nbd-unix");
        let beaten: Vec<&str> = nbd.relative_results().iter().map(|relative| relative.other.name.as_str()).collect();
        assert_eq!(beaten, ["nbdcopy", "dd"]);
        assert_eq!(nbd.closest_rival().map(|relative| relative.other.name.as_str()), Some("nbdcopy"));
        let mut without_ours = scenario("nbd-unix");
        without_ours.targets[0].outcome = Outcome::Failed("exit code 1".into());
        assert!(without_ours.relative_results().is_empty());
    }

    #[test]
    fn the_null_target_is_not_compared() {
        assert!(scenario("dense-direct").relative_results().iter().all(|relative| relative.other.kind != Kind::Null));
    }

    #[test]
    fn ratios_are_shown_with_their_interval_where_there_is_one() {
        assert_eq!(Ratio { value: 1.421, low: 1.38, high: 1.466 }.to_string(), "1.42x (1.38 to 1.47)");
        assert_eq!(Ratio { value: 0.066, low: 0.0112, high: 0.39 }.to_string(), "0.07x (0.01 to 0.39)");
        assert_eq!(Ratio { value: 12.0, low: 0.0, high: f64::INFINITY }.to_string(), "12.0x");
    }

    #[test]
    fn costs_are_known_only_where_every_trial_knows_them() {
        let mut sparse = scenario("sparse");
        let costs = Costs::of(&sparse.targets[0], &sparse);
        let expected =
            stats::median(&sparse.targets[0].trials.iter().map(|trial| trial.wall_seconds * 0.1).collect::<Vec<_>>());
        let (found, expected) = (costs.cpu_seconds_per_gib.expect("data was moved"), expected.expect("it ran"));
        assert!((found - expected).abs() < 1e-9, "{found} is not {expected}, the cost of 1 GiB of data");
        sparse.targets[0].trials[2].system_calls = None;
        assert_eq!(Costs::of(&sparse.targets[0], &sparse).system_calls, None);
    }
}
