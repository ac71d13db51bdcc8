//! Tests what happens to tasks when runners, leaders and answers are lost.

use super::support::*;
use crate::coord::Op;
use crate::coord::paths;
use crate::coord::sim::FaultRates;
use crate::dispatcher::event::{Event, WriteOrigin};
use crate::dispatcher::write::Written;
use crate::dispatcher::{Config, TermEnd};
use crate::model::state_machine::{Checkpoint, TaskEvent, next};
use crate::model::{
    CopyTask, Epoch, Failure, FenceMethod, Holder, Incarnation, NodeId, Progress, Record, Registration, TaskCommand,
    TaskId, TaskRecord, TaskSpec, TaskState,
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
async fn the_next_attempt_waits_for_a_lost_lease_and_success_for_its_drain() {
    let center = TestCenter::new(21, Config::default()).await;
    let first = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(submission("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    center.begin(&first, "x").await;
    let second = center.runner("n2", "a", 1, Behaviour::Accepting).await;
    sleep(Duration::from_secs(1)).await;
    let lost = Instant::now();
    center.lose(&first).await;
    let record = center.until("x", TaskState::Lost).await;
    assert_eq!((record.failures, record.holder, record.attempts[0].quiet), (1, None, false));
    assert_eq!(record.attempts[0].outcome.as_deref(), Some("ELeaseLost"));
    center.begin(&second, "x").await;
    assert!(lost.elapsed() >= Duration::from_secs(2), "{:?}", lost.elapsed());
    let record = center.until("x", TaskState::Running).await;
    assert!(record.attempts[1].epoch > record.attempts[0].epoch);
    assert!(!center.step(&second, "x", done()).await, "the first attempt has not drained");
    assert!(center.step(&second, "x", TaskEvent::Written(Checkpoint::default())).await);
    center.runners.take_calls();
    while !center.stored("x").is_quiet() {
        sleep(Duration::from_millis(100)).await;
    }
    assert!((30..34).contains(&lost.elapsed().as_secs()), "{:?}", lost.elapsed());
    sleep(Duration::from_millis(100)).await;
    assert_eq!(center.runners.take_calls(), ["n2 notify x"]);
    assert!(center.step(&second, "x", done()).await);
    assert_eq!(center.claims(), []);
}

#[tokio::test(start_paused = true)]
async fn an_ended_task_keeps_its_claim_until_a_lost_attempt_has_drained() {
    let center = TestCenter::new(22, Config::default()).await;
    let first = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(submission("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    center.begin(&first, "x").await;
    sleep(Duration::from_secs(1)).await;
    let lost = Instant::now();
    center.lose(&first).await;
    center.until("x", TaskState::Lost).await;
    center.leader.command(&id("x"), TaskCommand::Cancel).await.unwrap();
    center.until("x", TaskState::Cancelled).await;
    center.runner("n2", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(submission("y", TaskSpec::Copy(copy("nbd://h/c", "nbd://h/b")))).await.unwrap();
    center.until("y", TaskState::Assigned).await;
    assert!(lost.elapsed() >= Duration::from_secs(30), "{:?}", lost.elapsed());
    assert_eq!(center.stored("x").claims, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_local_copy_continues_in_its_process_or_is_assigned_again_to_a_new_one() {
    let center = TestCenter::new(23, Config::default()).await;
    let before = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.runner("n2", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(submission("x", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")))).await.unwrap();
    center.begin(&before, "x").await;
    sleep(Duration::from_secs(1)).await;
    center.lose(&before).await;
    let lost = center.until("x", TaskState::Lost).await;
    sleep(Duration::from_secs(60)).await;
    let back = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    let running = center.until("x", TaskState::Running).await;
    assert_eq!((running.epoch, running.failures, running.attempts.len()), (lost.epoch, 0, 1));
    sleep(Duration::from_secs(1)).await;
    center.lose(&back).await;
    center.until("x", TaskState::Lost).await;
    let restarted = center.runner("n1", "b", 1, Behaviour::Accepting).await;
    center.begin(&restarted, "x").await;
    let record = center.stored("x");
    assert_eq!((record.failures, record.attempts.len()), (1, 2));
    assert!(record.is_quiet(), "the lock was granted");
    assert!(center.step(&restarted, "x", done()).await);
}

#[tokio::test(start_paused = true)]
async fn a_lost_local_copy_that_was_cancelled_ends_without_its_node() {
    let center = TestCenter::new(24, Config::default()).await;
    let runner = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(submission("x", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")))).await.unwrap();
    center.begin(&runner, "x").await;
    sleep(Duration::from_secs(1)).await;
    center.lose(&runner).await;
    center.until("x", TaskState::Lost).await;
    assert_eq!(center.leader.command(&id("x"), TaskCommand::Cancel).await.unwrap().state, TaskState::Lost);
    center.until("x", TaskState::Cancelled).await;
    assert_eq!(center.claims(), []);
}

#[tokio::test(start_paused = true)]
async fn a_program_or_an_operator_fences_where_the_task_asks_for_it() {
    let fence = Arc::new(TestFence::default());
    let center = TestCenter::new(25, Config { fence: Some(fence.clone()), ..Config::default() }).await;
    let first = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    for (name, kind) in [("cut1", FenceMethod::Command), ("cut2", FenceMethod::Command), ("man", FenceMethod::Manual)] {
        let copy = CopyTask { fence: kind, ..copy("nbd://h/a", &format!("nbd://h/{name}")) };
        center.leader.submit(submission(name, TaskSpec::Copy(copy))).await.unwrap();
        center.begin(&first, name).await;
    }
    center.runner("n2", "a", 9, Behaviour::Accepting).await;
    let n1 = NodeId::new("n1").unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(center.leader.fence(&n1).await.unwrap_err().code, Code::Busy);
    center.lose(&first).await;
    sleep(Duration::from_secs(100)).await;
    for name in ["cut1", "cut2", "man"] {
        assert_eq!(center.stored(name).state, TaskState::Lost, "{name}");
    }
    let reason = center.leader.get(&id("cut1")).await.unwrap().reason.clone();
    assert!(reason.starts_with("fencing n1 failed: the switch does not answer"), "{reason}");
    let tries = fence.fenced.lock().unwrap().len();
    assert!((5..=9).contains(&tries), "{tries} tries in 100 s, one for both tasks");
    *fence.works.lock().unwrap() = true;
    for name in ["cut1", "cut2"] {
        assert!(center.until(name, TaskState::Assigned).await.is_quiet());
    }
    assert_eq!(center.stored("man").state, TaskState::Lost);
    assert_eq!(center.leader.fence(&n1).await.unwrap(), 1);
    assert!(center.until("man", TaskState::Assigned).await.is_quiet());
}

#[tokio::test(start_paused = true)]
async fn failures_are_counted_to_the_end() {
    let center = TestCenter::new(26, Config::default()).await;
    center.leader.submit(submission("x", noop(1))).await.unwrap();
    for round in 0..3 {
        let runner = center.runner("n1", &format!("life{round}"), 1, Behaviour::Accepting).await;
        center.begin(&runner, "x").await;
        sleep(Duration::from_secs(1)).await;
        center.lose(&runner).await;
    }
    let failed = center.until("x", TaskState::Failed).await;
    assert_eq!((failed.failures, failed.error.unwrap().code), (3, Code::LeaseLost));
    assert_eq!(center.claims(), []);
}

/// Method: n1 is less loaded and fails everything at once; n2 has no free slot for a while.
#[tokio::test(start_paused = true)]
async fn a_node_that_fails_everything_ends_no_task_that_another_node_can_run() {
    let center = TestCenter::new(31, Config::default()).await;
    let bad = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(submission("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    let failed = || {
        let error = Failure::from(&Error::new(Code::Unreachable, Side::Source, Operation::Open, "it does not resolve"));
        TaskEvent::Failed { error, retry_at_ms: 0, checkpoint: Checkpoint::default(), report: None }
    };
    center.until("x", TaskState::Assigned).await;
    assert!(center.step(&bad, "x", failed()).await);
    let again = center.until("x", TaskState::Assigned).await;
    assert_eq!(again.node().unwrap().as_str(), "n1", "it is the only one");
    let good = center.runner("n2", "a", 0, Behaviour::Accepting).await;
    sleep(Duration::from_secs(1)).await;
    assert!(center.step(&bad, "x", failed()).await);
    sleep(Duration::from_secs(60)).await;
    let waits = center.leader.get(&id("x")).await.unwrap();
    assert_eq!((waits.state, waits.failures), (TaskState::Pending, 2), "{}", waits.reason);
    assert!(waits.reason.starts_with("waiting for a runner: failed on n1, next on n2"), "{}", waits.reason);
    center.lose(&good).await;
    let good = center.runner("n2", "b", 1, Behaviour::Accepting).await;
    center.begin(&good, "x").await;
    assert!(center.step(&good, "x", done()).await);
    assert_eq!(center.stored("x").state, TaskState::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_runner_lost_before_it_began_costs_no_failure() {
    let center = TestCenter::new(27, Config::default()).await;
    let runner = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(submission("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    center.until("x", TaskState::Assigned).await;
    center.lose(&runner).await;
    let record = center.until("x", TaskState::Pending).await;
    assert_eq!((record.failures, record.is_quiet()), (0, true));
    center.runner("n1", "b", 1, Behaviour::Completing).await;
    center.until("x", TaskState::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_makes_the_calls_that_the_old_one_has_not_made() {
    let mut center = TestCenter::new(28, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Silent).await;
    for name in ["x", "running"] {
        center.leader.submit(submission(name, noop(1))).await.unwrap();
        center.until(name, TaskState::Assigned).await;
    }
    center.begin(&runner, "running").await;
    let before = center.stored("running");
    assert_eq!(center.change_leader("d2").await, TermEnd::LostLeadership);
    center.runners.set_behaviour("n1", Behaviour::Accepting);
    center.leader.status().await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert_eq!(center.runners.take_calls(), ["n1 assign x"]);
    assert_eq!(center.stored("running"), before, "what runs is left alone");
}

#[tokio::test(start_paused = true)]
async fn many_tasks_are_assigned_many_at_a_time() {
    let fault_rates = FaultRates { latency_ms: (1, 2), ..FaultRates::default() };
    let center = TestCenter::with_faults(29, Config::default(), fault_rates).await;
    let tasks = 2000;
    for index in 0..tasks {
        center.leader.submit(submission(&format!("t{index}"), noop(1))).await.unwrap();
    }
    let start = Instant::now();
    for runner in 0..50 {
        center.runner(&format!("n{runner}"), "a", 40, Behaviour::Accepting).await;
    }
    while center.leader.status().await.unwrap().tasks[1].1 < tasks {
        sleep(Duration::from_millis(10)).await;
    }
    let rate = f64::from(u32::try_from(tasks).unwrap()) / start.elapsed().as_secs_f64();
    assert!(rate > 200.0, "{rate} assignments a (simulated) second");
    let loads = center.leader.runners().await.unwrap();
    assert!(loads.iter().all(|runner| runner.tasks == 40));
}

#[tokio::test(start_paused = true)]
async fn every_task_ends_in_spite_of_lost_answers_and_watches() {
    for seed in 0..30 {
        let fault_rates = FaultRates {
            latency_ms: (0, 20),
            lag_ms: (0, 50),
            lost_reply: 0.1,
            lost_watch: 0.2,
            late_watch: 0.3,
            late_write: 0.5,
        };
        let mut center = TestCenter::with_faults(seed, Config::default(), fault_rates).await;
        for node in ["n1", "n2", "n3"] {
            center.runner(node, "a", 2, Behaviour::Completing).await;
        }
        let names: Vec<String> = (0..12).map(|index| format!("t{index}")).collect();
        for (index, name) in names.iter().enumerate() {
            while let Err(error) = center.leader.submit(submission(name, noop(1))).await {
                assert!(error.retryable, "seed {seed}: {error:?}");
                sleep(Duration::from_millis(500)).await;
            }
            match (seed + index as u64) % 7 {
                0 => center.ensemble.reset("d1"),
                1 => center.ensemble.reset("n1"),
                2 if index == 6 => {
                    center.change_leader("d2").await;
                }
                _ => {}
            }
        }
        for name in &names {
            let record = center.until(name, TaskState::Succeeded).await;
            assert_eq!(record.claims, [""; 0], "seed {seed}");
        }
        assert_eq!(center.claims(), [], "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_returned_by_a_stopping_runner_goes_to_another_one() {
    let center = TestCenter::new(29, Config::default()).await;
    let first = center.runner("n1", "a", 4, Behaviour::Accepting).await;
    center.leader.submit(submission("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    center.begin(&first, "x").await;
    center.runner("n2", "a", 4, Behaviour::Accepting).await;
    sleep(Duration::from_secs(1)).await;
    center.runners.take_calls();
    // No watch fires when a registration changes, and n1 is the first of two idle runners.
    let node = first.get(&paths::runner("n1")).await.unwrap().unwrap();
    let mut marked = Registration::decode(&node.data).unwrap();
    marked.stopping = true;
    let checkpoint = Op::Set { path: paths::runner("n1"), data: marked.encode(), version: node.stat.version };
    first.multi(vec![checkpoint]).await.unwrap();
    let given = TaskEvent::GivenBack { code: Code::RunnerInterrupt, checkpoint: Checkpoint::default() };
    assert!(center.step(&first, "x", given).await);
    center.until("x", TaskState::Assigned).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(center.runners.take_calls(), ["n2 assign x"]);
    // The runner was only asked to return its tasks, and accepts tasks again.
    marked.stopping = false;
    let unmark = Op::Set { path: paths::runner("n1"), data: marked.encode(), version: node.stat.version + 1 };
    first.multi(vec![unmark]).await.unwrap();
    sleep(Duration::from_secs(2)).await;
    center.leader.submit(submission("y", noop(1))).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(center.runners.take_calls(), ["n1 assign y"]);
}

#[tokio::test(start_paused = true)]
async fn a_decision_that_is_read_before_its_write_is_answered_is_followed_up() {
    let center = TestCenter::new(30, Config::default()).await;
    let (mut dispatcher, _handle) = center.idle_leader("d2").await;
    let name = id("x");
    let pending = TaskRecord::new(submission("x", noop(1)), 0);
    let to = Holder { node: NodeId::new("n1").unwrap(), incarnation: Incarnation(String::from("a")) };
    let there = center.registration("n1", "a", 1);
    dispatcher.reads.is_loaded = true;
    dispatcher.cluster.observe_runners([(to.node.clone(), there)].into(), 0, dispatcher.now().boot);
    dispatcher.observe(pending.clone(), 0, None);
    dispatcher.turn(true);
    assert!(dispatcher.cluster.tasks.get(&name).unwrap().runtime.is_busy, "it is being assigned");
    let assigned = TaskEvent::Assigned { to, claims: vec![String::from("task:x")] };
    let assigned = next(&pending, assigned, 0).unwrap();
    dispatcher.observe(assigned.clone(), 1, None);
    dispatcher.turn(true);
    let grant = Some(Epoch(7));
    let written = Written::Done { record: Box::new(assigned), version: 1, created: None, grant };
    dispatcher.apply(Event::Written {
        task: name.clone(),
        origin: WriteOrigin::Decided,
        written,
        took: Duration::ZERO,
    });
    dispatcher.turn(true);
    assert!(dispatcher.cluster.tasks.get(&name).unwrap().runtime.is_calling, "the runner is being called");
}

/// Runs a leader whose session outlives a rollback of history, after which the record gets `versions` further versions.
/// Returns the dispatcher's end, and the time from the rollback to it.
async fn leader_of_a_lost_history(seed: u64, versions: u32) -> (TermEnd, Duration) {
    let center = TestCenter::new(seed, Config::default()).await;
    let runner = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(submission("x", noop(60_000))).await.unwrap();
    center.begin(&runner, "x").await;
    sleep(Duration::from_secs(1)).await;
    let backup = center.ensemble.snapshot();
    let checkpoint = |written| {
        let progress = Progress { written, ..Progress::default() };
        TaskEvent::Checkpointed(Checkpoint { progress, ..Checkpoint::default() })
    };
    assert!(center.step(&runner, "x", checkpoint(1)).await);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(center.leader.get(&id("x")).await.unwrap().progress.written, 1);
    center.ensemble.regress(&backup);
    let lost = Instant::now();
    // Other sessions open and use up transaction numbers, until a server accepts the leader's session again.
    let other = center.ensemble.client("n2").open().await.unwrap();
    for version in 0..versions {
        assert!(step(&*other, &id("x"), checkpoint(100 + u64::from(version))).await);
    }
    while !center.dispatcher.is_finished() && lost.elapsed() < Duration::from_secs(60) {
        center.ensemble.client("n2").open().await.unwrap();
        sleep(Duration::from_millis(100)).await;
    }
    let after = lost.elapsed();
    (center.dispatcher.await.unwrap(), after)
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_detects_lost_history_resigns() {
    for (seed, versions) in [(31, 0), (32, 1)] {
        let (ending, after) = leader_of_a_lost_history(seed, versions).await;
        assert_eq!(ending, TermEnd::HistoryLost, "after {after:?}, with {versions} versions written again");
        assert!(after < Duration::from_secs(6), "{after:?}: too long after the loss");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_runner_keeps_its_task_and_the_reason_says_why() {
    let center = TestCenter::new(33, Config::default()).await;
    let runner = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.runner("n2", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(submission("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    center.until("x", TaskState::Assigned).await;
    let reason = async || center.leader.get(&id("x")).await.unwrap().reason.clone();
    sleep(Duration::from_secs(4)).await;
    assert_eq!(reason().await, "", "nothing unusual yet");
    sleep(Duration::from_secs(600)).await;
    let why = reason().await;
    assert!(why.starts_with("assigned 604 s ago to n1") && why.contains("opening the volumes"), "{why}");
    let record = center.stored("x");
    assert_eq!(
        (record.attempts.len(), record.reason.as_str()),
        (1, ""),
        "the runner may still begin, so the task is not reassigned"
    );
    center.runners.set_behaviour("n1", Behaviour::Silent);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(center.stored("x").attempts.len(), 1, "a runner that has accepted keeps the task without answering");
    center.begin(&runner, "x").await;
    center.until("x", TaskState::Running).await;
    sleep(Duration::from_millis(100)).await;
    assert_eq!(reason().await, "");
}
