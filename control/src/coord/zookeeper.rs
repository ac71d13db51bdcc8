//! Implements the coordination service over a ZooKeeper ensemble, 3.5 or later.
//!
//! Only this folder knows the client library. It works around the following properties of the library and the servers:
//!
//! - The library loses persistent watches at a reconnect: one-shot watches only.
//! - The library queues requests while disconnected and sends them later even if no caller waits any more. So requests
//!   are refused at once while disconnected, and a request under way becomes [`CoordError::Unknown`] as soon as the
//!   connection is lost.
//! - The library has many errors for a lost connection: every error that is not a condition of an operation is
//!   [`CoordError::Unknown`].
//! - The library does not tell a short loss apart from the connection after it: every report of a connection counts as
//!   a new one.
//! - The library's list of those who wait for a change of its state is unsound: with more than 32 of them, one that is dropped
//!   while the others are told corrupts memory. So one task waits for it, and all else waits for what that task reports.
//! - The library waits twice as long after each round over the servers, up to the session timeout. After a few seconds
//!   without any server, many more pass before it notices that they are back. It is given each server several times
//!   over, so that the rounds are long and the waits are short.
//! - A request of a MiB makes the server close the connection: sizes are checked before.
//! - Servers before 3.8.2 do not describe a node that a multi has created: callers get [`Done::Plain`].
//! - No call closes a session: all handles are dropped, and `Closed` is waited for. A session should be closed before
//!   its runtime ends.

mod diagnosis;
mod reply;
mod version;

use self::reply::{connection, node, sorted};
use super::credentials::Credentials;
use super::{
    ConnectionState, CoordClient, CoordError, CreateMode, Done, Op, Refusal, SESSION_TIMEOUT_MAX, SESSION_TIMEOUT_MIN,
    Session, SessionEnd, SessionId, SessionState, Watch, Znode, check_ops, is_path,
};
use crate::host_port::HostPort;
use crate::stop_bounds::CLOSE_MAX;
use async_trait::async_trait;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use zookeeper_client as zk;

/// Least length of the list of servers that the library is given. In ten seconds without any server it waits 2 s at
/// most between two attempts; with a list three times as long 1 s, but it would begin with as many attempts at once.
const HOSTS_MIN: usize = 12;

/// Client of an ensemble.
#[derive(Clone, Debug)]
pub struct ZooKeeper {
    servers: String,
    chroot: String,
    settings: Settings,
    /// Whether the warnings about the ensemble have been logged.
    is_checked: Arc<AtomicBool>,
}

/// Settings for an ensemble.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Time after which the service expires a silent session; the service has bounds of its own for it. Longer survives
    /// longer outages, shorter notices a dead node sooner. Default 10 s: more than twice the 4 s that a follower may
    /// lag behind its leader.
    pub session_timeout: Duration,
    /// Silence of a server after which another one is tried. Default 2 s: the cost of one bad server.
    pub connection_timeout: Duration,
    /// Credentials of the center. Default none: every client of the service can change the center's nodes.
    pub credentials: Option<Credentials>,
}

impl Default for Settings {
    fn default() -> Self {
        let (session_timeout, connection_timeout) = (Duration::from_secs(10), Duration::from_secs(2));
        Self { session_timeout, connection_timeout, credentials: None }
    }
}

/// Malformed address of an ensemble.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address:?}: expected HOST:PORT[,HOST:PORT...][/CHROOT]: {why}")]
pub struct BadAddress {
    /// Address as it was given.
    pub address: String,
    /// Defect of the address.
    pub why: &'static str,
}

impl ZooKeeper {
    /// Creates a client for the ensemble at `HOST:PORT[,HOST:PORT...][/CHROOT]`; the center's nodes are below the
    /// chroot, which a session creates when it is missing. Connects to nothing yet.
    ///
    /// # Errors
    /// [`BadAddress`].
    pub fn new(address: &str, settings: Settings) -> Result<Self, BadAddress> {
        let bad = |why| BadAddress { address: address.to_owned(), why };
        let (servers, chroot) = address.find('/').map_or((address, "/"), |at| address.split_at(at));
        if !is_path(chroot) {
            return Err(bad("the part from the first slash on is not a path"));
        }
        servers.split(',').try_for_each(|server| HostPort::parse_peer(server).map(drop)).map_err(bad)?;
        let is_checked = Arc::default();
        Ok(Self { servers: servers.to_owned(), chroot: chroot.to_owned(), settings, is_checked })
    }

