//! Parses the replies of a server without I/O: bytes in, events out.
//!
//! ```text
//! Head --(none)----------------------------------------------------------------> Head
//!   '-> Prefix --(data)--> Body                                            ----> Head
//!          |-----(hole)                                                    ----> Head
//!          |-----(status)--> Descriptors                                   ----> Head
//!          '-----(error)---> Message --> [Suffix: offset] --> Rest         ----> Head
//! ```
//! Payload of reads goes from the socket straight to its place: [`Replies::wants`] names the place, and asks for heads
//! in amounts that cannot swallow payload. What always holds:
//!
//! - A place lies inside the buffer of a request that is under way, and no byte of a buffer is named twice.
//! - `Done` without an error comes once for a request, after every byte of a read was named by a body (and has arrived)
//!   or by a hole, and after every context of a status request was answered.
//! - After a [`ProtocolViolation`] there are no more events: the connection is of no further use.
//! - Nothing is allocated per reply but the descriptors of block status, of which at most [`DESCRIPTORS_MAX`] are kept.
//!   No length that the server claims is memory here.

mod received_ranges;
mod chunk;
pub(super) mod test_receiver;
pub(super) mod samples;
mod request_slot;
mod parse;
#[cfg(test)]
mod tests;

use super::{MetaContexts, ReplyStyle};
use chunk::{ChunkKind, HEAD_BYTES_MAX, MAGIC_BYTES, before_payload};
use nix::errno::Errno;
use request_slot::RequestSlot;

/// Descriptors of block status that are kept of one chunk; the owner asks again from where they end.
pub(crate) const DESCRIPTORS_MAX: usize = 4096;

/// Reply that a request expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExpectedReply {
    /// `len` bytes from `offset` of the export.
    Read { offset: u64, len: u32 },
    /// Completion without content: writes, zeros, flushes.
    Nothing,
    /// Block status from `offset` on.
    Status { offset: u64, len: u64 },
}

/// Next bytes to receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextReceive {
    /// Up to so many bytes, into memory of the connection. Never 0, unless the server has broken the protocol.
    Head { most: usize },
    /// Exactly so many bytes, to byte `at` of the buffer of request `index`. Fewer may arrive at a time.
    Body { index: usize, at: u32, len: u32 },
}

/// Content of a reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ReplyEvent {
    /// `len` bytes at `at` of the buffer of `index` are zeros, which the owner puts there.
    Hole { index: usize, at: u32, len: u32 },
    /// Payload among the bytes given to [`Replies::head`]: `len` bytes from `from` of them belong at `at` of the buffer
    /// of `index`, and the owner copies them. Only if the receive had begun, for any number of bytes, before the read
    /// was registered.
    Early { index: usize, from: usize, at: u32, len: u32 },
    /// Block status of one context from the request's offset on: lengths in bytes, none of them 0, and flags. No more
    /// than [`DESCRIPTORS_MAX`], and no further than the request; it may be less far.
    Status { index: usize, context: u32, extents: Vec<(u64, u64)> },
    /// The request is over; its slot is free again.
    Done { index: usize, result: Result<(), Errno> },
}

/// A breach of the protocol by the server. The connection must be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ProtocolViolation(pub &'static str);

/// Position of the parser in the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ParserState {
    Head,
    /// The start of a chunk's payload, which says what follows.
    Prefix,
    /// Payload of a read.
    Body {
        at: u32,
        len: u32,
    },
    Descriptors,
    /// The message of an error, which is dropped.
    Message {
        left: u64,
    },
    /// The offset of an error.
    Suffix,
    /// Payload of an error of a later protocol version, which is dropped.
    Rest,
}

/// The chunk that is being taken.
#[derive(Clone, Copy, Debug)]
struct Chunk {
    index: usize,
    kind: ChunkKind,
    /// Bytes of payload that follow what has been understood. Not used for the payload of reads.
    left: u64,
    is_last: bool,
}

/// The status chunk that is being taken.
#[derive(Debug, Default)]
struct Status {
    context: u32,
    /// Bytes of the request that descriptors cover, those that are not kept included.
    covered: u64,
    extents: Vec<(u64, u64)>,
}

/// The requests under way on one connection, and how far their answers have come.
#[derive(Debug)]
pub(crate) struct Replies {
    style: ReplyStyle,
    contexts: MetaContexts,
    slots: Vec<RequestSlot>,
    free: Vec<u32>,
    reads: usize,
    state: ParserState,
    chunk: Chunk,
    status: Status,
    /// The first bytes of what is not whole yet.
    buffer: [u8; HEAD_BYTES_MAX],
    buffered: usize,
    head_bytes: usize,
    broken: Option<ProtocolViolation>,
}

