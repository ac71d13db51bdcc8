//! Tests the settings of the center: each has its effect at once, and survives a change of leaders.

use super::support::*;
use crate::dispatcher::{Config, Query};
use crate::model::{DrainMode, NodeId, SettingName, Submission, TaskRecord, TaskSpec, TaskState};
use blockhaul_engine::error::{Code, Error};
use std::time::Duration;
use tokio::time::sleep;

async fn set(center: &TestCenter, name: &str, value: &str) -> Result<u32, Error> {
    let changes = vec![(SettingName::parse(name).unwrap(), value.to_owned())];
    let (settings, version) = center.leader.settings(changes, None).await?;
    assert!(settings.all().contains(&(SettingName::parse(name).unwrap().as_str(), value.to_owned())));
    Ok(crate::dispatcher::shown_version(version))
}

async fn tasks(center: &TestCenter) -> Vec<TaskRecord> {
    let page = center.leader.list(Query::default()).await.unwrap();
    page.tasks.iter().map(|task| (**task).clone()).collect()
}

fn export(name: &str, volume: &str) -> Submission {
    submission(name, TaskSpec::Copy(copy("nbd://h/a", &format!("nbd://h/{volume}"))))
}

#[tokio::test(start_paused = true)]
async fn settings_are_versioned_and_a_bad_value_changes_nothing() {
    let mut center = TestCenter::new(110, Config::default()).await;
    assert_eq!(center.leader.settings(Vec::new(), None).await.unwrap().1, None);
    assert_eq!(set(&center, "slots", "3").await.unwrap(), 1);
    assert_eq!(set(&center, "slots", "3").await.unwrap(), 1, "nothing has changed");
    assert_eq!(set(&center, "placement", "fill").await.unwrap(), 2);
    let both = |slots: &str| vec![(SettingName::Placement, "spread".into()), (SettingName::Slots, slots.into())];
    assert_eq!(center.leader.settings(both("0"), None).await.unwrap_err().code, Code::BadRequest);
    assert_eq!(center.leader.settings(both("4"), Some(1)).await.unwrap_err().code, Code::Exists);
    center.change_leader("l2").await;
    let (settings, version) = center.leader.settings(Vec::new(), None).await.unwrap();
    assert_eq!((settings.slots, version), (Some(3), Some(1)));
    assert!(settings.all().contains(&("placement", String::from("fill"))));
}

