//! Runs a hook: a program of a node's administrator.
//!
//! A hook runs at least once, so it must be idempotent. Two runs for one task never overlap: a lost runner is fenced, by
//! its node's next process where the client names a node, and by its lease where it does not. With `at_most_once` a run
//! that has begun is never repeated.

use super::{Kind, Summary};
use crate::execution::{Execution, ExecutionHandle, Executor, HookJob, Refused, Work};
use crate::model::{FenceMethod, NodeId, UnknownFields};
use crate::wire;
use blockhaul_engine::error::{Error, Result};
use blockhaul_hooks::{HOOK_TIMEOUT, HookArgument, HookName, HookOrder, HookRequest};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Most bytes of such a task's work as it is stored: input and arguments as they can be, and two thirds of a record.
const STORED_BYTES_MAX: usize = 5_632;

/// A run of a hook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunTask {
    /// Name of the hook in the hooks folder of the node.
    pub hook: String,
    /// The only node that may run it.
    pub node: Option<NodeId>,
    /// Arguments as `NAME=VALUE`, 1 KiB in all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub arguments: Vec<String>,
    /// What the hook reads from its standard input, at most 4 KiB.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub input: String,
    /// Time after which the hook is ended, in milliseconds.
    pub timeout_ms: u64,
    /// Whether a run that has begun is never repeated.
    pub at_most_once: bool,
    /// Fields of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl RunTask {
    /// Default of `timeout_ms`: an hour.
    pub(crate) const TIMEOUT_DEFAULT_MS: u64 = 3_600_000;
}

impl Kind for RunTask {
    fn validate(&self) -> Result<()> {
        self.job()?;
        let stored_bytes = serde_json::to_vec(self).map_or(usize::MAX, |text| text.len());
        if stored_bytes > STORED_BYTES_MAX {
            let message = format!(
                "input and arguments of a hook take {stored_bytes} bytes in the task's record, at most {STORED_BYTES_MAX}: put \
                 them into a file"
            );
            return Err(Error::bad_request(message));
        }
        Ok(())
    }

    fn node(&self) -> Result<Option<NodeId>> {
        Ok(self.node.clone())
    }

    /// A hook is a file of its node.
    fn imply_node(&mut self, node: &NodeId) {
        self.node.get_or_insert_with(|| node.clone());
    }

    /// A `taskd` kills what hooks of its predecessor have left before it registers: another process of the node is proof
    /// enough. Where another node may run the hook next, the lease decides.
    fn fence(&self) -> FenceMethod {
        if self.node.is_some() { FenceMethod::Local } else { FenceMethod::Lease }
    }

    fn writes(&self) -> bool {
        true
    }

    fn runs_at_most_once(&self) -> bool {
        self.at_most_once
    }

    fn work(&self) -> Result<Work> {
        self.job().map(Work::Hook)
    }

    fn start(&self, execution: Execution, executor: &dyn Executor) -> Arc<dyn ExecutionHandle> {
        match self.job() {
            Ok(job) => executor.run_hook(job, execution),
            Err(error) => Arc::new(Refused(error)),
        }
    }

    fn unknown(&self) -> &UnknownFields {
        &self.unknown
    }

    fn summary(&self) -> Summary {
        Summary {
            kind: "run",
            hook: Some(self.hook.clone()),
            node: self.node.clone(),
            fence: Some(self.fence()),
            ..Summary::default()
        }
    }

    fn to_wire(&self) -> wire::spec::Work {
        let Self { hook, node, arguments, input, timeout_ms, at_most_once, unknown: _ } = self.clone();
        let node = node.map(String::from);
        let timeout_ms = Some(timeout_ms);
        wire::spec::Work::Run(wire::RunWork { hook, node, arguments, input, timeout_ms, at_most_once })
    }
}

impl TryFrom<wire::RunWork> for RunTask {
    type Error = Error;

    fn try_from(work: wire::RunWork) -> Result<Self> {
        let wire::RunWork { hook, node, arguments, input, timeout_ms, at_most_once } = work;
        let node = node.map(NodeId::new).transpose()?;
        let timeout_ms = timeout_ms.unwrap_or(HOOK_TIMEOUT.as_millis() as u64);
        Ok(Self { hook, node, arguments, input, timeout_ms, at_most_once, unknown: UnknownFields::default() })
    }
}

