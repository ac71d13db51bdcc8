//! Tests groups: tasks that belong together.

use super::support::*;
use crate::batch::OnFailure;
use crate::dispatcher::decision::Decision;
use crate::dispatcher::{Config, Query};
use crate::model::state_machine::{Checkpoint, TaskEvent};
use crate::model::{
    DesiredState, GroupName, GroupTask, Holder, Submission, TaskCommand, TaskRecord, TaskSpec, TaskState, TaskTimes,
    UnknownFields,
};
use blockhaul_engine::error::Code;
use blockhaul_engine::flow::graph::Condition::{self, End, Success};
use std::time::Duration;
use tokio::time::sleep;

fn group(members: u32, parallel: Option<u32>, on_failure: OnFailure) -> TaskSpec {
    TaskSpec::Group(GroupTask {
        digest: "ab".repeat(32),
        members,
        parallel,
        on_failure,
        hold: false,
        unknown: UnknownFields::default(),
    })
}

/// A member of the group `g`.
fn member(name: &str, on: &[(&str, Condition)], clean_up: bool) -> Submission {
    let after = on.iter().map(|(name, condition)| (id(name), *condition)).collect();
    Submission { after, group: Some(GroupName { id: id("g"), clean_up }), ..submission(name, noop(1)) }
}

fn given_back() -> TaskEvent {
    TaskEvent::GivenBack { code: Code::Cancelled, checkpoint: Checkpoint::default() }
}

/// A sealed group of a freeze, two copies, and a thaw that comes after their end.
async fn machine(seed: u64, on_failure: OnFailure, parallel: Option<u32>) -> TestCenter {
    let center = TestCenter::new(seed, Config::default()).await;
    center.leader.submit(submission("g", group(4, parallel, on_failure))).await.unwrap();
    center.leader.submit(member("g.freeze", &[], false)).await.unwrap();
    center.leader.submit(member("g.a", &[("g.freeze", Success)], false)).await.unwrap();
    center.leader.submit(member("g.b", &[("g.freeze", Success)], false)).await.unwrap();
    center.leader.submit(member("g.thaw", &[("g.a", End), ("g.b", End)], true)).await.unwrap();
    center.leader.command(&id("g"), TaskCommand::Seal).await.unwrap();
    center
}

#[tokio::test(start_paused = true)]
async fn a_member_that_waits_for_a_slot_does_not_get_it_while_its_group_is_paused() {
    let center = TestCenter::new(29, Config::default()).await;
    let runner = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.leader.submit(submission("other", noop(1))).await.unwrap();
    center.begin(&runner, "other").await;
    center.leader.submit(submission("g", group(1, None, OnFailure::Stop))).await.unwrap();
    center.leader.submit(member("g.a", &[], false)).await.unwrap();
    center.leader.command(&id("g"), TaskCommand::Seal).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    center.leader.command(&id("g"), TaskCommand::Pause).await.unwrap();
    assert!(center.step(&runner, "other", done()).await);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(center.stored("g.a").state, TaskState::Pending, "it was in the queue when its group was paused");
    center.leader.command(&id("g"), TaskCommand::Resume).await.unwrap();
    center.begin(&runner, "g.a").await;
}

