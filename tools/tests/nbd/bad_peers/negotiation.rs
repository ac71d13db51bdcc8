//! Tests the negotiation: wrong and missing greetings, option replies and export facts.

use super::{SIZE, STRUCTURED, assert_ended, copy_from, copy_to};
use crate::support::wire::{self, answer, can, option};
use crate::support::{PeerScript, Reaction, option_reply, option_reply_with};

#[test]
fn a_greeting_with_the_wrong_magic_ends_the_copy() {
    let right = [wire::GREETING.to_be_bytes().to_vec(), wire::OPTION.to_be_bytes().to_vec(), vec![0, 3]].concat();
    for at in [0, 7, 8, 15] {
        let mut greeting = right.clone();
        greeting[at] ^= 0x20;
        let script = PeerScript { greeting: Some(greeting), ..PeerScript::default() };
        assert_ended(&format!("byte {at}"), "source", &["EProtocol"], copy_from(STRUCTURED, script));
    }
    let other =
        PeerScript { greeting: Some(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n".to_vec()), ..PeerScript::default() };
    assert_ended("another protocol", "destination", &["EProtocol"], copy_to(STRUCTURED, other));
}

#[test]
fn a_short_or_missing_greeting_ends_the_copy() {
    for greeting in [Vec::new(), wire::GREETING.to_be_bytes().to_vec()] {
        let what = format!("a greeting of {} bytes", greeting.len());
        let script = PeerScript { greeting: Some(greeting), ..PeerScript::default() };
        assert_ended(&what, "source", &["EUnreachable", "ETimeout"], copy_from(STRUCTURED, script));
    }
}

#[test]
fn a_stalled_negotiation_ends_the_copy() {
    for silent in [option::GO, option::STRUCTURED_REPLY] {
        let script = PeerScript::on_option(
            move |chosen, _| if chosen == silent { Reaction::NoReply } else { Reaction::Correct },
        );
        let what = format!("silence after option {silent}");
        assert_ended(&what, "destination", &["EUnreachable", "ETimeout"], copy_to(STRUCTURED, script));
    }
}

#[test]
fn a_wrong_option_reply_ends_the_copy() {
    let reply = |magic: u64, chosen: u32, kind: u32| option_reply_with(magic, chosen, kind, &[]);
    let cases: [(&str, u32, Vec<u8>); 6] = [
        ("magic", option::GO, reply(wire::OPTION_REPLY ^ 1, option::GO, answer::ACK)),
        ("reply to another option", option::GO, reply(wire::OPTION_REPLY, option::ABORT, answer::ACK)),
        ("without facts", option::GO, reply(wire::OPTION_REPLY, option::GO, answer::ACK)),
        ("reply of an unknown kind", option::GO, reply(wire::OPTION_REPLY, option::GO, 99)),
        ("reply with extra payload", option::STRUCTURED_REPLY, {
            option_reply(option::STRUCTURED_REPLY, answer::ACK, &[0; 100])
        }),
        ("reply of a wrong kind", option::STRUCTURED_REPLY, {
            reply(wire::OPTION_REPLY, option::STRUCTURED_REPLY, answer::META_CONTEXT)
        }),
    ];
    for (what, at, bytes) in cases {
        let script =
            PeerScript::on_option(
                move |chosen, _| if chosen == at { Reaction::Replace(bytes.clone()) } else { Reaction::Correct },
            );
        assert_ended(what, "source", &["EProtocol"], copy_from(STRUCTURED, script));
    }
}

#[test]
fn an_endless_or_oversized_option_reply_ends_the_copy() {
    let huge = [&option_reply(option::GO, answer::INFO, &[])[..16], &u32::MAX.to_be_bytes()].concat();
    let facts = [&[0; 2][..], &(SIZE as u64).to_be_bytes(), &can::USUAL.to_be_bytes()].concat();
    let endless = option_reply(option::GO, answer::INFO, &facts).repeat(200_000);
    for (what, bytes) in [("4 GiB", huge), ("an endless reply", endless)] {
        let script = PeerScript::on_option(move |chosen, _| {
            if chosen == option::GO { Reaction::Replace(bytes.clone()) } else { Reaction::Correct }
        });
        assert_ended(what, "source", &["EProtocol"], copy_from(STRUCTURED, script));
    }
}

#[test]
fn impossible_export_facts_end_the_copy() {
    let size = |bytes: u64| [&[0; 2][..], &bytes.to_be_bytes(), &can::USUAL.to_be_bytes()].concat();
    let blocks = |sizes: [u32; 3]| [vec![0, 3], sizes.map(u32::to_be_bytes).concat()].concat();
    let cases = [
        ("a size beyond the largest offset", vec![size(1 << 63)]),
        ("truncated facts", vec![size(SIZE as u64)[..8].to_vec()]),
        ("a block size that is no power of two", vec![size(SIZE as u64), blocks([3, 4096, 1 << 20])]),
        ("a block size of 0", vec![size(SIZE as u64), blocks([0, 4096, 1 << 20])]),
        ("a maximum below the minimum", vec![size(SIZE as u64), blocks([4096, 4096, 512])]),
    ];
    for (what, infos) in cases {
        let script = PeerScript::on_option(move |chosen, _| {
            if chosen != option::GO {
                return Reaction::Correct;
            }
            let infos = infos.iter().map(|info| option_reply(chosen, answer::INFO, info));
            Reaction::Replace(infos.chain([option_reply(chosen, answer::ACK, &[])]).collect::<Vec<_>>().concat())
        });
        assert_ended(what, "source", &["EProtocol"], copy_from(STRUCTURED, script));
    }
}
