//! Computes medians, spreads and ratios with confidence intervals.
//!
//! Medians, because one disturbed trial must not move the result; spreads as median absolute deviations for the same
//! reason. A ratio of two medians comes with a bootstrap interval: both samples are resampled many times with
//! replacement under a fixed seed, so that the same samples always give the same interval. Resampling few trials cannot
//! show how far the next one may lie. Below [`FEW`] trials the interval is therefore at least as wide as Student's t
//! makes it on the logarithms. The interval of a single trial excludes nothing.
//!
//! Nothing here panics on samples from a file: invalid samples give `None`.

use crate::results::Summary;
use fastrand::Rng;

/// Resamples for one interval: each bound of a 99 % interval then rests on 10 of them.
const REDRAWS: usize = 2_000;

/// Confidence of an interval. A run has dozens of comparisons, so at most one in a hundred may be wrong by chance.
pub(crate) const CONFIDENCE: f64 = 0.99;

/// Below this many trials the bootstrap interval alone is too narrow.
const FEW: usize = 6;

/// Two-sided quantiles of Student's t at [`CONFIDENCE`] for 1, 2, .. degrees of freedom; the last one serves for more.
const STUDENT: [f64; 8] = [63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355];

/// Fixed, so that a comparison always gives the same result.
const SEED: u64 = 0x626c_6f63_6b68_6175;

impl Summary {
    /// Summarizes samples in any order; `None` if there are none or one is not finite.
    pub(crate) fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples)?;
        let median = middle(&sorted);
        let deviations: Vec<f64> = sorted.iter().map(|sample| (sample - median).abs()).collect();
        Some(Self {
            count: u32::try_from(sorted.len()).ok()?,
            median,
            spread: self::median(&deviations)?,
            min: *sorted.first()?,
            max: *sorted.last()?,
        })
    }

    /// Returns the spread as a share of the median: 0.02 is quiet, 0.1 is noisy. Infinite if the median is 0 and the
    /// spread is not.
    pub(crate) fn relative_spread(&self) -> f64 {
        if self.spread == 0.0 { 0.0 } else { (self.spread / self.median).abs() }
    }
}

/// Returns the median; `None` as for [`Summary::of`].
pub(crate) fn median(samples: &[f64]) -> Option<f64> {
    Some(middle(&sorted(samples)?))
}

/// Returns the sample at or below which this share (0 to 1) of the samples lies, by nearest rank; `None` as for
/// [`Summary::of`].
pub(crate) fn percentile(samples: &[f64], share: f64) -> Option<f64> {
    Some(nearest_rank(&sorted(samples)?, share))
}

/// A ratio and the interval that holds the true one with [`CONFIDENCE`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ratio {
    pub value: f64,
    pub low: f64,
    pub high: f64,
}

impl Ratio {
    /// Divides the median of `above` by the median of `below`. Returns `None` if either has no samples, or one that is
    /// not a positive number.
    pub(crate) fn of_medians(above: &[f64], below: &[f64]) -> Option<Self> {
        let (above, below) = (positive(above)?, positive(below)?);
        let value = middle(&above) / middle(&below);
        let (low, high) = bootstrap(&above, &below);
        let margin = if above.len().min(below.len()) < FEW { student_margin(&above, &below) } else { 1.0 };
        Some(Self { value, low: low.min(value / margin), high: high.max(value * margin) })
    }

    /// Returns the inverse ratio.
    pub(crate) fn inverted(self) -> Self {
        Self { value: 1.0 / self.value, low: 1.0 / self.high, high: 1.0 / self.low }
    }

    /// Returns whether the interval includes 1, that is, no difference.
    pub(crate) fn holds_one(self) -> bool {
        self.low <= 1.0 && 1.0 <= self.high
    }
}

fn sorted(samples: &[f64]) -> Option<Vec<f64>> {
    if samples.is_empty() || !samples.iter().all(|sample| sample.is_finite()) {
        return None;
    }
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    Some(sorted)
}

