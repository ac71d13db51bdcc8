//! Implements volumes that are regular files: they have holes, can grow, and on some file systems share extents.
//!
//! The facts that a file system reports about a file are evidence, not proof. A map that reports holes where every byte
//! is allocated is not believed, and neither is one that makes no progress: such files are read in full. A file ends
//! where a read ends: one that goes on behind its size is refused as a source.

use super::descriptor::Descriptor;
use super::given_volumes::path_of;
use super::inode::errno;
use super::kernel_calls::{clone_range, refresh_attributes};
use super::{Allocation, Identity, ReadBack, Volume, VolumeIds, VolumeKind, VolumeName};
use crate::error::{Code, Error, Operation, Result, Side};
use crate::extent::{ByteRange, Extent, ExtentKind};
use crate::ring::FileId;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use std::fs::{File, Metadata};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

/// Flushes until the times are stable: a flush may change the times itself (on a network file system), and a write in
/// progress may end meanwhile.
const FLUSH_TRIES: usize = 3;
/// The least that a file system allocates.
const SECTOR_BYTES: u64 = 512;

/// An open regular file.
#[derive(Debug)]
pub(crate) struct FileVolume {
    pub(super) descriptor: Descriptor,
    identity: Identity,
    size_bytes: AtomicU64,
    /// Whether as much is allocated as the file is long: then it has no holes, whatever its map says. Space that is
    /// reserved and not written is read with the rest.
    is_full: bool,
    /// See [`FileVolume::keep_bytes`].
    kept_bytes: u64,
    reached_by: ReachedBy,
}

/// Access to a file.
#[derive(Debug)]
enum ReachedBy {
    /// By its name.
    Name,
    /// A descriptor that a supervisor has given; its name is only shown. With its directory, perhaps.
    Descriptor(Option<OwnedFd>),
}

impl FileVolume {
    /// Takes over an open file.
    ///
    /// # Errors
    /// The file system does not answer.
    pub(super) fn new(file: File, name: VolumeName, side: Side) -> Result<Self> {
        let stat = file.metadata().map_err(|e| Error::io(side, Operation::Stat, &e, format!("stat {name}")))?;
        let identity = Identity { ids: VolumeIds::of_file(&file), ..identity(&stat, &name) };
        let size_bytes = AtomicU64::new(stat.len());
        Ok(Self {
            descriptor: Descriptor::new(file, name, side)?,
            identity,
            size_bytes,
            is_full: is_full(&stat),
            kept_bytes: 0,
            reached_by: ReachedBy::Name,
        })
    }

    /// Begins to watch the times of a source. What a process has written to the file's mapped pages is flushed: that
    /// write-protects them, so that its next store moves the times, as stores to a page that is dirty already do not.
    /// Compared later are the times from before the flush: a page that is dirtied again between a flush and a look
    /// moves nothing after it. Memory (tmpfs) does not protect pages: there such stores are never seen.
    ///
    /// # Errors
    /// The file system does not answer.
    pub(super) fn watch(&mut self) -> Result<()> {
        let mut after = self.stat(Side::Source)?;
        for _ in 0..FLUSH_TRIES {
            let before = after;
            let Identity { size_bytes, modified_ns, changed_ns, .. } = identity(&before, self.name());
            self.identity = Identity { size_bytes, modified_ns, changed_ns, ..self.identity.clone() };
            *self.size_bytes.get_mut() = size_bytes;
            self.is_full = is_full(&before);
            match self.descriptor.file().sync_data() {
                // Files of the kernel have nothing to flush.
                Err(error) if errno(&error) != Errno::EINVAL => {
                    // Not an error: the copy may be the rescue from a full or broken file system.
                    tracing::warn!(source = %self.name(), %error, "source not flushed: recent writes of others may be missed");
                }
                Ok(()) | Err(_) => {}
            }
            after = self.stat(Side::Source)?;
            if difference(&self.identity, &identity(&after, self.name())).is_none() {
                break;
            }
        }
        Ok(())
    }

