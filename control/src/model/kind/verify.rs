//! Compares a volume with another one, or with the receipt of a copy. Reads only, so any number may run at once on the same
//! volumes, and a lost runner needs no fence.

use super::{Kind, Summary, common_node};
use crate::execution::{CompareJob, Execution, ExecutionHandle, Executor, Reference, Refused, Work};
use crate::model::volume::TaskVolume;
use crate::model::{NodeId, UnknownFields};
use crate::wire;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Comparison of a volume with another one, or with a receipt.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyTask {
    /// Expected content: a volume, named as those of a copy. Given exactly when `receipt` is not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Expected content: the receipt of a finished copy, as `file://NODE/PATH` or a path (with `node`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub receipt: Option<String>,
    /// Volume to check.
    pub volume: String,
    /// Where plain paths and unix sockets are, and the only node that may run it.
    pub node: Option<NodeId>,
    /// Limit in bytes per second, of each side.
    pub limit: Option<u64>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Kind for VerifyTask {
    fn validate(&self) -> Result<()> {
        let CompareJob { reference, volume, limit } = self.job()?;
        if let Reference::Volume(reference) = &reference
            && reference.is_same(&volume)
        {
            let message = format!("{reference} and {volume} are the same volume");
            return Err(Error::new(Code::SameVolume, Side::Caller, Operation::Parse, message));
        }
        if limit == Some(0) {
            return Err(Error::bad_request("a limit of 0 would never end: pause the task instead"));
        }
        self.node().map(drop)
    }

    fn node(&self) -> Result<Option<NodeId>> {
        let CompareJob { reference, volume, .. } = self.job()?;
        let reference = match &reference {
            Reference::Volume(reference) => reference.node(),
            Reference::Receipt { node, .. } => Some(node),
        };
        let names = [self.reference.as_ref().or(self.receipt.as_ref()).map_or("", String::as_str), &self.volume];
        common_node([self.node.as_ref(), reference, volume.node()], names)
    }

    fn imply_node(&mut self, node: &NodeId) {
        let mut names = [&self.reference, &self.receipt].into_iter().flatten().chain([&self.volume]);
        if self.node.is_none() && names.any(|name| TaskVolume::needs_node(name)) {
            self.node = Some(node.clone());
        }
    }

    fn sources(&self) -> Result<Vec<TaskVolume>> {
        let CompareJob { reference, volume, .. } = self.job()?;
        Ok(match reference {
            Reference::Volume(reference) => vec![reference, volume],
            Reference::Receipt { .. } => vec![volume],
        })
    }

    fn rename_volumes(&mut self, rename: &dyn Fn(&str) -> Result<String>) -> Result<()> {
        for name in [&mut self.reference, &mut self.receipt].into_iter().flatten().chain([&mut self.volume]) {
            *name = rename(name)?;
        }
        Ok(())
    }

    fn reads_unchanging(&self) -> bool {
        true
    }

    fn can_pause(&self) -> bool {
        true
    }

    fn limit(&self) -> Option<u64> {
        self.limit
    }

    fn set_limit(&mut self, bytes_per_second: Option<u64>) -> bool {
        self.limit = bytes_per_second;
        true
    }

    fn work(&self) -> Result<Work> {
        self.job().map(Work::Compare)
    }

    fn start(&self, execution: Execution, executor: &dyn Executor) -> Arc<dyn ExecutionHandle> {
        match self.job() {
            Ok(job) => executor.compare(job, execution),
            Err(error) => Arc::new(Refused(error)),
        }
    }

    fn unknown(&self) -> &UnknownFields {
        &self.unknown
    }

    fn summary(&self) -> Summary {
        Summary {
            kind: "verify",
            hook: None,
            source: self.reference.clone().or_else(|| self.receipt.clone()),
            destination: Some(self.volume.clone()),
            node: self.node.clone(),
            fence: None,
            limit: self.limit,
        }
    }

    fn to_wire(&self) -> wire::spec::Work {
        let Self { reference, receipt, volume, node, limit, unknown: _ } = self.clone();
        let node = node.map(String::from);
        wire::spec::Work::Verify(wire::VerifyWork { reference, receipt, volume, node, limit })
    }
}

impl TryFrom<wire::VerifyWork> for VerifyTask {
    type Error = Error;

    fn try_from(work: wire::VerifyWork) -> Result<Self> {
        let wire::VerifyWork { reference, receipt, volume, node, limit } = work;
        let node = node.map(NodeId::new).transpose()?;
        Ok(Self { reference, receipt, volume, node, limit, unknown: UnknownFields::default() })
    }
}

impl VerifyTask {
    /// Returns a comparison of two volumes.
    #[cfg(test)]
    pub(crate) fn example(reference: &str, volume: &str) -> Self {
        let (reference, volume) = (Some(reference.to_owned()), volume.to_owned());
        Self { reference, receipt: None, volume, node: None, limit: None, unknown: UnknownFields::default() }
    }

    /// Returns what the engine is to compare.
    ///
    /// # Errors
    /// `EBadRequest` and what else is wrong with the task: a record may have been written by another version.
    pub fn job(&self) -> Result<CompareJob> {
        let volume = |text: &str| TaskVolume::parse(text, self.node.as_ref());
        let reference = match (&self.reference, &self.receipt) {
            (Some(reference), None) => Reference::Volume(volume(reference)?),
            (None, Some(receipt)) => match volume(receipt)? {
                TaskVolume::Path { node, path } => Reference::Receipt { node, path },
                export => {
                    return Err(Error::bad_request(format!("{export} is an export: a receipt is a file of a node")));
                }
            },
            (Some(_), Some(_)) | (None, None) => {
                return Err(Error::bad_request("name two volumes to compare, or a receipt and one volume"));
            }
        };
        Ok(CompareJob { reference, volume: volume(&self.volume)?, limit: self.limit })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{TaskId, TaskSpec};

    fn two(reference: &str, volume: &str) -> VerifyTask {
        VerifyTask {
            reference: Some(reference.into()),
            receipt: None,
            volume: volume.into(),
            node: None,
            limit: None,
            unknown: UnknownFields::default(),
        }
    }

    fn by_receipt(receipt: &str, volume: &str) -> VerifyTask {
        VerifyTask { reference: None, receipt: Some(receipt.into()), ..two("", volume) }
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let here = || Some(NodeId::new("n1").unwrap());
        for (task, code) in [
            (two("file://n1/a", "file://n1/b"), None),
            (two("nbd://h/a", "file://n1/b"), None),
            (by_receipt("file://n1/r", "nbd://h/b"), None),
            (VerifyTask { node: here(), ..by_receipt("/r", "/b") }, None),
            (by_receipt("/r", "nbd://h/b"), Some(Code::BadRequest)),
            (by_receipt("nbd://h/r", "nbd://h/b"), Some(Code::BadRequest)),
            (two("file://n1/a", "file://n2/b"), Some(Code::BadRequest)),
            (two("nbd://h/a", "nbds://h:10809/a"), Some(Code::SameVolume)),
            (VerifyTask { receipt: Some("/r".into()), ..two("nbd://h/a", "nbd://h/b") }, Some(Code::BadRequest)),
            (VerifyTask { reference: None, ..two("", "nbd://h/b") }, Some(Code::BadRequest)),
            (VerifyTask { limit: Some(0), ..two("nbd://h/a", "nbd://h/b") }, Some(Code::BadRequest)),
        ] {
            assert_eq!(task.validate().err().map(|error| error.code), code, "{task:?}");
        }
    }

    #[test]
    fn it_claims_no_volume_and_survives_the_way_over_the_wire() {
        let task = VerifyTask { limit: Some(7), ..by_receipt("file://n1/r", "nbd://h/b") };
        assert_eq!(task.known_claims(&TaskId::new("t").unwrap()), Some(vec![String::from("task:t")]));
        let spec = TaskSpec::Verify(task);
        assert_eq!(TaskSpec::try_from(Some(wire::Spec::from(&spec))).unwrap(), spec);
        assert_eq!(serde_json::from_str::<TaskSpec>(&serde_json::to_string(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn a_node_is_implied_where_a_path_needs_one() {
        let only = NodeId::new("only").unwrap();
        for (mut task, node) in [(two("nbd://h/a", "/b"), Some(&only)), (two("nbd://h/a", "nbd://h/b"), None)] {
            task.imply_node(&only);
            assert_eq!(task.node().unwrap().as_ref(), node);
        }
    }
}
