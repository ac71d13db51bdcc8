//! Formats what pages show: times, sizes, rates, states and foreign text.

use crate::rpc::task_view::{ProgressView, TaskView};
use crate::timestamp::Timestamp;
use blockhaul_engine::shown;
use blockhaul_engine::units::format_size;
use maud::{Markup, html};

/// Returns foreign text with its control characters escaped. The characters of HTML are escaped where it is rendered.
pub(super) fn text(text: &str) -> String {
    shown::line(text)
}

/// Returns the day and the second of a time.
pub(super) fn time(at: Timestamp) -> Markup {
    let whole = at.to_string();
    let short = whole.split('.').next().unwrap_or_default().replace('T', " ");
    html! { time datetime=(whole) title=(whole) { (short) "Z" } }
}

pub(super) fn time_or(at: Option<Timestamp>, otherwise: &str) -> Markup {
    at.map_or_else(|| html! { (otherwise) }, time)
}

pub(super) fn size(bytes: u64) -> String {
    format_size(bytes)
}

pub(super) fn rate(bytes_per_second: u64) -> String {
    format!("{}/s", format_size(bytes_per_second))
}

/// Renders a state by its name; the colour only repeats it.
pub(super) fn state(state: &str) -> Markup {
    html! { span class={ "state " (state.to_ascii_lowercase()) } { (text(state)) } }
}

/// Renders how far a task is, if it has bytes to move.
pub(super) fn progress(task: &TaskView) -> Markup {
    let ProgressView { planned, durable, verified, rate_bytes_per_second, eta_seconds, .. } = task.progress;
    let (done, word) =
        if task.state == "VERIFYING" || task.kind == "verify" { (verified, "compared") } else { (durable, "durable") };
    let left = eta_seconds.filter(|_| !task.over).map(|seconds| format!(", {seconds:.0} s left"));
    html! {
        @if planned > 0 {
            progress max=(planned) value=(done.min(planned)) aria-label={ (word) " bytes" } {}
            " " span.small {
                (size(done)) " of " (size(planned)) " " (word)
                @if rate_bytes_per_second > 0 && !task.over { ", " (rate(rate_bytes_per_second)) }
                (left.unwrap_or_default())
            }
        }
    }
}

pub(super) fn task_link(id: &str) -> Markup {
    html! { a href={ "/tasks/" (id) } { (text(id)) } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_controls_neither_the_page_nor_the_reader() {
        let shown = html! { (text("<b>\u{202e}\u{1b}[2Jx")) }.into_string();
        assert!(shown.starts_with("&lt;b&gt;\\x"), "{shown}");
        assert!(!shown.contains(['\u{202e}', '\u{1b}']), "{shown}");
    }

    #[test]
    fn times_are_read_by_people_and_by_programs() {
        let shown = time(Timestamp(951_782_400_001)).into_string();
        assert!(shown.contains(">2000-02-29 00:00:00Z<") && shown.contains("datetime=\"2000-02-29T00:00:00.001Z\""));
    }
}
