//! Draws two axes and the data between them.
//!
//! An axis is linear or logarithmic, has given or computed ticks, and always a title with its unit. Points outside of
//! the axes and points that are not finite are not drawn.

use super::canvas::{Canvas, Position, TextAnchor, WIDTH};
use super::palette::{GRID, INK, MUTED, ThemeColor};
use crate::format::significant;
use plotters::coord::ranged1d::{BoldPoints, Ranged};
use plotters::coord::types::RangedCoordf64;

/// Height of a canvas with a plot.
pub(super) const HEIGHT: i32 = 600;

const LEFT: i32 = 150;
const RIGHT: i32 = WIDTH - 50;
const TOP: i32 = 30;
const BOTTOM: i32 = HEIGHT - 110;

/// Approximate number of ticks of a linear axis.
const TICKS: usize = 6;

/// Scale of an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AxisScale {
    Linear,
    Log,
}

/// One axis.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    title: String,
    scale: AxisScale,
    low: f64,
    high: f64,
    ticks: Vec<(f64, String)>,
}

impl Axis {
    /// Returns an axis from 0 to a little above the largest number; `None` if no number is above 0.
    pub(super) fn from_zero(title: String, numbers: impl Iterator<Item = f64>) -> Option<Self> {
        let largest = numbers.filter(|number| number.is_finite()).fold(0.0, f64::max);
        let ticks = RangedCoordf64::from(0.0..largest).key_points(BoldPoints(TICKS));
        let high = largest * 1.06;
        let ticks = ticks.into_iter().map(|tick| (tick, label(tick))).collect();
        (largest > 0.0).then_some(Self { title, scale: AxisScale::Linear, low: 0.0, high, ticks })
    }

    /// Returns a logarithmic axis around all positive numbers, with ticks at 1, 2 and 5 of every power of ten, or
    /// fewer; `None` if no number is positive.
    pub(super) fn log(title: String, numbers: impl Iterator<Item = f64>, label: fn(f64) -> String) -> Option<Self> {
        let (low, high) = bounds(numbers.filter(|number| *number > 0.0))?;
        let (low, high) = (low / 1.2, high * 1.2);
        let decades = (low.log10().floor() as i32..=high.log10().ceil() as i32).map(|power| 10f64.powi(power));
        let steps: &[f64] = if high / low > 1e3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
        let ticks = decades.flat_map(|decade| steps.iter().map(move |step| decade * step));
        let ticks = ticks.filter(|tick| (low..=high).contains(tick)).map(|tick| (tick, label(tick))).collect();
        Some(Self { title, scale: AxisScale::Log, low, high, ticks })
    }

    /// Returns an axis with given bounds and ticks.
    pub(super) fn with_ticks(
        title: String,
        scale: AxisScale,
        (low, high): (f64, f64),
        ticks: Vec<(f64, String)>,
    ) -> Self {
        Self { title, scale, low, high, ticks }
    }

    /// Returns the position of a number as a share of the axis; `None` if the number is outside.
    fn share(&self, number: f64) -> Option<f64> {
        let at = |number: f64| match self.scale {
            AxisScale::Linear => number,
            AxisScale::Log => number.ln(),
        };
        let share = (at(number) - at(self.low)) / (at(self.high) - at(self.low));
        (-1e-9..=1.0 + 1e-9).contains(&share).then_some(share)
    }
}

/// The axes of a chart.
pub(super) struct Plot<'canvas, 'text> {
    canvas: &'canvas Canvas<'text>,
    x: Axis,
    y: Axis,
}

impl<'canvas, 'text> Plot<'canvas, 'text> {
    /// Draws the axes.
    pub(super) fn draw(canvas: &'canvas Canvas<'text>, x: Axis, y: Axis) -> Self {
        let plot = Self { canvas, x, y };
        for (number, label) in &plot.y.ticks {
            let Some(at) = plot.y_at(*number) else { continue };
            canvas.line(vec![(LEFT, at), (RIGHT, at)], GRID, 2);
            canvas.text(label, (LEFT - 16, at), TextAnchor::End, MUTED);
        }
        for (number, label) in &plot.x.ticks {
            let Some(at) = plot.x_at(*number) else { continue };
            canvas.line(vec![(at, BOTTOM), (at, BOTTOM + 10)], MUTED, 2);
            canvas.text(label, (at, BOTTOM + 32), TextAnchor::Middle, MUTED);
        }
        canvas.line(vec![(LEFT, BOTTOM), (RIGHT, BOTTOM)], MUTED, 2);
        canvas.text(&plot.x.title, ((LEFT + RIGHT) / 2, HEIGHT - 28), TextAnchor::Middle, INK);
        canvas.upwards(&plot.y.title, (24, (TOP + BOTTOM) / 2), INK);
        plot
    }

