//! Lists the bounds of everything that waits or queues between processes, with the reason of each.

use std::time::Duration;

/// Largest message in bytes, either way: lists are paged, so no valid message is larger.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// Bytes at which a page of a list ends; one more record fits a message.
pub const PAGE_BYTES_MAX: usize = 512 << 10;

/// Most items of a page, so that no reader holds the cache for long.
pub const PAGE_ITEMS_MAX: usize = 500;

/// Most updates of progress in one call.
pub const UPDATES_MAX: usize = 4096;

/// Calls of one connection that are processed at once; further ones are refused, not queued.
pub const CALLS_PER_CONNECTION_MAX: usize = 64;

/// Calls and streams that one connection may have open.
pub const STREAMS_PER_CONNECTION_MAX: u32 = 128;

/// Calls that are processed at once, of all connections.
pub const CALLS_MAX: usize = 1024;

/// Connections at once: a thousand runners, and three times as many clients. Fewer where the process has not twice as
/// many descriptors: the other half is for copies.
pub const CONNECTIONS_MAX: usize = 4096;

/// Divisor for the share of one peer address: a host that fills its own share keeps no other one out.
pub const PEER_SHARE: usize = 4;

/// Connections at once to the metrics: few programs collect them.
pub const METRICS_CONNECTIONS_MAX: usize = 64;

/// Connections at once to the console: each of its readers has some.
pub const CONSOLE_CONNECTIONS_MAX: usize = 128;

/// Tasks watched, and logs read, at once.
pub const WATCHES_MAX: usize = 1024;

/// Clients that follow all tasks at once: each costs a copy of every change.
pub const SUBSCRIBERS_MAX: usize = 16;

/// Longest time for which a client that follows all tasks may take nothing: then its stream is ended, as it keeps others
/// out.
pub const SUBSCRIBER_STALL_MAX: Duration = Duration::from_secs(60);

/// Time between two keepalive pings; a peer that does not answer one within [`KEEPALIVE_WAIT`] is disconnected.
pub const KEEPALIVE_EVERY: Duration = Duration::from_secs(2);

/// See [`KEEPALIVE_EVERY`].
pub const KEEPALIVE_WAIT: Duration = Duration::from_secs(2);

/// Longest time to connect, the handshake included.
pub const CONNECT_WAIT: Duration = Duration::from_secs(2);

/// Longest time from a new connection to its first complete request, all handshakes included: a silent connection is
/// closed then, whatever it has sent. Long enough for slow links and busy hosts.
pub const FIRST_REQUEST_WAIT: Duration = Duration::from_secs(10);

/// Longest call between nodes.
pub const NODE_CALL_WAIT: Duration = Duration::from_secs(2);

/// Longest check of a task by a node, which opens volumes. The client waits for the leader, and the leader for the nodes.
pub const CHECK_WAIT: Duration = Duration::from_secs(6);

/// Most nodes that check one task.
pub const CHECK_NODES_MAX: usize = 8;

/// Longest call of a client; it may lead to a write in the coordination service, or to a check of an export.
pub const CLIENT_CALL_WAIT: Duration = Duration::from_secs(10);

/// Longest time for which a client retries one call over all its addresses: longer than a center needs to find a new
/// leader.
pub const CLIENT_PATIENCE: Duration = Duration::from_secs(30);

/// Longest time without any answer for a client that waits for a task.
pub const WATCH_PATIENCE: Duration = Duration::from_secs(120);

/// Longest time between two messages of a stream.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// Silence after which a stream is closed.
pub const STREAM_IDLE_MAX: Duration = Duration::from_secs(5);

/// Time between two messages of a watched task: at most four a second.
pub const WATCH_EVERY: Duration = Duration::from_millis(250);

/// Time between two looks at a followed log of an attempt.
pub const LOG_EVERY: Duration = Duration::from_millis(250);

/// Longest wait for open calls and streams when a listener is closed.
pub const GOODBYE_MAX: Duration = crate::stop_bounds::GOODBYE_MAX;

/// Age at which a peer is asked to reconnect, so that load spreads after a restart.
pub const CONNECTION_AGE_MAX: Duration = Duration::from_secs(30 * 60);

/// Time in which calls of an old connection may finish.
pub const CONNECTION_GRACE: Duration = Duration::from_secs(30);

const _: () = assert!(PAGE_BYTES_MAX + (64 << 10) < MESSAGE_BYTES_MAX);
const _: () = assert!(CONNECT_WAIT.as_millis() * 3 < FIRST_REQUEST_WAIT.as_millis());
const _: () = assert!(CHECK_WAIT.as_millis() < CLIENT_CALL_WAIT.as_millis());
const _: () = assert!(HEARTBEAT_EVERY.as_millis() * 3 < STREAM_IDLE_MAX.as_millis());
