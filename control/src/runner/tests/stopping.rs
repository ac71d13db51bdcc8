//! Tests how a runner returns its tasks when it stops.

use super::*;
use blockhaul_engine::job::StopReason;

#[tokio::test(start_paused = true)]
async fn a_runner_that_stops_returns_its_tasks_notifies_and_deregisters() {
    let harness = Harness::new().await;
    let began = Instant::now();
    let both = [
        harness.running("l", copy_of(FenceMethod::Local)).await,
        harness.running("r", copy_of(FenceMethod::Lease)).await,
    ];
    *both[0].durable.lock().unwrap() = 60;
    harness.submit("n", noop(60_000));
    harness.handle.assign(harness.grant("n", "life")).await.unwrap();
    harness.until("n", TaskState::Running).await;
    let handle = harness.handle.clone();
    let (harness, stopped) = harness.stop().await;
    assert_eq!(stopped, Stopped { left_behind: vec![] });
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    for task in ["l", "r", "n"] {
        let record = harness.record(task);
        assert_eq!((record.state, record.failures, &record.holder), (TaskState::Pending, 0, &None), "{task}");
        assert_eq!(record.attempts[0].outcome.as_deref(), Some("ERunnerInterrupt"));
        assert!(record.attempts[0].quiet && harness.is_free(task));
        let hints = harness.leader.changed.lock().unwrap();
        assert_eq!(hints.iter().filter(|(_, changed)| *changed == id(task)).count(), 2, "{task}: begun, returned");
    }
    assert_eq!(harness.record("l").map, executor::bytes(60));
    assert!(harness.registration().is_none());
    assert_eq!(*harness.executor.forgotten.lock().unwrap(), [id("r")], "other nodes continue the task");
    harness.submit("x", noop(1));
    let answer = handle.assign(harness.grant("x", "life")).await;
    assert!(matches!(answer, Ok(AssignResponse::Refused { .. })), "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn the_registration_is_marked_before_any_copy_stops() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Local)).await;
    let store = harness.store.clone();
    let marked = tokio::spawn(async move {
        copy.cancelled.subscribe().wait_for(Option::is_some).await.unwrap();
        Registration::decode(&store.get(&paths::runner("n1")).unwrap().data).unwrap().stopping
    });
    harness.stop().await;
    assert!(marked.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_copy_whose_last_block_was_durable_is_done() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Local)).await;
    copy.end.send_replace(Some(End::Succeeded));
    let (harness, stopped) = harness.stop().await;
    assert_eq!(stopped.left_behind, []);
    assert_eq!(harness.record("t").state, TaskState::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_does_not_drain_is_never_returned() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Local)).await;
    copy.drains.send_replace(false);
    let began = Instant::now();
    let (harness, stopped) = harness.stop().await;
    assert_eq!(stopped.left_behind, [id("t")]);
    assert!(began.elapsed() < Duration::from_secs(14), "{:?}", began.elapsed());
    let record = harness.record("t");
    assert_eq!((record.state, record.holder), (TaskState::Running, Some(holder("life"))));
    assert!(harness.registration().is_some_and(|registration| registration.stopping), "it is left to expire");
    assert!(!harness.is_free("t"));
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_drains_late_ends_as_requested() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Local)).await;
    copy.drains.send_replace(false);
    harness.write_event("t", TaskEvent::CancelRequested);
    harness.handle.notify(Epoch(1), &id("t")).await.unwrap();
    sleep(Duration::from_secs(600)).await;
    assert_eq!(harness.record("t").state, TaskState::Cancelling, "the task is not returned before it has drained");
    assert!(!harness.is_free("t"));
    copy.drains.send_replace(true);
    harness.until("t", TaskState::Cancelled).await;
}

#[tokio::test(start_paused = true)]
async fn late_requests_to_a_server_count_as_drained_after_a_while() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Lease)).await;
    copy.drains.send_replace(false);
    harness.write_event("t", TaskEvent::CancelRequested);
    harness.handle.notify(Epoch(1), &id("t")).await.unwrap();
    sleep(Duration::from_secs(29)).await;
    assert_eq!(harness.record("t").state, TaskState::Cancelling);
    harness.until("t", TaskState::Cancelled).await;
}

#[tokio::test(start_paused = true)]
async fn a_hook_of_which_something_survives_keeps_its_task_and_says_why() {
    let harness = Harness::new().await;
    let hook = harness.running("t", TaskSpec::Run(RunTask::example("h"))).await;
    hook.drains.send_replace(false);
    harness.write_event("t", TaskEvent::CancelRequested);
    harness.handle.notify(Epoch(1), &id("t")).await.unwrap();
    sleep(Duration::from_secs(600)).await;
    let record = harness.record("t");
    assert_eq!((record.state, record.reason.as_str()), (TaskState::Cancelling, "process 7 survives"));
    assert!(!harness.is_free("t"), "it keeps its slot, whatever its lease");
    hook.drains.send_replace(true);
    harness.until("t", TaskState::Cancelled).await;
    assert_eq!(harness.record("t").reason, "cancelled by user");
}

