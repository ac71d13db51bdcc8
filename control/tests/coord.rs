//! Tests the coordination service with real servers and files: all implementations keep the contract_tests, and
//! ZooKeeper's also keeps its promises when servers die, are paused or are cut off.
#![forbid(unsafe_code)]

use blockhaul_control::coord::credentials::Credentials;
use blockhaul_control::coord::embedded::Embedded;
use blockhaul_control::coord::zookeeper::{Settings, ZooKeeper};
use blockhaul_control::coord::{
    ConnectionState, CoordClient, CoordError, CreateMode, Done, Op, Refusal, Session, SessionEnd, SessionState, Watch,
    contract_tests,
};
use blockhaul_testkit::tcp_proxy::{Mode, TcpProxy};
use blockhaul_testkit::zookeeper::{self, Ensemble, Role};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// A session whose loss is found out quickly.
fn brief() -> Settings {
    let (session_timeout, connection_timeout) = (Duration::from_secs(6), Duration::from_secs(3));
    Settings { session_timeout, connection_timeout, ..Settings::default() }
}

/// A session that a machine with too much to do does not cut, and that outlives a slow start of a server.
fn patient() -> Settings {
    let (session_timeout, connection_timeout) = (Duration::from_secs(300), Duration::from_secs(20));
    Settings { session_timeout, connection_timeout, ..Settings::default() }
}

fn center(address: &str, settings: Settings) -> ZooKeeper {
    ZooKeeper::new(address, settings).expect("the address is well formed")
}

async fn open(address: &str, settings: Settings) -> Arc<dyn Session> {
    center(address, settings).open().await.expect("the ensemble serves")
}

fn create(path: &str, mode: CreateMode) -> Vec<Op> {
    vec![Op::Create { path: path.to_owned(), data: Vec::new(), mode }]
}

/// Nothing that a test waits for takes a tenth of it.
const PATIENCE: Duration = Duration::from_secs(300);

/// Waits for what must come.
async fn until(session: &dyn Session, what: impl FnMut(&SessionState) -> bool) -> SessionState {
    let mut states = session.states();
    let state = tokio::time::timeout(PATIENCE, states.wait_for(what)).await;
    *state.expect("it comes").expect("states are told as long as there is a session")
}

async fn fires(watch: Watch) {
    tokio::time::timeout(PATIENCE, watch.fired()).await.expect("the watch fires");
}

/// Does it again as long as there is no connection.
async fn persist(session: &dyn Session, ops: Vec<Op>) -> Result<Vec<Done>, CoordError> {
    loop {
        until(session, |state| state.is_connected() || state.is_over()).await;
        match session.multi(ops.clone()).await {
            Err(CoordError::NotConnected | CoordError::Unknown(_)) => tokio::task::yield_now().await,
            other => return other,
        }
    }
}

/// An ephemeral node of the session.
async fn make_mine(session: &dyn Session) {
    make(session, "/mine", CreateMode::Ephemeral).await;
}

/// A node that is there afterwards, even if the answer to its creation is lost and it is created again.
async fn make(session: &dyn Session, path: &str, mode: CreateMode) {
    let exists = Err(CoordError::Refused { index: 0, why: Refusal::NodeExists });
    let made = persist(session, create(path, mode)).await;
    assert!(made.is_ok() || made == exists, "{made:?}");
}

#[tokio::test]
async fn the_embedded_store_keeps_the_contract() {
    let folder = TempDir::new().expect("temporary folders can be made");
    let center = Embedded::open(&folder.path().join("center.redb")).expect("the folder can be written");
    contract_tests::everything(&center).await;
}

#[tokio::test]
async fn one_zookeeper_keeps_the_contract() {
    let ensemble = Ensemble::start(1);
    let address = ensemble.addresses();
    contract_tests::everything(&center(&format!("{address}/blockhaul/cell"), patient())).await;
    // Without a chroot the nodes are at the top.
    contract_tests::everything(&center(&address, patient())).await;
}

#[tokio::test]
async fn three_zookeepers_keep_the_contract() {
    let ensemble = Ensemble::start(3);
    let address = format!("{}/blockhaul", ensemble.addresses());
    contract_tests::everything(&center(&address, patient())).await;
}

