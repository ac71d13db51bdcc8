//! Runs the thread that owns an embedded store: applies requests in memory, makes them durable, and answers them.

use super::super::tree::{ChangeKind, Tree, Watches, ZnodeChange};
use super::super::{ConnectionState, CoordError, Done, Op, SessionEnd, SessionId, SessionState, Znode, Zxid, is_path};
use super::store_file::{Content, OpenStoreFile, StoreFile, StoreFileError};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};

/// Most requests that share one transaction of the file: bounds how long the first of them waits.
const BATCH_REQUESTS_MAX: usize = 256;
/// Time between two attempts to reopen a file that has failed.
const RETRY_WAIT: Duration = Duration::from_millis(250);

/// Time after which a failing disk is logged again.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// Request of a session to the store. A request is carried out even if no caller waits for its answer.
#[derive(Debug)]
pub(super) enum Request {
    Open { report: watch::Sender<SessionState>, answer: oneshot::Sender<Result<SessionId, CoordError>> },
    Read { session: SessionId, path: String, kind: ReadKind },
    Multi { session: SessionId, ops: Vec<Op>, answer: oneshot::Sender<Result<Vec<Done>, CoordError>> },
    Close { session: SessionId, answer: Option<oneshot::Sender<()>> },
}

/// Read of a node. The store drops the channel of the answer if it cannot read now.
#[derive(Debug)]
pub(super) enum ReadKind {
    Znode { watch: Option<oneshot::Sender<()>>, answer: oneshot::Sender<Option<Znode>> },
    Children { watch: Option<oneshot::Sender<()>>, answer: oneshot::Sender<Option<Vec<String>>> },
}

/// Answer that is sent once its batch is durable.
#[derive(Debug)]
enum PendingAnswer {
    Opened(Result<SessionId, CoordError>, oneshot::Sender<Result<SessionId, CoordError>>),
    Znode(Option<Znode>, oneshot::Sender<Option<Znode>>),
    Children(Option<Vec<String>>, oneshot::Sender<Option<Vec<String>>>),
    Multi(Result<Vec<Done>, CoordError>, oneshot::Sender<Result<Vec<Done>, CoordError>>),
    Closed(oneshot::Sender<()>),
}

/// State of the store, owned by one thread.
#[derive(Debug)]
pub(super) struct Store {
    file: StoreFile,
    /// Open file; `None` while the disk fails: then the tree is empty.
    open: Option<OpenStoreFile>,
    tree: Tree,
    /// Number of the last write in `tree`.
    zxid: Zxid,
    /// Number of the last durable write: at most `zxid`, and equal between two batches.
    durable_zxid: Zxid,
    sessions: BTreeMap<SessionId, watch::Sender<SessionState>>,
    watches: Watches,
    batch: Batch,
    /// Time at which the failing disk was logged last.
    logged_at: Option<Instant>,
}

/// Requests that wait for the next transaction of the file.
#[derive(Debug, Default)]
struct Batch {
    /// Paths that the batch has touched.
    touched: BTreeSet<String>,
    /// Watches that the changes of the batch fire.
    fired_watches: Vec<oneshot::Sender<()>>,
    answers: Vec<PendingAnswer>,
}

impl Store {
    /// Opens the file and loads its content.
    pub(super) fn open(file: StoreFile) -> Result<Self, StoreFileError> {
        let mut store = Self {
            file,
            open: None,
            tree: Tree::new(),
            zxid: Zxid(0),
            durable_zxid: Zxid(0),
            sessions: BTreeMap::new(),
            watches: Watches::default(),
            batch: Batch::default(),
            logged_at: None,
        };
        store.load()?;
        Ok(store)
    }

