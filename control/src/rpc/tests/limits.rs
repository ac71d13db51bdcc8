//! Tests what a peer may send, and how much: malformed, oversized, too many.

use super::mock::{IdleRunner, MockDispatcher, Node, client, hanging_call, name, noop};
use crate::rpc::limits::{CALLS_PER_CONNECTION_MAX, MESSAGE_BYTES_MAX, WATCHES_MAX};
use crate::rpc::wire::{self, center_client};
use blockhaul_engine::error::Code;
use std::sync::Arc;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Request, Status};

async fn leader() -> (Node, Arc<MockDispatcher>) {
    let (node, tasks) = (Node::start().await, Arc::new(MockDispatcher::default()));
    node.lead(&tasks);
    (node, tasks)
}

async fn channel(node: &Node) -> tonic::transport::Channel {
    tonic::transport::Endpoint::from_shared(format!("http://{}", node.address())).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn an_oversized_request_is_refused_on_both_sides() {
    let (node, tasks) = leader().await;
    let mut request = noop("t");
    let long = wire::CopyWork { source: "x".repeat(MESSAGE_BYTES_MAX), ..wire::CopyWork::default() };
    request.spec = Some(wire::Spec { work: Some(wire::spec::Work::Copy(long)) });
    assert_eq!(client(&[node.address()]).submit(request.clone()).await.unwrap_err().error.code, Code::BadRequest);
    let mut unbounded = center_client::CenterClient::new(channel(&node).await);
    assert_eq!(unbounded.submit(request).await.unwrap_err().code(), tonic::Code::OutOfRange);
    assert!(tasks.tasks.lock().unwrap().is_empty());
    assert!(client(&[node.address()]).submit(noop("t")).await.is_ok());
}

/// Sends bytes as they are.
#[derive(Clone, Default)]
struct Raw;

impl Codec for Raw {
    type Encode = Vec<u8>;
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Vec<u8>;
    type Error = Status;
    fn encode(&mut self, item: Vec<u8>, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        bytes::BufMut::put_slice(buffer, &item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = ();
    type Error = Status;
    fn decode(&mut self, _: &mut DecodeBuf<'_>) -> Result<Option<()>, Status> {
        Ok(None)
    }
}

#[tokio::test]
async fn bytes_that_are_no_message_are_refused_and_harm_nobody() {
    let (node, tasks) = leader().await;
    let mut grpc = tonic::client::Grpc::new(channel(&node).await);
    for (path, bytes) in [
        ("/blockhaul.v1.Center/Submit", vec![0xff; 64]),
        ("/blockhaul.v1.Center/Submit", vec![0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        ("/blockhaul.v1.Runner/Assign", vec![0x08, 0x80]),
        ("/blockhaul.v1.Dispatcher/Progress", vec![0x0a, 0x02, 0x0a]),
        ("/blockhaul.v1.Center/Conquer", Vec::new()),
    ] {
        grpc.ready().await.unwrap();
        let answer = grpc.unary(Request::new(bytes), path.parse().unwrap(), Raw).await;
        assert!(answer.is_err(), "{path}");
    }
    assert!(tasks.tasks.lock().unwrap().is_empty());
    assert!(client(&[node.address()]).submit(noop("t")).await.is_ok());
}

#[tokio::test]
async fn too_many_calls_of_one_connection_are_refused_and_not_queued() {
    let (node, runner) = (Node::start().await, IdleRunner::start(1).await);
    node.runner.send_replace(Some(runner.handle.clone()));
    let stub = wire::runner_client::RunnerClient::new(channel(&node).await);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..CALLS_PER_CONNECTION_MAX + 16 {
        let mut stub = stub.clone();
        calls.spawn(async move { stub.resolve(hanging_call()).await });
    }
    let refused = calls.join_next().await.unwrap().unwrap().unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
}

#[tokio::test]
async fn too_many_watches_are_refused_by_name() {
    let (node, _tasks) = leader().await;
    client(&[node.address()]).submit(noop("t")).await.unwrap();
    let mut streams = Vec::new();
    let refused = 'full: loop {
        let mut stub = center_client::CenterClient::new(channel(&node).await);
        for _ in 0..100 {
            match stub.watch(name("t")).await {
                Ok(stream) => streams.push(stream),
                Err(status) => break 'full status,
            }
        }
    };
    assert_eq!(crate::rpc::error::RpcError::from(refused).error.code, Code::Overloaded);
    assert_eq!(streams.len(), WATCHES_MAX);
    drop(streams);
    let mut stub = center_client::CenterClient::new(channel(&node).await);
    while stub.watch(name("t")).await.is_err() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_stream_carries_something_each_second() {
    let (node, _tasks) = leader().await;
    client(&[node.address()]).submit(noop("t")).await.unwrap();
    let mut stub = center_client::CenterClient::new(channel(&node).await);
    let mut events = stub.watch(name("t")).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().unwrap().task.is_some());
    assert!(events.message().await.unwrap().unwrap().task.is_none());
}

/// All of them send something, and none asks anything: a preface of HTTP/2 is no request yet.
#[tokio::test]
async fn who_sends_a_byte_or_a_preface_is_ended_and_who_has_asked_stays() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let (node, _tasks) = leader().await;
    client(&[node.address()]).submit(noop("t")).await.unwrap();
    let mut stub = center_client::CenterClient::new(channel(&node).await);
    let mut events = stub.watch(name("t")).await.unwrap().into_inner();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    for said in [&b"P"[..], preface] {
        let mut stranger = tokio::net::TcpStream::connect(node.address()).await.unwrap();
        stranger.write_all(said).await.unwrap();
        // What is answered does not matter, but that there is an end.
        let _ = stranger.read_to_end(&mut Vec::new()).await;
    }
    for _ in 0..3 {
        assert!(events.message().await.unwrap().is_some(), "a connection that has asked is as old, and lives");
    }
}
