//! Measures the latencies of one worker's operations for one job, mergeable across workers and jobs.

use crate::percentiles::{LatencyUs, Percentiles};
use hdrhistogram::Histogram;
use std::time::Duration;

/// Two significant digits up to a minute: about 20 KiB a histogram.
const HIGHEST_US: u64 = 60_000_000;

/// Histograms by kind of operation, from submission to completion, in microseconds: two significant digits, up to a
/// minute. All of them have the same bounds, so that those of several jobs can be added up.
#[derive(Clone, Debug)]
pub struct Latency {
    read: Histogram<u64>,
    write: Histogram<u64>,
    flush: Histogram<u64>,
}

/// A histogram of latencies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TimedOperation {
    Read,
    Write,
    Flush,
}

impl Default for Latency {
    fn default() -> Self {
        Self::new()
    }
}

impl Latency {
    /// Of reads of a block.
    #[must_use]
    pub fn read(&self) -> &Histogram<u64> {
        &self.read
    }

    /// Of writes of a run within a block.
    #[must_use]
    pub fn write(&self) -> &Histogram<u64> {
        &self.write
    }

    /// Of flushes of the destination.
    #[must_use]
    pub fn flush(&self) -> &Histogram<u64> {
        &self.flush
    }

    pub(crate) fn new() -> Self {
        let histogram =
            || Histogram::new_with_max(HIGHEST_US, 2).expect("the bounds are constants that the crate accepts");
        Self { read: histogram(), write: histogram(), flush: histogram() }
    }

    pub(crate) fn record(&mut self, what: TimedOperation, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        match what {
            TimedOperation::Read => self.read.saturating_record(us),
            TimedOperation::Write => self.write.saturating_record(us),
            TimedOperation::Flush => self.flush.saturating_record(us),
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (mine, theirs) in
            [(&mut self.read, &other.read), (&mut self.write, &other.write), (&mut self.flush, &other.flush)]
        {
            mine.add(theirs).expect("all histograms have the same bounds");
        }
    }

    pub(crate) fn summary(&self) -> LatencyUs {
        LatencyUs { read: percentiles(&self.read), write: percentiles(&self.write), flush: percentiles(&self.flush) }
    }
}

fn percentiles(histogram: &Histogram<u64>) -> Percentiles {
    if histogram.is_empty() {
        return Percentiles::default();
    }
    let at = |percent| histogram.value_at_percentile(percent);
    Percentiles { p50: at(50.0), p90: at(90.0), p99: at(99.0), max: histogram.max(), count: histogram.len() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_merge_into_one_summary() {
        let (mut one, mut two) = (Latency::new(), Latency::new());
        for us in 1..=50 {
            one.record(TimedOperation::Read, Duration::from_micros(us));
            two.record(TimedOperation::Read, Duration::from_micros(us + 50));
        }
        two.record(TimedOperation::Flush, Duration::from_secs(3600));
        one.merge(&two);
        let summary = one.summary();
        assert_eq!((summary.read.count, summary.read.p50, summary.read.max), (100, 50, 100));
        assert_eq!(summary.write, Percentiles::default());
        assert!(summary.flush.max >= HIGHEST_US, "a latency past the scale is counted at its end");
    }
}