#[tokio::test(start_paused = true)]
async fn each_failed_task_is_told_of_once_and_those_before_the_setting_are_not() {
    let mut center = TestCenter::new(111, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    let fail = async |center: &TestCenter, name: &str| {
        center.leader.submit(submission(name, noop(1))).await.unwrap();
        center.begin(&runner, name).await;
        assert!(center.step(&runner, name, failed()).await);
        center.until(name, TaskState::Failed).await;
    };
    fail(&center, "before").await;
    sleep(Duration::from_secs(1)).await;
    set(&center, "notify", "page").await.unwrap();
    fail(&center, "after").await;
    sleep(Duration::from_secs(5)).await;
    let told: Vec<TaskRecord> = tasks(&center).await.into_iter().filter(|task| task.notifies.is_some()).collect();
    let of: Vec<&str> = told.iter().filter_map(|task| Some(task.notifies.as_ref()?.as_str())).collect();
    assert_eq!(of, ["after"]);
    let TaskSpec::Run(run) = &told[0].spec else { panic!("a hook was asked for") };
    assert_eq!((run.hook.as_str(), run.input.as_str()), ("page", "no"));
    assert_eq!(run.arguments, ["TASK=after", "CODE=EIo"]);
    assert!(center.stored("after").is_notified && !center.stored("before").is_notified);
    // Its record is removed, and a new leader does not tell of the failure again; nor of the hook's own failure.
    let name = told[0].id.to_string();
    center.begin(&runner, &name).await;
    assert!(center.step(&runner, &name, failed()).await);
    center.until(&name, TaskState::Failed).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(tasks(&center).await.len(), 3);
    center.leader.remove(&id(&name)).await.unwrap();
    center.change_leader("l2").await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(tasks(&center).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lost_node_is_waited_for_as_long_as_the_setting_says() {
    let center = TestCenter::new(112, Config::default()).await;
    let first = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    set(&center, "lost-grace", "5m").await.unwrap();
    center.leader.submit(export("x", "x")).await.unwrap();
    center.begin(&first, "x").await;
    center.runner("n2", "a", 9, Behaviour::Accepting).await;
    center.lose(&first).await;
    center.until("x", TaskState::Lost).await;
    sleep(Duration::from_secs(200)).await;
    assert_eq!(center.stored("x").state, TaskState::Lost);
    // It is back, and then nothing keeps the task any longer.
    center.runner("n1", "b", 9, Behaviour::Accepting).await;
    sleep(Duration::from_secs(10)).await;
    assert_eq!(center.stored("x").state, TaskState::Assigned);
}

#[tokio::test(start_paused = true)]
async fn a_shorter_grace_counts_at_once() {
    let center = TestCenter::new(113, Config::default()).await;
    let first = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    set(&center, "lost-grace", "1h").await.unwrap();
    center.leader.submit(export("x", "x")).await.unwrap();
    center.begin(&first, "x").await;
    center.runner("n2", "a", 9, Behaviour::Accepting).await;
    center.lose(&first).await;
    center.until("x", TaskState::Lost).await;
    sleep(Duration::from_secs(60)).await;
    set(&center, "lost-grace", "0s").await.unwrap();
    assert_eq!(center.until("x", TaskState::Assigned).await.node().unwrap().as_str(), "n2");
}

#[tokio::test(start_paused = true)]
async fn no_more_nodes_are_drained_than_the_setting_says() {
    let center = TestCenter::new(114, Config::default()).await;
    for node in ["n1", "n2"] {
        center.runner(node, "a", 1, Behaviour::Accepting).await;
    }
    let node = |name: &str| NodeId::new(name).unwrap();
    set(&center, "max-drained", "1").await.unwrap();
    center.leader.drain(&node("n1"), DrainMode::Finish, None).await.unwrap();
    center.leader.drain(&node("n1"), DrainMode::Now, None).await.unwrap();
    let refused = center.leader.drain(&node("n2"), DrainMode::Finish, None).await.unwrap_err();
    assert!(refused.code == Code::Busy && refused.message.contains("max-drained is 1"), "{refused}");
    center.leader.drain(&node("n1"), DrainMode::Undo, None).await.unwrap();
    center.leader.drain(&node("n2"), DrainMode::Finish, None).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn tasks_spread_over_nodes_or_fill_one_after_the_other() {
    let center = TestCenter::new(115, Config::default()).await;
    for (node, slots) in [("n1", 2), ("n2", 8)] {
        center.runner(node, "a", slots, Behaviour::Accepting).await;
    }
    sleep(Duration::from_secs(1)).await;
    let place = async |names: &[&str]| {
        let mut nodes = Vec::new();
        for name in names {
            center.leader.submit(submission(name, noop(1))).await.unwrap();
            nodes.push(center.until(name, TaskState::Assigned).await.node().unwrap().to_string());
        }
        nodes
    };
    // The most free slots first.
    assert_eq!(place(&["a", "b"]).await, ["n2", "n2"]);
    set(&center, "placement", "fill").await.unwrap();
    assert_eq!(place(&["c", "d", "e"]).await, ["n1", "n1", "n2"]);
    // n2 has three of at most four.
    set(&center, "slots", "4").await.unwrap();
    assert_eq!(place(&["f"]).await, ["n2"]);
    center.leader.submit(submission("g", noop(1))).await.unwrap();
    sleep(Duration::from_secs(30)).await;
    assert_eq!(center.stored("g").state, TaskState::Pending);
    set(&center, "slots", "none").await.unwrap();
    assert_eq!(center.until("g", TaskState::Assigned).await.node().unwrap().as_str(), "n2");
}
