//! Draws throughput over time, latency percentiles, the window against foreground latency, and series along an axis.

use super::canvas::svg;
use super::legend::{color_of, entries, figure};
use super::palette::SERIES_MAX;
use super::plot::{Axis, AxisScale, HEIGHT, Plot, label};
use crate::results::{Latency, Metric, ScenarioResult, TargetResult};
use maud::Markup;

/// Charts with more points are thinned out, to keep the page small.
const POINTS_MAX: usize = 400;

const MIB: f64 = 1_048_576.0;

/// Draws throughput over time, with as many targets in a chart as there are colours.
pub(super) fn timelines(scenario: &ScenarioResult) -> Vec<Markup> {
    let shown: Vec<&TargetResult> = scenario.targets.iter().filter(|target| !target.timeline.is_empty()).collect();
    shown.chunks(SERIES_MAX).filter_map(|shown| timeline(scenario, shown)).collect()
}

fn timeline(scenario: &ScenarioResult, shown: &[&TargetResult]) -> Option<Markup> {
    let points = || shown.iter().flat_map(|target| &target.timeline);
    let unit = Metric::BytesPerSecond.unit(points().map(|point| point.bytes_per_second).fold(0.0, f64::max));
    let x = Axis::from_zero("seconds since the start".into(), points().map(|point| point.seconds))?;
    let title = format!("throughput, {}", unit.name);
    let y = Axis::from_zero(title, points().map(|point| point.bytes_per_second / unit.divisor))?;
    let legend = entries(shown.iter().map(|target| target.name.as_str()));
    let drawing = svg(&format!("{}: throughput over time", scenario.name), HEIGHT, |canvas| {
        let plot = Plot::draw(canvas, x, y);
        for target in shown {
            let points = thinned(&target.timeline).map(|point| (point.seconds, point.bytes_per_second / unit.divisor));
            plot.line(points, color_of(&target.name, &legend));
        }
    });
    Some(figure("Throughput over time", "The median trial of each target.", &legend, drawing))
}

/// Name of a distribution, and its points in nines and microseconds.
type Curve = (String, Vec<(f64, f64)>);

/// Draws latency by percentile, a line for each operation of each target.
pub(super) fn latencies(scenario: &ScenarioResult) -> Vec<Markup> {
    let curves = scenario.targets.iter().flat_map(|target| {
        target.latency.iter().map(move |(operation, latency)| (format!("{}, {operation}", target.name), curve(latency)))
    });
    let curves: Vec<Curve> = curves.collect();
    curves.chunks(SERIES_MAX).filter_map(|curves| latency(scenario, curves)).collect()
}

fn latency(scenario: &ScenarioResult, curves: &[Curve]) -> Option<Markup> {
    let points = || curves.iter().flat_map(|(_, curve)| curve);
    let nines = points().map(|(nines, _)| *nines).filter(|nines| nines.is_finite()).fold(0.0, f64::max);
    let ticks = [0.0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999_999];
    let ticks = ticks.map(|quantile| (nines_of(quantile), format!("{} %", trimmed(quantile * 100.0)))).to_vec();
    let x = Axis::with_ticks("percentile".into(), AxisScale::Linear, (0.0, nines.max(1.0)), ticks);
    let y = Axis::log("latency (logarithmic)".into(), points().map(|(_, us)| *us), microseconds)?;
    let legend = entries(curves.iter().map(|(name, _)| name.as_str()));
    let drawing = svg(&format!("{}: latency by percentile", scenario.name), HEIGHT, |canvas| {
        let plot = Plot::draw(canvas, x, y);
        curves.iter().for_each(|(name, curve)| plot.line(curve.iter().copied(), color_of(name, &legend)));
    });
    let how = "This share of the operations took this long or less. The axis stretches towards the slowest.";
    Some(figure("Latency by percentile", how, &legend, drawing))
}

/// Draws foreground latency against the window; `None` if it was not sampled.
pub(super) fn window(scenario: &ScenarioResult) -> Option<Markup> {
    let shown: Vec<&TargetResult> = scenario.targets.iter().filter(|target| !target.window.is_empty()).collect();
    let points = || shown.iter().flat_map(|target| &target.window);
    let x = Axis::from_zero("window, MiB in flight".into(), points().map(|point| point.window_bytes as f64 / MIB))?;
    let y =
        Axis::log("foreground latency (logarithmic)".into(), points().map(|point| point.foreground_us), microseconds)?;
    let legend = entries(shown.iter().map(|target| target.name.as_str()));
    let drawing = svg(&format!("{}: window against foreground latency", scenario.name), HEIGHT, |canvas| {
        let plot = Plot::draw(canvas, x, y);
        for target in &shown {
            let color = color_of(&target.name, &legend);
            let points = thinned(&target.window).map(|point| (point.window_bytes as f64 / MIB, point.foreground_us));
            points.for_each(|point| plot.dot(point, color));
        }
    });
    let how = "Each dot is a moment: bytes that the copy had in flight, and latency of another reader of the disk.";
    Some(figure("Window against foreground latency", how, &legend, drawing))
}

