//! Tests calls between nodes: each answer means one thing, and none delays its caller.

use crate::mock::{MockLeader, MockRunner, Node, center};
use blockhaul_control::model::{Epoch, Incarnation, NodeId, NoopTask, Progress, TaskId, TaskSpec};
use blockhaul_control::peers::{
    AssignResponse, Assignment, AssignmentStatus, CallError, LeaderClient, Peer, RunnerClient,
};
use blockhaul_control::rpc::calls::{GrpcLeaderClient, GrpcRunnerClient};
use blockhaul_control::rpc::channels::Channels;
use blockhaul_engine::error::Code;
use std::sync::Arc;
use tokio::sync::watch;

fn task() -> TaskId {
    TaskId::new("t").unwrap()
}

fn assignment(incarnation: &str) -> Assignment {
    Assignment { task: task(), epoch: Epoch(7), incarnation: Incarnation(incarnation.to_owned()), leader: Epoch(6) }
}

async fn with_runner(answer: AssignResponse) -> (Node, GrpcRunnerClient) {
    let node = Node::start().await;
    node.runner.send_replace(Some(Arc::new(MockRunner { answer })));
    (node, GrpcRunnerClient::new(Channels::default(), center("c")))
}

#[tokio::test]
async fn a_runner_accepts_or_says_why_not() {
    let refusal = AssignResponse::Refused { code: Code::Overloaded, why: "no slot".to_owned() };
    for answer in [AssignResponse::Accepted, refusal] {
        let (node, calls) = with_runner(answer.clone()).await;
        assert_eq!(calls.assign(&node.peer(), assignment("mine")).await, Ok(answer));
    }
}

#[tokio::test]
async fn what_a_runner_knows_is_told_apart_from_what_it_never_heard_of() {
    let (node, calls) = with_runner(AssignResponse::Accepted).await;
    assert_eq!(calls.query(&node.peer(), assignment("mine")).await, Ok(AssignmentStatus::Held));
    assert_eq!(calls.query(&node.peer(), assignment("another")).await, Ok(AssignmentStatus::Unknown));
    let noop = TaskSpec::Noop(NoopTask::new(1, None));
    assert_eq!(calls.resolve(&node.peer(), Epoch(6), &noop).await, Ok(vec![format!("{noop:?}")]));
}

#[tokio::test]
async fn a_refusal_is_no_silence() {
    let (node, calls) = with_runner(AssignResponse::Accepted).await;
    let refused = calls.notify(&node.peer(), Epoch(4), &task()).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused { code: Code::Fenced, .. }), "{refused}");
    assert_eq!(calls.notify(&node.peer(), Epoch(5), &task()).await, Ok(()));
    node.runner.send_replace(None);
    let gone = calls.notify(&node.peer(), Epoch(5), &task()).await.unwrap_err();
    assert!(matches!(gone, CallError::Refused { code: Code::RunnerInterrupt, .. }), "{gone}");
}

#[tokio::test]
async fn a_node_that_hangs_or_is_gone_gives_no_answer() {
    let (node, calls) = with_runner(AssignResponse::Accepted).await;
    let peer = node.peer();
    let hangs = calls.interrupt(&peer, Epoch(6)).await.unwrap_err();
    assert!(matches!(hangs, CallError::NoAnswer(_)), "{hangs}");
    node.listener.close().await;
    let gone =
        GrpcRunnerClient::new(Channels::default(), center("c")).query(&peer, assignment("mine")).await.unwrap_err();
    assert!(matches!(gone, CallError::NoAnswer(_)), "{gone}");
}

#[tokio::test]
async fn what_runners_tell_reaches_the_leader_wherever_it_is_now() {
    let (first, second) = (Node::start().await, Node::start().await);
    let tasks = Arc::new(MockLeader::default());
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
    let (node, own) = with_runner(AssignResponse::Accepted).await;
    let (tasks, mine) = (Arc::new(MockLeader::default()), node.peer());
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
    use blockhaul_control::rpc::wire::{ClockRequest, runner_client::RunnerClient};
    let (node, _) = with_runner(AssignResponse::Accepted).await;
    let mut old = RunnerClient::connect(format!("http://{}", node.address())).await.unwrap();
    assert!(old.clock(ClockRequest { offset_ms: None }).await.unwrap().into_inner().unix_ms > 0);
}
