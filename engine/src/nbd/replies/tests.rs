//! Tests that valid replies are understood, however they are cut, and that no others are.

use super::samples::SampleStream;
use super::test_receiver::{TestReceiver, some_length};
use super::*;
use crate::seeded_numbers::SeededNumbers;
use proptest::prelude::*;

/// Registers what the next bytes may answer, as late as it may be.
fn ask_up_to(owner: &mut TestReceiver, sample: &mut SampleStream, asked: &mut usize, end: usize) {
    while sample.asked.get(*asked).is_some_and(|request| request.first_at < end) {
        let cookie = owner.ask(*asked, sample.asked[*asked].expected);
        sample.name(*asked, cookie);
        *asked += 1;
    }
}

/// Plays a sample; `seed` decides how it is cut and how early its requests are made. Returns early bytes.
fn play(mut sample: SampleStream, seed: u64) -> u64 {
    let mut numbers = SeededNumbers(seed);
    let mut owner = TestReceiver::new(sample.style, sample.contexts, sample.asked.len());
    let (mut at, mut asked) = (0, 0);
    while at < sample.stream.len() {
        if numbers.below(3) == 0 {
            ask_up_to(&mut owner, &mut sample, &mut asked, at + 1 + numbers.below(9000) as usize);
        }
        let (wanted, most) = (owner.replies.wants(), some_length(&mut numbers));
        let end = match wanted {
            NextReceive::Head { most: wanted } => at.saturating_add(wanted.min(most)),
            NextReceive::Body { .. } => at,
        };
        let end = end.min(sample.stream.len());
        ask_up_to(&mut owner, &mut sample, &mut asked, end);
        at += owner.receive(wanted, &sample.stream[at..], most).expect("the sample is sound");
    }
    assert_eq!((owner.ended.len(), owner.replies.outstanding()), (sample.asked.len(), 0));
    for (request, result) in &owner.ended {
        let asked = &sample.asked[request.number];
        assert_eq!((*result, &request.status), (asked.result, &asked.status));
        assert!(result.is_err() || request.buffer == asked.content);
    }
    owner.early_bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn valid_replies_are_parsed_however_they_are_cut(seed: u64, cuts: u64) {
        play(SampleStream::new(seed), cuts);
    }
}

#[test]
fn samples_cover_every_way_of_receiving() {
    let early: Vec<u64> = (0..300).map(|seed| play(SampleStream::new(seed), !seed)).collect();
    assert!(early.contains(&0) && early.iter().any(|&bytes| bytes > 0));
}

const OFFSET: u64 = 1 << 20;
const READ: ExpectedReply = ExpectedReply::Read { offset: OFFSET, len: 1000 };
const STATUS: ExpectedReply = ExpectedReply::Status { offset: OFFSET, len: 1 << 30 };
const CONTEXTS: MetaContexts = MetaContexts { allocation: Some(7), dirty: Some(9) };

/// Messages of a server that answers the first request of a connection.
#[derive(Clone, Copy, Debug)]
struct SampleServer(ReplyStyle);

const SIMPLE: SampleServer = SampleServer(ReplyStyle::Simple);
const CHUNKS: SampleServer = SampleServer(ReplyStyle::Structured);
const EXTENDED: SampleServer = SampleServer(ReplyStyle::Extended);

impl SampleServer {
    fn part(self, kind: u16, payload: &[&[u8]]) -> Vec<u8> {
        super::samples::chunk(self.0 == ReplyStyle::Extended, kind, OFFSET, &payload.concat())
    }

    fn last(self, kind: u16, payload: &[&[u8]]) -> Vec<u8> {
        let mut bytes = self.part(kind, payload);
        bytes[5] = 1;
        bytes
    }

    fn data(self, at: u64, len: usize) -> Vec<u8> {
        self.part(1, &[&OFFSET.wrapping_add(at).to_be_bytes(), &vec![0xd5; len]])
    }

    fn hole(self, at: u64, len: u32) -> Vec<u8> {
        self.part(2, &[&(OFFSET + at).to_be_bytes(), &len.to_be_bytes()])
    }

