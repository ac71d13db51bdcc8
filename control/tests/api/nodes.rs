//! Calls between nodes: each answer means one thing, and none keeps its caller.

use crate::mock::{MockDesk, MockFloor, Node};
use blockhaul_control::api::calls::{GrpcLeaderCalls, GrpcRunnerCalls};
use blockhaul_control::api::channels::Channels;
use blockhaul_control::peers::{Answer, Assignment, CallError, LeaderCalls, RunnerCalls, Standing};
use blockhaul_control::record::{Epoch, Incarnation, NoopTask, Progress, TaskId, TaskSpec};
use blockhaul_engine::error::Code;
use std::sync::Arc;
use tokio::sync::watch;

fn task() -> TaskId {
    TaskId::new("t").unwrap()
}

fn assignment(incarnation: &str) -> Assignment {
    Assignment { task: task(), epoch: Epoch(7), incarnation: Incarnation(incarnation.to_owned()), leader: Epoch(6) }
}

async fn floor(answer: Answer) -> (Node, GrpcRunnerCalls) {
    let node = Node::start().await;
    node.floor.send_replace(Some(Arc::new(MockFloor { answer })));
    (node, GrpcRunnerCalls::new(Channels::default()))
}

#[tokio::test]
async fn a_runner_accepts_or_says_why_not() {
    let refusal = Answer::Refused { code: Code::Overloaded, why: "no slot".to_owned() };
    for answer in [Answer::Accepted, refusal] {
        let (node, calls) = floor(answer.clone()).await;
        assert_eq!(calls.assign(&node.address(), assignment("mine")).await, Ok(answer));
    }
}

#[tokio::test]
async fn what_a_runner_knows_is_told_apart_from_what_it_never_heard_of() {
    let (node, calls) = floor(Answer::Accepted).await;
    assert_eq!(calls.ask(&node.address(), assignment("mine")).await, Ok(Standing::Held));
    assert_eq!(calls.ask(&node.address(), assignment("another")).await, Ok(Standing::Unknown));
    let noop = TaskSpec::Noop(NoopTask { milliseconds: 1, node: None });
    assert_eq!(calls.resolve(&node.address(), Epoch(6), &noop).await, Ok(vec!["Local".to_owned()]));
}

#[tokio::test]
async fn a_refusal_is_no_silence() {
    let (node, calls) = floor(Answer::Accepted).await;
    let refused = calls.nudge(&node.address(), Epoch(4), &task()).await.unwrap_err();
    assert!(matches!(refused, CallError::Refused { code: Code::Fenced, .. }), "{refused}");
    assert_eq!(calls.nudge(&node.address(), Epoch(5), &task()).await, Ok(()));
    node.floor.send_replace(None);
    let gone = calls.nudge(&node.address(), Epoch(5), &task()).await.unwrap_err();
    assert!(matches!(gone, CallError::Refused { code: Code::RunnerInterrupt, .. }), "{gone}");
}

#[tokio::test]
async fn a_node_that_hangs_or_is_gone_gives_no_answer() {
    let (node, calls) = floor(Answer::Accepted).await;
    let address = node.address();
    let hangs = calls.interrupt(&address, Epoch(6)).await.unwrap_err();
    assert!(matches!(hangs, CallError::NoAnswer(_)), "{hangs}");
    node.listener.close().await;
    let gone = GrpcRunnerCalls::new(Channels::default()).ask(&address, assignment("mine")).await.unwrap_err();
    assert!(matches!(gone, CallError::NoAnswer(_)), "{gone}");
}

#[tokio::test]
async fn what_runners_tell_reaches_the_leader_wherever_it_is_now() {
    let (first, second) = (Node::start().await, Node::start().await);
    let desk = Arc::new(MockDesk::default());
    first.lead(&desk);
    let (leader, seen) = watch::channel(None);
    let calls = GrpcLeaderCalls::new(Channels::default(), seen);
    assert!(matches!(calls.changed(&[task()]).await, Err(CallError::NoAnswer(_))));
    leader.send_replace(Some(first.address()));
    calls.changed(&[task()]).await.unwrap();
    first.follow(Some(&second));
    second.lead(&desk);
    let told_off = calls.changed(&[task()]).await.unwrap_err();
    assert!(matches!(told_off, CallError::Refused { code: Code::NotLeader, .. }), "{told_off}");
    leader.send_replace(Some(second.address()));
    let many = vec![(task(), Progress { durable: 4096, ..Progress::default() }); 5000];
    calls.progress(&many).await.unwrap();
    assert_eq!(desk.changed.lock().unwrap().len(), 1);
    assert_eq!(*desk.progress.lock().unwrap(), many);
}