#[test]
fn three_servers_elect_one_leader_and_another_when_it_is_killed() {
    let mut ensemble = Ensemble::start(3);
    let first = ensemble.leader();
    assert_eq!((0..3).filter(|&index| ensemble.role(index) == Some(Role::Leader)).count(), 1);
    ensemble.kill(first);
    let second = ensemble.leader();
    assert_ne!(first, second);
    ensemble.restart(first);
    assert_eq!(ensemble.role(first), Some(Role::Follower));
    ensemble.pause(second);
    assert_eq!(ensemble.role(second), None);
    ensemble.resume(second);
    ensemble.wait_until_it_serves(second);
}

/// The session, its ephemeral nodes and its watches outlive the server's process; writes meanwhile are refused, and are
/// not done later.
#[tokio::test(flavor = "multi_thread")]
async fn a_reconnect_is_counted_and_nothing_is_queued_for_it() {
    let mut ensemble = Ensemble::start(1);
    let address = ensemble.addresses();
    let session = open(&address, patient()).await;
    make_mine(&*session).await;
    let (_, created) = session.get_and_watch("/late").await.expect("connected");
    let (_, listed) = session.children_and_watch("/").await.expect("connected");

    ensemble.kill(0);
    let lost = until(&*session, |state| !state.is_connected()).await;
    assert_eq!(lost, SessionState { connection: ConnectionState::Disconnected, reconnects: 0 });
    assert_eq!(session.multi(create("/queued", CreateMode::Persistent)).await, Err(CoordError::NotConnected));
    assert_eq!(session.get("/mine").await, Err(CoordError::NotConnected));
    assert_eq!(session.sync().await, Err(CoordError::NotConnected));

    ensemble.restart(0);
    let back = until(&*session, SessionState::is_connected).await;
    assert_eq!(back.reconnects, 1);
    let mine = session.get("/mine").await.expect("connected").expect("the session goes on");
    assert_eq!(mine.stat.owner, Some(session.id()));
    let other = open(&address, patient()).await;
    assert_eq!(other.get("/queued").await, Ok(None));
    other.multi(create("/late", CreateMode::Persistent)).await.expect("it is new");
    tokio::join!(fires(created), fires(listed));
}

/// A short loss whose end is all that is seen counts too.
#[tokio::test(flavor = "multi_thread")]
async fn every_cut_is_counted() {
    let ensemble = Ensemble::start(1);
    let wire = TcpProxy::to(&ensemble.address(0));
    let session = open(&wire.address(), patient()).await;
    for reconnects in 1..=5 {
        wire.set(Mode::Cut);
        wire.set(Mode::Pass);
        until(&*session, |state| state.is_connected() && state.reconnects >= reconnects).await;
        session.multi(create(&format!("/{reconnects}"), CreateMode::Persistent)).await.expect("connected");
    }
}

/// Hundreds of requests wait at once when the connection is lost, and some of their callers give up at that moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn all_requests_end_when_the_connection_is_lost_and_their_callers_may_leave() {
    let ensemble = Ensemble::start(1);
    let wire = TcpProxy::to(&ensemble.address(0));
    let session = open(&wire.address(), patient()).await;
    for _ in 0..20 {
        until(&*session, SessionState::is_connected).await;
        wire.set(Mode::Stall);
        let mut requests: Vec<_> = (0..300)
            .map(|_| {
                let session = Arc::clone(&session);
                tokio::spawn(async move { session.get("/").await })
            })
            .collect();
        tokio::task::yield_now().await;
        wire.set(Mode::Cut);
        for request in requests.iter().step_by(3) {
            request.abort();
        }
        for request in requests.drain(..) {
            match request.await {
                Ok(Err(CoordError::NotConnected | CoordError::Unknown(_))) => {}
                Ok(other) => panic!("nothing was forwarded: {other:?}"),
                Err(ended) => assert!(ended.is_cancelled(), "{ended}"),
            }
        }
        wire.set(Mode::Pass);
    }
    until(&*session, SessionState::is_connected).await;
    persist(&*session, create("/later", CreateMode::Persistent)).await.expect("it is new");
}

