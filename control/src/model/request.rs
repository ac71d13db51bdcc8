//! Defines the validated requests of clients and operators that the services hand to the dispatcher.

use super::{NodeId, PlacementRules, SignedOrder, TaskChanges, TaskId, TaskSpec, TaskTimes};
use blockhaul_engine::flow::graph::Condition;

/// Validated request for a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Submission {
    /// Id, chosen by the client or made up.
    pub id: TaskId,
    /// 0 to 9; higher goes first.
    pub priority: u8,
    /// Failures without progress after which it fails: 1 to 100.
    pub max_attempts: u32,
    /// Complete work: no field is left to a default.
    pub spec: TaskSpec,
    /// Tasks that it waits for, and how each has to end.
    pub after: Vec<(TaskId, Condition)>,
    /// Group that it is to be a member of.
    pub group: Option<GroupName>,
    /// When it may start, and by when it has to have ended.
    pub times: TaskTimes,
    /// Where it may run.
    pub placement: PlacementRules,
    /// Windows inside of which it may run; none: always.
    pub windows: Vec<String>,
    /// Task that it tries again.
    pub retry_of: Option<TaskId>,
    /// Task whose failure it tells of.
    pub notifies: Option<TaskId>,
    /// What its client has signed, unchecked.
    pub order: Option<SignedOrder>,
}

/// Group of a new member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupName {
    /// Id of the group.
    pub id: TaskId,
    /// Whether the member runs although its group is stopping.
    pub clean_up: bool,
}

impl Submission {
    /// Creates the request for a task that waits for no other one, is in no group, and may start at once.
    #[must_use]
    pub fn new(id: TaskId, priority: u8, max_attempts: u32, spec: TaskSpec) -> Self {
        Self {
            id,
            priority,
            max_attempts,
            spec,
            after: Vec::new(),
            group: None,
            times: TaskTimes::default(),
            placement: PlacementRules::default(),
            windows: Vec::new(),
            retry_of: None,
            notifies: None,
            order: None,
        }
    }

    /// Returns the source's name, if it must be read-only and has to be checked.
    #[must_use]
    pub fn source_to_look_at(&self) -> Option<&str> {
        self.spec.kind().source_to_look_at()
    }
}

/// Command of a client to an existing task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskCommand {
    /// Cancel it. A group: spare its clean-up.
    Cancel,
    /// Cancel a group and its clean-up.
    CancelAll,
    /// Pause it.
    Pause,
    /// Resume it.
    Resume,
    /// Change its settings.
    Set(TaskChanges),
    /// Run it on this node; `None`: on any other one than now.
    Move(Option<NodeId>),
    /// Seal a group: all its members are stored.
    Seal,
}

/// Drain request of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainMode {
    /// It accepts no task and finishes what it has.
    Finish,
    /// It returns its tasks, too.
    Now,
    /// It accepts tasks again.
    Undo,
}
