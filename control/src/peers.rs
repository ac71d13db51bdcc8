//! How nodes talk to each other: the seam below which there is gRPC, or a simulation.
//!
//! Calls are hints and telemetry: each can be lost, repeated or late without harm, because what they lead to is decided
//! by a version-checked write. Every call of a dispatcher carries its epoch; a runner refuses a lower one than it has seen.

use crate::record::{Epoch, Incarnation, Progress, TaskId, TaskSpec};
use async_trait::async_trait;
use blockhaul_engine::error::Code;

/// Calls from the dispatcher to a runner. An implementation bounds every call (2 s).
#[async_trait]
pub trait RunnerCalls: Send + Sync + std::fmt::Debug {
    /// Tells a runner that a task is its own: the claim names it already.
    async fn assign(&self, address: &str, assignment: Assignment) -> Result<Answer, CallError>;

    /// What a runner knows of an assignment. A runner that knows nothing will refuse it from now on.
    async fn ask(&self, address: &str, assignment: Assignment) -> Result<Standing, CallError>;

    /// The record of a task has changed in a way that its holder should look at: wish or limit.
    async fn nudge(&self, address: &str, leader: Epoch, task: &TaskId) -> Result<(), CallError>;

    /// The identities of a task's destination on that node, by which it is claimed: its own first, then other names for
    /// it. Judges the paths of the spec against the node's policy, and changes nothing.
    async fn resolve(&self, address: &str, leader: Epoch, spec: &TaskSpec) -> Result<Vec<String>, CallError>;

    /// Asks the runner to give back all it holds and to take nothing.
    async fn interrupt(&self, address: &str, leader: Epoch) -> Result<(), CallError>;

    /// What the node's wall clock says, in milliseconds since 1970. Nothing is decided by it.
    async fn clock(&self, _address: &str) -> Result<u64, CallError> {
        Err(CallError::NoAnswer(String::from("nobody asks clocks here")))
    }
}

/// Calls from a runner to the dispatcher, wherever that is now. Never block a copy.
#[async_trait]
pub trait LeaderCalls: Send + Sync + std::fmt::Debug {
    /// The records of these tasks have changed: look at them.
    async fn changed(&self, tasks: &[TaskId]) -> Result<(), CallError>;

    /// Where running tasks stand. At most 4 a second and task.
    async fn progress(&self, updates: &[(TaskId, Progress)]) -> Result<(), CallError>;
}

/// A task given to a runner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// Which task.
    pub task: TaskId,
    /// The grant of its claim.
    pub epoch: Epoch,
    /// To which process.
    pub incarnation: Incarnation,
    /// By whom.
    pub leader: Epoch,
}

/// What a runner says to an assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It will start it, or has.
    Accepted,
    /// It will not, and nothing of it has run or will.
    Refused {
        /// `EOverloaded`, `EPermission`, `ERunnerInterrupt` (it is stopping), `EFenced` (a lower epoch), ...
        code: Code,
        /// For people.
        why: String,
    },
}

/// What a runner knows of an assignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing, and it will refuse it from now on.
    Unknown,
    /// It runs, or will.
    Held,
    /// It will run, and has not begun: what it waits for.
    Waits(Step),
    /// It has ended; the record says how, or will.
    Ended,
}

/// How far a runner is with an assignment that it has not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// It reads the task's record.
    Reading,
    /// It has no right to write yet: its lease is to be renewed.
    Leasing,
    /// It opens the volumes and waits for the destination's lock.
    Opening,
    /// It is about to begin, and stores that.
    Storing,
}

/// A call without an answer that can be relied on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// It may or may not have arrived.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// It was understood and refused.
    #[error("{code}: {why}")]
    Refused {
        /// Which error.
        code: Code,
        /// For people.
        why: String,
    },
}
