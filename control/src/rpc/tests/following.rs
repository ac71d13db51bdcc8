//! Tests that clients find the leader, and follow a task when the leader changes.

use super::mock::{MockDispatcher, Node, client, name, noop, record};
use crate::model::{TaskId, TaskRecord, TaskState};
use crate::rpc::wire;
use blockhaul_engine::error::Code;
use std::sync::Arc;

#[tokio::test]
async fn a_client_follows_to_the_leader_wherever_it_asks_first() {
    let (leader, other) = (Node::start().await, Node::start().await);
    let tasks = Arc::new(MockDispatcher::default());
    leader.lead(&tasks);
    other.follow(Some(&leader));
    let mut client = client(&[other.address()]);
    assert_eq!(client.submit(noop("t")).await.unwrap().state, "PENDING");
    assert_eq!(client.get(name("t")).await.unwrap().id, "t");
    assert_eq!(tasks.tasks.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_client_passes_over_nodes_that_are_gone() {
    let (gone, leader) = (Node::start().await, Node::start().await);
    let addresses = [gone.address(), leader.address()];
    gone.listener.close().await;
    leader.lead(&Arc::new(MockDispatcher::default()));
    for _ in 0..4 {
        assert_eq!(client(&addresses).submit(noop("t")).await.unwrap().id, "t");
    }
}

#[tokio::test]
async fn what_the_center_refuses_is_the_answer() {
    let node = Node::start().await;
    node.lead(&Arc::new(MockDispatcher::default()));
    let mut client = client(&[node.address()]);
    assert_eq!(client.get(name("none")).await.unwrap_err().error.code, Code::NotFound);
    assert_eq!(client.get(name("a/b")).await.unwrap_err().error.code, Code::BadRequest);
    assert_eq!(client.submit(wire::SubmitRequest::default()).await.unwrap_err().error.code, Code::BadRequest);
    client.submit(noop("t")).await.unwrap();
    let work = wire::spec::Work::Noop(wire::NoopWork { milliseconds: 2, node: None });
    let other = wire::SubmitRequest { spec: Some(wire::Spec { work: Some(work) }), ..noop("t") };
    assert_eq!(client.submit(other).await.unwrap_err().error.code, Code::Exists);
    assert_eq!(client.pause(name("t")).await.unwrap_err().error.code, Code::Unsupported);
    let fence = wire::FenceRequest { node: "n1".to_owned(), confirm: false };
    assert_eq!(client.fence(fence).await.unwrap_err().error.code, Code::BadRequest);
    let both = wire::DrainRequest { node: "n1".to_owned(), now: true, undo: true, ..Default::default() };
    assert_eq!(client.drain(both).await.unwrap_err().error.code, Code::BadRequest);
}

#[tokio::test]
async fn a_watched_task_is_seen_to_its_end_though_the_leader_changes() {
    let (first, second) = (Node::start().await, Node::start().await);
    let tasks = Arc::new(MockDispatcher::default());
    first.lead(&tasks);
    second.follow(Some(&first));
    let addresses = [first.address(), second.address()];
    client(&addresses).submit(noop("t")).await.unwrap();
    let (seen, mut states) = tokio::sync::mpsc::unbounded_channel();
    let following = tokio::spawn(async move {
        let each = |task: &wire::Task| seen.send(task.state.clone()).unwrap();
        client(&addresses).follow("t", each).await.unwrap().state
    });
    assert_eq!(states.recv().await.unwrap(), "PENDING");
    tasks.edit(&TaskId::new("t").unwrap(), |task| task.state = TaskState::Running);
    assert_eq!(states.recv().await.unwrap(), "RUNNING");
    second.lead(&tasks);
    first.follow(Some(&second));
    first.listener.close().await;
    tasks.edit(&TaskId::new("t").unwrap(), |task| task.state = TaskState::Succeeded);
    assert_eq!(following.await.unwrap(), "SUCCEEDED");
}

#[tokio::test]
async fn a_list_comes_in_pages_that_miss_nothing() {
    let node = Node::start().await;
    let tasks = Arc::new(MockDispatcher::default());
    node.lead(&tasks);
    for number in 0..1203 {
        let reason = "why ".repeat(400);
        tasks.put(TaskRecord { reason, ..record(&format!("t{number:05}")) });
    }
    let mut client = client(&[node.address()]);
    let (mut ids, mut after) = (Vec::new(), String::new());
    loop {
        let page =
            client.list(wire::ListRequest { state: "PENDING".to_owned(), after, ..Default::default() }).await.unwrap();
        ids.extend(page.tasks.into_iter().map(|task| task.id));
        after = page.next;
        if after.is_empty() {
            break;
        }
    }
    assert_eq!(ids, (0..1203).map(|number| format!("t{number:05}")).collect::<Vec<_>>());
    let none = client.list(wire::ListRequest { state: "RUNNING".to_owned(), ..Default::default() }).await.unwrap();
    assert!(none.tasks.is_empty() && none.next.is_empty());
}

#[tokio::test]
async fn nodes_and_the_center_are_shown() {
    let node = Node::start().await;
    node.lead(&Arc::new(MockDispatcher::default()));
    let mut client = client(&[node.address()]);
    let runners = client.runners(wire::RunnersRequest::default()).await.unwrap().runners;
    assert_eq!((runners[0].node.as_str(), runners[0].draining, runners[0].registered), ("n1", true, false));
    let status = client.status(wire::StatusRequest {}).await.unwrap();
    assert_eq!((status.epoch, status.tasks["PENDING"], status.unreadable.len()), (9, 7, 1));
    let drain = wire::DrainRequest { node: "n1".to_owned(), now: true, undo: false, ..Default::default() };
    assert_eq!(client.drain(drain).await.unwrap().running, 3);
    let fence = wire::FenceRequest { node: "n1".to_owned(), confirm: true };
    assert_eq!(client.fence(fence).await.unwrap().tasks, 0);
}
