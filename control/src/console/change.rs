//! Describes the changes that can be made in the console: each has a page with a question, and is made by its answer.

use super::calls::Calls;
use crate::rpc::error::RpcError;
use strum::EnumString;

/// A change of one task, node or schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Task(String, TaskAction),
    Node(String, NodeAction),
    Schedule(String, ScheduleAction),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum TaskAction {
    Pause,
    Resume,
    Cancel,
    /// Also the clean-up of a group.
    CancelAll,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum NodeAction {
    Drain,
    Undrain,
    Include,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, strum::IntoStaticStr)]
#[strum(serialize_all = "kebab-case")]
pub(super) enum ScheduleAction {
    Pause,
    Resume,
    Run,
}

impl Change {
    /// Parses the last three parts of an address: `tasks/ID/cancel`.
    pub(super) fn parse(kind: &str, name: &str, action: &str) -> Option<Self> {
        let name = name.to_owned();
        match kind {
            "tasks" => Some(Self::Task(name, action.parse().ok()?)),
            "nodes" => Some(Self::Node(name, action.parse().ok()?)),
            "schedules" => Some(Self::Schedule(name, action.parse().ok()?)),
            _ => None,
        }
    }

    /// Returns the address of its question, which is also where the answer goes.
    pub(super) fn path(&self) -> String {
        match self {
            Self::Task(id, action) => format!("/tasks/{id}/{}", <&str>::from(action)),
            Self::Node(node, action) => format!("/nodes/{node}/{}", <&str>::from(action)),
            Self::Schedule(name, action) => format!("/schedules/{name}/{}", <&str>::from(action)),
        }
    }

    /// Returns the page that shows its effect.
    pub(super) fn leads_to(&self) -> String {
        match self {
            Self::Task(id, _) => format!("/tasks/{id}"),
            Self::Node(..) => String::from("/nodes"),
            Self::Schedule(name, _) => format!("/schedules/{name}"),
        }
    }

    /// Returns the words of its button and of its question.
    pub(super) fn words(&self) -> (&'static str, String) {
        match self {
            Self::Task(id, TaskAction::Pause) => ("Pause", format!("Pause task {id}, and free its slot?")),
            Self::Task(id, TaskAction::Resume) => ("Resume", format!("Resume task {id}?")),
            Self::Task(id, TaskAction::Cancel) => {
                ("Cancel", format!("Cancel task {id}? It cannot be continued. Of a group, the clean-up still runs."))
            }
            Self::Task(id, TaskAction::CancelAll) => {
                ("Cancel all", format!("Cancel group {id} and its clean-up? What was frozen may stay frozen."))
            }
            Self::Node(node, NodeAction::Drain) => {
                ("Drain", format!("Assign no more tasks to node {node}? What it runs goes on."))
            }
            Self::Node(node, NodeAction::Undrain) => ("Undo drain", format!("Assign tasks to node {node} again?")),
            Self::Node(node, NodeAction::Include) => {
                ("Include", format!("Let node {node} have tasks again, although it has failed several?"))
            }
            Self::Schedule(name, ScheduleAction::Pause) => {
                ("Pause", format!("Pause schedule {name}? Its instants make no tasks meanwhile."))
            }
            Self::Schedule(name, ScheduleAction::Resume) => ("Resume", format!("Resume schedule {name}?")),
            Self::Schedule(name, ScheduleAction::Run) => ("Run now", format!("Make a task of schedule {name} now?")),
        }
    }

    /// Makes it.
    ///
    /// # Errors
    /// Those of the center.
    pub(super) async fn make(&self, calls: &Calls) -> Result<(), RpcError> {
        match self {
            Self::Task(id, TaskAction::Pause) => calls.pause(id).await,
            Self::Task(id, TaskAction::Resume) => calls.resume(id).await,
            Self::Task(id, TaskAction::Cancel) => calls.cancel(id, false).await,
            Self::Task(id, TaskAction::CancelAll) => calls.cancel(id, true).await,
            Self::Node(node, NodeAction::Drain) => calls.drain(node, false).await,
            Self::Node(node, NodeAction::Undrain) => calls.drain(node, true).await,
            Self::Node(node, NodeAction::Include) => calls.include(node).await,
            Self::Schedule(name, ScheduleAction::Pause) => calls.pause_schedule(name).await,
            Self::Schedule(name, ScheduleAction::Resume) => calls.resume_schedule(name).await,
            Self::Schedule(name, ScheduleAction::Run) => calls.run_schedule(name).await,
        }
    }
}
