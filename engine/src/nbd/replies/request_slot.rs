//! Tracks one request in flight: what was received for it, and where its content goes.

use super::received_ranges::ReceivedRanges;
use super::{ExpectedReply, ProtocolViolation};
use crate::nbd::MetaContexts;
use nix::errno::Errno;

/// A slot for a request.
#[derive(Debug)]
pub(super) struct RequestSlot {
    pub(super) expected: ExpectedReply,
    /// Grows with every use: answers to an earlier request of the slot are not known.
    pub(super) generation: u32,
    pub(super) is_used: bool,
    /// A chunk has come.
    pub(super) is_begun: bool,
    pub(super) error: Option<Errno>,
    arrived: ReceivedRanges,
    pub(super) has_allocation: bool,
    pub(super) has_dirty: bool,
}

impl RequestSlot {
    pub(super) fn new() -> Self {
        Self {
            expected: ExpectedReply::Nothing,
            generation: 0,
            is_used: false,
            is_begun: false,
            error: None,
            arrived: ReceivedRanges::new(),
            has_allocation: false,
            has_dirty: false,
        }
    }

    pub(super) fn reset(&mut self, expected: ExpectedReply) {
        self.expected = expected;
        (self.is_used, self.is_begun, self.error) = (true, false, None);
        (self.has_allocation, self.has_dirty) = (false, false);
        self.arrived.clear();
    }

    /// Returns the place in the buffer of a read for `len` bytes at `offset` of the export, and counts them as
    /// received.
    pub(super) fn place(&mut self, offset: u64, len: u64) -> Result<(u32, u32), ProtocolViolation> {
        let ExpectedReply::Read { offset: start, len: wanted } = self.expected else {
            unreachable!("only reads are answered with content")
        };
        let at = offset.checked_sub(start).filter(|at| at.checked_add(len).is_some_and(|end| end <= u64::from(wanted)));
        let at = at.ok_or(ProtocolViolation("a chunk out of the request's range"))?;
        self.arrived.add(at as u32, (at + len) as u32)?;
        Ok((at as u32, len as u32))
    }

    /// Returns the result of the request, whose chunks have all arrived.
    pub(super) fn outcome(&self, contexts: MetaContexts) -> Result<Result<(), Errno>, ProtocolViolation> {
        let is_answered = match self.expected {
            _ if self.error.is_some() => true,
            ExpectedReply::Read { len, .. } => self.arrived.is_all(len),
            ExpectedReply::Nothing => true,
            ExpectedReply::Status { .. } => {
                self.has_allocation == contexts.allocation.is_some() && self.has_dirty == contexts.dirty.is_some()
            }
        };
        match (is_answered, self.expected) {
            (true, _) => Ok(self.error.map_or(Ok(()), Err)),
            (false, ExpectedReply::Status { .. }) => {
                Err(ProtocolViolation("block status without an answer for every context"))
            }
            (false, _) => Err(ProtocolViolation("a read was answered with bytes missing and no error")),
        }
    }
}