fn positive(samples: &[f64]) -> Option<Vec<f64>> {
    sorted(samples).filter(|sorted| sorted[0] > 0.0)
}

/// `sorted` must not be empty.
fn middle(sorted: &[f64]) -> f64 {
    let half = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[half] } else { f64::midpoint(sorted[half - 1], sorted[half]) }
}

/// `sorted` must not be empty.
fn nearest_rank(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted[rank.clamp(1, sorted.len()) - 1]
}

/// Returns the interval of the ratio of medians over resampled data.
fn bootstrap(above: &[f64], below: &[f64]) -> (f64, f64) {
    let mut rng = Rng::with_seed(SEED);
    let mut drawn: Vec<f64> =
        (0..REDRAWS).map(|_| redrawn_median(above, &mut rng) / redrawn_median(below, &mut rng)).collect();
    drawn.sort_by(f64::total_cmp);
    let tail = (1.0 - CONFIDENCE) / 2.0;
    (nearest_rank(&drawn, tail), nearest_rank(&drawn, 1.0 - tail))
}

/// Returns the factor by which a ratio may be off, from Student's t on the logarithms; infinite for a single sample.
fn student_margin(above: &[f64], below: &[f64]) -> f64 {
    if above.len().min(below.len()) < 2 {
        return f64::INFINITY;
    }
    let ((squares_above, squares_below), freedom) = ((squares(above), squares(below)), above.len() + below.len() - 2);
    let variance = (squares_above + squares_below) / freedom as f64;
    let share = 1.0 / above.len() as f64 + 1.0 / below.len() as f64;
    (STUDENT[freedom.min(STUDENT.len()) - 1] * (variance * share).sqrt()).exp()
}

/// Returns the sum of the squared deviations of the logarithms from their mean.
fn squares(samples: &[f64]) -> f64 {
    let logarithms: Vec<f64> = samples.iter().map(|sample| sample.ln()).collect();
    let mean = logarithms.iter().sum::<f64>() / logarithms.len() as f64;
    logarithms.iter().map(|logarithm| (logarithm - mean).powi(2)).sum()
}

