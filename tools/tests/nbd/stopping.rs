//! Tests how copies from and to servers end: with a disconnect request if the server replies, within a bound if it does
//! not, and with a correct report.

use crate::support::{
    Command, Export, Kind, MIB, Need, Offer, Outcome, Peer, PeerScript, Proxy, Reaction, Running, TestDirs,
    assert_same, assert_whole, mixed, moving, need, noise, recorded,
};
use nix::sys::signal::Signal;
use std::time::{Duration, Instant};

const SIZE: usize = 16 * MIB;
const SLOWLY: [&str; 6] = ["--limit", "8MiB/s", "--block-size", "64KiB", "--checkpoint-every", "512KiB"];
/// Longest time of a stop: far above the drain limit of the program, and far below `--retry-for`.
const BOUND: Duration = Duration::from_secs(45);
/// Flags for tests whose copy waits for a server.
const LONG: [&str; 2] = ["--retry-for", "10m"];

/// Stops the copy and waits for its end, at most [`BOUND`].
fn stop(copying: Running) -> Outcome {
    let since = Instant::now();
    copying.signal(Signal::SIGTERM);
    let stopped = copying.end();
    assert!(since.elapsed() < BOUND, "it took {:?}: {stopped:#?}", since.elapsed());
    stopped
}

/// Checks that a quiesced copy exits as interrupted and can be resumed, and that another one fails.
fn assert_report_matches_exit(stopped: &Outcome) {
    let report = stopped.report();
    match report["quiesced"].as_bool() {
        Some(true) => {
            assert_eq!(stopped.code, Some(75), "{stopped:#?}");
            assert_eq!(report["status"], "interrupted", "{stopped:#?}");
        }
        Some(false) => assert_not_quiesced(stopped),
        None => panic!("the report has no quiesced: {stopped:#?}"),
    }
}

fn assert_not_quiesced(stopped: &Outcome) {
    let report = stopped.report();
    assert_eq!(report["quiesced"], false, "{stopped:#?}");
    assert_eq!(stopped.code, Some(1), "a copy that may still write is not reported as interrupted: {stopped:#?}");
    assert_ne!(report["status"], "interrupted", "{stopped:#?}");
    assert_ne!(report["error"]["code"], "ERunnerInterrupt", "{stopped:#?}");
}

fn assert_disconnected(peer: &Peer, what: &str) {
    let disconnects = peer.disconnects();
    assert!(!disconnects.is_empty(), "{what}: the client never connected");
    assert!(
        disconnects.values().all(|&disconnected| disconnected),
        "{what}: connections, and whether a disconnect request ended them: {disconnects:?}"
    );
    peer.assert_no_violations();
}

#[test]
fn an_interrupted_copy_drains_disconnects_and_can_be_resumed() {
    for multi_conn in [true, false] {
        let dirs = TestDirs::new();
        let bytes = noise(SIZE, 1);
        let offer = Offer { multi_conn, ..Offer::default() };
        let source = Peer::start(&dirs, "source", bytes.clone(), offer, PeerScript::default());
        let destination = Peer::start(&dirs, "destination", vec![0; SIZE], offer, PeerScript::default());
        let mut copying = dirs.start(&[&["copy", &source.uri(), &destination.uri()], &SLOWLY[..]].concat());
        copying.until(recorded);
        let stopped = stop(copying);
        stopped.assert_failed(75, "ERunnerInterrupt");
        assert_eq!(stopped.report()["status"], "interrupted", "{stopped:#?}");
        assert_eq!(stopped.report()["quiesced"], true, "{stopped:#?}");
        assert_disconnected(&source, "the source");
        assert_disconnected(&destination, "the destination");

        let resumed = dirs.blockhaul(&["copy", &source.uri(), &destination.uri(), "--resume"]);
        assert_whole(&resumed, SIZE, "resumed");
        assert_eq!(resumed.bytes("resumed"), stopped.bytes("durable"), "{resumed:#?}");
        assert!(resumed.bytes("resumed") > 0, "{resumed:#?}");
        assert_same(destination.store().durable(), &bytes, "resumed");
    }
}

