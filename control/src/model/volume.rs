//! Where the volumes of a task are: which node can reach them, by which text a destination is claimed, and whether a task
//! makes sense before anybody looks at a volume.
//!
//! | spelling | where | claimed as |
//! | --- | --- | --- |
//! | `file://NODE/PATH` | a path of that node | what that node makes of it (device and inode, WWN, ...) |
//! | `/PATH` | a path of the task's node | the same |
//! | `nbd+unix:///EXPORT?socket=/PATH` | a socket of the task's node | the same |
//! | `nbd://HOST[:PORT]/EXPORT`, `nbds://` | any node | `nbd://HOST:PORT/EXPORT`: both schemes are one volume |
//! | any, with `--dest-id NAME` | the same | `id:NAME` |
//!
//! A path is taken as it stands: `%` is no escape. The dispatcher never touches a volume; a runner judges what it opens.

use crate::model::{CopyTask, Fence, NodeId, TaskId, TaskSpec, VOLUME_NAME_BYTES_MAX};
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::nbd::NbdUri;
use std::path::{Component, Path, PathBuf};

/// Milliseconds that a task without work may last: a week.
const NOOP_MS_MAX: u64 = 7 * 24 * 60 * 60 * 1000;

/// Bytes of a name that stands for a destination's identity.
const DEST_ID_BYTES_MAX: usize = 200;

/// A volume, by its name in a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Volume {
    /// A file or device of one node.
    Path {
        /// Which node.
        node: NodeId,
        /// Absolute; `.` and repeated `/` are gone, `..` and links are not.
        path: PathBuf,
    },
    /// An export that one node reaches through a unix socket.
    Socket {
        /// Which node.
        node: NodeId,
        /// Its URI.
        uri: NbdUri,
    },
    /// An export that every node reaches.
    Network(NbdUri),
}

impl Volume {
    /// Reads a volume's name. `node` is the task's, for names without one.
    ///
    /// # Errors
    /// `EBadRequest` for an empty, relative or overlong name, a malformed URI or node, and a path or socket without a
    /// node; `EUnsupported` for other schemes.
    pub(crate) fn parse(text: &str, node: Option<&NodeId>) -> Result<Self> {
        if text.is_empty() || text.contains('\0') {
            return Err(Error::bad_request("a volume's name is empty or contains a NUL byte"));
        }
        if text.len() > VOLUME_NAME_BYTES_MAX {
            let message = format!("a volume's name has {} bytes, at most {VOLUME_NAME_BYTES_MAX} fit", text.len());
            return Err(Error::bad_request(message));
        }
        if is_network_or_socket(text) {
            return Self::export(text, node);
        }
        if let Some(rest) = text.strip_prefix("file://") {
            let slash =
                rest.find('/').ok_or_else(|| Error::bad_request(format!("{text}: file://NODE/PATH has a path")))?;
            let (name, path) = rest.split_at(slash);
            let named = if name.is_empty() { None } else { Some(NodeId::new(name)?) };
            return Self::path(path, named.as_ref().or(node));
        }
        match text.split_once("://") {
            Some((scheme, _)) if scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+.-".contains(&byte)) => {
                let message = format!("{scheme}:// volumes are not supported: name a path, file://NODE/PATH or nbd://");
                Err(Error::new(Code::Unsupported, Side::Caller, Operation::Parse, message))
            }
            _ => Self::path(text, node),
        }
    }

    fn path(path: &str, node: Option<&NodeId>) -> Result<Self> {
        if !path.starts_with('/') {
            return Err(Error::bad_request(format!("{path}: a task's path is absolute")));
        }
        let node = node.ok_or_else(|| no_node(path))?.clone();
        Ok(Self::Path { node, path: Path::new(path).components().collect() })
    }

    fn export(text: &str, node: Option<&NodeId>) -> Result<Self> {
        // The engine takes relative names from the working directory: that of the wrong process, here.
        for parameter in ["socket=", "tls-certificates="] {
            let value = text.split_once('?').and_then(|(_, query)| {
                query.split(['&', ';']).find_map(|pair| pair.strip_prefix(parameter)).map(str::to_ascii_uppercase)
            });
            if value.is_some_and(|value| !value.starts_with('/') && !value.starts_with("%2F")) {
                return Err(Error::bad_request(format!("{text}: {parameter} of a task names an absolute path")));
            }
        }
        let uri = NbdUri::parse(text)?;
        if !is_socket(&uri) {
            return Ok(Self::Network(uri));
        }
        Ok(Self::Socket { node: node.ok_or_else(|| no_node(text))?.clone(), uri })
    }

    /// The only node that reaches it; `None`: every node.
    #[must_use]
    pub(crate) fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Path { node, .. } | Self::Socket { node, .. } => Some(node),
            Self::Network(_) => None,
        }
    }

    /// The text by which the dispatcher itself can claim it; `None`: only its node knows.
    #[must_use]
    pub(crate) fn canonical(&self) -> Option<String> {
        match self {
            Self::Path { .. } | Self::Socket { .. } => None,
            Self::Network(uri) => Some(plain_text(uri)),
        }
    }

    fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Path { node, path }, Self::Path { node: other_node, path: other_path }) => {
                node == other_node && path == other_path && !path.components().any(|part| part == Component::ParentDir)
            }
            (Self::Socket { node, uri }, Self::Socket { node: other_node, uri: other_uri }) => {
                node == other_node && plain_text(uri) == plain_text(other_uri)
            }
            (Self::Network(uri), Self::Network(other)) => plain_text(uri) == plain_text(other),
            _ => false,
        }
    }
}

