//! What a client asks for: one task.

use blockhaul_engine::error::{Error, Result};
use blockhaul_engine::spec::{DigestKind, Reflink, Sparse};
use serde::{Deserialize, Serialize};

/// Bytes of a volume's name that a record has room for.
pub const VOLUME_NAME_BYTES_MAX: usize = 1024;

/// The work of a task. Never changes after submission, but for a copy's limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum TaskSpec {
    /// A copy of one volume.
    Copy(CopyTask),
    /// Nothing, for a while: exercises the center without an engine.
    Noop(NoopTask),
}

/// A copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopyTask {
    /// `file://NODE/PATH`, a path (with `node`), or the URI of an export. At most 1 KiB, as `destination`.
    pub source: String,
    /// The same.
    pub destination: String,
    /// Where plain paths and unix sockets are, and the only node that may run it.
    pub node: Option<super::NodeId>,
    /// Bytes per second.
    pub limit: Option<u64>,
    /// Read the destination back.
    pub verify: bool,
    /// Write over a destination that is not empty.
    pub overwrite: bool,
    /// As the flags of `blockhaul copy`: `auto`, `never`, ...
    pub sparse: String,
    /// The same.
    pub reflink: String,
    /// The same.
    pub digest: String,
    /// How an earlier writer is kept off.
    pub fence: Fence,
    /// The client promises that the source does not change while it is copied.
    pub source_stable: bool,
    /// Stands for the destination's identity, where one volume has several addresses.
    pub dest_id: Option<String>,
}

/// A task that does nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoopTask {
    /// For how long.
    pub milliseconds: u64,
    /// The only node that may run it.
    pub node: Option<super::NodeId>,
}

/// How it is made sure that an earlier runner no longer writes a destination before another one does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fence {
    /// A path of one node: the destination's lock is enough.
    Local,
    /// The earlier runner stops by its clock before its lease ends.
    Lease,
    /// A program on the dispatcher's node cuts it off.
    Command,
    /// An operator says that it is off.
    Manual,
}

impl TaskSpec {
    /// The only node that may run it, if it says so.
    #[must_use]
    pub fn node(&self) -> Option<&super::NodeId> {
        match self {
            Self::Copy(copy) => copy.node.as_ref(),
            Self::Noop(noop) => noop.node.as_ref(),
        }
    }

    /// How its destination is fenced; a task without a destination has nothing to fence.
    #[must_use]
    pub fn fence(&self) -> Fence {
        match self {
            Self::Copy(copy) => copy.fence,
            Self::Noop(_) => Fence::Local,
        }
    }
}

impl CopyTask {
    /// Whether every attempt begins with the first byte, as nothing would tell that the source is still what it was:
    /// a server tells of no changes, there are no digests to compare a sample with, and nobody promises anything.
    #[must_use]
    pub fn starts_over(&self) -> bool {
        let is_told = self.digest != "none" || self.verify || self.source_stable;
        !is_told && crate::model::volume::is_network_or_socket(&self.source)
    }

    /// What it says as words, as the engine calls it.
    ///
    /// # Errors
    /// `EBadRequest` naming the word that the engine does not know.
    pub fn words(&self) -> Result<(Sparse, Reflink, DigestKind)> {
        Ok((
            word("sparse", Sparse::ALL, Sparse::as_str, &self.sparse)?,
            word("reflink", Reflink::ALL, Reflink::as_str, &self.reflink)?,
            word("digest", DigestKind::ALL, DigestKind::as_str, &self.digest)?,
        ))
    }
}

fn word<T: Copy>(what: &str, all: &[T], as_str: impl Fn(T) -> &'static str, text: &str) -> Result<T> {
    all.iter().copied().find(|&value| as_str(value) == text).ok_or_else(|| {
        let known: Vec<_> = all.iter().copied().map(as_str).collect();
        let text = text.chars().take(40).collect::<String>();
        Error::bad_request(format!("{what} is '{}': use {}", text.escape_debug(), known.join(" or ")))
    })
}

#[cfg(test)]
impl CopyTask {
    /// Of a source that does not change, with everything as it is by default, to a destination that a lock protects.
    pub(crate) fn example(source: &str, destination: &str) -> Self {
        Self {
            source: source.to_owned(),
            destination: destination.to_owned(),
            node: None,
            limit: None,
            verify: false,
            overwrite: false,
            sparse: String::from("auto"),
            reflink: String::from("auto"),
            digest: String::from("xxh3"),
            fence: Fence::Local,
            source_stable: true,
            dest_id: None,
        }
    }
}