/// Draws the metric along the scenario's axis, a line for each series; `None` if the scenario has no axis.
pub(super) fn scaling(scenario: &ScenarioResult) -> Option<Markup> {
    let axis = scenario.axis.as_ref()?;
    let steps: Vec<_> =
        scenario.targets.iter().filter_map(|target| Some((target.step.as_ref()?, target.summary?))).collect();
    let unit = scenario.metric.unit(steps.iter().map(|(_, summary)| summary.max).fold(0.0, f64::max));
    let mut ticks: Vec<(f64, String)> = steps.iter().map(|(step, _)| (step.at, label(step.at))).collect();
    ticks.sort_by(|a, b| a.0.total_cmp(&b.0));
    ticks.dedup_by(|a, b| a.0 == b.0);
    let (first, last) = (ticks.first()?.0, ticks.last()?.0);
    let bounds = (first / 1.15, last * 1.15);
    let x = Axis::with_ticks(format!("{} (logarithmic)", axis.name), AxisScale::Log, bounds, ticks);
    let title = format!("{}, {}", scenario.metric.name(), unit.name);
    let y = Axis::from_zero(title, steps.iter().map(|(_, summary)| summary.max / unit.divisor))?;
    let legend = entries(steps.iter().map(|(step, _)| step.series.as_str()));
    let drawing = svg(&format!("{}: {} by {}", scenario.name, scenario.metric.name(), axis.name), HEIGHT, |canvas| {
        let plot = Plot::draw(canvas, x, y);
        for entry in &legend {
            let series = || steps.iter().filter(|(step, _)| step.series == entry.meaning);
            plot.line(series().map(|(step, summary)| (step.at, summary.median / unit.divisor)), entry.color);
            for (step, summary) in series() {
                plot.range(step.at, (summary.min / unit.divisor, summary.max / unit.divisor), entry.color);
            }
        }
    });
    Some(figure(&format!("By {}", axis.name), "Medians, with the range of all trials.", &legend, drawing))
}

/// Returns the points of a distribution in nines and microseconds: its curve, or its percentiles if it has no curve.
fn curve(latency: &Latency) -> Vec<(f64, f64)> {
    // The maximum has no finite number of nines; draw it at half an operation from the end.
    let most = 1.0 - 0.5 / (latency.count.max(1) as f64);
    let place = |quantile: f64, us: f64| (nines_of(quantile.min(most)), us.max(1.0));
    if latency.curve.is_empty() {
        let known = [(0.5, latency.p50), (0.9, latency.p90), (0.99, latency.p99), (1.0, latency.max)];
        return known.map(|(quantile, us)| place(quantile, us)).to_vec();
    }
    thinned(&latency.curve).map(|point| place(point.quantile, point.microseconds)).collect()
}

/// Converts a quantile to nines: 0.9 is one nine, 0.99 are two.
fn nines_of(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

fn trimmed(percent: f64) -> String {
    let text = format!("{percent:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Formats a tick of a latency axis with its unit.
fn microseconds(us: f64) -> String {
    let unit = Metric::Microseconds.unit(us * 1.000_001);
    format!("{} {}", label((us / unit.divisor * 1e6).round() / 1e6), unit.name)
}

/// Chooses at most [`POINTS_MAX`] points evenly, and the last one.
fn thinned<T>(points: &[T]) -> impl Iterator<Item = &T> {
    let step = points.len().div_ceil(POINTS_MAX).max(1);
    let last = points.len().saturating_sub(1);
    points.iter().enumerate().filter(move |(at, _)| at % step == 0 || *at == last).map(|(_, point)| point)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample_results;

    #[test]
    fn few_points_are_all_drawn_and_many_thinned_out() {
        let many: Vec<usize> = (0..10_000).collect();
        assert_eq!(thinned(&many[..10]).count(), 10);
        let thin: Vec<usize> = thinned(&many).copied().collect();
        assert!(thin.len() <= POINTS_MAX + 1 && thin.last() == Some(&9_999));
        assert_eq!(thinned(&many[..0]).count(), 0);
    }

    #[test]
    fn ticks_of_latency_are_round() {
        assert_eq!([1.0, 500.0, 1_000.0, 20_000.0, 5e6].map(microseconds), ["1 µs", "500 µs", "1 ms", "20 ms", "5 s"]);
        assert_eq!([0.0, 50.0, 99.9, 99.99].map(trimmed), ["0", "50", "99.9", "99.99"]);
    }

    #[test]
    fn a_chart_is_drawn_where_there_is_something_to_draw() {
        let run = sample_results::results(1);
        let drawn = |chart: fn(&ScenarioResult) -> Option<Markup>| -> Vec<String> {
            let scenarios = run.scenarios.iter().filter(|scenario| chart(scenario).is_some());
            scenarios.map(|scenario| scenario.name.clone()).collect()
        };
        assert_eq!(drawn(|scenario| timelines(scenario).pop()), ["dense-direct"]);
        assert_eq!(drawn(|scenario| latencies(scenario).pop()), ["dense-direct", "protection", "cancel"]);
        assert_eq!(drawn(window), ["protection"]);
        assert_eq!(drawn(scaling), ["jobs"]);
    }

    #[test]
    fn no_colour_means_two_things_in_one_chart() {
        let mut run = sample_results::results(1);
        let scenario = &mut run.scenarios[0];
        let known = scenario.targets[1].latency.clone();
        scenario.targets.iter_mut().take(4).for_each(|target| target.latency = known.clone());
        assert_eq!(latencies(scenario).len(), 12usize.div_ceil(SERIES_MAX));
    }

    #[test]
    fn percentiles_alone_make_a_line() {
        let mut run = sample_results::results(1);
        let latency = run.scenarios[5].targets[0].latency.get_mut("cancel").expect("it is there");
        latency.curve.clear();
        assert_eq!(curve(latency).len(), 4);
        assert!(curve(latency).is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1));
    }

    #[test]
    fn values_that_are_not_finite_draw_nothing() {
        let mut run = sample_results::results(1);
        let scenario = &mut run.scenarios[0];
        for target in &mut scenario.targets {
            target.timeline.iter_mut().for_each(|point| point.bytes_per_second = f64::NAN);
        }
        assert!(timelines(scenario).is_empty());
    }
}
