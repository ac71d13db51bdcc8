//! Tests a daemon that runs only what is signed: what it takes, what it refuses, and what a signal changes.

use crate::daemon::{Daemon, Room, copy, noise, text, work};
use blockhaul_control::clock::{Clock, HostClock};
use blockhaul_control::order::{SigningKey, Terms};
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::error::RpcError;
use blockhaul_control::rpc::wire;
use blockhaul_engine::error::Code;
use blockhaul_testkit::order_keys::{private_key, public_key};
use nix::sys::signal::Signal;
use std::time::Duration;

fn key(number: usize) -> SigningKey {
    SigningKey::parse(private_key(number).as_bytes()).unwrap()
}

fn put(room: &Room, number: usize) {
    std::fs::write(room.path(&format!("keys/{number}.pub")), public_key(number)).unwrap();
}

/// Returns what this client signs for the center.
async fn terms(client: &mut CenterClient) -> Terms {
    let center = client.status(wire::StatusRequest {}).await.unwrap().center;
    Terms { center, now_ms: HostClock.unix_ms(), validity: Duration::from_secs(600) }
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, RpcError>) -> (Code, String) {
    let RpcError { error, .. } = answer.expect_err("it is not permitted");
    (error.code, error.message)
}

/// A copy that starts only after a while.
fn later(room: &Room, id: &str, milliseconds: u64) -> wire::SubmitRequest {
    let times = Some(wire::Times { delay_ms: Some(milliseconds), ..wire::Times::default() });
    wire::SubmitRequest { times, ..copy(id, work(&room.volume("a"), &room.volume(id))) }
}

#[test]
fn keys_that_make_no_sense_are_refused_at_start() {
    let room = Room::new();
    for folder in ["bad", "volumes/keys", "private"] {
        std::fs::create_dir_all(room.path(folder)).unwrap();
    }
    std::fs::write(room.path("bad/x.pub"), "nothing").unwrap();
    std::fs::write(room.path("private/x.pem"), private_key(0)).unwrap();
    for (folder, code, words) in [
        ("missing", 1, "--order-keys"),
        ("bad", 2, "x.pub: it holds no PUBLIC KEY"),
        ("private", 2, "x.pem: it holds a private key"),
        ("volumes/keys", 1, "overlap"),
    ] {
        let output = room.refusal(&["--order-keys", text(&room.path(folder))]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(code) && said.contains(words), "{folder}: {said}");
        assert!(!room.path("state").exists(), "nothing was begun");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_signed_runs_and_a_removed_key_refuses_what_waits() {
    let room = Room::new();
    std::fs::create_dir(room.path("keys")).unwrap();
    std::fs::write(room.path("volumes/a"), noise(1 << 20)).unwrap();
    put(&room, 0);
    let daemon: Daemon = room.start(&["--order-keys", text(&room.path("keys"))]);
    let mut client = daemon.client();
    let terms = terms(&mut client).await;
    let signed = |number: usize, mut request: wire::SubmitRequest| {
        key(number).sign_task(&mut request, &terms).unwrap();
        request
    };
    let (code, why) = refusal(client.submit(later(&room, "b", 0)).await);
    assert!(code == Code::Permission && why.contains("not signed"), "{why}");
    assert_eq!(refusal(client.submit(signed(1, later(&room, "b", 0))).await).0, Code::Permission);
    // Paths of the only node need no node, in the text that is signed neither.
    client.submit(signed(0, later(&room, "b", 0))).await.unwrap();
    let ended = client.follow("b", |_| ()).await.unwrap();
    assert_eq!(ended.state, "SUCCEEDED", "{ended:?}");
    assert_eq!(std::fs::read(room.volume("b")).unwrap(), noise(1 << 20));

    client.submit(signed(0, later(&room, "c", 3_000))).await.unwrap();
    put(&room, 1);
    std::fs::rename(room.path("keys/0.pub"), room.path("keys/0.revoked")).unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.says("order keys reloaded");
    let ended = client.follow("c", |_| ()).await.unwrap();
    let error = ended.error.unwrap();
    assert_eq!((ended.state.as_str(), error.code.as_str()), ("FAILED", "EPermission"), "{error:?}");
    assert!(!std::path::Path::new(&room.volume("c")).exists(), "nothing was touched");
    std::fs::write(room.path("keys/2.pub"), "half a key").unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.says("cannot reload order keys: keeping the old ones");
    client.submit(signed(1, later(&room, "d", 0))).await.unwrap();
    assert_eq!(client.follow("d", |_| ()).await.unwrap().state, "SUCCEEDED");

    // Its record can be deleted, and the order sent again: the node remembers.
    client.remove(wire::TaskName { id: String::from("d") }).await.unwrap();
    std::fs::remove_file(room.volume("d")).unwrap();
    client.submit(signed(1, later(&room, "d", 0))).await.unwrap();
    let ended = client.follow("d", |_| ()).await.unwrap();
    assert!(ended.state == "FAILED" && ended.error.unwrap().message.contains("has ended on this node"));
    assert!(!std::path::Path::new(&room.volume("d")).exists());
}
