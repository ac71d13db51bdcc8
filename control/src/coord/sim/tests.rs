//! Tests the faults of the simulated service, and their effects on clients.

use super::*;
use crate::coord::{ConnectionState, CreateMode, contract_tests};

const T: Duration = Duration::from_secs(10);

fn create(path: &str, mode: CreateMode) -> Op {
    Op::Create { path: path.to_owned(), data: b"new".to_vec(), mode }
}

fn set(path: &str, version: i32) -> Op {
    Op::Set { path: path.to_owned(), data: b"set".to_vec(), version }
}

/// Sessions of node `a` and of node `b`.
async fn pair(seed: u64) -> (Ensemble, Arc<dyn Session>, Arc<dyn Session>) {
    let ensemble = Ensemble::new(seed, T);
    let (a, b) = (ensemble.client("a").open().await.unwrap(), ensemble.client("b").open().await.unwrap());
    (ensemble, a, b)
}

async fn connection(session: &dyn Session, wanted: impl Fn(ConnectionState) -> bool) -> Duration {
    let start = Instant::now();
    session.states().wait_for(|state| wanted(state.connection)).await.unwrap();
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn the_simulation_keeps_the_contract() {
    for seed in 0..20 {
        let ensemble = Ensemble::new(seed, T);
        ensemble.set_fault_rates(FaultRates { latency_ms: (0, seed), lag_ms: (0, 10 * seed), ..FaultRates::default() });
        contract_tests::everything(&*ensemble.client("a")).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_multi_is_atomic_and_transaction_numbers_grow() {
    let (_ensemble, a, b) = pair(1).await;
    let done = a
        .multi(vec![create("/x", CreateMode::Persistent), set("/x", 0), create("/x/y", CreateMode::Ephemeral)])
        .await
        .unwrap();
    let [Done::Plain, Done::Set(stat), Done::Plain] = done[..] else { panic!("{done:?}") };
    assert_eq!((stat.version, stat.created), (1, stat.modified));
    let refused = b.multi(vec![set("/x", 1), create("/x/y/z", CreateMode::Persistent)]).await;
    assert_eq!(refused, Err(CoordError::Refused { index: 1, why: Refusal::Impossible }));
    let refused = b.multi(vec![Op::Delete { path: "/x".into(), version: 1 }]).await;
    assert_eq!(refused, Err(CoordError::Refused { index: 0, why: Refusal::NotEmpty }));
    let Done::Set(later) = b.multi(vec![set("/x", 1)]).await.unwrap()[0] else { panic!("a set returns its node") };
    assert!(later.modified > stat.modified && later.created == stat.created);
    assert_eq!(b.children("/x").await.unwrap(), ["y"]);
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_node_goes_between_half_a_tick_before_and_a_tick_after_the_timeout() {
    let mut seen = Vec::new();
    for seed in 0..200 {
        let (ensemble, a, b) = pair(seed).await;
        sleep(Duration::from_millis(seed * 37 % 5000)).await;
        a.multi(vec![create("/e", CreateMode::Ephemeral)]).await.unwrap();
        ensemble.cut("a");
        let start = Instant::now();
        let (_, gone) = b.get_and_watch("/e").await.unwrap();
        while ensemble.committed("/e").is_some() {
            sleep(Duration::from_millis(10)).await;
        }
        seen.push(start.elapsed());
        gone.fired().await;
        assert!(
            connection(&*a, |connection| matches!(connection, ConnectionState::Over(_))).await > Duration::from_secs(1),
            "learnt late"
        );
    }
    let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
    assert!(
        *least >= T - TICK / 2 - Duration::from_millis(10) && *most <= T + TICK + Duration::from_millis(20),
        "{least:?} {most:?}"
    );
    assert!(*least < T && *most > T + TICK / 2, "both sides are visited: {least:?} to {most:?}");
}

#[tokio::test(start_paused = true)]
async fn at_an_isolated_server_reads_continue_and_writes_stall() {
    let (ensemble, a, b) = pair(3).await;
    a.multi(vec![create("/x", CreateMode::Persistent)]).await.unwrap();
    let beside = ensemble.core().clients[&a.id()].server;
    ensemble.isolate(beside);
    sleep(Duration::from_secs(3)).await;
    let b =
        if ensemble.core().clients[&b.id()].server == beside { ensemble.client("b").open().await.unwrap() } else { b };
    b.multi(vec![set("/x", 0)]).await.unwrap();
    assert!(a.states().borrow().is_connected());
    assert_eq!(a.get("/x").await.unwrap().unwrap().stat.version, 0, "stale");
    let write = a.multi(vec![set("/x", 0)]);
    assert!(matches!(write.await, Err(CoordError::Unknown(_))), "dropped with the server");
    connection(&*a, |connection| connection == ConnectionState::Connected).await;
    assert_eq!(a.get("/x").await.unwrap().unwrap().stat.version, 1);
    assert_eq!(a.states().borrow().reconnects, 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_be_lost_after_the_write_and_a_write_may_happen_late() {
    let (ensemble, a, _b) = pair(4).await;
    ensemble.set_fault_rates(FaultRates { lost_reply: 1.0, late_write: 1.0, ..FaultRates::default() });
    assert!(matches!(a.multi(vec![create("/x", CreateMode::Persistent)]).await, Err(CoordError::Unknown(_))));
    assert!(ensemble.committed("/x").is_some());
    connection(&*a, |connection| connection == ConnectionState::Connected).await;
    ensemble.cut("a");
    let write = a.multi(vec![set("/x", 0)]);
    assert!(matches!(write.await, Err(CoordError::Unknown(_))));
    assert_eq!(a.multi(vec![set("/x", 0)]).await, Err(CoordError::NotConnected));
    assert_eq!(ensemble.committed("/x").unwrap().stat.version, 0);
    ensemble.mend("a");
    sleep(T).await;
    assert_eq!(ensemble.committed("/x").unwrap().stat.version, 1, "late");
}

#[tokio::test(start_paused = true)]
async fn watches_survive_a_connection_and_can_be_lost_until_the_session_ends() {
    let (ensemble, a, b) = pair(5).await;
    a.multi(vec![create("/x", CreateMode::Persistent)]).await.unwrap();
    a.sync().await.unwrap();
    let (_, changed) = a.get_and_watch("/x").await.unwrap();
    let (_, names) = a.children_and_watch("/x").await.unwrap();
    ensemble.reset("a");
    b.multi(vec![set("/x", 0), create("/x/y", CreateMode::Persistent)]).await.unwrap();
    changed.fired().await;
    names.fired().await;
    ensemble.set_fault_rates(FaultRates { lost_watch: 1.0, ..FaultRates::default() });
    let (_, lost) = a.get_and_watch("/x").await.unwrap();
    let start = Instant::now();
    b.multi(vec![set("/x", 1)]).await.unwrap();
    tokio::spawn(async move {
        sleep(Duration::from_secs(60)).await;
        a.close().await;
    });
    lost.fired().await;
    assert!(start.elapsed() >= Duration::from_secs(60));
}

#[tokio::test(start_paused = true)]
async fn an_outage_and_a_stall_end_no_session() {
    let (ensemble, a, _b) = pair(6).await;
    a.multi(vec![create("/e", CreateMode::Ephemeral)]).await.unwrap();
    ensemble.stall(Duration::from_secs(6));
    let start = Instant::now();
    a.multi(vec![create("/y", CreateMode::Persistent)]).await.unwrap();
    assert!(start.elapsed() >= Duration::from_secs(6));
    ensemble.stop();
    assert_eq!(a.get("/e").await, Err(CoordError::NotConnected));
    assert!(matches!(ensemble.client("c").open().await, Err(CoordError::NotConnected)));
    sleep(Duration::from_secs(8)).await;
    ensemble.start();
    connection(&*a, |connection| connection == ConnectionState::Connected).await;
    assert!(a.get("/e").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn after_history_went_back_only_new_sessions_are_accepted_and_numbers_repeat() {
    let (ensemble, a, _b) = pair(7).await;
    a.multi(vec![create("/x", CreateMode::Persistent)]).await.unwrap();
    let then = ensemble.snapshot();
    let Done::Set(first) = a.multi(vec![set("/x", 0)]).await.unwrap()[0] else { panic!("a set returns its node") };
    ensemble.regress(&then);
    assert!(connection(&*a, |connection| matches!(connection, ConnectionState::Over(_))).await >= T);
    let again = ensemble.client("a").open().await.unwrap();
    assert_eq!(again.get("/x").await.unwrap().unwrap().stat.version, 0);
    let Done::Set(second) = again.multi(vec![set("/x", 0)]).await.unwrap()[0] else { panic!("a set returns its node") };
    assert!(second.modified.0 <= first.modified.0 + 8, "{first:?} {second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_closed_session_leaves_no_nodes_and_an_expired_one_learns_its_end() {
    let (ensemble, a, b) = pair(8).await;
    a.multi(vec![create("/a", CreateMode::Ephemeral)]).await.unwrap();
    b.multi(vec![create("/b", CreateMode::Ephemeral)]).await.unwrap();
    a.close().await;
    assert!(ensemble.committed("/a").is_none());
    assert_eq!(a.get("/a").await, Err(CoordError::Ended(SessionEnd::Closed)));
    ensemble.expire("b");
    assert!(ensemble.committed("/b").is_none());
    assert!(b.states().borrow().is_connected(), "it does not know yet");
    assert_eq!(b.multi(vec![create("/c", CreateMode::Persistent)]).await, Err(CoordError::Ended(SessionEnd::Expired)));
}
