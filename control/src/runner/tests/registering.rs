//! Tests how a node registers among the runners.

use super::*;

fn foreign(life: &str) -> Registration {
    Registration {
        node: node(),
        incarnation: Incarnation(life.into()),
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
        op: OpId::fresh(),
    }
}

/// Creates a store with a registration of this node by another session.
async fn taken_by(life: &str) -> Store {
    let store = Store::default();
    let session = crate::coord::CoordClient::open(&store).await.unwrap();
    let data = foreign(life).encode();
    session.multi(vec![Op::Create { path: paths::runner("n1"), data, mode: CreateMode::Ephemeral }]).await.unwrap();
    store
}

#[tokio::test(start_paused = true)]
async fn a_life_is_remembered_before_it_is_registered_and_says_what_it_is() {
    let stage = Stage::new().await;
    let registration = stage.registration().unwrap();
    assert_eq!((registration.slots, registration.stopping, &*registration.address), (4, false, "n1:1"));
    assert_eq!(stage.memory.incarnations().unwrap(), [registration.incarnation]);
}

#[tokio::test(start_paused = true)]
async fn the_registration_of_an_earlier_life_is_replaced_at_once() {
    let store = taken_by("before").await;
    let memory = Arc::new(Memory::default());
    memory.remember(&Incarnation("before".into())).unwrap();
    let began = Instant::now();
    let stage = Stage::with(store, memory, "life").await;
    assert!(began.elapsed() < Duration::from_millis(100));
    assert_eq!(stage.registration().unwrap().incarnation, Incarnation("life".into()));
}

#[tokio::test(start_paused = true)]
async fn another_process_of_the_same_name_is_left_alone_until_it_is_gone() {
    let store = taken_by("stranger").await;
    let stage = Stage::raise(store, Arc::default(), "life");
    sleep(Duration::from_secs(30)).await;
    assert_eq!(stage.registration().unwrap().incarnation, Incarnation("stranger".into()));
    assert!(!stage.handle.is_registered());
    stage.submit("t", noop(1));
    let answer = stage.handle.assign(stage.grant("t", "life")).await;
    assert!(matches!(answer, Ok(AssignResponse::Refused { .. })), "{answer:?}");
    let version = stage.store.get(&paths::runner("n1")).unwrap().stat.version;
    stage.store.write(&[Op::Delete { path: paths::runner("n1"), version }]);
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(stage.registration().unwrap().incarnation, Incarnation("life".into()));
}

#[tokio::test(start_paused = true)]
async fn a_registration_that_somebody_removes_is_made_anew() {
    let stage = Stage::new().await;
    let remote = stage.running("r", copy_of(Fence::Lease)).await;
    let version = stage.store.get(&paths::runner("n1")).unwrap().stat.version;
    stage.store.write(&[Op::Delete { path: paths::runner("n1"), version }]);
    sleep(Duration::from_millis(100)).await;
    assert!(stage.registration().is_some());
    assert!(remote.cancelled.borrow().is_some(), "the copy under the old lease was cancelled");
    let record = stage.until("r", TaskState::Pending).await;
    assert_eq!(record.failures, 0, "no dispatcher has taken the task: the runner has returned it");
}

#[tokio::test(start_paused = true)]
async fn lost_replies_while_registering_leave_one_registration() {
    for lost in 1..=3 {
        let store = Store::default();
        store.lose_replies(lost);
        let stage = Stage::with(store, Arc::default(), "life").await;
        assert!(stage.registration().is_some(), "{lost} replies lost");
    }
}

#[tokio::test(start_paused = true)]
async fn assignments_are_refused_while_there_is_no_connection() {
    let stage = Stage::new().await;
    stage.submit("t", noop(1));
    let assignment = stage.grant("t", "life");
    stage.store.cut(true);
    assert!(matches!(stage.handle.assign(assignment.clone()).await, Ok(AssignResponse::Refused { .. })));
    stage.store.cut(false);
    assert_eq!(
        stage.handle.assign(assignment).await,
        Ok(AssignResponse::Accepted),
        "the assignment was not remembered as refused"
    );
    stage.until("t", TaskState::Succeeded).await;
}
