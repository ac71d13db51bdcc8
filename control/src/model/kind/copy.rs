//! Copies one volume to another.

use super::{Kind, Summary, common_node};
use crate::execution::{CopyJob, Execution, ExecutionHandle, Executor, Refused, Work};
use crate::model::fence_method::default_fence;
use crate::model::volume::{TaskVolume, is_network_or_socket};
use crate::model::{FenceMethod, NodeId, TaskId, UnknownFields};
use crate::wire;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::spec::{DigestKind, Reflink, Sparse};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Longest `dest_id`, in bytes.
const DEST_ID_BYTES_MAX: usize = 200;

/// A copy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyTask {
    /// `file://NODE/PATH`, a path (with `node`), or the URI of an export. At most 1 KiB, as `destination`.
    pub source: String,
    /// Named as `source` is.
    pub destination: String,
    /// Where plain paths and unix sockets are, and the only node that may run it.
    pub node: Option<NodeId>,
    /// Limit in bytes per second.
    pub limit: Option<u64>,
    /// Read the destination back.
    pub verify: bool,
    /// Write over a destination that is not empty.
    pub overwrite: bool,
    /// Policy for sparse files, as the flag of `blockhaul copy`: `auto`, `never`, ...
    pub sparse: String,
    /// Policy for reflinks, as the flag of `blockhaul copy`.
    pub reflink: String,
    /// Kind of digest, as the flag of `blockhaul copy`.
    pub digest: String,
    /// How an earlier writer is fenced.
    pub fence: FenceMethod,
    /// The client promises that the source does not change while it is copied.
    pub source_stable: bool,
    /// Name of the destination's identity, where one volume has several addresses.
    pub dest_id: Option<String>,
    /// Fields of later versions.
    #[serde(flatten)]
    pub unknown: UnknownFields,
}

impl Kind for CopyTask {
    /// # Errors
    /// `EBadRequest`: malformed names, volumes of different nodes, unknown words, a lease on a source that may change, a lock
    /// where there is none; `ESameVolume`: source and destination are one; `EUnsupported`: other schemes.
    fn validate(&self) -> Result<()> {
        check_copy(self).and_then(|()| self.node().map(drop))
    }

    fn node(&self) -> Result<Option<NodeId>> {
        let source = TaskVolume::parse(&self.source, self.node.as_ref())?;
        let destination = TaskVolume::parse(&self.destination, self.node.as_ref())?;
        common_node([self.node.as_ref(), source.node(), destination.node()], [&self.source, &self.destination])
    }

    fn imply_node(&mut self, node: &NodeId) {
        if self.node.is_none() && (TaskVolume::needs_node(&self.source) || TaskVolume::needs_node(&self.destination)) {
            self.node = Some(node.clone());
        }
    }

    fn known_claims(&self, _id: &TaskId) -> Option<Vec<String>> {
        let text = match &self.dest_id {
            Some(name) => format!("id:{name}"),
            None => self.destination().ok()??.canonical()?,
        };
        Some(vec![text])
    }

    fn destination(&self) -> Result<Option<TaskVolume>> {
        TaskVolume::parse(&self.destination, self.node.as_ref()).map(Some)
    }

    fn sources(&self) -> Result<Vec<TaskVolume>> {
        TaskVolume::parse(&self.source, self.node.as_ref()).map(|source| vec![source])
    }

    fn rename_volumes(&mut self, rename: &dyn Fn(&str) -> Result<String>) -> Result<()> {
        self.source = rename(&self.source)?;
        self.destination = rename(&self.destination)?;
        Ok(())
    }

    fn fence(&self) -> FenceMethod {
        self.fence
    }

    fn writes(&self) -> bool {
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

    fn starts_over(&self) -> bool {
        self.begins_anew()
    }

    /// A copy under a lease may write late what another one has written, so its source must be read-only unless the client
    /// promises that it does not change.
    fn source_to_look_at(&self) -> Option<&str> {
        (self.fence == FenceMethod::Lease && !self.source_stable).then_some(&self.source)
    }

    fn work(&self) -> Result<Work> {
        self.job().map(Work::Copy)
    }

    fn start(&self, execution: Execution, executor: &dyn Executor) -> Arc<dyn ExecutionHandle> {
        match self.job() {
            Ok(job) => executor.copy(job, execution),
            Err(error) => Arc::new(Refused(error)),
        }
    }

    fn unknown(&self) -> &UnknownFields {
        &self.unknown
    }

    fn summary(&self) -> Summary {
        Summary {
            kind: "copy",
            hook: None,
            source: Some(self.source.clone()),
            destination: Some(self.destination.clone()),
            node: self.node.clone(),
            fence: Some(self.fence),
            limit: self.limit,
        }
    }

    fn to_wire(&self) -> wire::spec::Work {
        let Self {
            source,
            destination,
            node,
            limit,
            verify,
            overwrite,
            sparse,
            reflink,
            digest,
            fence,
            source_stable,
            dest_id,
            unknown: _,
        } = self;
        wire::spec::Work::Copy(wire::CopyWork {
            source: source.clone(),
            destination: destination.clone(),
            node: node.clone().map(String::from),
            limit: *limit,
            verify: *verify,
            overwrite: *overwrite,
            sparse: sparse.clone(),
            reflink: reflink.clone(),
            digest: digest.clone(),
            fence: fence.as_str().to_owned(),
            source_stable: *source_stable,
            dest_id: dest_id.clone(),
        })
    }
}

impl TryFrom<wire::CopyWork> for CopyTask {
    type Error = Error;

