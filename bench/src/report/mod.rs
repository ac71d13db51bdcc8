//! The results as one HTML file: no network, no script, no font, readable in light and dark.
//!
//! `page` is the order of things, `scenario` one section of it; `ratios` and `lines` are the charts, drawn on the
//! sheets of `drawing` within the axes of `plot`, in the colours of `palette`, with the titles of `legend`. Every text
//! that came from elsewhere is escaped by the template library.

mod canvas;
mod plot;
mod legend;
mod lines;
mod page;
mod palette;
mod ratios;
mod scenario;

pub(crate) use page::render;
