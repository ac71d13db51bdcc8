//! Runs the thread that owns an embedded store: applies requests in memory, makes them durable, and answers them.

use super::super::tree::{Change, ChangeKind, Tree, Watches};
use super::super::{CoordError, Done, Ending, Link, Node, Op, SessionId, SessionState, Zxid, is_path};
use super::shelf::{Content, OpenStoreFile, StoreFile, StoreFileError};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};

/// Most requests that share one transaction of the file: bounds how long the first of them waits.
const BATCH_REQUESTS_MAX: usize = 256;
/// Time between two attempts to reopen a file that has failed.
const RETRY_WAIT: Duration = Duration::from_millis(250);

/// Time after which a failing disk is logged again.
const SAY_AGAIN: Duration = Duration::from_secs(30);

/// Request of a session to the store. A request is carried out even if no caller waits for its answer.
#[derive(Debug)]
pub(super) enum Request {
    Open { report: watch::Sender<SessionState>, answer: oneshot::Sender<Result<SessionId, CoordError>> },
    Read { session: SessionId, path: String, reading: Reading },
    Multi { session: SessionId, ops: Vec<Op>, answer: oneshot::Sender<Result<Vec<Done>, CoordError>> },
    Close { session: SessionId, answer: Option<oneshot::Sender<()>> },
}

/// Read of a node. The store drops the channel of the answer if it cannot read now.
#[derive(Debug)]
pub(super) enum Reading {
    Node { watch: Option<oneshot::Sender<()>>, answer: oneshot::Sender<Option<Node>> },
    Children { watch: Option<oneshot::Sender<()>>, answer: oneshot::Sender<Option<Vec<String>>> },
}

/// Answer that is sent once its batch is durable.
#[derive(Debug)]
enum Pending {
    Opened(Result<SessionId, CoordError>, oneshot::Sender<Result<SessionId, CoordError>>),
    Node(Option<Node>, oneshot::Sender<Option<Node>>),
    Children(Option<Vec<String>>, oneshot::Sender<Option<Vec<String>>>),
    Multi(Result<Vec<Done>, CoordError>, oneshot::Sender<Result<Vec<Done>, CoordError>>),
    Closed(oneshot::Sender<()>),
}

/// State of the store, owned by one thread.
#[derive(Debug)]
pub(super) struct Store {
    shelf: StoreFile,
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
    /// When the failing disk was logged last.
    said: Option<Instant>,
}

/// Requests that wait for the next transaction of the file.
#[derive(Debug, Default)]
struct Batch {
    /// Paths that the batch has touched.
    touched: BTreeSet<String>,
    /// Watches that the changes of the batch fire.
    fires: Vec<oneshot::Sender<()>>,
    answers: Vec<Pending>,
}

