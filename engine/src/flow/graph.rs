//! Decides which tasks may start, from what they depend on. Pure: runs nothing, and knows no clock.
//!
//! ```text
//!                      every condition is met
//!   Waiting ----------------------------------------> Met
//!    ^    |                                            |
//!    |    '--- one condition cannot be met any more ---+--> Broken
//!    '----------- depend: one more condition ----------'
//! ```
//! A condition names a predecessor and how that one has to end. It is decided once, when its predecessor ends: met, or
//! broken for good. Whoever owns the graph starts a task that is met, and ends one that is broken without starting it.
//!
//! What always holds:
//! - [`Change::Broken`] is reported once for a task at most, and no [`Change::Met`] after it.
//! - The end of a task decides every condition on it: nothing waits for a task that has ended.
//! - There is no circle: [`Graph::insert`] takes conditions on tasks that exist, and [`Graph::depend`] refuses a circle.
//! - No operation recurses or cascades. The end of a task costs time in proportion to the conditions on it. Memory is
//!   linear in the tasks and conditions that are kept.

use crate::error::named;
use std::fmt;

named! {
    /// How a predecessor has to end.
    Condition {
        /// It succeeds.
        Success => "success",
        /// It fails.
        Failure => "failure",
        /// It ends, in whatever way.
        End => "end",
    }
}

/// How a task ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It did what it was to do.
    Succeeded,
    /// It did not.
    Failed,
    /// It was cancelled.
    Cancelled,
    /// It never started: a condition of it was broken.
    Skipped,
}

impl Condition {
    /// Tells whether this end of a predecessor meets the condition. A predecessor that is missing (`None`) meets none.
    #[must_use]
    pub fn is_met_by(self, outcome: Option<Outcome>) -> bool {
        match (self, outcome) {
            (_, None) => false,
            (Self::Success, Some(outcome)) => outcome == Outcome::Succeeded,
            (Self::Failure, Some(outcome)) => outcome == Outcome::Failed,
            (Self::End, Some(_)) => true,
        }
    }
}

/// Names a task of one [`Graph`]. The key of a task that was removed never names another one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskKey {
    index: u32,
    generation: u32,
}

impl TaskKey {
    /// Position of the task among those of its graph; a position is used again.
    pub(super) fn index(self) -> usize {
        self.index as usize
    }
}

impl fmt::Debug for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

/// How the conditions of a task stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Some are undecided.
    Waiting,
    /// All are met.
    Met,
    /// One is broken: the first one, on this predecessor.
    Broken(TaskKey),
}

/// Change of the readiness of a task that has not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// All its conditions are met.
    Met(TaskKey),
    /// A condition of it is broken.
    Broken(TaskKey),
}

/// Refusal of a new condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DependError {
    /// The task would wait for itself, directly or through others.
    Circle,
    /// The task has ended.
    HasEnded,
    /// The key names no task.
    Unknown,
}

impl fmt::Display for DependError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Circle => "the task would wait for itself",
            Self::HasEnded => "the task has ended",
            Self::Unknown => "no such task",
        })
    }
}

impl std::error::Error for DependError {}

#[derive(Debug, Default)]
struct Node {
    /// Of the key that names it; another one is a removed task's.
    generation: u32,
    is_used: bool,
    outcome: Option<Outcome>,
    broken_by: Option<TaskKey>,
    /// Number of undecided conditions.
    unmet: u32,
    /// Its conditions, and whether each is decided; emptied when all are.
    conditions: Vec<(TaskKey, Condition, bool)>,
    /// Undecided conditions of other tasks on this one.
    successors: Vec<Successor>,
    /// Number of the last search for a circle that has seen it.
    seen: u64,
}

/// Undecided condition on a task.
#[derive(Clone, Copy, Debug)]
struct Successor {
    /// The task that has the condition.
    task: TaskKey,
    /// Position among its conditions.
    position: u32,
    condition: Condition,
}

