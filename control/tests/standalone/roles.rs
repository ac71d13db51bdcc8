//! Tests roles and the audit log of a daemon with real certificates: what it does not start with, what clients may do,
//! and what a signal changes.

use crate::daemon::{Daemon, Room, text};
use blockhaul_control::clock::HostClock;
use blockhaul_control::rpc::channels::Channels;
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::error::RpcError;
use blockhaul_control::rpc::tls::{RawTls, Tls};
use blockhaul_control::rpc::wire;
use blockhaul_engine::error::Code;
use blockhaul_testkit::authority::{Authority, Identity};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::path::Path;

const RULES: &str = "view = ['viewer']\nsubmit = ['ci']\noperate = ['ops']\nadmin = ['root']\n";

fn client(daemon: &Daemon, identity: Identity) -> CenterClient {
    let Identity { certificate, key, authority } = identity;
    let raw = RawTls { tls_cert: Some(certificate), tls_key: Some(key), tls_ca: Some(authority) };
    let tls = Tls::read(&raw, &HostClock).unwrap();
    CenterClient::new(vec![daemon.address.clone()], Channels::new(tls)).unwrap()
}

fn noop(id: &str, milliseconds: u64) -> wire::SubmitRequest {
    let work = wire::spec::Work::Noop(wire::NoopWork { milliseconds, node: None });
    wire::SubmitRequest { id: id.to_owned(), spec: Some(wire::Spec { work: Some(work) }), ..Default::default() }
}

fn name(id: &str) -> wire::TaskName {
    wire::TaskName { id: id.to_owned() }
}

fn refusal<T: std::fmt::Debug>(answer: Result<T, RpcError>) -> (Code, String) {
    let RpcError { error, .. } = answer.expect_err("it is not permitted");
    (error.code, error.message)
}

fn lines(file: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(file).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn roles_that_make_no_sense_are_refused_at_start() {
    let (room, ours) = (Room::new(), Authority::new());
    let node = ours.certify("n1");
    let with = |name: &str, rules: &str| {
        std::fs::write(room.path(name), rules).unwrap();
        room.path(name)
    };
    let (good, both) = (with("good.toml", RULES), with("both.toml", "nodes = ['ci']\nsubmit = ['ci']"));
    let (broken, inside) = (with("broken.toml", "submit = ["), with("volumes/roles.toml", RULES));
    let missing = room.path("missing.toml");
    for (file, flags, code, words) in [
        (&good, &[][..], 2, "--roles without TLS"),
        (&both, &node.flags()[..], 2, "'ci' is in 'nodes' and in 'submit'"),
        (&broken, &node.flags()[..], 2, "broken.toml"),
        (&missing, &node.flags()[..], 1, "missing.toml"),
        (&inside, &node.flags()[..], 1, "overlap"),
    ] {
        let output = room.refusal(&[flags, &["--roles", text(file)]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(words), "{said}");
        assert!(!room.path("state").exists(), "nothing was begun");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_have_the_rights_of_their_roles_and_changes_are_kept() {
    let (room, ours) = (Room::new(), Authority::new());
    let file = room.path("roles.toml");
    std::fs::write(&file, RULES).unwrap();
    let daemon = room.start(&[&ours.certify("daemon").flags()[..], &["--roles", text(&file)]].concat());
    let of = |name: &str| client(&daemon, ours.certify(name));
    let (mut viewer, mut ci, mut ops) = (of("viewer"), of("ci"), of("ops"));
    // The dispatcher and the runner of the process call each other, though it is not listed as a node.
    ci.submit(noop("t", 1)).await.unwrap();
    assert_eq!(ci.follow("t", |_| ()).await.unwrap().state, "SUCCEEDED");
    assert_eq!(viewer.get(name("t")).await.unwrap().id, "t");
    let transitions = viewer.events(name("t")).await.unwrap().transitions;
    assert_eq!((&*transitions[0].state, transitions[0].client.as_deref()), ("PENDING", Some("ci")), "{transitions:?}");
    assert!(transitions[1..].iter().all(|later| later.client.is_none()), "{transitions:?}");
    let (code, why) = refusal(viewer.submit(noop("u", 1)).await);
    assert!(code == Code::Permission && why.contains("'viewer'") && why.contains("role submit"), "{why}");
    let drain = wire::DrainRequest { node: String::from("n1"), now: false, undo: false, ..Default::default() };
    assert_eq!(refusal(ci.drain(drain.clone()).await).0, Code::Permission);
    ops.drain(drain).await.unwrap();
    assert_eq!(refusal(of("stranger").status(wire::StatusRequest {}).await).0, Code::Permission);

    // A file that is of no use replaces nothing, whatever is wrong with it.
    for bad in ["submit = [", "nodes = ['viewer']\nview = ['viewer']"] {
        std::fs::write(&file, bad).unwrap();
        daemon.signal(Signal::SIGHUP);
        daemon.says("cannot reload roles: keeping the old ones");
        viewer.get(name("t")).await.unwrap();
    }
    std::fs::write(&file, "submit = ['viewer']\n").unwrap();
    daemon.signal(Signal::SIGHUP);
    daemon.says("roles reloaded");
    viewer.submit(noop("u", 600_000)).await.unwrap();
    assert_eq!(refusal(ci.get(name("t")).await).0, Code::Permission, "over the connection that it has");

    let audit = room.path("state/audit.jsonl");
    let all = lines(&audit);
    let of_t: Vec<_> = all.iter().filter(|line| line["task"] == "t").collect();
    assert_eq!(of_t.len(), 2, "{all:?}");
    assert_eq!(
        (&of_t[0]["who"], &of_t[0]["role"], &of_t[0]["what"]),
        (&"ci".into(), &"submit".into(), &"Submit".into())
    );
    assert_eq!(of_t[1]["outcome"], "succeeded");
    // Nobody can write where a folder is.
    std::fs::rename(&audit, room.path("state/kept")).unwrap();
    std::fs::create_dir(&audit).unwrap();
    let restarted = restart(daemon, &room, &ours, &file);
    let mut viewer = client(&restarted, ours.certify("viewer"));
    let (code, why) = refusal(viewer.submit(noop("v", 1)).await);
    assert!(code == Code::Io && why.contains("audit log") && why.contains("nothing was changed"), "{code} {why}");
    restarted.says("audit log not written: only cancel is taken");
    viewer.cancel(wire::CancelRequest { id: String::from("u"), all: false }).await.unwrap();
    assert_eq!(viewer.follow("u", |_| ()).await.unwrap().state, "CANCELLED");
    std::fs::remove_dir(&audit).unwrap();
    viewer.submit(noop("v", 1)).await.unwrap();
    assert!(lines(&audit).iter().any(|line| line["task"] == "v"));
}

/// Ends the daemon, and starts another one on its state.
fn restart(mut daemon: Daemon, room: &Room, ours: &Authority, roles: &Path) -> Daemon {
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.ended(), Some(0));
    room.start(&[&ours.certify("daemon").flags()[..], &["--roles", text(roles)]].concat())
}