    fn status(self, context: u32, descriptors: &[u32]) -> Vec<u8> {
        let context = context.to_be_bytes();
        if self.0 == ReplyStyle::Structured {
            let descriptors: Vec<u8> = descriptors.iter().flat_map(|it| it.to_be_bytes()).collect();
            return self.part(5, &[&context, &descriptors]);
        }
        let count = (descriptors.len() as u32 / 2).to_be_bytes();
        let descriptors: Vec<u8> = descriptors.iter().flat_map(|it| u64::from(*it).to_be_bytes()).collect();
        self.part(6, &[&context, &count, &descriptors])
    }

    fn error(self, kind: u16, error: u32, words: &[u8], more: &[u8]) -> Vec<u8> {
        self.part(kind, &[&error.to_be_bytes(), &(words.len() as u16).to_be_bytes(), words, more])
    }

    /// Returns how the request fares when it is answered so.
    fn answer(self, expected: ExpectedReply, messages: &[Vec<u8>]) -> Result<TestReceiver, &'static str> {
        let mut owner =
            TestReceiver::new(self.0, if self.0 == ReplyStyle::Simple { MetaContexts::default() } else { CONTEXTS }, 2);
        assert_eq!(owner.ask(0, expected), 0);
        let received = owner.receive_all(&messages.concat(), &mut SeededNumbers(7));
        received.map(|()| owner).map_err(|violation| violation.0)
    }

    /// Returns the message of the violation.
    fn violation(self, expected: ExpectedReply, messages: &[Vec<u8>]) -> &'static str {
        let violation = self.answer(expected, messages).expect_err("it is no sound answer");
        let sound = &messages[..messages.len() - 1];
        assert!(self.answer(expected, sound).is_ok_and(|owner| owner.ended.len() <= 1), "the last message is at fault");
        violation
    }

    fn done(self) -> Vec<u8> {
        self.last(0, &[])
    }
}

