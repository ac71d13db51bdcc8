//! Shows which parts of a loop device were ever written, by the holes of the file behind it.
//!
//! A device reports no holes itself. Its cached pages are written to the file first, so that the file's map includes
//! them; this does not change the content.

use super::topology::{Backing, loop_of};
use crate::extent::{ByteRange, Extent, ExtentKind};
use nix::errno::Errno;
use nix::libc;
use nix::unistd::{Whence, fdatasync, lseek};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

/// Most extents of one read of the map.
const EXTENTS_MAX: usize = 256;

/// The file behind a loop device, open for reading.
#[derive(Debug)]
pub(super) struct BackingFile {
    file: File,
    /// First byte of it that the device shows.
    offset: u64,
}

impl BackingFile {
    /// `None` if `device` is no loop device on a file, or the file cannot be reached by its name any more.
    pub(super) fn of(device: &File) -> Option<Self> {
        let shown = loop_of(device.metadata().ok()?.rdev())?;
        let Backing::File { device: filesystem, inode } = shown.backing else { return None };
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&shown.path).ok()?;
        let stat = file.metadata().ok()?;
        let is_it = stat.is_file() && (stat.dev(), stat.ino()) == (filesystem, inode);
        fdatasync(device).ok()?;
        is_it.then_some(Self { file, offset: shown.offset })
    }

    /// Extents from the start of `within` on, in the device's own offsets. `None` if the file system does not tell.
    pub(super) fn map(&self, within: ByteRange) -> Option<Vec<Extent>> {
        let (mut extents, mut at) = (Vec::new(), within.start());
        while at < within.end() && extents.len() < EXTENTS_MAX {
            let extent = self.extent(at, within.end())?;
            at = extent.range.end();
            extents.push(extent);
        }
        Some(extents)
    }

    fn extent(&self, at: u64, end: u64) -> Option<Extent> {
        let extent = |stop: u64, kind| Some(Extent { range: ByteRange::new(at, stop.clamp(at + 1, end)), kind });
        match self.seek(at, Whence::SeekData) {
            Ok(data) if data > at => extent(data, ExtentKind::Hole),
            Ok(_) => {
                let hole = self.seek(at, Whence::SeekHole).ok()?;
                // A file system that makes no progress tells nothing: then all of it is data.
                extent(if hole > at { hole } else { end }, ExtentKind::Data)
            }
            Err(Errno::ENXIO) => extent(end, ExtentKind::Hole),
            Err(_) => None,
        }
    }

    fn seek(&self, at: u64, whence: Whence) -> Result<u64, Errno> {
        let position = i64::try_from(at.saturating_add(self.offset)).map_err(|_| Errno::EFBIG)?;
        Ok(lseek(&self.file, position, whence)?.unsigned_abs().saturating_sub(self.offset))
    }
}
