//! Lists every reason to distrust a number, with advice.

use crate::results::{TargetResult, Warning};
use crate::stats;

/// A spread above this share of the median is noise.
const NOISY_SHARE: f64 = 0.05;
/// A rate that falls by this share from the first trials to the last ones is throttled.
const THROTTLED_SHARE: f64 = 0.2;
/// More CPUs busy with other programs at the start than this share of all CPUs is worth a warning.
const BUSY_SHARE: f64 = 0.25;
/// More CPU time stolen by the hypervisor than this share of the elapsed time is worth a warning.
const STOLEN_SHARE: f64 = 0.02;
/// In a shorter trial, starting the program is most of the work.
const SHORT_SECONDS: f64 = 0.05;
/// Fewer trials do not show their scatter.
const FEW_TRIALS: u32 = 5;

/// Reason why a number, or all numbers of a run, may be misleading.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WarningKind {
    /// Trials of one target scatter: the share of the median.
    Noisy(f64),
    /// Trials became slower in the course of the scenario: the share lost.
    Throttled(f64),
    /// Trials are too short: the median in seconds.
    Short(f64),
    /// Too few trials to show their scatter: their number.
    FewTrials(u32),
    /// A rival is not installed: its name and what to install.
    Missing(String, String),
    /// A target cannot work under the same conditions as the others: how it differs.
    OtherFlags(String),
    /// The destination keeps no data that could be verified.
    NotCompared,
    /// Other programs kept CPUs busy when the run began: how many.
    BusyHost(f64),
    /// The hypervisor gave CPU time to other machines: the share.
    Stolen(f64),
    /// This is a debug build.
    DebugBuild,
    /// The run used the sizes of `--quick`.
    Quick,
    /// The scenario could not be prepared on this machine: why.
    Skipped(String),
    /// The harness could not measure a number: which.
    NotMeasured(String),
}

impl WarningKind {
    /// Returns the warning as it appears in the results.
    pub(crate) fn warning(&self) -> Warning {
        let percent = |share: &f64| format!("{:.0} %", share * 100.0);
        let (kind, what, advice): (_, String, &str) = match self {
            Self::Noisy(share) => (
                "noisy",
                format!("trials scatter by {} around their median", percent(share)),
                "stop other work on this machine, or use more trials (--trials)",
            ),
            Self::Throttled(share) => (
                "throttled",
                format!("the last trials were {} slower than the first ones", percent(share)),
                "the device or the machine throttles: wait, then run the scenario alone",
            ),
            Self::Short(seconds) => (
                "short",
                format!("a trial takes {:.0} ms: the start of the program is much of it", seconds * 1e3),
                "compare with the null target, or run without --quick",
            ),
            Self::FewTrials(count) => {
                ("few-trials", format!("{count} trials do not show how much they scatter"), "use --trials 5 or more")
            }
            Self::Missing(name, install_hint) => ("missing", format!("{name} was not measured"), install_hint),
            Self::OtherFlags(how) => (
                "other-flags",
                format!("it runs under other conditions: {how}"),
                "the ratio shows what a user gets, not what the program could do",
            ),
            Self::NotCompared => (
                "not-compared",
                "the destination keeps no data, so copies could not be verified".to_owned(),
                "see the scenarios whose destination can be read",
            ),
            Self::BusyHost(cpus) => (
                "busy-host",
                format!("other programs kept {cpus:.1} CPUs busy before the first trial"),
                "stop them and repeat the run",
            ),
            Self::Stolen(share) => (
                "stolen",
                format!("the hypervisor gave {} of the CPU time to other machines", percent(share)),
                "run on a dedicated host, or at another time",
            ),
            Self::DebugBuild => {
                ("debug-build", "this is a debug build".to_owned(), "use cargo run --release -p blockhaul-bench")
            }
            Self::Quick => (
                "quick",
                "quick sizes: caches and start-up weigh more than in real copies".to_owned(),
                "run without --quick for reliable numbers",
            ),
            Self::Skipped(why) => (
                "skipped",
                format!("it could not be prepared on this machine: {why}"),
                "install or allow what is missing",
            ),
            Self::NotMeasured(what) => {
                ("blind", format!("{what} could not be measured"), "run as root on Linux 6.1 or later")
            }
        };
        Warning { kind: kind.to_owned(), what, advice: advice.to_owned() }
    }
}

