//! Puts a caption and a legend around a chart.

use super::palette::ThemeColor;
use maud::{Markup, html};

/// A colour and its meaning.
#[derive(Clone, Debug)]
pub(super) struct LegendEntry {
    pub color: ThemeColor,
    pub meaning: String,
}

/// Renders a chart with caption and legend. The legend is text outside of the drawing, so that it wraps and can be
/// copied.
pub(super) fn figure(title: &str, how_to_read: &str, entries: &[LegendEntry], drawing: Markup) -> Markup {
    html! {
        figure {
            figcaption { strong { (title) } " " span.note { (how_to_read) } }
            ul.legend {
                @for entry in entries {
                    li { span.swatch style={ "background:" (entry.color.variable()) } {} (entry.meaning) }
                }
            }
            div.chart { (drawing) }
        }
    }
}

/// Assigns colours to names in the order of their first appearance.
pub(super) fn entries<'a>(names: impl Iterator<Item = &'a str>) -> Vec<LegendEntry> {
    let mut entries: Vec<LegendEntry> = Vec::new();
    for name in names {
        if !entries.iter().any(|entry| entry.meaning == name) {
            entries.push(LegendEntry { color: ThemeColor::of_series(entries.len()), meaning: name.to_owned() });
        }
    }
    entries
}

/// Returns the colour of a name.
pub(super) fn color_of(name: &str, entries: &[LegendEntry]) -> ThemeColor {
    let entry = entries.iter().find(|entry| entry.meaning == name);
    entry.map_or(ThemeColor::of_series(0), |entry| entry.color)
}
