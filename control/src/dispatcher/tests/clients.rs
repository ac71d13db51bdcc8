//! Tests the requests of clients and operators.

use super::support::*;
use crate::cluster::clock_skew::ClockSkew;
use crate::coord::Op;
use crate::coord::paths;
use crate::coord::sim::FaultRates;
use crate::dispatcher::{Config, Query, TermEnd};
use crate::model::state_machine::{Checkpoint, TaskEvent};
use crate::model::{
    DesiredState, DrainMode, FenceMethod, NodeId, Record, Submission, TaskChanges, TaskCommand, TaskId, TaskSpec,
    TaskState,
};
use blockhaul_engine::error::Code;
use blockhaul_engine::flow::graph::Condition;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::sleep;

fn id(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_task_goes_from_submission_to_success_and_leaves_no_claim() {
    let center = TestCenter::new(1, Config::default()).await;
    center.runner("n1", "a", 2, Behaviour::Completing).await;
    let mut watch = None;
    for name in ["x", "y", "z"] {
        center.leader.submit(submission(name, noop(20))).await.unwrap();
        watch = Some(center.leader.watch(&id(name)).await.unwrap());
    }
    for name in ["x", "y", "z"] {
        let done = center.until(name, TaskState::Succeeded).await;
        assert_eq!((done.attempts.len(), done.holder, done.failures), (1, None, 0));
        center.leader.changed(vec![id(name)]).await.unwrap();
    }
    assert_eq!(center.claims(), []);
    let mut watch = watch.unwrap();
    watch.wait_for(|record| record.state == TaskState::Succeeded).await.unwrap();
    let status = center.leader.status().await.unwrap();
    assert_eq!((status.runners, status.metrics.assignments.get()), (1, 3));
    assert!(status.tasks.contains(&(TaskState::Succeeded, 3)));
}

#[tokio::test(start_paused = true)]
async fn the_same_submission_is_the_same_task_and_another_one_is_refused() {
    let center = TestCenter::new(2, Config::default()).await;
    let first = center.leader.submit(submission("x", noop(1))).await.unwrap();
    let (again, other) =
        tokio::join!(center.leader.submit(submission("x", noop(1))), center.leader.submit(submission("x", noop(2))));
    assert_eq!(again.unwrap().created_ms, first.created_ms);
    assert_eq!(other.unwrap_err().code, Code::Exists);
    let by_command =
        TaskSpec::Copy(crate::model::CopyTask { fence: FenceMethod::Command, ..copy("nbd://h/a", "nbd://h/b") });
    assert_eq!(center.leader.submit(submission("y", by_command)).await.unwrap_err().code, Code::Unsupported);
}

#[tokio::test(start_paused = true)]
async fn clients_change_tasks_where_their_state_permits() {
    let center = TestCenter::new(3, Config::default()).await;
    let leader = &center.leader;
    assert_eq!(leader.command(&id("none"), TaskCommand::Cancel).await.unwrap_err().code, Code::NotFound);
    leader.submit(submission("noop", noop(1))).await.unwrap();
    assert_eq!(leader.command(&id("noop"), TaskCommand::Pause).await.unwrap_err().code, Code::Unsupported);
    assert_eq!(leader.get(&id("noop")).await.unwrap().reason, "waiting for a runner: none is registered");
    assert_eq!(leader.command(&id("noop"), TaskCommand::Cancel).await.unwrap().state, TaskState::Cancelled);
    assert_eq!(leader.command(&id("noop"), TaskCommand::Cancel).await.unwrap().state, TaskState::Cancelled);
    leader.submit(submission("copy", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    assert_eq!(leader.command(&id("copy"), TaskCommand::Pause).await.unwrap().state, TaskState::Paused);
    leader.command(&id("copy"), TaskCommand::Set(TaskChanges::limit(Some(7)))).await.unwrap();
    let again = leader.submit(submission("copy", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    assert!(matches!(&again.spec, TaskSpec::Copy(copy) if copy.limit == Some(7)));
    let runner = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    assert_eq!(leader.command(&id("copy"), TaskCommand::Resume).await.unwrap().desired_state, DesiredState::Run);
    center.begin(&runner, "copy").await;
    sleep(Duration::from_millis(50)).await;
    center.runners.take_calls();
    assert_eq!(leader.command(&id("copy"), TaskCommand::Pause).await.unwrap().state, TaskState::Running);
    sleep(Duration::from_millis(50)).await;
    assert_eq!(center.runners.take_calls(), ["n1 notify copy"]);
    let checkpoint = Checkpoint::default();
    assert!(
        center
            .step(&runner, "copy", TaskEvent::GivenBack { code: Code::Cancelled, checkpoint: checkpoint.clone() })
            .await
    );
    assert_eq!(center.stored("copy").state, TaskState::Paused);
    leader.command(&id("copy"), TaskCommand::Resume).await.unwrap();
    center.begin(&runner, "copy").await;
    assert_eq!(leader.command(&id("copy"), TaskCommand::Cancel).await.unwrap().state, TaskState::Cancelling);
    assert!(center.step(&runner, "copy", TaskEvent::GivenBack { code: Code::Cancelled, checkpoint }).await);
    let done = center.stored("copy");
    assert_eq!((done.state, done.failures, done.attempts.len()), (TaskState::Cancelled, 0, 2));
    assert_eq!(center.claims(), []);
    assert_eq!(leader.command(&id("copy"), TaskCommand::Resume).await.unwrap_err().code, Code::Busy);
}

/// Method: the answer to the write is lost, and after a hint the record is read before the outcome is resolved.
#[tokio::test(start_paused = true)]
async fn a_read_that_overtakes_the_answer_to_a_write_leaves_the_task_due() {
    for seed in 0..8 {
        let center = TestCenter::new(seed, Config::default()).await;
        let task = submission("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")));
        center.leader.submit(task).await.unwrap();
        center.leader.command(&id("x"), TaskCommand::Pause).await.unwrap();
        center.runner("n1", "a", 2, Behaviour::Accepting).await;
        center.ensemble.set_fault_rates(FaultRates { latency_ms: (50, 50), lost_reply: 1.0, ..FaultRates::default() });
        let hint = async {
            sleep(Duration::from_millis(10)).await;
            center.leader.changed(vec![id("x")]).await.unwrap();
        };
        let paused = id("x");
        let (resumed, ()) = tokio::join!(center.leader.command(&paused, TaskCommand::Resume), hint);
        assert_eq!(resumed.unwrap().state, TaskState::Pending);
        center.ensemble.set_fault_rates(FaultRates::default());
        center.until("x", TaskState::Assigned).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_comes_in_pages() {
    let center = TestCenter::new(4, Config::default()).await;
    for index in 0..7 {
        center.leader.submit(submission(&format!("t{index}"), noop(1))).await.unwrap();
    }
    center.leader.command(&id("t3"), TaskCommand::Cancel).await.unwrap();
    let names =
        |page: &crate::dispatcher::handle::Page| page.tasks.iter().map(|task| task.id.to_string()).collect::<Vec<_>>();
    let query = Query { state: Some(TaskState::Pending), limit: 4, ..Query::default() };
    let page = center.leader.list(query).await.unwrap();
    assert_eq!(
        (names(&page), page.next.clone()),
        (["t0", "t1", "t2", "t4"].map(String::from).to_vec(), Some(id("t4")))
    );
    let page = center
        .leader
        .list(Query { state: Some(TaskState::Pending), after: page.next, limit: 4, ..Query::default() })
        .await
        .unwrap();
    assert_eq!((names(&page), page.next), (["t5", "t6"].map(String::from).to_vec(), None));
    assert_eq!(center.leader.list(Query::default()).await.unwrap().tasks.len(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_second_task_for_a_destination_waits_for_the_first() {
    let center = TestCenter::new(5, Config::default()).await;
    let runner = center.runner("n1", "a", 8, Behaviour::Accepting).await;
    for (name, source) in [("first", "nbd://h/a"), ("second", "nbd://h/c")] {
        center.leader.submit(submission(name, TaskSpec::Copy(copy(source, "nbd://h/b")))).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    center.leader.submit(submission("other", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/d")))).await.unwrap();
    center.until("other", TaskState::Assigned).await;
    let waiting = center.leader.get(&id("second")).await.unwrap();
    assert_eq!(
        (waiting.state, &*waiting.reason),
        (TaskState::Pending, "waiting for task first, which has claimed the destination")
    );
    center.begin(&runner, "first").await;
    assert!(
        center.step(&runner, "first", TaskEvent::Succeeded { checkpoint: Checkpoint::default(), report: None }).await
    );
    center.until("second", TaskState::Assigned).await;
}

#[tokio::test(start_paused = true)]
async fn a_local_destination_is_resolved_or_refused_by_its_node() {
    let center = TestCenter::new(6, Config::default()).await;
    center.runner("n1", "a", 1, Behaviour::Accepting).await;
    center.runner("n2", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(submission("x", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")))).await.unwrap();
    let record = center.until("x", TaskState::Assigned).await;
    assert_eq!((record.claims, record.holder.unwrap().node), (vec![String::from("inode:n1:file://n1/b")], node("n1")));
    center.leader.submit(submission("full", TaskSpec::Copy(copy("file://n1/c", "file://n1/d")))).await.unwrap();
    center.leader.submit(submission("gone", TaskSpec::Copy(copy("file://n3/c", "file://n3/d")))).await.unwrap();
    let reason = |name: &'static str| {
        let leader = center.leader.clone();
        async move { leader.get(&id(name)).await.unwrap().reason.clone() }
    };
    assert_eq!(reason("full").await, "waiting for n1, which has no free slot");
    assert_eq!(reason("gone").await, "waiting for n3, which is not registered");
    center.runners.set_behaviour("n2", Behaviour::Refusing(Code::Permission));
    center.leader.submit(submission("no", TaskSpec::Copy(copy("file://n2/c", "file://n2/d")))).await.unwrap();
    let failed = center.until("no", TaskState::Failed).await;
    assert_eq!((failed.error.unwrap().code, failed.attempts.len()), (Code::Permission, 0));
}

#[tokio::test(start_paused = true)]
async fn a_refusing_runner_gets_a_backoff_and_a_silent_one_loses_the_task() {
    let center = TestCenter::new(7, Config::default()).await;
    center.runner("n1", "a", 9, Behaviour::Refusing(Code::Overloaded)).await;
    center.leader.submit(submission("x", noop(1))).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    let record = center.stored("x");
    assert_eq!((record.state, record.failures), (TaskState::Pending, 0));
    assert!((4..=6).contains(&record.attempts.len()), "{} attempts after 20 s", record.attempts.len());
    assert_eq!(record.attempts[0].outcome.as_deref(), Some("EOverloaded"));
    center.runner("n2", "a", 9, Behaviour::Silent).await;
    let silent = center.until("x", TaskState::Assigned).await;
    assert_eq!(silent.node(), Some(&node("n2")));
    center.runners.set_behaviour("n1", Behaviour::Completing);
    let done = center.until("x", TaskState::Succeeded).await;
    let outcomes: Vec<_> = done.attempts.iter().rev().take(2).map(|attempt| attempt.outcome.clone().unwrap()).collect();
    assert_eq!(outcomes, ["succeeded", "EUnreachable"]);
    assert!(done.attempts.iter().all(|attempt| attempt.quiet));
}

#[tokio::test(start_paused = true)]
async fn an_assignment_whose_answer_is_lost_is_queried() {
    let center = TestCenter::new(8, Config::default()).await;
    center.runner("n1", "a", 9, Behaviour::Silent).await;
    center.leader.submit(submission("x", noop(1))).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    center.runners.set_behaviour("n1", Behaviour::Accepting);
    center.runners.take_calls();
    sleep(Duration::from_secs(3)).await;
    let calls = center.runners.take_calls();
    assert_eq!(calls[0], "n1 query x");
    assert!(
        calls.contains(&String::from("n1 assign x")),
        "unknown to the runner, the task was assigned again: {calls:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_draining_node_gets_no_tasks_and_returns_its_own_when_asked() {
    let center = TestCenter::new(9, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    assert_eq!(center.leader.drain(&node("n9"), DrainMode::Finish, None).await.unwrap_err().code, Code::NotFound);
    center.leader.submit(submission("x", noop(1))).await.unwrap();
    center.begin(&runner, "x").await;
    center.leader.drain(&node("n1"), DrainMode::Finish, None).await.unwrap();
    center.leader.submit(submission("y", noop(1))).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(center.stored("y").state, TaskState::Pending);
    center.runners.take_calls();
    center.leader.drain(&node("n1"), DrainMode::Now, None).await.unwrap();
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(center.runners.take_calls(), ["n1 interrupt"; 3]);
    assert!(
        center
            .step(&runner, "x", TaskEvent::GivenBack { code: Code::RunnerInterrupt, checkpoint: Checkpoint::default() })
            .await
    );
    sleep(Duration::from_secs(3)).await;
    center.runners.take_calls();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(center.runners.take_calls(), [""; 0]);
    let shown = center.leader.runners().await.unwrap();
    assert!(shown[0].drain.as_ref().unwrap().now && shown[0].tasks == 0);
    center.leader.drain(&node("n1"), DrainMode::Undo, None).await.unwrap();
    center.until("x", TaskState::Assigned).await;
    center.until("y", TaskState::Assigned).await;
}

#[tokio::test(start_paused = true)]
async fn an_unregistered_node_can_be_drained_before_it_returns() {
    let center = TestCenter::new(14, Config::default()).await;
    let drain = |name: &'static str, mode| {
        let leader = center.leader.clone();
        async move { leader.drain(&node(name), mode, None).await }
    };
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(submission("local", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")))).await.unwrap();
    center.begin(&runner, "local").await;
    center.lose(&runner).await;
    center.until("local", TaskState::Lost).await;
    drain("n1", DrainMode::Now).await.unwrap();
    center.leader.submit(submission("x", noop(1))).await.unwrap();
    center.runners.take_calls();
    // The same process registers again, and is asked to return its task.
    center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.until("local", TaskState::Running).await;
    sleep(Duration::from_secs(3)).await;
    assert!(center.runners.take_calls().contains(&String::from("n1 interrupt")));
    assert_eq!(center.stored("x").state, TaskState::Pending);
    drain("n1", DrainMode::Undo).await.unwrap();
    drain("n1", DrainMode::Undo).await.unwrap();
    center.until("x", TaskState::Assigned).await;
    for desired_state in [DrainMode::Finish, DrainMode::Now, DrainMode::Undo] {
        assert_eq!(drain("unknown", desired_state).await.unwrap_err().code, Code::NotFound);
    }
}

#[tokio::test(start_paused = true)]
async fn ended_tasks_are_purged_and_their_ids_are_free_again() {
    let config = Config { retention: Duration::from_secs(60), ..Config::default() };
    let center = TestCenter::new(10, config).await;
    center.leader.submit(submission("x", noop(1))).await.unwrap();
    center.leader.command(&id("x"), TaskCommand::Cancel).await.unwrap();
    sleep(Duration::from_secs(59)).await;
    assert_eq!(center.leader.submit(submission("x", noop(2))).await.unwrap_err().code, Code::Exists);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(center.leader.get(&id("x")).await.unwrap_err().code, Code::NotFound);
    assert!(center.ensemble.committed(&paths::task(&id("x"))).is_none());
    center.leader.submit(submission("x", noop(2))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn undecodable_records_are_reported_and_left_alone() {
    let mut center = TestCenter::new(11, Config::default()).await;
    center.leader.submit(submission("good", noop(1))).await.unwrap();
    center.leader.submit(submission("bad", noop(1))).await.unwrap();
    let session = center.ensemble.client("operator").open().await.unwrap();
    let path = paths::task(&id("bad"));
    let version = center.ensemble.committed(&path).unwrap().stat.version;
    session.multi(vec![Op::Set { path: path.clone(), data: b"{}".to_vec(), version }]).await.unwrap();
    assert_eq!(center.change_leader("d2").await, TermEnd::LostLeadership);
    center.runner("n1", "a", 9, Behaviour::Completing).await;
    center.until("good", TaskState::Succeeded).await;
    let status = center.leader.status().await.unwrap();
    assert_eq!(status.undecodable.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), [path.as_str()]);
    assert_eq!(center.leader.submit(submission("bad", noop(1))).await.unwrap_err().code, Code::Exists);
    assert_eq!(center.ensemble.committed(&path).unwrap().data, b"{}");
}

#[tokio::test(start_paused = true)]
async fn the_higher_priority_goes_first_and_age_counts() {
    let center = TestCenter::new(12, Config::default()).await;
    for (name, priority) in [("old", 3), ("low", 0), ("high", 9), ("high2", 9)] {
        center.leader.submit(Submission { priority, ..submission(name, noop(1)) }).await.unwrap();
        sleep(Duration::from_secs(if name == "old" { 7 * 60 } else { 1 })).await;
    }
    center.runner("n1", "a", 1, Behaviour::Completing).await;
    for name in ["old", "low", "high", "high2"] {
        center.until(name, TaskState::Succeeded).await;
        center.leader.changed(vec![id(name)]).await.unwrap();
    }
    let assigned = center.runners.take_calls().into_iter().filter(|line| line.contains("assign"));
    let order: Vec<String> = assigned.map(|line| line.replace("n1 assign ", "")).collect();
    assert_eq!(order, ["old", "high", "high2", "low"]);
}

/// Method: the access list of the claims is changed, and later back.
#[tokio::test(start_paused = true)]
async fn a_refused_write_is_shown_in_the_reason_of_its_task() {
    let center = TestCenter::new(13, Config::default()).await;
    center.runner("n1", "a", 9, Behaviour::Completing).await;
    center.ensemble.forbid(Some("/claims/"));
    center.leader.submit(submission("x", noop(1))).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    let waits = center.leader.get(&id("x")).await.unwrap();
    assert_eq!(waits.state, TaskState::Pending);
    assert!(
        waits.reason.starts_with("record cannot be written: the coordination service refuses to write /claims/"),
        "{}",
        waits.reason
    );
    assert!(waits.reason.contains("not permitted by the access list of the node (NoAuth)"), "{}", waits.reason);
    center.ensemble.forbid(Some("/tasks/"));
    let refused = center.leader.submit(submission("y", noop(1))).await.unwrap_err();
    assert!(refused.code == Code::Permission && refused.message.contains("NoAuth"), "{refused}");
    let refused = center.leader.command(&id("x"), TaskCommand::Cancel).await.unwrap_err();
    assert!(refused.code == Code::Permission && !refused.retryable, "{refused}");
    center.ensemble.forbid(None);
    let done = center.until("x", TaskState::Succeeded).await;
    assert_eq!((done.failures, &*done.reason), (0, ""));
}

#[tokio::test(start_paused = true)]
async fn ended_tasks_are_purged_to_make_room_for_new_ones() {
    let center = TestCenter::new(15, Config { tasks_max: 4, ..Config::default() }).await;
    for index in 0..12 {
        let name = format!("t{index}");
        center.leader.submit(submission(&name, noop(1))).await.unwrap();
        center.leader.command(&id(&name), TaskCommand::Cancel).await.unwrap();
    }
    for name in ["a", "b", "c", "d"] {
        center.leader.submit(submission(name, noop(1))).await.unwrap();
    }
    assert_eq!(center.leader.submit(submission("e", noop(1))).await.unwrap_err().code, Code::Overloaded);
    sleep(Duration::from_secs(1)).await;
    let left = center.leader.list(Query::default()).await.unwrap().tasks;
    assert_eq!(left.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn ended_tasks_above_their_bound_go_the_oldest_first_but_not_those_that_are_needed() {
    let center = TestCenter::new(15, Config { ended_max: 3, ..Config::default() }).await;
    for index in 0..3 {
        center.leader.submit(submission(&format!("t{index}"), noop(1))).await.unwrap();
    }
    center.leader.submit(submission("live", noop(1))).await.unwrap();
    let after = [(id("t0"), Condition::End), (id("live"), Condition::End)].into();
    let waits = Submission { after, ..submission("waits", noop(1)) };
    center.leader.submit(waits).await.unwrap();
    for index in 0..8 {
        let name = format!("t{index}");
        if index > 2 {
            center.leader.submit(submission(&name, noop(1))).await.unwrap();
        }
        center.leader.command(&id(&name), TaskCommand::Cancel).await.unwrap();
    }
    sleep(Duration::from_secs(1)).await;
    let left = center.leader.list(Query::default()).await.unwrap().tasks;
    let left: BTreeSet<&str> = left.iter().map(|task| task.id.as_str()).collect();
    assert_eq!(left, BTreeSet::from(["live", "t0", "t6", "t7", "waits"]));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_has_ended_is_removed_when_asked() {
    let center = TestCenter::new(16, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    let remove = |name: &'static str| {
        let leader = center.leader.clone();
        async move { leader.remove(&id(name)).await }
    };
    assert_eq!(remove("x").await.unwrap_err().code, Code::NotFound);
    center.leader.submit(submission("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    center.begin(&runner, "x").await;
    let refused = remove("x").await.unwrap_err();
    assert!(refused.code == Code::Busy && refused.message.contains("cancel it first"), "{refused}");
    center.lose(&runner).await;
    center.until("x", TaskState::Lost).await;
    center.leader.command(&id("x"), TaskCommand::Cancel).await.unwrap();
    center.until("x", TaskState::Cancelled).await;
    let refused = remove("x").await.unwrap_err();
    assert!(refused.code == Code::Busy && refused.retryable, "its runner may still write: {refused}");
    sleep(Duration::from_secs(40)).await;
    assert_eq!(remove("x").await.unwrap().state, TaskState::Cancelled);
    assert!(center.ensemble.committed(&paths::task(&id("x"))).is_none());
    assert_eq!(remove("x").await.unwrap_err().code, Code::NotFound);
    assert_eq!(center.leader.submit(submission("x", noop(2))).await.unwrap().state, TaskState::Pending);
}

/// Method: n3 takes over the address of n1, and answers a call for n1.
#[tokio::test(start_paused = true)]
async fn a_task_waits_for_its_node_when_another_one_answers_at_its_address() {
    let center = TestCenter::new(18, Config::default()).await;
    center.runner("n1", "a", 9, Behaviour::Refusing(Code::Unreachable)).await;
    let session = center.ensemble.client("n3").open().await.unwrap();
    let mut other = center.registration("n3", "a", 0);
    other.address = String::from("n1");
    let path = paths::runner("n3");
    let create = Op::Create { path: path.clone(), data: other.encode(), mode: crate::coord::CreateMode::Ephemeral };
    session.multi(vec![create]).await.unwrap();
    center.leader.submit(submission("x", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")))).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    let waits = center.leader.get(&id("x")).await.unwrap();
    assert_eq!((waits.state, waits.failures), (TaskState::Pending, 0));
    assert_eq!(waits.reason, "waiting for n1: n3 has registered the same address, n1");
    session.multi(vec![Op::Delete { path, version: 0 }]).await.unwrap();
    center.runners.set_behaviour("n1", Behaviour::Completing);
    center.until("x", TaskState::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_leaps_or_is_ahead_of_others_purges_nothing() {
    let (skew, measured) = tokio::sync::watch::channel(ClockSkew::default());
    let ahead = |ahead_ms| skew.send_modify(|skew| skew.ahead_ms = Some(ahead_ms));
    let retention = Duration::from_secs(60);
    let center = TestCenter::new(17, Config { retention, clock_skew: Some(measured), ..Config::default() }).await;
    center.leader.submit(submission("x", noop(1))).await.unwrap();
    center.leader.command(&id("x"), TaskCommand::Cancel).await.unwrap();
    let is_there = || center.ensemble.committed(&paths::task(&id("x"))).is_some();
    sleep(Duration::from_secs(100)).await;
    assert!(is_there(), "no node has answered yet");
    ahead(8 * 86_400_000);
    sleep(Duration::from_secs(100)).await;
    assert!(is_there(), "by another node's clock it is too early");
    ahead(0);
    while is_there() {
        sleep(Duration::from_secs(1)).await;
    }
    center.leader.submit(submission("x", noop(1))).await.unwrap();
    center.leader.command(&id("x"), TaskCommand::Cancel).await.unwrap();
    center.clock.jump(8 * 86_400_000);
    sleep(Duration::from_secs(50)).await;
    assert!(is_there(), "the clock has leapt");
}
