//! Renders one task: what it does, how far it is, its history, its attempts with their logs, its report, and its group.

use super::calls::Calls;
use super::change::{Change, TaskAction};
use super::format::{self, task_link};
use super::graph;
use super::layout::Page;
use crate::rpc::error::RpcError;
use crate::rpc::task_view::{AttemptView, ErrorView, TaskView};
use crate::rpc::wire;
use crate::timestamp::Timestamp;
use maud::{Markup, html};

/// Fetches and renders it.
///
/// # Errors
/// Those of the center.
pub(super) async fn page(calls: &Calls, id: &str, may_write: bool) -> Result<Page, RpcError> {
    let task = calls.task(id).await?;
    let transitions = calls.transitions(id).await?;
    let group = if task.kind == "group" { Some(task.id.clone()) } else { task.group.clone() };
    let members = match &group {
        Some(group) => {
            let query = wire::ListRequest { group: group.clone(), ..wire::ListRequest::default() };
            Some(calls.tasks(query).await?)
        }
        None => None,
    };
    let main = html! {
        div #facts data-live {
            p { (format::state(&task.state)) " " (format::progress(&task)) }
            @if !task.reason.is_empty() { p { (format::text(&task.reason)) } }
            (error(task.error.as_ref()))
            (facts(&task))
            @if may_write { (actions(&task)) }
        }
        div #history data-live {
            @if let (Some(group), Some((members, next))) = (&group, &members) {
                h2 { "Group " (task_link(group)) }
                (graph::graph(members, &task.id))
                p { a href={ "/tasks?group=" (group) } { "Members" } @if !next.is_empty() { ": more than fit here" } }
            }
            (attempts(&task))
            (history(&transitions))
            @if let Some(report) = &task.report {
                h2 { "Report" }
                pre { (serde_json::to_string_pretty(report).unwrap_or_default()) }
            }
        }
    };
    Ok(Page::live(format!("Task {}", format::text(&task.id)), main))
}

fn error(error: Option<&ErrorView>) -> Markup {
    html! {
        @if let Some(ErrorView { code, message, side, operation, retryable, .. }) = error {
            p.failure {
                strong { (format::text(code)) } ": " (format::text(message)) " "
                span.small { "(" (format::text(side)) ", " (format::text(operation)) @if *retryable { ", worth a retry" } ")" }
            }
        }
    }
}

fn facts(task: &TaskView) -> Markup {
    let texts = [
        ("Kind", Some(task.kind.to_owned())),
        ("Source", task.source.clone()),
        ("Destination", task.destination.clone()),
        ("Hook", task.hook.clone()),
        ("Node", task.node.clone()),
        ("Fence", task.fence.clone()),
        ("Limit", task.limit.map(format::rate)),
        ("Priority", (task.priority > 0).then(|| task.priority.to_string())),
        ("Windows", (!task.windows.is_empty()).then(|| task.windows.join("; "))),
        ("Apart from", task.apart_from.clone()),
        ("Desired", (task.desired_state != "run").then(|| task.desired_state.clone())),
    ];
    let links = [
        ("Group", task.group.as_ref().map(|group| format!("/tasks/{group}")), &task.group),
        ("Retry of", task.retry_of.as_ref().map(|id| format!("/tasks/{id}")), &task.retry_of),
        ("Schedule", task.schedule.as_ref().map(|name| format!("/schedules/{name}")), &task.schedule),
    ];
    html! {
        dl {
            @for (name, value) in texts.iter() {
                @if let Some(value) = value { dt { (name) } dd { (format::text(value)) } }
            }
            @for (name, address, value) in links.iter() {
                @if let (Some(address), Some(value)) = (address, value) { dt { (name) } dd { a href=(address) { (format::text(value)) } } }
            }
            @if !task.after.is_empty() {
                dt { "After" }
                dd { @for on in &task.after { (task_link(&on.task)) " (" (format::text(&on.condition)) ") " } }
            }
            dt { "Created" } dd { (format::time(task.created_at)) }
            dt { "Changed" } dd { (format::time(task.updated_at)) }
            @if let Some(at) = task.starts_at { dt { "Starts" } dd { (format::time(at)) } }
            @if let Some(at) = task.deadline_at { dt { "Deadline" } dd { (format::time(at)) } }
        }
    }
}

fn actions(task: &TaskView) -> Markup {
    let offered: &[TaskAction] = match (&*task.desired_state, task.kind) {
        _ if task.over => &[],
        ("cancel", "group") => &[TaskAction::CancelAll],
        ("cancel", _) => &[],
        (_, "group") => &[TaskAction::Cancel, TaskAction::CancelAll],
        ("pause", _) => &[TaskAction::Resume, TaskAction::Cancel],
        (_, "copy") => &[TaskAction::Pause, TaskAction::Cancel],
        _ => &[TaskAction::Cancel],
    };
    links(offered.iter().map(|action| Change::Task(task.id.clone(), *action)))
}

/// Renders links to the questions of changes.
pub(super) fn links(changes: impl Iterator<Item = Change>) -> Markup {
    html! {
        div.actions { @for change in changes { a href=(change.path()) { (change.words().0) } } }
    }
}

fn attempts(task: &TaskView) -> Markup {
    html! {
        @if !task.attempts.is_empty() {
            h2 { "Attempts" }
            table {
                thead {
                    tr {
                        th scope="col" { "Node" } th scope="col" { "Started" } th scope="col" { "Ended" }
                        th scope="col" { "Outcome" } th scope="col" { "Log" }
                    }
                }
                tbody {
                    @for (index, AttemptView { runner, started_at, ended_at, outcome, .. }) in task.attempts.iter().enumerate() {
                        tr {
                            td { (format::text(runner)) }
                            td { (format::time(*started_at)) }
                            td { (format::time_or(*ended_at, "-")) }
                            td { (format::text(outcome.as_deref().unwrap_or("-"))) }
                            td { a href={ "/tasks/" (task.id) "/log/" (index + 1) } { "log of attempt " (index + 1) } }
                        }
                    }
                }
            }
        }
    }
}

fn history(transitions: &[wire::Transition]) -> Markup {
    html! {
        @if !transitions.is_empty() {
            h2 { "History" }
            table {
                thead {
                    tr {
                        th scope="col" { "When" } th scope="col" { "State" } th.wide scope="col" { "Node" }
                        th scope="col" { "By" } th scope="col" { "Why" }
                    }
                }
                tbody {
                    @for transition in transitions {
                        tr {
                            td { (format::time(Timestamp(transition.at_ms))) }
                            td { (format::state(&transition.state)) }
                            td.wide { (format::text(transition.node.as_deref().unwrap_or("-"))) }
                            td { (format::text(&transition.by)) @if let Some(client) = &transition.client { " " (format::text(client)) } }
                            td { (format::text(&transition.reason)) }
                        }
                    }
                }
            }
        }
    }
}

/// Fetches and renders the log of an attempt, by default of the last one.
///
/// # Errors
/// Those of the center; `ENotFound` where there is no log.
pub(super) async fn log(calls: &Calls, id: &str, attempt: Option<u32>) -> Result<Page, RpcError> {
    let (node, bytes) = calls.log(id, attempt).await?;
    let whole = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = whole.lines().map(format::text).collect();
    let main = html! {
        p { "Task " (task_link(id)) ", on node " (format::text(&node)) "." }
        @if lines.is_empty() { p { "It is empty." } } @else { pre tabindex="0" { (lines.join("\n")) } }
    };
    let title =
        attempt.map_or_else(|| String::from("Log of the last attempt"), |number| format!("Log of attempt {number}"));
    Ok(Page::new(title, main))
}
