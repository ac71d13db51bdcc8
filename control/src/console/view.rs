//! Tells what an address of the console shows, fetches it, and renders it.

use super::calls::Calls;
use super::change::Change;
use super::layout::Page;
use super::{nodes, overview, schedules, settings, task, tasks};
use crate::rpc::error::RpcError;
use axum::extract::Query;
use axum::http::Uri;
use serde::Deserialize;

/// What a page shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum View {
    Overview,
    Tasks(TaskFilter),
    Task(String),
    Log { id: String, attempt: Option<u32> },
    Nodes,
    Schedules { after: String },
    Schedule(String),
    Settings,
    Question(Change),
}

/// Which tasks are listed. Empty: all, from the first one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct TaskFilter {
    pub(super) state: String,
    pub(super) group: String,
    pub(super) after: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct After {
    after: String,
}

impl View {
    /// Parses an address; `None` if it shows nothing. Names have no characters that an address escapes.
    pub(super) fn parse(uri: &Uri) -> Option<Self> {
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        Some(match parts[..] {
            [""] => Self::Overview,
            ["tasks"] => Self::Tasks(Query::try_from_uri(uri).ok()?.0),
            ["tasks", id] => Self::Task(id.to_owned()),
            ["tasks", id, "log"] => Self::Log { id: id.to_owned(), attempt: None },
            ["tasks", id, "log", attempt] => Self::Log { id: id.to_owned(), attempt: Some(attempt.parse().ok()?) },
            ["nodes"] => Self::Nodes,
            ["schedules"] => {
                let Query(After { after }) = Query::try_from_uri(uri).ok()?;
                Self::Schedules { after }
            }
            ["schedules", name] => Self::Schedule(name.to_owned()),
            ["settings"] => Self::Settings,
            [kind, name, action] => Self::Question(Change::parse(kind, name, action)?),
            _ => return None,
        })
    }

    /// Fetches what it shows, and renders it. Without `may_write` there is nothing on it that changes something.
    ///
    /// # Errors
    /// Those of the center.
    pub(super) async fn render(&self, calls: &Calls, may_write: bool) -> Result<Page, RpcError> {
        match self {
            Self::Overview => overview::page(calls).await,
            Self::Tasks(filter) => tasks::page(calls, filter).await,
            Self::Task(id) => task::page(calls, id, may_write).await,
            Self::Log { id, attempt } => task::log(calls, id, *attempt).await,
            Self::Nodes => nodes::page(calls, may_write).await,
            Self::Schedules { after } => schedules::page(calls, after).await,
            Self::Schedule(name) => schedules::one(calls, name, may_write).await,
            Self::Settings => settings::page(calls).await,
            Self::Question(change) => Ok(Page::question(change)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::change::{NodeAction, TaskAction};
    use super::*;

    fn view(address: &str) -> Option<View> {
        View::parse(&address.parse().unwrap())
    }

    #[test]
    fn addresses_show_what_they_name() {
        let task = || String::from("root-1");
        for (address, expected) in [
            ("/", View::Overview),
            ("/tasks", View::Tasks(TaskFilter::default())),
            (
                "/tasks?state=RUNNING&after=a",
                View::Tasks(TaskFilter { state: "RUNNING".into(), after: "a".into(), ..TaskFilter::default() }),
            ),
            ("/tasks/root-1", View::Task(task())),
            ("/tasks/root-1/log/3", View::Log { id: task(), attempt: Some(3) }),
            ("/tasks/root-1/cancel-all", View::Question(Change::Task(task(), TaskAction::CancelAll))),
            ("/nodes/n1/drain", View::Question(Change::Node("n1".into(), NodeAction::Drain))),
            ("/schedules?after=x", View::Schedules { after: "x".into() }),
        ] {
            assert_eq!(view(address), Some(expected), "{address}");
        }
        for address in ["/x", "/tasks/a/b", "/tasks/a/log/x", "/nodes/n1/cancel", "/settings/a", "/tasks/a/log/1/2"] {
            assert_eq!(view(address), None, "{address}");
        }
    }

    #[test]
    fn a_question_is_found_at_its_own_address() {
        let change = Change::Task(String::from("a"), TaskAction::CancelAll);
        assert_eq!(view(&change.path()), Some(View::Question(change)));
    }
}
