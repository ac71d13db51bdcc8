//! Takes the steps of the parser: one per state, each consuming what it can of the bytes at hand.
//!
//! A step that has gathered all bytes of its state decides the next state. No step reads bytes of another state.

use super::chunk::{ChunkKind, HEAD_BYTES_MAX, Head, MAGIC_BYTES, head_bytes};
use super::{Chunk, DESCRIPTORS_MAX, ExpectedReply, ParserState, ProtocolViolation, Replies, ReplyEvent, Status};
use crate::nbd::ReplyStyle;
use crate::nbd::codec::{errno, u16_at, u32_at, u64_at};

impl Replies {
    /// Parses a part of `rest`, which starts `from` bytes into the received bytes; returns its length.
    pub(super) fn step(
        &mut self,
        rest: &[u8],
        from: usize,
        events: &mut Vec<ReplyEvent>,
    ) -> Result<usize, ProtocolViolation> {
        match self.state {
            ParserState::Head => self.take_head(rest, events),
            ParserState::Prefix => self.take_prefix(rest, events),
            ParserState::Body { at, len } => {
                let early = rest.len().min(len as usize) as u32;
                events.push(ReplyEvent::Early { index: self.chunk.index, from, at, len: early });
                self.body(early, events).map(|()| early as usize)
            }
            ParserState::Descriptors => self.take_descriptor(rest, events),
            ParserState::Message { left } => {
                let used = self.drop_payload(rest, left);
                self.state = ParserState::Message { left: left - used as u64 };
                self.after_message(events).map(|()| used)
            }
            ParserState::Suffix => self.take_suffix(rest, events),
            ParserState::Rest => {
                let used = self.drop_payload(rest, self.chunk.left);
                self.after_rest(events).map(|()| used)
            }
        }
    }

    /// Buffers until there are `need` bytes; returns how many of `rest` were used.
    fn gather(&mut self, rest: &[u8], need: usize) -> usize {
        let used = (need - self.buffered).min(rest.len());
        self.buffer[self.buffered..self.buffered + used].copy_from_slice(&rest[..used]);
        self.buffered += used;
        used
    }

    /// The `need` bytes of payload that were gathered, if they are whole; they are done with.
    fn gathered(&mut self, need: usize) -> Option<[u8; HEAD_BYTES_MAX]> {
        if self.buffered < need {
            return None;
        }
        self.buffered = 0;
        self.chunk.left -= need as u64;
        Some(self.buffer)
    }

    fn drop_payload(&mut self, rest: &[u8], most: u64) -> usize {
        let used = usize::try_from(most).map_or(rest.len(), |most| most.min(rest.len()));
        self.chunk.left -= used as u64;
        used
    }

    fn take_head(&mut self, rest: &[u8], events: &mut Vec<ReplyEvent>) -> Result<usize, ProtocolViolation> {
        let used = self.gather(rest, self.head_bytes);
        if self.buffered < self.head_bytes {
            return Ok(used);
        }
        if self.buffered == MAGIC_BYTES {
            self.head_bytes = head_bytes(self.style, u32_at(&self.buffer, 0))?;
            return Ok(used);
        }
        let head = Head::decode(&self.buffer[..self.buffered]);
        (self.buffered, self.head_bytes) = (0, MAGIC_BYTES);
        match head {
            Head::Simple { error, cookie } => self.begin_simple(error, cookie, events)?,
            Head::Chunk { cookie, offset, kind, len, is_last } => {
                let index = self.find(cookie)?;
                self.begin_chunk(index, offset)?;
                let kind = ChunkKind::check(kind, len, self.style, self.slots[index].expected)?;
                self.chunk = Chunk { index, kind, left: len, is_last };
                match kind {
                    ChunkKind::None if is_last => self.end_chunk(events)?,
                    ChunkKind::None => return Err(ProtocolViolation("an empty chunk that is not the last")),
                    _ => self.state = ParserState::Prefix,
                }
            }
        }
        Ok(used)
    }

    fn find(&self, cookie: u64) -> Result<usize, ProtocolViolation> {
        let (index, generation) = (Self::index(cookie), (cookie >> 32) as u32);
        match self.slots.get(index) {
            Some(slot) if slot.is_used && slot.generation == generation => Ok(index),
            Some(slot) if slot.generation == generation.wrapping_add(1) => {
                Err(ProtocolViolation("an answer to a request that was answered already"))
            }
            _ => Err(ProtocolViolation("an answer to a request that was not made")),
        }
    }

