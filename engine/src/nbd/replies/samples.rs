//! Makes up replies from a seed, for tests and fuzz targets: what a server may send, in any order.
#![cfg_attr(not(test), allow(dead_code, reason = "fuzz targets need only half of it"))]

use super::{DESCRIPTORS_MAX, ExpectedReply};
use crate::nbd::codec::{EXTENDED_REPLY_MAGIC, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC, errno};
use crate::nbd::{MetaContexts, ReplyStyle};
use crate::seeded_numbers::SeededNumbers;
use nix::errno::Errno;

/// A request and how it is answered.
#[derive(Clone, Debug)]
pub(crate) struct SampleRequest {
    pub expected: ExpectedReply,
    pub result: Result<(), Errno>,
    /// Result of a read, if it succeeds.
    pub content: Vec<u8>,
    /// Results of block status by context, in the order in which they are sent; after an error, those sent before.
    pub status: Vec<(u32, Vec<(u64, u64)>)>,
    /// Offset of its reply in the stream.
    pub first_at: usize,
}

/// A stream of answers, with the requests in the order in which their answers begin.
#[derive(Clone, Debug)]
pub(crate) struct SampleStream {
    pub style: ReplyStyle,
    pub contexts: MetaContexts,
    pub asked: Vec<SampleRequest>,
    pub stream: Vec<u8>,
    /// Offset of the cookie of a request.
    pub cookies: Vec<(usize, usize)>,
}

/// The byte that the export holds at `offset`, where it is no hole: never 0.
fn content(offset: u64) -> u8 {
    (offset.wrapping_mul(0x9e37_79b9) >> 7) as u8 | 1
}

impl SampleStream {
    pub(crate) fn new(seed: u64) -> Self {
        let numbers = SeededNumbers(seed);
        let mut server = SampleServer { numbers, style: ReplyStyle::Simple, contexts: MetaContexts::default() };
        server.style = [ReplyStyle::Simple, ReplyStyle::Structured, ReplyStyle::Extended][server.below(3)];
        if server.style != ReplyStyle::Simple {
            server.contexts.allocation = (server.below(4) > 0).then_some(7);
            server.contexts.dirty = (server.below(2) > 0).then_some(u32::MAX);
        }
        let count = 1 + server.below(9);
        let answers = (0..count).map(|_| server.answer()).collect();
        server.interleave(answers)
    }

    /// Puts the cookie of request `asked` wherever its answers name it.
    pub(crate) fn name(&mut self, asked: usize, cookie: u64) {
        for &(at, of) in self.cookies.iter().filter(|(_, of)| *of == asked) {
            debug_assert_eq!(of, asked);
            self.stream[at..at + 8].copy_from_slice(&cookie.to_be_bytes());
        }
    }
}

/// One reply, in messages that may be interleaved with others, without cookies.
struct SampleReply {
    asked: SampleRequest,
    messages: std::collections::VecDeque<Vec<u8>>,
}

/// Server that makes up replies.
struct SampleServer {
    numbers: SeededNumbers,
    style: ReplyStyle,
    contexts: MetaContexts,
}

impl SampleServer {
    fn below(&mut self, end: u64) -> usize {
        self.numbers.below(end) as usize
    }

    fn answer(&mut self) -> SampleReply {
        let offset = self.numbers.next() >> 20;
        let has_contexts = self.contexts != MetaContexts::default();
        let expected = match self.below(if has_contexts { 4 } else { 3 }) {
            0 | 1 => ExpectedReply::Read { offset, len: 1 + self.below(3000) as u32 },
            2 => ExpectedReply::Nothing,
            _ => ExpectedReply::Status { offset, len: 1 + self.numbers.below(1 << 33) },
        };
        let fails = self.below(4) == 0;
        let (error, result) = if fails { (28, Err(errno(28))) } else { (0, Ok(())) };
        let asked = SampleRequest { expected, result, content: Vec::new(), status: Vec::new(), first_at: 0 };
        let mut answer = SampleReply { asked, messages: [].into() };
        let may_be_simple = match (self.style, expected) {
            (ReplyStyle::Simple, _) => true,
            (ReplyStyle::Structured, ExpectedReply::Nothing) => self.below(2) == 0,
            (ReplyStyle::Structured, ExpectedReply::Status { .. }) => fails && self.below(2) == 0,
            _ => false,
        };
        match expected {
            _ if may_be_simple => self.simple(&mut answer, error),
            ExpectedReply::Read { offset, len } => self.read(&mut answer, offset, len, fails),
            ExpectedReply::Nothing => {}
            ExpectedReply::Status { len, .. } => self.status(&mut answer, len, fails),
        }
        if !may_be_simple {
            self.finish(&mut answer, fails);
        }
        answer
    }

