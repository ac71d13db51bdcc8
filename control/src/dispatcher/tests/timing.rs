//! Tests starts and deadlines of tasks.

use super::support::*;
use crate::dispatcher::Config;
use crate::model::state_machine::{Checkpoint, TaskEvent};
use crate::model::{Submission, TaskState, TaskTimes};
use blockhaul_engine::error::Code;
use std::time::Duration;
use tokio::time::sleep;

fn timed(name: &str, delay_ms: Option<u64>, deadline_ms: Option<u64>) -> Submission {
    let times = TaskTimes { start_at_ms: None, delay_ms, deadline_ms };
    Submission { times, ..submission(name, noop(1)) }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_task_wherever_it_is() {
    let center = TestCenter::new(41, Config::default()).await;
    let runner = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(timed("holder", None, Some(100_000))).await.unwrap();
    center.begin(&runner, "holder").await;
    // It waits for the slot of the other one.
    center.leader.submit(timed("queued", None, Some(60_000))).await.unwrap();
    sleep(Duration::from_secs(59)).await;
    assert_eq!(center.stored("queued").state, TaskState::Pending);
    let queued = center.until("queued", TaskState::Failed).await;
    assert_eq!((queued.error.map(|error| error.code), queued.attempts.len()), (Some(Code::Timeout), 0));
    sleep(Duration::from_secs(39)).await;
    center.until("holder", TaskState::Cancelling).await;
    let back = TaskEvent::GivenBack { code: Code::Cancelled, checkpoint: Checkpoint::default() };
    assert!(center.step(&runner, "holder", back).await);
    let holder = center.until("holder", TaskState::Failed).await;
    assert_eq!(holder.error.map(|error| error.code), Some(Code::Timeout));
    assert!(holder.reason.starts_with("ETimeout: it has not ended within 100 s"), "{}", holder.reason);
}

#[tokio::test(start_paused = true)]
async fn a_task_starts_after_its_delay_whoever_leads() {
    let mut center = TestCenter::new(42, Config::default()).await;
    center.runner("n1", "a", 9, Behaviour::Accepting).await;
    let order = timed("later", Some(100_000), None);
    center.leader.submit(order.clone()).await.unwrap();
    sleep(Duration::from_secs(50)).await;
    // The same submission again is the same task, whenever that is; another delay is another task.
    assert_eq!(center.leader.submit(order).await.unwrap().state, TaskState::Pending);
    assert_eq!(center.leader.submit(timed("later", Some(1), None)).await.unwrap_err().code, Code::Exists);
    center.change_leader("l2").await;
    sleep(Duration::from_secs(40)).await;
    let waiting = center.leader.get(&id("later")).await.unwrap();
    assert!(waiting.state == TaskState::Pending && waiting.reason.starts_with("starts at "), "{}", waiting.reason);
    center.until("later", TaskState::Assigned).await;
}
