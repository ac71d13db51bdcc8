//! Tests tasks with windows: they start inside of one, and copies go on only inside. The clock of the test begins on Tuesday,
//! 2023-11-14, at 22:13:20 UTC.

use super::support::*;
use crate::dispatcher::Config;
use crate::model::state_machine::{Checkpoint, TaskEvent};
use crate::model::{DesiredState, Submission, TaskCommand, TaskSpec, TaskState};
use blockhaul_engine::error::Code;
use std::time::Duration;
use tokio::time::sleep;

fn within(name: &str, spec: TaskSpec, window: &str) -> Submission {
    Submission { windows: vec![window.to_owned()], ..submission(name, spec) }
}

fn export() -> TaskSpec {
    TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b"))
}

fn stopped() -> TaskEvent {
    TaskEvent::GivenBack { code: Code::Cancelled, checkpoint: Checkpoint::default() }
}

async fn reason(center: &TestCenter, name: &str) -> String {
    center.leader.get(&id(name)).await.unwrap().reason.clone()
}

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn a_task_starts_when_its_window_opens() {
    let center = TestCenter::new(150, Config::default()).await;
    center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(within("now", noop(1), "tue 22:00-23:00")).await.unwrap();
    center.leader.submit(within("later", noop(1), "tue 23:00-24:00")).await.unwrap();
    center.until("now", TaskState::Assigned).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(center.stored("later").state, TaskState::Pending);
    assert_eq!(reason(&center, "later").await, "waiting for its window, which opens at 2023-11-14T23:00:00.000Z");
    sleep(HOUR).await;
    assert_eq!(center.stored("later").state, TaskState::Assigned);
    // What cannot pause goes on.
    assert_eq!(center.stored("now").desired(), DesiredState::Run);
}

#[tokio::test(start_paused = true)]
async fn a_copy_pauses_outside_of_its_windows_also_under_another_leader() {
    let mut center = TestCenter::new(151, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(within("x", export(), "22:00-23:00")).await.unwrap();
    center.begin(&runner, "x").await;
    sleep(HOUR).await;
    assert_eq!((center.stored("x").state, center.stored("x").desired()), (TaskState::Running, DesiredState::Pause));
    assert!(center.step(&runner, "x", stopped()).await);
    let paused = center.until("x", TaskState::Paused).await;
    assert_eq!((&*paused.reason, paused.failures), ("outside of its windows", 0));
    center.change_leader("l2").await;
    sleep(Duration::from_secs(20)).await;
    let opens = "waiting for its window, which opens at 2023-11-15T22:00:00.000Z (outside of its windows)";
    assert_eq!(reason(&center, "x").await, opens);
    // Whoever resumes it does not open the window; whoever pauses it keeps it paused inside.
    center.leader.command(&id("x"), TaskCommand::Resume).await.unwrap();
    assert_eq!(center.stored("x").state, TaskState::Paused);
    sleep(23 * HOUR).await;
    center.until("x", TaskState::Assigned).await;
    center.begin(&runner, "x").await;
    assert!(center.step(&runner, "x", done()).await);
    assert_eq!(center.stored("x").state, TaskState::Succeeded);
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_its_client_has_paused_stays_so_when_a_window_opens() {
    let center = TestCenter::new(152, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(within("x", export(), "22:00-23:00")).await.unwrap();
    center.begin(&runner, "x").await;
    center.leader.command(&id("x"), TaskCommand::Pause).await.unwrap();
    assert!(center.step(&runner, "x", stopped()).await);
    center.until("x", TaskState::Paused).await;
    sleep(24 * HOUR).await;
    assert_eq!((center.stored("x").state, center.stored("x").is_outside_windows), (TaskState::Paused, false));
    center.leader.command(&id("x"), TaskCommand::Resume).await.unwrap();
    center.until("x", TaskState::Assigned).await;
    // A cancel is the strongest.
    center.begin(&runner, "x").await;
    sleep(2 * HOUR).await;
    center.leader.command(&id("x"), TaskCommand::Cancel).await.unwrap();
    center.until("x", TaskState::Cancelling).await;
}
