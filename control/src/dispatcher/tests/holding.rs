//! Tests groups that hold their place: nothing stays frozen in a queue.

use super::support::*;
use crate::batch::OnFailure;
use crate::dispatcher::Config;
use crate::model::{
    GroupName, GroupTask, NodeId, NoopTask, Submission, TaskCommand, TaskSpec, TaskState, UnknownFields,
};
use blockhaul_engine::flow::graph::Condition::{self, End, Success};
use std::time::Duration;
use tokio::time::sleep;

fn holding(members: u32) -> TaskSpec {
    TaskSpec::Group(GroupTask {
        digest: "ab".repeat(32),
        members,
        parallel: None,
        on_failure: OnFailure::Stop,
        hold: true,
        unknown: UnknownFields::default(),
    })
}

/// Does nothing, on one node.
fn on(node: &str) -> TaskSpec {
    TaskSpec::Noop(NoopTask::new(1, Some(NodeId::new(node).unwrap())))
}

fn copy_on(node: &str, volume: &str) -> TaskSpec {
    TaskSpec::Copy(copy(&format!("file://{node}/a"), &format!("nbd://h/{volume}")))
}

fn member(group: &str, name: &str, spec: TaskSpec, after: &[(&str, Condition)]) -> Submission {
    let full = |name: &str| format!("{group}.{name}");
    let clean_up = after.iter().any(|(_, condition)| *condition == End);
    let after = after.iter().map(|(on, condition)| (id(&full(on)), *condition)).collect();
    Submission { after, group: Some(GroupName { id: id(group), clean_up }), ..submission(&full(name), spec) }
}

/// Submits a freeze on n1, a copy on n1, one on n2, and a thaw on n1.
pub(super) async fn machine(center: &TestCenter, group: &str) {
    let leader = &center.leader;
    leader.submit(submission(group, holding(4))).await.unwrap();
    leader.submit(member(group, "freeze", on("n1"), &[])).await.unwrap();
    leader.submit(member(group, "a", copy_on("n1", &format!("{group}-a")), &[("freeze", Success)])).await.unwrap();
    leader.submit(member(group, "b", copy_on("n2", "b"), &[("freeze", Success)])).await.unwrap();
    leader.submit(member(group, "thaw", on("n1"), &[("a", End), ("b", End)])).await.unwrap();
    leader.command(&id(group), TaskCommand::Seal).await.unwrap();
}

async fn reason(center: &TestCenter, task: &str) -> String {
    center.leader.get(&id(task)).await.unwrap().reason.clone()
}

