//! Tests that nodes check a task before it is submitted, and that each of them has its say.

use super::mock::{IdleRunner, MockDispatcher, Node, client, identity, noop};
use crate::model::Registration;
use crate::peers::LocalIdentity;
use crate::rpc::error::RpcError;
use crate::rpc::wire;
use blockhaul_engine::error::Code;
use std::sync::Arc;

fn run(hook: &str, node: Option<&str>) -> wire::SubmitRequest {
    let work = wire::RunWork { hook: hook.to_owned(), node: node.map(str::to_owned), ..wire::RunWork::default() };
    let spec = Some(wire::Spec { work: Some(wire::spec::Work::Run(work)) });
    wire::SubmitRequest { spec, ..noop("t") }
}

/// A node that leads, and is a registered runner at `address`.
async fn leader(address: Option<&str>) -> (Node, Arc<MockDispatcher>, IdleRunner) {
    let (node, tasks, runner) = (Node::start().await, Arc::new(MockDispatcher::default()), IdleRunner::start(1).await);
    node.runner.send_replace(Some(runner.handle.clone()));
    node.lead(&tasks);
    let LocalIdentity { node: id, incarnation, .. } = identity();
    let address = address.map_or_else(|| node.address(), str::to_owned);
    let registration = Registration { node: id, incarnation, address, ..Registration::example("n1") };
    *tasks.registered.lock().unwrap() = Some(registration);
    (node, tasks, runner)
}

fn refusal(reply: &wire::CheckReply) -> blockhaul_engine::error::Error {
    RpcError::from(reply.nodes[0].refused.clone().unwrap()).error
}

#[tokio::test]
async fn a_node_answers_with_its_plan_or_its_refusal_and_nothing_is_submitted() {
    let (node, tasks, _runner) = leader(None).await;
    let mut client = client(&[node.address()]);
    let reply = client.check(noop("t")).await.unwrap();
    assert_eq!((reply.nodes.len(), reply.others, reply.nodes[0].node.as_str()), (1, 0, "n1"));
    assert_eq!(reply.nodes[0].plan_json.as_deref(), Some(r#"{"checked":true}"#));
    let reply = client.check(run("forbidden", None)).await.unwrap();
    let refused = refusal(&reply);
    assert_eq!((refused.code, refused.message.as_str()), (Code::Permission, "not this hook"));
    assert!(reply.nodes[0].plan_json.is_none());
    assert_eq!(client.check(run("../h", None)).await.unwrap_err().error.code, Code::BadRequest);
    let nobody = client.check(run("h", Some("n2"))).await.unwrap_err().error;
    assert!(nobody.code == Code::NotFound && nobody.message.contains("only node n2"), "{nobody}");
    let label = std::collections::HashMap::from([(String::from("disk"), String::from("ssd"))]);
    let placement = Some(wire::Placement { require: label, ..wire::Placement::default() });
    let elsewhere = wire::SubmitRequest { placement, ..noop("t") };
    let nobody = client.check(elsewhere.clone()).await.unwrap_err().error;
    assert!(nobody.code == Code::NotFound && nobody.message.contains("without a required label"), "{nobody}");
    let labels = [(String::from("disk"), String::from("ssd"))].into();
    tasks.registered.lock().unwrap().as_mut().unwrap().labels = labels;
    assert_eq!(client.check(elsewhere).await.unwrap().nodes.len(), 1);
    *tasks.registered.lock().unwrap() = None;
    let nobody = client.check(noop("t")).await.unwrap_err().error;
    assert!(nobody.code == Code::NotFound && nobody.message.contains("draining"), "{nobody}");
    assert!(tasks.tasks.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_node_without_an_answer_is_named() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let (node, _tasks, _runner) = leader(Some(&gone)).await;
    let reply = client(&[node.address()]).check(noop("t")).await.unwrap();
    let refused = refusal(&reply);
    assert!(refused.code == Code::Unreachable && refused.message.starts_with("node n1: "), "{refused}");
}
