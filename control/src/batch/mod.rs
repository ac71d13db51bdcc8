//! Describes several tasks that belong together, and in which order they may run: the content of a batch file.
//!
//! What always holds of a [`Batch`]: the ids of its members are unique, every member can be carried out as far as its
//! description tells, no member waits for itself, directly or through others, and no two members write one volume.
//!
//! A member that reads what another one writes waits for its success, although the file does not say so.

mod file;
mod order;

pub use file::parse;

use crate::model::{NodeId, PlacementRules, TaskId, TaskSpec, TaskVolume};
use crate::timestamp::Timestamp;
use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::flow::graph::Condition;
use blockhaul_hooks::{HookArgument, HookName};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Largest number of members.
pub const MEMBERS_MAX: usize = 10_000;
/// Largest number of members of a batch that holds its place.
pub const HOLD_MEMBERS_MAX: usize = 256;
/// Most members of a circle that a message names.
const CIRCLE_NAMED_MAX: usize = 10;
/// Number of members that run at once in one process, unless the file says otherwise. In a task center only the slots of
/// the nodes count.
pub const PARALLEL_DEFAULT: usize = 4;
/// Largest number of members that may run at once.
pub const PARALLEL_MAX: usize = 256;

/// What happens to the other members when one has failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// They are cancelled, except for clean-up: see [`Batch::clean_up`].
    #[default]
    Stop,
    /// Those that do not depend on it run.
    Continue,
}

/// Tasks that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// BLAKE3 of the file, in hexadecimal digits.
    pub digest: String,
    /// Number of members that run at once, 1 to [`PARALLEL_MAX`]; `None`: the file does not say.
    pub parallel: Option<usize>,
    /// What happens to the others when a member has failed.
    pub on_failure: OnFailure,
    /// Whether the first member starts only when all that the copies need is free, and that is kept free for them. Only in
    /// a task center: in one process, nothing else needs the slots.
    pub hold: bool,
    /// The members: 1 to [`MEMBERS_MAX`].
    pub members: Vec<Member>,
}

/// Task of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Id, unique in the batch.
    pub id: TaskId,
    /// What it waits for.
    pub after: Vec<MemberDependency>,
    /// What it does.
    pub work: Work,
    /// Where it may run. Only in a task center: one process has no other nodes.
    pub placement: PlacementRules,
    /// Windows inside of which it may run; none: always. Only in a task center.
    pub windows: Vec<String>,
}

/// Work of a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Work {
    /// A copy or a comparison.
    Task(TaskSpec),
    /// A hook: a program of the node's administrator.
    Run(HookRun),
}

/// Run of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookRun {
    /// File name of the hook in the folder of hooks.
    pub hook: HookName,
    /// The only node that may run it.
    pub node: Option<NodeId>,
    /// Arguments: at most 1 KiB in all.
    pub arguments: Vec<HookArgument>,
    /// What the hook reads from its standard input: at most 4 KiB.
    pub input: Vec<u8>,
    /// Time after which the hook is ended.
    pub timeout: Duration,
}

impl Work {
    /// Returns the only node that can do it; `None`: any.
    ///
    /// # Errors
    /// `EBadRequest` if its volumes are of different nodes, or are no volumes.
    pub fn node(&self) -> Result<Option<NodeId>> {
        match self {
            Self::Task(spec) => spec.node(),
            Self::Run(run) => Ok(run.node.clone()),
        }
    }

    fn sources(&self) -> Result<Vec<TaskVolume>> {
        match self {
            Self::Task(spec) => spec.kind().sources(),
            Self::Run(_) => Ok(Vec::new()),
        }
    }

    /// Returns the volume that it writes, if it writes one.
    ///
    /// # Errors
    /// What is wrong with its name.
    pub fn destination(&self) -> Result<Option<TaskVolume>> {
        match self {
            Self::Task(spec) => spec.kind().destination(),
            Self::Run(_) => Ok(None),
        }
    }
}

/// Member that another one waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemberDependency {
    /// Index of the other member.
    pub on: usize,
    /// How the other member has to end.
    pub condition: Condition,
    /// Whether the member reads what the other one writes. Such a dependency need not be in the file.
    pub reads_destination: bool,
}

/// Where the members of a batch run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// In this process, on the node of this name. Plain paths are of this node; what protects a destination from the
    /// late writes of another node (`fence`, `source-stable`, `dest-id`) has no effect.
    Local(NodeId),
    /// In a task center.
    Center,
    /// In a task center, again and again: the names of volumes have the patterns of a schedule. They are checked, and
    /// compared, as they are at this instant in UTC.
    Schedule(Timestamp),
}

impl Batch {
    /// Returns the members that one of the given ones depends on, directly or through others.
    #[must_use]
    pub fn ancestors(&self, of: &[bool]) -> Vec<bool> {
        let mut is_ancestor = vec![false; self.members.len()];
        let mut open: Vec<usize> = (0..of.len()).filter(|&index| of[index]).collect();
        while let Some(index) = open.pop() {
            for dependency in &self.members[index].after {
                if !std::mem::replace(&mut is_ancestor[dependency.on], true) {
                    open.push(dependency.on);
                }
            }
        }
        is_ancestor
    }

    /// Returns the members that depend on one of the given ones, directly or through others.
    #[must_use]
    pub fn descendants(&self, of: &[bool]) -> Vec<bool> {
        let mut is_descendant = vec![false; self.members.len()];
        for index in self.order() {
            let mut after = self.members[index].after.iter();
            is_descendant[index] = after.any(|dependency| of[dependency.on] || is_descendant[dependency.on]);
        }
        is_descendant
    }
}

impl Batch {
    /// Returns for each member whether it is clean-up: it waits for the failure or the end of another member, or only
    /// clean-up leads to it. Clean-up runs although the batch has failed or was cancelled.
    #[must_use]
    pub fn clean_up(&self) -> Vec<bool> {
        order::clean_up(&self.members)
    }

    /// Returns the members in an order in which each comes after those that it waits for.
    #[must_use]
    pub fn order(&self) -> Vec<usize> {
        order::topological(&self.members)
    }

    /// Adds implied dependencies and checks what must hold of the members together.
    fn ordered(mut self, identify: &dyn Fn(&TaskVolume) -> String) -> Result<Self> {
        let writers = order::writers(&self.members, identify)?;
        order::add_implied(&mut self.members, &writers, identify)?;
        if let Some(circle) = order::circle(&self.members) {
            let named = circle.iter().take(CIRCLE_NAMED_MAX);
            let names: Vec<_> = named.map(|&member| self.members[member].id.as_str()).collect();
            let more = if circle.len() > names.len() { " after ..." } else { "" };
            return Err(Error::bad_request(format!("members wait for each other: {}{more}", names.join(" after "))));
        }
        Ok(self)
    }
}
