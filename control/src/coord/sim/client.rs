//! Simulates the client's end of a session: its requests, its watches, and the connection as the client sees it.

use super::tree::Transaction;
use crate::coord::{ConnectionState, CoordError, Done, Op, SessionEnd, SessionState, Znode, Zxid};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// Fires a watch.
pub(super) type Fire = oneshot::Sender<()>;

/// Request of a client to its server.
#[derive(Debug)]
pub(super) enum Request {
    Get { path: String, watch: Option<Fire> },
    Children { path: String, watch: Option<Fire> },
    Multi(Vec<Op>),
    Sync,
    Close,
}

/// Reply of a server.
#[derive(Debug)]
pub(super) enum Reply {
    Znode(Option<Znode>),
    Names(Vec<String>),
    Done(Vec<Done>),
    Plain,
}

/// Delivery to a client, in order.
#[derive(Debug)]
pub(super) enum Delivery {
    Reply { id: u64, reply: Result<Reply, CoordError>, seen: Zxid },
    Fire(Fire),
}

/// Watch that waits.
#[derive(Debug)]
pub(super) struct PendingWatch {
    pub(super) path: String,
    pub(super) subject: Subject,
    /// Number of transactions that the server had replayed when the watch was set.
    pub(super) since: usize,
    pub(super) fire: Fire,
}

/// Part of a node that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Subject {
    Data,
    Names,
}

impl PendingWatch {
    pub(super) fn fires_on(&self, transaction: &Transaction) -> bool {
        transaction.changes.iter().any(|(path, node)| match self.subject {
            Subject::Data => **path == *self.path,
            Subject::Names => {
                let is_gone = node.is_none();
                let is_new = node.as_ref().is_some_and(|node| node.stat.created == transaction.zxid);
                let is_child = path.rsplit_once('/').is_some_and(|(parent, _)| parent == self.path);
                (is_child && (is_new || is_gone)) || (**path == *self.path && is_gone)
            }
        })
    }
}

/// Request in flight.
pub(super) type Sent = (Instant, u64, Request);

/// Client of one session.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) node: String,
    /// Server of the connection.
    pub(super) server: usize,
    /// Number of connections: requests of an earlier connection are not answered.
    pub(super) connection: u64,
    /// Time of the last message from its server.
    pub(super) last_received: Instant,
    /// Newest transaction that the client has seen.
    pub(super) seen: Zxid,
    pub(super) states: watch::Sender<SessionState>,
    pub(super) pending: BTreeMap<u64, oneshot::Sender<Result<Reply, CoordError>>>,
    pub(super) watches: Vec<PendingWatch>,
    /// Watches that never fire: only the end of the session wakes their waiters.
    pub(super) lost_watches: Vec<Fire>,
    /// Events whose connection broke before they arrived.
    pub(super) undelivered: Vec<Fire>,
    pub(super) up: Option<mpsc::UnboundedSender<Sent>>,
    pub(super) down: Option<mpsc::UnboundedSender<(Instant, Delivery)>>,
    asked: u64,
    last_arrival: Instant,
}

impl Client {
    pub(super) fn new(node: &str, server: usize) -> Self {
        let now = Instant::now();
        Self {
            node: node.to_owned(),
            server,
            connection: 0,
            last_received: now,
            seen: Zxid(0),
            states: watch::Sender::new(SessionState { connection: ConnectionState::Connected, reconnects: 0 }),
            pending: BTreeMap::new(),
            watches: Vec::new(),
            lost_watches: Vec::new(),
            undelivered: Vec::new(),
            up: None,
            down: None,
            asked: 0,
            last_arrival: now,
        }
    }

    pub(super) fn state(&self) -> SessionState {
        *self.states.borrow()
    }

    /// Returns the number of requests sent.
    pub(super) fn requests(&self) -> u64 {
        self.asked
    }

    pub(super) fn is_connected(&self) -> bool {
        self.state().is_connected()
    }

    /// Sends a request; its answer comes through the receiver.
    pub(super) fn send(
        &mut self,
        request: Request,
        latency: Duration,
    ) -> Result<oneshot::Receiver<Result<Reply, CoordError>>, CoordError> {
        match (self.state().connection, &self.up) {
            (ConnectionState::Over(ending), _) => Err(CoordError::Ended(ending)),
            (ConnectionState::Connected, Some(up)) => {
                self.last_arrival = self.last_arrival.max(Instant::now() + latency);
                self.asked += 1;
                let (answer, answered) = oneshot::channel();
                self.pending.insert(self.asked, answer);
                let _ = up.send((self.last_arrival, self.asked, request));
                Ok(answered)
            }
            _ => Err(CoordError::NotConnected),
        }
    }

    /// Sends something from the server to this client.
    pub(super) fn deliver(&self, latency: Duration, delivery: Delivery) {
        if let Some(down) = &self.down {
            let _ = down.send((Instant::now() + latency, delivery));
        }
    }

    /// Handles a delivery.
    pub(super) fn receive(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Fire(fire) => drop(fire.send(())),
            Delivery::Reply { id, reply, seen } => {
                self.seen = self.seen.max(seen);
                let ended = if let Err(CoordError::Ended(ending)) = &reply { Some(*ending) } else { None };
                if let Some(answer) = self.pending.remove(&id) {
                    let _ = answer.send(reply);
                }
                if let Some(ending) = ended {
                    self.end(ending);
                }
            }
        }
    }

    /// Handles the loss of the connection.
    pub(super) fn disconnect(&mut self) {
        if self.is_connected() {
            self.fail_pending("the connection was lost");
            self.states.send_modify(|state| state.connection = ConnectionState::Disconnected);
        }
    }

    /// Handles a new connection to a server.
    pub(super) fn connect(&mut self, server: usize) {
        self.server = server;
        self.last_received = Instant::now();
        self.last_arrival = self.last_received;
        self.states.send_modify(|state| {
            *state = SessionState { connection: ConnectionState::Connected, reconnects: state.reconnects + 1 }
        });
    }

    /// Ends the session.
    pub(super) fn end(&mut self, ending: SessionEnd) {
        if !self.state().is_over() {
            self.fail_pending("the session ended");
            self.watches.clear();
            self.lost_watches.clear();
            self.undelivered.clear();
            self.states.send_modify(|state| state.connection = ConnectionState::Over(ending));
        }
    }

    fn fail_pending(&mut self, why: &str) {
        self.connection += 1;
        (self.up, self.down) = (None, None);
        for (_, answer) in std::mem::take(&mut self.pending) {
            let _ = answer.send(Err(CoordError::Unknown(why.to_owned())));
        }
    }
}
