//! Audits the operations of one task as its devices see them, and asserts the rules that hold for every operation.

use crate::extent::ByteRange;
use crate::ring::Completion;
use crate::worker::FLUSH;
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// The operations of one attempt. Cleared when the next one starts.
#[derive(Debug, Default)]
pub(crate) struct OperationAudit {
    pub leaf: u64,
    /// Whether the pass copies, or compares.
    pub copying: bool,
    /// Operations pushed and not answered, and the bytes of their blocks.
    pub in_flight: u32,
    pub bytes_in_flight: u64,
    /// The most `bytes_in_flight` may become, besides one leaf.
    pub window: u64,
    /// Leaves that were read from the source.
    pub touched: BTreeSet<u64>,
    /// Leaf to bytes written of it.
    written: BTreeMap<u64, u64>,
    /// Errors of blocks and zeros in the order in which the engine got them, but not those that it heals.
    pub errors: Vec<Errno>,
    /// Faults of this attempt that may end it.
    pub troubles: Vec<&'static str>,
    /// The source was found unchanged after the last read.
    pub looked_again: bool,
    /// An operation will never be answered, or too late.
    pub hung: bool,
    /// Number of restarts of the destination's server.
    pub restarts: u64,
}

impl OperationAudit {
    pub(crate) fn start(&mut self, leaf: u32, window: u64) {
        assert_eq!(self.in_flight, 0, "an attempt starts while operations of the one before are in flight");
        *self = Self { leaf: leaf.into(), copying: true, window, ..Self::default() };
    }

    /// An operation was pushed.
    pub(crate) fn pushed(&mut self, bytes: u64) {
        self.in_flight += 1;
        self.bytes_in_flight += bytes;
        let max = self.window.max(self.leaf);
        // The last leaf may be asked for up to the end of a unit of direct I/O.
        assert!(
            self.bytes_in_flight <= max.saturating_add(4096),
            "{} bytes in flight, window {max}",
            self.bytes_in_flight
        );
    }

    /// An operation was answered.
    pub(crate) fn answered(&mut self, bytes: u64) {
        self.in_flight -= 1;
        self.bytes_in_flight -= bytes;
    }

    /// The engine takes an answer. Of a flush it hears later, and not from its worker.
    pub(crate) fn reaped(&mut self, Completion { token, result, .. }: &Completion) {
        let is_flush = token.0 >> 32 == FLUSH;
        let error = result.err().filter(|errno| !matches!(errno, Errno::EAGAIN | Errno::EINTR | Errno::EOPNOTSUPP));
        self.errors.extend(error.filter(|_| !is_flush));
    }

    /// The source is read.
    pub(crate) fn reads(&mut self, offset: u64) {
        if self.copying {
            self.touched.insert(offset / self.leaf);
        }
    }

    /// The destination took bytes.
    pub(crate) fn wrote(&mut self, offset: u64, bytes: u64) {
        assert!(self.copying, "a comparison writes");
        for piece in ByteRange::at(offset, bytes).split(self.leaf) {
            let total = self.written.entry(piece.start() / self.leaf).or_default();
            *total += piece.len();
            let most = self.leaf * (1 + self.restarts);
            assert!(*total <= most, "leaf at {} was written too often", piece.start() / self.leaf * self.leaf);
        }
    }
}
