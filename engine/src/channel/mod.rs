//! Makes the operations on one volume and turns their failures into errors.
//!
//! There are three [kinds](ChannelKind) of channels. The operations of most of them go to the worker's ring. Those of a
//! channel to an export become requests to a server, over the [NBD connections](NbdConnections) of each worker. Those
//! of an _inline_ channel are system calls that the worker makes itself, at submission. A channel is inline only if its
//! medium is memory (tmpfs): there a call cannot stall, and a ring would hand each operation to a thread of the kernel.
//!
//! A channel keeps its volume, and with it the descriptor and the destination's lock, for as long as any worker has the
//! pass. A worker drops a pass only when no operation of it is in flight. When all workers have, the channel has
//! stopped.

mod active_session;
mod nbd_request;
mod nbd_connection;
mod nbd_connections;
mod transfer_fault;

pub(crate) use nbd_connections::{ConnectionOp, NbdConnections};
pub(crate) use transfer_fault::TransferFault;

use crate::error::{Code, Effect, Error, Operation, Side};
use crate::extent::ByteRange;
use crate::nbd::export_connections::ExportConnections;
use crate::ring::{FileId, Op, Transfer, ZeroMode};
use crate::volume::{Volume, zero_align};
use crate::write_gate::WriteGate;
use std::sync::Arc;

/// Kind of a channel: where its operations start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChannelKind {
    /// In the worker's ring.
    Ring,
    /// At once, on the worker.
    Inline,
    /// As requests over the worker's connection to a server.
    Nbd,
}

/// A channel to one volume.
#[derive(Debug)]
pub(crate) struct Channel {
    pub kind: ChannelKind,
    /// Requests start and end at multiples of this many bytes.
    pub align: u32,
    /// Alignment of requests for zeros; see [`zero_align`].
    pub zero_align: u64,
    file: FileId,
    /// Whether the page cache is to drop what was written.
    dont_cache: bool,
    side: Side,
    /// Keeps the descriptor open.
    volume: Arc<dyn Volume>,
}

impl Channel {
    pub(crate) fn new(side: Side, volume: &Arc<dyn Volume>, kind: ChannelKind) -> Self {
        let kind = match volume.export() {
            Some(export) => {
                export.add_channel();
                ChannelKind::Nbd
            }
            None => kind,
        };
        Self {
            kind,
            align: volume.align_bytes(),
            zero_align: zero_align(&**volume),
            file: volume.file(),
            dont_cache: kind == ChannelKind::Ring && side == Side::Destination && volume.accepts_dont_cache(),
            side,
            volume: Arc::clone(volume),
        }
    }

    /// Returns the export of the channel, if it has one.
    pub(crate) fn export(&self) -> Option<Arc<ExportConnections>> {
        self.volume.export().map(Arc::clone)
    }

    pub(crate) fn side(&self) -> Side {
        self.side
    }

    /// Returns [`Volume::generation`]; 0 for volumes that lose nothing.
    pub(crate) fn generation(&self) -> u64 {
        self.volume.generation().unwrap_or(0)
    }

    /// Returns whether a gated worker holds back an operation on this destination: a ring operation until the ring
    /// submits, an inline one only while the gate is closed. A connection checks the gate itself.
    pub(crate) fn is_held(&self, gate: &WriteGate) -> bool {
        match self.kind {
            ChannelKind::Ring => true,
            ChannelKind::Inline => !gate.is_open(),
            ChannelKind::Nbd => false,
        }
    }

    pub(crate) fn read(&self, offset: u64, into: Transfer) -> Op {
        Op::Read { file: self.file, offset, into }
    }

    pub(crate) fn write(&self, offset: u64, from: Transfer) -> Op {
        Op::Write { file: self.file, offset, from, dont_cache: self.dont_cache }
    }

    pub(crate) fn zero(&self, range: ByteRange, mode: ZeroMode) -> Op {
        Op::Zero { file: self.file, offset: range.start(), len: range.len(), mode }
    }

    pub(crate) fn flush(&self) -> Op {
        Op::Flush { file: self.file }
    }

    /// Returns the error for an operation that failed.
    pub(crate) fn fault(&self, operation: Operation, range: ByteRange, fault: TransferFault) -> Error {
        if let Some(failure) = self.volume.export().and_then(|export| export.failure()) {
            // The cause is the failure of the export; this operation is only the first one to fail with it.
            return Error { operation, ..failure }.at(range.start(), range.len());
        }
        let what = format!("{operation} {}", self.volume.name());
        let error = match (fault, operation, self.side) {
            (TransferFault::Os(errno), ..) => Error::os(self.side, operation, errno, what),
            (TransferFault::NoProgress, Operation::Read, Side::Source) => {
                let message = format!("{what}: it ended before byte {}, it is shorter than at the start", range.end());
                Error::new(Code::SourceChanged, self.side, operation, message)
            }
            (TransferFault::NoProgress, ..) => {
                Error::new(Code::Io, self.side, operation, format!("{what}: no byte was moved"))
            }
        };
        let effect = if operation == Operation::Read { Effect::NotApplied } else { Effect::Unknown };
        Error { effect, ..error.at(range.start(), range.len()) }
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(export) = self.volume.export() {
            export.remove_channel();
        }
    }
}
