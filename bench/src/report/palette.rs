//! Defines the colours of charts, for light and dark.
//!
//! A chart carries its light colours as plain attributes, so that it can be shown anywhere. The page overrides each of
//! them by its attribute (`[fill="#2563EB"]`) with a variable that follows the reader's preference: one drawing serves
//! both. The series differ in lightness as well, for colour-blind readers.

use plotters::style::RGBColor;
use std::fmt::Write;

/// A colour of charts; drawings carry its light variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ThemeColor {
    name: &'static str,
    light: (u8, u8, u8),
    dark: (u8, u8, u8),
}

/// For titles and numbers.
pub(super) const INK: ThemeColor = ThemeColor { name: "ink", light: (31, 41, 55), dark: (229, 231, 235) };
/// For axes and less important text.
pub(super) const MUTED: ThemeColor = ThemeColor { name: "muted", light: (100, 112, 133), dark: (156, 163, 175) };
/// For grid lines.
pub(super) const GRID: ThemeColor = ThemeColor { name: "grid", light: (226, 230, 236), dark: (50, 60, 78) };
/// For our targets, and where ours is better.
pub(super) const OURS: ThemeColor = ThemeColor { name: "ours", light: (37, 99, 235), dark: (96, 165, 250) };
/// For bars where ours is worse.
pub(super) const WORSE: ThemeColor = ThemeColor { name: "worse", light: (217, 83, 30), dark: (251, 146, 80) };
/// For bars that show no difference.
pub(super) const EVEN: ThemeColor = ThemeColor { name: "even", light: (152, 162, 179), dark: (107, 119, 140) };

/// Number of series in one chart at most.
pub(super) const SERIES_MAX: usize = SERIES.len();

/// Colours of series, in the order in which they are assigned.
const SERIES: [ThemeColor; 8] = [
    OURS,
    ThemeColor { name: "series-1", light: (224, 122, 16), dark: (251, 191, 36) },
    ThemeColor { name: "series-2", light: (13, 148, 114), dark: (52, 211, 153) },
    ThemeColor { name: "series-3", light: (190, 50, 180), dark: (232, 121, 249) },
    ThemeColor { name: "series-4", light: (75, 85, 105), dark: (203, 213, 225) },
    ThemeColor { name: "series-5", light: (120, 53, 15), dark: (200, 140, 90) },
    ThemeColor { name: "series-6", light: (8, 135, 165), dark: (34, 211, 238) },
    ThemeColor { name: "series-7", light: (225, 29, 72), dark: (251, 113, 133) },
];

impl ThemeColor {
    /// Returns the colour of the series at this index; colours repeat after [`SERIES_MAX`].
    pub(super) fn of_series(at: usize) -> Self {
        SERIES[at % SERIES.len()]
    }

    /// Returns the light variant.
    pub(super) fn drawn(self) -> RGBColor {
        let (red, green, blue) = self.light;
        RGBColor(red, green, blue)
    }

    /// Returns the CSS variable, for legends outside of a drawing.
    pub(super) fn variable(self) -> String {
        format!("var(--{})", self.name)
    }
}

/// Returns the CSS variables for both schemes, and the rules that apply them to drawings.
pub(super) fn css() -> String {
    let mut css = String::new();
    let all: Vec<ThemeColor> = [INK, MUTED, GRID, WORSE, EVEN].into_iter().chain(SERIES).collect();
    let variables = |color: fn(&ThemeColor) -> (u8, u8, u8)| -> String {
        all.iter().map(|each| format!("--{}:{};", each.name, hex(color(each)))).collect()
    };
    let dark = variables(|each| each.dark);
    let light = variables(|each| each.light);
    // Writing to a string cannot fail.
    let _ = writeln!(css, ":root{{{light}}}\n@media (prefers-color-scheme:dark){{:root{{{dark}}}}}");
    for each in &all {
        let (drawn, variable) = (hex(each.light), each.variable());
        let _ = writeln!(css, "svg [fill=\"{drawn}\"]{{fill:{variable}}}svg [stroke=\"{drawn}\"]{{stroke:{variable}}}");
    }
    css
}

/// Formats a colour as the drawing library does.
fn hex((red, green, blue): (u8, u8, u8)) -> String {
    format!("#{red:02X}{green:02X}{blue:02X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_colours_are_drawn_alike() {
        let mut drawn: Vec<String> =
            [INK, MUTED, GRID, WORSE, EVEN].iter().chain(&SERIES).map(|s| hex(s.light)).collect();
        drawn.sort();
        let all = drawn.len();
        drawn.dedup();
        assert_eq!(drawn.len(), all, "a rule by attribute cannot distinguish them");
    }

    /// Contrast as WCAG defines it: 3 for what is drawn, 4.5 for what is read.
    #[test]
    fn colours_stand_out_from_their_background() {
        let text = [INK, MUTED];
        for color in text.iter().chain(&SERIES).chain(&[WORSE]) {
            let needed = if text.contains(color) { 4.5 } else { 3.0 };
            for (colour, background) in [(color.light, (255, 255, 255)), (color.dark, (17, 24, 39))] {
                let contrast = contrast(colour, background);
                assert!(contrast >= needed, "{} has a contrast of {contrast:.1} on {background:?}", color.name);
            }
        }
    }

    fn contrast(a: (u8, u8, u8), b: (u8, u8, u8)) -> f64 {
        let linear = |channel: u8| {
            let share = f64::from(channel) / 255.0;
            if share <= 0.04045 { share / 12.92 } else { ((share + 0.055) / 1.055).powf(2.4) }
        };
        let luminance = |(r, g, b)| 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
        let (a, b): (f64, f64) = (luminance(a), luminance(b));
        (a.max(b) + 0.05) / (a.min(b) + 0.05)
    }
}