    fn simple(&mut self, answer: &mut SampleReply, error: u32) {
        let head = [SIMPLE_REPLY_MAGIC, error, 0, 0].map(u32::to_be_bytes);
        let mut message = head.concat();
        if let (ExpectedReply::Read { offset, len }, 0) = (answer.asked.expected, error) {
            answer.asked.content = (offset..offset + u64::from(len)).map(content).collect();
            message.extend(&answer.asked.content);
        }
        answer.messages.push_back(message);
    }

    /// Content in pieces of any size and order; not all of them, if it fails.
    fn read(&mut self, answer: &mut SampleReply, offset: u64, len: u32, fails: bool) {
        answer.asked.content = vec![0; len as usize];
        let (mut pieces, mut at) = (Vec::new(), 0);
        let longest = [len, 9, 700][self.below(3)];
        while at < len {
            let piece = 1 + self.below(u64::from(longest.min(len - at))) as u32;
            pieces.push((at, piece));
            at += piece;
        }
        for from in (1..pieces.len()).rev() {
            let to = self.below(from as u64 + 1);
            pieces.swap(from, to);
        }
        if fails {
            pieces.truncate(self.below(pieces.len() as u64 + 1));
        }
        for (at, len) in pieces {
            let start = offset + u64::from(at);
            let mut payload = start.to_be_bytes().to_vec();
            let kind = if self.below(4) == 0 { 2 } else { 1 };
            if kind == 2 {
                payload.extend(len.to_be_bytes());
            } else {
                payload.extend((start..start + u64::from(len)).map(content));
                let place = at as usize..(at + len) as usize;
                answer.asked.content[place].copy_from_slice(&payload[8..]);
            }
            let chunk = self.chunk(answer.asked.expected, kind, &payload);
            answer.messages.push_back(chunk);
        }
    }

    /// A chunk of descriptors for each context; not for all of them, if it fails.
    fn status(&mut self, answer: &mut SampleReply, len: u64, fails: bool) {
        let mut contexts: Vec<u32> = self.contexts.allocation.into_iter().chain(self.contexts.dirty).collect();
        if self.below(2) == 0 {
            contexts.reverse();
        }
        if fails {
            contexts.truncate(self.below(contexts.len() as u64 + 1));
        }
        let is_wide = self.style == ReplyStyle::Extended;
        for context in contexts {
            let (mut payload, mut kept, mut covered) = (context.to_be_bytes().to_vec(), Vec::new(), 0);
            let count = if self.below(6) == 0 { 5000 } else { 1 + self.below(9) };
            let mut sent: u32 = 0;
            let mut descriptors = Vec::new();
            while sent < count as u32 && covered < len {
                let (longest, flags) = (1 + (len * 2 / count as u64).min(1 << 31), self.numbers.next());
                let (extent, flags) = (1 + self.numbers.below(longest), if is_wide { flags } else { flags >> 32 });
                kept.push((extent.min(len - covered), flags));
                covered += extent;
                sent += 1;
                match is_wide {
                    true => descriptors.extend([extent, flags].map(u64::to_be_bytes).concat()),
                    false => descriptors.extend([extent as u32, flags as u32].map(u32::to_be_bytes).concat()),
                }
            }
            if is_wide {
                payload.extend(sent.to_be_bytes());
            }
            payload.extend(descriptors);
            kept.truncate(DESCRIPTORS_MAX);
            answer.asked.status.push((context, kept));
            let chunk = self.chunk(answer.asked.expected, if is_wide { 6 } else { 5 }, &payload);
            answer.messages.push_back(chunk);
        }
    }

