//! Holds a file or device from its opening until it becomes a [`Volume`].
//!
//! A [`Volume`] no longer says which of the two it is. Until then the code that prepares a job can ask, and can make
//! the descriptor bypass the page cache.

use super::descriptor::Descriptor;
use super::device::DeviceVolume;
use super::file::FileVolume;
use super::inode::InodeKind;
use super::{Volume, VolumeName};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::spec::Direct;
use std::fs::File;
use std::sync::Arc;

/// An open file or device.
#[derive(Debug)]
pub(crate) enum LocalVolume {
    /// A regular file.
    File(FileVolume),
    /// A block device.
    Device(DeviceVolume),
}

impl LocalVolume {
    /// Takes over a descriptor of a known kind.
    pub(super) fn new(kind: InodeKind, file: File, name: VolumeName, side: Side) -> Result<Self> {
        Ok(match kind {
            InodeKind::File => Self::File(FileVolume::new(file, name, side)?),
            InodeKind::Device => Self::Device(DeviceVolume::new(file, name, side)?),
        })
    }

    pub(crate) fn descriptor(&self) -> &Descriptor {
        match self {
            Self::File(file) => &file.descriptor,
            Self::Device(device) => &device.descriptor,
        }
    }

    fn descriptor_mut(&mut self) -> &mut Descriptor {
        match self {
            Self::File(file) => &mut file.descriptor,
            Self::Device(device) => &mut device.descriptor,
        }
    }

    pub(crate) fn volume(&self) -> &dyn Volume {
        match self {
            Self::File(file) => file,
            Self::Device(device) => device,
        }
    }

    /// Returns both as files; `None` if either is a device.
    pub(crate) fn both_files<'a>(&'a self, other: &'a Self) -> Option<(&'a FileVolume, &'a FileVolume)> {
        match (self, other) {
            (Self::File(one), Self::File(two)) => Some((one, two)),
            (Self::File(_) | Self::Device(_), _) => None,
        }
    }

    /// Returns whether its bytes live in memory only.
    pub(crate) fn is_memory(&self) -> bool {
        matches!(self, Self::File(file) if file.descriptor.filesystem().is_memory())
    }

    /// Bypasses the page cache as wanted. What already bypasses it stays so.
    ///
    /// # Errors
    /// `EUnsupported` if that is demanded and impossible.
    pub(crate) fn bypass_cache(&mut self, wanted: Direct, side: Side) -> Result<()> {
        if wanted == Direct::No || self.descriptor().is_direct() {
            return Ok(());
        }
        match self.descriptor_mut().bypass_cache() {
            Err(errno) if wanted == Direct::Yes => {
                let what = format!("bypass the page cache for {}", self.volume().name());
                let error = Error::os(side, Operation::Open, errno, what).with_code(Code::Unsupported);
                Err(error.advise("use --direct auto to copy through the cache where it cannot be bypassed"))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Opening is over.
    pub(crate) fn into_volume(self) -> Arc<dyn Volume> {
        match self {
            Self::File(file) => Arc::new(file),
            Self::Device(device) => Arc::new(device),
        }
    }
}
