//! Defines the seam between the engine and the code that carries out its operations.
//!
//! A [`Ring`] belongs to one worker. Operations are queued with [`Ring::push`], started and waited for with
//! [`Ring::submit_and_wait`], and come back through [`Ring::reap`], each exactly once. Three backends: `uring`
//! (io_uring), `threads` (a small pool of pread/pwrite threads, when io_uring is denied) and `sim` (seeded faults, in
//! tests).
//!
//! **Ownership is the protocol.** An operation owns its [`Block`] from `push` until its [`Completion`] returns it. No
//! code can read, write, re-use or free a buffer that the kernel may still touch, because no code has it. A ring that
//! is dropped with operations in flight leaks their blocks, and with them the arena, instead of freeing them.

pub(crate) mod blocking;
#[cfg(test)]
mod contract_tests;
mod inflight;
pub(crate) mod setup;
#[cfg(test)]
pub(crate) mod sim;
pub(crate) mod threads;
pub(crate) mod uring;

use crate::buffer::Block;
use nix::errno::Errno;
use std::io;
use std::time::Duration;

/// The file an operation acts on: a descriptor number (or an index into the simulated world). The code that pushes an
/// operation keeps the volume open until the completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileId(pub(crate) i32);

/// Time since the ring's clock started. Only differences mean anything.
pub(crate) type Instant = Duration;

/// Returns the time of all real rings and of the threads that talk to their workers: monotonic, since the first call.
pub(crate) fn clock() -> Instant {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}

/// Identifies the completion of an operation to its owner. Opaque to rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Token(pub(crate) u64);

/// A part of a block that an operation fills or drains.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// Owned by the operation until it completes.
    pub block: Block,
    /// Offset of the first byte within the block.
    pub start: u32,
    /// Length in bytes. Never 0, never past the block's end.
    pub len: u32,
}

/// Allocation of a range that is turned into zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZeroMode {
    /// Zeros that stay allocated.
    Allocated,
    /// Zeros without allocation.
    Hole,
}

/// One operation.
#[derive(Debug)]
pub(crate) enum Op {
    /// Read into the transfer from `offset` on. Completes with the bytes read; 0 at the end of the file.
    Read { file: FileId, offset: u64, into: Transfer },
    /// Write the transfer at `offset`. Completes with the bytes written.
    Write {
        file: FileId,
        offset: u64,
        from: Transfer,
        /// Have the page cache start to write the bytes at once, and drop them when they are written. Only for volumes
        /// that accept it: see [`crate::volume::Volume::accepts_dont_cache`]. The threads that replace a ring keep the bytes
        /// in the cache.
        dont_cache: bool,
    },
    /// Make `offset..offset + len` read as zeros without changing the size. Completes with 0.
    Zero { file: FileId, offset: u64, len: u64, mode: ZeroMode },
    /// Make every write that completed before this was pushed durable. Completes with 0.
    Flush { file: FileId },
    /// Send every byte of `head`, then of `body`, through a stream socket. Completes with the bytes sent: less than all
    /// of them only if the connection broke or the kernel gave up early; the owner sends the rest. Of two sends through
    /// one socket at a time, bytes mix.
    Send {
        /// A connected stream socket. `shutdown(2)` ends what is pending on it.
        file: FileId,
        head: Transfer,
        body: Option<Transfer>,
        /// Send without a copy where the network can read the blocks themselves. The blocks are returned when the
        /// network has released them; [`Completion::copied`] tells whether a copy was made all the same. `shutdown(2)`
        /// does not release bytes that the network has and the peer has not received: a reset does, which is
        /// `SO_LINGER` of 0 and then closing every descriptor.
        zero_copy: bool,
        /// Wait for room in the socket until every byte is sent. Otherwise only the bytes that fit now are sent, and
        /// with no room the result is `EAGAIN`; the rest is not sent later. Not together with `zero_copy`.
        waits: bool,
    },
    /// Wait until a stream socket accepts bytes or has failed. Completes with any number.
    Writable { file: FileId },
    /// Receive from a stream socket into `head`, then into `body`, of which at least one is given. Completes with the
    /// bytes received; 0 is the peer's end. Of two receives from one socket at a time, each gets some bytes.
    Receive {
        /// As for a send.
        file: FileId,
        head: Option<Transfer>,
        body: Option<Transfer>,
        /// Wait for every byte, or the connection's end; else for at least one byte.
        all: bool,
    },
}

/// The answer to one operation.
#[derive(Debug)]
pub(crate) struct Completion {
    /// As pushed.
    pub token: Token,
    /// Bytes moved (0 for zero and flush), or the error.
    pub result: Result<u32, Errno>,
    /// The returned block of a read or write, or of the body of a send or receive.
    pub block: Option<Block>,
    /// The returned block of the head of a send or receive.
    pub head: Option<Block>,
    /// Whether the kernel made a copy in spite of `zero_copy`: then zero copy is of no use on this connection.
    pub copied: bool,
    /// Whether this is the first of two completions of a zero-copy send: the network has every byte and still reads the
    /// blocks. The second completion returns them.
    pub more: bool,
}

impl Completion {
    /// Creates the completion of `op`, with its memory.
    pub(crate) fn of(token: Token, op: Op, result: Result<u32, Errno>) -> Self {
        let block = |transfer: Transfer| transfer.block;
        let (head, block) = match op {
            Op::Read { into: transfer, .. } | Op::Write { from: transfer, .. } => (None, Some(transfer.block)),
            Op::Zero { .. } | Op::Flush { .. } | Op::Writable { .. } => (None, None),
            Op::Send { head, body, .. } => (Some(head.block), body.map(block)),
            Op::Receive { head, body, .. } => (head.map(block), body.map(block)),
        };
        Self { token, result, block, head, copied: false, more: false }
    }
}

/// A queue of operations of one worker. The module's head describes the ownership of blocks.
pub(crate) trait Ring {
    /// Queues an operation. Nothing starts before [`Ring::submit_and_wait`].
    ///
    /// # Panics
    /// If more operations are in flight than the ring was made for: its owner counts its slots.
    fn push(&mut self, token: Token, op: Op);

    /// Starts everything queued and waits until `want` completions can be reaped or `limit` has passed. `want` is
    /// clamped to the operations in flight; with 0 it does not wait. Returning early is allowed.
    ///
    /// # Errors
    /// The ring itself is broken; operations that were started are still counted as in flight.
    fn submit_and_wait(&mut self, want: usize, limit: Duration) -> io::Result<()>;

    /// Returns the next completion, if one has arrived.
    fn reap(&mut self) -> Option<Completion>;

    /// Returns the number of operations pushed and not yet reaped.
    fn in_flight(&self) -> usize;

    /// Sets how many operations are late, that is not answered in the usual time. A ring that carries operations out in
    /// threads adds as many threads: otherwise all of its few threads could wait for one device, and all other
    /// operations for them.
    fn tolerate_late(&mut self, unanswered: usize);

    /// Returns the time of the ring's clock.
    fn now(&self) -> Instant;

    /// Returns the number of system calls made so far.
    fn syscalls(&self) -> u64;
}
