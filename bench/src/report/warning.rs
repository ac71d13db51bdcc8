//! Renders a reason to distrust a number.

use crate::results::Warning;
use maud::{Markup, html};

/// Renders a warning with its advice.
pub(super) fn warning(targets: &str, warning: &Warning) -> Markup {
    html! {
        p.warning {
            strong { (warning.kind) } " "
            @if !targets.is_empty() { (targets) ": " }
            (warning.what) ". " span.note { (warning.advice) }
        }
    }
}
