//! Tests that clients read logs of attempts through the leader, and learn why there is none.

use super::mock::{MockDispatcher, Node, client, identity, record};
use crate::model::{Attempt, Holder, NodeId, Registration, TaskId, TaskRecord, TaskState};
use crate::peers::LocalIdentity;
use crate::rpc::error::RpcError;
use crate::rpc::wire;
use blockhaul_engine::error::Code;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tracing::{Dispatch, Span, field};
use tracing_subscriber::layer::SubscriberExt;

/// A node that leads and keeps logs, and its subscriber.
struct Logging {
    node: Node,
    tasks: Arc<MockDispatcher>,
    subscriber: Dispatch,
    _folder: tempfile::TempDir,
}

fn attempt(node: &str, started_ms: u64) -> Attempt {
    let runner = Holder { node: NodeId::new(node).unwrap(), incarnation: identity().incarnation };
    Attempt {
        runner,
        epoch: None,
        started_ms,
        ended_ms: None,
        outcome: None,
        quiet: true,
        node_fault: None,
        unknown: Default::default(),
    }
}

impl Logging {
    /// The task `t` has had two attempts on `n1` and one on `n2`; `n1` is this node, and registered.
    async fn start() -> Self {
        let (node, tasks, folder) =
            (Node::start().await, Arc::new(MockDispatcher::default()), tempfile::tempdir().unwrap());
        node.logs.open(folder.path());
        let subscriber = Dispatch::new(tracing_subscriber::registry().with(node.logs.layer()));
        let attempts = vec![attempt("n1", 10), attempt("n2", 20), attempt("n1", 30)];
        tasks.put(TaskRecord { attempts, state: TaskState::Running, ..record("t") });
        node.lead(&tasks);
        let logging = Self { node, tasks, subscriber, _folder: folder };
        logging.register(&logging.node.address());
        logging
    }

    /// Registers `n1` at an address.
    fn register(&self, address: &str) {
        let LocalIdentity { node, incarnation, .. } = identity();
        let address = address.to_owned();
        let registration = Registration { node, incarnation, address, ..Registration::example("n1") };
        *self.tasks.registered.lock().unwrap() = Some(registration);
    }

    /// Begins an attempt on this node.
    fn begin(&self, assigned_ms: u64) -> Span {
        tracing::dispatcher::with_default(&self.subscriber, || {
            let span = tracing::error_span!(parent: None, "attempt", task = %"t", assigned_ms = field::Empty);
            span.record("assigned_ms", assigned_ms);
            span
        })
    }

    fn log(&self, span: &Span, line: &str) {
        tracing::dispatcher::with_default(&self.subscriber, || span.in_scope(|| tracing::info!("{line}")));
    }

    async fn read(&self, request: wire::LogsRequest) -> (Vec<wire::LogsEvent>, Result<(), RpcError>) {
        let mut events = Vec::new();
        let ended = client(&[self.node.address()]).logs(request, |event| events.push(event.clone())).await;
        (events, ended)
    }
}

fn of(attempt: Option<u32>) -> wire::LogsRequest {
    wire::LogsRequest { id: String::from("t"), attempt, ..wire::LogsRequest::default() }
}

fn text(events: &[wire::LogsEvent]) -> String {
    events.iter().map(|event| std::str::from_utf8(&event.text).unwrap()).collect()
}

#[tokio::test]
async fn the_log_of_an_attempt_comes_from_its_node() {
    let logging = Logging::start().await;
    for (assigned_ms, lines) in [(10, 3), (30, 5000)] {
        let span = logging.begin(assigned_ms);
        (0..lines).for_each(|number| logging.log(&span, &format!("line {number} of {assigned_ms}")));
    }
    let (first, ended) = loop {
        // The writer is not waited for.
        let (events, ended) = logging.read(of(Some(1))).await;
        if text(&events).lines().count() == 3 {
            break (events, ended);
        }
    };
    assert_eq!(ended, Ok(()));
    assert!(text(&first).lines().all(|line| line.ends_with(" of 10")), "{first:?}");
    assert!(first.iter().all(|event| (event.attempt, event.node.as_str(), event.started_ms) == (1, "n1", 10)));
    assert!(first.last().unwrap().last);
    let (last, ended) = logging.read(wire::LogsRequest { follow: true, ..of(None) }).await;
    assert_eq!((ended, last[0].attempt), (Ok(()), 3));
    let text = text(&last);
    assert!(text.ends_with("line 4999 of 30\n") && text.contains("line 0 of 30\n"), "{}", text.len());
    assert!(last.iter().all(|event| event.text.len() <= 64 << 10));
}