    async fn connect(&self) -> Result<zk::Client, zk::Error> {
        let Settings { session_timeout, connection_timeout, credentials } = &self.settings;
        let mut connector =
            zk::Client::connector().with_session_timeout(*session_timeout).with_connection_timeout(*connection_timeout);
        if let Some(credentials) = credentials {
            connector = connector.with_auth(credentials.scheme(), credentials.secret());
        }
        let client = connector.connect(&repeat_servers(&self.servers)).await?;
        if self.chroot == "/" {
            return Ok(client);
        }
        // Read first: a client that may not create the chroot may still be allowed to use it.
        if client.check_stat(&self.chroot).await?.is_none() {
            client.mkdir(&self.chroot, &zk::CreateMode::Persistent.with_acls(self.access())).await?;
        }
        Ok(client.chroot(self.chroot.clone()).expect("it was checked to be a path"))
    }

    fn access(&self) -> zk::Acls<'static> {
        match self.settings.credentials {
            Some(_) => zk::Acls::creator_all(),
            None => zk::Acls::anyone_all(),
        }
    }

    /// Warns the operator if clients other than the center can change the center's nodes.
    async fn warn_if_open(&self, client: &zk::Client) {
        if self.settings.credentials.is_none() {
            tracing::warn!(
                servers = self.servers,
                "no ZooKeeper credentials: every client of ZooKeeper can change the tasks"
            );
            return;
        }
        let strangers = zk::Permission::CREATE | zk::Permission::DELETE;
        let is_open = |acl: &zk::Acl| acl.scheme() == "world" && (acl.permission() & strangers) != zk::Permission::NONE;
        if client.get_acl("/").await.is_ok_and(|(acls, _)| acls.iter().any(is_open)) {
            tracing::warn!(
                chroot = self.chroot,
                "every client of ZooKeeper can create and delete nodes below the chroot"
            );
        }
    }
}

#[async_trait]
impl CoordClient for ZooKeeper {
    async fn open(&self) -> Result<Arc<dyn Session>, CoordError> {
        let client = self.connect().await.map_err(|error| {
            tracing::debug!(servers = self.servers, %error, "no session");
            match error {
                zk::Error::AuthFailed => CoordError::Ended(SessionEnd::AuthFailed),
                zk::Error::NoAuth => CoordError::Refused { index: 0, why: Refusal::NoAuth },
                _ => CoordError::NotConnected,
            }
        })?;
        if !self.is_checked.swap(true, Ordering::Relaxed) {
            self.warn_if_open(&client).await;
            tokio::spawn(version::warn_of_defects(self.servers.clone()));
            warn_of_timeout(client.session_timeout(), self.settings.session_timeout);
        }
        Ok(Arc::new(ZooKeeperSession::new(client, self.access())))
    }

    async fn diagnose(&self) -> String {
        let answers = diagnosis::describe_servers(&self.servers).await;
        format!("chroot {}; {answers}", self.chroot)
    }
}

/// A session of the library's client.
#[derive(Debug)]
struct ZooKeeperSession {
    id: SessionId,
    timeout: Duration,
    /// Access list of every node that is created.
    access: zk::Acls<'static>,
    /// `None` once it is closed here. Requests under way hold clones.
    client: Mutex<Option<zk::Client>>,
    report: Arc<watch::Sender<SessionState>>,
}

impl ZooKeeperSession {
    fn new(client: zk::Client, access: zk::Acls<'static>) -> Self {
        // Created before the state is read, so that no change is missed.
        let changes = client.state_watcher();
        let now = connection(client.state());
        let report = Arc::new(watch::Sender::new(SessionState { connection: now, reconnects: 0 }));
        if !matches!(now, ConnectionState::Over(_)) {
            tokio::spawn(publish_states(changes, report.clone()));
        }
        let (id, timeout) = (SessionId(client.session_id().0), client.session_timeout());
        Self { id, timeout, access, client: Mutex::new(Some(client)), report }
    }

