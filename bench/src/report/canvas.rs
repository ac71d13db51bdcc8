//! Draws shapes and text into one SVG element, with a title for screen readers.
//!
//! Positions are half pixels of a canvas that is shown at most [`WIDTH`]` / 2` pixels wide. A drawing has neither a
//! background nor fonts of its own: the page sets them.

use super::palette::ThemeColor;
use crate::format::plain;
use maud::{Markup, PreEscaped, html};
use plotters::backend::SVGBackend;
use plotters::coord::Shift;
use plotters::drawing::{DrawingArea, IntoDrawingArea};
use plotters::element::{Circle, PathElement, Rectangle, Text};
use plotters::style::text_anchor::{HPos, Pos, VPos};
use plotters::style::{Color, FontTransform, IntoFont, IntoTextStyle, TextStyle};

/// Width of every canvas.
pub(super) const WIDTH: i32 = 1520;

/// Text size; the library draws a quarter smaller.
const TEXT_SIZE: i32 = 30;

/// Reason why drawing cannot fail.
const CANNOT_FAIL: &str = "a drawing in memory takes everything";

/// A position: distances from the left and the top edge.
pub(super) type Position = (i32, i32);

/// Horizontal part of a text that lies at its position; vertically it is always the middle.
#[derive(Clone, Copy, Debug)]
pub(super) enum TextAnchor {
    Start,
    Middle,
    End,
}

/// A drawing in progress.
pub(super) struct Canvas<'a> {
    area: DrawingArea<SVGBackend<'a>, Shift>,
}

/// Returns an SVG element of this height, drawn by `draw`.
pub(super) fn svg(title: &str, height: i32, draw: impl FnOnce(&Canvas)) -> Markup {
    let mut text = String::new();
    let size = (WIDTH.unsigned_abs(), height.unsigned_abs());
    {
        let canvas = Canvas { area: SVGBackend::with_string(&mut text, size).into_drawing_area() };
        draw(&canvas);
        canvas.area.present().expect(CANNOT_FAIL);
    }
    // The library's own opening tag fixes the size and has no title.
    let shapes = text.split_once('>').map_or("", |(_, shapes)| shapes);
    let view = format!("0 0 {WIDTH} {height}");
    let title = html! { title { (plain(title)) } };
    PreEscaped(format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"{view}\" role=\"img\">{}{shapes}", title.0))
}

impl Canvas<'_> {
    /// Draws a line; its width is in half pixels.
    pub(super) fn line(&self, positions: Vec<Position>, color: ThemeColor, width: u32) {
        let style = color.drawn().stroke_width(width);
        self.area.draw(&PathElement::new(positions, style)).expect(CANNOT_FAIL);
    }

    /// Draws a filled rectangle between two corners, in any order.
    pub(super) fn bar(&self, (left, top): Position, (right, bottom): Position, color: ThemeColor) {
        let corners = [(left.min(right), top.min(bottom)), (left.max(right), top.max(bottom))];
        self.area.draw(&Rectangle::new(corners, color.drawn().filled())).expect(CANNOT_FAIL);
    }

    /// Draws a filled circle with an opacity from 0 to 1.
    pub(super) fn dot(&self, position: Position, radius: i32, color: ThemeColor, opacity: f64) {
        let style = color.drawn().mix(opacity).filled();
        self.area.draw(&Circle::new(position, radius, style)).expect(CANNOT_FAIL);
    }

    /// Draws horizontal text.
    pub(super) fn text(&self, text: &str, position: Position, anchor: TextAnchor, color: ThemeColor) {
        self.draw_text(text, position, style(anchor, color));
    }

    /// Draws text that runs upwards.
    pub(super) fn upwards(&self, text: &str, position: Position, color: ThemeColor) {
        self.draw_text(text, position, style(TextAnchor::Middle, color).transform(FontTransform::Rotate270));
    }

    fn draw_text(&self, text: &str, position: Position, style: TextStyle) {
        // XML allows no control characters.
        let text = plain(text).into_owned();
        self.area.draw(&Text::new(text, position, style)).expect(CANNOT_FAIL);
    }
}

fn style(anchor: TextAnchor, color: ThemeColor) -> TextStyle<'static> {
    let held = match anchor {
        TextAnchor::Start => HPos::Left,
        TextAnchor::Middle => HPos::Center,
        TextAnchor::End => HPos::Right,
    };
    let font = ("sans-serif", TEXT_SIZE).into_font().color(&color.drawn());
    font.into_text_style(&(0, 0)).pos(Pos::new(held, VPos::Center))
}

#[cfg(test)]
mod tests {
    use super::super::palette::{INK, OURS};
    use super::*;

    #[test]
    fn a_drawing_with_any_text_is_well_formed() {
        let odd = "a<b> & \"c\" \u{1b}[31m";
        let drawing = svg(odd, 200, |canvas| {
            canvas.line(vec![(0, 0), (10, 20)], INK, 2);
            canvas.bar((30, 30), (10, 10), OURS);
            canvas.dot((5, 5), 3, OURS, 0.5);
            canvas.text(odd, (50, 50), TextAnchor::End, INK);
            canvas.upwards(odd, (50, 50), INK);
        });
        let text = drawing.into_string();
        let document = roxmltree::Document::parse(&text).expect("it is XML");
        let names: Vec<&str> =
            document.root_element().children().filter(|n| n.is_element()).map(|n| n.tag_name().name()).collect();
        assert_eq!(names, ["title", "polyline", "rect", "circle", "text", "text"]);
        let bar = document.descendants().find(|node| node.has_tag_name("rect")).expect("it was drawn");
        assert_eq!((bar.attribute("x"), bar.attribute("width")), (Some("10"), Some("20")));
        assert_eq!(bar.attribute("fill"), Some("#2563EB"), "rules of the palette go by this spelling");
    }
}