/// Tasks and what they depend on.
///
/// ```
/// use blockhaul_engine::flow::graph::{Change, Condition, Graph, Outcome};
///
/// let (mut graph, mut changes) = (Graph::default(), Vec::new());
/// let freeze = graph.insert([], &mut changes);
/// let copy = graph.insert([(freeze, Condition::Success)], &mut changes);
/// let thaw = graph.insert([(copy, Condition::End)], &mut changes);
/// assert_eq!(changes, [Change::Met(freeze)]);
///
/// changes.clear();
/// graph.end(freeze, Outcome::Failed, &mut changes);
/// assert_eq!(changes, [Change::Broken(copy)]);
///
/// changes.clear();
/// graph.end(copy, Outcome::Skipped, &mut changes);
/// assert_eq!(changes, [Change::Met(thaw)]);
/// ```
#[derive(Debug, Default)]
pub struct Graph {
    nodes: Vec<Node>,
    free: Vec<u32>,
    /// Number of the last search for a circle.
    search: u64,
}

impl Graph {
    /// Adds a task with its conditions. A condition on a task that was removed is broken.
    pub fn insert(
        &mut self,
        conditions: impl IntoIterator<Item = (TaskKey, Condition)>,
        changes: &mut Vec<Change>,
    ) -> TaskKey {
        let task = self.allocate();
        for (on, condition) in conditions {
            self.link(task, on, condition);
        }
        match self.node(task) {
            Node { broken_by: Some(_), .. } => changes.push(Change::Broken(task)),
            Node { unmet: 0, .. } => changes.push(Change::Met(task)),
            Node { .. } => {}
        }
        task
    }

    /// Adds a condition to a task that has not ended. A task that was met waits again unless the predecessor has ended.
    ///
    /// # Errors
    /// See [`DependError`]. Then nothing has changed.
    pub fn depend(
        &mut self,
        task: TaskKey,
        on: TaskKey,
        condition: Condition,
        changes: &mut Vec<Change>,
    ) -> Result<(), DependError> {
        if !self.contains(task) {
            return Err(DependError::Unknown);
        }
        if self.node(task).outcome.is_some() {
            return Err(DependError::HasEnded);
        }
        if self.waits_for(on, task) {
            return Err(DependError::Circle);
        }
        let was_broken = self.node(task).broken_by.is_some();
        self.link(task, on, condition);
        if !was_broken && self.node(task).broken_by.is_some() {
            changes.push(Change::Broken(task));
        }
        Ok(())
    }

    /// Ends a task, and decides the conditions on it. Returns false if it has ended before or is unknown: then nothing
    /// changes.
    pub fn end(&mut self, task: TaskKey, outcome: Outcome, changes: &mut Vec<Change>) -> bool {
        if !self.contains(task) || self.node(task).outcome.is_some() {
            return false;
        }
        let node = self.node_mut(task);
        node.outcome = Some(outcome);
        let mut successors = std::mem::take(&mut node.successors);
        for Successor { task: successor, position, condition } in successors.drain(..) {
            if self.contains(successor) {
                self.decide(successor, position, condition.is_met_by(Some(outcome)), task, changes);
            }
        }
        // Keeps the memory for a task that is restarted.
        self.node_mut(task).successors = successors;
        true
    }

    /// Lets a task that has ended live again. What its end has decided stays decided. Returns false for any other task.
    pub fn restart(&mut self, task: TaskKey) -> bool {
        let is_ended = self.outcome(task).is_some();
        if is_ended {
            let node = self.node_mut(task);
            (node.outcome, node.broken_by) = (None, None);
        }
        is_ended
    }

    /// Forgets a task that has ended. Returns false for any other task.
    pub fn remove(&mut self, task: TaskKey) -> bool {
        let is_ended = self.outcome(task).is_some();
        if is_ended {
            let generation = task.generation.wrapping_add(1);
            let Node { mut conditions, mut successors, seen, .. } = std::mem::take(self.node_mut(task));
            conditions.clear();
            successors.clear();
            *self.node_mut(task) = Node { generation, conditions, successors, seen, ..Node::default() };
            self.free.push(task.index);
        }
        is_ended
    }

