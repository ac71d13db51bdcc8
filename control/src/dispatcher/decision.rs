//! Defines the decisions of the leader, and the budget of writes and calls for them.

use crate::model::schedule::Step;
use crate::model::state_machine::TaskEvent;
use crate::model::{Holder, NodeId, ScheduleName, Submission, TaskId};
use std::time::Duration;

/// Decision of the leader.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Decision {
    /// Write events of a task.
    Transition {
        /// The task.
        task: TaskId,
        /// Events, in this order, in one write.
        events: Vec<TaskEvent>,
    },
    /// Delete a task's record.
    Purge(TaskId),
    /// Ask a runner for the identities of the task's destination, before the task is assigned to it.
    Resolve(TaskId, Holder),
    /// Tell the holder that the task is assigned to it.
    Assign(TaskId, Holder),
    /// Ask the holder for the state of the task.
    Query(TaskId, Holder),
    /// Notify the holder to read the task's record.
    Notify(TaskId, Holder),
    /// Run the fence program for a lost runner.
    Fence(Holder),
    /// Raise the level of the center.
    RaiseLevel,
    /// Ask a runner to return all its tasks.
    Interrupt(NodeId),
    /// Queue the task, for this node or, without one, for any.
    Queue(TaskId, Option<NodeId>),
    /// Block the task until this claim of another task is free.
    Block(TaskId, String),
    /// As `Block`, for a condition that is no claim, and decide again after a while in any case.
    Await(TaskId, String),
    /// Read the runners, and decide about the task again soon.
    ReadRunners(TaskId),
    /// Decide about the task again at this boot time.
    WakeAt(TaskId, Duration),
    /// Do nothing about the task until something changes.
    Idle(TaskId),
    /// Make the task that tells of a task's failure.
    NotifyFailure(TaskId),
    /// Take the next step of a schedule.
    Schedule(ScheduleName, Step),
    /// Read the members of a schedule's batch.
    ReadMembers(ScheduleName),
    /// Store these members of a group that a schedule has made.
    StoreMembers(TaskId, Vec<Submission>),
    /// Ask the schedule again at this boot time.
    ScheduleWakeAt(ScheduleName, Duration),
    /// Do nothing about the schedule until its next instant, or until something changes.
    ScheduleIdle(ScheduleName),
}

/// Number of further requests that may be sent.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    /// Writes to the store.
    pub(crate) writes: usize,
    /// Calls to runners.
    pub(crate) calls: usize,
}

impl Budget {
    /// Spends the budget of a decision; tells whether there was enough.
    pub(crate) fn spend(&mut self, decision: &Decision) -> bool {
        match decision {
            Decision::Transition { .. }
            | Decision::Purge(_)
            | Decision::NotifyFailure(_)
            | Decision::Schedule(..)
            | Decision::RaiseLevel
            | Decision::StoreMembers(..) => spend_one(&mut self.writes),
            Decision::Resolve(..) | Decision::Assign(..) | Decision::Query(..) | Decision::Notify(..) => {
                self.spend_call()
            }
            Decision::Interrupt(_) | Decision::Fence(_) => self.spend_call(),
            Decision::Queue(..)
            | Decision::Block(..)
            | Decision::Await(..)
            | Decision::ReadRunners(_)
            | Decision::WakeAt(..)
            | Decision::Idle(_)
            | Decision::ReadMembers(_)
            | Decision::ScheduleWakeAt(..)
            | Decision::ScheduleIdle(_) => true,
        }
    }

    pub(crate) fn spend_call(&mut self) -> bool {
        spend_one(&mut self.calls)
    }
}

fn spend_one(left: &mut usize) -> bool {
    let has_one = *left > 0;
    *left -= usize::from(has_one);
    has_one
}
