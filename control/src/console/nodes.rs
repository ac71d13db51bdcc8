//! Renders the nodes of a center.

use super::calls::Calls;
use super::change::{Change, NodeAction};
use super::format;
use super::layout::Page;
use super::task::links;
use crate::rpc::error::RpcError;
use crate::rpc::wire::Node;
use crate::timestamp::Timestamp;
use maud::html;

/// Fetches and renders them.
///
/// # Errors
/// Those of the center.
pub(super) async fn page(calls: &Calls, may_write: bool) -> Result<Page, RpcError> {
    let nodes = calls.nodes().await?;
    let main = html! {
        div #list data-live {
            @if nodes.is_empty() { p { "No node is known." } }
            table {
                thead {
                    tr {
                        th scope="col" { "Node" } th scope="col" { "State" } th.number scope="col" { "Tasks" }
                        th.wide scope="col" { "Address" } th.wide scope="col" { "Labels" } th.wide scope="col" { "Clock" }
                        th.wide scope="col" { "Last task" } th.wide scope="col" { "Version" }
                        @if may_write { th scope="col" { "Actions" } }
                    }
                }
                tbody {
                    @for node in &nodes {
                        tr {
                            td { strong { (format::text(&node.node)) } }
                            td {
                                (state(node))
                                @if !node.excluded_reason.is_empty() { " " span.small { (format::text(&node.excluded_reason)) } }
                            }
                            td.number { (node.running) " of " (node.slots) }
                            td.wide { (format::text(&node.address)) }
                            td.wide { (labels(node)) }
                            td.wide { (clock(node)) }
                            td.wide {
                                (format::text(&node.last_task)) " "
                                (format::time_or(node.last_task_ended_ms.map(Timestamp), ""))
                            }
                            td.wide { (format::text(&node.build)) }
                            @if may_write { td { (links(changes(node).into_iter())) } }
                        }
                    }
                }
            }
        }
    };
    Ok(Page::live("Nodes", main))
}

/// Returns what a node is, in words; the worst first.
fn state(node: &Node) -> &'static str {
    match node {
        Node { unreadable: true, .. } => "registered by a record that cannot be decoded",
        Node { registered: false, .. } => "away",
        Node { stopping: true, .. } => "stopping",
        Node { excluded_until_ms: Some(_), .. } => "excluded",
        Node { draining: true, .. } => "draining",
        _ if node.running >= node.slots => "full",
        _ => "ready",
    }
}

fn labels(node: &Node) -> String {
    let mut labels: Vec<String> = node.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    format::text(&labels.join(" "))
}

fn clock(node: &Node) -> String {
    let offset = node.clock_offset_ms.map(|offset| format!("{offset:+} ms")).unwrap_or_default();
    if node.clock_is_off { format!("{offset}: wrong") } else { offset }
}

/// Returns what can be done about a node.
fn changes(node: &Node) -> Vec<Change> {
    let drain = if node.draining { NodeAction::Undrain } else { NodeAction::Drain };
    let include = node.excluded_until_ms.map(|_| NodeAction::Include);
    let actions = [Some(drain), include].into_iter().flatten();
    actions.map(|action| Change::Node(node.node.clone(), action)).collect()
}
