//! Tests peers that break the protocol, one way at a time.
//!
//! Each violation ends the copy with a named error and closed connections, and nothing of its data counts as durable.
//! Unusual but allowed behaviour is tested as well.

mod negotiation;
mod replies;
mod status;

use crate::support::{
    Command, MIB, Offer, Outcome, Peer, PeerScript, Reaction, Request, Seen, TestDirs, assert_same, assert_whole, noise,
};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

const SIZE: usize = MIB;
const BLOCK: &str = "64KiB";
/// Short timeouts, so that what looks like an outage ends soon.
const SHORT_TIMEOUTS: [&str; 4] = ["--retry-for", "1s", "--request-timeout", "2s"];

const STRUCTURED: Offer = Offer { structured: true, multi_conn: true, blocks: None, further_flags: 0 };
const SIMPLE: Offer = Offer { structured: false, ..STRUCTURED };

/// Builds a wrong reply.
type WrongReply = fn(&Request) -> Vec<u8>;

/// Copies from a peer that follows `script`.
fn copy_from(offer: Offer, script: PeerScript) -> (TestDirs, Peer, Outcome) {
    let dirs = TestDirs::new();
    let peer = Peer::start(&dirs, "peer", noise(SIZE, 1), offer, script);
    let args = ["copy", &peer.uri(), "b", "--block-size", BLOCK];
    let outcome = dirs.blockhaul(&[&args[..], &SHORT_TIMEOUTS].concat());
    (dirs, peer, outcome)
}

/// Copies to a peer that follows `script`.
fn copy_to(offer: Offer, script: PeerScript) -> (TestDirs, Peer, Outcome) {
    let dirs = TestDirs::new();
    dirs.file("a", &noise(SIZE, 2));
    let peer = Peer::start(&dirs, "peer", vec![0; SIZE], offer, script);
    let args = ["copy", "a", &peer.uri(), "--block-size", BLOCK];
    let outcome = dirs.blockhaul(&[&args[..], &SHORT_TIMEOUTS].concat());
    (dirs, peer, outcome)
}

/// Checks that the copy failed with one of `codes` on `side`, closed its connections and reported nothing as durable.
fn assert_ended(what: &str, side: &str, codes: &[&str], run: (TestDirs, Peer, Outcome)) {
    assert_eq!(run.2.bytes("durable"), 0, "{what}: {:#?}", run.2);
    assert_ended_early(what, side, codes, run);
}

/// As [`assert_ended`], but a part of the copy may be durable.
fn assert_ended_early(what: &str, side: &str, codes: &[&str], (_site, peer, outcome): (TestDirs, Peer, Outcome)) {
    assert_eq!(outcome.code, Some(1), "{what}: {outcome:#?}");
    let code = outcome.error_code().as_str().unwrap_or_default();
    assert!(codes.contains(&code), "{what}: not one of {codes:?}: {outcome:#?}");
    assert_eq!(outcome.report()["status"], "failed", "{what}: {outcome:#?}");
    assert_eq!(outcome.report()["error"]["side"], side, "{what}: {outcome:#?}");
    assert!(outcome.bytes("durable") < SIZE as u64, "{what}: {outcome:#?}");
    assert!(!peer.disconnects().is_empty(), "{what}: the client never connected");
    peer.assert_no_violations();
}

/// Answers reads with `wrong`, and everything else correctly.
fn reads(wrong: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> PeerScript {
    PeerScript::on_request(move |request| match request.command {
        Command::Read => Reaction::Replace(wrong(request)),
        _ => Reaction::Correct,
    })
}

/// Answers requests for block status with `wrong`, and everything else correctly.
fn statuses(wrong: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> PeerScript {
    PeerScript::on_request(move |request| match request.command {
        Command::Status => Reaction::Replace(wrong(request)),
        _ => Reaction::Correct,
    })
}

/// Reacts to the first request of a kind with `reaction`, and correctly to all others.
fn on_first_request(command: Command, reaction: impl Fn(&Request) -> Reaction + Send + Sync + 'static) -> PeerScript {
    let is_done = AtomicBool::new(false);
    PeerScript::on_request(move |request| {
        if request.command == command && !is_done.swap(true, SeqCst) { reaction(request) } else { Reaction::Correct }
    })
}

fn whole(request: &Request) -> Vec<u8> {
    vec![0x77; request.length as usize]
}

#[test]
fn a_correct_peer_is_copied_from_and_to() {
    for offer in [STRUCTURED, SIMPLE, Offer { multi_conn: false, ..STRUCTURED }] {
        let (dirs, peer, outcome) = copy_from(offer, PeerScript::default());
        assert_whole(&outcome, SIZE, "from a correct peer");
        assert_same(&dirs.read("b"), peer.store().durable(), "from a correct peer");
        peer.assert_no_violations();
        let (dirs, peer, outcome) = copy_to(offer, PeerScript::default());
        assert_whole(&outcome, SIZE, "to a correct peer");
        assert_same(peer.store().durable(), &dirs.read("a"), "to a correct peer");
        peer.assert_no_violations();
    }
}

#[test]
fn requests_respect_the_block_sizes_of_the_peer() {
    for blocks in [(4096, 4096, 65536), (1, 512, 4096), (65536, 65536, 1 << 20)] {
        let (least, _, most) = blocks;
        let offer = Offer { blocks: Some(blocks), ..STRUCTURED };
        let respects = move |request: &Request| {
            let payload = matches!(request.command, Command::Read | Command::Write);
            let aligned = request.offset.is_multiple_of(u64::from(least)) && request.length.is_multiple_of(least);
            aligned && (!payload || request.length <= most)
        };
        for (dirs, peer, outcome) in [copy_from(offer, PeerScript::default()), copy_to(offer, PeerScript::default())] {
            assert_whole(&outcome, SIZE, &format!("{blocks:?}"));
            for seen in peer.seen() {
                if let Seen::Requested(request) = seen {
                    assert!(respects(&request), "{blocks:?}: {request:?}");
                }
            }
            drop(dirs);
        }
    }
}