#[test]
fn a_completed_copy_sends_disconnect() {
    let dirs = TestDirs::new();
    let bytes = mixed(4 * MIB, 2);
    let source = Peer::start(&dirs, "source", bytes.clone(), Offer::default(), PeerScript::default());
    let destination = Peer::start(&dirs, "destination", noise(4 * MIB, 99), Offer::default(), PeerScript::default());
    let copied = dirs.blockhaul(&["copy", &source.uri(), &destination.uri(), "--overwrite", "--verify"]);
    assert_whole(&copied, bytes.len(), "done");
    assert_disconnected(&source, "the source");
    assert_disconnected(&destination, "the destination");
    assert_same(destination.store().durable(), &bytes, "done");

    let verified = dirs.blockhaul(&["verify", &source.uri(), &destination.uri()]);
    assert_eq!(verified.code, Some(0), "{verified:#?}");
    assert_disconnected(&source, "the source of a comparison");
    assert_disconnected(&destination, "the destination of a comparison");
}

#[test]
fn a_refused_copy_sends_disconnect() {
    let dirs = TestDirs::new();
    dirs.file("a", &noise(MIB, 3));
    let peer = Peer::start(&dirs, "peer", noise(MIB, 99), Offer::default(), PeerScript::default());
    dirs.blockhaul(&["copy", "a", &peer.uri()]).assert_failed(1, "EExists");
    assert_disconnected(&peer, "an export that is not empty");
}

#[test]
fn a_stop_is_bounded_with_a_dead_destination_and_reported_as_not_quiesced() {
    need!("a_stop_is_bounded_with_a_dead_destination_and_reported_as_not_quiesced", &[Need::Program("qemu-nbd")]);
    let dirs = TestDirs::new();
    dirs.file("a", &noise(SIZE, 4));
    let export = Export::empty(&dirs, "export", Kind::QemuRaw, SIZE);
    let proxy = Proxy::to(export.server.address());
    let mut copying = dirs.start(&[&["copy", "a", &proxy.uri("")], &SLOWLY[..], &LONG].concat());
    copying.until(recorded);
    proxy.stall();
    // Wait until the copy is blocked.
    std::thread::sleep(Duration::from_millis(500));
    let stopped = stop(copying);
    assert_not_quiesced(&stopped);
    assert!(stopped.bytes("durable") > 0, "recorded ranges stay durable: {stopped:#?}");

    // The writes in flight take effect now: the same bytes, or bytes that are copied again.
    proxy.resume();
    let resumed = dirs.blockhaul(&["copy", "a", &proxy.uri(""), "--resume"]);
    assert_whole(&resumed, SIZE, "resumed");
    assert_same(&export.content(), &dirs.read("a"), "resumed");
}

#[test]
fn a_stop_with_abandoned_writes_is_reported_as_not_quiesced() {
    let test = "a_stop_with_abandoned_writes_is_reported_as_not_quiesced";
    need!(test, &[Need::Program("qemu-nbd"), Need::Program("nbdcopy"), Need::Program("setpriv")]);
    let dirs = TestDirs::new();
    dirs.file("a", &noise(SIZE, 10));
    let export = Export::empty(&dirs, "export", Kind::QemuRaw, SIZE);
    let proxy = Proxy::to(export.server.address());
    let uri = proxy.uri("");
    let args = [&["copy", "a", &uri, "--request-timeout", "1s"], &SLOWLY[..]].concat();
    let mut copying = dirs.start(&args);
    let before = copying.until(moving)["written"].as_u64();
    let connections = proxy.connections();
    proxy.stall_open();
    copying.until(|progress| proxy.connections() > connections && progress["written"].as_u64() > before);
    // The copy continues over new connections; the writes of the old ones are still held back.
    let stopped = stop(copying);
    assert_not_quiesced(&stopped);
    proxy.resume();
    let resumed = dirs.blockhaul(&["copy", "a", &uri, "--resume"]);
    assert_whole(&resumed, SIZE, "resumed");
    assert_same(&export.content(), &dirs.read("a"), "resumed");
}

