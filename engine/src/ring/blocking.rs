//! Carries out one operation on the calling thread.
//!
//! Used by the threads of the pool, and by inline channels: there the medium is memory, and the kernel would only pass
//! the operation to a thread of its own.

use super::{Op, Transfer, ZeroMode};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::libc::off_t;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::fdatasync;
use std::ops::Range;

impl Transfer {
    /// Returns the range of bytes of the block that the operation moves.
    pub(super) fn range(&self) -> Range<usize> {
        let start = self.start as usize;
        start..start + self.len as usize
    }
}

impl ZeroMode {
    /// Returns the flags of `fallocate` for this mode. The size of the file never changes.
    pub(super) fn flags(self) -> FallocateFlags {
        FallocateFlags::FALLOC_FL_KEEP_SIZE
            | match self {
                Self::Allocated => FallocateFlags::FALLOC_FL_ZERO_RANGE,
                Self::Hole => FallocateFlags::FALLOC_FL_PUNCH_HOLE,
            }
    }
}

/// Carries out one operation and returns the bytes moved, 0 for zero and flush. A short transfer is returned as it
/// is; an interrupted call is made again.
///
/// # Errors
/// The error of the system call.
pub(crate) fn execute(op: &mut Op) -> Result<u32, Errno> {
    match op {
        Op::Read { file, offset, into } => {
            let range = into.range();
            let (file, offset) = (file.descriptor()?, signed(*offset)?);
            uninterrupted(|| pread(file, &mut into.block[range.clone()], offset)).map(bytes)
        }
        Op::Write { file, offset, from, dont_cache: _ } => {
            let (file, offset) = (file.descriptor()?, signed(*offset)?);
            uninterrupted(|| pwrite(file, &from.block[from.range()], offset)).map(bytes)
        }
        Op::Zero { file, offset, len, mode } => {
            let (file, offset, len) = (file.descriptor()?, signed(*offset)?, signed(*len)?);
            uninterrupted(|| fallocate(file, mode.flags(), offset, len)).map(|()| 0)
        }
        Op::Flush { file } => {
            let file = file.descriptor()?;
            uninterrupted(|| fdatasync(file)).map(|()| 0)
        }
        // A peer may take any time: socket operations do not wait here.
        Op::Send { .. } | Op::Receive { .. } | Op::Writable { .. } => Err(Errno::EOPNOTSUPP),
    }
}

pub(super) fn uninterrupted<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            result => return result,
        }
    }
}

fn signed(number: u64) -> Result<off_t, Errno> {
    off_t::try_from(number).map_err(|_| Errno::EINVAL)
}

pub(super) fn bytes(count: usize) -> u32 {
    u32::try_from(count).expect("no more than the u32 that was asked for")
}
