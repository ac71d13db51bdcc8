//! Tests how a runner returns its tasks when it stops.

use super::*;
use blockhaul_engine::job::Reason;

#[tokio::test(start_paused = true)]
async fn a_runner_that_stops_gives_everything_back_tells_it_and_is_gone() {
    let stage = Stage::new().await;
    let began = Instant::now();
    let copies = [stage.running("l", copy_of(Fence::Local)).await, stage.running("r", copy_of(Fence::Lease)).await];
    *copies[0].durable.lock().unwrap() = 60;
    stage.submit("n", noop(60_000));
    stage.handle.assign(stage.grant("n", "life")).await.unwrap();
    stage.until("n", TaskState::Running).await;
    let handle = stage.handle.clone();
    let (stage, stopped) = stage.stop().await;
    assert_eq!(stopped, Stopped { left_behind: vec![] });
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    for task in ["l", "r", "n"] {
        let record = stage.record(task);
        assert_eq!((record.state, record.failures, &record.holder), (TaskState::Pending, 0, &None), "{task}");
        assert_eq!(record.attempts[0].outcome.as_deref(), Some("ERunnerInterrupt"));
        assert!(record.attempts[0].quiet && stage.is_free(task));
        let told = stage.told.changed.lock().unwrap();
        assert_eq!(told.iter().filter(|(_, changed)| *changed == id(task)).count(), 2, "{task}: begun, given back");
    }
    assert_eq!(stage.record("l").map, copies::bytes(60));
    assert!(stage.registration().is_none());
    assert_eq!(*stage.copies.forgotten.lock().unwrap(), [id("r")], "other nodes continue the task");
    stage.submit("x", noop(1));
    let answer = handle.assign(stage.grant("x", "life")).await;
    assert!(matches!(answer, Ok(AssignResponse::Refused { .. })), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn it_says_so_before_it_stops_anything() {
    let stage = Stage::new().await;
    let copy = stage.running("t", copy_of(Fence::Local)).await;
    let store = stage.store.clone();
    let marked = tokio::spawn(async move {
        copy.cancelled.subscribe().wait_for(Option::is_some).await.unwrap();
        Registration::decode(&store.get(&paths::runner("n1")).unwrap().data).unwrap().stopping
    });
    stage.stop().await;
    assert!(marked.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_copy_whose_last_block_was_durable_is_done() {
    let stage = Stage::new().await;
    let copy = stage.running("t", copy_of(Fence::Local)).await;
    copy.end.send_replace(Some(End::Succeeded));
    let (stage, stopped) = stage.stop().await;
    assert_eq!(stopped.left_behind, []);
    assert_eq!(stage.record("t").state, TaskState::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_does_not_come_to_rest_is_never_given_back() {
    let stage = Stage::new().await;
    let copy = stage.running("t", copy_of(Fence::Local)).await;
    copy.rests.send_replace(false);
    let began = Instant::now();
    let (stage, stopped) = stage.stop().await;
    assert_eq!(stopped.left_behind, [id("t")]);
    assert!(began.elapsed() < Duration::from_secs(14), "{:?}", began.elapsed());
    let record = stage.record("t");
    assert_eq!((record.state, record.holder), (TaskState::Running, Some(me("life"))));
    assert!(stage.registration().is_some_and(|registration| registration.stopping), "it is left to expire");
    assert!(!stage.is_free("t"));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_comes_to_rest_later_ends_as_it_was_asked_to() {
    let stage = Stage::new().await;
    let copy = stage.running("t", copy_of(Fence::Local)).await;
    copy.rests.send_replace(false);
    stage.happen("t", TaskEvent::CancelRequested);
    stage.handle.notify(Epoch(1), &id("t")).await.unwrap();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(stage.record("t").state, TaskState::Cancelling, "the task is not returned before it has drained");
    assert!(!stage.is_free("t"));
    copy.rests.send_replace(true);
    stage.until("t", TaskState::Cancelled).await;
}

#[tokio::test(start_paused = true)]
async fn of_a_server_late_requests_are_over_after_a_while() {
    let stage = Stage::new().await;
    let copy = stage.running("t", copy_of(Fence::Lease)).await;
    copy.rests.send_replace(false);
    stage.happen("t", TaskEvent::CancelRequested);
    stage.handle.notify(Epoch(1), &id("t")).await.unwrap();
    sleep(Duration::from_secs(29)).await;
    assert_eq!(stage.record("t").state, TaskState::Cancelling);
    stage.until("t", TaskState::Cancelled).await;
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_in_time_whoever_does_not_answer() {
    let stage = Stage::new().await;
    stage.running("t", copy_of(Fence::Local)).await;
    *stage.told.is_deaf.lock().unwrap() = true;
    stage.store.cut(true);
    let began = Instant::now();
    let (stage, stopped) = stage.stop().await;
    assert_eq!(stopped.left_behind, [id("t")]);
    assert!(began.elapsed() <= Duration::from_secs(12), "{:?}", began.elapsed());
    assert_eq!(stage.record("t").state, TaskState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_was_accepted_a_moment_ago_is_given_back_as_well() {
    let stage = Stage::new().await;
    stage.submit("t", copy_of(Fence::Lease));
    stage.handle.assign(stage.grant("t", "life")).await.unwrap();
    let (stage, stopped) = stage.stop().await;
    assert_eq!(stopped.left_behind, []);
    let record = stage.record("t");
    assert_eq!((record.state, record.failures, record.attempts[0].epoch), (TaskState::Pending, 0, None));
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_runner_gives_back_and_goes_on() {
    let stage = Stage::new().await;
    let copy = stage.running("t", copy_of(Fence::Local)).await;
    stage.handle.interrupt(Epoch(1)).await.unwrap();
    stage.handle.interrupt(Epoch(1)).await.unwrap();
    let record = stage.until("t", TaskState::Pending).await;
    assert_eq!((record.failures, *copy.cancelled.borrow()), (0, Some(Reason::RunnerInterrupt)));
    sleep(Duration::from_secs(1)).await;
    assert!(!stage.registration().unwrap().stopping);
    stage.submit("n", noop(1));
    assert_eq!(stage.handle.assign(stage.grant("n", "life")).await, Ok(AssignResponse::Accepted));
    stage.until("n", TaskState::Succeeded).await;
    let (stage, stopped) = stage.stop().await;
    assert_eq!((stopped.left_behind.len(), stage.registration()), (0, None));
    stage.keeper.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_leaves_gives_back_is_gone_and_comes_back_in_the_same_life() {
    let stage = Stage::new().await;
    let copy = stage.running("t", copy_of(Fence::Lease)).await;
    stage.handle.leave().await;
    let record = stage.record("t");
    assert_eq!((record.state, record.failures), (TaskState::Pending, 0));
    assert_eq!(*copy.cancelled.borrow(), Some(Reason::RunnerInterrupt));
    assert_eq!(stage.registration(), None);
    sleep(Duration::from_secs(60)).await;
    assert!(
        stage.registration().is_none() && !stage.handle.is_registered(),
        "only a request of the node brings it back"
    );
    stage.submit("n", noop(1));
    let answer = stage.handle.assign(stage.grant("n", "life")).await.unwrap();
    assert!(
        matches!(answer, AssignResponse::Refused { code: blockhaul_engine::error::Code::RunnerInterrupt, .. }),
        "{answer:?}"
    );
    stage.handle.come_back();
    while !stage.handle.is_registered() {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(stage.registration().unwrap().incarnation, Incarnation("life".into()));
    stage.submit("m", noop(1));
    assert_eq!(stage.handle.assign(stage.grant("m", "life")).await, Ok(AssignResponse::Accepted));
    stage.until("m", TaskState::Succeeded).await;
    let (stage, stopped) = stage.stop().await;
    assert_eq!((stopped.left_behind.len(), stage.registration()), (0, None));
    stage.keeper.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_is_away_stops_without_showing_itself() {
    let stage = Stage::new().await;
    stage.handle.leave().await;
    let (stage, stopped) = stage.stop().await;
    assert_eq!((stopped.left_behind.len(), stage.registration()), (0, None));
    stage.keeper.close().await;
}

#[tokio::test(start_paused = true)]
async fn leaving_and_coming_back_at_once_leaves_it_registered() {
    let stage = Stage::new().await;
    for _ in 0..20 {
        let handle = stage.handle.clone();
        let leaving = tokio::spawn(async move { handle.leave().await });
        sleep(Duration::from_millis(fastrand::u64(0..5))).await;
        stage.handle.come_back();
        leaving.await.unwrap();
    }
    while !stage.handle.is_registered() {
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!stage.registration().unwrap().stopping);
    stage.submit("n", noop(1));
    assert_eq!(stage.handle.assign(stage.grant("n", "life")).await, Ok(AssignResponse::Accepted));
    stage.until("n", TaskState::Succeeded).await;
    stage.keeper.close().await;
}

#[tokio::test(start_paused = true)]
async fn more_slots_are_registered_and_used_at_once() {
    let stage = Stage::new().await;
    stage.handle.set_slots(1);
    while stage.registration().unwrap().slots != 1 {
        sleep(Duration::from_millis(5)).await;
    }
    stage.submit("a", noop(50));
    stage.submit("b", noop(50));
    assert_eq!(stage.handle.assign(stage.grant("a", "life")).await, Ok(AssignResponse::Accepted));
    let full = stage.handle.assign(stage.grant("b", "life")).await.unwrap();
    assert!(
        matches!(full, AssignResponse::Refused { code: blockhaul_engine::error::Code::Overloaded, .. }),
        "{full:?}"
    );
    stage.keeper.close().await;
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_said_in_the_registration_is_taken_back() {
    let stage = Stage::new().await;
    stage.running("t", copy_of(Fence::Local)).await;
    let store = stage.store.clone();
    // The write of `stopping` is committed, its answer is lost, and the connection is back only after the interrupt.
    let cutting = tokio::spawn(async move {
        while !Registration::decode(&store.get(&paths::runner("n1")).unwrap().data).unwrap().stopping {
            sleep(Duration::from_millis(1)).await;
        }
        store.cut(true);
        sleep(Duration::from_millis(500)).await;
        store.cut(false);
    });
    stage.store.lose_replies(1);
    stage.handle.interrupt(Epoch(1)).await.unwrap();
    cutting.await.unwrap();
    stage.until("t", TaskState::Pending).await;
    sleep(Duration::from_secs(1)).await;
    assert!(!stage.registration().unwrap().stopping, "the runner accepts tasks again");
    stage.submit("n", noop(1));
    assert_eq!(stage.handle.assign(stage.grant("n", "life")).await, Ok(AssignResponse::Accepted));
}
