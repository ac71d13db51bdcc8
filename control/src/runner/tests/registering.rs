//! Tests how a node registers among the runners.

use super::*;
use crate::model::Abilities;

fn foreign(incarnation: &str) -> Registration {
    Registration {
        node: node(),
        incarnation: Incarnation(incarnation.into()),
        boot_id: "b".into(),
        address: "elsewhere:1".into(),
        slots: 1,
        labels: BTreeMap::new(),
        allow_paths: vec![],
        allow_nbd: vec![],
        build: "1".into(),
        stopping: false,
        data: None,
        restarts: 0,
        last_end: None,
        op: OpId::fresh(),
    }
}

/// Creates a store with a registration of this node by another session.
async fn registered_by(incarnation: &str) -> Store {
    let store = Store::default();
    let session = crate::coord::CoordClient::open(&store).await.unwrap();
    let data = foreign(incarnation).encode();
    session.multi(vec![Op::Create { path: paths::runner("n1"), data, mode: CreateMode::Ephemeral }]).await.unwrap();
    store
}

#[tokio::test(start_paused = true)]
async fn an_incarnation_is_remembered_before_it_is_registered() {
    let harness = Harness::new().await;
    let registration = harness.registration().unwrap();
    assert_eq!((registration.slots, registration.stopping, &*registration.address), (4, false, "n1:1"));
    assert_eq!(harness.memory.incarnations().unwrap(), [registration.incarnation]);
}

#[tokio::test(start_paused = true)]
async fn a_process_announces_what_it_can_do_with_its_registration_and_again_after_a_loss() {
    let harness = Harness::new().await;
    let announced = || harness.store.get(&paths::abilities("n1")).map(|node| Abilities::decode(&node.data).unwrap());
    let own = Abilities::of_this_program(harness.registration().unwrap().incarnation);
    assert_eq!(announced(), Some(own.clone()));
    harness.store.expire();
    sleep(Duration::from_secs(5)).await;
    assert!(harness.registration().is_some());
    assert_eq!(announced(), Some(own));
}

#[tokio::test(start_paused = true)]
async fn the_registration_of_an_earlier_incarnation_is_replaced_at_once() {
    let store = registered_by("before").await;
    let memory = Arc::new(Memory::default());
    memory.remember(&Incarnation("before".into())).unwrap();
    let began = Instant::now();
    let harness = Harness::registered(store, memory, "life").await;
    assert!(began.elapsed() < Duration::from_millis(100));
    assert_eq!(harness.registration().unwrap().incarnation, Incarnation("life".into()));
}

#[tokio::test(start_paused = true)]
async fn another_process_of_the_same_name_is_left_alone_until_it_is_gone() {
    let store = registered_by("stranger").await;
    let harness = Harness::start(store, Arc::default(), "life");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(harness.registration().unwrap().incarnation, Incarnation("stranger".into()));
    assert!(!harness.handle.is_registered());
    let told = || harness.store.get(&paths::refused("n1", "life"));
    assert_eq!(Registration::decode(&told().unwrap().data).unwrap().address, "n1:1");
    harness.submit("t", noop(1));
    let answer = harness.handle.assign(harness.grant("t", "life")).await;
    assert!(matches!(answer, Ok(AssignResponse::Refused { .. })), "{answer:?}");
    let version = harness.store.get(&paths::runner("n1")).unwrap().stat.version;
    harness.store.write(&[Op::Delete { path: paths::runner("n1"), version }]);
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(harness.registration().unwrap().incarnation, Incarnation("life".into()));
    assert!(told().is_none(), "it is refused no longer");
}

#[tokio::test(start_paused = true)]
async fn a_deleted_registration_is_made_again() {
    let harness = Harness::new().await;
    let remote = harness.running("r", copy_of(FenceMethod::Lease)).await;
    let version = harness.store.get(&paths::runner("n1")).unwrap().stat.version;
    harness.store.write(&[Op::Delete { path: paths::runner("n1"), version }]);
    sleep(Duration::from_millis(100)).await;
    assert!(harness.registration().is_some());
    assert!(remote.cancelled.borrow().is_some(), "the copy under the old lease was cancelled");
    let record = harness.until("r", TaskState::Pending).await;
    assert_eq!(record.failures, 0, "no dispatcher has taken the task: the runner has returned it");
}

#[tokio::test(start_paused = true)]
async fn lost_replies_while_registering_leave_one_registration() {
    for lost in 1..=3 {
        let store = Store::default();
        store.lose_replies(lost);
        let harness = Harness::registered(store, Arc::default(), "life").await;
        assert!(harness.registration().is_some(), "{lost} replies lost");
    }
}

/// An update of an earlier process may be late on its way. Every registration begins at the same version, so it is applied.
#[tokio::test(start_paused = true)]
async fn a_late_update_of_an_earlier_process_is_written_over() {
    let harness = Harness::new().await;
    let version = harness.store.get(&paths::runner("n1")).unwrap().stat.version;
    let data = Registration { stopping: true, ..foreign("earlier") }.encode();
    harness.store.write(&[Op::Set { path: paths::runner("n1"), data, version }]);
    sleep(Duration::from_secs(1)).await;
    let found = harness.registration().unwrap();
    assert_eq!((found.incarnation, found.stopping), (Incarnation("life".into()), false));
}

#[tokio::test(start_paused = true)]
async fn assignments_are_refused_while_there_is_no_connection() {
    let harness = Harness::new().await;
    harness.submit("t", noop(1));
    let assignment = harness.grant("t", "life");
    harness.store.cut(true);
    assert!(matches!(harness.handle.assign(assignment.clone()).await, Ok(AssignResponse::Refused { .. })));
    harness.store.cut(false);
    assert_eq!(
        harness.handle.assign(assignment).await,
        Ok(AssignResponse::Accepted),
        "the assignment was not remembered as refused"
    );
    harness.until("t", TaskState::Succeeded).await;
}
