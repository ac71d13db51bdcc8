//! Simulates the service itself: a leader that commits, servers that follow it, sessions that expire by the leader's
//! ticks.
//!
//! What always holds: writes are checked against the leader's tree alone. A server replays them in order and never goes
//! back, except by [`Core::regress`]. An expired session changes nothing any more. A session lives between `T - tick/2`
//! and `T + tick` after its last request or ping: followers report those to the leader only with its own pings, and the
//! leader counts in ticks.

use super::client::{Client, Delivery, PendingWatch, Reply, Request, Subject};
use super::tree::{Transaction, Tree};
use super::{Commit, FaultRates, Observer, TICK};
use crate::coord::{CoordError, Done, Op, SessionEnd, SessionId, Zxid};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Time after which a server that has lost its leader drops its clients.
const SYNC_LIMIT: Duration = Duration::from_secs(4);

/// State of one service, behind one lock.
pub(super) struct Core {
    pub(super) rng: fastrand::Rng,
    pub(super) fault_rates: FaultRates,
    pub(super) clients: BTreeMap<SessionId, Client>,
    pub(super) observer: Option<Observer>,
    /// Path below which writes are refused.
    pub(super) forbidden: Option<String>,
    pub(super) timeout: Duration,
    tree: Tree,
    log: Vec<Arc<Transaction>>,
    /// Number of transactions that are sent to the servers.
    replicated: usize,
    servers: Vec<EnsembleServer>,
    tracked: BTreeMap<SessionId, TrackedSession>,
    /// Nodes whose packets are dropped.
    cut: BTreeSet<String>,
    is_up: bool,
    /// Time until which there is no leader.
    stalled_until: Instant,
    sessions_opened: i64,
    zxid: Zxid,
    started: Instant,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core").field("zxid", &self.zxid).finish_non_exhaustive()
    }
}

/// A server of the ensemble, which follows the leader's log.
#[derive(Debug, Default)]
struct EnsembleServer {
    tree: Tree,
    /// Number of transactions of the log that this server has replayed.
    replayed: usize,
    /// Start of its isolation from the leader.
    isolated: Option<Instant>,
    /// Whether it serves no client, after a long isolation.
    is_unavailable: bool,
}

/// Session as the leader tracks it.
#[derive(Clone, Debug)]
struct TrackedSession {
    node: String,
    /// Tick at which it expires.
    last_tick: u64,
}

/// State of the service to restore.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    tree: Tree,
    zxid: Zxid,
    tracked: BTreeMap<SessionId, TrackedSession>,
}

impl Core {
    pub(super) fn new(seed: u64, servers: usize, timeout: Duration) -> Self {
        let now = Instant::now();
        Self {
            rng: fastrand::Rng::with_seed(seed),
            fault_rates: FaultRates::default(),
            clients: BTreeMap::new(),
            observer: None,
            forbidden: None,
            timeout,
            tree: Tree::default(),
            log: Vec::new(),
            replicated: 0,
            servers: (0..servers).map(|_| EnsembleServer::default()).collect(),
            tracked: BTreeMap::new(),
            cut: BTreeSet::new(),
            is_up: true,
            stalled_until: now,
            sessions_opened: 0,
            zxid: Zxid(0),
            started: now,
        }
    }

    pub(super) fn tree(&self) -> &Tree {
        &self.tree
    }

    pub(super) fn latency(&mut self) -> Duration {
        let (least, most) = self.fault_rates.latency_ms;
        Duration::from_millis(self.rng.u64(least..=most))
    }