    /// Adds an error anywhere, if it fails, and marks the last chunk or adds an empty one.
    fn finish(&mut self, answer: &mut SampleReply, fails: bool) {
        if fails {
            let error = self.error(answer.asked.expected);
            let at = self.below(answer.messages.len() as u64 + 1);
            answer.messages.insert(at, error);
        }
        if answer.messages.is_empty() || self.below(2) == 0 {
            let chunk = self.chunk(answer.asked.expected, 0, &[]);
            answer.messages.push_back(chunk);
        }
        answer.messages.back_mut().expect("there is one by now")[5] |= 1;
    }

    /// A chunk of some kind of error, with or without words.
    fn error(&mut self, expected: ExpectedReply) -> Vec<u8> {
        let words = vec![b'!'; [0, 5, 4096][self.below(3)]];
        let mut payload = [&28_u32.to_be_bytes(), &(words.len() as u16).to_be_bytes()[..], &words].concat();
        let offset = match expected {
            ExpectedReply::Read { offset, len } => offset + self.numbers.below(u64::from(len)),
            ExpectedReply::Status { offset, len } => offset + self.numbers.below(len),
            ExpectedReply::Nothing => self.numbers.next(),
        };
        let kind = [0x8001, 0x8002, 0x8abc][self.below(3)];
        match kind {
            0x8002 => payload.extend(offset.to_be_bytes()),
            0x8abc => payload.extend(vec![0xee; self.below(50)]),
            _ => {}
        }
        self.chunk(expected, kind, &payload)
    }

    fn chunk(&self, expected: ExpectedReply, kind: u16, payload: &[u8]) -> Vec<u8> {
        let is_wide = self.style == ReplyStyle::Extended;
        let offset = match expected {
            ExpectedReply::Read { offset, .. } | ExpectedReply::Status { offset, .. } => offset,
            ExpectedReply::Nothing => 0,
        };
        chunk(is_wide, kind, offset, payload)
    }

    /// Interleaves the messages of all replies, keeping the order within each reply.
    fn interleave(mut self, mut answers: Vec<SampleReply>) -> SampleStream {
        let (mut stream, mut asked, mut cookies) = (Vec::new(), Vec::new(), Vec::new());
        let mut begun = vec![None; answers.len()];
        while let Some(most) = answers.iter().filter(|answer| !answer.messages.is_empty()).count().checked_sub(1) {
            let nth = self.below(most as u64 + 1);
            let at = (0..answers.len()).filter(|&at| !answers[at].messages.is_empty()).nth(nth).expect("counted");
            let message = answers[at].messages.pop_front().expect("it has one");
            let index = *begun[at].get_or_insert_with(|| {
                asked.push(SampleRequest { first_at: stream.len(), ..answers[at].asked.clone() });
                asked.len() - 1
            });
            cookies.push((stream.len() + 8, index));
            stream.extend(message);
        }
        SampleStream { style: self.style, contexts: self.contexts, asked, stream, cookies }
    }
}

/// A chunk that is not the last, without its cookie. A simple reply's cookie is at the same place.
pub(crate) fn chunk(is_extended: bool, kind: u16, offset: u64, payload: &[u8]) -> Vec<u8> {
    let magic = if is_extended { EXTENDED_REPLY_MAGIC } else { STRUCTURED_REPLY_MAGIC };
    let mut bytes = [&magic.to_be_bytes()[..], &[0, 0], &kind.to_be_bytes(), &[0; 8]].concat();
    if is_extended {
        bytes.extend([offset, payload.len() as u64].map(u64::to_be_bytes).concat());
    } else {
        bytes.extend((payload.len() as u32).to_be_bytes());
    }
    [bytes, payload.to_vec()].concat()
}
