//! Opens, locks, refuses and probes volumes: addressable bytes with a size.
//!
//! [`Volume`] is what the rest of the engine knows of one: everything a job must ask or change besides moving blocks.
//! Blocks move through a ring, which acts on [`Volume::file`], or over the connections of [`Volume::export`]. Opening,
//! locking, refusing and probing happen once, at the start of a job, in `open_copy` and `route`.
//!
//! The kind of a volume is asked for only while a job is prepared: where its volumes are opened and checked (here and
//! in `job::start`, `job::resolved_supervision` and `job::compare`), where its pass is built (`job::prepared_pass`:
//! space is reserved in files only), and where a channel, the rate and the protection look whether there is an export.
//! No worker asks while blocks move: the channel has decided how its operations are submitted.

mod loop_backing;
mod block_size;
mod descriptor;
mod destination;
mod device;
mod kernel_calls;
mod open_volume;
mod open_mode;
mod export;
mod file;
pub(crate) mod filesystem;
mod identity;
mod persistent_ids;
mod changes_check;
mod local;
mod locator;
mod lock;
mod given_volumes;
mod name;
mod inode;
mod occupancy;
mod open_copy;
mod open_for_reading;
mod resume_check;
pub(crate) mod route;
mod overlap;
mod signature;
mod free_space;
mod stream_check;
#[cfg(test)]
pub(crate) mod support;
#[cfg(test)]
mod tests;
mod topology;

pub use crate::nbd::{ListedExport, NbdUri, list_exports};
pub use block_size::{usual_block, usual_depth};
pub use destination::refuse_kernel_directory;
pub use identity::Identity;
pub use locator::Locator;
pub use name::VolumeName;
pub use occupancy::Occupied;
pub use open_copy::{ExportFound, look_at_export};
pub use open_for_reading::{ReadOptions, open_source};
pub(crate) use open_for_reading::{open_source_by, open_verified_by, open_verified_end};
pub use overlap::refuse_file_of;
pub use persistent_ids::VolumeIds;
pub use stream_check::StandardStream;

pub(crate) use block_size::{choose_block, refuse_block};
pub(crate) use changes_check::{refuse_unfinished_copy, source_identity};
pub(crate) use descriptor::Descriptor;
pub(crate) use destination::may_keep;
pub(crate) use free_space::{free_bytes, refuse_full};
pub(crate) use given_volumes::GivenVolumes;
pub(crate) use identity::IdentityMatch;
pub(crate) use kernel_calls::{clone_range, write_without_waiting};
pub(crate) use lock::LockWait;
pub(crate) use open_copy::OpenedCopy;
pub(crate) use open_mode::OpenMode;
pub(crate) use open_volume::OpenVolume;
pub(crate) use persistent_ids::IDS_BYTES_MAX;
pub(crate) use resume_check::{UnprovenIdentity, is_destination, refuse_changed_source, refuse_other};
pub(crate) use route::{KnownZero, Route, bypass_caches, expected_route, open_unnamed, probe, refuse_contradiction};
pub(crate) use stream_check::refuse_streams;

use crate::error::{Operation, Result, Side};
use crate::extent::{ByteRange, Extent};
use crate::limits::DIRECT_ALIGN_BYTES;
use crate::nbd::export_connections::ExportConnections;
use crate::ring::FileId;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Backing of a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum VolumeKind {
    /// A regular file.
    File,
    /// A block device.
    Device,
    /// An NBD export: what a server shows of a volume of its own.
    Export,
}

/// Whether a range could be reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// The range is reserved and reads as before (zeros where nothing was written).
    Reserved,
    /// The volume cannot reserve space; writes allocate as they go.
    Unsupported,
}

/// An open volume.
///
/// All methods may block the calling thread and are called from job threads only, never from workers. The descriptor
/// behind [`Volume::file`] stays open, and any lock it carries stays held, for as long as the value lives: the code
/// that queues operations on it keeps the value until the kernel has answered all of them.
pub trait Volume: Send + Sync + fmt::Debug {
    /// Returns its name in messages: the absolute path or URI.
    fn name(&self) -> &VolumeName {
        &self.identity().name
    }

    /// File, device or export.
    fn kind(&self) -> VolumeKind;

    /// Size in bytes when it was opened (or last resized by [`Volume::resize`]).
    fn size_bytes(&self) -> u64;

    /// Returns the descriptor that rings act on. Of an export -1, which no ring takes: see [`Volume::export`].
    fn file(&self) -> FileId;

    /// Offsets and lengths of operations on [`Volume::file`] must be multiples of this many bytes: 1 through the page
    /// cache, a power of two up to 4096 with `O_DIRECT`, a power of two up to 64 KiB of an export (whose last request
    /// may end where the export does).
    fn align_bytes(&self) -> u32;

    /// Returns its identity when it was opened.
    fn identity(&self) -> &Identity;