    /// Returns the client, if requests can be made now.
    fn client(&self) -> Result<zk::Client, CoordError> {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let client = client.ok_or(CoordError::Ended(SessionEnd::Closed))?;
        match connection(client.state()) {
            ConnectionState::Connected => Ok(client),
            ConnectionState::Disconnected => Err(CoordError::NotConnected),
            ConnectionState::Over(ending) => Err(CoordError::Ended(ending)),
        }
    }

    /// Translates a read; `None` for a node that does not exist.
    async fn read<T>(
        &self,
        client: &zk::Client,
        request: impl Future<Output = Result<T, zk::Error>>,
    ) -> Result<Option<T>, CoordError> {
        match unless_lost(self.states(), request, || zk::Error::ConnectionLoss).await {
            Ok(answer) => Ok(Some(answer)),
            Err(zk::Error::NoNode) => Ok(None),
            Err(error) => Err(reply::reading_error(&error, connection(client.state()))),
        }
    }
}

/// Warns if the service grants another session timeout than was asked for.
fn warn_of_timeout(granted: Duration, asked: Duration) {
    if !(SESSION_TIMEOUT_MIN..=SESSION_TIMEOUT_MAX).contains(&granted) {
        tracing::warn!(
            ?granted,
            ?asked,
            "session timeout granted outside of 6s to 120s: leases last as long as it does; check \
             minSessionTimeout, maxSessionTimeout and tickTime of ZooKeeper"
        );
    }
}

/// Repeats the list of servers until it has at least [`HOSTS_MIN`] entries.
fn repeat_servers(servers: &str) -> String {
    let rounds = HOSTS_MIN.div_ceil(servers.split(',').count());
    vec![servers; rounds].join(",")
}

/// Reports the client's states until it is over.
async fn publish_states(mut changes: zk::StateWatcher, report: Arc<watch::Sender<SessionState>>) {
    while !report.borrow().is_over() {
        let now = connection(changes.changed().await);
        publish(&report, now);
    }
}

/// Publishes a change of the connection, unless the session is over.
fn publish(report: &watch::Sender<SessionState>, now: ConnectionState) {
    report.send_if_modified(|state| {
        let is_news = !state.is_over();
        if is_news {
            state.connection = now;
            state.reconnects += u64::from(now == ConnectionState::Connected);
        }
        is_news
    });
}

/// Returns the request's outcome, or `lost` as soon as the connection is lost: the library would keep an unsent request
/// for the next connection, however late that comes.
async fn unless_lost<T, E>(
    mut states: watch::Receiver<SessionState>,
    request: impl Future<Output = Result<T, E>>,
    lost: impl FnOnce() -> E,
) -> Result<T, E> {
    let begun = *states.borrow_and_update();
    // The library has said that there is a connection. Its report may come a moment later.
    let expected = begun.reconnects + u64::from(begun.connection == ConnectionState::Disconnected);
    let mut request = pin!(request);
    let is_lost = async {
        let mut is_over = begun.is_over();
        while !is_over {
            if states.changed().await.is_err() {
                return std::future::pending().await;
            }
            let now = states.borrow_and_update();
            is_over = now.connection != ConnectionState::Connected || now.reconnects != expected;
        }
    };
    tokio::select! {
        biased;
        outcome = &mut request => outcome,
        () = is_lost => Err(lost()),
    }
}

#[async_trait]
impl Session for ZooKeeperSession {
    fn id(&self) -> SessionId {
        self.id
    }

    fn timeout(&self) -> Duration {
        self.timeout
    }

    fn states(&self) -> watch::Receiver<SessionState> {
        self.report.subscribe()
    }

    async fn get(&self, path: &str) -> Result<Option<Znode>, CoordError> {
        let client = self.client()?;
        let answer = self.read(&client, client.get_data(path)).await?;
        Ok(answer.map(|(data, stat)| node(data, &stat)))
    }

    async fn get_and_watch(&self, path: &str) -> Result<(Option<Znode>, Watch), CoordError> {
        let client = self.client()?;
        loop {
            if let Some((data, stat, watcher)) = self.read(&client, client.get_and_watch_data(path)).await? {
                return Ok((Some(node(data, &stat)), watch(watcher)));
            }
            // Only this request can watch for a creation. If the node was created just now, it is read again.
            let creation = self.read(&client, client.check_and_watch_stat(path)).await?;
            if let Some((None, watcher)) = creation {
                return Ok((None, watch(watcher)));
            }
        }
    }

