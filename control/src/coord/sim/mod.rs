//! Simulates a whole ensemble of the coordination service in memory, on the time of [`tokio::time`], under a seed.
//!
//! Several nodes share one [`Ensemble`]; each has its own client ([`Ensemble::client`]) and its own faults. The
//! simulation repeats behaviour that was observed of real ensembles. A session outlives its connection on the service,
//! and the client learns of the session's end late. A client of an isolated server stays `Connected` for seconds while
//! its writes stall. Answers get lost after the write. A write whose outcome the client does not know happens later.
//! Watches come late, merged or not at all. Reads are stale until [`Session::sync`]. History may go backwards.
//!
//! ```text
//! session -> uplink -> server (reads, watches) -> leader (checks, commits) -> log -> every server, each with its lag
//!         <- downlink (answers and watches, in order)
//! ```
//! The simulation needs a runtime of tokio, and replays exactly on a current-thread one whose time is paused.

mod client;
mod service;
mod tests;
mod tree;
mod wire;

pub(crate) use service::Snapshot;

use super::{
    CoordClient, CoordError, Done, Op, Refusal, Session, SessionEnd, SessionId, SessionState, Watch, Znode, Zxid,
    check_ops, is_path,
};
use async_trait::async_trait;
use client::{Client, Reply, Request};
use service::Core;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

/// Unit of time of the ensemble's leader: sessions expire at its multiples.
const TICK: Duration = Duration::from_secs(1);
/// Number of servers of an ensemble.
const SERVERS: usize = 3;
/// Time for which a client tries to find a server that accepts it.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait of a client for the answer to the end of its session.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

type Shared = Arc<Mutex<Core>>;

/// Function that is called with every committed write before any client can see that write. Must not use the ensemble.
pub(crate) type Observer = Arc<dyn Fn(&Commit<'_>) + Send + Sync>;

fn lock(shared: &Shared) -> MutexGuard<'_, Core> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A committed write.
#[derive(Debug)]
pub(crate) struct Commit<'a> {
    /// Number of the transaction.
    pub(crate) zxid: Zxid,
    /// Node that wrote it.
    pub(crate) node: &'a str,
    /// Nodes after the write, `None` for deleted ones.
    pub(crate) changes: &'a [(&'a str, Option<&'a Znode>)],
    /// Operations of the write; none when the service expired a session.
    pub(crate) ops: &'a [Op],
}

/// Rates and sizes of the faults that clients see.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FaultRates {
    /// Latency of one way between client and server, in milliseconds: least and most.
    pub(crate) latency_ms: (u64, u64),
    /// Delay until a server has what was committed: least and most.
    pub(crate) lag_ms: (u64, u64),
    /// Share of writes that are carried out and not answered.
    pub(crate) lost_reply: f64,
    /// Share of writes on broken connections that are carried out later.
    pub(crate) late_write: f64,
    /// Share of watches that never fire.
    pub(crate) lost_watch: f64,
    /// Share of watches that fire up to 8 s late.
    pub(crate) late_watch: f64,
}

impl Default for FaultRates {
    /// No faults.
    fn default() -> Self {
        Self { latency_ms: (0, 1), lag_ms: (0, 3), lost_reply: 0.0, late_write: 0.0, lost_watch: 0.0, late_watch: 0.0 }
    }
}

/// Simulated service, and the control of its faults. Clones share one service.
#[derive(Clone, Debug)]
pub(crate) struct Ensemble(Shared);

impl Ensemble {
    /// Creates a service without nodes that expires silent sessions after `timeout`. It stops when the last clone is
    /// dropped.
    #[must_use]
    pub(crate) fn new(seed: u64, timeout: Duration) -> Self {
        let shared = Arc::new(Mutex::new(Core::new(seed, SERVERS, timeout)));
        tokio::spawn(wire::tick(Arc::downgrade(&shared)));
        Self(shared)
    }

    /// Returns the client of a node, known to the faults by the node's name.
    #[must_use]
    pub(crate) fn client(&self, node: &str) -> Arc<dyn CoordClient> {
        Arc::new(SimCoordClient { shared: self.0.clone(), node: node.to_owned() })
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        lock(&self.0)
    }

    /// Sets the faults from now on.
    pub(crate) fn set_fault_rates(&self, fault_rates: FaultRates) {
        self.core().fault_rates = fault_rates;
    }

    /// Sets the observer of every write.
    pub(crate) fn set_observer(&self, observer: Observer) {
        self.core().observer = Some(observer);
    }

    /// Returns the committed node at a path, whichever servers have replayed it.
    #[must_use]
    pub(crate) fn committed(&self, path: &str) -> Option<Znode> {
        self.core().tree().get(path).map(|node| (**node).clone())
    }

    /// Returns the committed nodes whose paths begin with `prefix`, in order of the paths.
    #[must_use]
    pub(crate) fn committed_below(&self, prefix: &str) -> Vec<(String, Znode)> {
        self.core().tree().below(prefix).map(|(path, node)| (path.to_owned(), node.clone())).collect()
    }

    /// Refuses every write below `prefix` from now on, as an access list does; `None` permits all writes.
    pub(crate) fn forbid(&self, prefix: Option<&str>) {
        self.core().forbidden = prefix.map(str::to_owned);
    }

    /// Returns how many requests all sessions have sent: reads, writes and closes, but not pings.
    #[must_use]
    pub(crate) fn requests(&self) -> u64 {
        self.core().clients.values().map(client::Client::requests).sum()
    }

    /// Drops a node's packets; its clients notice only the silence.
    pub(crate) fn cut(&self, node: &str) {
        self.core().cut(node, true);
    }

    /// Delivers a node's packets again.
    pub(crate) fn mend(&self, node: &str) {
        self.core().cut(node, false);
    }

