//! Block devices, and the few kernel calls about volumes that no safe wrapper offers.
//!
//! A device has a fixed size, no holes that it tells of, and nothing to reserve or share. The calls at the bottom are
//! the only unsafe code of this module: each one passes a descriptor that its caller borrows for the call, and memory
//! that lives on this stack or in a slice, of which the kernel keeps nothing after it has returned.

use super::descriptor::Descriptor;
use super::{Allocation, Identity, ReadBack, Volume, VolumeIds, VolumeKind, VolumeName};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, Extent, ExtentKind};
use crate::ring::FileId;
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
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

    fn evict(&self) -> Result<ReadBack> {
        self.descriptor.evict()
    }
}

mod calls {
    use nix::libc::{c_int, file_clone_range, size_t};

    nix::ioctl_read!(blkgetsize64, 0x12, 114, size_t);
    nix::ioctl_read_bad!(blkroget, nix::request_code_none!(0x12, 94), c_int);
    nix::ioctl_read_bad!(blksszget, nix::request_code_none!(0x12, 104), c_int);
    nix::ioctl_write_ptr!(ficlonerange, 0x94, 13, file_clone_range);
    nix::ioctl_read!(fs_ioc_getfsuuid, 0x15, 0, super::FileSystemUuid);
    nix::ioctl_read_bad!(loop_get_status64, 0x4c05, super::LoopStatus);
}

/// `struct fsuuid2` of linux/fs.h.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct FileSystemUuid {
    length: u8,
    bytes: [u8; 16],
}

/// `struct loop_info64` of linux/loop.h: what a loop device lies on.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct LoopStatus {
    /// Device number of the backing file's file system.
    pub device: u64,
    /// Inode of the backing file.
    pub inode: u64,
    /// Device number of the backing device; 0 for a file.
    pub rdevice: u64,
    /// First byte of the backing file that the device shows.
    pub offset: u64,
    /// Bytes of it that the device shows at most; 0 for all.
    pub size_limit: u64,
    rest: [u64; 24],
}

/// Size of a block device in bytes.
pub(super) fn size_bytes(file: &File) -> Result<u64, Errno> {
    let mut size: libc::size_t = 0;
    // SAFETY: `file` keeps the descriptor open; the kernel writes one size_t into `size` before it returns.
    unsafe { calls::blkgetsize64(file.as_raw_fd(), &raw mut size) }?;
    Ok(size as u64)
}

/// Bytes of a logical sector, the unit of direct I/O.
pub(super) fn sector_bytes(file: &File) -> Result<u32, Errno> {
    let mut size: libc::c_int = 0;
    // SAFETY: `file` keeps the descriptor open; the kernel writes one int into `size` before it returns.
    unsafe { calls::blksszget(file.as_raw_fd(), &raw mut size) }?;
    u32::try_from(size).map_err(|_| Errno::EINVAL)
}

/// Whether the kernel refuses writes to a block device.
pub(super) fn is_read_only(file: &File) -> Result<bool, Errno> {
    let mut flag: libc::c_int = 0;
    // SAFETY: `file` keeps the descriptor open; the kernel writes one int into `flag` before it returns.
    unsafe { calls::blkroget(file.as_raw_fd(), &raw mut flag) }?;
    Ok(flag != 0)
}

/// What a loop device lies on; `ENXIO` if on nothing.
pub(super) fn loop_status(file: &File) -> Result<LoopStatus, Errno> {
    let mut status = LoopStatus { device: 0, inode: 0, rdevice: 0, offset: 0, size_limit: 0, rest: [0; 24] };
    // SAFETY: `file` keeps the descriptor open; the kernel writes one loop_info64 (232 bytes), which `LoopStatus` has
    // the layout and size of, before it returns.
    unsafe { calls::loop_get_status64(file.as_raw_fd(), &raw mut status) }?;
    Ok(status)
}

const _: () = assert!(size_of::<LoopStatus>() == 232, "struct loop_info64");

