//! Tests what happens to copies when the coordination service cannot be reached, or expires the session.

use super::*;
use blockhaul_engine::job::Reason;

#[tokio::test(start_paused = true)]
async fn a_copy_that_lives_by_a_lease_has_one_before_it_begins_and_keeps_it() {
    let stage = Stage::new().await;
    sleep(Duration::from_secs(60)).await;
    let idle = stage.store.writes();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.store.writes(), idle, "an idle runner writes nothing");
    assert_eq!(stage.handle.lease_left(), Duration::ZERO);
    let copy = stage.running("t", copy_of(Fence::Lease)).await;
    let now = stage.clock.boot_time();
    assert!(copy.gate.is_open_at(now + Duration::from_secs(5)) && !copy.gate.is_open_at(now + Duration::from_secs(6)));
    let writes = stage.store.writes();
    for _ in 0..600 {
        sleep(Duration::from_millis(100)).await;
        assert!(stage.handle.lease_left() > Duration::from_secs(6));
    }
    let renewals = stage.store.writes() - writes;
    assert!((36..=41).contains(&renewals), "{renewals} writes in a minute");
    assert_eq!(*copy.cancelled.borrow(), None);
}

#[tokio::test(start_paused = true)]
async fn without_renewals_the_gate_shuts_and_then_the_copy_is_cut_off() {
    let stage = Stage::new().await;
    let remote = stage.running("r", copy_of(Fence::Lease)).await;
    let local = stage.running("l", copy_of(Fence::Local)).await;
    sleep(Duration::from_secs(30)).await;
    stage.store.cut(true);
    let end = Instant::now() + stage.handle.lease_left();
    sleep(Duration::from_secs(6)).await;
    assert!(!remote.gate.is_open_at(stage.clock.boot_time()), "nothing extends it");
    assert_eq!(*remote.cancelled.borrow(), None);
    let mut cancelled = remote.cancelled.subscribe();
    cancelled.wait_for(Option::is_some).await.unwrap();
    let late = Instant::now().saturating_duration_since(end);
    assert!(late <= Duration::from_millis(10), "{late:?} after the end of the lease");
    assert_eq!((*remote.cancelled.borrow(), *remote.cuts.lock().unwrap() > 0), (Some(Reason::LeaseLost), true));
    assert_eq!((*local.cancelled.borrow(), *local.cuts.lock().unwrap()), (None, 0), "its lock protects it");

    // Only the connection was lost: the registration stays, and the task is returned without a failure.
    stage.store.cut(false);
    let record = stage.until("r", TaskState::Pending).await;
    assert_eq!((record.failures, record.attempts[0].outcome.as_deref()), (0, Some("ERunnerInterrupt")));
    assert!(record.attempts[0].quiet && stage.is_free("r"));
    local.end.send_replace(Some(End::Succeeded));
    stage.until("l", TaskState::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_pauses_nothing() {
    let stage = Stage::new().await;
    let copy = stage.running("t", copy_of(Fence::Lease)).await;
    for _ in 0..10 {
        sleep(Duration::from_secs(2)).await;
        stage.store.cut(true);
        sleep(Duration::from_secs(3)).await;
        assert!(stage.handle.lease_left() > Duration::from_millis(2500), "the gate has not shut");
        stage.store.cut(false);
    }
    assert_eq!(*copy.cancelled.borrow(), None);
    copy.end.send_replace(Some(End::Succeeded));
    stage.until("t", TaskState::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_session_ends_what_lives_by_it_and_nothing_else() {
    let stage = Stage::new().await;
    let remote = stage.running("r", copy_of(Fence::Lease)).await;
    let local = stage.running("l", copy_of(Fence::Local)).await;
    let gate = Arc::clone(&remote.gate);
    stage.store.expire();
    remote.cancelled.subscribe().wait_for(Option::is_some).await.unwrap();
    assert_eq!((*remote.cancelled.borrow(), gate.is_open_at(Duration::ZERO)), (Some(Reason::LeaseLost), false));
    stage.revoke("r");
    stage.happen("l", TaskEvent::RunnerLost);
    let lost = stage.record("r");
    while stage.registration().is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stage.registration().unwrap().incarnation, Incarnation("life".into()), "the same life");
    local.end.send_replace(Some(End::Succeeded));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(stage.record("l").state, TaskState::Lost, "its dispatcher has not taken it back yet");
    stage.happen("l", TaskEvent::RunnerReturned);
    stage.until("l", TaskState::Succeeded).await;
    assert_eq!(stage.record("r").op, lost.op, "nothing was written about a task that is not ours");
    assert_eq!((gate.is_open_at(Duration::ZERO), *local.cuts.lock().unwrap()), (false, 0));
    sleep(Duration::from_secs(1)).await;
    assert!(stage.handle.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_local_copy_that_was_given_to_another_life_stops() {
    let stage = Stage::new().await;
    let copy = stage.running("t", copy_of(Fence::Local)).await;
    stage.store.expire();
    stage.happen("t", TaskEvent::RunnerLost);
    // An operator has confirmed that the node is off.
    let path = paths::claim("test:t");
    let claim = stage.store.get(&path).unwrap();
    let free = Claim { holder: None, ..Claim::decode(&claim.data).unwrap() };
    stage.store.write(&[Op::Set { path, data: free.encode(), version: claim.stat.version }]);
    stage.happen("t", TaskEvent::Fenced(state_machine::FenceProof::Operator));
    let given = stage.record("t");
    copy.cancelled.subscribe().wait_for(Option::is_some).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(stage.record("t").op, given.op);
    assert!(stage.handle.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_checkpoint_that_is_overtaken_does_not_cost_the_lease() {
    let stage = Stage::new().await;
    let copy = stage.running("t", copy_of(Fence::Lease)).await;
    for round in 1..=60_u64 {
        *copy.durable.lock().unwrap() = round;
        stage.happen("t", TaskEvent::LimitRequested(Some(round)));
        sleep(Duration::from_millis(500)).await;
        assert!(stage.handle.lease_left() > Duration::from_secs(6));
    }
    assert!(stage.record("t").progress.durable >= 40, "{:?}", stage.record("t").progress);
    assert!(*copy.limit.lock().unwrap() > Some(40), "the change that refused it was applied");
}

#[tokio::test(start_paused = true)]
async fn a_leader_has_a_lease_without_copies() {
    let stage = Stage::new().await;
    stage.handle.set_leading(true);
    sleep(Duration::from_secs(60)).await;
    assert!(stage.handle.lease_left() > Duration::from_secs(6));
    stage.handle.set_leading(false);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(stage.handle.lease_left(), Duration::ZERO);
}