    async fn children(&self, path: &str) -> Result<Vec<String>, CoordError> {
        let client = self.client()?;
        let names = self.read(&client, client.list_children(path)).await?;
        Ok(sorted(names.unwrap_or_default()))
    }

    async fn children_and_watch(&self, path: &str) -> Result<(Vec<String>, Watch), CoordError> {
        let client = self.client()?;
        let answer = self.read(&client, client.list_and_watch_children(path)).await?;
        let (names, watcher) = answer.ok_or(CoordError::Refused { index: 0, why: Refusal::NoNode })?;
        Ok((sorted(names), watch(watcher)))
    }

    async fn multi(&self, ops: Vec<Op>) -> Result<Vec<Done>, CoordError> {
        check_ops(&ops)?;
        let client = self.client()?;
        let mut writer = client.new_multi_writer();
        for (index, op) in ops.iter().enumerate() {
            let added = add(&mut writer, op, self.access);
            added.map_err(|_| CoordError::Refused { index, why: Refusal::Impossible })?;
        }
        let lost = || zk::MultiWriteError::from(zk::Error::ConnectionLoss);
        let results = unless_lost(self.states(), writer.commit(), lost).await.map_err(reply::writing_error)?;
        Ok(results.iter().map(reply::done).collect())
    }

    async fn sync(&self) -> Result<(), CoordError> {
        let client = self.client()?;
        self.read(&client, client.sync("/")).await.map(|_| ())
    }

    async fn close(&self) {
        let client = self.client.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(client) = client else { return };
        let mut changes = client.state_watcher();
        if !client.state().is_terminated() {
            drop(client);
            let closed = async { while !changes.changed().await.is_terminated() {} };
            let _ = tokio::time::timeout(CLOSE_MAX, closed).await;
        }
        publish(&self.report, ConnectionState::Over(SessionEnd::Closed));
    }
}

fn add(writer: &mut zk::MultiWriter<'_>, op: &Op, access: zk::Acls<'_>) -> Result<(), zk::Error> {
    match op {
        Op::Check { path, version } => writer.add_check_version(path, *version),
        Op::Create { path, data, mode } => {
            let mode = match mode {
                CreateMode::Persistent => zk::CreateMode::Persistent,
                CreateMode::Ephemeral => zk::CreateMode::Ephemeral,
            };
            writer.add_create(path, data, &mode.with_acls(access))
        }
        Op::Set { path, data, version } => writer.add_set_data(path, data, Some(*version)),
        Op::Delete { path, version } => writer.add_delete(path, Some(*version)),
    }
}

/// Converts a watch; a dropped one is removed from the service.
fn watch(watcher: zk::OneshotWatcher) -> Watch {
    let (mut fire, watch) = Watch::new();
    tokio::spawn(async move {
        tokio::select! {
            biased;
            () = fire.closed() => {}
            _ = watcher.changed() => drop(fire.send(())),
        }
    });
    watch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_is_repeated_equally_often() {
        assert_eq!(repeat_servers("a:1,b:2,c:3"), ["a:1,b:2,c:3"; 4].join(","));
        assert_eq!(repeat_servers("a:1"), ["a:1"; 12].join(","));
        assert_eq!(repeat_servers(&["a:1"; 13].join(",")), ["a:1"; 13].join(","));
        assert_eq!(repeat_servers(&["a:1"; 5].join(",")).split(',').count(), 15);
    }

    #[test]
    fn addresses_are_checked_before_connecting() {
        let of =
            |address: &str| ZooKeeper::new(address, Settings::default()).map(|center| (center.servers, center.chroot));
        let pair = |servers: &str, chroot: &str| Ok((servers.to_owned(), chroot.to_owned()));
        assert_eq!((of("a:1"), of("a:1/")), (pair("a:1", "/"), pair("a:1", "/")));
        assert_eq!(of("a:1,[::1]:2/cell/7"), pair("a:1,[::1]:2", "/cell/7"));
        for bad in ["", "a", ":1", "a:0", "a:70000", "a:1,", "a:1//b", "a:1/b/", "a:1/../b", "tcp://a:1"] {
            assert_eq!(of(bad).map_err(|error| error.address), Err(bad.to_owned()));
        }
    }
}
