//! Shows transitions of a task, and the changes of all tasks, as text or as JSON: one line each.

use crate::output;
use blockhaul_control::rpc::change_view::{ChangeView, FollowedEvent, TransitionView};

/// Prints a transition of a task.
pub(super) fn transition(transition: &TransitionView, json: bool) {
    if json {
        output::json_event("transition", transition);
    } else {
        output::print_stdout(transition_line(transition));
    }
}

/// Prints what a follower of all tasks gets.
pub(super) fn event(event: &FollowedEvent, json: bool) {
    if !json {
        return output::print_stdout(event_line(event));
    }
    match event {
        FollowedEvent::SnapshotBegin(mark) | FollowedEvent::SnapshotEnd(mark) => {
            output::json_event(event.name(), mark);
        }
        FollowedEvent::Task(task) | FollowedEvent::Change(task) | FollowedEvent::Removed(task) => {
            output::json_event(event.name(), task);
        }
    }
}

/// Formats as `2026-01-31T12:00:00.000Z PAUSED on n1 by node (paused by user)`.
fn transition_line(transition: &TransitionView) -> String {
    let TransitionView { id: _, at, state, desired_state, reason, node, by, client } = transition;
    let mut parts = vec![at.to_string(), state_text(state, desired_state)];
    parts.extend(node.as_ref().map(|node| format!("on {node}")));
    parts.push(format!("by {}", client.as_ref().map_or_else(|| by.clone(), |name| format!("{by} {name}"))));
    parts.extend((!reason.is_empty()).then(|| format!("({reason})")));
    parts.join(" ")
}

/// Formats as `8589934593:1780000000017 t1 RUNNING on n1`.
fn event_line(event: &FollowedEvent) -> String {
    match event {
        FollowedEvent::SnapshotBegin(mark) => {
            format!("{} snapshot begins: {} tasks", mark.position, mark.tasks.unwrap_or_default())
        }
        FollowedEvent::SnapshotEnd(mark) => format!("{} snapshot ends", mark.position),
        FollowedEvent::Task(task) | FollowedEvent::Change(task) => change_line(task),
        FollowedEvent::Removed(task) => format!("{} {} removed", task.position, task.id),
    }
}

fn change_line(change: &ChangeView) -> String {
    let mut parts =
        vec![change.position.to_string(), change.id.clone(), state_text(&change.state, &change.desired_state)];
    parts.extend(change.node.as_ref().map(|node| format!("on {node}")));
    parts.extend((!change.reason.is_empty()).then(|| format!("({})", change.reason)));
    parts.join(" ")
}

/// Adds to a state what is wanted, where that is still to come and the state does not say it.
fn state_text(state: &str, desired_state: &str) -> String {
    match (state, desired_state) {
        (_, "run")
        | ("CANCELLING", "cancel")
        | ("PAUSED", "pause")
        | ("SUCCEEDED" | "FAILED" | "CANCELLED" | "SKIPPED", _) => state.to_owned(),
        _ => format!("{state}, to {desired_state}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use blockhaul_control::rpc::wire::{self, watch_all_event::What};

    #[test]
    fn a_transition_is_one_line() {
        let wired = wire::Transition {
            at_ms: 1000,
            state: "RUNNING".to_owned(),
            desired_state: "pause".to_owned(),
            reason: "busy".to_owned(),
            node: Some("n1".to_owned()),
            by: "client".to_owned(),
            client: None,
        };
        let line = |wired: &wire::Transition| transition_line(&TransitionView::new("t", wired.clone()));
        assert_eq!(line(&wired), "1970-01-01T00:00:01.000Z RUNNING, to pause on n1 by client (busy)");
        let named = wire::Transition { client: Some("ops".to_owned()), ..wired };
        assert_eq!(line(&named), "1970-01-01T00:00:01.000Z RUNNING, to pause on n1 by client ops (busy)");
        let ended = wire::Transition { state: "FAILED".to_owned(), desired_state: "cancel".to_owned(), ..named };
        assert_eq!(line(&ended), "1970-01-01T00:00:01.000Z FAILED on n1 by client ops (busy)");
    }

    #[test]
    fn changes_and_marks_are_lines_that_begin_with_their_positions() {
        let task = wire::TaskChange {
            number: 18,
            id: "t1".to_owned(),
            state: "PAUSED".to_owned(),
            desired_state: "pause".to_owned(),
            node: Some("n1".to_owned()),
            ..Default::default()
        };
        let gone = wire::TaskChange { removed: true, number: 19, ..task.clone() };
        let position = wire::Position { epoch: 7, number: 17 };
        let messages = [
            What::Begin(wire::SnapshotBegin { position: Some(position), tasks: 1 }),
            What::End(position),
            What::Changes(wire::TaskChanges { epoch: 7, changes: vec![task, gone] }),
        ];
        let lines: Vec<_> = messages.iter().flat_map(FollowedEvent::all_of).map(|event| event_line(&event)).collect();
        assert_eq!(
            lines,
            ["7:17 snapshot begins: 1 tasks", "7:17 snapshot ends", "7:18 t1 PAUSED on n1", "7:19 t1 removed"]
        );
    }
}
