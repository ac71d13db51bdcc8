//! Tests calls between nodes: each answer means one thing, and none delays its caller.

use super::mock::{IdleRunner, MockDispatcher, Node, center, copy};
use crate::model::{Epoch, Incarnation, NodeId, NoopTask, Progress, TaskId, TaskSpec};
use crate::peers::{
    AssignResponse, Assignment, AssignmentStatus, CallError, LeaderClient, Peer, RunnerClient, StartStage,
};
use crate::rpc::calls::{GrpcLeaderClient, GrpcRunnerClient};
use crate::rpc::channels::Channels;
use blockhaul_engine::error::Code;
use std::sync::Arc;
use tokio::sync::watch;

fn task() -> TaskId {
    TaskId::new("t").unwrap()
}

fn assignment(incarnation: &str) -> Assignment {
    Assignment { task: task(), epoch: Epoch(7), incarnation: Incarnation(incarnation.to_owned()), leader: Epoch(6) }
}

/// A node with a runner of one slot, and the calls of a dispatcher.
async fn with_runner() -> (Node, IdleRunner, GrpcRunnerClient) {
    let (node, runner) = (Node::start().await, IdleRunner::start(1).await);
    node.runner.send_replace(Some(runner.handle.clone()));
    (node, runner, GrpcRunnerClient::new(Channels::default(), center("c")))
}

#[tokio::test]
async fn a_runner_accepts_a_task_or_says_why_not() {
    let (node, _runner, calls) = with_runner().await;
    assert_eq!(calls.assign(&node.peer(), assignment("mine")).await, Ok(AssignResponse::Accepted));
    let second = Assignment { task: TaskId::new("t2").unwrap(), ..assignment("mine") };
    let answer = calls.assign(&node.peer(), second).await.unwrap();
    let full = AssignResponse::Refused { code: Code::Overloaded, why: "all slots are used".to_owned() };
    assert_eq!(answer, full);
}

#[tokio::test]
async fn an_assignment_that_the_runner_holds_is_told_from_an_unknown_one() {
    let (node, _runner, calls) = with_runner().await;
    calls.assign(&node.peer(), assignment("mine")).await.unwrap();
    let held = calls.query(&node.peer(), assignment("mine")).await;
    assert_eq!(held, Ok(AssignmentStatus::Waits(StartStage::Reading)));
    let earlier = Assignment { epoch: Epoch(5), ..assignment("mine") };
    assert_eq!(calls.query(&node.peer(), earlier).await, Ok(AssignmentStatus::Unknown));
    assert_eq!(calls.query(&node.peer(), assignment("another")).await, Ok(AssignmentStatus::Unknown));
}

#[tokio::test]
async fn a_refusal_is_an_answer() {
    let (node, _runner, calls) = with_runner().await;
    assert_eq!(calls.notify(&node.peer(), Epoch(5), &task()).await, Ok(()));
    let refused = calls.notify(&node.peer(), Epoch(4), &task()).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused { code: Code::Fenced, .. }), "{refused}");
    let noop = TaskSpec::Noop(NoopTask::new(1, None));
    let refused = calls.resolve(&node.peer(), Epoch(5), &noop).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused { code: Code::BadRequest, .. }), "{refused}");
    node.runner.send_replace(None);
    let gone = calls.notify(&node.peer(), Epoch(5), &task()).await.unwrap_err();
    assert!(matches!(gone, CallError::Refused { code: Code::RunnerInterrupt, .. }), "{gone}");
}

#[tokio::test]
async fn a_node_that_hangs_or_is_gone_gives_no_answer() {
    let (node, _runner, calls) = with_runner().await;
    let peer = node.peer();
    let hangs = calls.resolve(&peer, Epoch(6), &copy()).await.unwrap_err();
    assert!(matches!(hangs, CallError::NoAnswer(_)), "{hangs}");
    node.listener.close().await;
    let gone =
        GrpcRunnerClient::new(Channels::default(), center("c")).query(&peer, assignment("mine")).await.unwrap_err();
    assert!(matches!(gone, CallError::NoAnswer(_)), "{gone}");
}

#[tokio::test]
async fn what_runners_tell_reaches_the_leader_wherever_it_is_now() {
    let (first, second) = (Node::start().await, Node::start().await);
    let tasks = Arc::new(MockDispatcher::default());
    first.lead(&tasks);
    let (leader, seen) = watch::channel(None);
    let calls = GrpcLeaderClient::new(Channels::default(), center("c"), seen);
    assert!(matches!(calls.changed(&[task()]).await, Err(CallError::NoAnswer(_))));
    leader.send_replace(Some(first.peer()));
    calls.changed(&[task()]).await.unwrap();
    first.follow(Some(&second));
    second.lead(&tasks);
    let told_off = calls.changed(&[task()]).await.unwrap_err();
    assert!(matches!(told_off, CallError::Refused { code: Code::NotLeader, .. }), "{told_off}");
    leader.send_replace(Some(second.peer()));
    let many = vec![(task(), Progress { durable: 4096, ..Progress::default() }); 5000];
    calls.progress(&many).await.unwrap();
    assert_eq!(tasks.changed.lock().unwrap().len(), 1);
    assert_eq!(*tasks.progress.lock().unwrap(), many);
}

#[tokio::test]
async fn a_call_for_somebody_else_is_refused_and_does_nothing() {
    let (node, _runner, own) = with_runner().await;
    let (tasks, mine) = (Arc::new(MockDispatcher::default()), node.peer());
    node.lead(&tasks);
    let foreign = GrpcRunnerClient::new(Channels::default(), center("another"));
    let other_node = Peer { node: NodeId::new("n2").unwrap(), ..mine.clone() };
    let other_life = Peer { incarnation: Incarnation("another".to_owned()), ..mine.clone() };
    for (calls, peer) in [(&foreign, &mine), (&own, &other_node), (&own, &other_life)] {
        // The first one would be a lower epoch, the second one has an answer: neither is looked at.
        let refusals = [
            calls.notify(peer, Epoch(4), &task()).await.unwrap_err(),
            calls.assign(peer, assignment("mine")).await.unwrap_err(),
            calls.query(peer, assignment("mine")).await.unwrap_err(),
            calls.interrupt(peer, Epoch(9)).await.unwrap_err(),
            calls.clock(peer, None).await.unwrap_err(),
        ];
        for refused in refusals {
            let CallError::Misdirected(why) = refused else { panic!("{refused:?}") };
            assert!(why.contains("this is node n1, process mine, of center c"), "{why}");
        }
        let (_leader, seen) = watch::channel(Some(peer.clone()));
        let center = if peer == &mine { center("another") } else { center("c") };
        let told = GrpcLeaderClient::new(Channels::default(), center, seen).changed(&[task()]).await;
        assert!(matches!(told, Err(CallError::Misdirected(_))), "{told:?}");
    }
    assert!(tasks.changed.lock().unwrap().is_empty());
}

/// Nodes of an earlier version name nobody; they are heard until they are updated.
#[tokio::test]
async fn a_call_that_names_nobody_is_heard() {
    use crate::rpc::wire::{ClockRequest, runner_client::RunnerClient};
    let (node, _runner, _) = with_runner().await;
    let mut old = RunnerClient::connect(format!("http://{}", node.address())).await.unwrap();
    assert!(old.clock(ClockRequest { offset_ms: None }).await.unwrap().into_inner().unix_ms > 0);
}