#[tokio::test(start_paused = true)]
async fn the_first_member_waits_for_all_slots_and_then_nobody_else_gets_them() {
    let mut center = TestCenter::new(71, Config::default()).await;
    let first = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    let second = center.runner("n2", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(submission("other", on("n2"))).await.unwrap();
    center.begin(&second, "other").await;
    machine(&center, "g").await;
    // They come later, and would find a slot; the group collects it.
    center.leader.submit(submission("late1", on("n1"))).await.unwrap();
    center.leader.submit(submission("late2", on("n2"))).await.unwrap();
    sleep(Duration::from_secs(30)).await;
    let lack = "waiting until all that g needs is free: n2 has 0 of 1 slots free";
    assert_eq!(reason(&center, "g.freeze").await, lack);
    assert_eq!(reason(&center, "g").await, format!("4 members: 4 PENDING; {lack}"));
    assert_eq!(center.stored("late1").state, TaskState::Pending);
    assert!(center.step(&second, "other", done()).await);
    center.begin(&first, "g.freeze").await;
    assert_eq!(center.stored("late2").state, TaskState::Pending, "a slot of n2 is kept free");
    // A new leader keeps the same free.
    center.change_leader("l2").await;
    sleep(Duration::from_secs(30)).await;
    assert!(center.step(&first, "g.freeze", done()).await);
    center.begin(&first, "g.a").await;
    center.begin(&second, "g.b").await;
    assert!(center.step(&second, "g.b", done()).await);
    // The place of n2 is free again; that of n1 is kept for the thaw.
    center.begin(&second, "late2").await;
    assert!(center.step(&first, "g.a", done()).await);
    center.begin(&first, "g.thaw").await;
    assert_eq!(center.stored("late1").state, TaskState::Pending);
    assert!(center.step(&first, "g.thaw", done()).await);
    center.until("g", TaskState::Succeeded).await;
    center.begin(&first, "late1").await;
}

#[tokio::test(start_paused = true)]
async fn a_destination_is_waited_for_and_kept_free() {
    let center = TestCenter::new(72, Config::default()).await;
    let first = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    let second = center.runner("n2", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(submission("writer", copy_on("n2", "b"))).await.unwrap();
    center.begin(&second, "writer").await;
    machine(&center, "g").await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(
        reason(&center, "g.freeze").await,
        "waiting until all that g needs is free: task writer writes nbd://h/b"
    );
    assert!(center.step(&second, "writer", done()).await);
    center.begin(&first, "g.freeze").await;
    center.leader.submit(submission("rival", copy_on("n1", "b"))).await.unwrap();
    machine(&center, "g2").await;
    sleep(Duration::from_secs(30)).await;
    assert_eq!(reason(&center, "rival").await, "waiting for g, for which the destination is kept free");
    assert_eq!(reason(&center, "g2.freeze").await, "waiting until all that g2 needs is free: task g writes nbd://h/b");
    center.leader.command(&id("g2"), TaskCommand::CancelAll).await.unwrap();
    assert!(center.step(&first, "g.freeze", failed()).await);
    center.until("g.b", TaskState::Cancelled).await;
    center.begin(&first, "g.thaw").await;
    assert!(center.step(&first, "g.thaw", done()).await);
    center.begin(&first, "rival").await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_keeps_nobody_else_from_running() {
    let center = TestCenter::new(73, Config::default()).await;
    let first = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    machine(&center, "g").await;
    center.leader.submit(submission("late", on("n1"))).await.unwrap();
    center.begin(&first, "late").await;
    assert_eq!(reason(&center, "g.freeze").await, "waiting until all that g needs is free: n2 is not registered");
}

#[tokio::test(start_paused = true)]
async fn a_group_needs_no_more_slots_than_there_are() {
    let center = TestCenter::new(74, Config::default()).await;
    let first = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(submission("g", holding(3))).await.unwrap();
    center.leader.submit(member("g", "a", copy_on("n1", "a"), &[])).await.unwrap();
    center.leader.submit(member("g", "b", copy_on("n1", "b"), &[])).await.unwrap();
    let anywhere = TaskSpec::Copy(copy("nbd://h/a", "nbd://h/c"));
    center.leader.submit(member("g", "c", anywhere, &[])).await.unwrap();
    center.leader.command(&id("g"), TaskCommand::Seal).await.unwrap();
    center.begin(&first, "g.a").await;
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_the_same_decision_gives_to_another_task_is_not_free() {
    let center = TestCenter::new(75, Config::default()).await;
    center.leader.submit(submission("writer", copy_on("n1", "b"))).await.unwrap();
    center.leader.submit(submission("g", holding(2))).await.unwrap();
    center.leader.submit(member("g", "freeze", on("n1"), &[])).await.unwrap();
    center.leader.submit(member("g", "b", copy_on("n1", "b"), &[("freeze", Success)])).await.unwrap();
    center.leader.command(&id("g"), TaskCommand::Seal).await.unwrap();
    let first = center.runner("n1", "a", 4, Behaviour::Accepting).await;
    center.begin(&first, "writer").await;
    sleep(Duration::from_secs(5)).await;
    let lack = "waiting until all that g needs is free: task writer writes nbd://h/b";
    assert_eq!(reason(&center, "g.freeze").await, lack);
    assert!(center.step(&first, "writer", done()).await);
    center.begin(&first, "g.freeze").await;
}