    /// Sets the least size to which the file may be truncated.
    pub(super) fn keep_bytes(&mut self, bytes: u64) {
        self.kept_bytes = bytes;
    }

    /// Notes that the file was given as a descriptor, as was its directory: its name is not looked up any more.
    pub(super) fn was_given(&mut self, parent: Option<OwnedFd>) {
        self.reached_by = ReachedBy::Descriptor(parent);
    }

    /// Returns a path to its directory; `None` if there is none.
    pub(super) fn directory(&self) -> Option<PathBuf> {
        match &self.reached_by {
            ReachedBy::Name => std::fs::canonicalize(self.name().as_path()).ok()?.parent().map(Path::to_owned),
            ReachedBy::Descriptor(parent) => parent.as_ref().map(path_of),
        }
    }

    /// Returns whether all but a sixteenth of its allocated bytes are in the page cache. `false` where another host, or a
    /// server, may have changed what the cache holds: only some local file systems are known not to be shared.
    pub(super) fn is_cached(&self) -> bool {
        let Ok(allocated) = self.allocated_bytes() else { return false };
        self.descriptor.filesystem().has_its_device_alone()
            && self.descriptor.cached_bytes() >= allocated - allocated / 16
    }

    /// Bytes that are allocated to it now.
    pub(super) fn allocated_bytes(&self) -> Result<u64> {
        Ok(self.stat(Side::Destination)?.blocks().saturating_mul(512))
    }

    fn stat(&self, side: Side) -> Result<Metadata> {
        let file = self.descriptor.file();
        if side == Side::Source {
            refresh_attributes(file);
        }
        file.metadata().map_err(|e| Error::io(side, Operation::Stat, &e, self.describe(Operation::Stat)))
    }

    /// The run that starts at `at`, up to `end`. No file system allocates less than a sector: where the map goes on by
    /// less, or back, it makes no progress, and all of it is data.
    fn extent_at(&self, at: u64, end: u64) -> Result<Extent> {
        let extent = |stop: u64, kind| Extent { range: ByteRange::new(at, stop.min(end)), kind };
        let goes_on = |stop: u64| stop >= at.saturating_add(SECTOR_BYTES).min(end);
        match self.seek(at, Whence::SeekData) {
            Ok(data) if goes_on(data) => Ok(extent(data, ExtentKind::Hole)),
            Ok(data) => match self.seek(data.max(at), Whence::SeekHole) {
                Ok(hole) if goes_on(hole) => Ok(extent(hole, ExtentKind::Data)),
                Ok(_) => Ok(extent(end, ExtentKind::Data)),
                Err(errno) => Err(self.map_failed(errno, at)),
            },
            // Nothing but a hole up to the end of the file, wherever that is now.
            Err(Errno::ENXIO) => self.check_reaches(end).map(|()| extent(end, ExtentKind::Hole)),
            Err(Errno::EINVAL | Errno::EOPNOTSUPP) => Ok(extent(end, ExtentKind::Data)),
            Err(errno) => Err(self.map_failed(errno, at)),
        }
    }

    fn seek(&self, at: u64, whence: Whence) -> Result<u64, Errno> {
        let at = i64::try_from(at).map_err(|_| Errno::EFBIG)?;
        // The file position is not used: all I/O names its offset.
        lseek(self.descriptor.file(), at, whence).map(i64::unsigned_abs)
    }

    fn map_failed(&self, errno: Errno, at: u64) -> Error {
        let code = if errno == Errno::ENXIO { Code::SourceChanged } else { Code::Io };
        Error::os(Side::Source, Operation::Map, errno, self.describe(Operation::Map)).with_code(code).at(at, 0)
    }

    fn check_reaches(&self, end: u64) -> Result<()> {
        let now = self.stat(Side::Source)?.len();
        if now >= end {
            return Ok(());
        }
        let message = format!("the source {} shrank while it was read: it ends at {now} now", self.name());
        Err(Error::new(Code::SourceChanged, Side::Source, Operation::Map, message).at(now, end - now))
    }
}

