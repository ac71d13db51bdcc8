//! Tests connections that are lost, or get no reply, while a request of one kind is in flight.

use crate::support::{
    Command, MIB, Offer, Peer, PeerScript, Reaction, Request, TestDirs, assert_all_there, assert_same, mixed, noise,
};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const SIZE: usize = 4 * MIB;
/// Small blocks and frequent flushes, so that other requests are always in flight.
const ARGS: [&str; 8] =
    ["--block-size", "64KiB", "--checkpoint-every", "1MiB", "--request-timeout", "1s", "--retry-for", "20s"];

/// Reacts to the first, third and sixth request of a kind with `reaction`, and correctly to all others.
fn on_some_requests(command: Command, reaction: fn(&Request) -> Reaction) -> PeerScript {
    let met = AtomicU64::new(0);
    PeerScript::on_request(move |request| {
        let is_met = request.command == command && [0, 2, 5].contains(&met.fetch_add(1, SeqCst));
        if is_met { reaction(request) } else { Reaction::Correct }
    })
}

/// Checks that a copy survives losses on one side. `multi_conn`: whether it uses several connections.
fn survives(what: &str, command: Command, as_source: bool, multi_conn: bool, reaction: fn(&Request) -> Reaction) {
    let dirs = TestDirs::new();
    let bytes = mixed(SIZE, 1);
    let offer = Offer { multi_conn, ..Offer::default() };
    let held = if as_source { bytes.clone() } else { noise(SIZE, 99) };
    let peer = Peer::start(&dirs, "peer", held, offer, on_some_requests(command, reaction));
    dirs.file("a", &bytes);
    let uri = peer.uri();
    let (source, destination) = if as_source { (uri.as_str(), "b") } else { ("a", uri.as_str()) };
    let copied = dirs.blockhaul(&[&["copy", source, destination, "--overwrite"], &ARGS[..]].concat());
    let what = format!("{what} {command:?}, multi_conn {multi_conn}");
    assert_all_there(&copied, SIZE, &what);
    if as_source {
        assert_same(&dirs.read("b"), &bytes, &what);
    } else {
        assert_same(peer.store().durable(), &bytes, &what);
    }
    peer.assert_no_violations();
}

#[test]
fn a_copy_survives_a_source_that_closes_instead_of_replying() {
    for multi_conn in [true, false] {
        for command in [Command::Read, Command::Status] {
            survives("closed at", command, true, multi_conn, |_| Reaction::Close);
        }
    }
}

#[test]
fn a_copy_survives_a_destination_that_closes_instead_of_replying() {
    for multi_conn in [true, false] {
        for command in [Command::Write, Command::Zero] {
            survives("closed at", command, false, multi_conn, |_| Reaction::Close);
        }
    }
}

#[test]
fn a_copy_survives_a_destination_that_closes_instead_of_flushing() {
    for multi_conn in [true, false] {
        survives("closed at", Command::Flush, false, multi_conn, |_| Reaction::Close);
    }
}

#[test]
fn a_copy_survives_a_source_that_does_not_reply() {
    for command in [Command::Read, Command::Status] {
        survives("no answer to", command, true, true, |_| Reaction::NoReply);
    }
}

#[test]
fn a_copy_survives_a_destination_that_does_not_reply() {
    for command in [Command::Write, Command::Zero] {
        survives("no answer to", command, false, true, |_| Reaction::NoReply);
    }
}

#[test]
fn a_copy_survives_a_destination_that_does_not_reply_to_a_flush() {
    survives("no answer to", Command::Flush, false, true, |_| Reaction::NoReply);
    survives("no answer to", Command::Flush, false, false, |_| Reaction::NoReply);
}

/// Every read loses its connection, while block status is answered: this counts as no progress.
#[test]
fn replies_to_everything_but_reads_do_not_extend_an_outage() {
    let dirs = TestDirs::new();
    let script = PeerScript::on_request(|request| match request.command {
        Command::Read => Reaction::Close,
        _ => Reaction::Correct,
    });
    let peer = Peer::start(&dirs, "peer", noise(SIZE, 2), Offer::default(), script);
    let failed = dirs.blockhaul(&["copy", &peer.uri(), "b", "--retry-for", "2s"]);
    failed.assert_failed(1, "EUnreachable");
    assert_eq!(failed.report()["error"]["side"], "source", "{failed:#?}");
}