/// Long before the ensemble says so: it cannot. Then a new session takes over what the old one has left.
#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_is_noticed_without_a_server() {
    let ensemble = Ensemble::start(1);
    let wire = TcpProxy::to(&ensemble.address(0));
    let session = open(&wire.address(), brief()).await;
    make_mine(&*session).await;
    let (_, watch) = session.get_and_watch("/mine").await.expect("connected");
    let other = open(&ensemble.addresses(), patient()).await;
    let (mine, gone) = other.get_and_watch("/mine").await.expect("connected");
    assert!(mine.is_some());

    wire.set(Mode::Stall);
    let lost = until(&*session, |state| !state.is_connected()).await;
    assert_eq!(lost.connection, ConnectionState::Disconnected);
    fires(gone).await;
    let over = until(&*session, SessionState::is_over).await;
    assert_eq!(over.connection, ConnectionState::Over(SessionEnd::Expired));
    fires(watch).await;
    let expired = CoordError::Ended(SessionEnd::Expired);
    assert_eq!(session.multi(create("/late", CreateMode::Persistent)).await, Err(expired.clone()));
    assert_eq!(session.get("/mine").await, Err(expired));
    wire.set(Mode::Cut);
    wire.set(Mode::Pass);
    let next = open(&wire.address(), brief()).await;
    assert_ne!(next.id(), session.id());
    make_mine(&*next).await;
    let mine = next.get("/mine").await.expect("connected").expect("it was just made");
    assert_eq!(mine.stat.owner, Some(next.id()), "the old one is gone");
    assert_eq!(next.get("/late").await, Ok(None));
    session.close().await;
    assert_eq!(session.states().borrow().connection, ConnectionState::Over(SessionEnd::Expired), "the first end stays");
}

/// The service says that it has given the session up while the client slept.
#[tokio::test(flavor = "multi_thread")]
async fn an_expiry_is_learnt_from_the_server() {
    let ensemble = Ensemble::start(1);
    let wire = TcpProxy::to(&ensemble.address(0));
    let session = open(&wire.address(), brief()).await;
    make_mine(&*session).await;
    let other = open(&ensemble.addresses(), patient()).await;
    let (_, gone) = other.get_and_watch("/mine").await.expect("connected");
    wire.set(Mode::Stall);
    fires(gone).await;
    wire.set(Mode::Cut);
    wire.set(Mode::Pass);
    assert_eq!(until(&*session, SessionState::is_over).await.connection, ConnectionState::Over(SessionEnd::Expired));
}

/// The write happened, and the writer must find out by reading.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_reply_leaves_the_outcome_unknown() {
    let ensemble = Ensemble::start(1);
    let wire = TcpProxy::to(&ensemble.address(0));
    let settings = Settings { connection_timeout: Duration::from_secs(5), ..patient() };
    let session = open(&wire.address(), settings).await;
    wire.set(Mode::LoseAnswers);
    let unknown = session.multi(create("/node", CreateMode::Ephemeral)).await;
    assert!(matches!(unknown, Err(CoordError::Unknown(_))), "{unknown:?}");
    assert_eq!(session.get("/node").await, Err(CoordError::NotConnected));
    wire.set(Mode::Cut);
    wire.set(Mode::Pass);
    let exists = Err(CoordError::Refused { index: 0, why: Refusal::NodeExists });
    assert_eq!(persist(&*session, create("/node", CreateMode::Ephemeral)).await, exists);
    let node = session.get("/node").await.expect("connected").expect("the write happened");
    assert_eq!(node.stat.owner, Some(session.id()));
}

/// A paused server accepts what it is sent and says nothing; another one takes over the session.
#[tokio::test(flavor = "multi_thread")]
async fn sessions_outlive_a_killed_and_a_paused_server() {
    let mut ensemble = Ensemble::with(zookeeper::Settings { sync_limit: 4, ..zookeeper::Settings::new(3) });
    let settings = Settings { connection_timeout: Duration::from_secs(3), ..patient() };
    let session = open(&ensemble.addresses(), settings).await;
    let id = session.id();
    make_mine(&*session).await;
    let killed = ensemble.leader();
    ensemble.kill(killed);
    make(&*session, "/after_kill", CreateMode::Persistent).await;
    ensemble.restart(killed);

    let paused = ensemble.server_of(id.0).expect("it is connected to one");
    ensemble.pause(paused);
    let lost = until(&*session, |state| !state.is_connected()).await;
    until(&*session, |state| state.reconnects > lost.reconnects).await;
    make(&*session, "/after_pause", CreateMode::Persistent).await;
    assert_ne!(ensemble.server_of(id.0), Some(paused));
    ensemble.resume(paused);
    let mine = session.get("/mine").await.expect("connected").expect("the session goes on");
    assert_eq!(mine.stat.owner, Some(id));
}