impl RunTask {
    /// Returns what a node is to run.
    ///
    /// # Errors
    /// `EBadRequest` for what is no name of a hook, for arguments, input and time that a hook cannot have: a record may
    /// have been written by another version.
    pub fn job(&self) -> Result<HookJob> {
        let arguments = self.arguments.iter().map(|text| HookArgument::parse(text)).collect::<Result<Vec<_>>>()?;
        let job = HookJob {
            hook: HookName::parse(&self.hook)?,
            arguments,
            input: self.input.clone().into_bytes(),
            timeout: Duration::from_millis(self.timeout_ms),
        };
        // The names are those of the attempt, which are always valid.
        HookOrder::try_from(job.request(HookRequest::new("task", "node", 1, 1)))?;
        Ok(job)
    }
}

#[cfg(test)]
impl RunTask {
    /// Returns a run of a hook without arguments, on any node.
    pub(crate) fn example(hook: &str) -> Self {
        Self {
            hook: hook.to_owned(),
            node: None,
            arguments: Vec::new(),
            input: String::new(),
            timeout_ms: 60_000,
            at_most_once: false,
            unknown: UnknownFields::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{TaskId, TaskSpec};
    use blockhaul_engine::error::Code;

    #[test]
    fn what_no_hook_can_have_is_refused() {
        let run = || RunTask::example("freeze-vm");
        let with = |arguments: &[&str]| RunTask {
            arguments: arguments.iter().map(|text| String::from(*text)).collect(),
            ..run()
        };
        let long = "x".repeat(1_024);
        for (task, code) in [
            (run(), None),
            (with(&["VM=42", "MODE=", "PATH_2=a=b"]), None),
            (RunTask { input: "x".repeat(4_096), ..run() }, None),
            (RunTask { input: "x".repeat(4_097), ..run() }, Some(Code::BadRequest)),
            (RunTask { input: "\n".repeat(4_096), ..run() }, Some(Code::BadRequest)),
            (RunTask { timeout_ms: 0, ..run() }, Some(Code::BadRequest)),
            (RunTask { timeout_ms: u64::MAX, ..run() }, Some(Code::BadRequest)),
            (RunTask::example("../freeze"), Some(Code::BadRequest)),
            (RunTask::example(""), Some(Code::BadRequest)),
            (with(&["vm=42"]), Some(Code::BadRequest)),
            (with(&["VM"]), Some(Code::BadRequest)),
            (with(&["VM=1", "VM=2"]), Some(Code::BadRequest)),
            (with(&["VM=a\0b"]), Some(Code::BadRequest)),
            (with(&[&format!("VM={long}")]), Some(Code::BadRequest)),
        ] {
            assert_eq!(task.validate().err().map(|error| error.code), code, "{task:?}");
        }
    }

    #[test]
    fn it_claims_no_volume_and_survives_the_way_over_the_wire() {
        let node = NodeId::new("n1").unwrap();
        let task = RunTask {
            node: Some(node),
            arguments: vec![String::from("VM=42")],
            input: String::from("frozen\n"),
            at_most_once: true,
            ..RunTask::example("freeze-vm")
        };
        assert_eq!(task.known_claims(&TaskId::new("t").unwrap()), Some(vec![String::from("task:t")]));
        let spec = TaskSpec::Run(task);
        assert_eq!(TaskSpec::try_from(Some(wire::Spec::from(&spec))).unwrap(), spec);
        assert_eq!(serde_json::from_str::<TaskSpec>(&serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        let usual = RunTask::try_from(wire::RunWork { hook: String::from("a"), ..wire::RunWork::default() }).unwrap();
        assert_eq!(usual.timeout_ms, 3_600_000);
    }

    #[test]
    fn the_fence_follows_from_who_may_run_it() {
        let mut task = RunTask::example("freeze-vm");
        assert_eq!((task.fence(), task.writes()), (FenceMethod::Lease, true));
        task.imply_node(&NodeId::new("only").unwrap());
        assert_eq!((task.fence(), task.node().unwrap().is_some()), (FenceMethod::Local, true));
    }
}
