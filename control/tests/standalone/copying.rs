//! Tests copies from submission to their end, across restarts of the process.

use crate::daemon::{Room, copy, noise, read_all, slow_copy, unlimited, work};
use blockhaul_control::rpc::task_view::{ErrorView, TaskView};
use blockhaul_control::rpc::wire;
use blockhaul_engine::error::Code;
use nix::sys::signal::Signal;
use std::io::Write;

const MIB: usize = 1 << 20;

fn name(id: &str) -> wire::TaskName {
    wire::TaskName { id: id.to_owned() }
}

fn cancel(id: &str) -> wire::CancelRequest {
    wire::CancelRequest { id: id.to_owned(), all: false }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_done_and_its_record_says_so() {
    let room = Room::new();
    let bytes = noise(8 * MIB);
    std::fs::write(room.volume("a"), &bytes).unwrap();
    let daemon = room.start(&[]);
    let mut client = daemon.client();
    let work = wire::CopyWork { verify: true, ..work(&room.volume("a"), &room.volume("b")) };
    let request = copy("t", work);
    client.submit(request.clone()).await.unwrap();
    let task = TaskView::from(client.follow("t", |_| ()).await.unwrap());
    assert_eq!((task.state.as_str(), task.error), ("SUCCEEDED", None));
    assert_eq!(std::fs::read(room.volume("b")).unwrap(), bytes);
    assert_eq!((task.progress.planned, task.progress.durable), (bytes.len() as u64, bytes.len() as u64));
    assert_eq!((task.attempts.len(), task.attempts[0].outcome.as_deref()), (1, Some("succeeded")));
    assert_eq!(task.report.unwrap()["status"], "succeeded");
    assert_eq!(client.submit(request).await.unwrap().state, "SUCCEEDED", "asking again is no second copy");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_outside_of_the_allowed_paths_fails_by_name() {
    let room = Room::new();
    std::fs::write(room.volume("a"), b"data").unwrap();
    std::fs::write(room.path("secret"), b"secret").unwrap();
    std::os::unix::fs::symlink(room.path("secret"), room.volume("link")).unwrap();
    let daemon = room.start(&[]);
    let mut client = daemon.client();
    let outside = room.path("outside").to_str().unwrap().to_owned();
    let dots = format!("{}/../outside", room.volume("."));
    for (id, source, destination) in [
        ("source", room.path("secret").to_str().unwrap().to_owned(), room.volume("b")),
        ("link", room.volume("link"), room.volume("b")),
        ("destination", room.volume("a"), outside.clone()),
        ("dots", room.volume("a"), dots),
    ] {
        client.submit(copy(id, work(&source, &destination))).await.unwrap();
        let task = TaskView::from(client.follow(id, |_| ()).await.unwrap());
        assert_eq!(task.state, "FAILED", "{id}: {task:?}");
        assert_eq!(task.error.map(|error| error.code).as_deref(), Some("EPermission"), "{id}");
    }
    assert!(!std::path::Path::new(&outside).exists() && !std::path::Path::new(&room.volume("b")).exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_copy_is_paused_limited_and_goes_on() {
    let room = Room::new();
    let bytes = noise(64 * MIB);
    std::fs::write(room.volume("a"), &bytes).unwrap();
    let daemon = room.start(&[]);
    let mut client = daemon.client();
    client.submit(slow_copy("t", &room, 1 << 20)).await.unwrap();
    until(&mut client, "RUNNING").await;
    client.pause(name("t")).await.unwrap();
    let paused = until(&mut client, "PAUSED").await;
    assert_eq!((paused.desired_state.as_str(), paused.attempts.len()), ("pause", 1));
    assert_eq!(client.set(unlimited("t")).await.unwrap().id, "t");
    client.resume(name("t")).await.unwrap();
    let done = TaskView::from(client.follow("t", |_| ()).await.unwrap());
    assert_eq!((done.state.as_str(), done.attempts.len(), done.limit), ("SUCCEEDED", 2, None));
    assert_eq!(std::fs::read(room.volume("b")).unwrap(), bytes);
    assert_eq!(client.cancel(cancel("t")).await.unwrap().state, "SUCCEEDED");
}

async fn until(client: &mut blockhaul_control::rpc::client::CenterClient, state: &str) -> TaskView {
    loop {
        let task = TaskView::from(client.get(name("t")).await.unwrap());
        if task.state == state {
            return task;
        }
        assert!(!task.is_over(), "{task:?}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_gives_the_copy_back_and_the_next_life_goes_on() {
    goes_on_after(Signal::SIGTERM, Some(0), "ERunnerInterrupt").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_costs_an_attempt_and_the_next_life_goes_on() {
    goes_on_after(Signal::SIGKILL, None, "ELeaseLost").await;
}

/// In the middle of a copy a signal ends the process, with this code; the next life of it ends the copy.
async fn goes_on_after(signal: Signal, code: Option<i32>, outcome: &str) {
    let room = Room::new();
    let bytes = noise(64 * MIB);
    std::fs::write(room.volume("a"), &bytes).unwrap();
    let mut daemon = room.start(&[]);
    let mut client = daemon.client();
    client.submit(slow_copy("t", &room, 8 << 20)).await.unwrap();
    until(&mut client, "RUNNING").await;
    daemon.signal(signal);
    assert_eq!(daemon.ended(), code);
    let daemon = room.start(&[]);
    let mut client = daemon.client();
    client.set(unlimited("t")).await.unwrap();
    let task = TaskView::from(client.follow("t", |_| ()).await.unwrap());
    let outcomes: Vec<_> = task.attempts.iter().map(|attempt| attempt.outcome.as_deref()).collect();
    assert_eq!((task.state.as_str(), outcomes), ("SUCCEEDED", vec![Some(outcome), Some("succeeded")]));
    assert_eq!(std::fs::read(room.volume("b")).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn noops_exercise_the_center_and_cannot_be_paused() {
    let room = Room::new();
    let daemon = room.start(&[]);
    let mut client = daemon.client();
    let noop = |id: &str, milliseconds| wire::SubmitRequest {
        id: id.to_owned(),
        spec: Some(wire::Spec { work: Some(wire::spec::Work::Noop(wire::NoopWork { milliseconds, node: None })) }),
        ..wire::SubmitRequest::default()
    };
    client.submit(noop("short", 1)).await.unwrap();
    assert_eq!(client.follow("short", |_| ()).await.unwrap().state, "SUCCEEDED");
    client.submit(noop("long", 600_000)).await.unwrap();
    assert_eq!(client.pause(name("long")).await.unwrap_err().error.code, Code::Unsupported);
    client.cancel(cancel("long")).await.unwrap();
    assert_eq!(client.follow("long", |_| ()).await.unwrap().state, "CANCELLED");
    assert_eq!(client.cancel(cancel("none")).await.unwrap_err().error.code, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_and_the_center_say_how_it_stands() {
    let room = Room::new();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let metrics = format!("127.0.0.1:{port}");
    let daemon = room.start(&["--metrics", &metrics, "--label", "rack=7"]);
    let mut client = daemon.client();
    let status = client.status(wire::StatusRequest {}).await.unwrap();
    assert_eq!((status.leader.as_str(), status.leader_address.as_str()), ("n1", daemon.address.as_str()));
    assert_eq!(status.center.len(), 32);
    let runner = loop {
        let mut runners = client.runners(wire::RunnersRequest::default()).await.unwrap().runners;
        if let Some(runner) = runners.pop() {
            break runner;
        }
    };
    assert_eq!((runner.node.as_str(), runner.slots, runner.registered), ("n1", 4, true));
    assert_eq!(runner.labels["rack"], "7");
    let mut stream = std::net::TcpStream::connect(&metrics).unwrap();
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let page = read_all(&mut stream);
    for line in ["blockhaul_leader 1", "blockhaul_tasks{state=\"PENDING\"} 0", "blockhaul_runner_registered 1"] {
        assert!(page.contains(line), "{line}:\n{page}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_are_compared_with_each_other_and_with_a_receipt() {
    let room = Room::new();
    let bytes = noise(2 * MIB);
    std::fs::write(room.volume("a"), &bytes).unwrap();
    std::fs::write(room.volume("b"), &bytes).unwrap();
    let mut other = bytes;
    other[MIB + 5] ^= 1;
    std::fs::write(room.volume("other"), other).unwrap();
    std::fs::write(room.volume("r"), b"no receipt").unwrap();
    let daemon = room.start(&[]);
    let mut client = daemon.client();
    let two = |volume: &str| wire::VerifyWork {
        reference: Some(room.volume("a")),
        volume: room.volume(volume),
        ..wire::VerifyWork::default()
    };
    let receipt = wire::VerifyWork { reference: None, receipt: Some(room.volume("r")), ..two("b") };
    for (id, work, state, code) in [
        ("same", two("b"), "SUCCEEDED", None),
        ("again", two("b"), "SUCCEEDED", None),
        ("other", two("other"), "FAILED", Some("EVerifyMismatch")),
        ("receipt", receipt, "FAILED", Some("ECheckpointCorrupt")),
    ] {
        let spec = Some(wire::Spec { work: Some(wire::spec::Work::Verify(work)) });
        client.submit(wire::SubmitRequest { id: id.to_owned(), spec, ..Default::default() }).await.unwrap();
        let task = TaskView::from(client.follow(id, |_| ()).await.unwrap());
        assert_eq!((task.kind, task.state.as_str()), ("verify", state), "{id}: {task:?}");
        let error = task.error.clone();
        assert_eq!(error.as_ref().map(|error| &*error.code), code, "{id}");
        let names_it = |error: ErrorView| id != "receipt" || error.message.contains(&room.volume("r"));
        assert!(error.is_none_or(names_it), "{id}: {task:?}");
        assert_eq!(task.attempts.len(), 1, "{id}: a difference does not go away");
    }
}
