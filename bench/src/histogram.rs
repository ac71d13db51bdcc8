//! Records latency distributions and writes them as files.
//!
//! A `.hgrm` file is the format of HdrHistogram's plotters: value, percentile, cumulated count and `1/(1-percentile)`
//! per line. Our files have a line for every recorded value instead of chosen percentiles. A file therefore holds the
//! whole distribution, and files of several trials, cores or runs merge by adding their counts. Values are microseconds
//! with two significant digits.

use crate::results::{Latency, Quantile};
use hdrhistogram::Histogram;
use std::io::{self, Write};

/// Largest recorded latency: ten minutes. Longer ones count as this long.
pub(crate) const HIGHEST_US: u64 = 600_000_000;

/// Significant digits: values are exact within 1 %.
const DIGITS: u8 = 2;

/// Returns an empty histogram. All histograms have the same bounds, so that they can be merged.
pub(crate) fn empty() -> Histogram<u64> {
    Histogram::new_with_max(HIGHEST_US, DIGITS).expect("the bounds are constants that the crate accepts")
}

/// Merges histograms.
pub(crate) fn merge<'a>(parts: impl IntoIterator<Item = &'a Histogram<u64>>) -> Histogram<u64> {
    let mut whole = empty();
    for part in parts {
        for value in part.iter_recorded() {
            whole.saturating_record_n(value.value_iterated_to().min(HIGHEST_US), value.count_at_value());
        }
    }
    whole
}

/// Summarizes a distribution for the results; `file` is the name of its `.hgrm` beside them. Returns `None` if nothing
/// was recorded.
pub(crate) fn latency(histogram: &Histogram<u64>, file: Option<String>) -> Option<Latency> {
    if histogram.is_empty() {
        return None;
    }
    let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64;
    Some(Latency {
        count: histogram.len(),
        p50: at(0.5),
        p90: at(0.9),
        p99: at(0.99),
        max: histogram.max() as f64,
        file,
        curve: curve(histogram),
    })
}

/// Writes the distribution as `.hgrm` text.
///
/// # Errors
/// As `out` says.
pub(crate) fn write_hgrm(histogram: &Histogram<u64>, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{:>12} {:>14} {:>10} {:>14}\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)")?;
    let (mut cumulated, total) = (0, histogram.len());
    for value in histogram.iter_recorded() {
        cumulated += value.count_at_value();
        let share = cumulated as f64 / total as f64;
        write!(out, "{:>12}.000 {share:>14.12} {cumulated:>10}", value.value_iterated_to())?;
        // The last line has no finite inverse; plotters expect the column to be empty there.
        if cumulated < total { writeln!(out, " {:>14.2}", 1.0 / (1.0 - share))? } else { writeln!(out)? }
    }
    writeln!(out, "#[Mean    = {:>12.3}, StdDeviation   = {:>12.3}]", histogram.mean(), histogram.stdev())?;
    writeln!(out, "#[Max     = {:>12.3}, Total count    = {total:>12}]", histogram.max() as f64)?;
    let buckets = u64::from(histogram.buckets());
    let sub_buckets = histogram.distinct_values() as u64 * 2 / (buckets + 1);
    writeln!(out, "#[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]")
}

/// Returns points of the distribution, denser towards the tail.
fn curve(histogram: &Histogram<u64>) -> Vec<Quantile> {
    let points = histogram.iter_quantiles(4);
    points
        .map(|point| Quantile {
            quantile: point.quantile_iterated_to(),
            microseconds: point.value_iterated_to() as f64,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(values: impl IntoIterator<Item = u64>) -> Histogram<u64> {
        let mut histogram = empty();
        values.into_iter().for_each(|value| histogram.saturating_record(value));
        histogram
    }

    fn text(histogram: &Histogram<u64>) -> String {
        let mut text = Vec::new();
        write_hgrm(histogram, &mut text).expect("memory takes everything");
        String::from_utf8(text).expect("it is text")
    }

    /// Reads `.hgrm` text back.
    fn read(text: &str) -> Histogram<u64> {
        let (mut histogram, mut before) = (empty(), 0);
        for line in text.lines().skip(2).take_while(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let value: f64 = words[0].parse().expect("it is a number");
            let cumulated: u64 = words[2].parse().expect("it is a count");
            histogram.saturating_record_n(value as u64, cumulated - before);
            before = cumulated;
        }
        histogram
    }

    #[test]
    fn the_text_is_what_plotters_of_hdrhistogram_read() {
        let expected = "       Value     Percentile TotalCount 1/(1-Percentile)

          10.000 0.500000000000          2           2.00
          20.000 0.750000000000          3           4.00
         100.000 1.000000000000          4
#[Mean    =       35.000, StdDeviation   =       37.749]
#[Max     =      100.000, Total count    =            4]
#[Buckets =           23, SubBuckets     =          256]
";
        assert_eq!(text(&of([10, 20, 10, 100])), expected);
    }

    #[test]
    fn an_empty_histogram_is_written_and_read_and_has_no_latency() {
        let back = read(&text(&empty()));
        assert!(back.is_empty());
        assert!(latency(&back, None).is_none());
    }

    #[test]
    fn percentiles_and_curve_agree() {
        let latency = latency(&of(1..=1000), Some("read.hgrm".to_owned())).expect("something was recorded");
        assert_eq!((latency.count, latency.file.as_deref()), (1000, Some("read.hgrm")));
        for (found, expected) in
            [(latency.p50, 500.0), (latency.p90, 900.0), (latency.p99, 990.0), (latency.max, 1000.0)]
        {
            assert!((found / expected - 1.0).abs() < 0.01, "{found} is not within 1 % of {expected}");
        }
        assert!(latency.curve.is_sorted_by(|a, b| a.quantile <= b.quantile && a.microseconds <= b.microseconds));
        assert_eq!(latency.curve.last().map(|point| point.microseconds), Some(latency.max));
    }

    proptest! {
        #[test]
        fn a_written_histogram_is_read_back(values in prop::collection::vec(0..HIGHEST_US * 2, 1..300)) {
            let histogram = of(values);
            prop_assert_eq!(read(&text(&histogram)), histogram);
        }

        #[test]
        fn parts_merge_to_the_whole(values in prop::collection::vec(0..5_000_000u64, 1..300), parts in 1..5usize) {
            let split: Vec<_> = (0..parts).map(|part| of(values.iter().copied().skip(part).step_by(parts))).collect();
            let files = split.iter().map(|part| read(&text(part)));
            prop_assert_eq!(text(&merge(&files.collect::<Vec<_>>())), text(&of(values)));
        }
    }
}