    /// The whole answer, but for the payload of a read.
    fn begin_simple(&mut self, error: u32, cookie: u64, events: &mut Vec<ReplyEvent>) -> Result<(), ProtocolViolation> {
        let index = self.find(cookie)?;
        let slot = &mut self.slots[index];
        if slot.is_begun {
            return Err(ProtocolViolation("a simple reply amid the chunks of another"));
        }
        slot.error = (error != 0).then(|| errno(error));
        self.chunk = Chunk { index, kind: ChunkKind::None, left: 0, is_last: true };
        match slot.expected {
            ExpectedReply::Read { .. } if self.style != ReplyStyle::Simple => {
                Err(ProtocolViolation("a simple reply to a read that is answered in chunks"))
            }
            ExpectedReply::Read { offset, len } if error == 0 && len > 0 => {
                let (at, len) = slot.place(offset, u64::from(len))?;
                self.state = ParserState::Body { at, len };
                Ok(())
            }
            _ => self.end_chunk(events),
        }
    }

    fn begin_chunk(&mut self, index: usize, offset: Option<u64>) -> Result<(), ProtocolViolation> {
        let slot = &mut self.slots[index];
        slot.is_begun = true;
        let wanted = match slot.expected {
            ExpectedReply::Read { offset, .. } | ExpectedReply::Status { offset, .. } => Some(offset),
            ExpectedReply::Nothing => None,
        };
        match (offset, wanted) {
            (Some(offset), Some(wanted)) if offset != wanted => {
                Err(ProtocolViolation("a reply with another request's offset"))
            }
            _ => Ok(()),
        }
    }

    fn take_prefix(&mut self, rest: &[u8], events: &mut Vec<ReplyEvent>) -> Result<usize, ProtocolViolation> {
        let need = self.chunk.kind.prefix_bytes();
        let used = self.gather(rest, need);
        let Some(prefix) = self.gathered(need) else { return Ok(used) };
        let slot = &mut self.slots[self.chunk.index];
        match self.chunk.kind {
            ChunkKind::None => unreachable!("it carries nothing"),
            ChunkKind::Data => {
                let (at, len) = slot.place(u64_at(&prefix, 0), self.chunk.left)?;
                self.state = ParserState::Body { at, len };
            }
            ChunkKind::Hole => {
                let len = u32_at(&prefix, 8);
                if len == 0 {
                    return Err(ProtocolViolation("a hole of no bytes"));
                }
                let (at, len) = slot.place(u64_at(&prefix, 0), u64::from(len))?;
                events.push(ReplyEvent::Hole { index: self.chunk.index, at, len });
                self.end_chunk(events)?;
            }
            ChunkKind::Status { is_wide } => {
                if is_wide && u64::from(u32_at(&prefix, 4)) * 16 != self.chunk.left {
                    return Err(ProtocolViolation("block status with a wrong count of descriptors"));
                }
                self.begin_status(u32_at(&prefix, 0), is_wide)?;
            }
            ChunkKind::Error | ChunkKind::ErrorOffset | ChunkKind::OtherError => {
                let (error, message) = (u32_at(&prefix, 0), u64::from(u16_at(&prefix, 4)));
                if error == 0 {
                    return Err(ProtocolViolation("an error chunk without an error"));
                }
                if message + self.chunk.kind.suffix_bytes() > self.chunk.left {
                    return Err(ProtocolViolation("the message of an error is longer than its chunk"));
                }
                slot.error.get_or_insert(errno(error));
                self.state = ParserState::Message { left: message };
                self.after_message(events)?;
            }
        }
        Ok(used)
    }

    fn begin_status(&mut self, context: u32, is_wide: bool) -> Result<(), ProtocolViolation> {
        let slot = &mut self.slots[self.chunk.index];
        let is_seen = match Some(context) {
            it if it == self.contexts.allocation => &mut slot.has_allocation,
            it if it == self.contexts.dirty => &mut slot.has_dirty,
            _ => return Err(ProtocolViolation("block status of a context that was not selected")),
        };
        if std::mem::replace(is_seen, true) {
            return Err(ProtocolViolation("block status of one context twice"));
        }
        let count = self.chunk.left / descriptor_bytes(is_wide) as u64;
        let extents = Vec::with_capacity(count.min(DESCRIPTORS_MAX as u64) as usize);
        self.status = Status { context, covered: 0, extents };
        self.state = ParserState::Descriptors;
        Ok(())
    }