/// The UUID of the file system that a regular file is in. Kernels before 6.9 do not tell.
pub(super) fn file_system_uuid(file: &File) -> Result<Vec<u8>, Errno> {
    let mut uuid = FileSystemUuid { length: 0, bytes: [0; 16] };
    // SAFETY: `file` keeps the descriptor open; the kernel writes one fsuuid2 (17 bytes), which `FileSystemUuid` has the
    // layout and size of, before it returns.
    unsafe { calls::fs_ioc_getfsuuid(file.as_raw_fd(), &raw mut uuid) }?;
    Ok(uuid.bytes.get(..usize::from(uuid.length)).unwrap_or_default().to_vec())
}

const _: () = assert!(size_of::<FileSystemUuid>() == 17, "struct fsuuid2");

/// Shares `range` of `source` at the same place of `destination`.
pub(crate) fn clone_range(destination: &File, source: RawFd, range: ByteRange) -> Result<(), Errno> {
    let request = libc::file_clone_range {
        src_fd: i64::from(source),
        src_offset: range.start(),
        src_length: range.len(),
        dest_offset: range.start(),
    };
    // SAFETY: both descriptors are kept open by the volumes that the caller borrows; the kernel only reads `request`.
    unsafe { calls::ficlonerange(destination.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// What offsets and lengths of direct I/O must be multiples of: `Some(0)` where the file system has none, `None` where
/// the kernel does not say.
pub(super) fn direct_align_bytes(file: &File) -> Option<u32> {
    // SAFETY: all-zero bytes are a valid `statx`, which consists of integers only.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: `file` keeps the descriptor open, the path is an empty C string, and the kernel writes one `statx` into
    // `answer` before it returns.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &raw mut answer)
    };
    (result == 0 && answer.stx_mask & libc::STATX_DIOALIGN != 0).then_some(answer.stx_dio_offset_align)
}

/// Writes `bytes` at `offset` if that needs no waiting. Tells, on a file whose bytes do not matter, whether a ring's
/// buffered writes would be handed to a kernel worker (`EAGAIN`, `EOPNOTSUPP`).
pub(crate) fn write_without_waiting(file: &File, bytes: &[u8], offset: u64) -> Result<usize, Errno> {
    let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EFBIG)?;
    // SAFETY: `file` keeps the descriptor open; the kernel reads `bytes` through the one vector and has copied them
    // when it returns, as the descriptor is buffered.
    let result = unsafe { libc::pwritev2(file.as_raw_fd(), &raw const vector, 1, offset, libc::RWF_NOWAIT) };
    Errno::result(result).map(isize::unsigned_abs)
}

/// `struct cachestat_range` of linux/mman.h.
#[repr(C)]
struct CacheRange {
    offset: u64,
    /// 0: to the end.
    length: u64,
}

/// `struct cachestat` of linux/mman.h.
#[repr(C)]
#[derive(Default)]
struct CacheStatus {
    cached: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// `__NR_cachestat`, the same for every architecture that Linux 6.5 had.
const CACHESTAT: libc::c_long = 451;

/// How many pages of `file` are in the page cache. `ENOSYS` before Linux 6.5.
pub(super) fn cached_pages(file: &File) -> Result<u64, Errno> {
    let (range, mut status) = (CacheRange { offset: 0, length: 0 }, CacheStatus::default());
    // SAFETY: `file` keeps the descriptor open; the kernel reads `range` and writes one `cachestat` (five u64) into
    // `status` before it returns.
    let result = unsafe { libc::syscall(CACHESTAT, file.as_raw_fd(), &raw const range, &raw mut status, 0) };
    Errno::result(result).map(|_| status.cached)
}

/// Has a network file system ask its server for the attributes of `file`, which a later `fstat` gives.
pub(super) fn refresh_attributes(file: &File) {
    // SAFETY: all-zero bytes are a valid `statx`, which consists of integers only.
    let mut answer: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_FORCE_SYNC;
    // SAFETY: `file` keeps the descriptor open, the path is an empty C string, and the kernel writes one `statx` into
    // `answer` before it returns. What fails here fails in `fstat`, too, which says so.
    _ = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), flags, libc::STATX_BASIC_STATS, &raw mut answer) };
}
