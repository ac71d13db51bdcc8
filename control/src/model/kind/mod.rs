//! Says what a task does: one file per kind, one trait, and one `match`.
//!
//! What always holds: nothing outside this folder asks which kind a task is. The state machine, the dispatcher, the claims and
//! the runner ask the [`Kind`]; the messages and the command line name it.
//!
//! | kind | reads | writes | claims | fence |
//! | --- | --- | --- | --- | --- |
//! | `copy` | source | destination | the destination's identities | as its client says |
//! | `group` | - | - | - | none needed |
//! | `noop` | - | - | `task:ID` | none needed |
//! | `run` | - | what its hook changes | `task:ID` | `local` with a node, else `lease` |
//! | `verify` | both volumes, or one and a receipt | - | `task:ID` | none needed |

mod copy;
mod group;
mod noop;
mod run;
mod verify;

pub use copy::CopyTask;
pub use group::GroupTask;
pub use noop::NoopTask;
pub use run::RunTask;
pub use verify::VerifyTask;

use super::{FenceMethod, NodeId, TaskId, UnknownFields};
use crate::execution::{Execution, ExecutionHandle, Executor, Refused, Work};
use crate::model::volume::TaskVolume;
use crate::wire;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Work of a task. Never changes after submission, except for its limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, strum::EnumDiscriminants)]
#[strum_discriminants(
    name(KindName),
    doc = "Name of a kind.",
    derive(Hash, PartialOrd, Ord, strum::IntoStaticStr, strum::VariantArray)
)]
#[strum_discriminants(strum(serialize_all = "lowercase"))]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum TaskSpec {
    /// Copies one volume.
    Copy(CopyTask),
    /// Does nothing for a while: exercises the center without an engine.
    Noop(NoopTask),
    /// Runs a hook: a program of a node's administrator.
    Run(RunTask),
    /// Compares a volume with another one, or with a receipt.
    Verify(VerifyTask),
    /// Consists of other tasks.
    Group(GroupTask),
}

/// Description of a task for its readers. What does not apply is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Name of the kind, as `copy`.
    pub kind: &'static str,
    /// Hook that is run.
    pub hook: Option<String>,
    /// Volume or receipt that is read.
    pub source: Option<String>,
    /// Volume that is written, or checked.
    pub destination: Option<String>,
    /// Only node that may run it, according to its client.
    pub node: Option<NodeId>,
    /// How its destination is fenced.
    pub fence: Option<FenceMethod>,
    /// Limit in bytes per second.
    pub limit: Option<u64>,
}

/// What the task center asks of a kind of task.
pub(crate) trait Kind {
    /// Checks what can be checked without touching a volume.
    ///
    /// # Errors
    /// `EBadRequest` and what else is wrong with the request.
    fn validate(&self) -> Result<()>;

    /// Returns the only node that can run the task; `None`: any.
    ///
    /// # Errors
    /// `EBadRequest` if its volumes are of different nodes, or are no volumes.
    fn node(&self) -> Result<Option<NodeId>>;

    /// Sets the node of plain paths where there is only one (`--standalone`).
    fn imply_node(&mut self, node: &NodeId);

    /// Returns the texts under which the task claims what it writes, if they are known without asking a node. A task
    /// that writes nothing claims itself, as its grant comes from a claim. `None`: the node of the
    /// [`destination`](Kind::destination) knows.
    fn known_claims(&self, id: &TaskId) -> Option<Vec<String>> {
        Some(vec![format!("task:{id}")])
    }

    /// Returns the volume that is written, if there is one.
    ///
    /// # Errors
    /// What is wrong with its name.
    fn destination(&self) -> Result<Option<TaskVolume>> {
        Ok(None)
    }

    /// Returns the volumes that are read.
    ///
    /// # Errors
    /// What is wrong with their names.
    fn sources(&self) -> Result<Vec<TaskVolume>> {
        Ok(Vec::new())
    }

    /// Replaces the name of each volume and receipt, as of a schedule's template.
    ///
    /// # Errors
    /// As `rename`.
    fn rename_volumes(&mut self, rename: &dyn Fn(&str) -> Result<String>) -> Result<()> {
        let _ = rename;
        Ok(())
    }

    /// Tells whether no other task may write what it reads meanwhile.
    fn reads_unchanging(&self) -> bool {
        false
    }

    /// Returns how the destination is fenced. A task without a destination has nothing to fence: the lock is enough.
    fn fence(&self) -> FenceMethod {
        FenceMethod::Local
    }

    /// Tells whether an attempt may have changed a volume, or anything else: then a lost runner is fenced before the task
    /// continues.
    fn writes(&self) -> bool {
        false
    }

    /// Tells whether an attempt that has begun must be the last one.
    fn runs_at_most_once(&self) -> bool {
        false
    }

    /// Tells whether the task can be paused and resumed.
    fn can_pause(&self) -> bool {
        false
    }

    /// Returns the limit in bytes per second.
    fn limit(&self) -> Option<u64> {
        None
    }

    /// Sets the limit; returns whether the kind has one.
    fn set_limit(&mut self, _bytes_per_second: Option<u64>) -> bool {
        false
    }

    /// Tells whether every attempt starts over although the client may expect otherwise.
    fn starts_over(&self) -> bool {
        false
    }

    /// Returns the name of a source that must be read-only, for the services to check.
    fn source_to_look_at(&self) -> Option<&str> {
        None
    }

    /// Returns the description of a group; `None`: a runner carries the task out.
    fn group(&self) -> Option<&GroupTask> {
        None
    }

