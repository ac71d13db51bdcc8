//! Provides a store of records in memory: one server that can be cut off, lose replies, and expire sessions.

use crate::coord::{
    ConnectionState, CoordClient, CoordError, CreateMode, Done, Op, Refusal, Session, SessionEnd, SessionId,
    SessionState, Stat, Watch, Znode, Zxid,
};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{oneshot, watch};

/// Server in memory. Clones are the same server.
#[derive(Clone, Debug, Default)]
pub(super) struct Store(Arc<Mutex<ServerState>>);

#[derive(Debug, Default)]
struct ServerState {
    nodes: BTreeMap<String, Znode>,
    watches: BTreeMap<String, Vec<oneshot::Sender<()>>>,
    zxid: i64,
    sessions: i64,
    open: BTreeMap<i64, watch::Sender<SessionState>>,
    is_cut: bool,
    /// Number of writes whose replies are lost.
    lose: usize,
    /// Every `n`th reply is lost.
    lose_every: Option<usize>,
    writes: usize,
}

#[derive(Debug)]
struct FakeSession {
    id: i64,
    store: Store,
    states: watch::Sender<SessionState>,
}

impl Store {
    fn server(&self) -> MutexGuard<'_, ServerState> {
        self.0.lock().unwrap()
    }

    /// Returns a node.
    pub(super) fn get(&self, path: &str) -> Option<Znode> {
        self.server().nodes.get(path).cloned()
    }

    /// Writes as another client.
    pub(super) fn write(&self, ops: &[Op]) -> Vec<Done> {
        self.server().commit(0, ops).unwrap()
    }

    /// Returns the number of committed writes.
    pub(super) fn writes(&self) -> usize {
        self.server().writes
    }

    /// Cuts every session off, or reconnects them.
    pub(super) fn cut(&self, is_cut: bool) {
        let mut server = self.server();
        server.is_cut = is_cut;
        let connection = if is_cut { ConnectionState::Disconnected } else { ConnectionState::Connected };
        for states in server.open.values() {
            states.send_modify(|state| {
                if !state.is_over() {
                    state.reconnects += u64::from(!is_cut);
                    state.connection = connection;
                }
            });
        }
    }

    /// Replaces the data of a node under the same version, as after a loss of history.
    pub(super) fn replace(&self, path: &str, data: Vec<u8>) {
        self.server().nodes.get_mut(path).expect("it is there").data = data;
    }

    /// Expires every session: their ephemeral nodes are deleted.
    pub(super) fn expire(&self) {
        let mut server = self.server();
        for (_, states) in std::mem::take(&mut server.open) {
            states.send_modify(|state| state.connection = ConnectionState::Over(SessionEnd::Expired));
        }
        let gone: Vec<_> =
            server.nodes.iter().filter(|(_, node)| node.stat.owner.is_some()).map(|(path, _)| path.clone()).collect();
        for path in gone {
            server.nodes.remove(&path);
            server.fire_watches(&path);
        }
    }

    /// Loses the replies of the next writes.
    pub(super) fn lose_replies(&self, count: usize) {
        self.server().lose = count;
    }

    /// Loses every `n`th reply from now on.
    pub(super) fn lose_every(&self, n: usize) {
        self.server().lose_every = Some(n);
    }
}

impl ServerState {
    fn fire_watches(&mut self, path: &str) {
        self.watches.remove(path).into_iter().flatten().for_each(|watch| _ = watch.send(()));
    }

    fn commit(&mut self, session: i64, ops: &[Op]) -> Result<Vec<Done>, CoordError> {
        let mut nodes = self.nodes.clone();
        let zxid = Zxid(self.zxid + 1);
        let mut done = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            let result = apply(&mut nodes, zxid, session, op);
            done.push(result.map_err(|why| CoordError::Refused { index, why })?);
        }
        (self.nodes, self.zxid) = (nodes, zxid.0);
        self.writes += 1;
        for op in ops {
            let (Op::Create { path, .. } | Op::Set { path, .. } | Op::Delete { path, .. } | Op::Check { path, .. }) =
                op;
            if !matches!(op, Op::Check { .. }) {
                self.fire_watches(path);
            }
        }
        Ok(done)
    }
}

