//! Renders the frame of all pages: the title, the places to go, and what is the same on each.

use super::change::Change;
use axum::http::{StatusCode, Uri};
use axum::response::Html;
use maud::{DOCTYPE, Markup, html};

/// Places of the console, by address.
const PLACES: [(&str, &str); 5] = [
    ("/", "Overview"),
    ("/tasks", "Tasks"),
    ("/nodes", "Nodes"),
    ("/schedules", "Schedules"),
    ("/settings", "Settings"),
];
/// Time after which a page without scripts is fetched again, in seconds.
const AGAIN_SECONDS: &str = "5";

/// A page without its frame.
#[derive(Debug)]
pub(super) struct Page {
    pub(super) title: String,
    pub(super) main: Markup,
    /// Whether it is kept up to date. The parts that change have an `id` and `data-live`.
    pub(super) is_live: bool,
}

impl Page {
    pub(super) fn new(title: impl Into<String>, main: Markup) -> Self {
        Self { title: title.into(), main, is_live: false }
    }

    pub(super) fn live(title: impl Into<String>, main: Markup) -> Self {
        Self { is_live: true, ..Self::new(title, main) }
    }

    /// Says why there is nothing else to see.
    pub(super) fn failure(status: StatusCode, message: &str) -> Self {
        let title = status.canonical_reason().unwrap_or("Failure");
        Self::new(title, html! { p.failure role="alert" { (super::format::text(message)) } })
    }

    /// Asks before a change is made.
    pub(super) fn question(change: &Change) -> Self {
        let (word, question) = change.words();
        let main = html! {
            p { (super::format::text(&question)) }
            form method="post" action=(change.path()) {
                button type="submit" autofocus { (word) }
                " "
                a href=(change.leads_to()) { "Leave it as it is" }
            }
        };
        Self::new(word, main)
    }
}

/// Where a page is.
#[derive(Debug)]
pub(super) struct Frame {
    path: String,
}

impl Frame {
    pub(super) fn of(uri: &Uri) -> Self {
        Self { path: uri.path().to_owned() }
    }

    fn is_at(&self, place: &str) -> bool {
        if place == "/" { self.path == "/" } else { self.path.starts_with(place) }
    }
}

/// Renders a whole page.
pub(super) fn page(page: &Page, frame: Frame) -> Html<String> {
    let Page { title, main, is_live } = page;
    let whole = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " - blockhaul" }
                link rel="stylesheet" href="/style.css";
                @if *is_live {
                    noscript { meta http-equiv="refresh" content=(AGAIN_SECONDS); }
                    script src="/live.js" defer {}
                }
            }
            body {
                a.skip href="#main" { "To the content" }
                header {
                    strong { "blockhaul" }
                    nav aria-label="Places" {
                        @for (place, name) in PLACES {
                            a href=(place) aria-current=[frame.is_at(place).then_some("page")] { (name) }
                        }
                    }
                    @if *is_live { span #connection role="status" {} }
                }
                main #main tabindex="-1" { h1 { (title) } (main) }
            }
        }
    };
    Html(whole.into_string())
}