    fn try_from(work: wire::CopyWork) -> Result<Self> {
        let wire::CopyWork {
            source,
            destination,
            node,
            limit,
            verify,
            overwrite,
            sparse,
            reflink,
            digest,
            fence,
            source_stable,
            dest_id,
        } = work;
        let or = |word: String, usual: &str| if word.is_empty() { usual.to_owned() } else { word };
        let fence = if fence.is_empty() { default_fence(&destination) } else { FenceMethod::parse(&fence)? };
        Ok(Self {
            source,
            destination,
            node: node.map(NodeId::new).transpose()?,
            limit,
            verify,
            overwrite,
            sparse: or(sparse, Sparse::Auto.as_str()),
            reflink: or(reflink, Reflink::Auto.as_str()),
            digest: or(digest, DigestKind::Xxh3.as_str()),
            fence,
            source_stable,
            dest_id,
            unknown: UnknownFields::default(),
        })
    }
}

impl CopyTask {
    /// Tells whether every attempt starts over because nothing shows that the source is unchanged: a server reports no
    /// changes, there are no digests to compare a sample with, and the client has not promised it.
    fn begins_anew(&self) -> bool {
        let is_told = self.digest != "none" || self.verify || self.source_stable;
        !is_told && is_network_or_socket(&self.source)
    }

    /// Returns the policies as the engine's types.
    ///
    /// # Errors
    /// `EBadRequest` naming the word that the engine does not know.
    fn words(&self) -> Result<(Sparse, Reflink, DigestKind)> {
        Ok((
            word("sparse", Sparse::ALL, Sparse::as_str, &self.sparse)?,
            word("reflink", Reflink::ALL, Reflink::as_str, &self.reflink)?,
            word("digest", DigestKind::ALL, DigestKind::as_str, &self.digest)?,
        ))
    }

