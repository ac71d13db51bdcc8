//! Defines the coordination service: a tree of small versioned nodes, held by a service that survives the loss of its
//! servers.
//!
//! A [`CoordClient`] opens [`Session`]s; a session ends ([`SessionState::is_over`]) and is replaced by a new one.
//! Implementations are `zookeeper`, `embedded` (one process, one file) and, for tests, `sim` (seeded faults, virtual
//! time). One contract suite holds all of them to the rules below.
//!
//! What a caller may rely on:
//! - Every write is a [`Session::multi`]: all of it happens, or nothing. Every change names a version.
//! - [`CoordError::Unknown`] means that the write may have happened, or may happen later: read again and compare the
//!   operation id in the record. Any other error means that it did not and will not happen.
//! - Reads may be stale until [`Session::sync`]; decide by writes.
//! - A watch fires at most once, may fire late, merged or not at all: it is a hint.
//! - While a session is not connected, writes are refused with [`CoordError::NotConnected`] instead of being queued.

pub(crate) mod bootstrap;
#[doc(hidden)]
pub mod contract_tests;
pub mod credentials;
pub mod embedded;
pub mod paths;
pub mod session_keeper;
#[cfg(test)]
pub(crate) mod sim;
mod tree;
pub mod zookeeper;

use async_trait::async_trait;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Largest node in bytes; larger ones are refused before they are sent.
pub const NODE_BYTES_MAX: usize = 8 << 10;

/// Largest sum of all nodes in one [`Session::multi`], in bytes.
pub const MULTI_BYTES_MAX: usize = 256 << 10;

/// Shortest session timeout: below, leases would have no time for a single renewal.
pub const SESSION_TIMEOUT_MIN: Duration = Duration::from_secs(6);

/// Longest session timeout: above, lost nodes would not be replaced in useful time.
pub const SESSION_TIMEOUT_MAX: Duration = Duration::from_secs(120);

/// Opens sessions.
#[async_trait]
pub trait CoordClient: Send + Sync + std::fmt::Debug {
    /// Opens a new, connected session.
    ///
    /// # Errors
    /// [`CoordError::NotConnected`] if no server answers in time; try again. [`CoordError::Ended`] with
    /// [`SessionEnd::AuthFailed`]. [`CoordError::Refused`] with [`Refusal::NoAuth`] if the center's folder may not be
    /// made.
    async fn open(&self) -> Result<Arc<dyn Session>, CoordError>;

    /// Describes the configured servers and their answers, to explain why there is no session. Bounded.
    async fn diagnose(&self) -> String {
        String::from("in this process")
    }
}

/// Session with the service. Its ephemeral nodes live until the service expires the session.
#[async_trait]
pub trait Session: Send + Sync + std::fmt::Debug {
    /// Returns the id of this session. Ids are never used again.
    fn id(&self) -> SessionId;

    /// Returns the negotiated time after which the service expires a silent session.
    fn timeout(&self) -> Duration;

    /// Returns the state, now and at every change. Changes may be merged: `reconnects` counts them.
    fn states(&self) -> watch::Receiver<SessionState>;

    /// Returns a node; `None` if it does not exist.
    ///
    /// # Errors
    /// Of every read: [`CoordError::NotConnected`] also when the connection is lost under way,
    /// [`CoordError::Ended`], [`CoordError::Refused`] with index 0.
    async fn get(&self, path: &str) -> Result<Option<Znode>, CoordError>;

    /// As [`Session::get`], and sets a watch on its data, its deletion, or its creation.
    async fn get_and_watch(&self, path: &str) -> Result<(Option<Znode>, Watch), CoordError>;

    /// Returns the names of the children in order; empty if the node does not exist.
    async fn children(&self, path: &str) -> Result<Vec<String>, CoordError>;

    /// As [`Session::children`], and sets a watch on their names and the node's deletion. The node must exist, else
    /// [`CoordError::Refused`] with [`Refusal::NoNode`] and index 0.
    async fn children_and_watch(&self, path: &str) -> Result<(Vec<String>, Watch), CoordError>;

    /// Does all of `ops` in their order, or nothing. The request is sent when the future is first polled, and dropping
    /// the future does not cancel it. On success returns one [`Done`] for each operation.
    async fn multi(&self, ops: Vec<Op>) -> Result<Vec<Done>, CoordError>;