    /// Breaks a node's connections; its clients may connect again.
    pub(crate) fn reset(&self, node: &str) {
        self.core().reset(|client| client.node == node);
    }

    /// Expires a node's sessions at once.
    pub(crate) fn expire(&self, node: &str) {
        let mut core = self.core();
        core.expire(node);
        wire::replicate(&self.0, &mut core);
    }

    /// Isolates a server from its leader: its clients read stale data, and their writes wait until the server drops the
    /// clients after 4 s.
    pub(crate) fn isolate(&self, server: usize) {
        self.core().isolate(server);
    }

    /// Ends the isolation of a server.
    pub(crate) fn restore(&self, server: usize) {
        self.core().restore(server);
    }

    /// Leaves the service without a leader for a while: writes wait, no session expires.
    pub(crate) fn stall(&self, time: Duration) {
        self.core().stall(time);
    }

    /// Stops every server.
    pub(crate) fn stop(&self) {
        self.core().set_up(false);
    }

    /// Starts every server, with everything that was committed; every session has its full time again.
    pub(crate) fn start(&self) {
        self.core().set_up(true);
    }

    /// Returns a snapshot of the service.
    #[must_use]
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.core().snapshot()
    }

    /// Restores a snapshot, as from a backup: later transactions get numbers that were used before.
    pub(crate) fn regress(&self, to: &Snapshot) {
        self.core().regress(to);
    }
}

/// Client of one node.
#[derive(Debug)]
struct SimCoordClient {
    shared: Shared,
    node: String,
}

#[async_trait]
impl CoordClient for SimCoordClient {
    async fn open(&self) -> Result<Arc<dyn Session>, CoordError> {
        let deadline = Instant::now() + CONNECT_TIMEOUT;
        loop {
            let latency = lock(&self.shared).latency();
            sleep(latency * 2).await;
            let opened = {
                let mut core = lock(&self.shared);
                core.open_session(&self.node).inspect(|&(id, server)| {
                    core.clients.insert(id, Client::new(&self.node, server));
                })
            };
            if let Some((id, _)) = opened {
                wire::connect(&self.shared, id);
                let alive = Arc::new(());
                crate::async_spawn::spawn(wire::run_session(self.shared.clone(), id, Arc::downgrade(&alive)));
                return Ok(Arc::new(SimSession { shared: self.shared.clone(), id, _alive: alive }));
            }
            if Instant::now() >= deadline {
                return Err(CoordError::NotConnected);
            }
            sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A session of one node.
#[derive(Debug)]
struct SimSession {
    shared: Shared,
    id: SessionId,
    _alive: Arc<()>,
}

impl SimSession {
    async fn ask(&self, request: Request) -> Result<Reply, CoordError> {
        wire::ask(&self.shared, self.id, request).await
    }

    /// Sends a read: one that was lost is as if it had not been sent.
    async fn ask_read(&self, request: Request) -> Result<Reply, CoordError> {
        if let Request::Get { path, .. } | Request::Children { path, .. } = &request
            && !is_path(path)
        {
            return Err(CoordError::Refused { index: 0, why: Refusal::Impossible });
        }
        self.ask(request).await.map_err(|error| match error {
            CoordError::Unknown(_) => CoordError::NotConnected,
            other => other,
        })
    }

    async fn read(&self, path: &str, watch: Option<client::Fire>) -> Result<Option<Znode>, CoordError> {
        match self.ask_read(Request::Get { path: path.to_owned(), watch }).await? {
            Reply::Znode(node) => Ok(node),
            other => unreachable!("a read is answered with a node, not {other:?}"),
        }
    }

    async fn list(&self, path: &str, watch: Option<client::Fire>) -> Result<Vec<String>, CoordError> {
        match self.ask_read(Request::Children { path: path.to_owned(), watch }).await? {
            Reply::Names(names) => Ok(names),
            other => unreachable!("a listing is answered with names, not {other:?}"),
        }
    }
}

#[async_trait]
impl Session for SimSession {
    fn id(&self) -> SessionId {
        self.id
    }

    fn timeout(&self) -> Duration {
        lock(&self.shared).timeout
    }

    fn states(&self) -> watch::Receiver<SessionState> {
        lock(&self.shared).clients[&self.id].states.subscribe()
    }

    async fn get(&self, path: &str) -> Result<Option<Znode>, CoordError> {
        self.read(path, None).await
    }

    async fn get_and_watch(&self, path: &str) -> Result<(Option<Znode>, Watch), CoordError> {
        let (fire, watch) = Watch::new();
        Ok((self.read(path, Some(fire)).await?, watch))
    }

    async fn children(&self, path: &str) -> Result<Vec<String>, CoordError> {
        self.list(path, None).await
    }

    async fn children_and_watch(&self, path: &str) -> Result<(Vec<String>, Watch), CoordError> {
        let (fire, watch) = Watch::new();
        Ok((self.list(path, Some(fire)).await?, watch))
    }

    async fn multi(&self, ops: Vec<Op>) -> Result<Vec<Done>, CoordError> {
        check_ops(&ops)?;
        match self.ask(Request::Multi(ops)).await? {
            Reply::Done(done) => Ok(done),
            other => unreachable!("a write is answered with what it did, not {other:?}"),
        }
    }

    async fn sync(&self) -> Result<(), CoordError> {
        self.ask_read(Request::Sync).await.map(drop)
    }

    async fn close(&self) {
        let _ = timeout_at(Instant::now() + CLOSE_TIMEOUT, self.ask(Request::Close)).await;
        let mut core = lock(&self.shared);
        if let Some(client) = core.clients.get_mut(&self.id) {
            client.end(SessionEnd::Closed);
        }
    }
}