    /// Tells whether a task exists: was inserted, and not removed.
    #[must_use]
    pub fn contains(&self, task: TaskKey) -> bool {
        let node = self.nodes.get(task.index as usize);
        node.is_some_and(|node| node.is_used && node.generation == task.generation)
    }

    /// Returns how a task ended; `None` if it has not, or does not exist.
    #[must_use]
    pub fn outcome(&self, task: TaskKey) -> Option<Outcome> {
        if self.contains(task) { self.node(task).outcome } else { None }
    }

    /// Returns how the conditions of a task stand; `None` if it does not exist.
    #[must_use]
    pub fn readiness(&self, task: TaskKey) -> Option<Readiness> {
        self.contains(task).then(|| match self.node(task) {
            Node { broken_by: Some(on), .. } => Readiness::Broken(*on),
            Node { unmet: 0, .. } => Readiness::Met,
            Node { .. } => Readiness::Waiting,
        })
    }

    /// Returns the undecided conditions of a task, in the order in which they were added.
    pub fn unmet(&self, task: TaskKey) -> impl Iterator<Item = (TaskKey, Condition)> {
        let conditions = self.contains(task).then(|| self.node(task).conditions.iter());
        let undecided = conditions.into_iter().flatten().filter(|(.., is_decided)| !is_decided);
        undecided.map(|&(on, condition, _)| (on, condition))
    }

    /// Returns the tasks that were not removed.
    pub fn keys(&self) -> impl Iterator<Item = TaskKey> {
        let nodes = self.nodes.iter().enumerate().filter(|(_, node)| node.is_used);
        nodes.map(|(index, node)| TaskKey { index: index as u32, generation: node.generation })
    }

    /// Returns the number of tasks that were not removed.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Tells whether there are no tasks.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn allocate(&mut self) -> TaskKey {
        let index = self.free.pop().unwrap_or_else(|| {
            self.nodes.push(Node::default());
            u32::try_from(self.nodes.len() - 1).expect("tasks fit into memory")
        });
        let node = &mut self.nodes[index as usize];
        node.is_used = true;
        TaskKey { index, generation: node.generation }
    }

    fn node(&self, task: TaskKey) -> &Node {
        &self.nodes[task.index as usize]
    }

    fn node_mut(&mut self, task: TaskKey) -> &mut Node {
        &mut self.nodes[task.index as usize]
    }

    /// Adds a condition, and decides it if its predecessor has ended.
    fn link(&mut self, task: TaskKey, on: TaskKey, condition: Condition) {
        let outcome = self.outcome(on);
        if outcome.is_some() || !self.contains(on) {
            if !condition.is_met_by(outcome) {
                self.node_mut(task).broken_by.get_or_insert(on);
            }
            return;
        }
        let node = self.node_mut(task);
        node.unmet += 1;
        let position = u32::try_from(node.conditions.len()).expect("conditions fit into memory");
        node.conditions.push((on, condition, false));
        self.node_mut(on).successors.push(Successor { task, position, condition });
    }

    fn decide(&mut self, task: TaskKey, position: u32, is_met: bool, on: TaskKey, changes: &mut Vec<Change>) {
        let node = self.node_mut(task);
        node.conditions[position as usize].2 = true;
        node.unmet -= 1;
        if node.unmet == 0 {
            node.conditions.clear();
        }
        if node.outcome.is_some() || node.broken_by.is_some() {
            return;
        }
        if !is_met {
            node.broken_by = Some(on);
            changes.push(Change::Broken(task));
        } else if node.unmet == 0 {
            changes.push(Change::Met(task));
        }
    }

    /// Tells whether a task waits for another one, directly or through others, or is that task.
    fn waits_for(&mut self, task: TaskKey, other: TaskKey) -> bool {
        self.search += 1;
        let search = self.search;
        let mut open = vec![task];
        while let Some(task) = open.pop() {
            if task == other {
                return true;
            }
            if self.contains(task) && std::mem::replace(&mut self.node_mut(task).seen, search) != search {
                open.extend(self.unmet(task).map(|(on, _)| on));
            }
        }
        false
    }
}
