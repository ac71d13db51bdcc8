//! Tests what happens to tasks when runners, leaders and answers are lost.

use super::stage::*;
use crate::coord::Op;
use crate::coord::paths;
use crate::coord::sim::FaultRates;
use crate::dispatcher::event::{Event, Purpose};
use crate::dispatcher::write::Written;
use crate::dispatcher::{Config, Ending};
use crate::model::state_machine::{Checkpoint, TaskEvent, next};
use crate::model::{
    CopyTask, Epoch, Failure, Fence, Holder, Incarnation, NodeId, Progress, Record, Registration, TaskChange, TaskId,
    TaskRecord, TaskSpec, TaskState,
};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep};

fn id(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}

fn done() -> TaskEvent {
    TaskEvent::Succeeded { checkpoint: Checkpoint::default(), report: None }
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_waited_out_and_success_waits_for_quiet() {
    let stage = Stage::new(21, Config::default()).await;
    let first = stage.runner("n1", "a", 1, Manner::Willing).await;
    stage.leader.submit(order("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    stage.begin(&first, "x").await;
    let second = stage.runner("n2", "a", 1, Manner::Willing).await;
    sleep(Duration::from_secs(1)).await;
    let lost = Instant::now();
    stage.lose(&first).await;
    let record = stage.until("x", TaskState::Lost).await;
    assert_eq!((record.failures, record.holder, record.attempts[0].quiet), (1, None, false));
    assert_eq!(record.attempts[0].outcome.as_deref(), Some("ELeaseLost"));
    stage.begin(&second, "x").await;
    assert!(lost.elapsed() >= Duration::from_secs(2), "{:?}", lost.elapsed());
    let record = stage.until("x", TaskState::Running).await;
    assert!(record.attempts[1].epoch > record.attempts[0].epoch);
    assert!(!stage.step(&second, "x", done()).await, "the first attempt is not quiet");
    assert!(stage.step(&second, "x", TaskEvent::Written(Checkpoint::default())).await);
    stage.world.heard();
    while !stage.stored("x").is_quiet() {
        sleep(Duration::from_millis(100)).await;
    }
    assert!((30..34).contains(&lost.elapsed().as_secs()), "{:?}", lost.elapsed());
    sleep(Duration::from_millis(100)).await;
    assert_eq!(stage.world.heard(), ["n2 nudge x"]);
    assert!(stage.step(&second, "x", done()).await);
    assert_eq!(stage.claims(), []);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_ends_keeps_its_destination_until_a_lost_attempt_is_quiet() {
    let stage = Stage::new(22, Config::default()).await;
    let first = stage.runner("n1", "a", 1, Manner::Willing).await;
    stage.leader.submit(order("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    stage.begin(&first, "x").await;
    sleep(Duration::from_secs(1)).await;
    let lost = Instant::now();
    stage.lose(&first).await;
    stage.until("x", TaskState::Lost).await;
    stage.leader.change(&id("x"), TaskChange::Cancel).await.unwrap();
    stage.until("x", TaskState::Cancelled).await;
    stage.runner("n2", "a", 1, Manner::Willing).await;
    stage.leader.submit(order("y", TaskSpec::Copy(copy("nbd://h/c", "nbd://h/b")))).await.unwrap();
    stage.until("y", TaskState::Assigned).await;
    assert!(lost.elapsed() >= Duration::from_secs(30), "{:?}", lost.elapsed());
    assert_eq!(stage.stored("x").claims, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_local_copy_goes_on_if_its_process_comes_back_and_is_given_anew_if_another_one_does() {
    let stage = Stage::new(23, Config::default()).await;
    let before = stage.runner("n1", "a", 1, Manner::Willing).await;
    stage.runner("n2", "a", 9, Manner::Willing).await;
    stage.leader.submit(order("x", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")))).await.unwrap();
    stage.begin(&before, "x").await;
    sleep(Duration::from_secs(1)).await;
    stage.lose(&before).await;
    let lost = stage.until("x", TaskState::Lost).await;
    sleep(Duration::from_secs(60)).await;
    let back = stage.runner("n1", "a", 1, Manner::Willing).await;
    let running = stage.until("x", TaskState::Running).await;
    assert_eq!((running.epoch, running.failures, running.attempts.len()), (lost.epoch, 0, 1));
    sleep(Duration::from_secs(1)).await;
    stage.lose(&back).await;
    stage.until("x", TaskState::Lost).await;
    let anew = stage.runner("n1", "b", 1, Manner::Willing).await;
    stage.begin(&anew, "x").await;
    let record = stage.stored("x");
    assert_eq!((record.failures, record.attempts.len()), (1, 2));
    assert!(record.is_quiet(), "the lock was granted");
    assert!(stage.step(&anew, "x", done()).await);
}

#[tokio::test(start_paused = true)]
async fn a_lost_local_copy_that_was_cancelled_ends_without_its_node() {
    let stage = Stage::new(24, Config::default()).await;
    let runner = stage.runner("n1", "a", 1, Manner::Willing).await;
    stage.leader.submit(order("x", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")))).await.unwrap();
    stage.begin(&runner, "x").await;
    sleep(Duration::from_secs(1)).await;
    stage.lose(&runner).await;
    stage.until("x", TaskState::Lost).await;
    assert_eq!(stage.leader.change(&id("x"), TaskChange::Cancel).await.unwrap().state, TaskState::Lost);
    stage.until("x", TaskState::Cancelled).await;
    assert_eq!(stage.claims(), []);
}

#[tokio::test(start_paused = true)]
async fn a_program_or_an_operator_fences_where_the_task_asks_for_it() {
    let fence = Arc::new(TestFence::default());
    let stage = Stage::new(25, Config { fence: Some(fence.clone()), ..Config::default() }).await;
    let first = stage.runner("n1", "a", 9, Manner::Willing).await;
    for (name, kind) in [("fence_runner", Fence::Command), ("cut2", Fence::Command), ("man", Fence::Manual)] {
        let copy = CopyTask { fence: kind, ..copy("nbd://h/a", &format!("nbd://h/{name}")) };
        stage.leader.submit(order(name, TaskSpec::Copy(copy))).await.unwrap();
        stage.begin(&first, name).await;
    }
    stage.runner("n2", "a", 9, Manner::Willing).await;
    let n1 = NodeId::new("n1").unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.leader.fence(&n1).await.unwrap_err().code, Code::Busy);
    stage.lose(&first).await;
    sleep(Duration::from_secs(100)).await;
    for name in ["fence_runner", "cut2", "man"] {
        assert_eq!(stage.stored(name).state, TaskState::Lost, "{name}");
    }
    let reason = stage.leader.get(&id("fence_runner")).await.unwrap().reason.clone();
    assert!(reason.starts_with("fencing n1 failed: the switch does not answer"), "{reason}");
    let tries = fence.fence_runner.lock().unwrap().len();
    assert!((5..=9).contains(&tries), "{tries} tries in 100 s, one for both tasks");
    *fence.works.lock().unwrap() = true;
    for name in ["fence_runner", "cut2"] {
        assert!(stage.until(name, TaskState::Assigned).await.is_quiet());
    }
    assert_eq!(stage.stored("man").state, TaskState::Lost);
    assert_eq!(stage.leader.fence(&n1).await.unwrap(), 1);
    assert!(stage.until("man", TaskState::Assigned).await.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_to_the_end() {
    let stage = Stage::new(26, Config::default()).await;
    stage.leader.submit(order("x", noop(1))).await.unwrap();
    for round in 0..3 {
        let runner = stage.runner("n1", &format!("life{round}"), 1, Manner::Willing).await;
        stage.begin(&runner, "x").await;
        sleep(Duration::from_secs(1)).await;
        stage.lose(&runner).await;
    }
    let failed = stage.until("x", TaskState::Failed).await;
    assert_eq!((failed.failures, failed.error.unwrap().code), (3, Code::LeaseLost));
    assert_eq!(stage.claims(), []);
}

/// Method: n1 is less loaded and fails everything at once; n2 has no free slot for a while.
#[tokio::test(start_paused = true)]
async fn a_node_that_fails_everything_ends_no_task_that_another_node_can_run() {
    let stage = Stage::new(31, Config::default()).await;
    let bad = stage.runner("n1", "a", 9, Manner::Willing).await;
    stage.leader.submit(order("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    let failed = || {
        let error = Failure::from(&Error::new(Code::Unreachable, Side::Source, Operation::Open, "it does not resolve"));
        TaskEvent::Failed { error, retry_at_ms: 0, checkpoint: Checkpoint::default(), report: None }
    };
    stage.until("x", TaskState::Assigned).await;
    assert!(stage.step(&bad, "x", failed()).await);
    let again = stage.until("x", TaskState::Assigned).await;
    assert_eq!(again.node().unwrap().as_str(), "n1", "it is the only one");
    let good = stage.runner("n2", "a", 0, Manner::Willing).await;
    sleep(Duration::from_secs(1)).await;
    assert!(stage.step(&bad, "x", failed()).await);
    sleep(Duration::from_secs(60)).await;
    let waits = stage.leader.get(&id("x")).await.unwrap();
    assert_eq!((waits.state, waits.failures), (TaskState::Pending, 2), "{}", waits.reason);
    assert!(waits.reason.starts_with("waiting for a runner: failed on n1, next on n2"), "{}", waits.reason);
    stage.lose(&good).await;
    let good = stage.runner("n2", "b", 1, Manner::Willing).await;
    stage.begin(&good, "x").await;
    assert!(stage.step(&good, "x", done()).await);
    assert_eq!(stage.stored("x").state, TaskState::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_is_gone_before_it_began_costs_nothing() {
    let stage = Stage::new(27, Config::default()).await;
    let runner = stage.runner("n1", "a", 1, Manner::Willing).await;
    stage.leader.submit(order("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    stage.until("x", TaskState::Assigned).await;
    stage.lose(&runner).await;
    let record = stage.until("x", TaskState::Pending).await;
    assert_eq!((record.failures, record.is_quiet()), (0, true));
    stage.runner("n1", "b", 1, Manner::Busy).await;
    stage.until("x", TaskState::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_tells_what_the_old_one_had_only_written() {
    let mut stage = Stage::new(28, Config::default()).await;
    let runner = stage.runner("n1", "a", 9, Manner::Silent).await;
    for name in ["x", "running"] {
        stage.leader.submit(order(name, noop(1))).await.unwrap();
        stage.until(name, TaskState::Assigned).await;
    }
    stage.begin(&runner, "running").await;
    let before = stage.stored("running");
    assert_eq!(stage.change_leader("d2").await, Ending::LostLeadership);
    stage.world.set_manner("n1", Manner::Willing);
    stage.leader.status().await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(stage.world.heard(), ["n1 assign x"]);
    assert_eq!(stage.stored("running"), before, "what runs is left alone");
}

#[tokio::test(start_paused = true)]
async fn many_tasks_are_assigned_many_at_a_time() {
    let weather = FaultRates { latency_ms: (1, 2), ..FaultRates::default() };
    let stage = Stage::in_weather(29, Config::default(), weather).await;
    let tasks = 2000;
    for index in 0..tasks {
        stage.leader.submit(order(&format!("t{index}"), noop(1))).await.unwrap();
    }
    let start = Instant::now();
    for runner in 0..50 {
        stage.runner(&format!("n{runner}"), "a", 40, Manner::Willing).await;
    }
    while stage.leader.status().await.unwrap().tasks[1].1 < tasks {
        sleep(Duration::from_millis(10)).await;
    }
    let rate = f64::from(u32::try_from(tasks).unwrap()) / start.elapsed().as_secs_f64();
    assert!(rate > 200.0, "{rate} assignments a (simulated) second");
    let loads = stage.leader.runners().await.unwrap();
    assert!(loads.iter().all(|runner| runner.tasks == 40));
}

#[tokio::test(start_paused = true)]
async fn every_task_ends_whatever_gets_lost() {
    for seed in 0..30 {
        let weather = FaultRates {
            latency_ms: (0, 20),
            lag_ms: (0, 50),
            lost_reply: 0.1,
            lost_watch: 0.2,
            late_watch: 0.3,
            late_write: 0.5,
        };
        let mut stage = Stage::in_weather(seed, Config::default(), weather).await;
        for node in ["n1", "n2", "n3"] {
            stage.runner(node, "a", 2, Manner::Busy).await;
        }
        let names: Vec<String> = (0..12).map(|index| format!("t{index}")).collect();
        for (index, name) in names.iter().enumerate() {
            while let Err(error) = stage.leader.submit(order(name, noop(1))).await {
                assert!(error.retryable, "seed {seed}: {error:?}");
                sleep(Duration::from_millis(500)).await;
            }
            match (seed + index as u64) % 7 {
                0 => stage.ensemble.reset("d1"),
                1 => stage.ensemble.reset("n1"),
                2 if index == 6 => {
                    stage.change_leader("d2").await;
                }
                _ => {}
            }
        }
        for name in &names {
            let record = stage.until(name, TaskState::Succeeded).await;
            assert_eq!(record.claims, [""; 0], "seed {seed}");
        }
        assert_eq!(stage.claims(), [], "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_stopping_runner_gives_back_is_not_offered_to_it_again() {
    let stage = Stage::new(29, Config::default()).await;
    let first = stage.runner("n1", "a", 4, Manner::Willing).await;
    stage.leader.submit(order("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    stage.begin(&first, "x").await;
    stage.runner("n2", "a", 4, Manner::Willing).await;
    sleep(Duration::from_secs(1)).await;
    stage.world.heard();
    // No watch fires when a registration changes, and n1 is the first of two idle runners.
    let node = first.get(&paths::runner("n1")).await.unwrap().unwrap();
    let mut marked = Registration::decode(&node.data).unwrap();
    marked.stopping = true;
    let checkpoint = Op::Set { path: paths::runner("n1"), data: marked.encode(), version: node.stat.version };
    first.multi(vec![checkpoint]).await.unwrap();
    let given = TaskEvent::GivenBack { code: Code::RunnerInterrupt, checkpoint: Checkpoint::default() };
    assert!(stage.step(&first, "x", given).await);
    stage.until("x", TaskState::Assigned).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.world.heard(), ["n2 assign x"]);
    // The runner was only asked to return its tasks, and accepts tasks again.
    marked.stopping = false;
    let unmark = Op::Set { path: paths::runner("n1"), data: marked.encode(), version: node.stat.version + 1 };
    first.multi(vec![unmark]).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    stage.leader.submit(order("y", noop(1))).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.world.heard(), ["n1 assign y"]);
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_is_read_before_its_write_is_answered_is_followed_up() {
    let stage = Stage::new(30, Config::default()).await;
    let (mut dispatcher, _handle) = stage.idle_leader("d2").await;
    let name = id("x");
    let pending = TaskRecord::new(order("x", noop(1)), 0);
    let to = Holder { node: NodeId::new("n1").unwrap(), incarnation: Incarnation(String::from("a")) };
    let there = stage.registration("n1", "a", 1);
    dispatcher.reads.is_loaded = true;
    dispatcher.cluster.observe_runners([(to.node.clone(), there)].into(), dispatcher.now().boot);
    dispatcher.observe(pending.clone(), 0, None);
    dispatcher.turn(true);
    assert!(dispatcher.cluster.tasks.get(&name).unwrap().runtime.is_busy, "it is being assigned");
    let assigned = TaskEvent::Assigned { to, claims: vec![String::from("task:x")] };
    let assigned = next(&pending, assigned, 0).unwrap();
    dispatcher.observe(assigned.clone(), 1, None);
    dispatcher.turn(true);
    let grant = Some(Epoch(7));
    let written = Written::Done { record: Box::new(assigned), version: 1, created: None, grant };
    dispatcher.apply(Event::Written { task: name.clone(), purpose: Purpose::Decided, written, took: Duration::ZERO });
    dispatcher.turn(true);
    assert!(dispatcher.cluster.tasks.get(&name).unwrap().runtime.is_calling, "the runner is being called");
}

/// Runs a leader whose session outlives a rollback of history, after which the record gets `versions` further versions.
/// Returns the dispatcher's end, and the time from the rollback to it.
async fn leader_of_a_lost_history(seed: u64, versions: u32) -> (Ending, Duration) {
    let stage = Stage::new(seed, Config::default()).await;
    let runner = stage.runner("n1", "a", 1, Manner::Willing).await;
    stage.leader.submit(order("x", noop(60_000))).await.unwrap();
    stage.begin(&runner, "x").await;
    sleep(Duration::from_secs(1)).await;
    let backup = stage.ensemble.snapshot();
    let checkpoint = |written| {
        let progress = Progress { written, ..Progress::default() };
        TaskEvent::Checkpointed(Checkpoint { progress, ..Checkpoint::default() })
    };
    assert!(stage.step(&runner, "x", checkpoint(1)).await);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(stage.leader.get(&id("x")).await.unwrap().progress.written, 1);
    stage.ensemble.regress(&backup);
    let lost = Instant::now();
    // Other sessions open and use up transaction numbers, until a server accepts the leader's session again.
    let other = stage.ensemble.client("n2").open().await.unwrap();
    for version in 0..versions {
        assert!(step(&*other, &id("x"), checkpoint(100 + u64::from(version))).await);
    }
    while !stage.dispatcher.is_finished() && lost.elapsed() < Duration::from_secs(60) {
        stage.ensemble.client("n2").open().await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    let after = lost.elapsed();
    (stage.dispatcher.await.unwrap(), after)
}

#[tokio::test(start_paused = true)]
async fn a_leader_whose_history_is_lost_resigns_before_it_acts_on_what_it_remembers() {
    for (seed, versions) in [(31, 0), (32, 1)] {
        let (ending, after) = leader_of_a_lost_history(seed, versions).await;
        assert_eq!(ending, Ending::HistoryLost, "after {after:?}, with {versions} versions written anew");
        assert!(after < Duration::from_secs(6), "{after:?}: too long after the loss");
    }
}

#[tokio::test(start_paused = true)]
async fn a_runner_that_has_a_task_and_does_not_begin_keeps_it_and_says_why() {
    let stage = Stage::new(33, Config::default()).await;
    let runner = stage.runner("n1", "a", 1, Manner::Willing).await;
    stage.runner("n2", "a", 1, Manner::Willing).await;
    stage.leader.submit(order("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    stage.until("x", TaskState::Assigned).await;
    let reason = async || stage.leader.get(&id("x")).await.unwrap().reason.clone();
    sleep(Duration::from_secs(4)).await;
    assert_eq!(reason().await, "", "nothing unusual yet");
    sleep(Duration::from_secs(600)).await;
    let why = reason().await;
    assert!(why.starts_with("assigned 604 s ago to n1") && why.contains("opening the volumes"), "{why}");
    let record = stage.stored("x");
    assert_eq!(
        (record.attempts.len(), record.reason.as_str()),
        (1, ""),
        "the runner may still begin, so the task is not reassigned"
    );
    stage.world.set_manner("n1", Manner::Silent);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(stage.stored("x").attempts.len(), 1, "a runner that has accepted keeps the task without answering");
    stage.begin(&runner, "x").await;
    stage.until("x", TaskState::Running).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(reason().await, "");
}
