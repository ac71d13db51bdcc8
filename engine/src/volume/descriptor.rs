//! Owns the one descriptor of a volume and switches it between direct and buffered I/O.
//!
//! A destination is never opened twice: its lock belongs to the open file, and closing a second descriptor late or
//! early would change what that lock covers. So `O_DIRECT` is switched on the descriptor itself.
//! [`Descriptor::align_bytes`] is right for whichever mode the descriptor is in.

use super::filesystem::FileSystem;
use super::kernel_calls::{accepts_dont_cache, cached_pages, direct_align_bytes, sector_bytes};
use super::{ReadBack, VolumeName};
use crate::error::{Error, Operation, Result, Side};
use crate::limits::DIRECT_ALIGN_BYTES;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, PosixFadviseAdvice, fcntl, posix_fadvise};
use nix::sys::uio::pread;
use std::fs::File;

/// Attempts to evict: pages that another process is just reading may be evicted at the second attempt.
const EVICT_TRIES: usize = 3;

/// An open file or device with its name.
#[derive(Debug)]
pub(crate) struct Descriptor {
    file: File,
    name: VolumeName,
    filesystem: FileSystem,
    align_bytes: u32,
}

impl Descriptor {
    /// Takes over an open, buffered file. It may have been opened with `O_NONBLOCK`, which ends here: a ring would
    /// fail operations with `EAGAIN` where the file system cannot start them without waiting.
    pub(crate) fn new(file: File, name: VolumeName, side: Side) -> Result<Self> {
        let filesystem = FileSystem::of(&file)
            .map_err(|errno| Error::os(side, Operation::Stat, errno, format!("ask for the file system of {name}")))?;
        set_flag(&file, OFlag::O_NONBLOCK, false)
            .map_err(|errno| Error::os(side, Operation::Open, errno, format!("set the flags of {name}")))?;
        Ok(Self { file, name, filesystem, align_bytes: 1 })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The file system that the file, or the device's node, is in.
    pub(crate) fn filesystem(&self) -> FileSystem {
        self.filesystem
    }

    /// 1 through the page cache, else a power of two up to 4096.
    pub(crate) fn align_bytes(&self) -> u32 {
        self.align_bytes
    }

    /// Returns whether the page cache is bypassed.
    pub(crate) fn is_direct(&self) -> bool {
        self.align_bytes > 1
    }

    /// Bypasses the page cache from now on, after a trial read has shown that it works. Returns why not, if not; the
    /// descriptor then stays as it was.
    pub(crate) fn bypass_cache(&mut self) -> Result<(), Errno> {
        let align = self.direct_align_bytes()?;
        set_flag(&self.file, OFlag::O_DIRECT, true)?;
        self.align_bytes = align;
        self.trial_read().inspect_err(|_| {
            // Clearing a flag that was just set cannot fail; if it did, the alignment would still be honoured.
            if set_flag(&self.file, OFlag::O_DIRECT, false).is_ok() {
                self.align_bytes = 1;
            }
        })
    }

    fn direct_align_bytes(&self) -> Result<u32, Errno> {
        if self.filesystem.is_memory() && sector_bytes(&self.file).is_err() {
            return Err(Errno::EOPNOTSUPP);
        }
        let sector = sector_bytes(&self.file).unwrap_or(512);
        match direct_align_bytes(&self.file) {
            Some(0) => Err(Errno::EOPNOTSUPP),
            Some(align) => Ok(align.max(sector)),
            None => Ok(DIRECT_ALIGN_BYTES),
        }
        .and_then(|align| {
            let fits = align.is_power_of_two() && align <= DIRECT_ALIGN_BYTES;
            if fits { Ok(align) } else { Err(Errno::EOPNOTSUPP) }
        })
    }

    /// Reads the first aligned unit: file systems may accept the flag and refuse the I/O.
    fn trial_read(&self) -> Result<(), Errno> {
        let mut buffer = AlignedBuffer::new(self.align_bytes as usize);
        pread(&self.file, buffer.bytes(), 0).map(drop)
    }

    /// The bytes from `start`, a multiple of the alignment, to `end` at most. Short only at the end of the volume.
    pub(crate) fn read_range(&self, start: u64, end: u64) -> Result<Vec<u8>, Errno> {
        let wanted = usize::try_from(end - start).map_err(|_| Errno::EINVAL)?;
        let mut buffer = AlignedBuffer::new(wanted.next_multiple_of(DIRECT_ALIGN_BYTES as usize));
        let mut done = 0;
        while done < wanted {
            let at = i64::try_from(start + done as u64).map_err(|_| Errno::EFBIG)?;
            match pread(&self.file, &mut buffer.bytes()[done..], at) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(buffer.bytes()[..done.min(wanted)].to_vec())
    }

    /// Returns whether a read at `end` finds anything: a size is what a file system says, and what it gives may be
    /// more.
    pub(super) fn goes_on_behind(&self, end: u64) -> Result<bool, Errno> {
        let align = self.align_bytes as usize;
        let before = (end % u64::from(self.align_bytes)) as usize;
        let mut buffer = AlignedBuffer::new(align);
        let Some(start) = i64::try_from(end).ok().filter(|end| end.checked_add(align as i64).is_some()) else {
            return Ok(false);
        };
        let start = start - before as i64;
        // Some files of the kernel wait for news at their end: nothing of a job is in flight here that would mind.
        set_flag(&self.file, OFlag::O_NONBLOCK, true)?;
        let read = loop {
            match pread(&self.file, buffer.bytes(), start) {
                Err(Errno::EINTR) => {}
                read => break read,
            }
        };
        set_flag(&self.file, OFlag::O_NONBLOCK, false)?;
        Ok(read? > before)
    }

    /// Returns the number of its bytes in the page cache; 0 where the kernel cannot tell (before Linux 6.5).
    pub(super) fn cached_bytes(&self) -> u64 {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(0).unsigned_abs();
        cached_pages(&self.file).unwrap_or(0).saturating_mul(page)
    }

    /// See [`super::Volume::accepts_dont_cache`].
    pub(super) fn accepts_dont_cache(&self) -> bool {
        !self.is_direct() && accepts_dont_cache(&self.file)
    }

    /// See [`super::Volume::evict`].
    pub(super) fn evict(&self) -> Result<ReadBack> {
        if self.is_direct() {
            return Ok(ReadBack::Device);
        }
        if self.filesystem.is_memory() && sector_bytes(&self.file).is_err() {
            return Ok(ReadBack::Memory);
        }
        let failed =
            |errno| Error::os(Side::Destination, Operation::Flush, errno, format!("drop {} from the cache", self.name));
        // Only clean pages can be dropped.
        nix::unistd::fdatasync(&self.file).map_err(failed)?;
        for _ in 0..EVICT_TRIES {
            posix_fadvise(&self.file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).map_err(failed)?;
            // Advice is not an order: pages that are mapped or in use stay, and a file system may ignore it.
            if cached_pages(&self.file) == Ok(0) {
                return Ok(ReadBack::Evicted);
            }
        }
        Ok(ReadBack::Memory)
    }
}

fn set_flag(file: &File, flag: OFlag, on: bool) -> Result<(), Errno> {
    let mut flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL)?);
    flags.set(flag, on);
    fcntl(file, FcntlArg::F_SETFL(flags)).map(drop)
}

/// Memory that direct I/O accepts: starts at a multiple of [`DIRECT_ALIGN_BYTES`].
struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    fn new(len: usize) -> Self {
        let align = DIRECT_ALIGN_BYTES as usize;
        let memory = vec![0; len + align];
        let start = memory.as_ptr().align_offset(align);
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }
}
