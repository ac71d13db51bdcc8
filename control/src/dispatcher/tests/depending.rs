//! Tests tasks that depend on others.

use super::support::*;
use crate::coord::paths;
use crate::dispatcher::Config;
use crate::model::state_machine::{Checkpoint, TaskEvent};
use crate::model::{CopyTask, FenceMethod, RunTask, Submission, TaskCommand, TaskSpec, TaskState};
use blockhaul_engine::error::Code;
use blockhaul_engine::flow::graph::Condition::{self, End, Failure as Fails, Success};
use std::time::Duration;
use tokio::time::sleep;

fn after(name: &str, spec: TaskSpec, on: &[(&str, Condition)]) -> Submission {
    let after = on.iter().map(|(name, condition)| (id(name), *condition)).collect();
    Submission { after, ..submission(name, spec) }
}

#[tokio::test(start_paused = true)]
async fn a_task_starts_when_its_dependencies_are_met_and_says_until_then_what_it_waits_for() {
    let center = TestCenter::new(1, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(submission("a", noop(1))).await.unwrap();
    center.leader.submit(submission("b", noop(1))).await.unwrap();
    center.leader.submit(after("c", noop(1), &[("a", Success), ("b", End)])).await.unwrap();
    center.begin(&runner, "a").await;
    center.begin(&runner, "b").await;
    sleep(Duration::from_millis(100)).await;
    let waiting = center.leader.get(&id("c")).await.unwrap();
    assert_eq!(
        (waiting.state, &*waiting.reason),
        (TaskState::Pending, "waiting for task a, which is RUNNING; task b, which is RUNNING")
    );
    assert!(center.step(&runner, "b", failed()).await);
    sleep(Duration::from_millis(100)).await;
    assert_eq!(center.leader.get(&id("c")).await.unwrap().reason, "waiting for task a, which is RUNNING");
    assert!(center.step(&runner, "a", done()).await);
    let started = center.until("c", TaskState::Assigned).await;
    assert_eq!(started.after.len(), 2);
    // Another attempt does not ask again.
    center.begin(&runner, "c").await;
    center.ensemble_delete("a").await;
    let back = TaskEvent::GivenBack { code: Code::RunnerInterrupt, checkpoint: Checkpoint::default() };
    assert!(center.step(&runner, "c", back).await);
    center.begin(&runner, "c").await;
}

#[tokio::test(start_paused = true)]
async fn a_broken_dependency_skips_a_task_and_what_depends_on_it() {
    let center = TestCenter::new(2, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(submission("a", noop(1))).await.unwrap();
    for (name, on) in [
        ("b", ("a", Success)),
        ("c", ("b", Success)),
        ("clean-up", ("c", End)),
        ("alarm", ("a", Fails)),
        ("calm", ("b", Fails)),
    ] {
        center.leader.submit(after(name, noop(1), &[on])).await.unwrap();
    }
    center.begin(&runner, "a").await;
    assert!(center.step(&runner, "a", failed()).await);
    let skipped = center.until("b", TaskState::Skipped).await;
    assert_eq!(skipped.error.as_ref().map(|error| error.code), Some(Code::Dependency));
    assert_eq!(skipped.reason, "EDependency: it waits for the success of task a, which failed");
    assert_eq!((skipped.attempts.len(), skipped.holder), (0, None));
    center.until("c", TaskState::Skipped).await;
    center.until("calm", TaskState::Skipped).await;
    center.until("clean-up", TaskState::Assigned).await;
    center.until("alarm", TaskState::Assigned).await;
    // Judged by the present record, also when that has ended before.
    center.leader.submit(after("late", noop(1), &[("a", Success)])).await.unwrap();
    center.until("late", TaskState::Skipped).await;
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_copy_counts_only_when_none_of_its_writes_can_land() {
    let center = TestCenter::new(3, Config::default()).await;
    let first = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    let lease = TaskSpec::Copy(CopyTask { fence: FenceMethod::Lease, ..copy("nbd://h/a", "nbd://h/b") });
    center.leader.submit(submission("a", lease)).await.unwrap();
    center.leader.submit(after("b", noop(1), &[("a", End)])).await.unwrap();
    center.begin(&first, "a").await;
    center.lose(&first).await;
    center.until("a", TaskState::Lost).await;
    center.leader.command(&id("a"), TaskCommand::Cancel).await.unwrap();
    center.until("a", TaskState::Cancelled).await;
    center.runner("n2", "b", 9, Behaviour::Accepting).await;
    sleep(Duration::from_secs(5)).await;
    assert_eq!(center.stored("b").state, TaskState::Pending);
    let reason = center.leader.get(&id("b")).await.unwrap().reason.clone();
    assert_eq!(reason, "waiting for task a, an attempt of which on n1 may still write");
    center.until("b", TaskState::Assigned).await;
    assert!(center.stored("a").claims.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_local_copy_that_was_lost_counts_when_its_node_is_back() {
    let center = TestCenter::new(4, Config::default()).await;
    let first = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.runner("n2", "b", 9, Behaviour::Accepting).await;
    let local = TaskSpec::Copy(copy("file://n1/a", "file://n1/b"));
    center.leader.submit(submission("a", local)).await.unwrap();
    center.leader.submit(after("b", noop(1), &[("a", End)])).await.unwrap();
    center.begin(&first, "a").await;
    center.lose(&first).await;
    center.until("a", TaskState::Lost).await;
    center.leader.command(&id("a"), TaskCommand::Cancel).await.unwrap();
    center.until("a", TaskState::Cancelled).await;
    sleep(Duration::from_secs(60)).await;
    let waiting = center.leader.get(&id("b")).await.unwrap();
    assert_eq!(
        (waiting.state, &*waiting.reason),
        (
            TaskState::Pending,
            "waiting for task a, an attempt of which on n1 may still write (if the node is off: 'blockhaul fence n1 --confirm')"
        )
    );
    // It is back for a moment only.
    let back = center.runner("n1", "c", 9, Behaviour::Accepting).await;
    sleep(Duration::from_millis(500)).await;
    center.lose(&back).await;
    center.until("b", TaskState::Assigned).await;
    assert!(center.stored("a").attempts[0].quiet);
}

#[tokio::test(start_paused = true)]
async fn a_predecessor_whose_record_cannot_be_decoded_is_waited_for() {
    let center = TestCenter::new(9, Config::default()).await;
    center.runner("n1", "a", 9, Behaviour::Accepting).await;
    center.leader.submit(after("x", noop(1), &[])).await.unwrap();
    center.until("x", TaskState::Assigned).await;
    center.leader.submit(after("b", noop(1), &[("x", End)])).await.unwrap();
    let stored = center.stored("x");
    center.overwrite("x", b"of a later version".to_vec()).await;
    center.leader.changed(vec![id("x")]).await.unwrap();
    sleep(Duration::from_secs(20)).await;
    let waiting = center.leader.get(&id("b")).await.unwrap();
    assert_eq!(
        (waiting.state, &*waiting.reason),
        (TaskState::Pending, "waiting for task x, whose record cannot be decoded")
    );
    let ended = crate::model::TaskRecord { state: TaskState::Cancelled, holder: None, claims: Vec::new(), ..stored };
    center.overwrite("x", crate::model::Record::encode(&ended)).await;
    center.leader.changed(vec![id("x")]).await.unwrap();
    center.until("b", TaskState::Assigned).await;
}

/// 64 names of 32 bytes are the most that is possible.
#[tokio::test(start_paused = true)]
async fn as_many_dependencies_fit_as_are_allowed() {
    let center = TestCenter::new(10, Config::default()).await;
    let names: Vec<String> = (0..64).map(|number| format!("{number:032}")).collect();
    for name in &names {
        center.leader.submit(submission(name, noop(1))).await.unwrap();
    }
    let on: Vec<(&str, Condition)> = names.iter().map(|name| (name.as_str(), Success)).collect();
    let stored = center.leader.submit(after("x", noop(1), &on)).await.unwrap();
    assert_eq!(stored.after.len(), 64);
    assert!(stored.reason.ends_with("and 61 more"), "{}", stored.reason);
}

#[tokio::test(start_paused = true)]
async fn a_predecessor_is_kept_while_a_task_waits_for_it() {
    let center = TestCenter::new(5, Config { retention: Duration::from_secs(10), ..Config::default() }).await;
    let runner = center.runner("n1", "a", 1, Behaviour::Accepting).await;
    for name in ["a", "long"] {
        center.leader.submit(submission(name, noop(1))).await.unwrap();
        center.begin(&runner, name).await;
        if name == "a" {
            assert!(center.step(&runner, "a", done()).await);
        }
    }
    center.leader.submit(after("b", noop(1), &[("a", Success), ("long", Success)])).await.unwrap();
    sleep(Duration::from_secs(300)).await;
    assert_eq!(center.stored("a").state, TaskState::Succeeded);
    let refused = center.leader.remove(&id("a")).await.unwrap_err();
    assert_eq!(
        (refused.code, &*refused.message),
        (Code::Busy, "task b waits for a: cancel it first, or wait for its end")
    );
    center.leader.command(&id("b"), TaskCommand::Cancel).await.unwrap();
    let path = paths::task(&id("a"));
    for _ in 0..100 {
        sleep(Duration::from_secs(10)).await;
        if center.ensemble.committed(&path).is_none() {
            return;
        }
    }
    panic!("it is not purged");
}

#[tokio::test(start_paused = true)]
async fn what_is_gone_or_is_another_task_by_now_breaks_the_dependency() {
    let center = TestCenter::new(6, Config::default()).await;
    let unknown = center.leader.submit(after("x", noop(1), &[("none", Success)])).await.unwrap_err();
    assert_eq!(
        (unknown.code, &*unknown.message),
        (Code::NotFound, "it is to wait for task none, which does not exist")
    );
    for (name, again) in [("a", false), ("b", true)] {
        let waits = format!("waits-for-{name}");
        center.leader.submit(submission(name, noop(1))).await.unwrap();
        center.leader.submit(after(&waits, noop(1), &[(name, End)])).await.unwrap();
        center.ensemble_delete(name).await;
        if again {
            center.leader.submit(submission(name, noop(1))).await.unwrap();
        }
        center.leader.changed(vec![id(name)]).await.unwrap();
        let skipped = center.until(&waits, TaskState::Skipped).await;
        assert_eq!(skipped.reason, format!("EDependency: it waits for task {name}, which is gone"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_same_request_has_the_same_dependencies() {
    let center = TestCenter::new(7, Config::default()).await;
    center.leader.submit(submission("a", noop(1))).await.unwrap();
    let first = center.leader.submit(after("b", noop(1), &[("a", End)])).await.unwrap();
    let again = center.leader.submit(after("b", noop(1), &[("a", End)])).await.unwrap();
    assert_eq!(again.created_ms, first.created_ms);
    for other in [after("b", noop(1), &[("a", Success)]), submission("b", noop(1))] {
        assert_eq!(center.leader.submit(other).await.unwrap_err().code, Code::Exists);
    }
}

/// A thousand tasks in a row, and a thousand that wait for one, are decided in a moment of simulated time.
#[tokio::test(start_paused = true)]
async fn long_chains_and_wide_fans_proceed() {
    let center = TestCenter::new(8, Config::default()).await;
    center.leader.submit(submission("t0", noop(1))).await.unwrap();
    for number in 1..300 {
        let before = format!("t{}", number - 1);
        center.leader.submit(after(&format!("t{number}"), noop(1), &[(&before, Success)])).await.unwrap();
        center.leader.submit(after(&format!("fan{number}"), noop(1), &[("t0", Success)])).await.unwrap();
    }
    center.leader.command(&id("t0"), TaskCommand::Cancel).await.unwrap();
    center.until("t299", TaskState::Skipped).await;
    center.until("fan299", TaskState::Skipped).await;
}

#[tokio::test(start_paused = true)]
async fn what_reads_the_destination_of_an_earlier_task_waits_for_it() {
    let center = TestCenter::new(10, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    let lease = |source: &str, destination: &str| {
        TaskSpec::Copy(CopyTask { fence: FenceMethod::Lease, ..copy(source, destination) })
    };
    center.leader.submit(submission("first", lease("nbd://h/a", "nbd://h/b"))).await.unwrap();
    // The same export by another name, and a circle that is none: only earlier tasks are waited for.
    center.leader.submit(submission("second", lease("nbd://h:10809/b", "nbd://h/a"))).await.unwrap();
    center.begin(&runner, "first").await;
    sleep(Duration::from_secs(60)).await;
    let waiting = center.leader.get(&id("second")).await.unwrap();
    assert_eq!(waiting.state, TaskState::Pending);
    assert!(waiting.reason.starts_with("waiting for task first, which writes "), "{}", waiting.reason);
    assert!(center.step(&runner, "first", failed()).await);
    center.begin(&runner, "second").await;
    // What was there before does not wait for what comes later, and a retry does not ask again.
    center.leader.submit(submission("third", lease("nbd://h/c", "nbd://h/b"))).await.unwrap();
    center.begin(&runner, "third").await;
    let back = TaskEvent::GivenBack { code: Code::RunnerInterrupt, checkpoint: Checkpoint::default() };
    assert!(center.step(&runner, "second", back).await);
    center.begin(&runner, "second").await;
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_until_the_first_try_is_settled() {
    let center = TestCenter::new(10, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    let hook = || TaskSpec::Run(RunTask::example("freeze"));
    center.leader.submit(submission("h", hook())).await.unwrap();
    center.begin(&runner, "h").await;
    center.runner("n2", "a", 9, Behaviour::Accepting).await;
    center.lose(&runner).await;
    center.leader.command(&id("h"), TaskCommand::Cancel).await.unwrap();
    assert!(!center.until("h", TaskState::Cancelled).await.is_quiet(), "its process may still run");
    sleep(Duration::from_millis(100)).await;
    center.leader.submit(Submission { retry_of: Some(id("h")), ..submission("h~2", hook()) }).await.unwrap();
    sleep(Duration::from_secs(1)).await;
    let waiting = center.leader.get(&id("h~2")).await.unwrap();
    let reason = "waiting for task h, an attempt of which on n1 may still write";
    assert_eq!((waiting.state, &*waiting.reason), (TaskState::Pending, reason));
    center.until("h~2", TaskState::Assigned).await;
    assert!(center.stored("h").is_quiet());
}

#[tokio::test(start_paused = true)]
async fn a_retry_starts_when_the_node_of_the_first_try_is_back() {
    let center = TestCenter::new(11, Config::default()).await;
    let runner = center.runner("n1", "a", 9, Behaviour::Accepting).await;
    let local = || TaskSpec::Copy(copy("file://n1/a", "file://n1/b"));
    center.leader.submit(submission("c", local())).await.unwrap();
    center.begin(&runner, "c").await;
    center.lose(&runner).await;
    center.until("c", TaskState::Lost).await;
    center.leader.command(&id("c"), TaskCommand::Cancel).await.unwrap();
    assert!(!center.until("c", TaskState::Cancelled).await.is_quiet(), "its process may still run");
    sleep(Duration::from_millis(100)).await;
    center.leader.submit(Submission { retry_of: Some(id("c")), ..submission("c~2", local()) }).await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert_eq!(center.stored("c~2").state, TaskState::Pending);
    center.runner("n1", "b", 9, Behaviour::Accepting).await;
    sleep(Duration::from_secs(15)).await;
    assert_eq!(center.stored("c~2").state, TaskState::Assigned);
}
