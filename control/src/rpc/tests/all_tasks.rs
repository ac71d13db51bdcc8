//! Tests that clients can follow all tasks, from any position, over slow connections and when the leader changes.

use super::mock::{MockDispatcher, Node, client, name, noop, record};
use crate::model::{Epoch, Position, TaskId, TaskRecord, TaskState};
use crate::rpc::change_view::FollowedEvent;
use crate::rpc::error::RpcError;
use crate::rpc::limits::SUBSCRIBERS_MAX;
use crate::rpc::wire::{self, center_client};
use blockhaul_engine::error::Code;
use std::ops::ControlFlow;
use std::sync::Arc;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::JoinHandle;

/// Returns the node that leads, over tasks of these names.
async fn leader(names: &[&str]) -> (Node, Arc<MockDispatcher>) {
    let (node, tasks) = (Node::start().await, Arc::new(MockDispatcher::default()));
    node.lead(&tasks);
    names.iter().for_each(|name| tasks.put(record(name)));
    (node, tasks)
}

/// Lines that a client of these addresses gets, each as `EPOCH:N event ID STATE`.
fn lines(addresses: &[String], since: Option<Position>) -> (UnboundedReceiver<String>, JoinHandle<()>) {
    let (sender, receiver) = unbounded_channel();
    let mut client = client(addresses);
    let each = move |what: &wire::watch_all_event::What| {
        for event in FollowedEvent::all_of(what) {
            let line = match &event {
                FollowedEvent::SnapshotBegin(mark) => format!("{} begin {:?}", mark.position, mark.tasks),
                FollowedEvent::SnapshotEnd(mark) => format!("{} end", mark.position),
                FollowedEvent::Task(task) | FollowedEvent::Change(task) | FollowedEvent::Removed(task) => {
                    format!("{} {} {} {}", task.position, event.name(), task.id, task.state)
                }
            };
            if sender.send(line).is_err() {
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    };
    (receiver, tokio::spawn(async move { client.follow_all(since, each).await.unwrap() }))
}

async fn next(lines: &mut UnboundedReceiver<String>, count: usize) -> Vec<String> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(lines.recv().await.expect("the client follows"));
    }
    taken
}

#[tokio::test]
async fn a_client_gets_all_tasks_and_then_every_change() {
    let (node, tasks) = leader(&["a", "b"]).await;
    let (mut lines, _following) = lines(&[node.address()], None);
    let begun = next(&mut lines, 4).await;
    assert_eq!(begun, ["1:2 begin Some(2)", "1:2 task a PENDING", "1:2 task b PENDING", "1:2 end"]);
    tasks.edit(&TaskId::new("b").unwrap(), |task| task.state = TaskState::Running);
    client(&[node.address()]).submit(noop("c")).await.unwrap();
    client(&[node.address()]).remove(name("a")).await.unwrap();
    let then = ["1:3 change b RUNNING", "1:4 change c PENDING", "1:5 removed a PENDING"];
    assert_eq!(next(&mut lines, 3).await, then);
}

#[tokio::test]
async fn a_client_that_returns_goes_on_after_its_position_or_starts_over() {
    let (node, _tasks) = leader(&["a", "b", "c"]).await;
    let since = |epoch, number| Some(Position { epoch: Epoch(epoch), number });
    let known = ["1:2 change b PENDING", "1:3 change c PENDING"];
    assert_eq!(next(&mut lines(&[node.address()], since(1, 1)).0, 2).await, known);
    for unknown in [since(1, 4), since(0, 1), since(2, 1)] {
        assert_eq!(next(&mut lines(&[node.address()], unknown).0, 1).await, ["1:3 begin Some(3)"], "{unknown:?}");
    }
}

#[tokio::test]
async fn a_client_starts_over_with_a_new_leader() {
    let (first, tasks) = leader(&["a"]).await;
    let second = Node::start().await;
    let (mut lines, _following) = lines(&[first.address(), second.address()], None);
    assert_eq!(next(&mut lines, 3).await.last().unwrap(), "1:1 end");
    second.lead(&tasks);
    first.follow(Some(&second));
    first.listener.close().await;
    assert_eq!(next(&mut lines, 3).await, ["2:0 begin Some(1)", "2:0 task a PENDING", "2:0 end"]);
    tasks.edit(&TaskId::new("a").unwrap(), |task| task.state = TaskState::Succeeded);
    assert_eq!(next(&mut lines, 1).await, ["2:1 change a SUCCEEDED"]);
}

#[tokio::test]
async fn a_snapshot_that_is_longer_than_a_message_comes_as_a_whole() {
    let (node, tasks) = leader(&[]).await;
    for number in 0..1203 {
        tasks.put(TaskRecord { reason: "why ".repeat(400), ..record(&format!("t{number:05}")) });
    }
    let (mut lines, _following) = lines(&[node.address()], None);
    assert_eq!(next(&mut lines, 1).await, ["1:1203 begin Some(1203)"]);
    let listed = next(&mut lines, 1203).await;
    let wanted: Vec<_> = (0..1203).map(|number| format!("1:1203 task t{number:05} PENDING")).collect();
    assert_eq!(listed, wanted);
    assert_eq!(next(&mut lines, 1).await, ["1:1203 end"]);
}

#[tokio::test]
async fn one_client_too_many_is_refused_with_the_limit_and_let_in_when_another_one_leaves() {
    let (node, _tasks) = leader(&["a"]).await;
    let mut stub = center_client::CenterClient::connect(format!("http://{}", node.address())).await.unwrap();
    let mut streams = Vec::new();
    for _ in 0..SUBSCRIBERS_MAX {
        streams.push(stub.watch_all(wire::WatchAllRequest::default()).await.unwrap());
    }
    let refused = RpcError::from(stub.watch_all(wire::WatchAllRequest::default()).await.unwrap_err()).error;
    assert_eq!(refused.code, Code::Overloaded);
    assert!(refused.message.starts_with("16 clients follow all tasks already"), "{refused}");
    streams.pop();
    while stub.watch_all(wire::WatchAllRequest::default()).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn something_arrives_each_second_and_a_follower_refers_to_the_leader() {
    let (node, _tasks) = leader(&[]).await;
    let mut stub = center_client::CenterClient::connect(format!("http://{}", node.address())).await.unwrap();
    let mut events = stub.watch_all(wire::WatchAllRequest::default()).await.unwrap().into_inner();
    for _ in 0..2 {
        assert!(events.message().await.unwrap().unwrap().what.is_some());
    }
    assert!(events.message().await.unwrap().unwrap().what.is_none());
    let other = Node::start().await;
    other.follow(Some(&node));
    let mut stub = center_client::CenterClient::connect(format!("http://{}", other.address())).await.unwrap();
    let refused = RpcError::from(stub.watch_all(wire::WatchAllRequest::default()).await.unwrap_err());
    assert_eq!((refused.error.code, refused.leader), (Code::NotLeader, Some(node.address())));
}

#[tokio::test]
async fn a_client_sees_what_a_task_became_and_who_asked() {
    let (node, _tasks) = leader(&["a"]).await;
    let reply = client(&[node.address()]).events(name("a")).await.unwrap();
    let [created] = &reply.transitions[..] else { panic!("{reply:?}") };
    assert_eq!(
        (created.state.as_str(), created.desired_state.as_str(), created.by.as_str()),
        ("PENDING", "run", "client")
    );
    let missing = client(&[node.address()]).events(name("b")).await.unwrap_err();
    assert_eq!(missing.error.code, Code::NotFound);
}
