//! Renders the settings of a center.

use super::calls::Calls;
use super::format;
use super::layout::Page;
use crate::rpc::error::RpcError;
use maud::html;
use std::collections::BTreeMap;

/// Fetches and renders them.
///
/// # Errors
/// Those of the center.
pub(super) async fn page(calls: &Calls) -> Result<Page, RpcError> {
    let settings = calls.settings().await?;
    let values: BTreeMap<_, _> = settings.values.iter().collect();
    let main = html! {
        p.quiet { "Version " (settings.version) ". They are changed by " code { "blockhaul center set NAME=VALUE" } "." }
        dl { @for (name, value) in values { dt { (format::text(name)) } dd { (format::text(value)) } } }
    };
    Ok(Page::new("Settings", main))
}
