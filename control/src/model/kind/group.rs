//! Describes a group: the members of a batch file, as one task. No runner carries it out.

use super::{Kind, Summary};
use crate::batch::{HOLD_MEMBERS_MAX, MEMBERS_MAX, OnFailure};
use crate::execution::{Execution, ExecutionHandle, Executor, Refused, Work};
use crate::model::{NodeId, TaskId, UnknownFields};
use crate::wire;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Digits of the digest of a batch file.
const DIGEST_DIGITS: usize = 64;

/// Tasks that belong together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupTask {
    /// BLAKE3 of the batch file, in hexadecimal digits.
    pub digest: String,
    /// Number of members.
    pub members: u32,
    /// Members that run at once; `None`: as many as the nodes have slots for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parallel: Option<u32>,
    /// What happens to the other members when one has failed.
    pub on_failure: OnFailure,
    /// Whether the first member starts only when all that the copies need is free, and that is kept free for them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold: bool,
    /// Fields of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Kind for GroupTask {
    fn validate(&self) -> Result<()> {
        if self.members == 0 || self.members as usize > MEMBERS_MAX {
            return Err(Error::bad_request(format!("{} members: a group has 1 to {MEMBERS_MAX}", self.members)));
        }
        if self.hold && self.members as usize > HOLD_MEMBERS_MAX {
            return Err(Error::bad_request(format!(
                "{} members: a group that holds its place has at most {HOLD_MEMBERS_MAX}",
                self.members
            )));
        }
        if self.parallel == Some(0) {
            return Err(Error::bad_request("no member could run: parallel is at least 1"));
        }
        if self.digest.len() != DIGEST_DIGITS || !self.digest.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(Error::bad_request(format!(
                "the digest of a batch file has {DIGEST_DIGITS} hexadecimal digits"
            )));
        }
        Ok(())
    }

    fn node(&self) -> Result<Option<NodeId>> {
        Ok(None)
    }

    fn imply_node(&mut self, _node: &NodeId) {}

    fn known_claims(&self, _id: &TaskId) -> Option<Vec<String>> {
        Some(Vec::new())
    }

    fn can_pause(&self) -> bool {
        true
    }

    fn group(&self) -> Option<&GroupTask> {
        Some(self)
    }

    fn work(&self) -> Result<Work> {
        let what = "a group has no work of its own";
        Err(Error::new(Code::Unsupported, Side::Engine, Operation::Start, what))
    }

    fn start(&self, _execution: Execution, _executor: &dyn Executor) -> Arc<dyn ExecutionHandle> {
        let what = "a group has no work of its own";
        Arc::new(Refused(Error::new(Code::Unsupported, Side::Engine, Operation::Start, what)))
    }

    fn unknown(&self) -> &UnknownFields {
        &self.unknown
    }

    fn summary(&self) -> Summary {
        Summary { kind: "group", ..Summary::default() }
    }

    fn to_wire(&self) -> wire::spec::Work {
        let Self { digest, members, parallel, on_failure, hold, unknown: _ } = self.clone();
        let continues = on_failure == OnFailure::Continue;
        wire::spec::Work::Group(wire::GroupWork { digest, members, parallel, continues, hold })
    }
}

impl From<wire::GroupWork> for GroupTask {
    fn from(wire::GroupWork { digest, members, parallel, continues, hold }: wire::GroupWork) -> Self {
        let on_failure = if continues { OnFailure::Continue } else { OnFailure::Stop };
        Self { digest, members, parallel, on_failure, hold, unknown: UnknownFields::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::TaskSpec;

    fn group(members: u32) -> GroupTask {
        GroupTask {
            digest: "ab".repeat(32),
            members,
            parallel: Some(4),
            on_failure: OnFailure::Continue,
            hold: false,
            unknown: UnknownFields::default(),
        }
    }

    #[test]
    fn a_group_survives_the_wire_and_the_record() {
        let spec = TaskSpec::Group(group(7));
        assert_eq!(TaskSpec::try_from(Some(wire::Spec::from(&spec))).unwrap(), spec);
        assert_eq!(serde_json::from_str::<TaskSpec>(&serde_json::to_string(&spec).unwrap()).unwrap(), spec);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        assert!(group(1).validate().is_ok() && group(10_000).validate().is_ok());
        for bad in [
            group(0),
            group(10_001),
            GroupTask { parallel: Some(0), ..group(1) },
            GroupTask { hold: true, ..group(257) },
            GroupTask { digest: "ab".repeat(31), ..group(1) },
            GroupTask { digest: "xy".repeat(32), ..group(1) },
        ] {
            assert_eq!(bad.validate().unwrap_err().code, Code::BadRequest, "{bad:?}");
        }
    }
}