impl Replies {
    /// Creates the state for up to `slots` requests at a time. Allocates all memory here.
    pub(crate) fn new(style: ReplyStyle, contexts: MetaContexts, slots: usize) -> Self {
        let count = u32::try_from(slots).expect("slots are counted in hundreds");
        Self {
            style,
            contexts,
            slots: (0..slots).map(|_| RequestSlot::new()).collect(),
            free: (0..count).rev().collect(),
            reads: 0,
            state: ParserState::Head,
            chunk: Chunk { index: 0, kind: ChunkKind::None, left: 0, is_last: false },
            status: Status::default(),
            buffer: [0; HEAD_BYTES_MAX],
            buffered: 0,
            head_bytes: MAGIC_BYTES,
            broken: None,
        }
    }

    /// Registers a request and returns its cookie: the slot's index in the low 32 bits, a generation above them.
    ///
    /// # Panics
    /// If every slot is taken: the owner counts.
    pub(crate) fn expect(&mut self, expected: ExpectedReply) -> u64 {
        let index = self.free.pop().expect("the owner makes no more requests than there are slots");
        let slot = &mut self.slots[index as usize];
        slot.reset(expected);
        self.reads += usize::from(matches!(expected, ExpectedReply::Read { .. }));
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    /// The slot of a cookie that [`Replies::expect`] gave.
    pub(crate) fn index(cookie: u64) -> usize {
        cookie as u32 as usize
    }

    /// Requests without a whole answer.
    pub(crate) fn outstanding(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Returns what to receive next. While a read is in flight, no more header bytes than cannot contain its payload.
    pub(crate) fn wants(&self) -> NextReceive {
        if self.broken.is_some() {
            return NextReceive::Head { most: 0 };
        }
        let left = match self.state {
            ParserState::Body { at, len } => return NextReceive::Body { index: self.chunk.index, at, len },
            _ if self.reads == 0 => return NextReceive::Head { most: usize::MAX },
            ParserState::Head => 0,
            // The payload that this asks the place of comes next.
            ParserState::Prefix if self.chunk.kind == ChunkKind::Data => {
                return NextReceive::Head { most: self.chunk.kind.prefix_bytes() - self.buffered };
            }
            ParserState::Prefix
            | ParserState::Descriptors
            | ParserState::Message { .. }
            | ParserState::Suffix
            | ParserState::Rest => self.chunk.left,
        };
        let most = left.saturating_add(before_payload(self.style) as u64) - self.buffered as u64;
        NextReceive::Head { most: usize::try_from(most).unwrap_or(usize::MAX) }
    }

    /// Takes bytes that arrived: at least one, at most what was wanted when their receive began. Events are appended;
    /// those before a violation are valid.
    ///
    /// # Panics
    /// If a body is wanted: that is the owner's mistake.
    pub(crate) fn head(&mut self, bytes: &[u8], events: &mut Vec<ReplyEvent>) -> Result<(), ProtocolViolation> {
        assert!(!matches!(self.state, ParserState::Body { .. }) || self.broken.is_some(), "a body is wanted");
        let mut taken = 0;
        while taken < bytes.len() {
            taken += self.unless_broken(|replies| replies.step(&bytes[taken..], taken, events))?;
        }
        Ok(())
    }

    /// Notes that the first `bytes` of the wanted body have arrived in place.
    ///
    /// # Panics
    /// If no body is wanted, or fewer bytes: that is the owner's mistake.
    pub(crate) fn body(&mut self, bytes: u32, events: &mut Vec<ReplyEvent>) -> Result<(), ProtocolViolation> {
        self.unless_broken(|replies| {
            let ParserState::Body { at, len } = replies.state else { panic!("no body is wanted") };
            assert!(bytes <= len, "more arrived than was wanted");
            replies.state = ParserState::Body { at: at + bytes, len: len - bytes };
            if bytes == len { replies.end_chunk(events) } else { Ok(()) }
        })
    }

    /// Runs one step, unless a violation has occurred.
    fn unless_broken<T>(
        &mut self,
        step: impl FnOnce(&mut Self) -> Result<T, ProtocolViolation>,
    ) -> Result<T, ProtocolViolation> {
        if let Some(violation) = self.broken {
            return Err(violation);
        }
        step(self).inspect_err(|&violation| self.broken = Some(violation))
    }
}
