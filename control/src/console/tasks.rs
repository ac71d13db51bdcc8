//! Renders lists of tasks.

use super::calls::Calls;
use super::format::{self, task_link};
use super::layout::Page;
use super::view::TaskFilter;
use crate::model::TaskState;
use crate::rpc::error::RpcError;
use crate::rpc::task_view::TaskView;
use crate::rpc::wire;
use maud::{Markup, html};
use strum::VariantArray;

/// Fetches and renders a page of the list.
///
/// # Errors
/// Those of the center.
pub(super) async fn page(calls: &Calls, filter: &TaskFilter) -> Result<Page, RpcError> {
    let TaskFilter { state, group, after } = filter.clone();
    let query = wire::ListRequest { state: state.clone(), group: group.clone(), after };
    let (tasks, next) = calls.tasks(query).await?;
    let title = match (&*state, &*group) {
        ("", "") => String::from("Tasks"),
        (state, "") => format!("Tasks: {state}"),
        ("", group) => format!("Members of {}", format::text(group)),
        (state, group) => format!("Members of {}: {state}", format::text(group)),
    };
    let main = html! {
        nav aria-label="States" {
            a href={ "/tasks?group=" (group) } aria-current=[state.is_empty().then_some("true")] { "all" }
            @for name in TaskState::VARIANTS.iter().map(|state| state.as_str()) {
                a href={ "/tasks?state=" (name) "&group=" (group) } aria-current=[(name == state).then_some("true")] { (name) }
            }
        }
        div #list data-live {
            @if tasks.is_empty() { p { "There are none." } } @else { (table(&tasks)) }
            @if !next.is_empty() {
                p { a href={ "/tasks?state=" (state) "&group=" (group) "&after=" (next) } { "More" } }
            }
        }
    };
    Ok(Page::live(title, main))
}

/// Renders tasks, one in each line.
pub(super) fn table(tasks: &[TaskView]) -> Markup {
    html! {
        table {
            thead {
                tr {
                    th scope="col" { "Task" } th scope="col" { "State" } th.wide scope="col" { "Kind" }
                    th.wide scope="col" { "Node" } th scope="col" { "Progress or reason" } th.wide scope="col" { "Changed" }
                }
            }
            tbody {
                @for task in tasks {
                    tr {
                        td { (task_link(&task.id)) }
                        td { (format::state(&task.state)) }
                        td.wide { (task.kind) }
                        td.wide { (format::text(task.node.as_deref().unwrap_or("-"))) }
                        td { (format::progress(task)) " " span.small { (format::text(&task.reason)) } }
                        td.wide { (format::time(task.updated_at)) }
                    }
                }
            }
        }
    }
}