    /// Serves until all senders are gone.
    pub(super) fn serve(mut self, mut queue: mpsc::UnboundedReceiver<Request>) {
        loop {
            if self.open.is_none() {
                std::thread::sleep(RETRY_WAIT);
                if let Err(error) = self.load() {
                    self.log_failure(&error);
                }
            } else {
                let Some(first) = queue.blocking_recv() else { return };
                self.apply(first);
            }
            for _ in 1..BATCH_REQUESTS_MAX {
                match queue.try_recv() {
                    Ok(request) => self.apply(request),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.commit_batch(),
                }
            }
            self.commit_batch();
        }
    }

    /// Reads the file, and removes the ephemeral nodes of sessions that no longer exist.
    fn load(&mut self) -> Result<(), StoreFileError> {
        let (open, Content { nodes, zxid }) = self.file.open()?;
        let mut tree = Tree::new();
        for (path, node) in nodes {
            if !is_path(&path) || !tree.put(&path, Some(node)) {
                return Err(self.file.error(format!("{path:?} has no parent")));
            }
        }
        let gone = tree.ephemerals(|session| !self.sessions.contains_key(&session));
        let next = if gone.is_empty() { zxid } else { Zxid(zxid.0 + 1) };
        for path in &gone {
            tree.put(path, None);
        }
        open.write(gone.iter().map(|path| (path.as_str(), None)), next).map_err(|error| self.file.error(error))?;
        (self.open, self.tree, self.zxid, self.durable_zxid) = (Some(open), tree, next, next);
        self.watches = Watches::default();
        self.publish_connection(ConnectionState::Connected);
        Ok(())
    }

    fn publish_connection(&self, connection: ConnectionState) {
        for report in self.sessions.values() {
            report.send_modify(|state| {
                state.connection = connection;
                state.reconnects += u64::from(connection == ConnectionState::Connected);
            });
        }
    }

    /// Applies a request in memory; its answer waits for [`Store::commit_batch`].
    fn apply(&mut self, request: Request) {
        let answer = match request {
            Request::Open { report, answer } => self.open_session(report, answer),
            Request::Read { session, path, kind } => self.read(session, &path, kind),
            Request::Multi { session, ops, answer } => Some(PendingAnswer::Multi(self.write(session, ops), answer)),
            Request::Close { session, answer } => {
                self.close(session);
                answer.map(PendingAnswer::Closed)
            }
        };
        self.batch.answers.extend(answer);
    }

    fn open_session(
        &mut self,
        report: watch::Sender<SessionState>,
        answer: oneshot::Sender<Result<SessionId, CoordError>>,
    ) -> Option<PendingAnswer> {
        if self.open.is_none() {
            return Some(PendingAnswer::Opened(Err(CoordError::NotConnected), answer));
        }
        // Opening is a transaction of its own, so that no session gets a used id, not even after a crash.
        self.zxid = self.next_zxid();
        let session = SessionId(self.zxid.0);
        self.sessions.insert(session, report);
        Some(PendingAnswer::Opened(Ok(session), answer))
    }

    fn next_zxid(&self) -> Zxid {
        Zxid(self.zxid.0 + 1)
    }

    /// Reads a node. Returns `None`, and drops the answer, if reading is impossible now.
    fn read(&mut self, session: SessionId, path: &str, kind: ReadKind) -> Option<PendingAnswer> {
        if self.open.is_none() || !self.sessions.contains_key(&session) {
            return None;
        }
        Some(match kind {
            ReadKind::Znode { watch, answer } => {
                if let Some(fire) = watch {
                    self.watches.add_to_node(path, session, fire);
                }
                PendingAnswer::Znode(self.tree.get(path).cloned(), answer)
            }
            ReadKind::Children { watch, answer } => {
                let names: Option<Vec<_>> = self.tree.children(path).map(|names| names.cloned().collect());
                if let (Some(fire), Some(_)) = (watch, &names) {
                    self.watches.add_to_children(path, session, fire);
                }
                PendingAnswer::Children(names, answer)
            }
        })
    }

