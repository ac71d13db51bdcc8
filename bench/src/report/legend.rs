//! A chart with its title, what its colours mean, and how to read it.

use super::palette::Shade;
use maud::{Markup, html};

/// A colour and what it means.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub shade: Shade,
    pub meaning: String,
}

/// A chart as a figure of the page. The legend is text beside the drawing, so that it wraps and can be copied.
pub(super) fn figure(title: &str, how_to_read: &str, entries: &[Entry], drawing: Markup) -> Markup {
    html! {
        figure {
            figcaption { strong { (title) } " " span.note { (how_to_read) } }
            ul.legend {
                @for entry in entries {
                    li { span.swatch style={ "background:" (entry.shade.variable()) } {} (entry.meaning) }
                }
            }
            div.chart { (drawing) }
        }
    }
}

/// Colours for names in the order of their first appearance; ours, if it is among them, gets the first.
pub(super) fn entries<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for name in names {
        if !entries.iter().any(|entry| entry.meaning == name) {
            entries.push(Entry { shade: Shade::of_series(entries.len()), meaning: name.to_owned() });
        }
    }
    entries
}

/// The colour that a name was given.
pub(super) fn shade_of(name: &str, entries: &[Entry]) -> Shade {
    let entry = entries.iter().find(|entry| entry.meaning == name);
    entry.map_or(Shade::of_series(0), |entry| entry.shade)
}