    /// Returns what the engine is to copy.
    ///
    /// # Errors
    /// `EBadRequest` and what else is wrong with the task: a record may have been written by another version.
    pub fn job(&self) -> Result<CopyJob> {
        let volume = |text: &str| TaskVolume::parse(text, self.node.as_ref());
        let (sparse, reflink, digest) = self.words()?;
        Ok(CopyJob {
            source: volume(&self.source)?,
            destination: volume(&self.destination)?,
            limit: self.limit,
            verify: self.verify,
            overwrite: self.overwrite,
            sparse,
            reflink,
            digest,
            starts_over: self.begins_anew(),
        })
    }
}

fn check_copy(copy: &CopyTask) -> Result<()> {
    let source = TaskVolume::parse(&copy.source, copy.node.as_ref()).map_err(|error| of(error, Side::Source))?;
    let destination =
        TaskVolume::parse(&copy.destination, copy.node.as_ref()).map_err(|error| of(error, Side::Destination))?;
    if source.is_same(&destination) {
        let message = format!("{} and {} are the same volume", copy.source, copy.destination);
        return Err(Error::new(Code::SameVolume, Side::Caller, Operation::Parse, message));
    }
    copy.words()?;
    if copy.limit == Some(0) {
        return Err(Error::bad_request("a limit of 0 would never end: pause the task instead"));
    }
    if let Some(name) = &copy.dest_id
        && !(1..=DEST_ID_BYTES_MAX).contains(&name.len())
    {
        return Err(Error::bad_request(format!("--dest-id must have 1 to {DEST_ID_BYTES_MAX} bytes")));
    }
    check_fence(copy, &source, &destination)
}

fn check_fence(copy: &CopyTask, source: &TaskVolume, destination: &TaskVolume) -> Result<()> {
    let message = match (copy.fence, destination) {
        (FenceMethod::Local, TaskVolume::Network(_) | TaskVolume::Socket { .. }) => {
            "an export has no lock: use the fence lease, command or manual"
        }
        // Whether the server exports it read-only is seen by the runner, when it opens it.
        (FenceMethod::Lease, _) if !copy.source_stable && matches!(source, TaskVolume::Path { .. }) => {
            "late writes of a lost runner are harmless only while the source does not change: copy a snapshot and \
             promise it by --source-stable, or copy from an export that is read-only, or use the fence command or manual"
        }
        _ => return Ok(()),
    };
    Err(Error::bad_request(message))
}

fn of(error: Error, side: Side) -> Error {
    let message = format!("{}: {}", side.as_str(), error.message);
    Error { message, ..error }
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
    /// Returns a copy of a source that does not change, with defaults, to a destination that a lock protects.
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
            fence: FenceMethod::Local,
            source_stable: true,
            dest_id: None,
            unknown: UnknownFields::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(source: &str, destination: &str) -> CopyTask {
        CopyTask { fence: default_fence(destination), ..CopyTask::example(source, destination) }
    }

    fn verdict(copy: CopyTask) -> Option<Code> {
        copy.validate().err().map(|error| error.code)
    }

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_stored() {
        let node = || Some(NodeId::new("n1").unwrap());
        let long = format!("/{}", "x".repeat(1024));
        for (task, code) in [
            (copy("file://n1/a", "file://n1/b"), None),
            (copy("nbd://h/a", "nbd://h/b"), None),
            (copy("file://n1/a", "file://n2/b"), Some(Code::BadRequest)),
            (copy("/a", "nbd://h/b"), Some(Code::BadRequest)),
            (copy("a", "nbd://h/b"), Some(Code::BadRequest)),
            (copy("file://n1", "nbd://h/b"), Some(Code::BadRequest)),
            (copy("file://n 1/a", "nbd://h/b"), Some(Code::BadRequest)),
            (copy(&long, "nbd://h/b"), Some(Code::BadRequest)),
            (copy("nbd://h/a#b", "nbd://h/b"), Some(Code::BadRequest)),
            (copy("https://h/a", "nbd://h/b"), Some(Code::Unsupported)),
            (copy("file://n1//a/./b", "file://n1/a/b"), Some(Code::SameVolume)),
            (copy("nbd://H:10809/a", "nbds://h/a"), Some(Code::SameVolume)),
            (CopyTask { node: node(), ..copy("/a", "/b") }, None),
            (CopyTask { node: node(), ..copy("/a", "file://n2/b") }, Some(Code::BadRequest)),
            (CopyTask { node: node(), ..copy("/a", "nbd+unix:///x?socket=/s") }, None),
            (CopyTask { node: node(), ..copy("/a", "nbd+unix:///x?socket=s") }, Some(Code::BadRequest)),
            (CopyTask { source_stable: false, ..copy("file://n1/a", "nbd://h/b") }, Some(Code::BadRequest)),
            (CopyTask { source_stable: false, ..copy("nbd://h/a", "nbd://h/b") }, None),
            (CopyTask { source_stable: false, fence: FenceMethod::Manual, ..copy("file://n1/a", "nbd://h/b") }, None),
            (CopyTask { fence: FenceMethod::Local, ..copy("nbd://h/a", "nbd://h/b") }, Some(Code::BadRequest)),
            (CopyTask { sparse: "maybe".into(), ..copy("nbd://h/a", "nbd://h/b") }, Some(Code::BadRequest)),
            (CopyTask { limit: Some(0), ..copy("nbd://h/a", "nbd://h/b") }, Some(Code::BadRequest)),
            (CopyTask { dest_id: Some(String::new()), ..copy("nbd://h/a", "nbd://h/b") }, Some(Code::BadRequest)),
        ] {
            let shown = format!("{task:?}");
            assert_eq!(verdict(task), code, "{shown}");
        }
    }

    #[test]
    fn an_export_has_one_claim_however_it_is_spelt() {
        let id = TaskId::new("t").unwrap();
        let claims = |task: CopyTask| task.known_claims(&id);
        let one = claims(copy("/a", "nbd://Store.Example/vol%2d1")).unwrap();
        assert_eq!(claims(copy("/a", "nbds://store.example:10809/vol-1")).unwrap(), one);
        assert_ne!(claims(copy("/a", "nbd://store.example:10810/vol-1")).unwrap(), one);
        assert_eq!(claims(copy("/a", "file://n1/b")), None);
        let named = CopyTask { dest_id: Some("vol-1".into()), ..copy("/a", "file://n1/b") };
        assert_eq!(claims(named).unwrap(), ["id:vol-1"]);
    }

    #[test]
    fn a_node_is_implied_only_where_one_is_needed() {
        let implied = NodeId::new("only").unwrap();
        let node = |source, destination| {
            let mut task = copy(source, destination);
            task.imply_node(&implied);
            (task.node().unwrap(), task.node.is_some())
        };
        assert_eq!(node("/a", "/b"), (Some(implied.clone()), true));
        assert_eq!(node("nbd://h/a", "nbd://h/b"), (None, false));
        assert_eq!(node("file://n1/a", "file://n1/b"), (Some(NodeId::new("n1").unwrap()), false));
    }
}
