//! Tests the test harness itself with other clients: servers start, end and restart, the proxy forwards and stalls, and
//! the scripted peer works.

use crate::support::{
    Address, Export, Kind, MIB, Need, Offer, Peer, PeerScript, Proxy, Seen, TestDirs, assert_same, content, fill,
    mixed, need, run, text,
};
use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

const NEEDS: [Need; 7] = [
    Need::Root,
    Need::Program("nbdkit"),
    Need::Program("nbdcopy"),
    Need::Program("qemu-nbd"),
    Need::Program("nbd-server"),
    Need::Program("unshare"),
    Need::Program("setpriv"),
];

#[test]
fn every_server_keeps_its_content_over_a_restart() {
    need!("every_server_keeps_its_content_over_a_restart", &NEEDS);
    for kind in Kind::ALL {
        let dirs = TestDirs::new();
        let bytes = mixed(MIB.next_multiple_of(kind.granule()), 1);
        let mut export = Export::with(&dirs, "export", kind, &bytes);
        assert_same(&export.content(), &bytes, &format!("{kind:?}"));
        let changed = mixed(bytes.len(), 2);
        fill(text(&dirs.file("changed", &changed)), &export.uri());
        assert_same(&export.content(), &changed, &format!("{kind:?} after a write"));
        match kind {
            // It runs in the background, out of reach of our signals.
            Kind::NbdServer => export.server.kill(),
            _ => export.server.end(),
        }
        export.server.restart();
        if kind != Kind::NbdkitMemory {
            assert_same(&export.content(), &changed, &format!("{kind:?} after a restart"));
        }
        let Address::Unix(socket) = export.server.address().clone() else {
            unreachable!("all of them listen on unix sockets")
        };
        drop(export);
        assert!(
            std::os::unix::net::UnixStream::connect(socket).is_err(),
            "{kind:?}: the socket still accepts connections"
        );
    }
}

#[test]
fn other_clients_can_use_the_scripted_peer() {
    need!("other_clients_can_use_the_scripted_peer", &NEEDS);
    for structured in [true, false] {
        for multi_conn in [true, false] {
            let dirs = TestDirs::new();
            let bytes = mixed(3 * MIB, 3);
            let offer = Offer { structured, multi_conn, blocks: Some((512, 4096, 1 << 20)), ..Offer::default() };
            let peer = Peer::start(&dirs, "peer", bytes.clone(), offer, PeerScript::default());
            assert_same(&content(&peer.uri()), &bytes, "the content that another client reads");
            let changed = dirs.file("changed", &mixed(3 * MIB, 4));
            run("nbdcopy", &["--flush", text(&changed), &peer.uri()]);
            assert_same(
                peer.store().durable(),
                &dirs.read("changed"),
                "the content that another client wrote and flushed",
            );
            run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&changed), &peer.uri()]);
            peer.assert_no_violations();
            assert!(
                peer.disconnects().values().all(|&disconnected| disconnected),
                "other clients send a disconnect request: {:?}",
                peer.disconnects()
            );
        }
    }
}

#[test]
fn a_killed_peer_loses_unflushed_writes() {
    need!("a_killed_peer_loses_unflushed_writes", &NEEDS);
    let dirs = TestDirs::new();
    let mut peer = Peer::start(&dirs, "peer", vec![0; 8 * MIB], Offer::default(), PeerScript::default());
    let changed = dirs.file("changed", &mixed(8 * MIB, 5));
    run("nbdcopy", &[text(&changed), &peer.uri()]);
    peer.kill();
    peer.restart();
    assert!(peer.store().lost() > 0);
    assert!(content(&peer.uri()) != dirs.read("changed"), "the crash has lost nothing");
    assert_same(&content(&peer.uri()), peer.store().durable(), "the content after the crash");
}

#[test]
fn the_proxy_forwards_stalls_resumes_and_cuts() {
    need!("the_proxy_forwards_stalls_resumes_and_cuts", &NEEDS);
    let dirs = TestDirs::new();
    let bytes = mixed(3 * MIB, 6);
    let peer = Peer::start(&dirs, "peer", bytes.clone(), Offer::default(), PeerScript::default());
    let proxy = Proxy::to(&peer.address());
    assert_same(&content(&proxy.uri("")), &bytes, "through the proxy");

    proxy.stall();
    let Address::Tcp(port) = proxy.address() else { unreachable!("it listens on a port") };
    let mut stalled = TcpStream::connect(("127.0.0.1", port)).expect("it accepts");
    stalled.set_read_timeout(Some(Duration::from_millis(100))).expect("it is a socket");
    assert!(stalled.read(&mut [0; 8]).is_err(), "the greeting passes a stalled proxy");
    proxy.resume();
    stalled.set_read_timeout(Some(Duration::from_secs(30))).expect("it is a socket");
    stalled.read_exact(&mut [0; 18]).expect("the greeting arrives once the proxy resumes");
    proxy.cut();
    assert!(matches!(stalled.read(&mut [0; 1]), Ok(0) | Err(_)), "the connection is closed");
    let closed = |seen: &[Seen]| seen.iter().filter(|seen| matches!(seen, Seen::Closed(_))).count();
    let opened = |seen: &[Seen]| seen.iter().filter(|seen| matches!(seen, Seen::Connected(_))).count();
    peer.wait_until("all connections to be closed", |seen| closed(seen) == opened(seen));
}
