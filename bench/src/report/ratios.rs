//! Draws bars that show how many times as good ours is.
//!
//! A bar extends from 1 to the ratio on a logarithmic axis, so that twice and half are equally long. Its colour says
//! whether the interval includes "no difference". The thin line across its end is that interval.

use super::canvas::{Canvas, TextAnchor, WIDTH, svg};
use super::legend::{LegendEntry, figure};
use super::palette::{EVEN, GRID, INK, MUTED, OURS, ThemeColor, WORSE};
use crate::results::{Kind, Results, ScenarioResult, TargetResult};
use crate::stats::Ratio;
use maud::Markup;

const LEFT: i32 = 330;
const RIGHT: i32 = WIDTH - 340;
const TOP: i32 = 20;
const ROW: i32 = 56;
const BAR: i32 = 30;
/// Space below the last row for ticks and the title of the axis.
const FOOT: i32 = 106;

/// A bar to draw.
struct Row {
    name: String,
    ratio: Ratio,
}

/// Compares ours with each rival and limit of a scenario; `None` if none of them ran.
pub(super) fn of_scenario(scenario: &ScenarioResult) -> Option<Markup> {
    let relative_results = scenario.relative_results().into_iter();
    let others = relative_results.filter(|relative| matches!(relative.other.kind, Kind::Rival | Kind::Limit));
    let rows: Vec<Row> = others.map(|relative| Row { name: name(relative.other), ratio: relative.ratio }).collect();
    chart("Against each rival and limit", &format!("{}: how ours compares", scenario.name), &rows)
}

/// Compares ours with the closest rival of every scenario; `None` if there is none.
pub(super) fn of_run(results: &Results) -> Option<Markup> {
    let closest = results.scenarios.iter().filter_map(|scenario| Some((scenario, scenario.closest_rival()?)));
    let rows: Vec<Row> = closest
        .map(|(scenario, relative)| Row {
            name: format!("{}, {}", scenario.name, relative.other.name),
            ratio: relative.ratio,
        })
        .collect();
    chart("Against the closest rival of each scenario", "How ours compares with the closest rivals", &rows)
}

/// Returns the label of a target; limits are marked, because ours cannot beat them by much.
fn name(target: &TargetResult) -> String {
    let limit = if target.kind == Kind::Limit { " (limit)" } else { "" };
    format!("{}{limit}", target.name)
}

fn chart(caption: &str, title: &str, rows: &[Row]) -> Option<Markup> {
    let axis = Axis::around(rows)?;
    let height = TOP + ROW * i32::try_from(rows.len()).ok()? + FOOT;
    let drawing = svg(title, height, |canvas| draw(canvas, &axis, rows));
    let entries = [(OURS, "ours is better"), (WORSE, "ours is worse"), (EVEN, "no difference seen")]
        .map(|(color, meaning)| LegendEntry { color, meaning: meaning.to_owned() });
    let how = "How many times as good ours is. The thin line is the 99 % confidence interval.";
    Some(figure(caption, how, &entries, drawing))
}

fn draw(canvas: &Canvas, axis: &Axis, rows: &[Row]) {
    let bottom = TOP + ROW * rows.len() as i32;
    for tick in axis.ticks() {
        let at = axis.at(tick);
        let (color, width) = if tick == 1.0 { (MUTED, 3) } else { (GRID, 2) };
        canvas.line(vec![(at, TOP), (at, bottom)], color, width);
        canvas.text(&format!("{tick}x"), (at, bottom + 26), TextAnchor::Middle, MUTED);
    }
    for (at, row) in rows.iter().enumerate() {
        draw_row(canvas, axis, row, TOP + ROW * at as i32 + ROW / 2);
    }
    canvas.text(
        "how many times as good ours is (logarithmic)",
        ((LEFT + RIGHT) / 2, bottom + 78),
        TextAnchor::Middle,
        INK,
    );
}

