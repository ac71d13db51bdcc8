//! Renders results as one HTML file: no network, no script, no font, readable in light and dark.
//!
//! `page` sets the order of the sections, `scenario` renders one of them. `ratios` and `lines` draw the charts on the
//! canvas of `canvas`, within the axes of `plot`, in the colours of `palette`, with the captions of `legend`. The
//! template library escapes all text from other programs.

mod canvas;
mod plot;
mod legend;
mod lines;
mod page;
mod palette;
mod ratios;
mod scenario;
mod warning;

pub(crate) use page::render;