    /// Returns at most `max` extents of `within`, in order and without gaps, the first one starting where `within`
    /// does, the last one ending there or earlier. Empty only if `within` is. Volumes that cannot tell report data.
    ///
    /// `None`: a request to the server is pending; call again with the same range soon. Only exports that workers serve
    /// return it, as the workers send the request: a caller that gets `None` wakes them. A reply is never older than
    /// the first call for it, nor than [`Volume::generation`] at that time.
    ///
    /// # Errors
    /// The scan failed; an offset past the end means the source shrank (`ESourceChanged`).
    fn extents(&self, within: ByteRange, max: usize) -> Result<Option<Vec<Extent>>>;

    /// Grows whenever what was acknowledged and not flushed may have been lost: a server that is connected to again
    /// may have been restarted. It grows before anything is acknowledged after the loss. `None`: the volume keeps what
    /// it has acknowledged for as long as this host runs.
    fn generation(&self) -> Option<u64> {
        None
    }

    /// Returns whether [`Volume::extents`] of a destination says which ranges read as zeros already.
    fn tells_zeros(&self) -> bool {
        false
    }

    /// Compares size, modification and change time with those at the start, and looks for the end of a file where it
    /// has to be.
    ///
    /// # Errors
    /// `ESourceChanged`, saying what changed.
    fn check_unchanged(&self) -> Result<()>;

    /// Reads where a file has to end: its size may be less than what can be read of it. Devices and exports end where
    /// they say.
    ///
    /// # Errors
    /// `ESourceChanged`, whichever `side` it is, if there is more; the read failed.
    fn check_end(&self, side: Side) -> Result<()> {
        let _ = side;
        Ok(())
    }

    /// Reserves `range` without changing what it reads.
    ///
    /// # Errors
    /// `ENoSpace` and whatever else the volume says, but not that it cannot.
    fn allocate(&self, range: ByteRange) -> Result<Allocation>;

    /// Sets the size of a file. Devices and exports are left alone.
    ///
    /// # Errors
    /// As the file system says.
    fn resize(&self, size_bytes: u64) -> Result<()>;

    /// Checks that the name of a file still leads to it. A device is known by its number, whatever its node is called.
    ///
    /// # Errors
    /// `ENotFound` if the file was removed, renamed or replaced: its bytes are not under its name any more.
    fn check_in_place(&self) -> Result<()>;

    /// Makes the directory entry of a created file durable. A device has none.
    ///
    /// # Errors
    /// As the file system says.
    fn sync_parent(&self) -> Result<()>;

    /// Shares `range` of `source` at the same place here. `range` starts at a multiple of the file system's block and
    /// ends at one or at the end of the source.
    ///
    /// # Errors
    /// `EUnsupported` where the two volumes cannot share.
    fn clone_range(&self, source: &dyn Volume, range: ByteRange) -> Result<()>;

    /// Returns whether writes may ask the page cache to drop what was written (`RWF_DONTCACHE`: Linux 6.14, and the file
    /// system must know it). Past the page cache it would say nothing.
    fn accepts_dont_cache(&self) -> bool {
        false
    }

    /// Evicts cached pages, as far as the volume can, so that later reads come from the device; returns their source.
    ///
    /// # Errors
    /// As the file system says.
    fn evict(&self) -> Result<ReadBack>;

    /// Ends the connections of the volume, after its last operation was made: sends a disconnect request to a server
    /// and waits up to `limit` for it to close. With a limit of zero operations may still be in flight: then
    /// connections are reset. Returns `false` if a request may still take effect. Called once.
    fn stop(&self, limit: Duration) -> bool {
        let _ = limit;
        true
    }

    /// The connections to its server, where it has one: workers act on those, and not on [`Volume::file`].
    fn export(&self) -> Option<&Arc<ExportConnections>> {
        None
    }

    /// A name for the operation on this volume in messages: "write /dev/sdb".
    fn describe(&self, operation: Operation) -> String {
        format!("{operation} {}", self.name())
    }
}

/// Requests for zeros start and end at multiples of this. A device refuses parts of sectors, also where the page cache
/// in front of it takes writes of any length; a file takes any range; an export says what it takes.
pub(crate) fn zero_align(volume: &dyn Volume) -> u64 {
    match volume.kind() {
        VolumeKind::File => 1,
        VolumeKind::Device => u64::from(volume.align_bytes().max(DIRECT_ALIGN_BYTES)),
        VolumeKind::Export => u64::from(volume.align_bytes()),
    }
}

/// Source of the bytes of a verification.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadBack {
    /// The device, past the page cache.
    Device,
    /// The device, as the cache was dropped first: the kernel has said that nothing of the volume was left in it.
    Evicted,
    /// Memory, at least in part: the volume is in memory (tmpfs), the cache kept pages that a process uses, or the
    /// kernel (before Linux 6.5) does not report whether pages were evicted.
    Memory,
    /// A server, which may answer from its memory.
    Server,
}
