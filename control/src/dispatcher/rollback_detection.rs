//! Detects that the coordination service has lost history that this leader has seen.
//!
//! A service that is restored from a backup counts on from there: versions and transaction numbers that it has lost are
//! used again, for other records. A leader whose session has survived the restore may take a new record for the one
//! that it knows, as both have the same version. Its next write, decided by lost data, then passes the version check.
//! So the leader looks for contradictions that no single history can contain, and resigns when it finds one: the next
//! term reads everything.
//!
//! Answers that overtake each other, servers that lag and lost answers cause no such contradiction:
//! - Every write of a record has an operation id of its own, so one version of one node has one id.
//! - The answers of one session come from one history in order, and only a server that has seen all that a client has
//!   seen accepts that client. What was known when a request was sent is not undone by its answer.
//!
//! A node that was deleted or created later proves nothing: ids are used again, and operators delete nodes.

use super::tasks::TaskEntry;
use crate::coord::{Znode, Zxid};
use crate::model::{OpId, Record, TaskRecord};

/// State of a record's node at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RecordVersion {
    /// Version of the node.
    pub(crate) version: i32,
    /// Transaction that created the node, if known.
    pub(crate) created: Option<Zxid>,
    /// Operation id of the write that made the record.
    pub(crate) op: OpId,
}

impl RecordVersion {
    /// Returns what the leader knows now.
    pub(crate) fn of(entry: &TaskEntry) -> Self {
        Self { version: entry.version, created: entry.created, op: entry.record.op.clone() }
    }

    /// Returns what was read; `None` for a record that cannot be decoded.
    pub(crate) fn read(node: &Znode) -> Option<Self> {
        let record = TaskRecord::decode(&node.data).ok()?;
        Some(Self { version: node.stat.version, created: Some(node.stat.created), op: record.op })
    }

    /// Tells whether two states are of different histories, whichever was read first.
    pub(crate) fn clashes_with(&self, other: &Self) -> bool {
        let is_same = self.created.is_some() && self.created == other.created && self.version == other.version;
        is_same && self.op != other.op
    }

    /// Tells whether an answer contradicts what was known when the request was sent.
    pub(crate) fn is_contradicted_by(&self, answer: &Self) -> bool {
        let (Some(before), Some(now)) = (self.created, answer.created) else { return false };
        now < before || (now == before && answer.version < self.version) || self.clashes_with(answer)
    }

    /// As [`RecordVersion::is_contradicted_by`], for an answer as received.
    pub(crate) fn is_contradicted_by_node(&self, answer: Option<&Znode>) -> bool {
        answer.and_then(Self::read).is_some_and(|answer| self.is_contradicted_by(&answer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(version: i32, created: Option<i64>, op: &str) -> RecordVersion {
        RecordVersion { version, created: created.map(Zxid), op: OpId(op.into()) }
    }

    #[test]
    fn only_a_contradiction_reveals_another_history() {
        let before = known(5, Some(7), "a");
        // Of another history whenever it was asked for; only if it was asked for later.
        let cases = [
            (known(5, Some(7), "a"), false, false),
            (known(6, Some(7), "b"), false, false),
            (known(0, Some(8), "b"), false, false),
            (known(5, Some(8), "b"), false, false),
            (known(5, None, "b"), false, false),
            (known(4, None, "b"), false, false),
            (known(5, Some(7), "b"), true, true),
            (known(4, Some(7), "b"), false, true),
            (known(4, Some(7), "a"), false, true),
            (known(9, Some(6), "b"), false, true),
        ];
        for (other, clashes, contradicts) in cases {
            assert_eq!((before.clashes_with(&other), other.clashes_with(&before)), (clashes, clashes), "{other:?}");
            assert_eq!(before.is_contradicted_by(&other), contradicts, "{other:?}");
            assert!(!known(5, None, "a").is_contradicted_by(&other), "its own creation is not known: {other:?}");
        }
    }
}
