//! Wraps the few kernel calls about volumes that no safe wrapper offers.
//!
//! These calls are the only unsafe code of the volumes. Each one passes a descriptor that its caller borrows for the
//! call, and memory that lives on this stack or in a slice. The kernel keeps nothing of either after it has returned.

use crate::extent::ByteRange;
use nix::errno::Errno;
use nix::libc;
use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

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

/// Returns whether the kernel refuses writes to a block device.
pub(super) fn is_read_only(file: &File) -> Result<bool, Errno> {
    let mut flag: libc::c_int = 0;
    // SAFETY: `file` keeps the descriptor open; the kernel writes one int into `flag` before it returns.
    unsafe { calls::blkroget(file.as_raw_fd(), &raw mut flag) }?;
    Ok(flag != 0)
}

/// Returns the backing of a loop device; `ENXIO` if there is none.
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
    // SAFETY: `file` keeps the descriptor open; the kernel writes one fsuuid2 (17 bytes), which `FileSystemUuid` has
    // the layout and size of, before it returns.
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

/// Returns the alignment of offsets and lengths of direct I/O: `Some(0)` where the file system has none,
/// `None` where the kernel does not say.
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

/// Returns whether the file system of `file` accepts `RWF_DONTCACHE`. Reads one byte, as the kernel looks at the flag before it
/// looks whether there is one. A file that cannot be read counts as one that does not accept it.
pub(super) fn accepts_dont_cache(file: &File) -> bool {
    let mut byte = 0_u8;
    let vector = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    // SAFETY: `file` keeps the descriptor open; the kernel writes at most one byte into `byte` before it returns.
    let result = unsafe { libc::preadv2(file.as_raw_fd(), &raw const vector, 1, 0, libc::RWF_DONTCACHE) };
    Errno::result(result).is_ok()
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

/// Returns the number of pages of `file` in the page cache. `ENOSYS` before Linux 6.5.
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
