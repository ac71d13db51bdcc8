//! Tests block status that makes no progress or describes other ranges.

use super::{SIZE, STRUCTURED, WrongReply, assert_ended, copy_from, statuses};
use crate::support::wire::chunk;
use crate::support::{assert_same, assert_whole, reply};

#[test]
fn block_status_without_progress_ends_the_copy() {
    let cases: [(&str, WrongReply); 6] = [
        ("a length of 0", |r| reply::status(r.cookie, reply::ALLOCATION, &[(0, 0)])),
        ("a length of 0 after another one", |r| reply::status(r.cookie, reply::ALLOCATION, &[(4096, 0), (0, 3)])),
        ("no descriptors", |r| reply::status(r.cookie, reply::ALLOCATION, &[])),
        ("no chunk at all", |r| reply::done(r.cookie)),
        ("a truncated descriptor", |r| {
            reply::chunk(
                r.cookie,
                chunk::DONE,
                chunk::STATUS,
                &[&reply::ALLOCATION.to_be_bytes()[..], &[0; 4]].concat(),
            )
        }),
        ("a context without descriptors", |r| reply::chunk(r.cookie, chunk::DONE, chunk::STATUS, &[0; 2])),
    ];
    for (what, wrong) in cases {
        assert_ended(what, "source", &["EProtocol"], copy_from(STRUCTURED, statuses(wrong)));
    }
}

#[test]
fn block_status_of_a_wrong_or_repeated_context_ends_the_copy() {
    let other = statuses(|r| reply::status(r.cookie, reply::ALLOCATION + 1, &[(r.length, 0)]));
    assert_ended("another context", "source", &["EProtocol"], copy_from(STRUCTURED, other));
    let twice = statuses(|r| {
        let mut first = reply::status(r.cookie, reply::ALLOCATION, &[(r.length, 0)]);
        // Not the last chunk.
        first[5] = 0;
        [first, reply::status(r.cookie, reply::ALLOCATION, &[(r.length, 3)])].concat()
    });
    assert_ended("the same context twice", "source", &["EProtocol"], copy_from(STRUCTURED, twice));
}

#[test]
fn block_status_shorter_or_longer_than_the_request_is_allowed() {
    for (what, length) in [("shorter than the request", 4096_u32), ("far past the end of the request", u32::MAX - 4095)]
    {
        let script = statuses(move |r| {
            reply::status(
                r.cookie,
                reply::ALLOCATION,
                &[(length.min(if length == 4096 { r.length } else { length }), 0)],
            )
        });
        let (dirs, peer, outcome) = copy_from(STRUCTURED, script);
        assert_whole(&outcome, SIZE, what);
        assert_same(&dirs.read("b"), peer.store().durable(), what);
    }
}
