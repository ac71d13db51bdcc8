//! Tests nodes that fail one task after the other: they are left out for a while, and every task succeeds elsewhere.

use super::support::*;
use crate::coord::Session;
use crate::dispatcher::Config;
use crate::model::state_machine::{Checkpoint, TaskEvent};
use crate::model::{Failure, NodeId, NoopTask, TaskId, TaskRecord, TaskSpec, TaskState};
use blockhaul_engine::error::{Code, Error, Operation, Side};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::sleep;

fn failure(code: Code, side: Side) -> TaskEvent {
    let error = Failure::from(&Error::new(code, side, Operation::Open, "no such host"));
    TaskEvent::Failed { error, retry_at_ms: 1, checkpoint: Checkpoint::default(), report: None }
}

/// Runs all tasks to their ends: each node ends what it is given as `outcome` says. Returns the number of attempts that
/// each node has failed.
async fn run_all(
    center: &TestCenter,
    sessions: &BTreeMap<String, Arc<dyn Session>>,
    tasks: &[TaskId],
    outcome: impl Fn(&str) -> TaskEvent,
) -> BTreeMap<String, usize> {
    let mut failed = BTreeMap::new();
    for _ in 0..20_000 {
        let records: Vec<TaskRecord> = tasks.iter().map(|id| center.stored(id.as_str())).collect();
        if records.iter().all(|record| record.state == TaskState::Succeeded) {
            return failed;
        }
        // Each node ends one task in a round: the one that it has had for the longest time.
        let mut held: Vec<&TaskRecord> = records.iter().filter(|record| record.state == TaskState::Assigned).collect();
        held.sort_by_key(|record| record.updated_ms);
        let mut busy = BTreeSet::new();
        for record in held {
            let Some(node) = record.node().map(ToString::to_string).filter(|node| busy.insert(node.clone())) else {
                continue;
            };
            center.begin(&sessions[&node], record.id.as_str()).await;
            let event = outcome(&node);
            *failed.entry(node.clone()).or_insert(0) += usize::from(matches!(event, TaskEvent::Failed { .. }));
            assert!(center.step(&sessions[&node], record.id.as_str(), event).await);
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("some task has not succeeded: {failed:?}");
}

async fn nodes(center: &TestCenter, names: &[&str]) -> BTreeMap<String, Arc<dyn Session>> {
    let mut sessions = BTreeMap::new();
    for name in names {
        sessions.insert((*name).to_owned(), center.runner(name, "a", 4, Behaviour::Accepting).await);
    }
    sleep(Duration::from_secs(1)).await;
    sessions
}

async fn excluded(center: &TestCenter) -> Vec<String> {
    let runners = center.leader.runners().await.unwrap();
    runners.iter().filter(|runner| runner.excluded.is_some()).map(|runner| runner.node.to_string()).collect()
}

async fn submit(center: &TestCenter, count: usize) -> Vec<TaskId> {
    let mut tasks = Vec::new();
    for number in 0..count {
        let name = format!("t{number:03}");
        center.leader.submit(submission(&name, noop(1))).await.unwrap();
        tasks.push(id(&name));
    }
    tasks
}

#[tokio::test(start_paused = true)]
async fn a_node_that_cannot_reach_the_storage_loses_few_attempts() {
    let center = TestCenter::new(120, Config::default()).await;
    let sessions = nodes(&center, &["n1", "n2", "n3", "n4"]).await;
    let tasks = submit(&center, 100).await;
    let outcome = |node: &str| if node == "n4" { failure(Code::Unreachable, Side::Source) } else { done() };
    let failed = run_all(&center, &sessions, &tasks, outcome).await;
    assert!(failed["n4"] <= 10 && failed.values().sum::<usize>() == failed["n4"], "{failed:?}");
    assert_eq!(excluded(&center).await, ["n4"]);
    let runners = center.leader.runners().await.unwrap();
    let (_, why) = runners[3].excluded.clone().unwrap();
    assert_eq!(why, "EUnreachable: no such host");
    assert!(center.leader.include(&NodeId::new("n4").unwrap()).await.unwrap());
    assert!(excluded(&center).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_only_an_excluded_node_can_run_ends_its_exclusion() {
    let mut center = TestCenter::new(121, Config::default()).await;
    let sessions = nodes(&center, &["n1", "n2", "n3"]).await;
    let tasks = submit(&center, 30).await;
    let outcome = |node: &str| if node == "n2" { failure(Code::Internal, Side::Engine) } else { done() };
    run_all(&center, &sessions, &tasks, outcome).await;
    assert_eq!(excluded(&center).await, ["n2"]);
    // Five minutes later it is tried again.
    let pinned = TaskSpec::Noop(NoopTask::new(1, Some(NodeId::new("n2").unwrap())));
    center.leader.submit(submission("pinned", pinned)).await.unwrap();
    center.begin(&sessions["n2"], "pinned").await;
    assert!(center.step(&sessions["n2"], "pinned", done()).await);
    sleep(Duration::from_secs(1)).await;
    assert!(excluded(&center).await.is_empty(), "a success ends it");
    // A new leader knows of no exclusion.
    center.change_leader("l2").await;
    assert!(excluded(&center).await.is_empty());
}

#[tokio::test(start_paused = true)]
async fn faults_of_tasks_exclude_nobody_and_an_exclusion_ends() {
    let center = TestCenter::new(122, Config::default()).await;
    let sessions = nodes(&center, &["n1", "n2", "n3"]).await;
    // Paths that no node may touch.
    for name in ["a", "b", "c", "d"] {
        let only = TaskSpec::Noop(NoopTask::new(1, Some(NodeId::new("n1").unwrap())));
        center.leader.submit(submission(name, only)).await.unwrap();
        center.begin(&sessions["n1"], name).await;
        let error = Failure::from(&Error::new(Code::Permission, Side::Source, Operation::Open, "not allowed"));
        let event = TaskEvent::Failed { error, retry_at_ms: 0, checkpoint: Checkpoint::default(), report: None };
        assert!(center.step(&sessions["n1"], name, event).await);
    }
    sleep(Duration::from_secs(1)).await;
    assert!(excluded(&center).await.is_empty());
    // They have paused the node.
    sleep(Duration::from_secs(30)).await;
    let tasks = submit(&center, 30).await;
    let outcome = |node: &str| if node == "n1" { failure(Code::Internal, Side::Engine) } else { done() };
    run_all(&center, &sessions, &tasks, outcome).await;
    assert_eq!(excluded(&center).await, ["n1"]);
    sleep(Duration::from_secs(301)).await;
    assert!(excluded(&center).await.is_empty());
}