#[tokio::test(start_paused = true)]
async fn a_stop_ends_in_time_without_answers() {
    let harness = Harness::new().await;
    harness.running("t", copy_of(FenceMethod::Local)).await;
    *harness.leader.is_silent.lock().unwrap() = true;
    harness.store.cut(true);
    let began = Instant::now();
    let (harness, stopped) = harness.stop().await;
    assert_eq!(stopped.left_behind, [id("t")]);
    assert!(began.elapsed() <= Duration::from_secs(12), "{:?}", began.elapsed());
    assert_eq!(harness.record("t").state, TaskState::Running);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_was_accepted_just_now_is_returned_too() {
    let harness = Harness::new().await;
    harness.submit("t", copy_of(FenceMethod::Lease));
    harness.handle.assign(harness.grant("t", "life")).await.unwrap();
    let (harness, stopped) = harness.stop().await;
    assert_eq!(stopped.left_behind, []);
    let record = harness.record("t");
    assert_eq!((record.state, record.failures, record.attempts[0].epoch), (TaskState::Pending, 0, None));
}

#[tokio::test(start_paused = true)]
async fn an_interrupted_runner_returns_its_tasks_and_continues() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Local)).await;
    harness.handle.interrupt(Epoch(1)).await.unwrap();
    harness.handle.interrupt(Epoch(1)).await.unwrap();
    let record = harness.until("t", TaskState::Pending).await;
    assert_eq!((record.failures, *copy.cancelled.borrow()), (0, Some(StopReason::RunnerInterrupt)));
    sleep(Duration::from_secs(1)).await;
    assert!(!harness.registration().unwrap().stopping);
    harness.submit("n", noop(1));
    assert_eq!(harness.handle.assign(harness.grant("n", "life")).await, Ok(AssignResponse::Accepted));
    harness.until("n", TaskState::Succeeded).await;
    let (harness, stopped) = harness.stop().await;
    assert_eq!((stopped.left_behind.len(), harness.registration()), (0, None));
    harness.keeper.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_runner_returns_its_tasks_deregisters_and_registers_again() {
    let harness = Harness::new().await;
    let copy = harness.running("t", copy_of(FenceMethod::Lease)).await;
    harness.handle.leave().await;
    let record = harness.record("t");
    assert_eq!((record.state, record.failures), (TaskState::Pending, 0));
    assert_eq!(*copy.cancelled.borrow(), Some(StopReason::RunnerInterrupt));
    assert_eq!(harness.registration(), None);
    sleep(Duration::from_secs(60)).await;
    assert!(
        harness.registration().is_none() && !harness.handle.is_registered(),
        "only a request of the node brings it back"
    );
    harness.submit("n", noop(1));
    let answer = harness.handle.assign(harness.grant("n", "life")).await.unwrap();
    assert!(
        matches!(answer, AssignResponse::Refused { code: blockhaul_engine::error::Code::RunnerInterrupt, .. }),
        "{answer:?}"
    );
    harness.handle.come_back();
    while !harness.handle.is_registered() {
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(harness.registration().unwrap().incarnation, Incarnation("life".into()));
    harness.submit("m", noop(1));
    assert_eq!(harness.handle.assign(harness.grant("m", "life")).await, Ok(AssignResponse::Accepted));
    harness.until("m", TaskState::Succeeded).await;
    let (harness, stopped) = harness.stop().await;
    assert_eq!((stopped.left_behind.len(), harness.registration()), (0, None));
    harness.keeper.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_deregistered_runner_stops_without_registering() {
    let harness = Harness::new().await;
    harness.handle.leave().await;
    let (harness, stopped) = harness.stop().await;
    assert_eq!((stopped.left_behind.len(), harness.registration()), (0, None));
    harness.keeper.close().await;
}

#[tokio::test(start_paused = true)]
async fn leaving_and_coming_back_at_once_keeps_the_runner_registered() {
    let harness = Harness::new().await;
    for _ in 0..20 {
        let handle = harness.handle.clone();
        let leaving = tokio::spawn(async move { handle.leave().await });
        sleep(Duration::from_millis(fastrand::u64(0..5))).await;
        harness.handle.come_back();
        leaving.await.unwrap();
    }
    while !harness.handle.is_registered() {
        sleep(Duration::from_millis(5)).await;
    }
    assert!(!harness.registration().unwrap().stopping);
    harness.submit("n", noop(1));
    assert_eq!(harness.handle.assign(harness.grant("n", "life")).await, Ok(AssignResponse::Accepted));
    harness.until("n", TaskState::Succeeded).await;
    harness.keeper.close().await;
}

#[tokio::test(start_paused = true)]
async fn more_slots_are_registered_and_used_at_once() {
    let harness = Harness::new().await;
    harness.handle.set_slots(1);
    while harness.registration().unwrap().slots != 1 {
        sleep(Duration::from_millis(5)).await;
    }
    harness.submit("a", noop(50));
    harness.submit("b", noop(50));
    assert_eq!(harness.handle.assign(harness.grant("a", "life")).await, Ok(AssignResponse::Accepted));
    let full = harness.handle.assign(harness.grant("b", "life")).await.unwrap();
    assert!(
        matches!(full, AssignResponse::Refused { code: blockhaul_engine::error::Code::Overloaded, .. }),
        "{full:?}"
    );
    harness.keeper.close().await;
}

#[tokio::test(start_paused = true)]
async fn an_update_of_unknown_outcome_is_undone() {
    let harness = Harness::new().await;
    harness.running("t", copy_of(FenceMethod::Local)).await;
    let store = harness.store.clone();
    // The write of `stopping` is committed, its answer is lost, and the connection is back only after the interrupt.
    let cutting = tokio::spawn(async move {
        while !Registration::decode(&store.get(&paths::runner("n1")).unwrap().data).unwrap().stopping {
            sleep(Duration::from_millis(1)).await;
        }
        store.cut(true);
        sleep(Duration::from_millis(500)).await;
        store.cut(false);
    });
    harness.store.lose_replies(1);
    harness.handle.interrupt(Epoch(1)).await.unwrap();
    cutting.await.unwrap();
    harness.until("t", TaskState::Pending).await;
    sleep(Duration::from_secs(1)).await;
    assert!(!harness.registration().unwrap().stopping, "the runner accepts tasks again");
    harness.submit("n", noop(1));
    assert_eq!(harness.handle.assign(harness.grant("n", "life")).await, Ok(AssignResponse::Accepted));
}
