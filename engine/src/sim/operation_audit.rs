//! Audits the operations of one job at its devices, and asserts the rules for every operation.

use crate::extent::ByteRange;
use crate::ring::Completion;
use crate::worker::FLUSH;
use nix::errno::Errno;
use std::collections::{BTreeMap, BTreeSet};

/// The operations of one attempt. Cleared when the next one starts.
#[derive(Debug, Default)]
pub(crate) struct OperationAudit {
    pub leaf: u64,
    /// Whether the pass copies rather than compares.
    pub copying: bool,
    /// Operations pushed and not answered, and the bytes of their blocks.
    pub in_flight: u32,
    pub bytes_in_flight: u64,
    /// Bound of `bytes_in_flight`, without one leaf.
    pub window: u64,
    /// Leaves that were read from the source.
    pub touched: BTreeSet<u64>,
    /// Written bytes by leaf.
    written: BTreeMap<u64, u64>,
    /// Errors of blocks and zeros that the engine does not heal, in the order in which it reaped them.
    pub errors: Vec<Errno>,
    /// Faults of this attempt that may end it.
    pub troubles: Vec<&'static str>,
    /// Whether the source was checked and found unchanged after the last read.
    pub looked_again: bool,
    /// Whether an operation is answered never or too late.
    pub hung: bool,
    /// Number of restarts of the destination's server.
    pub restarts: u64,
}

impl OperationAudit {
    pub(crate) fn start(&mut self, leaf: u32, window: u64) {
        assert_eq!(self.in_flight, 0, "an attempt starts while operations of the one before are in flight");
        *self = Self { leaf: leaf.into(), copying: true, window, ..Self::default() };
    }

    /// Notes a pushed operation.
    pub(crate) fn pushed(&mut self, bytes: u64) {
        self.in_flight += 1;
        self.bytes_in_flight += bytes;
        let max = self.window.max(self.leaf);
        // A request for the last leaf may extend to the end of a unit of direct I/O.
        assert!(
            self.bytes_in_flight <= max.saturating_add(4096),
            "{} bytes in flight, window {max}",
            self.bytes_in_flight
        );
    }

    /// Notes an answered operation.
    pub(crate) fn answered(&mut self, bytes: u64) {
        self.in_flight -= 1;
        self.bytes_in_flight -= bytes;
    }

    /// Notes a reaped completion. The engine learns the result of a flush later, and not from its worker.
    pub(crate) fn reaped(&mut self, Completion { token, result, .. }: &Completion) {
        let is_flush = token.0 >> 32 == FLUSH;
        let error = result.err().filter(|errno| !matches!(errno, Errno::EAGAIN | Errno::EINTR | Errno::EOPNOTSUPP));
        self.errors.extend(error.filter(|_| !is_flush));
    }

    /// Notes a read of the source.
    pub(crate) fn reads(&mut self, offset: u64) {
        if self.copying {
            self.touched.insert(offset / self.leaf);
        }
    }

    /// Notes written bytes of the destination.
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
