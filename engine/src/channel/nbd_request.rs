//! Turns an operation of a slot, or a request for block status, into a request to a server.

use crate::buffer::Block;
use crate::extent::ByteRange;
use crate::limits::SLOW_ZERO_BYTES;
use crate::nbd::block_status::StatusDescriptors;
use crate::nbd::codec::{Command, CommandFlags, RequestHeader};
use crate::nbd::export_connections::ExportConnections;
use crate::nbd::replies::ExpectedReply;
use crate::ring::{Completion, Instant, Op, Token, Transfer, ZeroMode};
use nix::errno::Errno;

/// An operation of a slot, or a request of the export for block status.
#[derive(Debug)]
pub(super) struct NbdRequest {
    pub token: Token,
    pub kind: RequestKind,
    /// Block of a read or write; `None` while the ring has it.
    pub block: Option<Block>,
    /// Offset of the first byte in the block.
    pub start: u32,
    /// Length in bytes.
    pub len: u32,
    /// Time at which it was sent last.
    pub sent: Instant,
}

#[derive(Debug)]
pub(super) enum RequestKind {
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
    },
    /// Rest of a request for zeros, which is sent in pieces.
    Zero {
        left: ByteRange,
        mode: ZeroMode,
        fast: bool,
    },
    Flush,
    Status {
        range: ByteRange,
        allocation: Option<StatusDescriptors>,
        dirty: Option<StatusDescriptors>,
    },
}

impl NbdRequest {
    /// Creates the request for an operation, limited to the largest request of the server of `export`; a read also to
    /// the export's end. The slot requests the rest, as after any short transfer.
    pub(super) fn of(token: Token, op: Op, export: &ExportConnections) -> Self {
        let moves = |kind, Transfer { block, start, len }: Transfer, most: u64| {
            let len = len.min(u32::try_from(most).unwrap_or(u32::MAX));
            Self { token, kind, block: Some(block), start, len, sent: Instant::ZERO }
        };
        let asks = |kind| Self { token, kind, block: None, start: 0, len: 0, sent: Instant::ZERO };
        let facts = export.facts();
        let most = u64::from(facts.max_payload_bytes / facts.min_block_bytes * facts.min_block_bytes);
        match op {
            Op::Read { offset, into, .. } => {
                moves(RequestKind::Read { offset }, into, most.min(facts.size_bytes.saturating_sub(offset)))
            }
            Op::Write { offset, from, .. } => moves(RequestKind::Write { offset }, from, most),
            Op::Zero { offset, len, mode, .. } => {
                asks(RequestKind::Zero { left: ByteRange::at(offset, len), mode, fast: false })
            }
            Op::Flush { .. } => asks(RequestKind::Flush),
            Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => {
                unreachable!("those are what a connection gives to the ring")
            }
        }
    }

    /// Returns the result of an operation that needs no server.
    pub(super) fn answer_at_once(&self, export: &ExportConnections) -> Option<Result<u32, Errno>> {
        let flags = export.facts().flags;
        match self.kind {
            RequestKind::Read { .. } | RequestKind::Write { .. } if self.len == 0 => Some(Ok(0)),
            RequestKind::Zero { .. } if !flags.can_zero() => Some(Err(Errno::EOPNOTSUPP)),
            // Writes were written through, or the server has no cache.
            RequestKind::Flush if !flags.can_flush() => Some(Ok(0)),
            RequestKind::Read { .. }
            | RequestKind::Write { .. }
            | RequestKind::Zero { .. }
            | RequestKind::Flush
            | RequestKind::Status { .. } => None,
        }
    }

    /// Returns whether the request changes the export or its stable content.
    pub(super) fn changes(&self) -> bool {
        match self.kind {
            RequestKind::Write { .. } | RequestKind::Zero { .. } | RequestKind::Flush => true,
            RequestKind::Read { .. } | RequestKind::Status { .. } => false,
        }
    }

    /// Creates a request for block status.
    pub(super) fn status(range: ByteRange) -> Self {
        let kind = RequestKind::Status { range, allocation: None, dirty: None };
        Self { token: Token(u64::MAX), kind, block: None, start: 0, len: 0, sent: Instant::ZERO }
    }

    /// Returns the completion of the operation.
    pub(super) fn answered(self, result: Result<u32, Errno>) -> Completion {
        Completion { token: self.token, result, block: self.block, head: None, copied: false, more: false }
    }

    /// Returns the header to send, without the cookie, and the expected reply.
    pub(super) fn header(&mut self, export: &ExportConnections) -> (RequestHeader, ExpectedReply) {
        let flags = export.facts().flags;
        // Without a flush, every change is written through, where the server can.
        let fua = if !flags.can_flush() && flags.can_fua() { CommandFlags::FUA } else { CommandFlags::NONE };
        let none = CommandFlags::NONE;
        let header = |command, flags, offset, len| RequestHeader { command, flags, cookie: 0, offset, len };
        match &mut self.kind {
            RequestKind::Read { offset } => {
                let expected = ExpectedReply::Read { offset: *offset, len: self.len };
                (header(Command::Read, none, *offset, self.len.into()), expected)
            }
            RequestKind::Write { offset } => {
                (header(Command::Write, fua, *offset, self.len.into()), ExpectedReply::Nothing)
            }
            RequestKind::Zero { left, mode, fast } => {
                *fast = export.zeroes_fast();
                let len = if *fast { left.len() } else { left.len().min(SLOW_ZERO_BYTES) };
                self.len = u32::try_from(len).expect("requests for zeros are bounded");
                let kept = if *mode == ZeroMode::Allocated { CommandFlags::NO_HOLE } else { CommandFlags::NONE };
                let quick = if *fast { CommandFlags::FAST_ZERO } else { CommandFlags::NONE };
                (header(Command::WriteZeroes, fua | kept | quick, left.start(), len), ExpectedReply::Nothing)
            }
            RequestKind::Flush => (header(Command::Flush, none, 0, 0), ExpectedReply::Nothing),
            RequestKind::Status { range, allocation, dirty } => {
                (*allocation, *dirty) = (None, None);
                let expected = ExpectedReply::Status { offset: range.start(), len: range.len() };
                (header(Command::BlockStatus, none, range.start(), range.len()), expected)
            }
        }
    }
}