    /// Draws a line, with a dot at each point if there are few.
    pub(super) fn line(&self, points: impl Iterator<Item = (f64, f64)>, color: ThemeColor) {
        let positions: Vec<Position> = points.filter_map(|point| self.position(point)).collect();
        if positions.len() <= 8 {
            positions.iter().for_each(|position| self.canvas.dot(*position, 8, color, 1.0));
        }
        self.canvas.line(positions, color, 4);
    }

    /// Draws a translucent dot.
    pub(super) fn dot(&self, point: (f64, f64), color: ThemeColor) {
        if let Some(position) = self.position(point) {
            self.canvas.dot(position, 7, color, 0.55);
        }
    }

    /// Draws a vertical error bar.
    pub(super) fn range(&self, x: f64, (low, high): (f64, f64), color: ThemeColor) {
        if let (Some(low), Some(high)) = (self.position((x, low)), self.position((x, high))) {
            self.canvas.line(vec![low, high], color, 2);
            for (x, y) in [low, high] {
                self.canvas.line(vec![(x - 8, y), (x + 8, y)], color, 2);
            }
        }
    }

    fn position(&self, (x, y): (f64, f64)) -> Option<Position> {
        Some((self.x_at(x)?, self.y_at(y)?))
    }

    fn x_at(&self, number: f64) -> Option<i32> {
        Some(LEFT + (self.x.share(number)? * f64::from(RIGHT - LEFT)).round() as i32)
    }

    fn y_at(&self, number: f64) -> Option<i32> {
        Some(BOTTOM - (self.y.share(number)? * f64::from(BOTTOM - TOP)).round() as i32)
    }
}

/// Returns the least and the greatest of the finite numbers.
fn bounds(numbers: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    numbers.filter(|number| number.is_finite()).fold(None, |bounds, number| {
        let (low, high) = bounds.unwrap_or((number, number));
        Some((low.min(number), high.max(number)))
    })
}

/// Formats a tick without trailing zeros.
pub(super) fn label(number: f64) -> String {
    let text = significant(number);
    if text.contains('.') && !text.contains('e') {
        return text.trim_end_matches('0').trim_end_matches('.').to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_from_zero_holds_its_largest_number() {
        let axis = Axis::from_zero(String::new(), [0.5, 1.52, f64::NAN].into_iter()).expect("there is one above 0");
        assert!(axis.share(1.52).is_some_and(|share| (0.9..1.0).contains(&share)));
        assert_eq!((axis.share(0.0), axis.share(-1.0), axis.share(f64::NAN)), (Some(0.0), None, None));
        assert!(axis.ticks.len() >= 3, "{:?}", axis.ticks);
        assert!(Axis::from_zero(String::new(), [0.0, f64::NAN].into_iter()).is_none());
    }

    #[test]
    fn a_log_axis_has_round_ticks_within_its_bounds() {
        let axis = Axis::log(String::new(), [90.0, 0.0, 8_000.0].into_iter(), label).expect("one is positive");
        let labels: Vec<&str> = axis.ticks.iter().map(|(_, label)| label.as_str()).collect();
        assert_eq!(labels, ["100", "200", "500", "1000", "2000", "5000"]);
        assert!(axis.share(90.0).is_some() && axis.share(8_000.0).is_some() && axis.share(1e6).is_none());
        let wide = Axis::log(String::new(), [1.0, 1e6].into_iter(), label).expect("one is positive");
        assert_eq!(wide.ticks.len(), 7);
        assert!(Axis::log(String::new(), [0.0, -1.0].into_iter(), label).is_none());
    }

    #[test]
    fn labels_are_short() {
        assert_eq!([0.5, 1.0, 20.0, 1000.0, 0.0].map(label), ["0.5", "1", "20", "1000", "0"]);
    }
}
