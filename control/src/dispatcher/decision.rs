//! Lists what the leader can decide, and bounds how much of it is under way at once.

use crate::model::state_machine::TaskEvent;
use crate::model::{Holder, NodeId, TaskId};
use std::time::Duration;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// Write what has happened to a task.
    Move {
        /// Which task.
        task: TaskId,
        /// In this order, in one write.
        events: Vec<TaskEvent>,
    },
    /// Remove a task's record.
    Purge(TaskId),
    /// Ask the runner how it calls the task's destination; it is likely to get the task.
    Resolve(TaskId, Holder),
    /// Tell the holder that the task is its own.
    Assign(TaskId, Holder),
    /// Ask the holder what it knows of the task.
    Query(TaskId, Holder),
    /// Let the holder look at the task's record.
    Notify(TaskId, Holder),
    /// Run the program that cuts a lost runner off.
    Fence(Holder),
    /// Ask a runner to give everything back.
    Interrupt(NodeId),
    /// The task could run, on that node or anywhere.
    Queue(TaskId, Option<NodeId>),
    /// The task waits for that claim of another one.
    Block(TaskId, String),
    /// Nothing until then.
    WakeAt(TaskId, Duration),
    /// Nothing until something changes.
    Idle(TaskId),
}

/// How many more requests may be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Writes of the store.
    pub(crate) writes: usize,
    /// Calls of runners.
    pub(crate) calls: usize,
}

impl Budget {
    /// Whether there is room for a decision; then there is less of it.
    pub(crate) fn take(&mut self, decision: &Decision) -> bool {
        match decision {
            Decision::Move { .. } | Decision::Purge(_) => take_one(&mut self.writes),
            Decision::Resolve(..) | Decision::Assign(..) | Decision::Query(..) | Decision::Notify(..) => {
                self.take_call()
            }
            Decision::Interrupt(_) | Decision::Fence(_) => self.take_call(),
            Decision::Queue(..) | Decision::Block(..) | Decision::WakeAt(..) | Decision::Idle(_) => true,
        }
    }

    pub(crate) fn take_call(&mut self) -> bool {
        take_one(&mut self.calls)
    }
}

fn take_one(left: &mut usize) -> bool {
    let has_one = *left > 0;
    *left -= usize::from(has_one);
    has_one
}
