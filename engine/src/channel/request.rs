//! One request to a server: an operation of a slot on its way, or a question of the link's own.

use crate::buffer::Block;
use crate::extent::ByteRange;
use crate::limits::SLOW_ZERO_BYTES;
use crate::nbd::codec::{Command, CommandFlags, Request as Header};
use crate::nbd::link::Link;
use crate::nbd::replies::Expected;
use crate::nbd::status::Descriptors;
use crate::ring::{Completion, Instant, Op, Token, Transfer, ZeroMode};
use nix::errno::Errno;

/// An operation of a slot, or a question of the link's own.
#[derive(Debug)]
pub(super) struct Request {
    pub token: Token,
    pub what: What,
    /// Of a read or write; away while the ring has it.
    pub block: Option<Block>,
    /// First byte in the block.
    pub start: u32,
    /// Bytes.
    pub len: u32,
    /// When it was sent last.
    pub sent: Instant,
}

#[derive(Debug)]
pub(super) enum What {
    Read {
        offset: u64,
    },
    Write {
        offset: u64,
    },
    /// Zeros are asked for piece by piece; what is left.
    Zero {
        left: ByteRange,
        mode: ZeroMode,
        fast: bool,
    },
    Flush,
    Status {
        range: ByteRange,
        allocation: Option<Descriptors>,
        dirty: Option<Descriptors>,
    },
}

impl Request {
    /// What carries out an operation, at first as much of it as the server of `link` takes at a time; a read not past
    /// the export's end. The slot asks for the rest, as after any short transfer.
    pub(super) fn of(token: Token, op: Op, link: &Link) -> Self {
        let moves = |what, Transfer { block, start, len }: Transfer, most: u64| {
            let len = len.min(u32::try_from(most).unwrap_or(u32::MAX));
            Self { token, what, block: Some(block), start, len, sent: Instant::ZERO }
        };
        let asks = |what| Self { token, what, block: None, start: 0, len: 0, sent: Instant::ZERO };
        let facts = link.facts();
        let most = u64::from(facts.max_payload_bytes / facts.min_block_bytes * facts.min_block_bytes);
        match op {
            Op::Read { offset, into, .. } => {
                moves(What::Read { offset }, into, most.min(facts.size_bytes.saturating_sub(offset)))
            }
            Op::Write { offset, from, .. } => moves(What::Write { offset }, from, most),
            Op::Zero { offset, len, mode, .. } => {
                asks(What::Zero { left: ByteRange::at(offset, len), mode, fast: false })
            }
            Op::Flush { .. } => asks(What::Flush),
            Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => {
                unreachable!("those are what a wire gives to the ring")
            }
        }
    }

    /// The answer that needs no server.
    pub(super) fn answer_at_once(&self, link: &Link) -> Option<Result<u32, Errno>> {
        let flags = link.facts().flags;
        match self.what {
            What::Read { .. } | What::Write { .. } if self.len == 0 => Some(Ok(0)),
            What::Zero { .. } if !flags.can_zero() => Some(Err(Errno::EOPNOTSUPP)),
            // Written through, or trusted to have no cache.
            What::Flush if !flags.can_flush() => Some(Ok(0)),
            What::Read { .. } | What::Write { .. } | What::Zero { .. } | What::Flush | What::Status { .. } => None,
        }
    }

    /// Whether it changes the export, or what of it is on stable storage.
    pub(super) fn changes(&self) -> bool {
        match self.what {
            What::Write { .. } | What::Zero { .. } | What::Flush => true,
            What::Read { .. } | What::Status { .. } => false,
        }
    }

    /// Asks for block status.
    pub(super) fn status(range: ByteRange) -> Self {
        let what = What::Status { range, allocation: None, dirty: None };
        Self { token: Token(u64::MAX), what, block: None, start: 0, len: 0, sent: Instant::ZERO }
    }

    /// Its completion.
    pub(super) fn answered(self, result: Result<u32, Errno>) -> Completion {
        Completion { token: self.token, result, block: self.block, head: None, copied: false, more: false }
    }

    /// What goes over the wire, but for the cookie; and what comes back.
    pub(super) fn header(&mut self, link: &Link) -> (Header, Expected) {
        let flags = link.facts().flags;
        // Without a flush, every change is written through, where the server can.
        let fua = if !flags.can_flush() && flags.can_fua() { CommandFlags::FUA } else { CommandFlags::NONE };
        let none = CommandFlags::NONE;
        let header = |command, flags, offset, len| Header { command, flags, cookie: 0, offset, len };
        match &mut self.what {
            What::Read { offset } => {
                let expected = Expected::Read { offset: *offset, len: self.len };
                (header(Command::Read, none, *offset, self.len.into()), expected)
            }
            What::Write { offset } => (header(Command::Write, fua, *offset, self.len.into()), Expected::Nothing),
            What::Zero { left, mode, fast } => {
                *fast = link.zeroes_fast();
                let len = if *fast { left.len() } else { left.len().min(SLOW_ZERO_BYTES) };
                self.len = u32::try_from(len).expect("requests for zeros are bounded");
                let kept = if *mode == ZeroMode::Allocated { CommandFlags::NO_HOLE } else { CommandFlags::NONE };
                let quick = if *fast { CommandFlags::FAST_ZERO } else { CommandFlags::NONE };
                (header(Command::WriteZeroes, fua | kept | quick, left.start(), len), Expected::Nothing)
            }
            What::Flush => (header(Command::Flush, none, 0, 0), Expected::Nothing),
            What::Status { range, allocation, dirty } => {
                (*allocation, *dirty) = (None, None);
                let expected = Expected::Status { offset: range.start(), len: range.len() };
                (header(Command::BlockStatus, none, range.start(), range.len()), expected)
            }
        }
    }
}
