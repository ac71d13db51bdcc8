//! Implements volumes that are NBD exports: a size and block status.
//!
//! A server reports nothing that distinguishes one state of an export from a later one: no times, no inode. So an
//! export is known by its canonical URI and its size, and the caller must ensure that no client writes a source.
//! Nothing locks an export either; see [`super::lock`] for what does. All of its bytes pass over its
//! [`ExportConnections`], which workers find through [`Volume::export`]: there is no descriptor that a ring could act
//! on.

use super::{Allocation, Identity, ReadBack, Volume, VolumeIds, VolumeKind, VolumeName};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, Extent};
use crate::nbd::export_connections::ExportConnections;
use crate::ring::FileId;
use std::sync::Arc;
use std::time::Duration;

/// An open export.
#[derive(Debug)]
pub(crate) struct ExportVolume {
    export: Arc<ExportConnections>,
    identity: Identity,
}

impl ExportVolume {
    /// Takes over an export that is connected.
    pub(crate) fn new(export: Arc<ExportConnections>) -> Self {
        let identity = Identity {
            name: export.name().into(),
            kind: VolumeKind::Export,
            device: 0,
            inode: 0,
            born_ns: None,
            size_bytes: export.facts().size_bytes,
            modified_ns: 0,
            changed_ns: 0,
            ids: VolumeIds::default(),
        };
        Self { export, identity }
    }

    /// The bytes of `range`, which starts at a multiple of the alignment and ends at one or at the end of the export.
    ///
    /// # Errors
    /// What the server or the network says.
    pub(super) fn read(&self, range: ByteRange) -> Result<Vec<u8>> {
        self.export.read(range)
    }

    /// Returns whether the server takes no writes.
    pub(super) fn is_read_only(&self) -> bool {
        self.export.facts().flags.is_read_only()
    }
}

impl Volume for ExportVolume {
    fn kind(&self) -> VolumeKind {
        VolumeKind::Export
    }

    fn size_bytes(&self) -> u64 {
        self.identity.size_bytes
    }

    fn file(&self) -> FileId {
        FileId(-1)
    }

    fn align_bytes(&self) -> u32 {
        self.export.facts().min_block_bytes
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn extents(&self, within: ByteRange, max: usize) -> Result<Option<Vec<Extent>>> {
        self.export.extents(within, max)
    }

    fn generation(&self) -> Option<u64> {
        Some(self.export.generation())
    }

    fn tells_zeros(&self) -> bool {
        self.export.tells_extents()
    }

    /// An export checks size and flags of each new connection, and ends the job if they differ.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }

    fn allocate(&self, _range: ByteRange) -> Result<Allocation> {
        Ok(Allocation::Unsupported)
    }

    fn resize(&self, _size_bytes: u64) -> Result<()> {
        Ok(())
    }

    fn check_in_place(&self) -> Result<()> {
        Ok(())
    }

    fn sync_parent(&self) -> Result<()> {
        Ok(())
    }

    fn clone_range(&self, source: &dyn Volume, range: ByteRange) -> Result<()> {
        let message = format!("{} is an NBD export: it cannot share extents with {}", self.name(), source.name());
        Err(Error::new(Code::Unsupported, Side::Destination, Operation::Clone, message).at(range.start(), range.len()))
    }

    fn evict(&self) -> Result<ReadBack> {
        Ok(ReadBack::Server)
    }

    fn stop(&self, limit: Duration) -> bool {
        self.export.stop(limit)
    }

    fn export(&self) -> Option<&Arc<ExportConnections>> {
        Some(&self.export)
    }
}

/// The refusal of a destination that its server shows for reading only.
pub(super) fn read_only_export(name: &VolumeName) -> Error {
    let message = format!("the destination {name} is a read-only export");
    let error = Error::new(Code::ReadOnly, Side::Destination, Operation::Open, message);
    error.advise("let its server export it for writing, or name another")
}