    /// Tells whether an event of probability `share` happens.
    pub(super) fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && self.rng.f64() < share
    }

    // Reachability.

    /// Tells whether packets get from a node to a server.
    pub(super) fn reaches(&self, node: &str, server: usize) -> bool {
        self.is_up && !self.cut.contains(node) && !self.servers[server].is_unavailable
    }

    /// Tells whether a server's writes reach the leader.
    pub(super) fn has_leader(&self, server: usize) -> bool {
        self.is_up && self.servers[server].isolated.is_none() && Instant::now() >= self.stalled_until
    }

    /// Returns a server that accepts a client that has seen everything up to `seen`.
    pub(super) fn any_server(&mut self, node: &str, seen: Zxid) -> Option<usize> {
        let accepts =
            |server: &usize| self.reaches(node, *server) && self.has_leader(*server) && self.zxid_of(*server) >= seen;
        let accepting: Vec<usize> = (0..self.servers.len()).filter(accepts).collect();
        self.rng.choice(accepting)
    }

    fn zxid_of(&self, server: usize) -> Zxid {
        let replayed = self.servers[server].replayed;
        if replayed == self.log.len() {
            self.zxid
        } else {
            self.log[..replayed].last().map_or(Zxid(0), |last| last.zxid)
        }
    }

    pub(super) fn cut(&mut self, node: &str, is_cut: bool) {
        if is_cut {
            self.cut.insert(node.to_owned())
        } else {
            self.cut.remove(node)
        };
    }

    pub(super) fn isolate(&mut self, server: usize) {
        self.servers[server].isolated.get_or_insert_with(Instant::now);
    }

    pub(super) fn restore(&mut self, server: usize) {
        self.servers[server].isolated = None;
        self.servers[server].is_unavailable = false;
        self.catch_up(server, self.log.len());
    }

    /// Removes the leader for a while; the next one gives every session its full time.
    pub(super) fn stall(&mut self, time: Duration) {
        self.stalled_until = self.stalled_until.max(Instant::now() + time);
        let tick = self.tick_after(time + self.timeout);
        self.tracked.values_mut().for_each(|session| session.last_tick = session.last_tick.max(tick));
    }

    pub(super) fn set_up(&mut self, is_up: bool) {
        if is_up && !self.is_up {
            let tick = self.tick_after(self.timeout);
            self.tracked.values_mut().for_each(|session| session.last_tick = tick);
        }
        self.is_up = is_up;
        if !is_up {
            self.reset(|_| true);
        }
    }

    /// Breaks connections so that their clients notice.
    pub(super) fn reset(&mut self, which: impl Fn(&Client) -> bool) {
        self.clients.values_mut().filter(|client| which(client)).for_each(Client::disconnect);
    }

    // Sessions.

    fn tick_after(&self, time: Duration) -> u64 {
        let since = (Instant::now() + time).duration_since(self.started);
        u64::try_from(since.as_millis() / TICK.as_millis()).expect("ticks of a simulation") + 1
    }

    /// Opens a session for a node; needs a leader.
    pub(super) fn open_session(&mut self, node: &str) -> Option<(SessionId, usize)> {
        let server = self.any_server(node, Zxid(0))?;
        self.sessions_opened += 1;
        let id = SessionId(0x1_0000 + self.sessions_opened);
        self.zxid.0 += 1;
        self.tracked.insert(id, TrackedSession { node: node.to_owned(), last_tick: self.tick_after(self.timeout) });
        Some((id, server))
    }

    pub(super) fn is_alive(&self, session: SessionId) -> bool {
        self.tracked.contains_key(&session)
    }

    /// Extends a session after a request or ping, less the delay with which a follower reports it to the leader.
    pub(super) fn extend_session(&mut self, session: SessionId) {
        let lag = Duration::from_millis(self.rng.u64(0..=500)).min(TICK / 2);
        let tick = self.tick_after(self.timeout.saturating_sub(lag));
        if let Some(session) = self.tracked.get_mut(&session) {
            session.last_tick = session.last_tick.max(tick);
        }
    }

    /// Expires the sessions of this tick.
    pub(super) fn tick(&mut self) {
        if !self.is_up || Instant::now() < self.stalled_until {
            return;
        }
        let tick = self.tick_after(Duration::ZERO) - 1;
        let due: Vec<_> = self.tracked.iter().filter(|(_, t)| t.last_tick <= tick).map(|(id, _)| *id).collect();
        due.into_iter().for_each(|session| self.end_session(session));
        for server in 0..self.servers.len() {
            let silent = self.servers[server].isolated.is_some_and(|since| since.elapsed() >= SYNC_LIMIT);
            if silent && !self.servers[server].is_unavailable {
                self.servers[server].is_unavailable = true;
                self.reset(|client| client.server == server);
            }
        }
    }

    /// Expires every session of a node at once; the node learns of it with its next request or ping.
    pub(super) fn expire(&mut self, node: &str) {
        let sessions: Vec<_> = self.tracked.iter().filter(|(_, t)| t.node == node).map(|(id, _)| *id).collect();
        sessions.into_iter().for_each(|session| self.end_session(session));
    }

    /// Ends a session and deletes its ephemeral nodes.
    pub(super) fn end_session(&mut self, session: SessionId) {
        let Some(ended) = self.tracked.remove(&session) else { return };
        let gone = self.tree.owned_by(session);
        let changes = gone.into_iter().map(|path| (path, None)).collect();
        self.commit(&ended.node, changes, &[]);
    }

    // Requests, at the server of the client.

    /// Returns the reply of a session's server to a request.
    pub(super) fn serve(&mut self, session: SessionId, request: Request) -> Result<Reply, CoordError> {
        let (server, node) =
            self.clients.get(&session).map(|client| (client.server, client.node.clone())).ok_or(EXPIRED)?;
        match request {
            Request::Get { path, watch } => {
                let found = self.servers[server].tree.get(&path).map(|node| (**node).clone());
                self.add_watch(session, path, Subject::Data, watch);
                Ok(Reply::Znode(found))
            }
            Request::Children { path, watch } => {
                let names = self.servers[server].tree.children(&path);
                if watch.is_some() && !self.servers[server].tree.exists(&path) {
                    return Err(CoordError::Refused { index: 0, why: crate::coord::Refusal::NoNode });
                }
                self.add_watch(session, path, Subject::Names, watch);
                Ok(Reply::Names(names))
            }
            Request::Multi(ops) => self.multi(session, &node, &ops, Some(server)).map(Reply::Done),
            Request::Sync => {
                self.catch_up(server, self.log.len());
                Ok(Reply::Plain)
            }
            Request::Close => {
                self.end_session(session);
                Ok(Reply::Plain)
            }
        }
    }

    /// Applies a write on the leader; the session's server has it before it answers.
    pub(super) fn multi(
        &mut self,
        session: SessionId,
        node: &str,
        ops: &[Op],
        server: Option<usize>,
    ) -> Result<Vec<Done>, CoordError> {
        if !self.is_alive(session) {
            return Err(EXPIRED);
        }
        self.extend_session(session);
        let is_forbidden = |op: &Op| {
            !matches!(op, Op::Check { .. }) && self.forbidden.as_ref().is_some_and(|path| op.path().starts_with(path))
        };
        if let Some(index) = ops.iter().position(is_forbidden) {
            return Err(CoordError::Refused { index, why: crate::coord::Refusal::NoAuth });
        }
        let (changes, done) = self.tree.evaluate(ops, session, Zxid(self.zxid.0 + 1))?;
        self.commit(node, changes, ops);
        if let Some(server) = server {
            self.catch_up(server, self.log.len());
        }
        Ok(done)
    }

    fn commit(&mut self, node: &str, changes: Vec<super::tree::ChangedZnode>, ops: &[Op]) {
        self.zxid.0 += 1;
        let zxid = self.zxid;
        if let Some(observer) = self.observer.clone() {
            let changes: Vec<_> = changes.iter().map(|(path, node)| (&**path, node.as_deref())).collect();
            observer(&Commit { zxid, node, changes: &changes, ops });
        }
        self.tree.replay(&changes);
        self.log.push(Arc::new(Transaction { zxid, changes }));
    }

    /// Returns for the transactions since the last call, if there are any: each server, the length of the log that it
    /// is to replay, and its lag.
    pub(super) fn take_unreplicated(&mut self) -> Vec<(usize, usize, Duration)> {
        let upto = self.log.len();
        if upto == std::mem::replace(&mut self.replicated, upto) {
            return Vec::new();
        }
        let (least, most) = self.fault_rates.lag_ms;
        (0..self.servers.len())
            .map(|server| (server, upto, Duration::from_millis(self.rng.u64(least..=most))))
            .collect()
    }

    /// Returns the number of servers.
    pub(super) fn servers(&self) -> usize {
        self.servers.len()
    }

    /// Returns the silence after which a client considers itself disconnected.
    pub(super) fn silence_max(&self) -> Duration {
        self.timeout / 5
    }

    /// Replays the log on a server up to a length, if it has a leader; its clients' watches fire.
    pub(super) fn catch_up(&mut self, server: usize, upto: usize) {
        if self.servers[server].isolated.is_some() {
            return;
        }
        while self.servers[server].replayed < upto.min(self.log.len()) {
            let transaction = self.log[self.servers[server].replayed].clone();
            self.servers[server].tree.replay(&transaction.changes);
            self.servers[server].replayed += 1;
            self.fire(server, &transaction);
        }
    }

    // Watches.

    fn add_watch(&mut self, session: SessionId, path: String, subject: Subject, watch: Option<super::client::Fire>) {
        let Some(fire) = watch else { return };
        if let Some(client) = self.clients.get_mut(&session) {
            let since = self.servers[client.server].replayed;
            client.watches.push(PendingWatch { path, subject, since, fire });
        }
    }

    fn fire(&mut self, server: usize, transaction: &Transaction) {
        let FaultRates { lost_watch, late_watch, .. } = self.fault_rates;
        let Self { clients, rng, .. } = self;
        for client in clients.values_mut().filter(|client| client.server == server && client.is_connected()) {
            for watch in client.watches.extract_if(.., |watch| watch.fires_on(transaction)).collect::<Vec<_>>() {
                if rng.f64() < lost_watch {
                    client.lost_watches.push(watch.fire);
                    continue;
                }
                let late = if rng.f64() < late_watch { rng.u64(100..=8000) } else { rng.u64(0..=2) };
                client.deliver(Duration::from_millis(late), Delivery::Fire(watch.fire));
            }
        }
    }

    /// Fires the watches of a client on a new server for what has changed since they were set.
    pub(super) fn fire_missed_watches(&mut self, session: SessionId) {
        let Some(client) = self.clients.get_mut(&session) else { return };
        let log = &self.log[..self.servers[client.server].replayed];
        let missed =
            |watch: &mut PendingWatch| log.iter().skip(watch.since).any(|transaction| watch.fires_on(transaction));
        let fires: Vec<_> = client.watches.extract_if(.., missed).map(|watch| watch.fire).collect();
        for fire in std::mem::take(&mut client.undelivered).into_iter().chain(fires) {
            client.deliver(Duration::ZERO, Delivery::Fire(fire));
        }
    }

    // History.

    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot { tree: self.tree.clone(), zxid: self.zxid, tracked: self.tracked.clone() }
    }

    /// Restores a snapshot. The sessions of that time get their full timeout again. No server accepts a client that has
    /// seen a later transaction.
    pub(super) fn regress(&mut self, to: &Snapshot) {
        self.reset(|_| true);
        (self.tree, self.zxid, self.tracked) = (to.tree.clone(), to.zxid, to.tracked.clone());
        self.log.clear();
        self.replicated = 0;
        let tick = self.tick_after(self.timeout);
        self.tracked.values_mut().for_each(|session| session.last_tick = tick);
        for server in &mut self.servers {
            *server = EnsembleServer { tree: to.tree.clone(), ..EnsembleServer::default() };
        }
        self.clients.values_mut().for_each(|client| client.watches.iter_mut().for_each(|watch| watch.since = 0));
    }

    /// Returns the newest write that a server has.
    pub(super) fn seen(&self, server: usize) -> Zxid {
        self.zxid_of(server)
    }
}

/// Error of a session that has expired.
pub(super) const EXPIRED: CoordError = CoordError::Ended(SessionEnd::Expired);