    /// Makes later reads of this session see every write that had been committed before.
    async fn sync(&self) -> Result<(), CoordError>;

    /// Ends the session; its ephemeral nodes are deleted at once if the service can be reached. Waits at most a second.
    async fn close(&self);
}

/// Identity of one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub i64);

/// State of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionState {
    /// Connection of the session.
    pub connection: ConnectionState,
    /// Number of reconnects: when it grows, readers read everything again.
    pub reconnects: u64,
}

impl SessionState {
    /// Tells whether the session has ended and a new one is needed.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.connection, ConnectionState::Over(_))
    }

    /// Tells whether requests can be made.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connection == ConnectionState::Connected
    }
}

/// Connection of a session to the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionState {
    /// Requests are sent.
    Connected,
    /// No server answers; the service may or may not have expired the session.
    Disconnected,
    /// The session is over.
    Over(SessionEnd),
}

/// Reason for the end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The service has expired the session, or must have done so by now.
    Expired,
    /// This process has closed it.
    Closed,
    /// The service refused the credentials.
    AuthFailed,
}

/// Node as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Znode {
    /// Content of the node.
    pub data: Vec<u8>,
    /// Metadata of the node.
    pub stat: Stat,
}

/// Metadata of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Number of changes since the node was created, from 0.
    pub version: i32,
    /// The transaction that created it.
    pub created: Zxid,
    /// The transaction that changed it last.
    pub modified: Zxid,
    /// The session that an ephemeral node belongs to.
    pub owner: Option<SessionId>,
}

/// Transaction number: grows with every committed write of the whole service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Zxid(pub i64);

/// One part of a [`Session::multi`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The node exists with this version.
    Check {
        /// Absolute path.
        path: String,
        /// Expected version.
        version: i32,
    },
    /// The node does not exist, its parent does, and is not ephemeral.
    Create {
        /// Absolute path.
        path: String,
        /// Content, at most [`NODE_BYTES_MAX`].
        data: Vec<u8>,
        /// Lifetime of the node.
        mode: CreateMode,
    },
    /// The node exists with this version; it gets this content.
    Set {
        /// Absolute path.
        path: String,
        /// Content, at most [`NODE_BYTES_MAX`].
        data: Vec<u8>,
        /// Expected version.
        version: i32,
    },
    /// The node exists with this version and has no children; it is deleted.
    Delete {
        /// Absolute path.
        path: String,
        /// Expected version.
        version: i32,
    },
}

/// Lifetime of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateMode {
    /// Until it is deleted.
    Persistent,
    /// At most as long as the session that created it.
    Ephemeral,
}

/// Result of one operation of a committed multi.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Of `Check`, `Create` and `Delete`: old servers return nothing about a creation.
    Plain,
    /// Of `Set`: the node as it is now. Its `modified` is the transaction of the whole multi.
    Set(Stat),
}

/// Error of a request to the service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CoordError {
    /// A condition of the multi's operation at `index` did not hold; nothing was done.
    #[error("operation {index} of the write was refused: {why}")]
    Refused {
        /// Position in the multi.
        index: usize,
        /// Condition that did not hold.
        why: Refusal,
    },
    /// The session is over; open a new one.
    #[error("the session is over: {0:?}")]
    Ended(SessionEnd),
    /// Only of [`CoordClient::open`]: the service was reached, but its content is of no use to this node.
    #[error("{0}")]
    Unusable(String),
    /// There is no connection now; nothing was sent.
    #[error("not connected to the coordination service")]
    NotConnected,
    /// The write may have happened or may still happen.
    #[error("outcome unknown: {0}")]
    Unknown(String),
    /// A node or multi is over its bound; nothing was sent.
    #[error("{path}: {bytes} bytes, at most {limit} are allowed")]
    TooLarge {
        /// Path of the node, or of the first of the multi.
        path: String,
        /// Size that was asked for.
        bytes: usize,
        /// [`NODE_BYTES_MAX`] or [`MULTI_BYTES_MAX`].
        limit: usize,
    },
}