fn is_full(stat: &Metadata) -> bool {
    stat.blocks().saturating_mul(512) >= stat.len()
}

/// Returns the birth time of a file in ns since the epoch, if its file system has one.
pub(super) fn born_ns(stat: &Metadata) -> Option<i64> {
    let born = stat.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
    i64::try_from(born.as_nanos()).ok()
}

/// Returns the facts that tell the file from others and from later states of itself, apart from its file system.
pub(super) fn identity(stat: &Metadata, name: &VolumeName) -> Identity {
    let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
    Identity {
        name: name.clone(),
        kind: VolumeKind::File,
        device: stat.dev(),
        inode: stat.ino(),
        born_ns: born_ns(stat),
        size_bytes: stat.len(),
        modified_ns: ns(stat.mtime(), stat.mtime_nsec()),
        changed_ns: ns(stat.ctime(), stat.ctime_nsec()),
        ids: VolumeIds::default(),
    }
}

/// Describes how `now` differs from `before` in size, inode or times; `None` if it does not.
pub(super) fn difference(before: &Identity, now: &Identity) -> Option<String> {
    let differs = |what: &str, before: i128, now: i128| Some(format!("its {what} was {before} and is {now} now"));
    if before.size_bytes != now.size_bytes {
        return differs("size in bytes", before.size_bytes.into(), now.size_bytes.into());
    }
    if before.modified_ns != now.modified_ns {
        return differs("modification time (ns)", before.modified_ns.into(), now.modified_ns.into());
    }
    if before.changed_ns != now.changed_ns {
        return differs("change time (ns)", before.changed_ns.into(), now.changed_ns.into());
    }
    if before.inode != now.inode {
        return differs("inode", before.inode.into(), now.inode.into());
    }
    None
}

/// Appends an extent, joined with the one before if they are of one kind.
fn push_merged(extents: &mut Vec<Extent>, next: Extent) {
    match extents.last_mut() {
        Some(last) if last.kind == next.kind => last.range = ByteRange::new(last.range.start(), next.range.end()),
        _ => extents.push(next),
    }
}