#[tokio::test]
async fn a_followed_log_goes_on_until_the_attempt_has_ended() {
    let logging = Logging::start().await;
    let span = logging.begin(30);
    logging.log(&span, "first");
    let address = logging.node.address();
    let (seen, mut events) = mpsc::unbounded_channel();
    let following = tokio::spawn(async move {
        let request = wire::LogsRequest { follow: true, ..of(Some(3)) };
        client(&[address]).logs(request, |event| _ = seen.send(event.clone())).await
    });
    let mut next = async || loop {
        let event = events.recv().await.unwrap();
        if !event.text.is_empty() || event.last {
            break String::from_utf8(event.text).unwrap();
        }
    };
    assert!(next().await.ends_with("first\n"));
    logging.log(&span, "second");
    assert!(next().await.ends_with("second\n"));
    logging.log(&span, "third");
    drop(span);
    assert!(next().await.ends_with("third\n"));
    assert_eq!(next().await, "");
    assert_eq!(following.await.unwrap(), Ok(()));
}

#[tokio::test]
async fn a_node_that_is_away_is_named_and_waited_for_by_who_follows() {
    let logging = Logging::start().await;
    let (events, ended) = logging.read(of(Some(2))).await;
    let error = ended.unwrap_err().error;
    assert_eq!(error.code, Code::Unreachable);
    assert_eq!(error.message, "node n2 is away; its log of attempt 2 is shown when it is back");
    assert!(text(&events).is_empty());
    // It is registered, but does not answer.
    let mute = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    logging.register(&mute.local_addr().unwrap().to_string());
    let (_, ended) = logging.read(of(Some(3))).await;
    let message = ended.unwrap_err().error.message;
    assert!(message.starts_with("node n1 is away; its log of attempt 3 is shown when it is back ("), "{message}");
    let (seen, mut events) = mpsc::unbounded_channel();
    let address = logging.node.address();
    let following = tokio::spawn(async move {
        let request = wire::LogsRequest { follow: true, ..of(Some(3)) };
        client(&[address]).logs(request, |event| _ = seen.send(event.clone())).await
    });
    let waits = events.recv().await.unwrap();
    assert!(waits.waits_for.contains("n1 is away") && !waits.last, "{waits:?}");
    let span = logging.begin(30);
    logging.log(&span, "back");
    drop(span);
    logging.register(&logging.node.address());
    assert_eq!(following.await.unwrap(), Ok(()));
    let mut said = String::new();
    while let Some(event) = events.recv().await {
        said += std::str::from_utf8(&event.text).unwrap();
    }
    assert!(said.ends_with("back\n"), "{said}");
}

#[tokio::test]
async fn what_is_not_there_is_said() {
    let logging = Logging::start().await;
    let refusal = async |request| logging.read(request).await.1.unwrap_err().error;
    let gone = loop {
        // Until the logs are listed.
        let gone = refusal(of(Some(1))).await;
        if gone.code != Code::Unreachable {
            break gone;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    assert_eq!(gone.code, Code::NotFound);
    assert!(gone.message.starts_with("node n1 has no log of attempt 1: it was removed"), "{gone}");
    for number in [4, u32::MAX] {
        let unknown = refusal(of(Some(number))).await;
        assert_eq!((unknown.code, unknown.message.as_str()), (Code::NotFound, "task t has had 3 attempts"));
    }
    logging.tasks.put(record("new"));
    let none = refusal(wire::LogsRequest { id: String::from("new"), ..of(None) }).await;
    assert_eq!(none.message, "task new is PENDING and has had no attempt, so there is no log");
    assert_eq!(refusal(wire::LogsRequest { id: String::from("x"), ..of(None) }).await.code, Code::NotFound);
    // Who follows waits for the attempt, until the task has ended without.
    let id = TaskId::new("new").unwrap();
    let ending = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        logging.tasks.edit(&id, |task| task.state = TaskState::Cancelled);
    };
    let request = wire::LogsRequest { id: String::from("new"), follow: true, ..of(None) };
    let ((events, ended), ()) = tokio::join!(logging.read(request), ending);
    assert_eq!(events[0].waits_for, "an attempt of task new, which is PENDING");
    assert!(ended.unwrap_err().error.message.contains("CANCELLED"));
}
