//! Renders the overview: who leads, how many tasks there are in each state, what runs, and what has failed last.

use super::calls::Calls;
use super::format;
use super::layout::Page;
use super::tasks::table;
use crate::rpc::error::RpcError;
use crate::rpc::task_view::TaskView;
use crate::rpc::wire;
use maud::html;

/// Most tasks of one list.
const SHOWN_MAX: usize = 20;
/// States, in the order in which a task has them.
const STATES: [&str; 11] = [
    "PENDING",
    "ASSIGNED",
    "RUNNING",
    "VERIFYING",
    "PAUSED",
    "CANCELLING",
    "LOST",
    "SUCCEEDED",
    "FAILED",
    "CANCELLED",
    "SKIPPED",
];

/// Fetches and renders it.
///
/// # Errors
/// Those of the center.
pub(super) async fn page(calls: &Calls) -> Result<Page, RpcError> {
    let status = calls.status().await?;
    let running = some(calls, "RUNNING").await?;
    let lost = some(calls, "LOST").await?;
    let failed = some(calls, "FAILED").await?;
    let rate: u64 = running.iter().map(|task| task.progress.rate_bytes_per_second).sum();
    let wire::CenterStatus { center, leader, leader_address, epoch, runners, tasks, unreadable, .. } = status;
    let count = |state: &str| tasks.get(state).copied().unwrap_or_default();
    let main = html! {
        div #summary data-live {
            p {
                "Center " strong { (format::text(&center)) } ", led by " strong { (format::text(&leader)) } " at "
                (format::text(&leader_address)) ", epoch " (epoch) ", "
                a href="/nodes" { (runners) @if runners == 1 { " node" } @else { " nodes" } } "."
            }
            @if !unreadable.is_empty() {
                p.failure { (unreadable.len()) " records cannot be decoded, and are left alone: see the leader's log." }
            }
            ul.numbers {
                @for state in STATES.iter().filter(|state| count(state) > 0) {
                    li { a href={ "/tasks?state=" (state) } { strong { (count(state)) } (format::state(state)) } }
                }
                @if tasks.values().all(|count| *count == 0) { li { "There are no tasks." } }
            }
        }
        div #tables data-live {
            @for (title, found, state) in [("Lost", &lost, "LOST"), ("Running", &running, "RUNNING"), ("Failed", &failed, "FAILED")] {
                @if !found.is_empty() {
                    h2 { (title) @if state == "RUNNING" && rate > 0 { span.quiet { " " (format::rate(rate)) " in all" } } }
                    (table(found))
                    @if count(state) > found.len() as u64 { p { a href={ "/tasks?state=" (state) } { "All " (count(state)) } } }
                }
            }
        }
    };
    Ok(Page::live("Overview", main))
}

async fn some(calls: &Calls, state: &str) -> Result<Vec<TaskView>, RpcError> {
    let query = wire::ListRequest { state: state.to_owned(), ..wire::ListRequest::default() };
    let (mut tasks, _) = calls.tasks(query).await?;
    tasks.truncate(SHOWN_MAX);
    Ok(tasks)
}
