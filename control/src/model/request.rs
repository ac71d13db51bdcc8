//! Defines the validated requests of clients and operators that the services hand to the dispatcher.

use super::{TaskId, TaskSpec};

/// A task that is asked for. Whoever makes one has checked it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Chosen by the client, or made up.
    pub id: TaskId,
    /// 0 to 9; higher goes first.
    pub priority: u8,
    /// Failures after which it is given up: 1 to 100.
    pub max_attempts: u32,
    /// Complete: nothing is left to a default.
    pub spec: TaskSpec,
}

impl Submission {
    /// Returns the source's name, if it must be looked at because it has to be read-only.
    #[must_use]
    pub fn source_to_look_at(&self) -> Option<&str> {
        self.spec.kind().source_to_look_at()
    }
}

/// What a client wants of a task that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskChange {
    /// That it is given up.
    Cancel,
    /// That it waits.
    Pause,
    /// That it goes on.
    Resume,
    /// That it goes no faster, in bytes per second.
    Limit(Option<u64>),
}

/// What an operator wants of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainMode {
    /// It takes nothing new and finishes what it has.
    Finish,
    /// It gives back what it has, too.
    Now,
    /// It takes tasks again.
    Undo,
}
