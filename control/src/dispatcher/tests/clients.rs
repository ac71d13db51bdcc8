//! Tests the requests of clients and operators.

use super::stage::*;
use crate::coord::Op;
use crate::coord::paths;
use crate::coord::sim::FaultRates;
use crate::dispatcher::{Config, Ending, Query};
use crate::model::state_machine::{Checkpoint, TaskEvent};
use crate::model::{
    DesiredState, DrainMode, Fence, NodeId, Record, Submission, TaskChange, TaskId, TaskSpec, TaskState,
};
use blockhaul_engine::error::Code;
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
    let stage = Stage::new(1, Config::default()).await;
    stage.runner("n1", "a", 2, Manner::Busy).await;
    let mut watch = None;
    for name in ["x", "y", "z"] {
        stage.leader.submit(order(name, noop(20))).await.unwrap();
        watch = Some(stage.leader.watch(&id(name)).await.unwrap());
    }
    for name in ["x", "y", "z"] {
        let done = stage.until(name, TaskState::Succeeded).await;
        assert_eq!((done.attempts.len(), done.holder, done.failures), (1, None, 0));
        stage.leader.changed(vec![id(name)]).await.unwrap();
    }
    assert_eq!(stage.claims(), []);
    let mut watch = watch.unwrap();
    watch.wait_for(|record| record.state == TaskState::Succeeded).await.unwrap();
    let status = stage.leader.status().await.unwrap();
    assert_eq!((status.runners, status.assignments), (1, 3));
    assert!(status.tasks.contains(&(TaskState::Succeeded, 3)));
}

#[tokio::test(start_paused = true)]
async fn the_same_submission_is_the_same_task_and_another_one_is_refused() {
    let stage = Stage::new(2, Config::default()).await;
    let first = stage.leader.submit(order("x", noop(1))).await.unwrap();
    let (again, other) =
        tokio::join!(stage.leader.submit(order("x", noop(1))), stage.leader.submit(order("x", noop(2))));
    assert_eq!(again.unwrap().created_ms, first.created_ms);
    assert_eq!(other.unwrap_err().code, Code::Exists);
    let fence_runner =
        TaskSpec::Copy(crate::model::CopyTask { fence: Fence::Command, ..copy("nbd://h/a", "nbd://h/b") });
    assert_eq!(stage.leader.submit(order("y", fence_runner)).await.unwrap_err().code, Code::Unsupported);
}