/// Returns the warnings that follow from the trials of a target.
pub(crate) fn of_target(target: &TargetResult) -> Vec<Warning> {
    let Some(summary) = target.summary else { return Vec::new() };
    let walls: Vec<f64> = target.trials.iter().map(|trial| trial.wall_seconds).collect();
    let mut reasons = Vec::new();
    if summary.relative_spread() > NOISY_SHARE {
        reasons.push(WarningKind::Noisy(summary.relative_spread()));
    }
    if let Some(share) = slowdown(&walls).filter(|share| *share > THROTTLED_SHARE) {
        reasons.push(WarningKind::Throttled(share));
    }
    if let Some(wall) =
        stats::median(&walls).filter(|wall| *wall < SHORT_SECONDS && target.kind != crate::results::Kind::Null)
    {
        reasons.push(WarningKind::Short(wall));
    }
    reasons.iter().map(WarningKind::warning).collect()
}

/// Returns by which share the last third of the trials is slower than the first third, if all of its trials are.
fn slowdown(walls: &[f64]) -> Option<f64> {
    let third = (walls.len() / 3).max(1);
    if walls.len() < 4 {
        return None;
    }
    let (first, last) = (&walls[..third], &walls[walls.len() - third..]);
    let slowest = first.iter().copied().fold(0.0, f64::max);
    let fastest = last.iter().copied().fold(f64::INFINITY, f64::min);
    (fastest > slowest && fastest > 0.0).then(|| 1.0 - slowest / fastest)
}

/// Returns the warnings about the whole run: CPUs busy before it, CPU time stolen during it, number of trials and
/// build.
pub(crate) fn of_run(busy_cpus: Option<f64>, cpus: u32, stolen_share: Option<f64>, trials: u32) -> Vec<Warning> {
    let busy = busy_cpus.filter(|busy| *busy > BUSY_SHARE * f64::from(cpus)).map(WarningKind::BusyHost);
    let stolen = stolen_share.filter(|share| *share > STOLEN_SHARE).map(WarningKind::Stolen);
    let debug = cfg!(debug_assertions).then_some(WarningKind::DebugBuild);
    let few = (trials < FEW_TRIALS).then_some(WarningKind::FewTrials(trials));
    [busy, stolen, few, debug].iter().flatten().map(WarningKind::warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_steady_loss_is_throttling() {
        assert_eq!(slowdown(&[1.0, 1.1, 1.2, 1.3, 1.9, 2.0]), Some(1.0 - 1.1 / 1.9));
        assert_eq!(slowdown(&[1.0, 2.0, 1.0, 1.5, 1.9, 1.2]), None);
        assert_eq!(slowdown(&[1.0, 9.0]), None);
    }

    #[test]
    fn a_busy_or_shared_machine_has_warnings() {
        let kinds = |warnings: Vec<Warning>| warnings.into_iter().map(|warning| warning.kind).collect::<Vec<_>>();
        let debug: &[&str] = if cfg!(debug_assertions) { &["debug-build"] } else { &[] };
        assert_eq!(kinds(of_run(Some(0.1), 4, Some(0.0), 5)), debug);
        assert_eq!(kinds(of_run(Some(3.0), 4, Some(0.5), 2)), [&["busy-host", "stolen", "few-trials"], debug].concat());
        assert_eq!(kinds(of_run(None, 4, None, 5)), debug);
    }

    #[test]
    fn every_warning_has_advice() {
        let all = [
            WarningKind::Noisy(0.1),
            WarningKind::Throttled(0.3),
            WarningKind::Short(0.01),
            WarningKind::FewTrials(2),
            WarningKind::Missing("x".into(), "install x".into()),
            WarningKind::OtherFlags("y".into()),
            WarningKind::NotCompared,
            WarningKind::BusyHost(1.0),
            WarningKind::Stolen(0.1),
            WarningKind::DebugBuild,
            WarningKind::Quick,
            WarningKind::Skipped("z".into()),
            WarningKind::NotMeasured("w".into()),
        ];
        let warnings: Vec<Warning> = all.iter().map(WarningKind::warning).collect();
        assert!(warnings.iter().all(|warning| !warning.what.is_empty() && !warning.advice.is_empty()));
        let mut kinds: Vec<_> = warnings.iter().map(|warning| &warning.kind).collect();
        kinds.sort();
        kinds.dedup();
        assert_eq!(kinds.len(), all.len());
    }
}