fn simple(error: u32, cookie: u64) -> Vec<u8> {
    [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
}

/// Returns the only reply of a receiver that made one request.
fn result(answered: Result<TestReceiver, &'static str>) -> Result<(), Errno> {
    let owner = answered.expect("it is a sound answer");
    assert_eq!(owner.ended.len(), 1);
    owner.ended[0].1
}

#[test]
fn a_wrong_magic_number_is_a_violation() {
    let wrong = "wrong magic number in a reply";
    assert_eq!(SIMPLE.violation(READ, &[CHUNKS.done()]), wrong);
    assert_eq!(CHUNKS.violation(READ, &[EXTENDED.done()]), wrong);
    assert_eq!(EXTENDED.violation(READ, &[CHUNKS.done()]), wrong);
    assert_eq!(EXTENDED.violation(ExpectedReply::Nothing, &[simple(0, 0)]), wrong);
    assert_eq!(SIMPLE.violation(READ, &[b"HTTP".to_vec()]), wrong, "four bytes are enough to know");
}

#[test]
fn an_unknown_handle_is_a_violation() {
    for cookie in [1, 2, 1 << 32, u64::MAX] {
        let unknown = "an answer to a request that was not made";
        assert_eq!(SIMPLE.violation(ExpectedReply::Nothing, &[simple(0, cookie)]), unknown);
    }
}

#[test]
fn a_second_reply_to_one_request_is_a_violation() {
    let twice = "an answer to a request that was answered already";
    assert_eq!(SIMPLE.violation(ExpectedReply::Nothing, &[simple(0, 0), simple(0, 0)]), twice);
    assert_eq!(CHUNKS.violation(ExpectedReply::Nothing, &[CHUNKS.done(), simple(0, 0)]), twice);
    assert_eq!(EXTENDED.violation(READ, &[EXTENDED.hole(0, 1000), EXTENDED.done(), EXTENDED.data(0, 1)]), twice);
}

#[test]
fn a_reply_to_an_earlier_request_of_a_slot_is_a_violation() {
    let mut owner = TestReceiver::new(ReplyStyle::Simple, MetaContexts::default(), 1);
    let first = owner.ask(0, ExpectedReply::Nothing);
    owner.receive_all(&simple(0, first), &mut SeededNumbers(0)).unwrap();
    let second = owner.ask(1, ExpectedReply::Nothing);
    assert_eq!((Replies::index(first), first == second), (Replies::index(second), false));
    let violation = owner.receive_all(&simple(0, first), &mut SeededNumbers(0)).unwrap_err();
    assert_eq!(violation.0, "an answer to a request that was answered already");
}

#[test]
fn a_simple_reply_to_a_structured_read_is_a_violation() {
    for error in [0, 5] {
        let wrong = "a simple reply to a read that is answered in chunks";
        assert_eq!(CHUNKS.violation(READ, &[simple(error, 0)]), wrong);
    }
}

#[test]
fn a_simple_reply_amid_chunks_is_a_violation() {
    let error = CHUNKS.error(0x8001, 5, b"", b"");
    assert_eq!(
        CHUNKS.violation(ExpectedReply::Nothing, &[error, simple(5, 0)]),
        "a simple reply amid the chunks of another"
    );
}

#[test]
fn a_chunk_out_of_range_is_a_violation() {
    for server in [CHUNKS, EXTENDED] {
        let out = [server.data(1, 1000), server.data(u64::MAX, 1), server.hole(999, 2), server.hole(1000, 1)];
        let far = [server.hole(0, u32::MAX), server.data(u64::MAX - OFFSET, 2), server.data(0, 1001)];
        for chunk in out.into_iter().chain(far) {
            assert_eq!(server.violation(READ, &[chunk]), "a chunk out of the request's range");
        }
    }
}

#[test]
fn overlapping_chunks_are_a_violation() {
    for server in [CHUNKS, EXTENDED] {
        for again in [server.data(400, 1), server.hole(0, 401), server.data(0, 1000), server.hole(599, 1)] {
            assert_eq!(server.violation(READ, &[server.data(400, 200), again]), "a chunk overlaps with an earlier one");
        }
    }
}

#[test]
fn missing_bytes_without_an_error_are_a_violation() {
    for server in [CHUNKS, EXTENDED] {
        let missing = "a read was answered with bytes missing and no error";
        assert_eq!(server.violation(READ, &[server.done()]), missing);
        assert_eq!(server.violation(READ, &[server.data(1, 999), server.done()]), missing);
        let scattered = [server.data(0, 1), server.hole(2, 998), server.done()];
        assert_eq!(server.violation(READ, &scattered), missing);
        let error = server.error(0x8001, 5, b"", b"");
        assert_eq!(result(server.answer(READ, &[server.data(1, 999), error, server.done()])), Err(Errno::EIO));
    }
}

#[test]
fn chunks_without_bytes_are_violations() {
    for server in [CHUNKS, EXTENDED] {
        assert_eq!(server.violation(READ, &[server.data(0, 0)]), "a chunk whose length does not fit its type");
        assert_eq!(server.violation(READ, &[server.hole(0, 0)]), "a hole of no bytes");
        assert_eq!(server.violation(READ, &[server.part(0, &[])]), "an empty chunk that is not the last");
    }
}

#[test]
fn lengths_that_do_not_fit_the_type_are_violations() {
    let wrong = "a chunk whose length does not fit its type";
    for server in [CHUNKS, EXTENDED] {
        for chunk in [server.last(0, &[&[0]]), server.part(1, &[&[0; 7]]), server.part(2, &[&[0; 11]])] {
            assert_eq!(server.violation(READ, &[chunk]), wrong);
        }
        for chunk in [server.part(2, &[&[0; 13]]), server.part(0x8001, &[&[0; 5]]), server.part(0x8002, &[&[0; 13]])] {
            assert_eq!(server.violation(READ, &[chunk]), wrong);
        }
        let odd = if server.0 == ReplyStyle::Structured { (5, [4, 11, 16]) } else { (6, [8, 16, 28]) };
        for len in odd.1 {
            assert_eq!(server.violation(STATUS, &[server.part(odd.0, &[&vec![0; len]])]), wrong);
        }
    }
}

#[test]
fn lengths_that_no_chunk_has_are_violations_before_their_bytes() {
    let wrong = "a chunk whose length does not fit its type";
    for kind in [6, 0x8001, 0x8fff] {
        let mut head = EXTENDED.part(kind, &[]);
        head[24..].copy_from_slice(&(8 + (1_u64 << 62)).to_be_bytes());
        assert_eq!(EXTENDED.violation(STATUS, &[head]), wrong);
    }
    let mut head = EXTENDED.part(1, &[]);
    head[24..].copy_from_slice(&u64::MAX.to_be_bytes());
    head.extend(OFFSET.to_be_bytes());
    assert_eq!(EXTENDED.violation(READ, &[head]), "a chunk out of the request's range");
}

#[test]
fn chunks_of_another_kind_of_request_are_violations() {
    for server in [CHUNKS, EXTENDED] {
        let wrong = "a chunk that does not answer the request";
        for expected in [ExpectedReply::Nothing, STATUS] {
            assert_eq!(server.violation(expected, &[server.data(0, 1)]), wrong);
            assert_eq!(server.violation(expected, &[server.hole(0, 1)]), wrong);
        }
        for expected in [ExpectedReply::Nothing, READ] {
            assert_eq!(server.violation(expected, &[server.status(7, &[512, 0])]), wrong);
        }
    }
}

#[test]
fn unknown_chunks_are_violations_unless_they_are_errors() {
    for server in [CHUNKS, EXTENDED] {
        let other_status = if server.0 == ReplyStyle::Structured { 6 } else { 5 };
        for kind in [3, 4, other_status, 7, 0x7fff] {
            assert_eq!(server.violation(STATUS, &[server.part(kind, &[&[0; 24]])]), "a chunk of an unknown type");
        }
        let unknown = server.error(0x8003, 28, b"full", &[0xee; 99]);
        for expected in [READ, STATUS, ExpectedReply::Nothing] {
            assert_eq!(result(server.answer(expected, &[unknown.clone(), server.done()])), Err(Errno::ENOSPC));
        }
    }
}

#[test]
fn errors_in_chunks_fail_the_request_when_it_is_done() {
    for server in [CHUNKS, EXTENDED] {
        let offset = (OFFSET + 999).to_be_bytes();
        let first = server.error(0x8002, 28, b"no room", &offset);
        let second = server.error(0x8001, 5, b"", b"");
        let owner = server.answer(READ, &[server.data(0, 500), first.clone()]).unwrap();
        assert_eq!((owner.ended.len(), owner.replies.outstanding()), (0, 1), "more may come");
        let whole = [first, server.data(0, 1000), second, server.done()];
        assert_eq!(result(server.answer(READ, &whole)), Err(Errno::ENOSPC), "the first of them counts");
    }
}

#[test]
fn malformed_errors_are_violations() {
    for server in [CHUNKS, EXTENDED] {
        let empty = server.error(0x8001, 0, b"", b"");
        assert_eq!(server.violation(READ, &[empty]), "an error chunk without an error");
        for (kind, bytes) in [(0x8001, 6), (0x8002, 14), (0x8123, 6)] {
            let long = server.part(kind, &[&[0, 0, 0, 5, 0, 1], &vec![0; bytes - 6]]);
            assert_eq!(server.violation(READ, &[long]), "the message of an error is longer than its chunk");
        }
        for offset in [OFFSET - 1, OFFSET + 1000, u64::MAX] {
            let error = server.error(0x8002, 5, b"", &offset.to_be_bytes());
            assert_eq!(server.violation(READ, &[error]), "an error out of the request's range");
        }
    }
}

#[test]
fn extended_replies_name_the_requests_offset() {
    let mut other = EXTENDED.data(0, 1000);
    other[23] ^= 1;
    assert_eq!(EXTENDED.violation(READ, &[other]), "a reply with another request's offset");
    // What has no offset may carry any.
    assert_eq!(result(EXTENDED.answer(ExpectedReply::Nothing, &[EXTENDED.done()])), Ok(()));
}

#[test]
fn status_of_an_unknown_context_or_twice_of_one_is_a_violation() {
    for server in [CHUNKS, EXTENDED] {
        let unknown = "block status of a context that was not selected";
        assert_eq!(server.violation(STATUS, &[server.status(8, &[512, 0])]), unknown);
        let (first, second) = (server.status(7, &[512, 0]), server.status(7, &[512, 3]));
        assert_eq!(server.violation(STATUS, &[first, second]), "block status of one context twice");
    }
}

#[test]
fn status_that_does_not_advance_is_a_violation() {
    for server in [CHUNKS, EXTENDED] {
        let stuck = "block status that does not advance";
        assert_eq!(server.violation(STATUS, &[server.status(7, &[0, 0])]), stuck);
        assert_eq!(server.violation(STATUS, &[server.status(7, &[512, 0, 0, 0, 512, 0])]), stuck);
    }
}

#[test]
fn status_without_an_answer_for_every_context_is_a_violation() {
    let missing = "block status without an answer for every context";
    for server in [CHUNKS, EXTENDED] {
        assert_eq!(server.violation(STATUS, &[server.done()]), missing);
        assert_eq!(server.violation(STATUS, &[server.status(9, &[512, 0]), server.done()]), missing);
        let error = server.error(0x8001, 22, b"", b"");
        assert_eq!(result(server.answer(STATUS, &[error, server.done()])), Err(Errno::EINVAL));
    }
    assert_eq!(CHUNKS.violation(STATUS, &[simple(0, 0)]), missing);
    assert_eq!(result(CHUNKS.answer(STATUS, &[simple(1, 0)])), Err(Errno::EPERM));
}

#[test]
fn status_past_the_end_is_cut_and_may_not_go_on() {
    let expected = ExpectedReply::Status { offset: OFFSET, len: 1000 };
    for server in [CHUNKS, EXTENDED] {
        let long = server.status(7, &[999, 1, u32::MAX, 2]);
        let owner = server.answer(expected, &[long, server.status(9, &[10, 0]), server.done()]).unwrap();
        assert_eq!(owner.ended[0].0.status, [(7, vec![(999, 1), (1, 2)]), (9, vec![(10, 0)])]);
        let more = server.status(7, &[1000, 0, 1, 0]);
        assert_eq!(server.violation(expected, &[more]), "block status that goes on past the end of the request");
    }
}

#[test]
fn a_wrong_count_of_descriptors_is_a_violation() {
    let mut status = EXTENDED.status(7, &[512, 0, 512, 0]);
    status[HEAD_BYTES_MAX + 7] = 1;
    assert_eq!(EXTENDED.violation(STATUS, &[status]), "block status with a wrong count of descriptors");
}

#[test]
fn no_more_descriptors_are_kept_than_the_bound() {
    for server in [CHUNKS, EXTENDED] {
        let many = [1_u32, 0].repeat(20 * DESCRIPTORS_MAX);
        let messages = [server.status(7, &many), server.status(9, &[1, 0]), server.done()];
        let owner = server.answer(STATUS, &messages).unwrap();
        assert_eq!(owner.ended[0].0.status[0].1.len(), DESCRIPTORS_MAX);
    }
}

#[test]
fn a_body_that_arrives_in_pieces_continues_where_it_stopped() {
    let mut replies = Replies::new(ReplyStyle::Structured, CONTEXTS, 1);
    let mut events = Vec::new();
    assert_eq!(replies.wants(), NextReceive::Head { most: usize::MAX });
    replies.expect(READ);
    assert_eq!(replies.wants(), NextReceive::Head { most: 28 });
    let mut chunk = CHUNKS.data(0, 1000);
    chunk[5] = 1;
    replies.head(&chunk[..3], &mut events).unwrap();
    assert_eq!(replies.wants(), NextReceive::Head { most: 25 });
    replies.head(&chunk[3..28], &mut events).unwrap();
    assert_eq!(replies.wants(), NextReceive::Body { index: 0, at: 0, len: 1000 });
    replies.body(999, &mut events).unwrap();
    assert_eq!(replies.wants(), NextReceive::Body { index: 0, at: 999, len: 1 });
    assert_eq!(events, []);
    replies.body(1, &mut events).unwrap();
    assert_eq!(events, [ReplyEvent::Done { index: 0, result: Ok(()) }]);
    assert_eq!(replies.outstanding(), 0);
}

#[test]
fn a_failed_simple_read_has_no_payload() {
    let owner = SIMPLE.answer(READ, &[simple(5, 0)]).unwrap();
    assert_eq!((owner.ended[0].1, owner.ended[0].0.named.contains(&1)), (Err(Errno::EIO), false));
}