#[tokio::test(start_paused = true)]
async fn wishes_are_obeyed_where_they_make_sense() {
    let stage = Stage::new(3, Config::default()).await;
    let leader = &stage.leader;
    assert_eq!(leader.change(&id("none"), TaskChange::Cancel).await.unwrap_err().code, Code::NotFound);
    leader.submit(order("noop", noop(1))).await.unwrap();
    assert_eq!(leader.change(&id("noop"), TaskChange::Pause).await.unwrap_err().code, Code::Unsupported);
    assert_eq!(leader.get(&id("noop")).await.unwrap().reason, "waiting for a runner: none is registered");
    assert_eq!(leader.change(&id("noop"), TaskChange::Cancel).await.unwrap().state, TaskState::Cancelled);
    assert_eq!(leader.change(&id("noop"), TaskChange::Cancel).await.unwrap().state, TaskState::Cancelled);
    leader.submit(order("copy", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    assert_eq!(leader.change(&id("copy"), TaskChange::Pause).await.unwrap().state, TaskState::Paused);
    assert_eq!(leader.change(&id("copy"), TaskChange::Limit(Some(0))).await.unwrap_err().code, Code::BadRequest);
    leader.change(&id("copy"), TaskChange::Limit(Some(7))).await.unwrap();
    let again = leader.submit(order("copy", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    assert!(matches!(&again.spec, TaskSpec::Copy(copy) if copy.limit == Some(7)));
    let runner = stage.runner("n1", "a", 1, Manner::Willing).await;
    assert_eq!(leader.change(&id("copy"), TaskChange::Resume).await.unwrap().desired_state, DesiredState::Run);
    stage.begin(&runner, "copy").await;
    sleep(Duration::from_millis(50)).await;
    stage.world.heard();
    assert_eq!(leader.change(&id("copy"), TaskChange::Pause).await.unwrap().state, TaskState::Running);
    sleep(Duration::from_millis(50)).await;
    assert_eq!(stage.world.heard(), ["n1 nudge copy"]);
    let checkpoint = Checkpoint::default();
    assert!(
        stage
            .step(&runner, "copy", TaskEvent::GivenBack { code: Code::Cancelled, checkpoint: checkpoint.clone() })
            .await
    );
    assert_eq!(stage.stored("copy").state, TaskState::Paused);
    leader.change(&id("copy"), TaskChange::Resume).await.unwrap();
    stage.begin(&runner, "copy").await;
    assert_eq!(leader.change(&id("copy"), TaskChange::Cancel).await.unwrap().state, TaskState::Cancelling);
    assert!(stage.step(&runner, "copy", TaskEvent::GivenBack { code: Code::Cancelled, checkpoint }).await);
    let done = stage.stored("copy");
    assert_eq!((done.state, done.failures, done.attempts.len()), (TaskState::Cancelled, 0, 2));
    assert_eq!(stage.claims(), []);
    assert_eq!(leader.change(&id("copy"), TaskChange::Resume).await.unwrap_err().code, Code::Busy);
}

/// Method: the answer to the write is lost, and after a hint the record is read before the outcome is resolved.
#[tokio::test(start_paused = true)]
async fn a_reading_that_overtakes_the_end_of_a_write_leaves_nothing_undone() {
    for seed in 0..8 {
        let stage = Stage::new(seed, Config::default()).await;
        let task = order("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")));
        stage.leader.submit(task).await.unwrap();
        stage.leader.change(&id("x"), TaskChange::Pause).await.unwrap();
        stage.runner("n1", "a", 2, Manner::Willing).await;
        stage.ensemble.set_weather(FaultRates { latency_ms: (50, 50), lost_reply: 1.0, ..FaultRates::default() });
        let hint = async {
            sleep(Duration::from_millis(10)).await;
            stage.leader.changed(vec![id("x")]).await.unwrap();
        };
        let paused = id("x");
        let (resumed, ()) = tokio::join!(stage.leader.change(&paused, TaskChange::Resume), hint);
        assert_eq!(resumed.unwrap().state, TaskState::Pending);
        stage.ensemble.set_weather(FaultRates::default());
        stage.until("x", TaskState::Assigned).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_comes_in_pages() {
    let stage = Stage::new(4, Config::default()).await;
    for index in 0..7 {
        stage.leader.submit(order(&format!("t{index}"), noop(1))).await.unwrap();
    }
    stage.leader.change(&id("t3"), TaskChange::Cancel).await.unwrap();
    let names =
        |page: &crate::dispatcher::handle::Page| page.tasks.iter().map(|task| task.id.to_string()).collect::<Vec<_>>();
    let query = Query { state: Some(TaskState::Pending), after: None, limit: 4 };
    let page = stage.leader.list(query).await.unwrap();
    assert_eq!(
        (names(&page), page.next.clone()),
        (["t0", "t1", "t2", "t4"].map(String::from).to_vec(), Some(id("t4")))
    );
    let page = stage.leader.list(Query { state: Some(TaskState::Pending), after: page.next, limit: 4 }).await.unwrap();
    assert_eq!((names(&page), page.next), (["t5", "t6"].map(String::from).to_vec(), None));
    assert_eq!(stage.leader.list(Query::default()).await.unwrap().tasks.len(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_second_task_for_a_destination_waits_for_the_first() {
    let stage = Stage::new(5, Config::default()).await;
    let runner = stage.runner("n1", "a", 8, Manner::Willing).await;
    for (name, source) in [("first", "nbd://h/a"), ("second", "nbd://h/c")] {
        stage.leader.submit(order(name, TaskSpec::Copy(copy(source, "nbd://h/b")))).await.unwrap();
        sleep(Duration::from_secs(1)).await;
    }
    stage.leader.submit(order("other", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/d")))).await.unwrap();
    stage.until("other", TaskState::Assigned).await;
    let waiting = stage.leader.get(&id("second")).await.unwrap();
    assert_eq!(
        (waiting.state, &*waiting.reason),
        (TaskState::Pending, "waiting for task first, which has claimed the destination")
    );
    stage.begin(&runner, "first").await;
    assert!(
        stage.step(&runner, "first", TaskEvent::Succeeded { checkpoint: Checkpoint::default(), report: None }).await
    );
    stage.until("second", TaskState::Assigned).await;
}

#[tokio::test(start_paused = true)]
async fn a_local_destination_is_named_by_its_node_and_refused_by_it() {
    let stage = Stage::new(6, Config::default()).await;
    stage.runner("n1", "a", 1, Manner::Willing).await;
    stage.runner("n2", "a", 9, Manner::Willing).await;
    stage.leader.submit(order("x", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")))).await.unwrap();
    let record = stage.until("x", TaskState::Assigned).await;
    assert_eq!((record.claims, record.holder.unwrap().node), (vec![String::from("inode:n1:file://n1/b")], node("n1")));
    stage.leader.submit(order("full", TaskSpec::Copy(copy("file://n1/c", "file://n1/d")))).await.unwrap();
    stage.leader.submit(order("gone", TaskSpec::Copy(copy("file://n3/c", "file://n3/d")))).await.unwrap();
    let reason = |name: &'static str| {
        let leader = stage.leader.clone();
        async move { leader.get(&id(name)).await.unwrap().reason.clone() }
    };
    assert_eq!(reason("full").await, "waiting for n1, which has no free slot");
    assert_eq!(reason("gone").await, "waiting for n3, which is not registered");
    stage.world.set_manner("n2", Manner::Refusing(Code::Permission));
    stage.leader.submit(order("no", TaskSpec::Copy(copy("file://n2/c", "file://n2/d")))).await.unwrap();
    let failed = stage.until("no", TaskState::Failed).await;
    assert_eq!((failed.error.unwrap().code, failed.attempts.len()), (Code::Permission, 0));
}

#[tokio::test(start_paused = true)]
async fn who_refuses_is_avoided_and_who_says_nothing_loses_the_task() {
    let stage = Stage::new(7, Config::default()).await;
    stage.runner("n1", "a", 9, Manner::Refusing(Code::Overloaded)).await;
    stage.leader.submit(order("x", noop(1))).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    let record = stage.stored("x");
    assert_eq!((record.state, record.failures), (TaskState::Pending, 0));
    assert!((4..=6).contains(&record.attempts.len()), "{} attempts after 20 s", record.attempts.len());
    assert_eq!(record.attempts[0].outcome.as_deref(), Some("EOverloaded"));
    stage.runner("n2", "a", 9, Manner::Silent).await;
    let silent = stage.until("x", TaskState::Assigned).await;
    assert_eq!(silent.node(), Some(&node("n2")));
    stage.world.set_manner("n1", Manner::Busy);
    let done = stage.until("x", TaskState::Succeeded).await;
    let outcomes: Vec<_> = done.attempts.iter().rev().take(2).map(|attempt| attempt.outcome.clone().unwrap()).collect();
    assert_eq!(outcomes, ["succeeded", "EUnreachable"]);
    assert!(done.attempts.iter().all(|attempt| attempt.quiet));
}

#[tokio::test(start_paused = true)]
async fn an_assignment_whose_answer_is_lost_is_asked_for() {
    let stage = Stage::new(8, Config::default()).await;
    stage.runner("n1", "a", 9, Manner::Silent).await;
    stage.leader.submit(order("x", noop(1))).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    stage.world.set_manner("n1", Manner::Willing);
    stage.world.heard();
    sleep(Duration::from_secs(3)).await;
    let heard = stage.world.heard();
    assert_eq!(heard[0], "n1 ask x");
    assert!(
        heard.contains(&String::from("n1 assign x")),
        "unknown to the runner, the task was assigned again: {heard:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_node_that_drains_gets_nothing_and_gives_back_when_asked() {
    let stage = Stage::new(9, Config::default()).await;
    let runner = stage.runner("n1", "a", 9, Manner::Willing).await;
    assert_eq!(stage.leader.drain(&node("n9"), DrainMode::Finish).await.unwrap_err().code, Code::NotFound);
    stage.leader.submit(order("x", noop(1))).await.unwrap();
    stage.begin(&runner, "x").await;
    stage.leader.drain(&node("n1"), DrainMode::Finish).await.unwrap();
    stage.leader.submit(order("y", noop(1))).await.unwrap();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.stored("y").state, TaskState::Pending);
    stage.world.heard();
    stage.leader.drain(&node("n1"), DrainMode::Now).await.unwrap();
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(stage.world.heard(), ["n1 interrupt"; 3]);
    assert!(
        stage
            .step(&runner, "x", TaskEvent::GivenBack { code: Code::RunnerInterrupt, checkpoint: Checkpoint::default() })
            .await
    );
    sleep(Duration::from_secs(3)).await;
    stage.world.heard();
    sleep(Duration::from_secs(3)).await;
    assert_eq!(stage.world.heard(), [""; 0]);
    let shown = stage.leader.runners().await.unwrap();
    assert!(shown[0].drain.as_ref().unwrap().now && shown[0].tasks == 0);
    stage.leader.drain(&node("n1"), DrainMode::Undo).await.unwrap();
    stage.until("x", TaskState::Assigned).await;
    stage.until("y", TaskState::Assigned).await;
}

#[tokio::test(start_paused = true)]
async fn a_node_that_is_away_is_drained_for_when_it_returns() {
    let stage = Stage::new(14, Config::default()).await;
    let drain = |name: &'static str, mode| {
        let leader = stage.leader.clone();
        async move { leader.drain(&node(name), mode).await }
    };
    let runner = stage.runner("n1", "a", 9, Manner::Willing).await;
    stage.leader.submit(order("local", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")))).await.unwrap();
    stage.begin(&runner, "local").await;
    stage.lose(&runner).await;
    stage.until("local", TaskState::Lost).await;
    drain("n1", DrainMode::Now).await.unwrap();
    stage.leader.submit(order("x", noop(1))).await.unwrap();
    stage.world.heard();
    // The same process registers again, and is asked to return its task.
    stage.runner("n1", "a", 9, Manner::Willing).await;
    stage.until("local", TaskState::Running).await;
    sleep(Duration::from_secs(3)).await;
    assert!(stage.world.heard().contains(&String::from("n1 interrupt")));
    assert_eq!(stage.stored("x").state, TaskState::Pending);
    drain("n1", DrainMode::Undo).await.unwrap();
    drain("n1", DrainMode::Undo).await.unwrap();
    stage.until("x", TaskState::Assigned).await;
    for desired_state in [DrainMode::Finish, DrainMode::Now, DrainMode::Undo] {
        assert_eq!(drain("unknown", desired_state).await.unwrap_err().code, Code::NotFound);
    }
}

#[tokio::test(start_paused = true)]
async fn ended_tasks_are_purged_and_their_ids_are_free_again() {
    let config = Config { retention: Duration::from_secs(60), ..Config::default() };
    let stage = Stage::new(10, config).await;
    stage.leader.submit(order("x", noop(1))).await.unwrap();
    stage.leader.change(&id("x"), TaskChange::Cancel).await.unwrap();
    sleep(Duration::from_secs(59)).await;
    assert_eq!(stage.leader.submit(order("x", noop(2))).await.unwrap_err().code, Code::Exists);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(stage.leader.get(&id("x")).await.unwrap_err().code, Code::NotFound);
    assert!(stage.ensemble.committed(&paths::task(&id("x"))).is_none());
    stage.leader.submit(order("x", noop(2))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn records_that_make_no_sense_are_kept_aside() {
    let mut stage = Stage::new(11, Config::default()).await;
    stage.leader.submit(order("good", noop(1))).await.unwrap();
    stage.leader.submit(order("bad", noop(1))).await.unwrap();
    let session = stage.ensemble.client("operator").open().await.unwrap();
    let path = paths::task(&id("bad"));
    let version = stage.ensemble.committed(&path).unwrap().stat.version;
    session.multi(vec![Op::Set { path: path.clone(), data: b"{}".to_vec(), version }]).await.unwrap();
    assert_eq!(stage.change_leader("d2").await, Ending::LostLeadership);
    stage.runner("n1", "a", 9, Manner::Busy).await;
    stage.until("good", TaskState::Succeeded).await;
    let status = stage.leader.status().await.unwrap();
    assert_eq!(status.undecodable.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>(), [path.as_str()]);
    assert_eq!(stage.leader.submit(order("bad", noop(1))).await.unwrap_err().code, Code::Exists);
    assert_eq!(stage.ensemble.committed(&path).unwrap().data, b"{}");
}

#[tokio::test(start_paused = true)]
async fn the_higher_priority_goes_first_and_age_counts() {
    let stage = Stage::new(12, Config::default()).await;
    for (name, priority) in [("old", 3), ("low", 0), ("high", 9), ("high2", 9)] {
        stage.leader.submit(Submission { priority, ..order(name, noop(1)) }).await.unwrap();
        sleep(Duration::from_secs(if name == "old" { 7 * 60 } else { 1 })).await;
    }
    stage.runner("n1", "a", 1, Manner::Busy).await;
    for name in ["old", "low", "high", "high2"] {
        stage.until(name, TaskState::Succeeded).await;
        stage.leader.changed(vec![id(name)]).await.unwrap();
    }
    let assigned = stage.world.heard().into_iter().filter(|line| line.contains("assign"));
    let order: Vec<String> = assigned.map(|line| line.replace("n1 assign ", "")).collect();
    assert_eq!(order, ["old", "high", "high2", "low"]);
}

/// Method: the access list of the claims is changed, and later back.
#[tokio::test(start_paused = true)]
async fn a_write_that_the_service_refuses_is_the_reason_of_its_task() {
    let stage = Stage::new(13, Config::default()).await;
    stage.runner("n1", "a", 9, Manner::Busy).await;
    stage.ensemble.forbid(Some("/claims/"));
    stage.leader.submit(order("x", noop(1))).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    let waits = stage.leader.get(&id("x")).await.unwrap();
    assert_eq!(waits.state, TaskState::Pending);
    assert!(
        waits.reason.starts_with("record cannot be written: the coordination service refuses to write /claims/"),
        "{}",
        waits.reason
    );
    assert!(waits.reason.contains("not permitted by the access list of the node (NoAuth)"), "{}", waits.reason);
    stage.ensemble.forbid(Some("/tasks/"));
    let refused = stage.leader.submit(order("y", noop(1))).await.unwrap_err();
    assert!(refused.code == Code::Permission && refused.message.contains("NoAuth"), "{refused}");
    let refused = stage.leader.change(&id("x"), TaskChange::Cancel).await.unwrap_err();
    assert!(refused.code == Code::Permission && !refused.retryable, "{refused}");
    stage.ensemble.forbid(None);
    let done = stage.until("x", TaskState::Succeeded).await;
    assert_eq!((done.failures, &*done.reason), (0, ""));
}

#[tokio::test(start_paused = true)]
async fn ended_tasks_keep_no_new_ones_away() {
    let stage = Stage::new(15, Config { tasks_max: 4, ..Config::default() }).await;
    for index in 0..12 {
        let name = format!("t{index}");
        stage.leader.submit(order(&name, noop(1))).await.unwrap();
        stage.leader.change(&id(&name), TaskChange::Cancel).await.unwrap();
    }
    for name in ["a", "b", "c", "d"] {
        stage.leader.submit(order(name, noop(1))).await.unwrap();
    }
    assert_eq!(stage.leader.submit(order("e", noop(1))).await.unwrap_err().code, Code::Overloaded);
    sleep(Duration::from_secs(1)).await;
    let left = stage.leader.list(Query::default()).await.unwrap().tasks;
    assert_eq!(left.iter().map(|task| task.id.as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d"]);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_has_ended_is_removed_when_asked() {
    let stage = Stage::new(16, Config::default()).await;
    let runner = stage.runner("n1", "a", 9, Manner::Willing).await;
    let remove = |name: &'static str| {
        let leader = stage.leader.clone();
        async move { leader.remove(&id(name)).await }
    };
    assert_eq!(remove("x").await.unwrap_err().code, Code::NotFound);
    stage.leader.submit(order("x", TaskSpec::Copy(copy("nbd://h/a", "nbd://h/b")))).await.unwrap();
    stage.begin(&runner, "x").await;
    let refused = remove("x").await.unwrap_err();
    assert!(refused.code == Code::Busy && refused.message.contains("cancel it first"), "{refused}");
    stage.lose(&runner).await;
    stage.until("x", TaskState::Lost).await;
    stage.leader.change(&id("x"), TaskChange::Cancel).await.unwrap();
    stage.until("x", TaskState::Cancelled).await;
    let refused = remove("x").await.unwrap_err();
    assert!(refused.code == Code::Busy && refused.retryable, "its runner may still write: {refused}");
    sleep(Duration::from_secs(40)).await;
    assert_eq!(remove("x").await.unwrap().state, TaskState::Cancelled);
    assert!(stage.ensemble.committed(&paths::task(&id("x"))).is_none());
    assert_eq!(remove("x").await.unwrap_err().code, Code::NotFound);
    assert_eq!(stage.leader.submit(order("x", noop(2))).await.unwrap().state, TaskState::Pending);
}

/// Method: n3 takes over the address of n1, and answers a call for n1.
#[tokio::test(start_paused = true)]
async fn a_task_waits_for_its_node_when_another_one_answers_at_its_address() {
    let stage = Stage::new(18, Config::default()).await;
    stage.runner("n1", "a", 9, Manner::Refusing(Code::Unreachable)).await;
    let session = stage.ensemble.client("n3").open().await.unwrap();
    let mut other = stage.registration("n3", "a", 0);
    other.address = String::from("n1");
    let path = paths::runner("n3");
    let create = Op::Create { path: path.clone(), data: other.encode(), mode: crate::coord::CreateMode::Ephemeral };
    session.multi(vec![create]).await.unwrap();
    stage.leader.submit(order("x", TaskSpec::Copy(copy("file://n1/a", "file://n1/b")))).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    let waits = stage.leader.get(&id("x")).await.unwrap();
    assert_eq!((waits.state, waits.failures), (TaskState::Pending, 0));
    assert_eq!(waits.reason, "waiting for n1: n3 has registered the same address, n1");
    session.multi(vec![Op::Delete { path, version: 0 }]).await.unwrap();
    stage.world.set_manner("n1", Manner::Busy);
    stage.until("x", TaskState::Succeeded).await;
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_leaps_or_is_ahead_of_others_purges_nothing() {
    let (ahead, asked) = tokio::sync::watch::channel(None);
    let retention = Duration::from_secs(60);
    let stage = Stage::new(17, Config { retention, clock_ahead: Some(asked), ..Config::default() }).await;
    stage.leader.submit(order("x", noop(1))).await.unwrap();
    stage.leader.change(&id("x"), TaskChange::Cancel).await.unwrap();
    let is_there = || stage.ensemble.committed(&paths::task(&id("x"))).is_some();
    sleep(Duration::from_secs(100)).await;
    assert!(is_there(), "no node has answered yet");
    ahead.send_replace(Some(8 * 86_400_000));
    sleep(Duration::from_secs(100)).await;
    assert!(is_there(), "another node's clock says otherwise");
    ahead.send_replace(Some(0));
    while is_there() {
        sleep(Duration::from_secs(1)).await;
    }
    stage.leader.submit(order("x", noop(1))).await.unwrap();
    stage.leader.change(&id("x"), TaskChange::Cancel).await.unwrap();
    stage.clock.jump(8 * 86_400_000);
    sleep(Duration::from_secs(50)).await;
    assert!(is_there(), "the clock has leapt");
}