fn no_node(name: &str) -> Error {
    Error::bad_request(format!("{name} is of one node: say which, by --node or as file://NODE/PATH"))
}

pub(crate) fn is_network_or_socket(text: &str) -> bool {
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    ["nbd", "nbds"].contains(&scheme.split('+').next().unwrap_or(""))
}

fn is_socket(uri: &NbdUri) -> bool {
    uri.to_string().split_once("://").is_some_and(|(scheme, _)| scheme.ends_with("+unix"))
}

/// The canonical text without regard to encryption, as one export may be served both ways.
fn plain_text(uri: &NbdUri) -> String {
    let text = uri.to_string();
    match text.strip_prefix("nbds") {
        Some(rest) => format!("nbd{rest}"),
        None => text,
    }
}

/// How a destination is fenced when the client does not say: by its lock if it is a path, by the runner's lease if it is
/// an export (a server has no lock, and a killed runner's requests may still be on their way).
#[must_use]
pub(crate) fn default_fence(destination: &str) -> Fence {
    if is_network_or_socket(destination) { Fence::Lease } else { Fence::Local }
}

/// The texts that stand for a task's destination, where nobody has to be asked: its `--dest-id`, an export's canonical
/// URI, or the task itself when it writes nothing. `None`: the node of the destination knows.
#[must_use]
pub(crate) fn known_claims(id: &TaskId, spec: &TaskSpec) -> Option<Vec<String>> {
    match spec {
        TaskSpec::Noop(_) => Some(vec![format!("task:{id}")]),
        TaskSpec::Copy(copy) => {
            let text = match &copy.dest_id {
                Some(name) => format!("id:{name}"),
                None => Volume::parse(&copy.destination, copy.node.as_ref()).ok()?.canonical()?,
            };
            Some(vec![text])
        }
    }
}

/// The only node that can run a task; `None`: any.
///
/// # Errors
/// `EBadRequest` if its volumes are of different nodes, or as [`Volume::parse`].
pub(crate) fn node_of(spec: &TaskSpec) -> Result<Option<NodeId>> {
    let TaskSpec::Copy(copy) = spec else { return Ok(spec.node().cloned()) };
    let source = Volume::parse(&copy.source, copy.node.as_ref())?;
    let destination = Volume::parse(&copy.destination, copy.node.as_ref())?;
    let mut only = None;
    for node in [copy.node.as_ref(), source.node(), destination.node()].into_iter().flatten() {
        if *only.get_or_insert(node) != node {
            let message = format!("no node reaches both {} and {}", copy.source, copy.destination);
            return Err(Error::bad_request(format!("{message}: let one of them be an export")));
        }
    }
    Ok(only.cloned())
}

