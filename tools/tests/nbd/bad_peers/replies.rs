//! Tests replies to reads, writes and flushes: wrong, missing and oversized ones, and errors of the server.

use super::{
    SIMPLE, SIZE, STRUCTURED, WrongReply, assert_ended, assert_ended_early, copy_from, copy_to, on_first_request,
    reads, whole,
};
use crate::support::wire::{self, chunk};
use crate::support::{Command, PeerScript, Reaction, Request, assert_same, assert_whole, mixed, reply};

#[test]
fn a_reply_with_the_wrong_magic_ends_the_copy() {
    let structured = reads(|request| {
        let mut reply = reply::data(request.cookie, chunk::DONE, request.offset, &whole(request));
        reply[3] ^= 1;
        reply
    });
    assert_ended("structured", "source", &["EProtocol"], copy_from(STRUCTURED, structured));
    let simple = |request: &Request| reply::simple_with(0x1234_5678, request.cookie, 0, &whole(request));
    assert_ended("simple", "source", &["EProtocol"], copy_from(SIMPLE, reads(simple)));
    let structured_to_simple =
        |request: &Request| reply::data(request.cookie, chunk::DONE, request.offset, &whole(request));
    assert_ended("never agreed on", "source", &["EProtocol"], copy_from(SIMPLE, reads(structured_to_simple)));
    let write =
        on_first_request(Command::Write, |request| Reaction::Replace(reply::simple_with(0, request.cookie, 0, &[])));
    assert_ended_early("of a write", "destination", &["EProtocol"], copy_to(STRUCTURED, write));
}

#[test]
fn a_simple_reply_to_a_structured_read_ends_the_copy() {
    let script = reads(|request| reply::simple(request.cookie, 0, &whole(request)));
    assert_ended("a simple reply", "source", &["EProtocol"], copy_from(STRUCTURED, script));
}

#[test]
fn a_simple_reply_to_a_write_is_allowed() {
    let script = PeerScript::on_request(|request| match request.command {
        Command::Flush => Reaction::Replace(reply::simple(request.cookie, 0, &[])),
        _ => Reaction::Correct,
    });
    let (_site, _peer, outcome) = copy_to(STRUCTURED, script);
    assert_whole(&outcome, SIZE, "a simple reply to a flush");
}

#[test]
fn a_reply_with_an_unknown_cookie_ends_the_copy() {
    for offer in [STRUCTURED, SIMPLE] {
        let unknown = move |request: &Request| match offer.structured {
            true => reply::data(!request.cookie, chunk::DONE, request.offset, &whole(request)),
            false => reply::simple(!request.cookie, 0, &whole(request)),
        };
        assert_ended("of a read", "source", &["EProtocol"], copy_from(offer, reads(unknown)));
        let write = move |request: &Request| match offer.structured {
            true => Reaction::Replace(reply::done(!request.cookie)),
            false => Reaction::Replace(reply::simple(!request.cookie, 0, &[])),
        };
        assert_ended_early(
            "of a write",
            "destination",
            &["EProtocol"],
            copy_to(offer, on_first_request(Command::Write, write)),
        );
    }
}

#[test]
fn a_duplicate_reply_ends_the_copy() {
    for offer in [STRUCTURED, SIMPLE] {
        for command in [Command::Read, Command::Write] {
            let script = on_first_request(command, |_| Reaction::CorrectTwice);
            let what = format!("{command:?} {offer:?}");
            if command == Command::Read {
                assert_ended_early(&what, "source", &["EProtocol"], copy_from(offer, script));
            } else {
                assert_ended_early(&what, "destination", &["EProtocol"], copy_to(offer, script));
            }
        }
    }
}

#[test]
fn chunks_outside_of_the_request_end_the_copy() {
    let cases: [(&str, WrongReply); 6] = [
        ("one byte too early", |r| reply::data(r.cookie, chunk::DONE, r.offset.wrapping_sub(1), &whole(r))),
        ("one byte too late", |r| reply::data(r.cookie, chunk::DONE, r.offset + 1, &whole(r))),
        ("far away", |r| reply::data(r.cookie, chunk::DONE, u64::MAX - 5, &whole(r))),
        ("one byte too long", |r| reply::data(r.cookie, chunk::DONE, r.offset, &[whole(r), vec![1]].concat())),
        ("a hole that is too long", |r| reply::hole(r.cookie, chunk::DONE, r.offset, u32::MAX)),
        ("a hole behind the request", |r| reply::hole(r.cookie, chunk::DONE, r.offset + u64::from(r.length), 512)),
    ];
    for (what, wrong) in cases {
        assert_ended(what, "source", &["EProtocol"], copy_from(STRUCTURED, reads(wrong)));
    }
}