#[test]
fn a_stop_is_bounded_with_a_dead_source() {
    need!("a_stop_is_bounded_with_a_dead_source", &[Need::Program("nbdkit")]);
    let dirs = TestDirs::new();
    let export = Export::with(&dirs, "export", Kind::NbdkitFile, &noise(SIZE, 5));
    let proxy = Proxy::to(export.server.address());
    let mut copying = dirs.start(&[&["copy", &proxy.uri(""), "b"], &SLOWLY[..], &LONG].concat());
    copying.until(moving);
    proxy.stall();
    std::thread::sleep(Duration::from_millis(500));
    assert_report_matches_exit(&stop(copying));
}

#[test]
fn a_stop_is_bounded_while_a_server_is_unreachable() {
    for is_source in [true, false] {
        let dirs = TestDirs::new();
        dirs.file("a", &noise(SIZE, 6));
        let mut peer = Peer::start(&dirs, "peer", noise(SIZE, 99), Offer::default(), PeerScript::default());
        let uri = peer.uri();
        let (source, destination) = if is_source { (uri.as_str(), "b") } else { ("a", uri.as_str()) };
        let args = [&["copy", source, destination, "--overwrite"], &SLOWLY[..], &LONG].concat();
        let mut copying = dirs.start(&args);
        copying.until(moving);
        peer.kill();
        std::thread::sleep(Duration::from_millis(700));
        let stopped = stop(copying);
        assert_report_matches_exit(&stopped);
        if is_source {
            assert_eq!(stopped.report()["quiesced"], true, "its destination is a file: {stopped:#?}");
        }
    }
}

#[test]
fn a_stop_is_bounded_when_a_server_does_not_close() {
    // The server replies to everything, but does not close after the disconnect request.
    let dirs = TestDirs::new();
    dirs.file("a", &noise(SIZE, 7));
    let script = PeerScript::on_request(|request| match request.command {
        Command::Disconnect => Reaction::NoReply,
        _ => Reaction::Correct,
    });
    let peer = Peer::start(&dirs, "peer", vec![0; SIZE], Offer::default(), script);
    let mut copying = dirs.start(&[&["copy", "a", &peer.uri()], &SLOWLY[..]].concat());
    copying.until(recorded);
    assert_report_matches_exit(&stop(copying));
    peer.disconnects();
}

#[test]
fn a_stop_is_bounded_when_a_server_stops_replying() {
    // The server and the path work, but requests after the first few get no reply.
    let dirs = TestDirs::new();
    dirs.file("a", &noise(SIZE, 8));
    let script = PeerScript::on_request(|request| match request.command {
        Command::Write if request.offset > 4 * MIB as u64 => Reaction::NoReply,
        _ => Reaction::Correct,
    });
    let peer = Peer::start(&dirs, "peer", vec![0; SIZE], Offer::default(), script);
    let mut copying = dirs.start(&[&["copy", "a", &peer.uri()], &SLOWLY[..], &LONG].concat());
    copying.until(recorded);
    peer.wait_until("a write without a reply", |seen| {
        let silent = |seen: &crate::support::Seen| match seen {
            crate::support::Seen::Requested(request) => {
                request.command == Command::Write && request.offset > 4 * MIB as u64
            }
            _ => false,
        };
        seen.iter().any(silent)
    });
    assert_report_matches_exit(&stop(copying));
    peer.disconnects();
}

#[test]
fn a_negotiation_that_stalls_can_be_stopped() {
    let dirs = TestDirs::new();
    dirs.file("a", &noise(MIB, 9));
    let script = PeerScript { greeting: Some(Vec::new()), ..PeerScript::default() };
    let peer = Peer::start(&dirs, "peer", vec![0; MIB], Offer::default(), script);
    let copying = dirs.start(&[&["copy", "a", &peer.uri()], &LONG[..]].concat());
    peer.wait_until("a connection", |seen| !seen.is_empty());
    let stopped = stop(copying);
    stopped.assert_failed(75, "ERunnerInterrupt");
    assert_eq!(stopped.report()["quiesced"], true, "no request was sent: {stopped:#?}");
    peer.disconnects();
}