/// Sent, they would cut the connection, again and again.
#[tokio::test(flavor = "multi_thread")]
async fn oversized_writes_leave_the_connection_alone() {
    let ensemble = Ensemble::start(1);
    let session = open(&ensemble.addresses(), patient()).await;
    for size in [(8 << 10) + 1, 1 << 20, 5 << 20] {
        let op = Op::Create { path: "/node".to_owned(), data: vec![0; size], mode: CreateMode::Persistent };
        let error = session.multi(vec![op]).await.expect_err("it is too large");
        assert!(matches!(error, CoordError::TooLarge { bytes, .. } if bytes == size), "{error}");
    }
    session.multi(create("/node", CreateMode::Persistent)).await.expect("connected");
    assert_eq!(*session.states().borrow(), SessionState { connection: ConnectionState::Connected, reconnects: 0 });
}

/// Only who has the same credentials can read or change what the center has made.
#[tokio::test(flavor = "multi_thread")]
async fn strangers_are_not_permitted() {
    let ensemble = Ensemble::start(1);
    let folder = TempDir::new().expect("temporary folders can be made");
    let file = folder.path().join("credentials");
    std::fs::write(&file, "digest:center:secret\n").expect("the folder can be written");
    let credentials = Credentials::read(&file).expect("it is well formed");
    let own = Settings { credentials: Some(credentials), ..patient() };
    let address = format!("{}/guarded/cell", ensemble.addresses());
    contract_tests::everything(&center(&address, own.clone())).await;
    let session = open(&address, own).await;
    session.multi(create("/node", CreateMode::Persistent)).await.expect("it is new");

    std::fs::write(&file, "digest:center:guessed").expect("the folder can be written");
    let guess = Settings { credentials: Some(Credentials::read(&file).expect("well formed")), ..patient() };
    let no_auth = CoordError::Refused { index: 0, why: Refusal::NoAuth };
    for stranger in [patient(), guess] {
        let stranger = open(&address, stranger).await;
        let set = Op::Set { path: "/node".to_owned(), data: Vec::new(), version: 0 };
        let delete = Op::Delete { path: "/node".to_owned(), version: 0 };
        for op in [set, delete] {
            assert_eq!(stranger.multi(vec![op]).await, Err(no_auth.clone()));
        }
        assert_eq!(stranger.multi(create("/other", CreateMode::Persistent)).await, Err(no_auth.clone()));
        assert_eq!(stranger.multi(create("/node/child", CreateMode::Ephemeral)).await, Err(no_auth.clone()));
        assert_eq!(stranger.get("/node").await, Err(no_auth.clone()));
        assert_eq!(stranger.children("/").await, Err(no_auth.clone()));
    }
    std::fs::write(&file, "nosuch:scheme").expect("the folder can be written");
    let unknown = Settings { credentials: Some(Credentials::read(&file).expect("well formed")), ..patient() };
    let refused = center(&address, unknown).open().await.expect_err("the server knows no such scheme");
    assert_eq!(refused, CoordError::Ended(SessionEnd::AuthFailed));
}

/// Neither opening nor closing hangs on servers that are not there.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_server_sessions_neither_open_nor_keep_from_closing() {
    let mut ensemble = Ensemble::start(1);
    let address = ensemble.addresses();
    let session = open(&address, Settings::default()).await;
    ensemble.kill(0);
    until(&*session, |state| !state.is_connected()).await;
    session.close().await;
    assert_eq!(session.states().borrow().connection, ConnectionState::Over(SessionEnd::Closed));
    assert_eq!(session.get("/").await, Err(CoordError::Ended(SessionEnd::Closed)));
    let error = center(&address, brief()).open().await.expect_err("nobody serves");
    assert_eq!(error, CoordError::NotConnected);
}
