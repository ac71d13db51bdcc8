//! Lists the transitions of a task that the specification allows, by the author of the write.

use super::group_invariants::is_group_transition;
use crate::model::{TaskRecord, TaskSpec, TaskState};

/// Author of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Author {
    Leader,
    Runner,
}

/// Tells whether the specification allows a transition, by its author.
pub(super) fn is_allowed(author: Author, before: &TaskRecord, after: &TaskRecord) -> bool {
    use TaskState::{
        Assigned, Cancelled, Cancelling, Failed, Lost, Paused, Pending, Running, Skipped, Succeeded, Verifying,
    };
    let is_noop = matches!(after.spec, TaskSpec::Noop(_));
    let to = after.state;
    if before.state == to {
        return true;
    }
    if after.members.is_some() {
        return author == Author::Leader && is_group_transition(before.state, to);
    }
    match (author, before.state) {
        (Author::Leader, Pending) => matches!(to, Assigned | Cancelled | Paused | Failed | Skipped),
        (Author::Leader, Assigned) => matches!(to, Pending | Paused | Cancelled | Cancelling | Failed),
        (Author::Leader, Running | Verifying) => {
            // Lost and fenced in one write, as an operator has confirmed that the node is off.
            let is_cut_off = after.attempts.last().is_some_and(|attempt| attempt.quiet);
            matches!(to, Lost | Cancelling)
                || (is_noop && matches!(to, Pending | Failed))
                || (is_cut_off && matches!(to, Pending | Paused | Cancelled | Failed))
        }
        (Author::Leader, Lost) => matches!(to, Pending | Paused | Cancelled | Failed | Running | Cancelling),
        (Author::Leader, Cancelling) => matches!(to, Lost | Cancelled),
        (Author::Leader, Paused) => matches!(to, Pending | Cancelled | Skipped),
        (Author::Runner, Assigned | Running | Verifying) => {
            matches!(to, Running | Verifying | Succeeded | Failed | Pending | Paused | Cancelled)
        }
        (Author::Runner, Cancelling) => matches!(to, Cancelled | Succeeded | Failed),
        (_, Succeeded | Failed | Cancelled | Skipped) | (Author::Runner, Pending | Paused | Lost) => false,
    }
}