impl Volume for FileVolume {
    fn kind(&self) -> VolumeKind {
        VolumeKind::File
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::Acquire)
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
        let mut extents: Vec<Extent> = Vec::new();
        if self.is_full && !within.is_empty() && max > 0 {
            self.check_reaches(within.end())?;
            extents.push(Extent { range: within, kind: ExtentKind::Data });
            return Ok(Some(extents));
        }
        let mut at = within.start();
        // Counts reads of the map, not extents: a run may be reported in small parts, which are merged.
        for _ in 0..max {
            if at >= within.end() {
                break;
            }
            let next = self.extent_at(at, within.end())?;
            at = next.range.end();
            push_merged(&mut extents, next);
        }
        Ok(Some(extents))
    }

    fn check_unchanged(&self) -> Result<()> {
        let now = identity(&self.stat(Side::Source)?, self.name());
        match difference(&self.identity, &now) {
            None => self.check_end(Side::Source),
            Some(how) => {
                let message = format!("the source {} changed while it was copied: {how}", self.name());
                let error = Error::new(Code::SourceChanged, Side::Source, Operation::Stat, message);
                Err(error.advise("copy a snapshot, or stop its writers and copy again"))
            }
        }
    }

    fn check_end(&self, side: Side) -> Result<()> {
        let size = self.size_bytes();
        match self.descriptor.goes_on_behind(size) {
            Ok(false) => Ok(()),
            Ok(true) => {
                let message =
                    format!("the {side} {} goes on behind byte {size}, where its size says it ends", self.name());
                let error = Error::new(Code::SourceChanged, side, Operation::Read, message).at(size, 0);
                Err(error.advise(
                    "stop its writers, or, where its file system does not know its size, copy what `cat` reads of it",
                ))
            }
            Err(errno) => {
                let what = format!("look for the end of {}", self.name());
                Err(Error::os(side, Operation::Read, errno, what).at(size, 0))
            }
        }
    }

    fn allocate(&self, range: ByteRange) -> Result<Allocation> {
        let bounds = i64::try_from(range.start()).and_then(|start| Ok((start, i64::try_from(range.len())?)));
        let (start, len) = bounds.map_err(|_| Error::internal(Operation::Allocate, "a range past 2^63"))?;
        if range.is_empty() {
            return Ok(Allocation::Reserved);
        }
        loop {
            match fallocate(self.descriptor.file(), FallocateFlags::empty(), start, len) {
                Ok(()) => return Ok(Allocation::Reserved),
                Err(Errno::EINTR) => {}
                Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(Allocation::Unsupported),
                Err(errno) => {
                    let what = format!("reserve space in {}", self.name());
                    let error = Error::os(Side::Destination, Operation::Allocate, errno, what);
                    return Err(error.at(range.start(), range.len()).maybe_applied());
                }
            }
        }
    }

    fn resize(&self, size_bytes: u64) -> Result<()> {
        let size_bytes = size_bytes.max(self.kept_bytes);
        self.descriptor.file().set_len(size_bytes).map_err(|e| {
            let what = format!("set the size of {} to {size_bytes} bytes", self.name());
            let error = Error::io(Side::Destination, Operation::Resize, &e, what);
            if error.code == Code::NoSpace { error.advise("its file system allows less") } else { error }
        })?;
        self.size_bytes.store(size_bytes, Ordering::Release);
        Ok(())
    }

    fn check_in_place(&self) -> Result<()> {
        let found = match self.reached_by {
            ReachedBy::Name => std::fs::metadata(self.name().as_path()),
            ReachedBy::Descriptor(_) => self.descriptor.file().metadata(),
        };
        let now = match found {
            // The file is still open, but has no name any more.
            Ok(now) if now.nlink() == 0 => None,
            Ok(now) => Some((now.dev(), now.ino())),
            Err(e) if matches!(errno(&e), Errno::ENOENT | Errno::ENOTDIR) => None,
            Err(e) => {
                let what = format!("stat {}", self.name());
                return Err(Error::io(Side::Destination, Operation::Stat, &e, what));
            }
        };
        if now == Some((self.identity.device, self.identity.inode)) {
            return Ok(());
        }
        let how = if now.is_some() { "replaced" } else { "removed" };
        let message = format!("the destination {} was {how} while it was written", self.name());
        let error = Error::new(Code::NotFound, Side::Destination, Operation::Stat, message);
        Err(error.advise("copy again, and keep others away from the destination until the copy has ended"))
    }

    fn sync_parent(&self) -> Result<()> {
        let failed = |e: &std::io::Error| {
            Error::io(Side::Destination, Operation::Flush, e, format!("sync the directory of {}", self.name()))
        };
        let parent = match &self.reached_by {
            ReachedBy::Name => {
                let path = std::fs::canonicalize(self.name().as_path()).map_err(|e| failed(&e))?;
                path.parent().unwrap_or(Path::new("/")).to_owned()
            }
            ReachedBy::Descriptor(Some(parent)) => path_of(parent),
            ReachedBy::Descriptor(None) => return Ok(()),
        };
        File::open(parent).and_then(|directory| directory.sync_all()).map_err(|e| failed(&e))
    }

    fn clone_range(&self, source: &dyn Volume, range: ByteRange) -> Result<()> {
        clone_range(self.descriptor.file(), source.file().0, range).map_err(|errno| {
            let what = format!("share extents of {} with {}", source.name(), self.name());
            let error = Error::os(Side::Destination, Operation::Clone, errno, what).at(range.start(), range.len());
            match errno {
                Errno::EOPNOTSUPP | Errno::EXDEV | Errno::EINVAL | Errno::ENOTTY | Errno::ENOSYS => {
                    error.with_code(Code::Unsupported)
                }
                _ => error.maybe_applied(),
            }
        })
    }

    fn accepts_dont_cache(&self) -> bool {
        self.descriptor.accepts_dont_cache()
    }

    fn evict(&self) -> Result<ReadBack> {
        self.descriptor.evict()
    }
}