fn draw_row(canvas: &Canvas, axis: &Axis, row: &Row, middle: i32) {
    canvas.text(&shortened(&row.name), (LEFT - 20, middle), TextAnchor::End, INK);
    canvas.bar((axis.at(1.0), middle - BAR / 2), (axis.at(row.ratio.value), middle + BAR / 2), color(row.ratio));
    // A single trial has no interval.
    if row.ratio.high.is_finite() {
        let ends = [row.ratio.low, row.ratio.high];
        canvas.line(ends.map(|end| (axis.at(end), middle)).to_vec(), INK, 2);
        // An interval that goes beyond the axis has no visible end.
        for end in ends.into_iter().filter(|end| axis.holds(*end)).map(|end| axis.at(end)) {
            canvas.line(vec![(end, middle - 7), (end, middle + 7)], INK, 2);
        }
    }
    canvas.text(&row.ratio.to_string(), (RIGHT + 24, middle), TextAnchor::Start, INK);
}

fn color(ratio: Ratio) -> ThemeColor {
    match () {
        () if ratio.holds_one() => EVEN,
        () if ratio.value > 1.0 => OURS,
        () => WORSE,
    }
}

/// Shortens a name to fit beside the bars.
fn shortened(name: &str) -> String {
    const FITS: usize = 24;
    if name.chars().count() <= FITS {
        return name.to_owned();
    }
    name.chars().take(FITS - 1).chain(['…']).collect()
}

/// Logarithmic axis of ratios.
struct Axis {
    low: f64,
    high: f64,
}

impl Axis {
    /// Returns an axis around all ratios and 1; intervals may go beyond it. `None` if there is nothing to show.
    fn around(rows: &[Row]) -> Option<Self> {
        let values = || rows.iter().map(|row| row.ratio.value).filter(|value| value.is_finite() && *value > 0.0);
        values().next()?;
        let low = values().fold(1.0, f64::min).min(0.8);
        let high = values().fold(1.0, f64::max).max(1.25);
        Some(Self { low: low / 1.15, high: high * 1.15 })
    }

    /// Returns the position of a number, limited to the axis.
    fn at(&self, number: f64) -> i32 {
        let share = (number / self.low).ln() / (self.high / self.low).ln();
        let share = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
        LEFT + (share * f64::from(RIGHT - LEFT)).round() as i32
    }

    fn holds(&self, number: f64) -> bool {
        (self.low..=self.high).contains(&number)
    }

    fn ticks(&self) -> Vec<f64> {
        let span = self.high / self.low;
        let candidates: Vec<f64> = match span {
            span if span < 3.0 => vec![0.4, 0.5, 0.6, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5],
            span if span < 12.0 => vec![0.1, 0.15, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 5.0, 7.0, 10.0],
            span if span < 100.0 => (-7..=7).map(|power| 2f64.powi(power)).collect(),
            _ => (-12..=12).map(|power| 10f64.powi(power)).collect(),
        };
        candidates.into_iter().filter(|tick| self.holds(*tick)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(value: f64, low: f64, high: f64) -> Row {
        Row { name: "rival".into(), ratio: Ratio { value, low, high } }
    }

    #[test]
    fn colours_show_the_verdict_of_the_interval() {
        assert_eq!(color(row(1.4, 1.2, 1.6).ratio), OURS);
        assert_eq!(color(row(1.4, 0.9, 1.6).ratio), EVEN);
        assert_eq!(color(row(0.8, 0.7, 0.9).ratio), WORSE);
        assert_eq!(color(row(9.0, 0.0, f64::INFINITY).ratio), EVEN);
    }

    #[test]
    fn one_is_always_a_tick_and_all_bars_fit() {
        for rows in
            [vec![row(1.01, 1.0, 1.02)], vec![row(0.1, 0.1, 0.1), row(70.0, 60.0, 80.0)], vec![row(1e6, 1.0, 1e9)]]
        {
            let axis = Axis::around(&rows).expect("there is something to show");
            assert!(axis.ticks().contains(&1.0));
            assert!(axis.ticks().len() <= 15, "{:?}", axis.ticks());
            for row in &rows {
                assert!(
                    (LEFT..=RIGHT).contains(&axis.at(row.ratio.value))
                        && (LEFT..=RIGHT).contains(&axis.at(row.ratio.high))
                );
            }
        }
        assert!(Axis::around(&[]).is_none());
    }
}
