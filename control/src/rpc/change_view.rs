//! Renders transitions and changes of tasks for their readers: the JSON objects of `events` and `watch --all`.

use super::wire::{self, watch_all_event::What};
use crate::model::{Epoch, Position};
use crate::timestamp::Timestamp;
use serde::{Serialize, Serializer};

/// Transition of a task, for people and scripts. What does not apply is `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TransitionView {
    /// Name of the task.
    pub id: String,
    /// When.
    pub at: Timestamp,
    /// State from then on, as `RUNNING`.
    pub state: String,
    /// `run`, `pause` or `cancel`, from then on.
    pub desired_state: String,
    /// Reason as text; empty if there was nothing to say.
    pub reason: String,
    /// Node that had the task before or from then on.
    pub node: Option<String>,
    /// Who asked for it: `client`, `node` or `dispatcher`.
    pub by: String,
    /// Name of the client, if it is known.
    pub client: Option<String>,
}

impl TransitionView {
    /// Renders a transition of a task.
    #[must_use]
    pub fn new(id: &str, transition: wire::Transition) -> Self {
        let wire::Transition { at_ms, state, desired_state, reason, node, by, client } = transition;
        Self { id: id.to_owned(), at: Timestamp(at_ms), state, desired_state, reason, node, by, client }
    }
}

/// What somebody who follows all tasks gets, one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FollowedEvent {
    /// All tasks follow, each once; what was known of them does not count any more.
    SnapshotBegin(MarkView),
    /// One of these tasks.
    Task(ChangeView),
    /// That were all tasks.
    SnapshotEnd(MarkView),
    /// A task after a change.
    Change(ChangeView),
    /// A task as it was before it was removed.
    Removed(ChangeView),
}

/// Begin or end of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MarkView {
    /// Position that the snapshot stands for, as `EPOCH:N`.
    #[serde(serialize_with = "as_text")]
    pub position: Position,
    /// Number of its tasks; at the begin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tasks: Option<u64>,
}

/// Task after a change. What does not apply is `null`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ChangeView {
    /// Position of the change, or of the snapshot, as `EPOCH:N`.
    #[serde(serialize_with = "as_text")]
    pub position: Position,
    /// Name of the task.
    pub id: String,
    /// `copy`, `verify`, `run`, `noop` or `group`.
    pub kind: String,
    /// State, as `RUNNING`.
    pub state: String,
    /// `run`, `pause` or `cancel`.
    pub desired_state: String,
    /// Reason as it is stored.
    pub reason: String,
    /// Node that has it, or had it last; of a waiting task, the only one that may run it.
    pub node: Option<String>,
    /// Version of its record: one more with each write.
    pub version: i32,
    /// Group that it is a member of.
    pub group: Option<String>,
    /// Schedule that has made it.
    pub schedule: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
fn as_text<S: Serializer>(position: &Position, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(position)
}

impl FollowedEvent {
    /// Renders a message, one event for each line.
    #[must_use]
    pub fn all_of(what: &What) -> Vec<Self> {
        let of = |changes: &wire::TaskChanges, event: fn(ChangeView) -> Self| {
            let views = changes.changes.iter().map(|change| (change.removed, view(changes.epoch, change)));
            views.map(|(is_removed, view)| if is_removed { Self::Removed(view) } else { event(view) }).collect()
        };
        match what {
            What::Begin(begin) => {
                let position = begin.position.unwrap_or_default().into();
                vec![Self::SnapshotBegin(MarkView { position, tasks: Some(begin.tasks) })]
            }
            What::Tasks(tasks) => of(tasks, Self::Task),
            What::End(position) => vec![Self::SnapshotEnd(MarkView { position: (*position).into(), tasks: None })],
            What::Changes(changes) => of(changes, Self::Change),
        }
    }

    /// Returns its name in JSON.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::SnapshotBegin(_) => "snapshot_begin",
            Self::Task(_) => "task",
            Self::SnapshotEnd(_) => "snapshot_end",
            Self::Change(_) => "change",
            Self::Removed(_) => "removed",
        }
    }
}

fn view(epoch: i64, change: &wire::TaskChange) -> ChangeView {
    let wire::TaskChange { number, id, kind, state, desired_state, reason, node, version, group, schedule, removed: _ } =
        change.clone();
    let position = Position { epoch: Epoch(epoch), number };
    ChangeView { position, id, kind, state, desired_state, reason, node, version, group, schedule }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_event_for_each_task() {
        let change =
            |id: &str, removed| wire::TaskChange { id: id.to_owned(), removed, number: 7, ..Default::default() };
        let changes = wire::TaskChanges { epoch: 3, changes: vec![change("a", false), change("b", true)] };
        let events = FollowedEvent::all_of(&What::Changes(changes));
        assert_eq!(events.iter().map(FollowedEvent::name).collect::<Vec<_>>(), ["change", "removed"]);
        let FollowedEvent::Removed(gone) = &events[1] else { panic!("{events:?}") };
        let json = serde_json::to_value(gone).unwrap();
        assert_eq!((&json["position"], &json["id"]), (&"3:7".into(), &"b".into()));
        let names =
            ["desired_state", "group", "id", "kind", "node", "position", "reason", "schedule", "state", "version"];
        assert_eq!(json.as_object().unwrap().keys().collect::<Vec<_>>(), names);
    }
}