impl Store {
    /// Opens the file and loads its content.
    pub(super) fn open(shelf: StoreFile) -> Result<Self, StoreFileError> {
        let mut store = Self {
            shelf,
            open: None,
            tree: Tree::new(),
            zxid: Zxid(0),
            durable_zxid: Zxid(0),
            sessions: BTreeMap::new(),
            watches: Watches::default(),
            batch: Batch::default(),
            said: None,
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
                    self.say(&error);
                }
            } else {
                let Some(first) = queue.blocking_recv() else { return };
                self.take(first);
            }
            for _ in 1..BATCH_REQUESTS_MAX {
                match queue.try_recv() {
                    Ok(request) => self.take(request),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => return self.settle(),
                }
            }
            self.settle();
        }
    }

    /// Reads the file, and removes the ephemeral nodes of sessions that no longer exist.
    fn load(&mut self) -> Result<(), StoreFileError> {
        let (open, Content { nodes, zxid }) = self.shelf.open()?;
        let mut tree = Tree::new();
        for (path, node) in nodes {
            if !is_path(&path) || !tree.put(&path, Some(node)) {
                return Err(self.shelf.error(format!("{path:?} has no parent")));
            }
        }
        let gone = tree.ephemerals(|session| !self.sessions.contains_key(&session));
        let next = if gone.is_empty() { zxid } else { Zxid(zxid.0 + 1) };
        for path in &gone {
            tree.put(path, None);
        }
        open.write(gone.iter().map(|path| (path.as_str(), None)), next).map_err(|error| self.shelf.error(error))?;
        (self.open, self.tree, self.zxid, self.durable_zxid) = (Some(open), tree, next, next);
        self.watches = Watches::default();
        self.tell_all(Link::Connected);
        Ok(())
    }

    fn tell_all(&self, link: Link) {
        for report in self.sessions.values() {
            report.send_modify(|state| {
                state.link = link;
                state.reconnects += u64::from(link == Link::Connected);
            });
        }
    }

    /// Applies a request in memory; its answer waits for [`Store::settle`].
    fn take(&mut self, request: Request) {
        let answer = match request {
            Request::Open { report, answer } => self.open_session(report, answer),
            Request::Read { session, path, reading } => self.read(session, &path, reading),
            Request::Multi { session, ops, answer } => Some(Pending::Multi(self.write(session, ops), answer)),
            Request::Close { session, answer } => {
                self.close(session);
                answer.map(Pending::Closed)
            }
        };
        self.batch.answers.extend(answer);
    }

    fn open_session(
        &mut self,
        report: watch::Sender<SessionState>,
        answer: oneshot::Sender<Result<SessionId, CoordError>>,
    ) -> Option<Pending> {
        if self.open.is_none() {
            return Some(Pending::Opened(Err(CoordError::NotConnected), answer));
        }
        // Opening is a transaction of its own, so that no session gets a used id, not even after a crash.
        self.zxid = self.next_zxid();
        let session = SessionId(self.zxid.0);
        self.sessions.insert(session, report);
        Some(Pending::Opened(Ok(session), answer))
    }

    fn next_zxid(&self) -> Zxid {
        Zxid(self.zxid.0 + 1)
    }

    /// Reads a node. Returns `None`, and drops the answer, if reading is impossible now.
    fn read(&mut self, session: SessionId, path: &str, reading: Reading) -> Option<Pending> {
        if self.open.is_none() || !self.sessions.contains_key(&session) {
            return None;
        }
        Some(match reading {
            Reading::Node { watch, answer } => {
                if let Some(fire) = watch {
                    self.watches.add_to_node(path, session, fire);
                }
                Pending::Node(self.tree.get(path).cloned(), answer)
            }
            Reading::Children { watch, answer } => {
                let names: Option<Vec<_>> = self.tree.children(path).map(|names| names.cloned().collect());
                if let (Some(fire), Some(_)) = (watch, &names) {
                    self.watches.add_to_children(path, session, fire);
                }
                Pending::Children(names, answer)
            }
        })
    }

    fn write(&mut self, session: SessionId, ops: Vec<Op>) -> Result<Vec<Done>, CoordError> {
        if !self.sessions.contains_key(&session) {
            return Err(CoordError::Ended(Ending::Closed));
        }
        if self.open.is_none() {
            return Err(CoordError::NotConnected);
        }
        let zxid = self.next_zxid();
        let (done, changes) =
            self.tree.apply(ops, session, zxid).map_err(|(index, why)| CoordError::Refused { index, why })?;
        self.note(changes, zxid);
        Ok(done)
    }

    /// Ends a session; does nothing if it has ended. While the disk fails its nodes stay until the file is read again.
    fn close(&mut self, session: SessionId) {
        let Some(report) = self.sessions.remove(&session) else { return };
        let gone = self.tree.ephemerals(|owner| owner == session);
        let changes = gone.into_iter().map(|path| {
            self.tree.put(&path, None);
            Change { path, kind: ChangeKind::Deleted }
        });
        let changes = changes.collect();
        self.note(changes, self.next_zxid());
        self.watches.end(session);
        report.send_modify(|state| state.link = Link::Over(Ending::Closed));
    }

    /// Adds changes in memory to the batch.
    fn note(&mut self, changes: Vec<Change>, zxid: Zxid) {
        if !changes.is_empty() {
            self.zxid = zxid;
        }
        for change in changes {
            self.batch.fires.extend(self.watches.take(&change));
            self.batch.touched.insert(change.path);
        }
    }

    /// Makes the batch durable, and answers.
    fn settle(&mut self) {
        let Batch { touched, fires, answers } = std::mem::take(&mut self.batch);
        if let Some(open) = self.open.as_ref().filter(|_| self.zxid > self.durable_zxid) {
            let changes = touched.iter().map(|path| (path.as_str(), self.tree.get(path)));
            if let Err(error) = open.write(changes, self.zxid) {
                return self.fail(answers, &error);
            }
            self.durable_zxid = self.zxid;
        }
        for fire in fires {
            let _ = fire.send(());
        }
        for answer in answers {
            answer.send();
        }
    }

    /// Logs a failure, at most every 30 s: a full disk fails several times a second, with small writes succeeding in
    /// between.
    fn say(&mut self, error: &StoreFileError) {
        if self.said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
            self.said = Some(Instant::now());
            tracing::error!(%error, "store failed: reopening it until it can be written");
        }
    }

    /// Handles a failure of the disk: until the file can be read again, it is unknown whether the file has the batch.
    fn fail(&mut self, answers: Vec<Pending>, error: &redb::Error) {
        self.say(&self.shelf.error(error));
        (self.open, self.tree) = (None, Tree::new());
        self.tell_all(Link::Disconnected);
        for answer in answers {
            if let Pending::Opened(Ok(session), _) = &answer {
                self.sessions.remove(session);
            }
            answer.send_failed(error);
        }
    }
}

impl Pending {
    fn send(self) {
        match self {
            Self::Opened(session, answer) => drop(answer.send(session)),
            Self::Node(node, answer) => drop(answer.send(node)),
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
            Self::Node(..) | Self::Children(..) => {}
        }
    }
}
