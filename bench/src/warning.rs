//! Every reason to distrust a number, and what to do about it.

use crate::results::{TargetResult, Warning};
use crate::stats;

/// A spread above this share of the median is noise.
const NOISY_SHARE: f64 = 0.05;
/// A rate that falls by this share from the first trials to the last ones is throttled.
const THROTTLED_SHARE: f64 = 0.2;
/// CPUs kept busy by others at the start, of each one we have.
const BUSY_SHARE: f64 = 0.25;
/// CPU time that the hypervisor gave to others, of the time that passed.
const STOLEN_SHARE: f64 = 0.02;
/// Work that is over sooner is mostly the start of a program.
const SHORT_SECONDS: f64 = 0.05;
/// Fewer trials do not show how much they scatter.
const FEW_TRIALS: u32 = 5;

/// Why a number, or all of them, may be wrong.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum WarningKind {
    /// Trials of one target scatter: the share of the median.
    Noisy(f64),
    /// Trials got slower in the course of the scenario: the share lost.
    Throttled(f64),
    /// A trial is over too soon: its median in seconds.
    Short(f64),
    /// Too few trials to tell.
    FewTrials(u32),
    /// A rival that is not here: its name and what to do.
    Missing(String, String),
    /// A target that cannot be asked to work like the others: how it differs.
    OtherFlags(String),
    /// The destination keeps nothing that could be compared.
    NotCompared,
    /// Others kept CPUs busy when it began: how many.
    BusyHost(f64),
    /// The hypervisor gave CPU time to others: the share.
    Stolen(f64),
    /// A build for debugging.
    DebugBuild,
    /// Sizes are those of a quick look.
    Quick,
    /// The scenario could not be staged here: why.
    Skipped(String),
    /// A number of the harness's own is missing: which.
    NotMeasured(String),
}

impl WarningKind {
    /// As it appears in the results.
    pub(crate) fn warning(&self) -> Warning {
        let percent = |share: &f64| format!("{:.0} %", share * 100.0);
        let (kind, what, advice): (_, String, &str) = match self {
            Self::Noisy(share) => (
                "noisy",
                format!("trials scatter by {} around their median", percent(share)),
                "stop what else runs on this machine, or ask for more trials (--trials)",
            ),
            Self::Throttled(share) => (
                "throttled",
                format!("the last trials were {} slower than the first ones", percent(share)),
                "the device or the machine runs out of credit or cools down: pause, and run the scenario alone",
            ),
            Self::Short(seconds) => (
                "short",
                format!("a trial takes {:.0} ms: starting a program is a good part of it", seconds * 1e3),
                "compare with the null target, or run without --quick",
            ),
            Self::FewTrials(count) => (
                "few-trials",
                format!("{count} trials do not show how much they scatter"),
                "ask for at least 5 (--trials)",
            ),
            Self::Missing(name, install_hint) => ("missing", format!("{name} was not measured"), install_hint),
            Self::OtherFlags(how) => (
                "other-flags",
                format!("it does not work under the same conditions: {how}"),
                "read its ratio as what a user gets, not as what its authors could do",
            ),
            Self::NotCompared => (
                "not-compared",
                "the destination keeps no bytes: nobody knows whether they were right".to_owned(),
                "trust the scenarios with a destination that can be read",
            ),
            Self::BusyHost(cpus) => (
                "busy-host",
                format!("other programs kept {cpus:.1} CPUs busy before the first trial"),
                "stop them and run again",
            ),
            Self::Stolen(share) => (
                "stolen",
                format!("the hypervisor gave {} of the CPU time to other machines", percent(share)),
                "run on a host without neighbours, or at another hour",
            ),
            Self::DebugBuild => (
                "debug-build",
                "this is a build for debugging".to_owned(),
                "use cargo run --release -p blockhaul-bench",
            ),
            Self::Quick => (
                "quick",
                "sizes are those of a quick look: caches and start-up weigh more than in real copies".to_owned(),
                "run without --quick before you claim anything",
            ),
            Self::Skipped(why) => {
                ("skipped", format!("it could not be staged here: {why}"), "see what it says is missing")
            }
            Self::NotMeasured(what) => {
                ("blind", format!("{what} could not be measured"), "run as root on Linux 6.1 or later")
            }
        };
        Warning { kind: kind.to_owned(), what, advice: advice.to_owned() }
    }
}

/// What the trials of a target say against themselves.
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

/// By which share the last third of the trials is slower than the first one, if every one of them is.
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

/// What speaks against the whole run: CPUs that others kept busy before it, the share stolen during it, and how it was
/// asked for.
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
    fn a_busy_or_shared_machine_is_named() {
        let kinds = |warnings: Vec<Warning>| warnings.into_iter().map(|warning| warning.kind).collect::<Vec<_>>();
        let debug: &[&str] = if cfg!(debug_assertions) { &["debug-build"] } else { &[] };
        assert_eq!(kinds(of_run(Some(0.1), 4, Some(0.0), 5)), debug);
        assert_eq!(kinds(of_run(Some(3.0), 4, Some(0.5), 2)), [&["busy-host", "stolen", "few-trials"], debug].concat());
        assert_eq!(kinds(of_run(None, 4, None, 5)), debug);
    }

    #[test]
    fn every_doubt_comes_with_advice() {
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
