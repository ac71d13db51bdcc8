//! Drives a parser for tests and fuzz targets: receives a stream in any pieces, and panics where the parser breaks a
//! promise.

use super::{DESCRIPTORS_MAX, ExpectedReply, NextReceive, ProtocolViolation, Replies, ReplyEvent};
use crate::nbd::{MetaContexts, ReplyStyle};
use crate::seeded_numbers::SeededNumbers;
use nix::errno::Errno;
use std::collections::HashMap;

/// A request under way, or its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReceivedReply {
    /// The caller's number.
    pub number: usize,
    pub expected: ExpectedReply,
    /// The buffer of a read.
    pub buffer: Vec<u8>,
    /// Number of times that each byte was named.
    pub named: Vec<u8>,
    pub status: Vec<(u32, Vec<(u64, u64)>)>,
}

/// A client that makes requests and receives their replies.
#[derive(Debug)]
pub(crate) struct TestReceiver {
    pub replies: Replies,
    contexts: MetaContexts,
    under_way: HashMap<usize, ReceivedReply>,
    /// Answers, in the order in which they ended.
    pub ended: Vec<(ReceivedReply, Result<(), Errno>)>,
    /// Payload that came with heads.
    pub early_bytes: u64,
    events: Vec<ReplyEvent>,
}

impl TestReceiver {
    pub(crate) fn new(style: ReplyStyle, contexts: MetaContexts, slots: usize) -> Self {
        let replies = Replies::new(style, contexts, slots);
        let (under_way, ended, events) = (HashMap::new(), Vec::new(), Vec::new());
        Self { replies, contexts, under_way, ended, early_bytes: 0, events }
    }

    /// Registers a request; its cookie.
    pub(crate) fn ask(&mut self, number: usize, expected: ExpectedReply) -> u64 {
        let cookie = self.replies.expect(expected);
        let len = if let ExpectedReply::Read { len, .. } = expected { len as usize } else { 0 };
        let request =
            ReceivedReply { number, expected, buffer: vec![0xee; len], named: vec![0; len], status: Vec::new() };
        assert!(self.under_way.insert(Replies::index(cookie), request).is_none(), "a slot was given twice");
        cookie
    }

    /// Receives once for what was wanted when the receive began: at most `most` bytes of `stream`. How many.
    pub(crate) fn receive(
        &mut self,
        wanted: NextReceive,
        stream: &[u8],
        most: usize,
    ) -> Result<usize, ProtocolViolation> {
        let wants_payload = matches!(wanted, NextReceive::Body { .. });
        let len = match wanted {
            NextReceive::Head { most } => most,
            NextReceive::Body { len, .. } => len as usize,
        };
        assert!(len > 0, "nothing is wanted of a sound stream");
        let bytes = &stream[..len.min(most).min(stream.len())];
        let outcome = if let NextReceive::Body { index, at, .. } = wanted {
            self.put(index, at, bytes);
            self.replies.body(bytes.len() as u32, &mut self.events)
        } else {
            self.replies.head(bytes, &mut self.events)
        };
        for event in std::mem::take(&mut self.events) {
            let is_early = matches!(event, ReplyEvent::Early { .. });
            assert!(!is_early || (!wants_payload && len == usize::MAX), "heads swallowed payload");
            self.take(event, bytes);
        }
        assert_eq!(self.replies.outstanding(), self.under_way.len());
        outcome.map(|()| bytes.len()).inspect_err(|violation| self.is_over(violation))
    }

    /// Receives the whole stream, in pieces of any size.
    pub(crate) fn receive_all(&mut self, stream: &[u8], numbers: &mut SeededNumbers) -> Result<(), ProtocolViolation> {
        let mut at = 0;
        while at < stream.len() {
            let most = some_length(numbers);
            at += self.receive(self.replies.wants(), &stream[at..], most)?;
        }
        Ok(())
    }

    fn is_over(&mut self, violation: &ProtocolViolation) {
        assert_eq!(self.replies.head(b"more", &mut self.events).as_ref(), Err(violation));
        assert_eq!(self.replies.wants(), NextReceive::Head { most: 0 });
        assert_eq!(self.events, []);
    }

    fn take(&mut self, event: ReplyEvent, received: &[u8]) {
        match event {
            ReplyEvent::Hole { index, at, len } => self.put(index, at, &vec![0; len as usize]),
            ReplyEvent::Early { index, from, at, len } => {
                self.early_bytes += u64::from(len);
                self.put(index, at, &received[from..from + len as usize]);
            }
            ReplyEvent::Status { index, context, extents } => {
                let is_selected = [self.contexts.allocation, self.contexts.dirty].contains(&Some(context));
                assert!(is_selected, "status of context {context}");
                let request = self.under_way.get_mut(&index).expect("it is under way");
                let ExpectedReply::Status { len, .. } = request.expected else { panic!("status for {request:?}") };
                assert!((1..=DESCRIPTORS_MAX).contains(&extents.len()));
                assert!(extents.iter().all(|(len, _)| *len > 0));
                assert!(extents.iter().map(|(len, _)| len).sum::<u64>() <= len);
                assert!(request.status.iter().all(|(other, _)| *other != context));
                request.status.push((context, extents));
            }
            ReplyEvent::Done { index, result } => {
                let request = self.under_way.remove(&index).expect("it is done once");
                let is_whole = request.named.iter().all(|&times| times == 1);
                assert!(result.is_err() || is_whole, "done with bytes missing: {request:?}");
                self.ended.push((request, result));
            }
        }
    }

    /// Puts payload in place; no byte of it was put before.
    fn put(&mut self, index: usize, at: u32, bytes: &[u8]) {
        let request = self.under_way.get_mut(&index).expect("it is under way");
        let place = at as usize..at as usize + bytes.len();
        assert!(place.end <= request.buffer.len(), "past the buffer: {place:?}");
        request.buffer[place.clone()].copy_from_slice(bytes);
        for times in &mut request.named[place] {
            *times += 1;
            assert_eq!(*times, 1, "a byte was named twice");
        }
    }
}

/// Draws a length: one byte, a few, or unlimited.
pub(crate) fn some_length(numbers: &mut SeededNumbers) -> usize {
    match numbers.below(4) {
        0 => 1,
        1 => 1 + numbers.below(60) as usize,
        2 => 1 + numbers.below(5000) as usize,
        _ => usize::MAX,
    }
}
