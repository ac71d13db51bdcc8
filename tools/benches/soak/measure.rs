//! Collects the samples of a measure, checks its bound, and prints both.

use serde_json::json;
use std::time::Duration;

/// A bound on a number of a distribution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Bound {
    /// The 99th percentile is at most this.
    P99AtMost(f64),
    /// Every sample is at most this.
    AtMost(f64),
    /// Every sample is at least this.
    AtLeast(f64),
    /// None: it is printed for what it says.
    None,
}

/// A measured distribution.
#[derive(Clone, Debug)]
pub(crate) struct Measure {
    what: &'static str,
    unit: &'static str,
    samples: Vec<f64>,
    bound: Bound,
}

impl Measure {
    /// Creates a measure from samples in the order of their trials.
    pub(crate) fn new(what: &'static str, unit: &'static str, samples: Vec<f64>, bound: Bound) -> Self {
        Self { what, unit, samples, bound }
    }

    /// Creates a measure of durations, in milliseconds.
    pub(crate) fn of_times(what: &'static str, times: &[Duration], bound: Bound) -> Self {
        Self::new(what, "ms", times.iter().map(|time| time.as_secs_f64() * 1e3).collect(), bound)
    }

    /// Returns the value that `share` of the samples do not exceed, by the nearest rank.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.samples.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (share * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
    }

    /// Tells whether the bound is missed; without samples it is.
    pub(crate) fn is_missed(&self) -> bool {
        !match self.bound {
            Bound::P99AtMost(most) => self.quantile(0.99) <= most,
            Bound::AtMost(most) => self.quantile(1.0) <= most,
            Bound::AtLeast(least) => self.quantile(0.0) >= least,
            Bound::None => true,
        }
    }

    /// Returns one line of JSON, with the raw samples.
    pub(crate) fn json(&self) -> String {
        let Self { what, unit, samples, .. } = self;
        let (p50, p99, max) = (self.quantile(0.5), self.quantile(0.99), self.quantile(1.0));
        let goal = self.goal();
        json!({"what": what, "unit": unit, "count": samples.len(), "p50": p50, "p99": p99, "max": max, "goal": goal,
               "met": !self.is_missed(), "samples": samples})
        .to_string()
    }

    fn goal(&self) -> String {
        match self.bound {
            Bound::P99AtMost(most) => format!("p99 at most {most}"),
            Bound::AtMost(most) => format!("at most {most}"),
            Bound::AtLeast(least) => format!("at least {least}"),
            Bound::None => String::new(),
        }
    }

    /// Returns the heading of the table.
    pub(crate) fn heading() -> String {
        row("what", ["count", "p50", "p99", "max"], "unit", "goal", "")
    }

    /// Returns one line of the table.
    pub(crate) fn row(&self) -> String {
        let shown = |number: f64| if number < 100.0 { format!("{number:.2}") } else { format!("{number:.0}") };
        let numbers = [self.quantile(0.5), self.quantile(0.99), self.quantile(1.0)].map(shown);
        let count = self.samples.len().to_string();
        let verdict = match self.bound {
            Bound::None => "",
            _ if self.is_missed() => "MISSED",
            _ => "met",
        };
        row(self.what, [&count, &numbers[0], &numbers[1], &numbers[2]], self.unit, &self.goal(), verdict)
    }
}

fn row(what: &str, [count, p50, p99, max]: [&str; 4], unit: &str, goal: &str, verdict: &str) -> String {
    format!("{what:<58} {count:>5} {p50:>8} {p99:>8} {max:>8} {unit:<10} {goal:<18} {verdict}").trim_end().to_owned()
}
