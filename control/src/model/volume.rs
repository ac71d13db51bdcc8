//! Parses the names of a task's volumes: which node can reach a volume, and by which text a destination is claimed.
//!
//! | spelling | where | claimed as |
//! | --- | --- | --- |
//! | `file://NODE/PATH` | a path of that node | the identity that the node finds (device and inode, WWN, ...) |
//! | `/PATH` | a path of the task's node | the same |
//! | `nbd+unix:///EXPORT?socket=/PATH` | a socket of the task's node | the same |
//! | `nbd://HOST[:PORT]/EXPORT`, `nbds://` | any node | `nbd://HOST:PORT/EXPORT`: both schemes are one volume |
//! | any, with `--dest-id NAME` | the same | `id:NAME` |
//!
//! A path is taken literally: `%` is no escape. The dispatcher never touches a volume; a runner checks what it opens.

use super::names::NodeId;
use blockhaul_engine::error::{Code, Error, Operation, Result, Side};
use blockhaul_engine::nbd::NbdUri;
use blockhaul_engine::shown::Shown;
use blockhaul_engine::volume::Locator;
use std::fmt;
use std::path::{Component, Path, PathBuf};

/// Longest name of a volume in a record, in bytes.
pub const VOLUME_NAME_BYTES_MAX: usize = 1024;

/// Volume, by its name in a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskVolume {
    /// A file or device of one node.
    Path {
        /// The node.
        node: NodeId,
        /// Absolute; `.` and repeated `/` are removed, `..` and links are not.
        path: PathBuf,
    },
    /// An export that one node reaches through a unix socket.
    Socket {
        /// The node.
        node: NodeId,
        /// The URI.
        uri: NbdUri,
    },
    /// An export that every node reaches.
    Network(NbdUri),
}

impl TaskVolume {
    /// Parses a volume's name. `node` is the task's, for names without one.
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
                rest.find('/').ok_or_else(|| Error::bad_request(format!("{text}: expected file://NODE/PATH")))?;
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
            return Err(Error::bad_request(format!("{path}: expected an absolute path")));
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
                return Err(Error::bad_request(format!("{text}: {parameter} must name an absolute path")));
            }
        }
        let uri = NbdUri::parse(text)?;
        if !is_socket(&uri) {
            return Ok(Self::Network(uri));
        }
        Ok(Self::Socket { node: node.ok_or_else(|| no_node(text))?.clone(), uri })
    }

    /// Returns the only node that reaches it; `None`: every node.
    #[must_use]
    pub(crate) fn node(&self) -> Option<&NodeId> {
        match self {
            Self::Path { node, .. } | Self::Socket { node, .. } => Some(node),
            Self::Network(_) => None,
        }
    }

    /// Returns the text by which the dispatcher itself can claim it; `None`: only its node knows.
    #[must_use]
    pub(crate) fn canonical(&self) -> Option<String> {
        match self {
            Self::Path { .. } | Self::Socket { .. } => None,
            Self::Network(uri) => Some(plain_text(uri)),
        }
    }

    /// Tells whether a name makes sense only together with a node.
    #[must_use]
    pub(crate) fn needs_node(text: &str) -> bool {
        matches!(Self::parse(text, None), Err(error) if error.code == Code::BadRequest)
    }

    /// Returns the volume as the engine names it.
    pub(crate) fn locator(&self) -> Locator {
        match self.clone() {
            Self::Path { path, .. } => Locator::Path(path),
            Self::Socket { uri, .. } | Self::Network(uri) => Locator::Nbd(uri),
        }
    }

    /// Returns a text that is the same for two names exactly if both are one volume, as far as names tell.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::Path { node, path } => format!("file://{node}{}", path.shown()),
            Self::Socket { node, uri } => format!("{node} {}", plain_text(uri)),
            Self::Network(uri) => plain_text(uri),
        }
    }

    /// Tells whether both are one volume, as far as their names tell.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
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

/// Formats the name as a client would write it.
impl fmt::Display for TaskVolume {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path { node, path } => write!(f, "file://{node}{}", path.shown()),
            Self::Socket { uri, .. } | Self::Network(uri) => write!(f, "{uri}"),
        }
    }
}

fn no_node(name: &str) -> Error {
    Error::bad_request(format!("{name} needs a node: use --node or file://NODE/PATH"))
}

pub(crate) fn is_network_or_socket(text: &str) -> bool {
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme).to_ascii_lowercase();
    ["nbd", "nbds"].contains(&scheme.split('+').next().unwrap_or(""))
}

fn is_socket(uri: &NbdUri) -> bool {
    uri.to_string().split_once("://").is_some_and(|(scheme, _)| scheme.ends_with("+unix"))
}

/// Returns the canonical text without regard to encryption, as one export may be served both ways.
fn plain_text(uri: &NbdUri) -> String {
    let text = uri.to_string();
    match text.strip_prefix("nbds") {
        Some(rest) => format!("nbd{rest}"),
        None => text,
    }
}