    /// Returns the work of the task, to be checked without an attempt.
    ///
    /// # Errors
    /// What is wrong with it.
    fn work(&self) -> Result<Work>;

    /// Starts one attempt. Returns at once; what goes wrong is in its outcome.
    fn start(&self, execution: Execution, executor: &dyn Executor) -> Arc<dyn ExecutionHandle>;

    /// Returns the fields of a later version, which this one cannot act on.
    fn unknown(&self) -> &UnknownFields;

    /// Returns the description of the task for its readers.
    fn summary(&self) -> Summary;

    /// Returns the task as a message.
    fn to_wire(&self) -> wire::spec::Work;
}

impl TaskSpec {
    /// Returns the implementation of the task's kind.
    pub(crate) fn kind(&self) -> &dyn Kind {
        match self {
            Self::Copy(task) => task,
            Self::Noop(task) => task,
            Self::Run(task) => task,
            Self::Verify(task) => task,
            Self::Group(task) => task,
        }
    }

    /// Returns the implementation of the task's kind, to change it.
    pub(crate) fn kind_mut(&mut self) -> &mut dyn Kind {
        match self {
            Self::Copy(task) => task,
            Self::Noop(task) => task,
            Self::Run(task) => task,
            Self::Verify(task) => task,
            Self::Group(task) => task,
        }
    }

    /// Returns the only node that can run the task; `None`: any.
    ///
    /// # Errors
    /// `EBadRequest` if its volumes are of different nodes, or are no volumes.
    pub fn node(&self) -> Result<Option<NodeId>> {
        self.kind().node()
    }

    /// Returns the description of the task for its readers.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.kind().summary()
    }

    /// Starts one attempt, unless the task has fields that this version does not know: another node may be of a later
    /// version.
    pub(crate) fn start(&self, execution: Execution, executor: &dyn Executor) -> Arc<dyn ExecutionHandle> {
        match self.kind().unknown().first() {
            None => self.kind().start(execution, executor),
            Some(name) => {
                let what = format!("the task has an option that this version does not know: {}", name.escape_debug());
                let error = Error::new(Code::Unsupported, Side::Engine, Operation::Start, what);
                Arc::new(Refused(error.advise("upgrade taskd on this node")))
            }
        }
    }

    /// Tells whether both ask for the same work. A limit may have been changed since.
    pub(crate) fn is_same_work(&self, other: &Self) -> bool {
        let unlimited = |spec: &Self| {
            let mut spec = spec.clone();
            spec.kind_mut().set_limit(None);
            spec
        };
        unlimited(self) == unlimited(other)
    }
}

impl From<&TaskSpec> for wire::Spec {
    fn from(spec: &TaskSpec) -> Self {
        Self { work: Some(spec.kind().to_wire()) }
    }
}

/// Converts the work of a message. Omitted fields get their defaults.
impl TryFrom<Option<wire::Spec>> for TaskSpec {
    type Error = Error;

    fn try_from(spec: Option<wire::Spec>) -> Result<Self> {
        match spec.and_then(|spec| spec.work) {
            Some(wire::spec::Work::Copy(work)) => work.try_into().map(Self::Copy),
            Some(wire::spec::Work::Noop(work)) => work.try_into().map(Self::Noop),
            Some(wire::spec::Work::Run(work)) => work.try_into().map(Self::Run),
            Some(wire::spec::Work::Verify(work)) => work.try_into().map(Self::Verify),
            Some(wire::spec::Work::Group(work)) => Ok(Self::Group(work.into())),
            None => Err(Error::bad_request("unknown kind of task: use copy, verify, run, noop or group")),
        }
    }
}

/// Returns the one node that all of these need; `None`: any node will do.
///
/// # Errors
/// `EBadRequest` with `names` if they need several.
fn common_node<'a>(nodes: impl IntoIterator<Item = Option<&'a NodeId>>, names: [&str; 2]) -> Result<Option<NodeId>> {
    let mut only = None;
    for node in nodes.into_iter().flatten() {
        if *only.get_or_insert(node) != node {
            let message = format!("no node reaches both {} and {}: let one of them be an export", names[0], names[1]);
            return Err(Error::bad_request(message));
        }
    }
    Ok(only.cloned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy() -> CopyTask {
        CopyTask {
            source: "nbd://a/x".to_owned(),
            destination: "nbd://b/y".to_owned(),
            node: Some(NodeId::new("n1").unwrap()),
            limit: Some(1 << 20),
            verify: true,
            overwrite: true,
            sparse: "never".to_owned(),
            reflink: "always".to_owned(),
            digest: "none".to_owned(),
            fence: FenceMethod::Manual,
            source_stable: true,
            dest_id: Some("lun 7".to_owned()),
            unknown: UnknownFields::default(),
        }
    }

    #[test]
    fn work_survives_the_wire() {
        let noop = NoopTask::new(5, None);
        for spec in [TaskSpec::Copy(copy()), TaskSpec::Noop(noop)] {
            assert_eq!(TaskSpec::try_from(Some(wire::Spec::from(&spec))).unwrap(), spec);
        }
        assert_eq!(TaskSpec::try_from(None).unwrap_err().code, Code::BadRequest);
        assert_eq!(TaskSpec::try_from(Some(wire::Spec { work: None })).unwrap_err().code, Code::BadRequest);
    }

    #[test]
    fn words_that_are_not_known_are_named() {
        assert_eq!(FenceMethod::parse("lease").unwrap(), FenceMethod::Lease);
        let error = FenceMethod::parse("fancy").unwrap_err();
        assert!(error.code == Code::BadRequest && error.message.contains("'fancy'"), "{error}");
    }
}