#[test]
fn chunks_that_overlap_or_leave_a_gap_end_the_copy() {
    let half = |r: &Request| vec![1; r.length as usize / 2];
    let middle = |r: &Request| r.offset + u64::from(r.length / 2);
    let overlap = move |r: &Request| {
        [
            reply::data(r.cookie, 0, r.offset, &half(r)),
            reply::data(r.cookie, 0, r.offset + 512, &half(r)),
            reply::data(r.cookie, chunk::DONE, middle(r), &half(r)),
        ]
        .concat()
    };
    let twice = move |r: &Request| {
        [reply::data(r.cookie, 0, r.offset, &whole(r)), reply::hole(r.cookie, chunk::DONE, r.offset, r.length)].concat()
    };
    let gap = move |r: &Request| reply::data(r.cookie, chunk::DONE, middle(r), &half(r));
    let nothing = |r: &Request| reply::done(r.cookie);
    assert_ended("overlapping data", "source", &["EProtocol"], copy_from(STRUCTURED, reads(overlap)));
    assert_ended("a hole over data", "source", &["EProtocol"], copy_from(STRUCTURED, reads(twice)));
    assert_ended("half of the data", "source", &["EProtocol"], copy_from(STRUCTURED, reads(gap)));
    assert_ended("no data", "source", &["EProtocol"], copy_from(STRUCTURED, reads(nothing)));
}

#[test]
fn chunks_in_any_order_and_of_any_length_are_allowed() {
    let backwards = |r: &Request| {
        let length = r.length as usize;
        let bytes = mixed(SIZE, 3);
        let bytes = &bytes[usize::try_from(r.offset).expect("it is small")..][..length];
        let cut = length / 3;
        [
            reply::data(r.cookie, 0, r.offset + cut as u64, &bytes[cut..]),
            reply::data(r.cookie, 0, r.offset, &bytes[..1]),
            reply::data(r.cookie, 0, r.offset + 1, &bytes[1..cut]),
            reply::done(r.cookie),
        ]
        .concat()
    };
    let (dirs, _peer, outcome) = copy_from(STRUCTURED, reads(backwards));
    assert_whole(&outcome, SIZE, "backwards");
    assert_same(&dirs.read("b"), &mixed(SIZE, 3), "backwards");
}

#[test]
fn chunks_of_an_invalid_length_or_kind_end_the_copy() {
    let cases: [(&str, WrongReply); 6] = [
        ("4 GiB", |r| reply::chunk_claiming(r.cookie, chunk::DONE, chunk::DATA, u32::MAX, &r.offset.to_be_bytes())),
        ("no offset", |r| reply::chunk(r.cookie, chunk::DONE, chunk::DATA, &[0; 4])),
        ("no data", |r| reply::data(r.cookie, 0, r.offset, &[])),
        ("a hole of length 0", |r| reply::hole(r.cookie, 0, r.offset, 0)),
        ("a hole with a truncated length", |r| reply::chunk(r.cookie, 0, chunk::HOLE, &[0; 10])),
        ("a chunk of an unknown kind", |r| reply::chunk(r.cookie, chunk::DONE, 77, &[0; 16])),
    ];
    for (what, wrong) in cases {
        assert_ended(what, "source", &["EProtocol"], copy_from(STRUCTURED, reads(wrong)));
    }
    let status = reads(|r| reply::status(r.cookie, reply::ALLOCATION, &[(r.length, 0)]));
    assert_ended("status of a read", "source", &["EProtocol"], copy_from(STRUCTURED, status));
    let data = on_first_request(Command::Write, |r| {
        Reaction::Replace(reply::data(r.cookie, chunk::DONE, r.offset, &[1; 512]))
    });
    assert_ended_early("data of a write", "destination", &["EProtocol"], copy_to(STRUCTURED, data));
}

