//! Tests changes of tasks that have not ended: their settings, and the node that they run on.

use super::support::*;
use crate::dispatcher::Config;
use crate::model::state_machine::{Checkpoint, TaskEvent};
use crate::model::{NodeId, Submission, TaskChanges, TaskCommand, TaskSpec, TaskState, TaskTimes};
use blockhaul_engine::error::Code;
use std::time::Duration;
use tokio::time::sleep;

fn to(node: &str) -> TaskCommand {
    TaskCommand::Move(Some(NodeId::new(node).unwrap()))
}

fn export_copy(name: &str) -> Submission {
    submission(name, TaskSpec::Copy(copy("nbd://h/a", &format!("nbd://h/{name}"))))
}

fn returned() -> TaskEvent {
    TaskEvent::GivenBack { code: Code::RunnerInterrupt, checkpoint: Checkpoint::default() }
}

#[tokio::test(start_paused = true)]
async fn a_moved_copy_is_returned_and_runs_elsewhere_without_a_failure() {
    let center = TestCenter::new(61, Config::default()).await;
    let first = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(export_copy("t")).await.unwrap();
    center.begin(&first, "t").await;
    center.runner("n2", "a", 1, Behaviour::Accepting).await;
    sleep(Duration::from_secs(1)).await;
    center.runners.take_calls();
    center.leader.command(&id("t"), TaskCommand::Move(None)).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert!(center.runners.take_calls().contains(&String::from("n1 notify t")));
    assert!(center.step(&first, "t", returned()).await);
    let moved = center.until("t", TaskState::Assigned).await;
    assert_eq!(moved.node().map(NodeId::as_str), Some("n2"));
    assert_eq!((moved.failures, moved.moving), (0, None));
}

#[tokio::test(start_paused = true)]
async fn a_move_waits_for_its_node_and_says_so() {
    let mut center = TestCenter::new(62, Config::default()).await;
    let first = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(export_copy("t")).await.unwrap();
    center.begin(&first, "t").await;
    center.leader.command(&id("t"), to("n2")).await.unwrap();
    assert!(center.step(&first, "t", returned()).await);
    center.change_leader("l2").await;
    sleep(Duration::from_secs(20)).await;
    let waiting = center.leader.get(&id("t")).await.unwrap();
    assert_eq!((waiting.state, &*waiting.reason), (TaskState::Pending, "waiting for n2, which is not registered"));
    center.leader.command(&id("t"), TaskCommand::Move(None)).await.unwrap();
    sleep(Duration::from_secs(5)).await;
    let waiting = center.leader.get(&id("t")).await.unwrap();
    let reason =
        "waiting for another runner than n1, from which it is to be moved; of 1 registered, 1 is to run it no longer";
    assert_eq!(waiting.reason, reason);
    // It may return there after all.
    center.leader.command(&id("t"), to("n1")).await.unwrap();
    assert_eq!(center.until("t", TaskState::Assigned).await.node().map(NodeId::as_str), Some("n1"));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_only_one_node_can_run_is_not_moved() {
    let center = TestCenter::new(63, Config::default()).await;
    center.leader.submit(submission("t", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")))).await.unwrap();
    for command in [TaskCommand::Move(None), to("n2")] {
        let error = center.leader.command(&id("t"), command).await.unwrap_err();
        assert_eq!((error.code, &*error.message), (Code::BadRequest, "t: only n1 can run it"));
    }
    center.leader.command(&id("t"), to("n1")).await.unwrap();
    center.leader.submit(submission("noop", noop(1))).await.unwrap();
    let error = center.leader.command(&id("noop"), TaskCommand::Move(None)).await.unwrap_err();
    assert_eq!(error.code, Code::Unsupported);
}

#[tokio::test(start_paused = true)]
async fn settings_change_what_happens_and_the_request_stays_the_same() {
    let center = TestCenter::new(64, Config::default()).await;
    let order = Submission {
        times: TaskTimes { delay_ms: Some(1_000_000), ..TaskTimes::default() },
        ..submission("t", noop(1))
    };
    center.leader.submit(order.clone()).await.unwrap();
    center.leader.submit(submission("other", noop(1))).await.unwrap();
    let task = id("t");
    let set = |changes| center.leader.command(&task, TaskCommand::Set(changes));
    set(TaskChanges { start_at_ms: Some(None), priority: Some(9), ..TaskChanges::default() }).await.unwrap();
    let runner = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.begin(&runner, "t").await;
    assert_eq!(center.stored("other").state, TaskState::Pending);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(center.leader.submit(order).await.unwrap().state, TaskState::Running);
    let late = set(TaskChanges { start_at_ms: Some(Some(5)), ..TaskChanges::default() }).await.unwrap_err();
    assert_eq!(late.code, Code::Busy);
    set(TaskChanges { max_attempts: Some(1), deadline_ms: Some(Some(60_000)), ..TaskChanges::default() })
        .await
        .unwrap();
    assert_eq!(center.stored("t").max_attempts, 1);
    sleep(Duration::from_secs(61)).await;
    center.until("t", TaskState::Cancelling).await;
}
