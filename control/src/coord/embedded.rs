//! Implements the coordination service for one process, in a file on its disk.
//!
//! One thread owns everything: the tree in memory, its durable copy in a `redb` file, sessions and watches. Requests
//! reach it through a queue. The thread takes all waiting requests, applies them in memory in order, makes the changes
//! durable in one transaction of the file, and only then answers. So a crash never undoes what was answered, and many
//! writers share one flush of the disk.
//!
//! Sessions live as long as the process; their nodes are removed when the file is opened the next time. The file is
//! locked against a second process. Transaction numbers count the writes since the file was created.
//!
//! When the disk fails, requests under way end as [`CoordError::Unknown`], every session becomes
//! [`ConnectionState::Disconnected`], and opening the file is retried until it succeeds. The content of the file then
//! counts.

mod store_file;
mod store;
#[cfg(test)]
mod tests;

use self::store::{ReadKind, Request, Store};
use self::store_file::StoreFile;
pub use self::store_file::StoreFileError;
use super::{
    ConnectionState, CoordClient, CoordError, Done, Op, Refusal, Session, SessionId, SessionState, Watch, Znode,
    check_ops, is_path,
};
use crate::stop_bounds::CLOSE_MAX;
use async_trait::async_trait;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// Timeout that sessions report. No session expires here; leases are computed from it.
const SESSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Store in a file. The file is free again once this and all of its sessions are dropped.
#[derive(Debug)]
pub struct Embedded(Arc<StoreThread>);

/// Queue to the thread that owns the store; dropping it ends the thread.
#[derive(Debug)]
struct StoreThread {
    /// Unbounded queue: every caller waits for its answer. `None` during the drop.
    requests: Option<mpsc::UnboundedSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Embedded {
    /// Opens the store in the file at `path`, created if it is missing, and removes the ephemeral nodes of earlier
    /// sessions. Reads the whole file: blocks for a moment.
    ///
    /// # Errors
    /// [`StoreFileError`]: the file cannot be read or written, another process uses it, or it is not a store.
    pub fn open(path: &Path) -> Result<Self, StoreFileError> {
        Self::on(StoreFile::at(path.to_owned()))
    }

    fn on(file: StoreFile) -> Result<Self, StoreFileError> {
        let name = file.to_string();
        let store = Store::open(file)?;
        let (requests, queue) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new().name("coord-store".to_owned()).spawn(move || store.serve(queue));
        let thread = thread.map_err(|error| StoreFileError::new(Path::new(&name), error))?;
        Ok(Self(Arc::new(StoreThread { requests: Some(requests), thread: Some(thread) })))
    }
}

impl StoreThread {
    /// Returns the answer of the store; `None` only if its thread is gone.
    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.requests.as_ref()?.send(request(answer)).ok()?;
        answered.await.ok()
    }
}

impl Drop for StoreThread {
    /// Waits for the write under way: the file must be free for the next process.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[async_trait]
impl CoordClient for Embedded {
    async fn open(&self) -> Result<Arc<dyn Session>, CoordError> {
        let (report, states) = watch::channel(SessionState { connection: ConnectionState::Connected, reconnects: 0 });
        let opened = self.0.ask(|answer| Request::Open { report, answer }).await;
        let id = opened.unwrap_or(Err(CoordError::NotConnected))?;
        Ok(Arc::new(EmbeddedSession { id, states, store: self.0.clone() }))
    }
}

#[derive(Debug)]
struct EmbeddedSession {
    id: SessionId,
    states: watch::Receiver<SessionState>,
    store: Arc<StoreThread>,
}

impl EmbeddedSession {
    async fn read<T>(&self, path: &str, kind: impl FnOnce(oneshot::Sender<T>) -> ReadKind) -> Result<T, CoordError> {
        if !is_path(path) {
            return Err(CoordError::Refused { index: 0, why: Refusal::Impossible });
        }
        let (session, path) = (self.id, path.to_owned());
        let asked = self.store.ask(|answer| Request::Read { session, path, kind: kind(answer) });
        asked.await.ok_or_else(|| self.without_answer())
    }

    /// Returns the error of a read that the store could not do: then it drops the channel of the answer.
    fn without_answer(&self) -> CoordError {
        match self.states.borrow().connection {
            ConnectionState::Over(ending) => CoordError::Ended(ending),
            ConnectionState::Connected | ConnectionState::Disconnected => CoordError::NotConnected,
        }
    }
}

#[async_trait]
impl Session for EmbeddedSession {
    fn id(&self) -> SessionId {
        self.id
    }

    fn timeout(&self) -> Duration {
        SESSION_TIMEOUT
    }

    fn states(&self) -> watch::Receiver<SessionState> {
        self.states.clone()
    }

    async fn get(&self, path: &str) -> Result<Option<Znode>, CoordError> {
        self.read(path, |answer| ReadKind::Znode { watch: None, answer }).await
    }

    async fn get_and_watch(&self, path: &str) -> Result<(Option<Znode>, Watch), CoordError> {
        let (fire, watch) = Watch::new();
        let node = self.read(path, |answer| ReadKind::Znode { watch: Some(fire), answer }).await?;
        Ok((node, watch))
    }

    async fn children(&self, path: &str) -> Result<Vec<String>, CoordError> {
        let names = self.read(path, |answer| ReadKind::Children { watch: None, answer }).await?;
        Ok(names.unwrap_or_default())
    }

    async fn children_and_watch(&self, path: &str) -> Result<(Vec<String>, Watch), CoordError> {
        let (fire, watch) = Watch::new();
        let names = self.read(path, |answer| ReadKind::Children { watch: Some(fire), answer }).await?;
        let names = names.ok_or(CoordError::Refused { index: 0, why: Refusal::NoNode })?;
        Ok((names, watch))
    }

    async fn multi(&self, ops: Vec<Op>) -> Result<Vec<Done>, CoordError> {
        check_ops(&ops)?;
        let session = self.id;
        let done = self.store.ask(|answer| Request::Multi { session, ops, answer }).await;
        done.unwrap_or_else(|| Err(CoordError::Unknown("the store is gone".to_owned())))
    }

    async fn sync(&self) -> Result<(), CoordError> {
        // Every read sees all writes that were answered before it.
        self.get("/").await.map(|_| ())
    }

    async fn close(&self) {
        let closed = self.store.ask(|answer| Request::Close { session: self.id, answer: Some(answer) });
        let _ = tokio::time::timeout(CLOSE_MAX, closed).await;
    }
}

impl Drop for EmbeddedSession {
    fn drop(&mut self) {
        if let Some(requests) = &self.store.requests {
            let _ = requests.send(Request::Close { session: self.id, answer: None });
        }
    }
}