    fn take_descriptor(&mut self, rest: &[u8], events: &mut Vec<ReplyEvent>) -> Result<usize, ProtocolViolation> {
        let is_wide = self.chunk.kind == ChunkKind::Status { is_wide: true };
        let need = descriptor_bytes(is_wide);
        let used = self.gather(rest, need);
        let Some(bytes) = self.gathered(need) else { return Ok(used) };
        let (len, flags) = match is_wide {
            true => (u64_at(&bytes, 0), u64_at(&bytes, 8)),
            false => (u64::from(u32_at(&bytes, 0)), u64::from(u32_at(&bytes, 4))),
        };
        self.add_descriptor(len, flags)?;
        if self.chunk.left == 0 {
            let Status { context, extents, .. } = std::mem::take(&mut self.status);
            events.push(ReplyEvent::Status { index: self.chunk.index, context, extents });
            self.end_chunk(events)?;
        }
        Ok(used)
    }

    /// Adds a descriptor. Only the last one may extend past the end of the request; it is cut there.
    fn add_descriptor(&mut self, len: u64, flags: u64) -> Result<(), ProtocolViolation> {
        let ExpectedReply::Status { len: wanted, .. } = self.slots[self.chunk.index].expected else {
            unreachable!("only status requests are answered with descriptors")
        };
        let status = &mut self.status;
        if len == 0 {
            return Err(ProtocolViolation("block status that does not advance"));
        }
        if status.covered >= wanted {
            return Err(ProtocolViolation("block status that goes on past the end of the request"));
        }
        let len = len.min(wanted - status.covered);
        status.covered += len;
        if status.extents.len() < DESCRIPTORS_MAX {
            status.extents.push((len, flags));
        }
        Ok(())
    }

    /// Continues after the end of a message.
    fn after_message(&mut self, events: &mut Vec<ReplyEvent>) -> Result<(), ProtocolViolation> {
        match self.state {
            ParserState::Message { left: 0 } if self.chunk.kind == ChunkKind::ErrorOffset => {
                self.state = ParserState::Suffix;
                Ok(())
            }
            ParserState::Message { left: 0 } => {
                self.state = ParserState::Rest;
                self.after_rest(events)
            }
            _ => Ok(()),
        }
    }

    fn take_suffix(&mut self, rest: &[u8], events: &mut Vec<ReplyEvent>) -> Result<usize, ProtocolViolation> {
        let need = self.chunk.kind.suffix_bytes() as usize;
        let used = self.gather(rest, need);
        let Some(bytes) = self.gathered(need) else { return Ok(used) };
        let (start, len) = match self.slots[self.chunk.index].expected {
            ExpectedReply::Read { offset, len } => (offset, u64::from(len)),
            ExpectedReply::Status { offset, len } => (offset, len),
            ExpectedReply::Nothing => (0, u64::MAX),
        };
        if u64_at(&bytes, 0).checked_sub(start).is_none_or(|at| at >= len) {
            return Err(ProtocolViolation("an error out of the request's range"));
        }
        self.state = ParserState::Rest;
        self.after_rest(events).map(|()| used)
    }

    /// Continues after the end of a chunk.
    fn after_rest(&mut self, events: &mut Vec<ReplyEvent>) -> Result<(), ProtocolViolation> {
        if self.chunk.left == 0 { self.end_chunk(events) } else { Ok(()) }
    }

    pub(super) fn end_chunk(&mut self, events: &mut Vec<ReplyEvent>) -> Result<(), ProtocolViolation> {
        self.state = ParserState::Head;
        if !self.chunk.is_last {
            return Ok(());
        }
        let index = self.chunk.index;
        let slot = &mut self.slots[index];
        let result = slot.outcome(self.contexts)?;
        slot.is_used = false;
        slot.generation = slot.generation.wrapping_add(1);
        self.reads -= usize::from(matches!(slot.expected, ExpectedReply::Read { .. }));
        self.free.push(index as u32);
        events.push(ReplyEvent::Done { index, result });
        Ok(())
    }
}

fn descriptor_bytes(is_wide: bool) -> usize {
    if is_wide { 16 } else { 8 }
}
