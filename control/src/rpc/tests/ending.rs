//! Tests that a listener stops soon, whatever its peers do, and that the health service reports its state.

use super::mock::{IdleRunner, MockDispatcher, Node, client, hanging_call, name, noop};
use crate::rpc::limits::GOODBYE_MAX;
use crate::rpc::wire::{self, center_client};
use std::sync::Arc;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

async fn channel(node: &Node) -> Channel {
    Endpoint::from_shared(format!("http://{}", node.address())).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn open_streams_hanging_calls_and_bare_connections_do_not_hold_a_listener() {
    let node = Node::start().await;
    node.lead(&Arc::new(MockDispatcher::default()));
    let runner = IdleRunner::start(1).await;
    node.runner.send_replace(Some(runner.handle.clone()));
    client(&[node.address()]).submit(noop("t")).await.unwrap();
    let _bare = TcpStream::connect(node.listener.address()).await.unwrap();
    let mut events =
        center_client::CenterClient::new(channel(&node).await).watch(name("t")).await.unwrap().into_inner();
    let mut caller = wire::runner_client::RunnerClient::new(channel(&node).await);
    let hanging = tokio::spawn(async move { caller.resolve(hanging_call()).await });
    events.message().await.unwrap().unwrap();
    let bound = GOODBYE_MAX * 2;
    tokio::time::timeout(bound, node.listener.close()).await.expect("it is closed in time");
    while let Ok(Some(_)) = events.message().await {}
    hanging.abort();
}

#[tokio::test]
async fn a_closed_listener_frees_its_address() {
    let node = Node::start().await;
    let address = node.address();
    node.listener.close().await;
    let again = Node::at(&address, None).await;
    assert_eq!(again.address(), address);
}

#[tokio::test]
async fn health_follows_the_roles() {
    let node = Node::start().await;
    let mut health = HealthClient::new(channel(&node).await);
    let mut wait_for = async |service: &str, wanted: ServingStatus| {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut states = health.watch(request).await.unwrap().into_inner();
        while states.message().await.unwrap().expect("the stream goes on").status != i32::from(wanted) {}
    };
    wait_for("", ServingStatus::Serving).await;
    wait_for("blockhaul.v1.Center", ServingStatus::NotServing).await;
    wait_for("blockhaul.v1.Runner", ServingStatus::NotServing).await;
    node.lead(&Arc::new(MockDispatcher::default()));
    wait_for("blockhaul.v1.Center", ServingStatus::Serving).await;
    let runner = IdleRunner::start(1).await;
    node.runner.send_replace(Some(runner.handle.clone()));
    wait_for("blockhaul.v1.Runner", ServingStatus::Serving).await;
    node.serving.send_replace(false);
    wait_for("", ServingStatus::NotServing).await;
    wait_for("blockhaul.v1.Runner", ServingStatus::NotServing).await;
    node.serving.send_replace(true);
    wait_for("", ServingStatus::Serving).await;
    node.follow(None);
    wait_for("blockhaul.v1.Center", ServingStatus::NotServing).await;
}

#[tokio::test]
async fn reflection_names_the_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let node = Node::start().await;
    let mut reflection = ServerReflectionClient::new(channel(&node).await);
    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers = reflection.server_reflection_info(tokio_stream::once(ask)).await.unwrap().into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) = answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("services were asked for")
    };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for wanted in ["blockhaul.v1.Center", "blockhaul.v1.Runner", "blockhaul.v1.Dispatcher", "grpc.health.v1.Health"] {
        assert!(names.contains(&wanted), "{names:?}");
    }
}
