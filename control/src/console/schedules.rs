//! Renders schedules.

use super::calls::Calls;
use super::change::{Change, ScheduleAction};
use super::format::{self, task_link};
use super::layout::Page;
use super::task::links;
use crate::rpc::error::RpcError;
use crate::rpc::schedule_view::ScheduleInfo;
use maud::html;

/// Fetches and renders a page of the list.
///
/// # Errors
/// Those of the center.
pub(super) async fn page(calls: &Calls, after: &str) -> Result<Page, RpcError> {
    let (schedules, next) = calls.schedules(after.to_owned()).await?;
    let main = html! {
        div #list data-live {
            @if schedules.is_empty() { p { "There are none." } } @else {
                table {
                    thead {
                        tr {
                            th scope="col" { "Schedule" } th scope="col" { "State" } th.wide scope="col" { "When" }
                            th scope="col" { "Next" } th.wide scope="col" { "Last task" } th scope="col" { "Reason" }
                        }
                    }
                    tbody {
                        @for schedule in &schedules {
                            tr {
                                td { a href={ "/schedules/" (schedule.name) } { (format::text(&schedule.name)) } }
                                td { (format::state(&schedule.state)) }
                                td.wide { code { (format::text(&schedule.trigger)) } " " (format::text(&schedule.zone)) }
                                td { (format::time_or(schedule.next_at.first().copied(), "-")) }
                                td.wide { @if let Some(task) = &schedule.last_task { (task_link(task)) } }
                                td.small { (format::text(&schedule.reason)) }
                            }
                        }
                    }
                }
            }
            @if !next.is_empty() { p { a href={ "/schedules?after=" (next) } { "More" } } }
        }
    };
    Ok(Page::live("Schedules", main))
}

/// Fetches and renders one.
///
/// # Errors
/// Those of the center.
pub(super) async fn one(calls: &Calls, name: &str, may_write: bool) -> Result<Page, RpcError> {
    let schedule = calls.schedule(name).await?;
    let ScheduleInfo { name, state, reason, trigger, zone, next_at, last_fired_at, last_task, .. } = &schedule;
    let texts = [
        ("Kind", Some(schedule.kind.to_owned())),
        ("Source", schedule.source.clone()),
        ("Destination", schedule.destination.clone()),
        ("Hook", schedule.hook.clone()),
        ("Members", schedule.members.map(|members| members.to_string())),
        ("Node", schedule.node.clone()),
        ("Kept tasks", Some(schedule.keep.to_string())),
        ("After a pause of the center", Some(format!("--catch-up {}", schedule.catch_up))),
    ];
    let actions: &[ScheduleAction] = match &**state {
        "PAUSED" => &[ScheduleAction::Resume, ScheduleAction::Run],
        "ACTIVE" => &[ScheduleAction::Pause, ScheduleAction::Run],
        _ => &[],
    };
    let main = html! {
        div #facts data-live {
            p { (format::state(state)) " " (format::text(reason)) }
            dl {
                dt { "When" } dd { code { (format::text(trigger)) } " " (format::text(zone)) }
                @for (name, value) in texts.iter() {
                    @if let Some(value) = value { dt { (name) } dd { (format::text(value)) } }
                }
                dt { "Last instant" } dd { (format::time_or(*last_fired_at, "none yet")) }
                @if let Some(task) = last_task { dt { "Last task" } dd { (task_link(task)) } }
                dt { "Tasks made" } dd { (schedule.fired) ", and none at " (schedule.skipped) " instants" }
                dt { "Next" } dd { @for at in next_at { (format::time(*at)) " " } @if next_at.is_empty() { "none" } }
            }
            @if may_write { (links(actions.iter().map(|action| Change::Schedule(name.clone(), *action)))) }
        }
    };
    Ok(Page::live(format!("Schedule {}", format::text(name)), main))
}
