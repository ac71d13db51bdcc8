//! Holds one volume of a copy while it is being opened: a volume of this host, or an export.
//!
//! The differences between the two matter only here, before the first block. Afterwards it is a [`Volume`] like any
//! other.

use super::Volume;
use super::export::ExportVolume;
use super::local::LocalVolume;
use super::loop_backing::BackingFile;
use super::occupancy::{Occupied, ProbeTarget, occupied};
use crate::error::{Error, Operation, Result, Side};
use crate::extent::{ByteRange, Extent};
use crate::limits::DIRECT_ALIGN_BYTES;
use crate::spec::Direct;
use std::fs::File;
use std::sync::Arc;

/// Extents of an export in one scan.
const MAP_EXTENTS_AT_ONCE: usize = 1024;

/// An open volume that may still be asked what it is.
#[derive(Debug)]
pub(crate) enum OpenVolume {
    /// A file or device.
    Local(LocalVolume),
    /// An export.
    Export(ExportVolume),
}

impl OpenVolume {
    pub(crate) fn volume(&self) -> &dyn Volume {
        match self {
            Self::Local(local) => local.volume(),
            Self::Export(export) => export,
        }
    }

    /// The file or device; `None` if it is an export.
    pub(super) fn local(&self) -> Option<&LocalVolume> {
        match self {
            Self::Local(local) => Some(local),
            Self::Export(_) => None,
        }
    }

    /// Returns the open file of a file or device; `None` of an export.
    pub(crate) fn file(&self) -> Option<&File> {
        self.local().map(|local| local.descriptor().file())
    }

    /// Returns whether its bytes live in this host's memory only.
    pub(super) fn is_memory(&self) -> bool {
        self.local().is_some_and(LocalVolume::is_memory)
    }

    /// Returns whether the page cache is bypassed. An export never goes through it.
    pub(crate) fn is_direct(&self) -> bool {
        self.local().is_none_or(|local| local.descriptor().is_direct())
    }

    /// Returns whether it is a file that is in the page cache as good as whole.
    pub(super) fn is_cached(&self) -> bool {
        match self {
            Self::Local(LocalVolume::File(file)) => file.is_cached(),
            Self::Local(LocalVolume::Device(_)) | Self::Export(_) => false,
        }
    }

    /// Bypasses the page cache as wanted.
    ///
    /// # Errors
    /// `EUnsupported` if that is demanded and impossible.
    pub(super) fn bypass_cache(&mut self, wanted: Direct, side: Side) -> Result<()> {
        match self {
            Self::Local(local) => local.bypass_cache(wanted, side),
            Self::Export(_) => Ok(()),
        }
    }

    /// Begins to watch the times of a file that is the source of a copy.
    ///
    /// # Errors
    /// The file system does not answer.
    pub(super) fn watch(&mut self) -> Result<()> {
        match self {
            Self::Local(LocalVolume::File(file)) => file.watch(),
            Self::Local(LocalVolume::Device(_)) | Self::Export(_) => Ok(()),
        }
    }

    /// A file is not made shorter than `bytes` any more: they are those of an older copy.
    pub(crate) fn keep_bytes(&mut self, bytes: u64) {
        if let Self::Local(LocalVolume::File(file)) = self {
            file.keep_bytes(bytes);
        }
    }

    /// The bytes of `range`, which starts at a multiple of the alignment. Short only at the end of the volume.
    ///
    /// # Errors
    /// What the volume says.
    pub(crate) fn read(&self, range: ByteRange, side: Side) -> Result<Vec<u8>> {
        match self {
            Self::Local(local) => local.descriptor().read_range(range.start(), range.end()).map_err(|errno| {
                let what = self.volume().describe(Operation::Read);
                Error::os(side, Operation::Read, errno, what).at(range.start(), range.len())
            }),
            Self::Export(export) => export.read(range),
        }
    }

    /// Returns the content of a destination that is no file.
    ///
    /// # Errors
    /// What the volume says.
    pub(super) fn occupied(&self) -> Result<Option<Occupied>> {
        occupied(&ProbedVolume { end: self, backing: self.file().and_then(BackingFile::of) })
    }

    /// Opening is over.
    pub(crate) fn into_volume(self) -> Arc<dyn Volume> {
        match self {
            Self::Local(local) => local.into_volume(),
            Self::Export(export) => Arc::new(export),
        }
    }
}

/// An end as something that may hold data.
struct ProbedVolume<'a> {
    end: &'a OpenVolume,
    backing: Option<BackingFile>,
}

impl ProbeTarget for ProbedVolume<'_> {
    fn size_bytes(&self) -> u64 {
        self.end.volume().size_bytes()
    }

    fn unit_bytes(&self) -> u64 {
        self.end.volume().align_bytes().max(DIRECT_ALIGN_BYTES).into()
    }

    fn read(&self, range: ByteRange) -> Result<Vec<u8>> {
        self.end.read(range, Side::Destination)
    }

    fn map(&self, within: ByteRange) -> Result<Option<Vec<Extent>>> {
        match self.end {
            // No worker serves it yet, so that it answers at once.
            OpenVolume::Export(export) if export.tells_zeros() => export.extents(within, MAP_EXTENTS_AT_ONCE),
            OpenVolume::Export(_) => Ok(None),
            OpenVolume::Local(_) => Ok(self.backing.as_ref().and_then(|file| file.map(within))),
        }
    }
}
