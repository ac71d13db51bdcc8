//! Tests what happens to copies when the coordination service cannot be reached, or expires the session.

use super::*;
use crate::model::TaskChanges;
use blockhaul_engine::job::StopReason;

#[tokio::test(start_paused = true)]
async fn a_copy_that_needs_a_lease_gets_it_before_it_begins_and_keeps_it() {
    let harness = Harness::new().await;
    sleep(Duration::from_secs(60)).await;
    let idle = harness.store.writes();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(harness.store.writes(), idle, "an idle runner writes nothing");
    assert_eq!(harness.handle.lease_left(), Duration::ZERO);
    let copy = harness.running("t", copy_of(FenceMethod::Lease)).await;
    let now = harness.clock.boot_time();
    assert!(copy.gate.is_open_at(now + Duration::from_secs(5)) && !copy.gate.is_open_at(now + Duration::from_secs(6)));
    let writes = harness.store.writes();
    for _ in 0..600 {
        sleep(Duration::from_millis(100)).await;
        assert!(harness.handle.lease_left() > Duration::from_secs(6));
    }
    let renewals = harness.store.writes() - writes;
    assert!((36..=41).contains(&renewals), "{renewals} writes in a minute");
    assert_eq!(*copy.cancelled.borrow(), None);
}

#[tokio::test(start_paused = true)]
async fn without_renewals_the_gate_closes_and_then_the_copy_is_cut_off() {
    let harness = Harness::new().await;
    let remote = harness.running("r", copy_of(FenceMethod::Lease)).await;
    let local = harness.running("l", copy_of(FenceMethod::Local)).await;
    sleep(Duration::from_secs(30)).await;
    harness.store.cut(true);
    let end = Instant::now() + harness.handle.lease_left();
    sleep(Duration::from_secs(6)).await;
    assert!(!remote.gate.is_open_at(harness.clock.boot_time()), "nothing extends it");
    assert_eq!(*remote.cancelled.borrow(), None);
    let mut cancelled = remote.cancelled.subscribe();
    cancelled.wait_for(Option::is_some).await.unwrap();
    let late = Instant::now().saturating_duration_since(end);
    assert!(late <= Duration::from_millis(10), "{late:?} after the end of the lease");
    assert_eq!((*remote.cancelled.borrow(), *remote.cuts.lock().unwrap() > 0), (Some(StopReason::LeaseLost), true));
    assert_eq!((*local.cancelled.borrow(), *local.cuts.lock().unwrap()), (None, 0), "its lock protects it");

    // Only the connection was lost: the registration stays, and the task is returned without a failure.
    harness.store.cut(false);
    let record = harness.until("r", TaskState::Pending).await;
    assert_eq!((record.failures, record.attempts[0].outcome.as_deref()), (0, Some("ERunnerInterrupt")));
    assert!(record.attempts[0].quiet && harness.is_free("r"));
    local.end.send_replace(Some(End::Succeeded));
    harness.until("l", TaskState::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn a_short_outage_pauses_nothing() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Lease)).await;
    for _ in 0..10 {
        sleep(Duration::from_secs(2)).await;
        harness.store.cut(true);
        sleep(Duration::from_secs(3)).await;
        assert!(harness.handle.lease_left() > Duration::from_millis(2500), "the gate has not closed");
        harness.store.cut(false);
    }
    assert_eq!(*copy.cancelled.borrow(), None);
    copy.end.send_replace(Some(End::Succeeded));
    harness.until("t", TaskState::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_session_ends_only_the_copies_under_its_lease() {
    let harness = Harness::new().await;
    let remote = harness.running("r", copy_of(FenceMethod::Lease)).await;
    let local = harness.running("l", copy_of(FenceMethod::Local)).await;
    let gate = Arc::clone(&remote.gate);
    harness.store.expire();
    remote.cancelled.subscribe().wait_for(Option::is_some).await.unwrap();
    assert_eq!((*remote.cancelled.borrow(), gate.is_open_at(Duration::ZERO)), (Some(StopReason::LeaseLost), false));
    harness.revoke("r");
    harness.write_event("l", TaskEvent::RunnerLost);
    let lost = harness.record("r");
    while harness.registration().is_none() {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(harness.registration().unwrap().incarnation, Incarnation("life".into()), "the same incarnation");
    local.end.send_replace(Some(End::Succeeded));
    sleep(Duration::from_secs(5)).await;
    assert_eq!(harness.record("l").state, TaskState::Lost, "its dispatcher has not taken it back yet");
    harness.write_event("l", TaskEvent::RunnerReturned);
    harness.until("l", TaskState::Succeeded).await;
    assert_eq!(harness.record("r").op, lost.op, "nothing was written about a task that is not ours");
    assert_eq!((gate.is_open_at(Duration::ZERO), *local.cuts.lock().unwrap()), (false, 0));
    sleep(Duration::from_secs(1)).await;
    assert!(harness.handle.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_local_copy_stops_when_its_task_has_another_holder() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Local)).await;
    harness.store.expire();
    harness.write_event("t", TaskEvent::RunnerLost);
    // An operator has confirmed that the node is off.
    let path = paths::claim("test:t");
    let claim = harness.store.get(&path).unwrap();
    let free = Claim { holder: None, ..Claim::decode(&claim.data).unwrap() };
    harness.store.write(&[Op::Set { path, data: free.encode(), version: claim.stat.version }]);
    harness.write_event("t", TaskEvent::Fenced(state_machine::FenceProof::Operator));
    let given = harness.record("t");
    copy.cancelled.subscribe().wait_for(Option::is_some).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    assert_eq!(harness.record("t").op, given.op);
    assert!(harness.handle.held().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_refused_checkpoint_does_not_cost_the_lease() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Lease)).await;
    for round in 1..=60_u64 {
        *copy.durable.lock().unwrap() = round;
        harness.write_event("t", TaskEvent::ChangesRequested(TaskChanges::limit(Some(round))));
        sleep(Duration::from_millis(500)).await;
        assert!(harness.handle.lease_left() > Duration::from_secs(6));
    }
    assert!(harness.record("t").progress.durable >= 40, "{:?}", harness.record("t").progress);
    assert!(*copy.limit.lock().unwrap() > Some(40), "the change that refused it was applied");
}

#[tokio::test(start_paused = true)]
async fn a_leader_has_a_lease_without_copies() {
    let harness = Harness::new().await;
    harness.handle.set_leading(true);
    sleep(Duration::from_secs(60)).await;
    assert!(harness.handle.lease_left() > Duration::from_secs(6));
    harness.handle.set_leading(false);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(harness.handle.lease_left(), Duration::ZERO);
}