/// A task's spec with the node that is implied where there is only one (`--standalone`).
#[must_use]
pub(crate) fn with_implied_node(mut spec: TaskSpec, implied: Option<&NodeId>) -> TaskSpec {
    if let (TaskSpec::Copy(copy), Some(implied)) = (&mut spec, implied) {
        let needs_one = |name: &str| matches!(Volume::parse(name, None), Err(error) if error.code == Code::BadRequest);
        if copy.node.is_none() && (needs_one(&copy.source) || needs_one(&copy.destination)) {
            copy.node = Some(implied.clone());
        }
    }
    spec
}

/// Whether a task makes sense, as far as can be told without touching a volume.
///
/// # Errors
/// `EBadRequest`: malformed names, volumes of different nodes, unknown words, a lease on a source that may change, a lock
/// where there is none; `ESameVolume`: source and destination are one; `EUnsupported`: other schemes.
pub(crate) fn check(spec: &TaskSpec) -> Result<()> {
    match spec {
        TaskSpec::Copy(copy) => check_copy(copy).and_then(|()| node_of(spec).map(|_| ())),
        TaskSpec::Noop(noop) if noop.milliseconds > NOOP_MS_MAX => {
            Err(Error::bad_request(format!("a noop task lasts at most {NOOP_MS_MAX} milliseconds")))
        }
        TaskSpec::Noop(_) => Ok(()),
    }
}

fn check_copy(copy: &CopyTask) -> Result<()> {
    let source = Volume::parse(&copy.source, copy.node.as_ref()).map_err(|error| of(error, Side::Source))?;
    let destination =
        Volume::parse(&copy.destination, copy.node.as_ref()).map_err(|error| of(error, Side::Destination))?;
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
        return Err(Error::bad_request(format!("a destination's id has 1 to {DEST_ID_BYTES_MAX} bytes")));
    }
    check_fence(copy, &source, &destination)
}

fn check_fence(copy: &CopyTask, source: &Volume, destination: &Volume) -> Result<()> {
    let message = match (copy.fence, destination) {
        (Fence::Local, Volume::Network(_) | Volume::Socket { .. }) => {
            "an export has no lock: use the fence lease, command or manual"
        }
        // Whether the server exports it read-only is seen by the runner, when it opens it.
        (Fence::Lease, _) if !copy.source_stable && matches!(source, Volume::Path { .. }) => {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NoopTask;

    fn copy(source: &str, destination: &str) -> CopyTask {
        CopyTask { fence: default_fence(destination), ..CopyTask::example(source, destination) }
    }

    fn verdict(copy: CopyTask) -> Option<Code> {
        check(&TaskSpec::Copy(copy)).err().map(|error| error.code)
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
            (CopyTask { source_stable: false, fence: Fence::Manual, ..copy("file://n1/a", "nbd://h/b") }, None),
            (CopyTask { fence: Fence::Local, ..copy("nbd://h/a", "nbd://h/b") }, Some(Code::BadRequest)),
            (CopyTask { sparse: "maybe".into(), ..copy("nbd://h/a", "nbd://h/b") }, Some(Code::BadRequest)),
            (CopyTask { limit: Some(0), ..copy("nbd://h/a", "nbd://h/b") }, Some(Code::BadRequest)),
            (CopyTask { dest_id: Some(String::new()), ..copy("nbd://h/a", "nbd://h/b") }, Some(Code::BadRequest)),
        ] {
            let shown = format!("{task:?}");
            assert_eq!(verdict(task), code, "{shown}");
        }
        assert!(check(&TaskSpec::Noop(NoopTask { milliseconds: u64::MAX, node: None })).is_err());
    }

    #[test]
    fn an_export_has_one_claim_however_it_is_spelt() {
        let id = TaskId::new("t").unwrap();
        let claims = |task: CopyTask| known_claims(&id, &TaskSpec::Copy(task));
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
            let spec = with_implied_node(TaskSpec::Copy(copy(source, destination)), Some(&implied));
            (node_of(&spec).unwrap(), spec.node().is_some())
        };
        assert_eq!(node("/a", "/b"), (Some(implied.clone()), true));
        assert_eq!(node("nbd://h/a", "nbd://h/b"), (None, false));
        assert_eq!(node("file://n1/a", "file://n1/b"), (Some(NodeId::new("n1").unwrap()), false));
    }
}