    fn write(&mut self, session: SessionId, ops: Vec<Op>) -> Result<Vec<Done>, CoordError> {
        if !self.sessions.contains_key(&session) {
            return Err(CoordError::Ended(SessionEnd::Closed));
        }
        if self.open.is_none() {
            return Err(CoordError::NotConnected);
        }
        let zxid = self.next_zxid();
        let (done, changes) =
            self.tree.apply(ops, session, zxid).map_err(|(index, why)| CoordError::Refused { index, why })?;
        self.add_changes(changes, zxid);
        Ok(done)
    }

    /// Ends a session; does nothing if it has ended. While the disk fails its nodes stay until the file is read again.
    fn close(&mut self, session: SessionId) {
        let Some(report) = self.sessions.remove(&session) else { return };
        let gone = self.tree.ephemerals(|owner| owner == session);
        let changes = gone.into_iter().map(|path| {
            self.tree.put(&path, None);
            ZnodeChange { path, kind: ChangeKind::Deleted }
        });
        let changes = changes.collect();
        self.add_changes(changes, self.next_zxid());
        self.watches.end(session);
        report.send_modify(|state| state.connection = ConnectionState::Over(SessionEnd::Closed));
    }

    /// Adds changes in memory to the batch.
    fn add_changes(&mut self, changes: Vec<ZnodeChange>, zxid: Zxid) {
        if !changes.is_empty() {
            self.zxid = zxid;
        }
        for change in changes {
            self.batch.fired_watches.extend(self.watches.take_fired(&change));
            self.batch.touched.insert(change.path);
        }
    }

    /// Makes the batch durable, and answers.
    fn commit_batch(&mut self) {
        let Batch { touched, fired_watches, answers } = std::mem::take(&mut self.batch);
        if let Some(open) = self.open.as_ref().filter(|_| self.zxid > self.durable_zxid) {
            let changes = touched.iter().map(|path| (path.as_str(), self.tree.get(path)));
            if let Err(error) = open.write(changes, self.zxid) {
                return self.fail(answers, &error);
            }
            self.durable_zxid = self.zxid;
        }
        for fire in fired_watches {
            let _ = fire.send(());
        }
        for answer in answers {
            answer.send();
        }
    }

    /// Logs a failure, at most every 30 s: a full disk fails several times a second, with small writes succeeding in
    /// between.
    fn log_failure(&mut self, error: &StoreFileError) {
        if self.logged_at.is_none_or(|at| at.elapsed() >= LOG_EVERY) {
            self.logged_at = Some(Instant::now());
            tracing::error!(%error, "store failed: reopening it until it can be written");
        }
    }

    /// Handles a failure of the disk: until the file can be read again, it is unknown whether the file has the batch.
    fn fail(&mut self, answers: Vec<PendingAnswer>, error: &redb::Error) {
        self.log_failure(&self.file.error(error));
        (self.open, self.tree) = (None, Tree::new());
        self.publish_connection(ConnectionState::Disconnected);
        for answer in answers {
            if let PendingAnswer::Opened(Ok(session), _) = &answer {
                self.sessions.remove(session);
            }
            answer.send_failed(error);
        }
    }
}

impl PendingAnswer {
    fn send(self) {
        match self {
            Self::Opened(session, answer) => drop(answer.send(session)),
            Self::Znode(node, answer) => drop(answer.send(node)),
            Self::Children(names, answer) => drop(answer.send(names)),
            Self::Multi(done, answer) => drop(answer.send(done)),
            Self::Closed(answer) => drop(answer.send(())),
        }
    }

    /// Answers with a failure. The outcome of a refused multi is unknown, too: the refusal may rest on a write of this
    /// batch.
    fn send_failed(self, error: &redb::Error) {
        match self {
            Self::Opened(_, answer) => drop(answer.send(Err(CoordError::NotConnected))),
            Self::Multi(_, answer) => drop(answer.send(Err(CoordError::Unknown(error.to_string())))),
            Self::Closed(answer) => drop(answer.send(())),
            Self::Znode(..) | Self::Children(..) => {}
        }
    }
}