/// Condition of an operation that did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The node, or the parent of a node to create, does not exist.
    #[error("no such node")]
    NoNode,
    /// The node to create exists.
    #[error("the node exists")]
    NodeExists,
    /// The node has another version.
    #[error("the node has changed")]
    BadVersion,
    /// The node to delete has children.
    #[error("the node has children")]
    NotEmpty,
    /// The access list of the node does not permit the operation.
    #[error("not permitted by the access list of the node (NoAuth)")]
    NoAuth,
    /// A quota on nodes or bytes would be exceeded.
    #[error("a quota is used up (QuotaExceeded)")]
    QuotaExceeded,
    /// The parent is an ephemeral node, or another rule of the service forbids the operation.
    #[error("not possible")]
    Impossible,
}

/// Hint to read again; fires at most once.
#[derive(Debug)]
pub struct Watch(oneshot::Receiver<()>);

impl Refusal {
    /// Tells whether the state of the nodes was the reason, so that reading again helps. Otherwise the service refuses
    /// the write in any state of the nodes.
    #[must_use]
    pub fn is_condition(self) -> bool {
        match self {
            Self::NoNode | Self::NodeExists | Self::BadVersion | Self::NotEmpty => true,
            Self::NoAuth | Self::QuotaExceeded | Self::Impossible => false,
        }
    }
}

impl Op {
    /// Returns the path of the operation's node.
    #[must_use]
    pub fn path(&self) -> &str {
        match self {
            Self::Check { path, .. }
            | Self::Create { path, .. }
            | Self::Set { path, .. }
            | Self::Delete { path, .. } => path,
        }
    }
}

impl Watch {
    /// Creates a watch. The sender fires it, or drops it when the session is over; both wake the waiter.
    #[must_use]
    pub fn new() -> (oneshot::Sender<()>, Self) {
        let (fire, fired) = oneshot::channel();
        (fire, Self(fired))
    }

    /// Tells whether the watch has fired, or can no longer fire.
    pub fn has_fired(&mut self) -> bool {
        self.0.try_recv() != Err(oneshot::error::TryRecvError::Empty)
    }

    /// Waits until the watch fires or can no longer fire.
    pub async fn fired(self) {
        let _ = self.0.await;
    }
}

/// Refuses writes that must not be sent: malformed paths ([`Refusal::Impossible`]), negative versions
/// ([`Refusal::BadVersion`]; the service takes them for any version), and too large ones.
///
/// # Errors
/// [`CoordError::Refused`], or as [`check_size`].
pub fn check_ops(ops: &[Op]) -> Result<(), CoordError> {
    for (index, op) in ops.iter().enumerate() {
        check_op(op).map_err(|why| CoordError::Refused { index, why })?;
    }
    check_size(ops)
}

fn check_op(op: &Op) -> Result<(), Refusal> {
    let (path, version, is_made_or_gone) = match op {
        Op::Check { path, version } | Op::Set { path, version, .. } => (path, *version, false),
        Op::Delete { path, version } => (path, *version, true),
        Op::Create { path, .. } => (path, 0, true),
    };
    if !is_path(path) || (is_made_or_gone && path == "/") {
        return Err(Refusal::Impossible);
    }
    if version < 0 { Err(Refusal::BadVersion) } else { Ok(()) }
}

/// Tells whether a node can have this path: absolute, no empty, `.` or `..` part, printable characters only.
#[must_use]
pub fn is_path(path: &str) -> bool {
    let is_name = |part: &str| !matches!(part, "" | "." | "..") && !part.chars().any(char::is_control);
    path == "/" || path.strip_prefix('/').is_some_and(|parts| parts.split('/').all(is_name))
}

/// Refuses writes that are too large for the service, which would close the connection.
///
/// # Errors
/// [`CoordError::TooLarge`].
pub fn check_size(ops: &[Op]) -> Result<(), CoordError> {
    let mut total = 0;
    for op in ops {
        let (path, bytes) = match op {
            Op::Create { path, data, .. } | Op::Set { path, data, .. } => (path, data.len()),
            Op::Check { path, .. } | Op::Delete { path, .. } => (path, 0),
        };
        total += bytes + path.len();
        for (bytes, limit) in [(bytes, NODE_BYTES_MAX), (total, MULTI_BYTES_MAX)] {
            if bytes > limit {
                return Err(CoordError::TooLarge { path: path.clone(), bytes, limit });
            }
        }
    }
    Ok(())
}