fn redrawn_median(samples: &[f64], rng: &mut Rng) -> f64 {
    let mut redrawn: Vec<f64> = samples.iter().map(|_| samples[rng.usize(..samples.len())]).collect();
    redrawn.sort_by(f64::total_cmp);
    middle(&redrawn)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fastrand::Rng;
    use proptest::prelude::*;

    #[test]
    fn a_summary_of_known_samples() {
        let summary = Summary::of(&[3.0, 1.0, 100.0, 2.0, 4.0]).expect("these can be summed up");
        assert_eq!(summary, Summary { count: 5, median: 3.0, spread: 1.0, min: 1.0, max: 100.0 });
        let even = Summary::of(&[4.0, 1.0, 2.0, 3.0]).expect("these can be summed up");
        assert_eq!((even.median, even.spread), (2.5, 1.0));
    }

    #[test]
    fn one_wild_trial_moves_neither_median_nor_spread() {
        let calm = Summary::of(&[10.0, 10.1, 9.9, 10.2, 9.8]).expect("these can be summed up");
        let wild = Summary::of(&[10.0, 10.1, 9.9, 1e9, 9.8]).expect("these can be summed up");
        assert_eq!(calm.median, wild.median);
        assert!(wild.spread < 0.2, "{wild:?}");
    }

    #[test]
    fn samples_that_are_not_finite_have_no_summary() {
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[1.0, f64::NAN]), None);
        assert_eq!(Summary::of(&[f64::INFINITY]), None);
        assert_eq!(Ratio::of_medians(&[1.0], &[0.0]), None);
        assert_eq!(Ratio::of_medians(&[-1.0], &[1.0]), None);
        assert_eq!(Ratio::of_medians(&[], &[1.0]), None);
    }

    #[test]
    fn percentiles_by_nearest_rank() {
        let samples: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&samples, 0.5), Some(50.0));
        assert_eq!(percentile(&samples, 0.9), Some(90.0));
        assert_eq!(percentile(&samples, 1.0), Some(100.0));
        assert_eq!(percentile(&samples, 0.0), Some(1.0));
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
    }

    #[test]
    fn samples_without_noise_have_an_interval_without_width() {
        let ratio = Ratio::of_medians(&[3.0; 5], &[2.0; 5]).expect("all are positive");
        assert_eq!(ratio, Ratio { value: 1.5, low: 1.5, high: 1.5 });
        assert!(!ratio.holds_one());
    }

    #[test]
    fn the_same_samples_give_the_same_interval() {
        let (a, b) = ([1.0, 1.2, 0.9, 1.1, 1.05, 1.02], [0.8, 0.7, 0.9, 0.85, 0.75, 0.81]);
        assert_eq!(Ratio::of_medians(&a, &b), Ratio::of_medians(&a, &b));
        let (there, back) =
            (Ratio::of_medians(&a, &b).expect("positive"), Ratio::of_medians(&b, &a).expect("positive"));
        assert!((there.value - back.inverted().value).abs() < 1e-12);
    }

    #[test]
    fn few_trials_differ_only_when_they_are_far_apart() {
        let one = Ratio::of_medians(&[3.0], &[1.0]).expect("all are positive");
        assert!(one.holds_one(), "{one:?}");
        let near = Ratio::of_medians(&[1.05, 1.06, 1.04], &[1.0, 1.01, 0.99]).expect("all are positive");
        let far = Ratio::of_medians(&[1.35, 1.36, 1.34], &[1.0, 1.01, 0.99]).expect("all are positive");
        assert!(near.low < 1.02 && !far.holds_one(), "{near:?} {far:?}");
    }

    /// Counts, out of 200 each, how many pairs of samples with 3 % noise are found different: pairs of one
    /// distribution, and pairs whose medians differ by 15 %.
    fn told_apart(trials: usize) -> (i32, i32) {
        let mut rng = Rng::with_seed(7);
        let mut noisy = |centre: f64| -> Vec<f64> {
            let mut noise = || 0.042 * ((0..6).map(|_| rng.f64()).sum::<f64>() - 3.0);
            (0..trials).map(|_| centre * (1.0 + noise())).collect()
        };
        let misses_one = |ratio: Option<Ratio>| i32::from(!ratio.expect("all are positive").holds_one());
        (0..200).fold((0, 0), |(equal, apart), _| {
            let (same, slower, faster) = (noisy(1.0), noisy(1.0), noisy(1.15));
            (
                equal + misses_one(Ratio::of_medians(&same, &slower)),
                apart + misses_one(Ratio::of_medians(&faster, &slower)),
            )
        })
    }

    #[test]
    fn the_interval_has_about_its_confidence() {
        for (trials, found_at_least) in [(3, 60), (5, 150), (9, 195)] {
            let (false_alarms, found) = told_apart(trials);
            assert!(false_alarms <= 8, "{trials} trials: {false_alarms} of 200 equal pairs were found different");
            assert!(
                found >= found_at_least,
                "{trials} trials: only {found} of 200 different pairs were found different"
            );
        }
    }

    proptest! {
        #[test]
        fn the_summary_lies_within_its_samples(samples in prop::collection::vec(0.001f64..1e12, 1..40)) {
            let summary = Summary::of(&samples).expect("these can be summed up");
            prop_assert!(summary.min <= summary.median && summary.median <= summary.max);
            prop_assert!(summary.spread <= summary.max - summary.min);
        }

        #[test]
        fn the_interval_holds_the_ratio(
            above in prop::collection::vec(0.5f64..2.0, 1..9),
            below in prop::collection::vec(0.5f64..2.0, 1..9),
        ) {
            let ratio = Ratio::of_medians(&above, &below).expect("all are positive");
            prop_assert!(ratio.low <= ratio.value && ratio.value <= ratio.high, "{ratio:?}");
            let back = ratio.inverted().inverted();
            prop_assert!((back.value - ratio.value).abs() < 1e-9 && ratio.inverted().low <= ratio.inverted().high);
        }
    }
}
