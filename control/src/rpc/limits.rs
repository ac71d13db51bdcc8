//! Lists the bounds of everything that waits or queues between processes, with the reason of each.

use std::time::Duration;

/// Bytes of one message, either way: lists come in pages, so nothing honest is larger.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Bytes at which a page of a list ends; one more record fits a message.
pub const PAGE_BYTES_MAX: usize = 512 << 10;

/// Items of a page, so that no reader of the cache is kept long.
pub const PAGE_ITEMS_MAX: usize = 500;

/// Updates of progress in one call.
pub const UPDATES_MAX: usize = 4096;

/// Calls of one connection that are worked on at once; what is above is refused, not queued.
pub const CALLS_PER_CONNECTION_MAX: usize = 64;

/// Calls and streams that one connection may have open.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 128;

/// Calls that are worked on at once, of all connections.
pub const CALLS_MAX: usize = 1024;

/// Connections at once: a thousand runners, and as many clients again twice. Fewer where the process has not twice as many
/// descriptors: the other half is for copies.
pub const CONNECTIONS_MAX: usize = 4096;

/// One peer address has one of so many parts of all connections: a host that fills its own part keeps nobody else out.
pub const PEER_SHARE: usize = 4;

/// Connections at once to the metrics: those who collect them are few.
pub const METRICS_CONNECTIONS_MAX: usize = 64;

/// Tasks watched at once.
pub const WATCHES_MAX: usize = 1024;

/// A peer is asked for a sign of life this often, and is given up when none comes for [`KEEPALIVE_WAIT`].
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);

/// See [`KEEPALIVE_EVERY`].
pub const KEEPALIVE_WAIT: Duration = Duration::from_secs(2);

/// For a connection, its handshake included.
pub const CONNECT_WAIT: Duration = Duration::from_secs(2);

/// From a new connection to its first complete request, all handshakes included: one that asks nothing holds its place no
/// longer, whatever it has sent. Slow links and busy hosts have time enough.
pub const FIRST_REQUEST_WAIT: Duration = Duration::from_secs(10);

/// For calls between nodes.
pub const NODE_CALL_WAIT: Duration = Duration::from_secs(2);

/// For one call of a client; it may lead to a write in the coordination service, or to a look at an export.
pub const CLIENT_CALL_WAIT: Duration = Duration::from_secs(10);

/// How long a client tries one call over all its addresses: longer than a center needs to find a new leader.
pub const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// How long a client that waits for a task does without any answer.
pub const WATCH_PATIENCE: Duration = Duration::from_secs(120);

/// A stream carries something at least this often.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// A stream that carried nothing for so long is given up.
pub const STREAM_IDLE_MAX: Duration = Duration::from_secs(5);

/// Between two looks at a watched task: at most four updates a second.
pub const WATCH_EVERY: Duration = Duration::from_millis(250);

/// For open calls and streams when a listener is closed.
pub const GOODBYE_MAX: Duration = crate::stopping::GOODBYE_MAX;

/// Age at which a connection is asked to be made anew, so that load spreads after a restart.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30 * 60);

/// For what an old connection still does.
pub const CONNECTION_GRACE: Duration = Duration::from_secs(30);

const _: () = assert!(PAGE_BYTES_MAX + (64 << 10) < MESSAGE_BYTES_MAX);
const _: () = assert!(CONNECT_WAIT.as_millis() * 3 < FIRST_REQUEST_WAIT.as_millis());
const _: () = assert!(HEARTBEAT_EVERY.as_millis() * 3 < STREAM_IDLE_MAX.as_millis());
