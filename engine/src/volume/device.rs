//! Implements volumes that are block devices.
//!
//! A device has a fixed size, no holes that it tells of, and nothing to reserve or share.

use super::descriptor::Descriptor;
use super::kernel_calls::size_bytes;
use super::{Allocation, Identity, ReadBack, Volume, VolumeIds, VolumeKind, VolumeName};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, Extent, ExtentKind};
use crate::ring::FileId;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;

/// An open block device.
#[derive(Debug)]
pub(crate) struct DeviceVolume {
    pub(super) descriptor: Descriptor,
    identity: Identity,
}

impl DeviceVolume {
    /// Takes over an open device.
    ///
    /// # Errors
    /// Whatever the device says to being asked for its size.
    pub(super) fn new(file: File, name: VolumeName, side: Side) -> Result<Self> {
        let refused = |errno| Error::os(side, Operation::Stat, errno, format!("ask for the size of {name}"));
        let size_bytes = size_bytes(&file).map_err(refused)?;
        let stat = file.metadata().map_err(|e| Error::io(side, Operation::Stat, &e, format!("stat {name}")))?;
        let identity = Identity {
            name: name.clone(),
            kind: VolumeKind::Device,
            device: stat.rdev(),
            inode: stat.ino(),
            born_ns: None,
            size_bytes,
            modified_ns: 0,
            changed_ns: 0,
            ids: VolumeIds::of_device(stat.rdev()),
        };
        Ok(Self { descriptor: Descriptor::new(file, name, side)?, identity })
    }

    /// Fails unless the device still reaches to `end`.
    fn check_reaches(&self, end: u64) -> Result<()> {
        let now = size_bytes(self.descriptor.file())
            .map_err(|errno| Error::os(Side::Source, Operation::Stat, errno, format!("stat {}", self.name())))?;
        if now < end { Err(changed(self.name(), self.size_bytes(), now)) } else { Ok(()) }
    }
}

fn changed(name: &VolumeName, before: u64, now: u64) -> Error {
    let message = format!("the source {name} changed: its size was {before} bytes and is {now} now");
    Error::new(Code::SourceChanged, Side::Source, Operation::Stat, message)
}

impl Volume for DeviceVolume {
    fn kind(&self) -> VolumeKind {
        VolumeKind::Device
    }

    fn size_bytes(&self) -> u64 {
        self.identity.size_bytes
    }

    fn file(&self) -> FileId {
        FileId(self.descriptor.file().as_raw_fd())
    }

    fn align_bytes(&self) -> u32 {
        self.descriptor.align_bytes()
    }

    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn extents(&self, within: ByteRange, max: usize) -> Result<Option<Vec<Extent>>> {
        self.check_reaches(within.end())?;
        let all = Extent { range: within, kind: ExtentKind::Data };
        Ok(Some(if within.is_empty() || max == 0 { Vec::new() } else { vec![all] }))
    }

    fn check_unchanged(&self) -> Result<()> {
        let now = size_bytes(self.descriptor.file())
            .map_err(|errno| Error::os(Side::Source, Operation::Stat, errno, format!("stat {}", self.name())))?;
        if now == self.size_bytes() { Ok(()) } else { Err(changed(self.name(), self.size_bytes(), now)) }
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
        let message = format!("{} is a block device: it cannot share extents with {}", self.name(), source.name());
        Err(Error::new(Code::Unsupported, Side::Destination, Operation::Clone, message).at(range.start(), range.len()))
    }

    fn accepts_dont_cache(&self) -> bool {
        self.descriptor.accepts_dont_cache()
    }

    fn evict(&self) -> Result<ReadBack> {
        self.descriptor.evict()
    }
}