fn apply(nodes: &mut BTreeMap<String, Znode>, zxid: Zxid, session: i64, op: &Op) -> Result<Done, Refusal> {
    let checked = |nodes: &BTreeMap<String, Znode>, path: &str, version: i32| match nodes.get(path) {
        None => Err(Refusal::NoNode),
        Some(node) if node.stat.version != version => Err(Refusal::BadVersion),
        Some(_) => Ok(()),
    };
    match op {
        Op::Check { path, version } => checked(nodes, path, *version).map(|()| Done::Plain),
        Op::Create { path, data, mode } => {
            if nodes.contains_key(path) {
                return Err(Refusal::NodeExists);
            }
            let owner = (*mode == CreateMode::Ephemeral).then_some(SessionId(session));
            let stat = Stat { version: 0, created: zxid, modified: zxid, owner };
            nodes.insert(path.clone(), Znode { data: data.clone(), stat });
            Ok(Done::Plain)
        }
        Op::Set { path, data, version } => {
            checked(nodes, path, *version)?;
            let node = nodes.get_mut(path).unwrap();
            node.data.clone_from(data);
            (node.stat.version, node.stat.modified) = (version + 1, zxid);
            Ok(Done::Set(node.stat))
        }
        Op::Delete { path, version } => {
            checked(nodes, path, *version)?;
            nodes.remove(path);
            Ok(Done::Plain)
        }
    }
}

#[async_trait]
impl CoordClient for Store {
    async fn open(&self) -> Result<Arc<dyn Session>, CoordError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let mut server = self.server();
        if server.is_cut {
            return Err(CoordError::NotConnected);
        }
        server.sessions += 1;
        let id = server.sessions;
        let states = watch::Sender::new(SessionState { connection: ConnectionState::Connected, reconnects: 0 });
        server.open.insert(id, states.clone());
        Ok(Arc::new(FakeSession { id, store: self.clone(), states }))
    }
}

impl FakeSession {
    /// Does work on the server, if it can be reached.
    async fn ask<T>(&self, work: impl FnOnce(&mut ServerState) -> T + Send) -> Result<T, CoordError> {
        tokio::time::sleep(Duration::from_millis(1)).await;
        let state = *self.states.borrow();
        match state.connection {
            ConnectionState::Connected => Ok(work(&mut self.store.server())),
            ConnectionState::Disconnected => Err(CoordError::NotConnected),
            ConnectionState::Over(ending) => Err(CoordError::Ended(ending)),
        }
    }
}

#[async_trait]
impl Session for FakeSession {
    fn id(&self) -> SessionId {
        SessionId(self.id)
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn states(&self) -> watch::Receiver<SessionState> {
        self.states.subscribe()
    }

    async fn get(&self, path: &str) -> Result<Option<Znode>, CoordError> {
        self.ask(|server| server.nodes.get(path).cloned()).await
    }

    async fn get_and_watch(&self, path: &str) -> Result<(Option<Znode>, Watch), CoordError> {
        self.ask(|server| {
            let (fire, watch) = Watch::new();
            server.watches.entry(path.to_owned()).or_default().push(fire);
            (server.nodes.get(path).cloned(), watch)
        })
        .await
    }

    async fn children(&self, _path: &str) -> Result<Vec<String>, CoordError> {
        unreachable!("a runner lists nothing")
    }

    async fn children_and_watch(&self, _path: &str) -> Result<(Vec<String>, Watch), CoordError> {
        unreachable!("a runner lists nothing")
    }

    async fn multi(&self, ops: Vec<Op>) -> Result<Vec<Done>, CoordError> {
        crate::coord::check_size(&ops)?;
        let id = self.id;
        self.ask(move |server| {
            let done = server.commit(id, &ops)?;
            let is_lost = server.lose > 0 || server.lose_every.is_some_and(|n| server.writes.is_multiple_of(n));
            server.lose = server.lose.saturating_sub(1);
            if is_lost { Err(CoordError::Unknown(String::from("the reply was lost"))) } else { Ok(done) }
        })
        .await?
    }

    async fn sync(&self) -> Result<(), CoordError> {
        self.ask(|_| ()).await
    }

    async fn close(&self) {
        self.states.send_modify(|state| state.connection = ConnectionState::Over(SessionEnd::Closed));
        let mut server = self.store.server();
        server.open.remove(&self.id);
        server.nodes.retain(|_, node| node.stat.owner != Some(SessionId(self.id)));
    }
}