#[test]
fn an_error_chunk_is_reported_as_an_error_of_the_server() {
    let cases: [(&str, WrongReply, &str); 5] = [
        ("an error", |r| reply::error(r.cookie, wire::EIO, "the disk is gone"), "EIo"),
        ("an error of no space", |r| reply::error(r.cookie, wire::ENOSPC, ""), "ENoSpace"),
        (
            "an error at an offset, data elsewhere",
            |r| {
                let at = reply::error_at(r.cookie, 0, wire::EIO, r.offset + u64::from(r.length / 2));
                let data = reply::data(r.cookie, 0, r.offset, &vec![1; r.length as usize / 2]);
                [data, at, reply::done(r.cookie)].concat()
            },
            "EIo",
        ),
        (
            "data, then an error",
            |r| [reply::data(r.cookie, 0, r.offset, &whole(r)), reply::error(r.cookie, wire::EIO, "")].concat(),
            "EIo",
        ),
        (
            "an unknown error",
            |r| {
                let payload = [&wire::EIO.to_be_bytes()[..], &[0; 2]].concat();
                reply::chunk(r.cookie, chunk::DONE, (1 << 15) + 99, &payload)
            },
            "EIo",
        ),
    ];
    for (what, wrong, code) in cases {
        let (dirs, peer, outcome) = copy_from(STRUCTURED, reads(wrong));
        let error = outcome.report()["error"].clone();
        assert!(error["offset"].is_u64() && error["errno"].is_u64(), "{what}: {outcome:#?}");
        assert_ended(what, "source", &[code], (dirs, peer, outcome));
    }
    let write = on_first_request(Command::Write, |r| Reaction::Replace(reply::error(r.cookie, wire::ENOSPC, "full")));
    assert_ended_early("an error of a write", "destination", &["ENoSpace"], copy_to(STRUCTURED, write));
    let simple = on_first_request(Command::Write, |r| Reaction::Replace(reply::simple(r.cookie, wire::ENOSPC, &[])));
    assert_ended_early("a simple error of a write", "destination", &["ENoSpace"], copy_to(SIMPLE, simple));
    let flush = on_first_request(Command::Flush, |r| Reaction::Replace(reply::error(r.cookie, wire::EIO, "")));
    assert_ended_early("an error of a flush", "destination", &["EIo"], copy_to(STRUCTURED, flush));
}

#[test]
fn an_invalid_error_chunk_ends_the_copy() {
    let cases: [(&str, WrongReply); 4] = [
        ("an error chunk with error 0", |r| reply::error(r.cookie, 0, "fine")),
        ("a truncated error", |r| reply::chunk(r.cookie, chunk::DONE, chunk::ERROR, &[0, 0, 0])),
        ("a message beyond its end", |r| {
            reply::chunk(r.cookie, chunk::DONE, chunk::ERROR, &[0, 0, 0, 5, 0xff, 0xff, b'x'])
        }),
        ("an error at an offset outside of the request", |r| {
            [reply::error_at(r.cookie, 0, wire::EIO, u64::MAX), reply::done(r.cookie)].concat()
        }),
    ];
    for (what, wrong) in cases {
        // Reporting the error of the server is as good as reporting the violation.
        assert_ended(what, "source", &["EProtocol", "EIo"], copy_from(STRUCTURED, reads(wrong)));
    }
}

#[test]
fn a_truncated_reply_ends_the_copy() {
    for length in [1, 15, 19, 27, 28, 29, 1000] {
        let script = PeerScript {
            on_request: Some(Box::new(move |request| {
                let whole = reply::data(request.cookie, chunk::DONE, request.offset, &whole(request));
                match request.command {
                    Command::Read => Reaction::ReplaceAndClose(whole[..length].to_vec()),
                    _ => Reaction::Correct,
                }
            })),
            ..PeerScript::default()
        };
        let what = format!("after {length} bytes");
        assert_ended(&what, "source", &["EUnreachable", "EProtocol"], copy_from(STRUCTURED, script));
    }
}

#[test]
fn a_reply_that_stalls_in_the_middle_ends_the_copy() {
    let script = reads(|r| reply::data(r.cookie, chunk::DONE, r.offset, &whole(r))[..1000].to_vec());
    assert_ended("half a reply", "source", &["EUnreachable", "ETimeout"], copy_from(STRUCTURED, script));
}