#[tokio::test(start_paused = true)]
async fn no_member_starts_before_the_seal_and_the_group_ends_with_its_last_member() {
    let center = TestCenter::new(21, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(submission("g", group(2, None, OnFailure::Stop))).await.unwrap();
    center.leader.submit(member("g.a", &[], false)).await.unwrap();
    let early = center.leader.command(&id("g"), TaskCommand::Seal).await.unwrap_err();
    assert_eq!((early.code, early.retryable), (Code::Busy, true));
    sleep(Duration::from_secs(60)).await;
    let waiting = center.leader.get(&id("g.a")).await.unwrap();
    assert_eq!((waiting.state, &*waiting.reason), (TaskState::Pending, "waiting until all members of g are stored"));
    assert!(center.leader.get(&id("g")).await.unwrap().reason.starts_with("1 of 2 members are stored"));
    // The same submissions again change nothing.
    center.leader.submit(submission("g", group(2, None, OnFailure::Stop))).await.unwrap();
    center.leader.submit(member("g.a", &[], false)).await.unwrap();
    center.leader.submit(member("g.b", &[("g.a", Success)], false)).await.unwrap();
    let third = center.leader.submit(member("g.c", &[], false)).await.unwrap_err();
    assert_eq!(third.code, Code::Busy);
    center.leader.command(&id("g"), TaskCommand::Seal).await.unwrap();
    center.begin(&runner, "g.a").await;
    sleep(Duration::from_millis(100)).await;
    let running = center.leader.get(&id("g")).await.unwrap();
    assert_eq!((running.state, &*running.reason), (TaskState::Running, "2 members: 1 PENDING, 1 RUNNING"));
    assert!(center.step(&runner, "g.a", done()).await);
    center.begin(&runner, "g.b").await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(center.stored("g").state, TaskState::Running);
    assert!(center.step(&runner, "g.b", done()).await);
    center.until("g", TaskState::Succeeded).await;
    let members = center.leader.list(Query { group: Some(id("g")), ..Query::default() }).await.unwrap();
    assert_eq!(members.tasks.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["g.a", "g.b"]);
}

#[tokio::test(start_paused = true)]
async fn a_failure_stops_the_others_and_spares_clean_up() {
    let center = machine(22, OnFailure::Stop, None).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.begin(&runner, "g.freeze").await;
    assert!(center.step(&runner, "g.freeze", done()).await);
    center.begin(&runner, "g.a").await;
    center.begin(&runner, "g.b").await;
    assert!(center.step(&runner, "g.a", failed()).await);
    center.until("g.b", TaskState::Cancelling).await;
    let group = center.leader.get(&id("g")).await.unwrap();
    assert_eq!(group.state, TaskState::Running);
    assert_eq!(group.error.as_ref().map(|error| &*error.message), Some("g.a: no"));
    assert_eq!(center.stored("g.thaw").state, TaskState::Pending);
    assert!(center.step(&runner, "g.b", given_back()).await);
    center.begin(&runner, "g.thaw").await;
    assert!(center.step(&runner, "g.thaw", done()).await);
    let group = center.until("g", TaskState::Failed).await;
    assert_eq!(group.error.map(|error| error.code), Some(Code::Io));
}

#[tokio::test(start_paused = true)]
async fn a_failure_leaves_others_alone_if_the_batch_says_so() {
    let center = machine(23, OnFailure::Continue, None).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.begin(&runner, "g.freeze").await;
    assert!(center.step(&runner, "g.freeze", done()).await);
    center.begin(&runner, "g.a").await;
    center.begin(&runner, "g.b").await;
    assert!(center.step(&runner, "g.a", failed()).await);
    sleep(Duration::from_secs(5)).await;
    assert_eq!(center.stored("g.b").state, TaskState::Running);
    assert!(center.step(&runner, "g.b", done()).await);
    center.begin(&runner, "g.thaw").await;
    assert!(center.step(&runner, "g.thaw", done()).await);
    center.until("g", TaskState::Failed).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancel_spares_clean_up_unless_all_is_to_be_cancelled() {
    for all in [false, true] {
        let center = machine(24, OnFailure::Stop, None).await;
        let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
        center.begin(&runner, "g.freeze").await;
        let command = if all { TaskCommand::CancelAll } else { TaskCommand::Cancel };
        center.leader.command(&id("g"), command).await.unwrap();
        center.until("g.a", TaskState::Cancelled).await;
        center.until("g.freeze", TaskState::Cancelling).await;
        assert_eq!(center.stored("g").state, TaskState::Cancelling);
        assert!(center.step(&runner, "g.freeze", given_back()).await);
        if !all {
            center.begin(&runner, "g.thaw").await;
            assert!(center.step(&runner, "g.thaw", done()).await);
        }
        center.until("g", TaskState::Cancelled).await;
        assert_eq!(center.stored("g.thaw").state == TaskState::Cancelled, all);
    }
}

#[tokio::test(start_paused = true)]
async fn a_paused_group_keeps_its_members_from_starting() {
    let center = machine(25, OnFailure::Stop, None).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.begin(&runner, "g.freeze").await;
    center.leader.command(&id("g"), TaskCommand::Pause).await.unwrap();
    // A task that cannot be paused goes on to its end.
    sleep(Duration::from_secs(2)).await;
    assert_eq!(center.stored("g.freeze").state, TaskState::Running);
    assert!(center.step(&runner, "g.freeze", done()).await);
    sleep(Duration::from_secs(20)).await;
    assert_eq!((center.stored("g").state, center.stored("g.a").state), (TaskState::Paused, TaskState::Pending));
    let shown = center.leader.get(&id("g.a")).await.unwrap();
    assert_eq!((&*shown.reason, shown.desired_state), ("g is paused", DesiredState::Pause));
    center.leader.command(&id("g"), TaskCommand::Resume).await.unwrap();
    center.until("g.a", TaskState::Assigned).await;
    assert_eq!(center.stored("g").state, TaskState::Running);
}

#[tokio::test(start_paused = true)]
async fn as_many_members_run_at_once_as_the_batch_allows() {
    let center = machine(26, OnFailure::Continue, Some(1)).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.begin(&runner, "g.freeze").await;
    assert!(center.step(&runner, "g.freeze", done()).await);
    center.begin(&runner, "g.a").await;
    sleep(Duration::from_secs(30)).await;
    let waiting = center.leader.get(&id("g.b")).await.unwrap();
    assert_eq!(
        (waiting.state, &*waiting.reason),
        (TaskState::Pending, "waiting for other members of g: as many run as its batch allows")
    );
    assert!(center.step(&runner, "g.a", failed()).await);
    center.begin(&runner, "g.b").await;
}

#[tokio::test(start_paused = true)]
async fn a_group_that_nobody_completes_is_cancelled_with_its_members_and_without_clean_up() {
    let center = TestCenter::new(27, Config::default()).await;
    center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(submission("g", group(3, None, OnFailure::Stop))).await.unwrap();
    center.leader.submit(member("g.a", &[], false)).await.unwrap();
    sleep(Duration::from_secs(9 * 60)).await;
    center.leader.submit(member("g.b", &[("g.a", End)], true)).await.unwrap();
    sleep(Duration::from_secs(9 * 60)).await;
    assert_eq!(center.stored("g").state, TaskState::Pending);
    sleep(Duration::from_secs(2 * 60)).await;
    assert_eq!(center.stored("g").state, TaskState::Cancelled);
    assert_eq!((center.stored("g.a").state, center.stored("g.b").state), (TaskState::Cancelled, TaskState::Cancelled));
    let late = center.leader.submit(member("g.c", &[], false)).await.unwrap_err();
    assert_eq!(late.code, Code::Busy);
}

#[tokio::test(start_paused = true)]
async fn a_new_leader_goes_on_with_a_group() {
    let mut center = machine(28, OnFailure::Stop, None).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.begin(&runner, "g.freeze").await;
    center.change_leader("l2").await;
    assert!(center.step(&runner, "g.freeze", done()).await);
    center.begin(&runner, "g.a").await;
    center.begin(&runner, "g.b").await;
    assert!(center.step(&runner, "g.b", failed()).await);
    center.change_leader("l3").await;
    center.until("g.a", TaskState::Cancelling).await;
    assert!(center.step(&runner, "g.a", given_back()).await);
    center.begin(&runner, "g.thaw").await;
    assert!(center.step(&runner, "g.thaw", done()).await);
    center.until("g", TaskState::Failed).await;
}

#[tokio::test(start_paused = true)]
async fn a_record_that_is_removed_by_hand_fails_its_group_and_a_group_its_members() {
    let center = machine(29, OnFailure::Stop, None).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.begin(&runner, "g.freeze").await;
    center.ensemble_delete("g.b").await;
    center.leader.changed(vec![id("g.b")]).await.unwrap();
    center.until("g.freeze", TaskState::Cancelling).await;
    assert!(center.step(&runner, "g.freeze", given_back()).await);
    let group = center.until("g", TaskState::Failed).await;
    assert_eq!(group.error.map(|error| error.code), Some(Code::NotFound));

    let center = machine(30, OnFailure::Stop, None).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.begin(&runner, "g.freeze").await;
    center.ensemble_delete("g").await;
    center.leader.changed(vec![id("g")]).await.unwrap();
    center.until("g.a", TaskState::Skipped).await;
    assert!(center.step(&runner, "g.freeze", done()).await);
}

#[tokio::test(start_paused = true)]
async fn a_group_is_purged_after_its_members_and_all_of_them_when_it_is_removed() {
    for is_removed in [false, true] {
        let center = machine(31, OnFailure::Stop, None).await;
        let busy = center.leader.remove(&id("g")).await.unwrap_err();
        assert_eq!(busy.code, Code::Busy);
        center.leader.command(&id("g"), TaskCommand::CancelAll).await.unwrap();
        center.until("g", TaskState::Cancelled).await;
        let busy = center.leader.remove(&id("g.a")).await.unwrap_err();
        assert!(busy.message.contains("is a member of g"), "{busy}");
        if is_removed {
            center.leader.remove(&id("g")).await.unwrap();
            sleep(Duration::from_secs(60)).await;
        } else {
            sleep(Duration::from_secs(6 * 24 * 3600)).await;
            assert!(center.leader.get(&id("g.a")).await.is_ok());
            sleep(Duration::from_secs(2 * 24 * 3600)).await;
        }
        for name in ["g", "g.a", "g.b", "g.freeze", "g.thaw"] {
            assert_eq!(center.leader.get(&id(name)).await.unwrap_err().code, Code::NotFound, "{name}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_starts_at_its_time_and_its_deadline_spares_clean_up() {
    let center = TestCenter::new(32, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    let times = TaskTimes { start_at_ms: None, delay_ms: Some(600_000), deadline_ms: Some(3_600_000) };
    let spec = group(2, None, OnFailure::Continue);
    center.leader.submit(Submission { times, ..submission("g", spec) }).await.unwrap();
    center.leader.submit(member("g.a", &[], false)).await.unwrap();
    center.leader.submit(member("g.thaw", &[("g.a", End)], true)).await.unwrap();
    center.leader.command(&id("g"), TaskCommand::Seal).await.unwrap();
    sleep(Duration::from_secs(590)).await;
    let waiting = center.leader.get(&id("g.a")).await.unwrap();
    assert!(waiting.state == TaskState::Pending && waiting.reason.starts_with("starts at "), "{}", waiting.reason);
    sleep(Duration::from_secs(20)).await;
    center.begin(&runner, "g.a").await;
    sleep(Duration::from_secs(3000)).await;
    center.until("g.a", TaskState::Cancelling).await;
    assert!(center.step(&runner, "g.a", given_back()).await);
    center.begin(&runner, "g.thaw").await;
    assert!(center.step(&runner, "g.thaw", done()).await);
    let group = center.until("g", TaskState::Failed).await;
    assert_eq!(group.error.map(|error| error.code), Some(Code::Timeout));
}

#[tokio::test(start_paused = true)]
async fn a_member_that_has_to_wait_after_it_was_resolved_frees_its_slot() {
    let center = TestCenter::new(34, Config::default()).await;
    let (mut leader, _handle) = center.idle_leader("l2").await;
    let registration = center.registration("n1", "a", 1);
    let to = Holder { node: registration.node.clone(), incarnation: registration.incarnation.clone() };
    leader.cluster.observe_runners([(registration.node.clone(), registration)].into(), 0, Duration::ZERO);
    let record = TaskRecord::new(member("g.a", &[], false), 1);
    let now = leader.now();
    leader.cluster.observe(record, 0, None, now);
    leader.cluster.reserve(&id("g.a"), &to.node, &[String::from("claim")]);
    leader.cluster.tasks.get_mut(&id("g.a")).unwrap().runtime.resolved =
        Some((to.clone(), vec![String::from("claim")]));
    assert!(leader.cluster.fleet.load(&to.node).is_none(), "its only slot is reserved");
    leader.enact(Decision::Idle(id("g.a")), now);
    assert!(leader.cluster.fleet.load(&to.node).is_some() && leader.cluster.claimed.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_group_ends_when_the_node_of_its_lost_member_is_back() {
    let center = TestCenter::new(31, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(submission("g", group(1, None, OnFailure::Stop))).await.unwrap();
    let spec = TaskSpec::Copy(copy("file://n1/a", "file://n1/b"));
    center.leader.submit(Submission { spec, ..member("g.a", &[], false) }).await.unwrap();
    center.leader.command(&id("g"), TaskCommand::Seal).await.unwrap();
    center.begin(&runner, "g.a").await;
    center.lose(&runner).await;
    center.leader.command(&id("g"), TaskCommand::Cancel).await.unwrap();
    center.until("g.a", TaskState::Cancelled).await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(center.stored("g").state, TaskState::Cancelling, "a write of its member may still land");
    center.runner("n1", "b", 9, Behaviour::Accepting).await;
    center.until("g", TaskState::Cancelled).await;
}
