//! Tests the certificates of a daemon: refused when expired, replaced while it runs, and no leadership without valid
//! ones.

use crate::daemon::{Daemon, Room, noise, read_all, slow_copy, unlimited};
use blockhaul_control::clock::HostClock;
use blockhaul_control::rpc::channels::Channels;
use blockhaul_control::rpc::client::CenterClient;
use blockhaul_control::rpc::task_view::TaskView;
use blockhaul_control::rpc::tls::{RawTls, Tls};
use blockhaul_control::rpc::wire;
use blockhaul_testkit::authority::{Authority, Identity};
use nix::sys::signal::Signal;
use std::io::Write;
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, SystemTime};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

fn client(daemon: &Daemon, identity: &Identity) -> CenterClient {
    let Identity { certificate, key, authority } = identity.clone();
    let raw = RawTls { tls_cert: Some(certificate), tls_key: Some(key), tls_ca: Some(authority) };
    let tls = Tls::read(&raw, &HostClock).unwrap();
    CenterClient::new(vec![daemon.address.clone()], Channels::new(tls)).unwrap()
}

fn name(id: &str) -> wire::TaskName {
    wire::TaskName { id: id.to_owned() }
}

#[test]
fn an_expired_certificate_is_refused_at_start_and_named() {
    let (room, ours, now) = (Room::new(), Authority::new(), SystemTime::now());
    let expired = ours.certify_for("lapsed", now - DAY, now - HOUR);
    let early = ours.certify_for("early", now + HOUR, now + DAY);
    let gone = Authority::lasting(now - DAY, now - HOUR);
    let orphan = gone.certify("orphan");
    for (identity, words) in [
        (&expired, ["'CN=lapsed' in ", "has expired at ", "replace it"]),
        (&early, ["'CN=early' in ", "is valid from ", "or set this host's clock"]),
        (&orphan, ["'CN=authority' in ", "has expired at ", "replace it"]),
    ] {
        let output = room.refusal(&identity.flags());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Not a mistake in the flags: a service manager tries again.
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("EPermission") && words.iter().all(|words| said.contains(words)), "{said}");
        assert!(!room.path("state").exists(), "nothing was begun");
    }
}

#[test]
fn a_certificate_that_expires_soon_is_warned_about() {
    let (room, ours, now) = (Room::new(), Authority::new(), SystemTime::now());
    let daemon = room.start(&ours.certify_for("short", now - DAY, now + 13 * DAY).flags());
    let line = daemon.says("is valid until");
    assert!(line.contains("WARN") && line.contains("'CN=short'") && line.contains("replace it"), "{line}");
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_replaced_while_a_copy_runs() {
    let (room, ours, theirs) = (Room::new(), Authority::new(), Authority::new());
    let bytes = noise(32 << 20);
    std::fs::write(room.volume("a"), &bytes).unwrap();
    let (live, first) = (ours.certify("live"), ours.certify("first"));
    let metrics = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let daemon = room.start(&[&live.flags()[..], &["--metrics", &metrics]].concat());
    let (old, new) = (ours.certify("client"), theirs.certify("client"));
    client(&daemon, &old).submit(slow_copy("t", &room, 1 << 20)).await.unwrap();
    // Asked to.
    let second = theirs.certify_for("second", SystemTime::now() - DAY, SystemTime::now() + 90 * DAY);
    live.replace(&second);
    daemon.signal(Signal::SIGHUP);
    daemon.says("certificates reloaded");
    assert_eq!(client(&daemon, &new).get(name("t")).await.unwrap().id, "t");
    let mut page = TcpStream::connect(&metrics).unwrap();
    page.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
    let page = read_all(&mut page);
    let until = page.lines().find_map(|line| line.strip_prefix("blockhaul_tls_not_after_seconds "));
    let until: u64 = until.unwrap_or_else(|| panic!("{page}")).parse().unwrap();
    let left = until - SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    // The authority's own certificate is the first one to expire.
    assert_eq!(left.div_ceil(DAY.as_secs()), 30, "{page}");
    // What is of no use is named and replaces nothing.
    let key = theirs.certify("other").key;
    live.replace(&Identity { key, ..second });
    daemon.signal(Signal::SIGHUP);
    assert!(daemon.says("keeping the old ones").contains("--tls-key"));
    assert_eq!(client(&daemon, &new).get(name("t")).await.unwrap().id, "t");
    // Because they have changed.
    live.replace(&first);
    daemon.says("certificates reloaded");
    let mut client = client(&daemon, &old);
    client.set(unlimited("t")).await.unwrap();
    let done = TaskView::from(client.follow("t", |_| ()).await.unwrap());
    assert_eq!((done.state.as_str(), done.attempts.len()), ("SUCCEEDED", 1), "{done:?}");
    assert_eq!(std::fs::read(room.volume("b")).unwrap(), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_whose_certificate_expires_resigns_until_there_is_a_new_one() {
    let (room, ours) = (Room::new(), Authority::new());
    let bytes = noise(32 << 20);
    std::fs::write(room.volume("a"), &bytes).unwrap();
    let live = ours.certify("live");
    let daemon = room.start(&live.flags());
    let caller = ours.certify("client");
    client(&daemon, &caller).submit(slow_copy("t", &room, 1 << 20)).await.unwrap();
    expire(&daemon, &ours, &live);
    daemon.says("does not lead: the certificate of 'CN=brief'");
    daemon.says("lost leadership");
    live.replace(&ours.certify("next"));
    daemon.says("certificates reloaded");
    let mut client = client(&daemon, &caller);
    client.set(unlimited("t")).await.unwrap();
    let done = TaskView::from(client.follow("t", |_| ()).await.unwrap());
    assert_eq!((done.state.as_str(), done.attempts.len()), ("SUCCEEDED", 1), "the copy went on: {done:?}");
    assert_eq!(std::fs::read(room.volume("b")).unwrap(), bytes);
}

/// Gives the daemon a certificate that expires in a moment, but is valid when it is read, however busy the host is.
fn expire(daemon: &Daemon, ours: &Authority, live: &Identity) {
    for seconds in [3, 10, 30, 90] {
        let now = SystemTime::now();
        live.replace(&ours.certify_for("brief", now - HOUR, now + Duration::from_secs(seconds)));
        daemon.signal(Signal::SIGHUP);
        if daemon.says("certificates").contains("reloaded") {
            return;
        }
    }
    panic!("it is never read in time");
}
